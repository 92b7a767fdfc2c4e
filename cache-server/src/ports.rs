//! The ports that listen, kept in step with the settings.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    connector::{listener::Listener, tls::Certificate},
    server::Server,
    settings::{CertifiedKeyPem, ConnectorSettings, MainPort, Settings},
};

/// The ports that listen.
pub struct Ports {
    server: Arc<Server>,
    main: SocketAddr,
    open: HashMap<u16, Port>,
    drain: CancellationToken,
}

struct Port {
    address: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    stop: CancellationToken,
}

/// Why a port does not listen as it should.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The address cannot be had.
    #[error("failed to listen on {address}; is another program there? Choose another port, or end that program")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error("the certificate of port {port} cannot be used")]
    Certificate {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl PortError {
    /// The port that it is about.
    #[must_use]
    pub const fn port(&self) -> u16 {
        match self {
            Self::Bind { address, .. } => address.port(),
            Self::Certificate { port, .. } => *port,
        }
    }
}

impl Ports {
    /// No port yet; the main one will be `main`. When `drain` is cancelled, none accepts any more.
    #[must_use]
    pub fn new(server: Arc<Server>, main: SocketAddr, drain: CancellationToken) -> Self {
        Self { server, main, open: HashMap::new(), drain }
    }

    /// Where the main port listens; nothing while it does not.
    #[must_use]
    pub fn main_address(&self) -> Option<SocketAddr> {
        self.open.get(&self.main.port()).map(|port| port.address)
    }

    /// Opens the ports that the settings name, closes those that they do not, and exchanges certificates. Transfers on a
    /// port that closes go on to their end. Returns what failed; everything else is done.
    pub async fn follow(&mut self, settings: &Settings) -> Vec<PortError> {
        let wanted = self.wanted(settings);
        self.open.retain(|number, port| {
            let stays = wanted.get(number).is_some_and(|tls| tls.is_some() == port.certificate.is_some());
            if !stays {
                port.stop.cancel();
            }
            stays
        });
        let mut failed = Vec::new();
        for (number, tls) in wanted {
            if let Err(error) = self.open_or_renew(number, tls, settings).await {
                failed.push(error);
            }
        }
        failed
    }

    fn wanted(&self, settings: &Settings) -> HashMap<u16, Option<CertifiedKeyPem>> {
        let connectors = settings.repositories().flat_map(|repository| repository.connectors);
        let ports = connectors.filter_map(|connector| match connector {
            ConnectorSettings::Port { port, tls } => Some((*port, tls.clone())),
            ConnectorSettings::Host { .. } => None,
        });
        let main = match &settings.server.main_port {
            MainPort::Plain => Some((self.main.port(), None)),
            MainPort::Tls(certificate) => Some((self.main.port(), Some(certificate.clone()))),
            MainPort::Closed => None,
        };
        ports.chain(main).collect()
    }

    async fn open_or_renew(
        &mut self,
        number: u16,
        tls: Option<CertifiedKeyPem>,
        settings: &Settings,
    ) -> Result<(), PortError> {
        let unusable = |source| PortError::Certificate { port: number, source };
        if let Some(port) = self.open.get(&number) {
            if let (Some(certificate), Some(pem)) = (&port.certificate, tls) {
                certificate.replace(pem.chain().to_vec(), pem.key()).map_err(unusable)?;
            }
            return Ok(());
        }
        let certificate =
            tls.map(|pem| Certificate::new(pem.chain().to_vec(), pem.key())).transpose().map_err(unusable)?;
        let address = SocketAddr::new(self.ip(), number);
        let bind = |source| PortError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let stop = self.drain.child_token();
        let connector = (number != self.main.port()).then_some(number);
        let listener = Listener::new(
            listener,
            certificate.as_ref().map(Certificate::server_config),
            &settings.server.limits,
            self.server.connections.clone(),
            stop.clone(),
        );
        tokio::spawn(listener.run(Api::new(Arc::clone(&self.server), connector)));
        tracing::info!(address = %address, tls = certificate.is_some(), "listening");
        self.open.insert(number, Port { address, certificate, stop });
        Ok(())
    }

    const fn ip(&self) -> IpAddr {
        self.main.ip()
    }
}
