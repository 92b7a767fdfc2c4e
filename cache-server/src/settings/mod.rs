//! What the cache server is told to do, in types that cannot be wrong. May import `crds` and `oci`.
//!
//! `sources` (bytes) → `objects` (schema, CEL) → `check` (what needs several objects or a Secret) → [`Settings`]. Every
//! mistake on the way is collected, and all are reported together. Either any mistake refuses the whole ([`Settings::load`]), or
//! only the objects that have one ([`Settings::load_good`]).

mod check;
mod hosts;
mod last_good;
mod mistake;
mod objects;
mod schema;
mod secrets;
mod sources;

pub use hosts::{AllowedHost, AllowedHostError, RegistryName, RegistryNameError, UrlError};
pub use mistake::{Mistake, Mistakes, ObjectName, Place};
pub use secrets::{CertifiedKeyPem, SecretError};
pub use sources::{Fingerprint, Loaded, Sources};

use crds::{
    cache_server::ClientLimits,
    names::RepositoryName,
    registry_mirror::{BreakerSpec, Freshness, Retention, UpstreamLimits},
};
use rustls::pki_types::CertificateDer;
use url::Url;

use crate::{
    credentials::Credentials,
    oci::{Algorithm, Digest},
};

/// Everything that a server is told.
///
/// Invariants: names of mirrors, the registries they stand for, and connectors' ports and hosts occur once; no connector has
/// the main port (if [`Sources::main_port`] was given); the default repository exists if there are no `mistakes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What holds for the whole server.
    pub server: ServerSettings,
    /// The mirrors, sorted by name.
    pub mirrors: Vec<MirrorSettings>,
    /// The objects that all this was made of.
    pub objects: Vec<ObjectName>,
    /// Why the others of the configuration are not among them. Empty unless made by [`Settings::load_good`].
    pub mistakes: Mistakes,
}

impl Settings {
    /// Leaves out a mirror that turned out not to work, and says why.
    pub fn leave_out(&mut self, mirror: &RepositoryName, why: &dyn std::error::Error) {
        let is_it = |object: &ObjectName| object.kind == objects::MIRROR && object.name == mirror.as_str();
        self.mirrors.retain(|other| other.name != *mirror);
        let place = self.objects.iter().position(is_it);
        self.mistakes.note_failure(place.map(|place| self.objects.remove(place)), why);
    }
}

/// What holds for the whole server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerSettings {
    /// The name of its `CacheServer` object; `default` if there is none.
    pub name: String,
    /// The most bytes that all content may take; `None`: 80 % of the volume.
    pub max_size: Option<u64>,
    /// The repository that answers when nothing else in a request says which.
    pub default_repository: Option<RepositoryName>,
    /// Time limits towards clients.
    pub limits: ClientLimits,
    /// How the main port serves.
    pub main_port: MainPort,
}

/// How the main port serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MainPort {
    /// Plain HTTP.
    Plain,
    /// TLS with this certificate.
    Tls(CertifiedKeyPem),
    /// Not at all: TLS was asked for, and its certificate was never good. Plain HTTP would be less than what was asked for, and a
    /// client that is refused at once goes elsewhere.
    Closed,
}

/// One mirror.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorSettings {
    /// Its name.
    pub name: RepositoryName,
    /// Whether it serves.
    pub online: bool,
    /// The registry that it stands for.
    pub registry: RegistryName,
    /// Where content comes from.
    pub upstream: UpstreamSettings,
    /// For how long answers are believed.
    pub freshness: Freshness,
    /// What is kept.
    pub retention: Retention,
    /// Its own ways in.
    pub connectors: Vec<ConnectorSettings>,
}

impl MirrorSettings {
    /// Whether its content comes from Docker Hub, by whatever name it goes.
    #[must_use]
    pub fn is_docker_hub(&self) -> bool {
        self.registry.is_docker_hub() || RegistryName::of_url(&self.upstream.url).is_ok_and(|host| host.is_docker_hub())
    }

    /// Whose content this mirror keeps, as 32 hexadecimal digits: kind, upstream, registry and user. The store begins a new
    /// tree when it changes. A new password keeps it; another user, who may see other images, does not.
    #[must_use]
    pub fn identity(&self) -> String {
        let user = self.upstream.credentials.as_ref().map(|credentials| format!("user {}", credentials.username));
        let text = format!(
            "RegistryMirror\n{}\n{}\n{}",
            self.upstream.url.as_str().trim_end_matches('/'),
            self.registry,
            user.as_deref().unwrap_or("anonymous")
        );
        Digest::of(Algorithm::Sha256, text.as_bytes()).hex()[..32].to_owned()
    }
}

/// An upstream, and how it is reached.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSettings {
    /// What stands in front of `/v2/`: http or https, without credentials, query or fragment, and no link-local address. The
    /// path ends in a slash or does not, as it was written.
    pub url: Url,
    /// Who we say we are; `None`: anonymous.
    pub credentials: Option<Credentials>,
    /// Authorities that are trusted beside the public ones.
    pub trusted_pem: Option<Vec<CertificateDer<'static>>>,
    /// The certificate that is shown to the upstream.
    pub client_identity: Option<ClientIdentity>,
    /// Whether no certificate is checked.
    pub skip_verify: bool,
    /// The HTTP proxy to go through: http or https, without path and credentials.
    pub proxy: Option<Url>,
    /// Hosts that may get the credentials beside the upstream's own.
    pub token_hosts: Vec<AllowedHost>,
    /// Hosts to which redirects may lead although their addresses are private.
    pub redirect_hosts: Vec<AllowedHost>,
    /// Time limits and bounds.
    pub limits: UpstreamLimits,
    /// When the upstream is left alone.
    pub breaker: BreakerSpec,
}

/// A certificate that is shown to an upstream.
pub type ClientIdentity = CertifiedKeyPem;

/// A way in to one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectorSettings {
    /// A port of its own.
    Port {
        /// The TCP port.
        port: u16,
        /// Its certificate; `None`: plain HTTP.
        tls: Option<CertifiedKeyPem>,
    },
    /// A name by which clients call the main port.
    Host {
        /// The host name, lower case, without port.
        host: String,
    },
}
