//! What the cache server is told to do, in types that cannot be wrong. May import `crds`, `oci` and
//! `access`.
//!
//! `sources` (bytes) → `objects` (schema, CEL) → `check` (what needs several objects or a Secret) → [`Settings`]. Every
//! mistake on the way is collected, and all are reported together. Either any mistake refuses the whole ([`Settings::load`]), or
//! only the objects that have one ([`Settings::load_good`]).

mod check;
mod hosts;
mod last_good;
mod membership;
mod mistake;
mod objects;
mod schema;
mod secrets;
mod sources;

pub use hosts::{AllowedHost, AllowedHostError, RegistryName, RegistryNameError, UrlError};
pub use membership::Membership;
pub use mistake::{Mistake, Mistakes, ObjectName, Place};
pub use secrets::{CertifiedKeyPem, SecretError};
pub use sources::{Fingerprint, Loaded, Sources};

use std::sync::Arc;

use crds::{
    cache_server::ClientLimits,
    hosted_repository::WritePolicy,
    names::RepositoryName,
    registry_mirror::{BreakerSpec, Freshness, UpstreamLimits},
    repository::Retention,
};
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use url::Url;

use crate::{
    access::Auth,
    credentials::Credentials,
    oci::{Algorithm, Digest, ImageName},
};

/// Everything that a server is told.
///
/// Invariants: names of repositories, the registries that mirrors stand for, and connectors' ports and hosts occur once; no connector has
/// the main port (if [`Sources::main_port`] was given); the default repository exists if there are no `mistakes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What holds for the whole server.
    pub server: ServerSettings,
    /// The mirrors, sorted by name.
    pub mirrors: Vec<MirrorSettings>,
    /// The hosted repositories, sorted by name.
    pub hosted: Vec<HostedSettings>,
    /// The groups, sorted by name.
    pub groups: Vec<GroupSettings>,
    /// The objects that all this was made of.
    pub objects: Vec<ObjectName>,
    /// Why the others of the configuration are not among them. Empty unless made by [`Settings::load_good`].
    pub mistakes: Mistakes,
}

/// What is the same in all kinds of repositories.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepositoryFacts<'a> {
    /// Its name.
    pub name: &'a RepositoryName,
    /// The kind of its object.
    pub kind: &'static str,
    /// Its own ways in.
    pub connectors: &'a [ConnectorSettings],
}

impl Settings {
    /// The repositories of all kinds, mirrors first.
    pub fn repositories(&self) -> impl Iterator<Item = RepositoryFacts<'_>> {
        let facts = |name, kind, connectors| RepositoryFacts { name, kind, connectors };
        let mirrors = self.mirrors.iter().map(move |it| facts(&it.name, objects::MIRROR, it.connectors.as_slice()));
        let hosted = self.hosted.iter().map(move |it| facts(&it.name, objects::HOSTED, it.connectors.as_slice()));
        let groups = self.groups.iter().map(move |it| facts(&it.name, objects::GROUP, it.connectors.as_slice()));
        mirrors.chain(hosted).chain(groups)
    }

    fn sort(&mut self) {
        self.mirrors.sort_by(|one, other| one.name.cmp(&other.name));
        self.hosted.sort_by(|one, other| one.name.cmp(&other.name));
        self.groups.sort_by(|one, other| one.name.cmp(&other.name));
    }

    /// Leaves out a repository that turned out not to work, and says why.
    pub fn leave_out(&mut self, repository: &RepositoryName, why: &dyn std::error::Error) {
        let is_it = |object: &ObjectName| {
            objects::REPOSITORIES.contains(&object.kind.as_str()) && object.name == repository.as_str()
        };
        self.mirrors.retain(|other| other.name != *repository);
        self.hosted.retain(|other| other.name != *repository);
        self.groups.retain(|other| other.name != *repository);
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
    /// Who can log in, and what they may do.
    pub auth: Arc<Auth>,
    /// Where clients reach the server; `None`: where each request says.
    pub external_url: Option<url::Origin>,
    /// Networks of reverse proxies that are believed whom they asked for.
    pub trusted_proxies: Vec<IpNet>,
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
    /// Whether everyone may pull from it.
    pub anonymous_pull: bool,
    /// For how long answers are believed.
    pub freshness: Freshness,
    /// What is kept.
    pub retention: Retention,
    /// Where `docker search` looks; `None`: nowhere.
    pub index: Option<IndexSettings>,
    /// Its own ways in.
    pub connectors: Vec<ConnectorSettings>,
}

/// Where a mirror looks for images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSettings {
    /// What stands in front of `/v1/search`.
    pub url: Url,
    /// Whether there may be a catalog where there is no index.
    pub has_catalog: bool,
}

impl MirrorSettings {
    /// Whether its content comes from Docker Hub, by whatever name it goes.
    #[must_use]
    pub fn is_docker_hub(&self) -> bool {
        self.registry.is_docker_hub() || RegistryName::of_url(&self.upstream.url).is_ok_and(|host| host.is_docker_hub())
    }

    /// The image as the upstream knows it: Docker Hub's official images live under `library/`, which clients that do not know
    /// that they talk about Docker Hub leave out.
    #[must_use]
    pub fn image(&self, image: &ImageName) -> ImageName {
        if !self.is_docker_hub() || image.as_str().contains('/') {
            return image.clone();
        }
        // A name of almost 255 characters stays as it is; Docker Hub has no such image either way.
        format!("library/{image}").parse().unwrap_or_else(|_| image.clone())
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

/// One hosted repository.
#[derive(Clone, Debug, PartialEq)]
pub struct HostedSettings {
    /// Its name.
    pub name: RepositoryName,
    /// Whether it serves.
    pub online: bool,
    /// Whether everyone may pull from it.
    pub anonymous_pull: bool,
    /// What pushes may do.
    pub write_policy: WritePolicy,
    /// Patterns of tags that cannot be moved or deleted.
    pub immutable_tags: Vec<String>,
    /// Whether images may name blobs that are not there.
    pub sparse_images: bool,
    /// Patterns of image names that no group asks another member for.
    pub reserved_names: Vec<String>,
    /// The registries that it may answer for within a group.
    pub serves_for: Vec<RegistryName>,
    /// What is kept.
    pub retention: Retention,
    /// Its own ways in.
    pub connectors: Vec<ConnectorSettings>,
}

impl HostedSettings {
    /// Whose content this repository keeps, as 32 hexadecimal digits. It depends on nothing but the kind: what was pushed
    /// stays, whatever is changed in the object.
    #[must_use]
    pub fn identity(&self) -> String {
        Digest::of(Algorithm::Sha256, b"HostedRepository").hex()[..32].to_owned()
    }
}

/// One group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSettings {
    /// Its name.
    pub name: RepositoryName,
    /// Whether it serves.
    pub online: bool,
    /// Whether everyone may pull from it.
    pub anonymous_pull: bool,
    /// Its members, in the order in which they are asked. A member may be missing from the configuration, and groups may form
    /// a ring: the group then serves what the others have.
    pub members: Vec<RepositoryName>,
    /// Whether `docker search` works through it.
    pub v1_search: bool,
    /// The member that takes pushes.
    pub push_to: Option<RepositoryName>,
    /// Its own ways in.
    pub connectors: Vec<ConnectorSettings>,
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
        /// The certificate for clients that ask for that name; `None`: the main port's own. Never with a main port that has
        /// no TLS.
        tls: Option<CertifiedKeyPem>,
    },
}
