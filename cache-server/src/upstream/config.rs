//! What an [`Upstream`](super::Upstream) is made from. May import the `crds` crate and `credentials`.

use crds::registry_mirror::{BreakerSpec, UpstreamLimits};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use crate::credentials::Credentials;

/// The certificate that is shown to the upstream, with its key.
#[derive(Debug)]
pub struct ClientIdentity {
    /// The certificate and those that lead to its root, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key. Its `Debug` shows no key material.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for ClientIdentity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// One upstream and how it is reached. One identity: a change of any field makes a new [`Upstream`](super::Upstream),
/// and with it new tokens, a closed breaker and new connections.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Scheme, host, port and the path in front of `/v2/`.
    pub url: Url,
    /// Whom to ask as; `None` asks anonymously.
    pub credentials: Option<Credentials>,
    /// Certificates that are trusted beside the public ones.
    pub trusted: Vec<CertificateDer<'static>>,
    /// The certificate shown to the upstream and to listed hosts, never to others.
    pub client_identity: Option<ClientIdentity>,
    /// Whether the certificates of the upstream's own host and of listed hosts go unchecked. Others are always checked.
    pub skip_verify: bool,
    /// The HTTP proxy through which everything is reached; it then resolves the names.
    pub proxy: Option<Url>,
    /// Further hosts (`host` or `host:port`) that may be given the credentials as token servers.
    pub token_hosts: Vec<String>,
    /// Hosts (`host` or `host:port`) to which redirects may lead although they are at private addresses.
    pub redirect_hosts: Vec<String>,
    /// Time limits and bounds.
    pub limits: UpstreamLimits,
    /// When the upstream is left alone.
    pub breaker: BreakerSpec,
}

impl UpstreamConfig {
    /// An anonymous upstream with the default limits.
    #[must_use]
    pub fn anonymous(url: Url) -> Self {
        Self {
            url,
            credentials: None,
            trusted: Vec::new(),
            client_identity: None,
            skip_verify: false,
            proxy: None,
            token_hosts: Vec::new(),
            redirect_hosts: Vec::new(),
            limits: UpstreamLimits::default(),
            breaker: BreakerSpec::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Secret;

    #[test]
    fn a_secret_is_never_printed() {
        let mut config = UpstreamConfig::anonymous("https://registry.example.com".parse().expect("a URL"));
        config.credentials = Some(Credentials { username: "reader".into(), password: Secret::new("hunter2") });
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
