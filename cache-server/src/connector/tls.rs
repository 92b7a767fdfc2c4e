//! Certificates of ports, chosen by the name that a client asks for, and replaced while the server runs.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate chain (leaf first) with the leaf's key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificates of one port. They can be exchanged: connections begun after [`Certificates::replace`] are shown the
/// new ones, and those that are open go on.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwap<Shown>,
}

/// What is shown to whom.
#[derive(Debug)]
struct Shown {
    /// To everyone who asks for no name that has a certificate of its own.
    usual: Arc<CertifiedKey>,
    /// By host name, in lower case.
    hosts: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// The usual certificate, and those of some host names. Fails when a chain and its key do not belong together.
    pub fn new(usual: Pair, hosts: impl IntoIterator<Item = (String, Pair)>) -> Result<Arc<Self>, rustls::Error> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(Shown::new(usual, hosts)?) }))
    }

    /// Takes others.
    pub fn replace(&self, usual: Pair, hosts: impl IntoIterator<Item = (String, Pair)>) -> Result<(), rustls::Error> {
        self.current.store(Arc::new(Shown::new(usual, hosts)?));
        Ok(())
    }

    /// The TLS settings of a port with these certificates: TLS 1.2 and 1.3, HTTP/1.1.
    ///
    /// # Panics
    /// Never: the provider supports both versions.
    #[must_use]
    pub fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider should support the default protocol versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

impl Shown {
    fn new(usual: Pair, hosts: impl IntoIterator<Item = (String, Pair)>) -> Result<Self, rustls::Error> {
        let hosts = hosts.into_iter().map(|(host, pair)| Ok((host, certified(pair)?)));
        Ok(Self { usual: certified(usual)?, hosts: hosts.collect::<Result<_, rustls::Error>>()? })
    }

    fn of(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let own = name.and_then(|name| self.hosts.get(&name.to_ascii_lowercase()));
        own.unwrap_or(&self.usual)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current.load().of(hello.server_name())))
    }
}

fn certified((chain, key): Pair) -> Result<Arc<CertifiedKey>, rustls::Error> {
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
