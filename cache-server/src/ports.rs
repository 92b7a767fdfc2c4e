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
    connector::{
        listener::Listener,
        tls::{Certificates, Pair},
    },
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
    certificates: Option<Arc<Certificates>>,
    stop: CancellationToken,
}

/// The certificates of a port: the usual one, and those of host names.
struct PortTls {
    usual: CertifiedKeyPem,
    hosts: Vec<(String, CertifiedKeyPem)>,
}

impl PortTls {
    fn usual(&self) -> Pair {
        pair(&self.usual)
    }

    fn hosts(&self) -> impl Iterator<Item = (String, Pair)> {
        self.hosts.iter().map(|(host, pem)| (host.clone(), pair(pem)))
    }
}

fn pair(pem: &CertifiedKeyPem) -> Pair {
    (pem.chain().to_vec(), pem.key())
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
            let stays = wanted.get(number).is_some_and(|tls| tls.is_some() == port.certificates.is_some());
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

    fn wanted(&self, settings: &Settings) -> HashMap<u16, Option<PortTls>> {
        let connectors = settings.repositories().flat_map(|repository| repository.connectors);
        let mut ports = HashMap::new();
        let mut hosts = Vec::new();
        for connector in connectors {
            match connector {
                ConnectorSettings::Port { port, tls } => {
                    ports.insert(*port, tls.clone().map(|usual| PortTls { usual, hosts: Vec::new() }));
                }
                ConnectorSettings::Host { host, tls } => hosts.extend(tls.clone().map(|tls| (host.clone(), tls))),
            }
        }
        match &settings.server.main_port {
            MainPort::Plain => drop(ports.insert(self.main.port(), None)),
            MainPort::Tls(usual) => {
                ports.insert(self.main.port(), Some(PortTls { usual: usual.clone(), hosts }));
            }
            MainPort::Closed => {}
        }
        ports
    }

    async fn open_or_renew(&mut self, number: u16, tls: Option<PortTls>, settings: &Settings) -> Result<(), PortError> {
        let unusable = |source| PortError::Certificate { port: number, source };
        if let Some(port) = self.open.get(&number) {
            if let (Some(certificates), Some(tls)) = (&port.certificates, tls) {
                certificates.replace(tls.usual(), tls.hosts()).map_err(unusable)?;
            }
            return Ok(());
        }
        let certificates = tls.map(|tls| Certificates::new(tls.usual(), tls.hosts())).transpose().map_err(unusable)?;
        let address = SocketAddr::new(self.ip(), number);
        let bind = |source| PortError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let stop = self.drain.child_token();
        let connector = (number != self.main.port()).then_some(number);
        let listener = Listener::new(
            listener,
            certificates.as_ref().map(Certificates::server_config),
            &settings.server.limits,
            self.server.connections.clone(),
            stop.clone(),
        );
        tokio::spawn(listener.run(Api::new(Arc::clone(&self.server), connector)));
        tracing::info!(address = %address, tls = certificates.is_some(), "listening");
        self.open.insert(number, Port { address, certificates, stop });
        Ok(())
    }

    const fn ip(&self) -> IpAddr {
        self.main.ip()
    }
}
