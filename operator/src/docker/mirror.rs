//! What `--mirror REGISTRY=URL` says. Pure.

use std::{fmt, str::FromStr};

use crds::{
    names::is_registry,
    node_mirror::NodeEntry,
    nodes::{Fallback, Foreign, ProbeSpec},
};
use url::Url;

use super::plan::Lists;
use crate::node::{detect::Version, probe::Target};

/// The registry whose mirrors daemon.json names.
pub const DOCKER_HUB: &str = "docker.io";
/// The path below which a cache serves a repository by its name.
const BY_NAME: &str = "/repository/";
/// The first dockerd that takes a path in a mirror of daemon.json.
const PATHS: Version = Version(25, 0);
/// The first dockerd that reads hosts.toml.
const HOSTS: Version = Version(28, 0);

/// A registry, and where the engine shall ask for its images first.
///
/// Invariants: the URL is `http` or `https`, names a host, and has neither user, query nor fragment; it ends without `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    registry: String,
    url: String,
    authority: String,
    path: String,
    is_plain: bool,
}

/// Why a text is no [`Mirror`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// There is no `=`.
    #[error("it must be written REGISTRY=URL, like docker.io=http://cache.example.com:8181")]
    Form,
    /// What is before it names no registry.
    #[error("{0:?} names no registry; write it as images do, like docker.io or ghcr.io")]
    Registry(String),
    /// What is behind it is no URL of a mirror.
    #[error("{0:?} is no URL of a mirror: {1}")]
    Url(String, &'static str),
}

/// Why an engine cannot use a mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is too old for a path.
    #[error(
        "dockerd {engine} takes no path in a mirror ({url}); dockerd 25 does. Give the repository a port connector, and name that port without a path"
    )]
    Path {
        /// The engine's version.
        engine: String,
        /// The mirror's.
        url: String,
    },
    /// It is too old for hosts.toml.
    #[error(
        "dockerd {engine} has mirrors for docker.io only, so {registry} cannot go through the cache; dockerd 28 with the containerd image store can. Leave --mirror {registry}=… out"
    )]
    TooOld {
        /// The engine's version.
        engine: String,
        /// Whose mirror.
        registry: String,
    },
    /// It would not take the certificates.
    #[error(
        "dockerd {engine} with the containerd image store takes no certificates for a mirror ({url}); dockerd 28 does. Add them to the system's own and leave --ca out, or use http://"
    )]
    Certificates {
        /// The engine's version.
        engine: String,
        /// The mirror's.
        url: String,
    },
    /// It has the older image store.
    #[error(
        "this dockerd keeps images in a store of its own, and has mirrors for docker.io only then; with the containerd image store (\"features\": {{\"containerd-snapshotter\": true}} in daemon.json, and a restart) {registry} can go through the cache. Do that, or leave --mirror {registry}=… out"
    )]
    Store {
        /// Whose mirror.
        registry: String,
    },
}

impl Mirror {
    /// The registry, as images name it.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The URL, without a `/` at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port, as the URL has them.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether it is `http`.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether daemon.json names it; if not, hosts.toml does.
    #[must_use]
    pub fn is_in_daemon_json(&self) -> bool {
        self.registry == DOCKER_HUB
    }

    /// What daemon.json shall say of it.
    #[must_use]
    pub fn lists(&self) -> Lists {
        let insecure = self.is_plain.then(|| self.authority.clone());
        Lists { mirrors: vec![self.url.clone()], insecure: insecure.into_iter().collect() }
    }

    /// What the probe asks.
    #[must_use]
    pub fn target(&self, authorities: Option<&str>) -> Target {
        Target {
            url: self.url.clone(),
            repository: self.repository().map(str::to_owned),
            ca_bundle: authorities.filter(|_| !self.is_plain).map(str::to_owned),
        }
    }

    /// What hosts.toml shall say.
    #[must_use]
    pub fn entry(&self, authorities: Option<&str>) -> NodeEntry {
        NodeEntry {
            registry: self.registry.clone(),
            url: self.url.clone(),
            repository: self.repository().unwrap_or_default().to_owned(),
            ca_bundle: authorities.filter(|_| !self.is_plain).map(str::to_owned),
            server: None,
            fallback: Fallback::Allow,
            foreign: Foreign::Prepend,
            probe: ProbeSpec::default(),
        }
    }

    /// Whether hosts.toml must name it even if daemon.json does: for a mirror of daemon.json the containerd image store
    /// takes no certificates but the system's.
    #[must_use]
    pub fn needs_hosts(&self, containerd_store: bool, authorities: Option<&str>) -> bool {
        !self.is_in_daemon_json() || (containerd_store && !self.is_plain && authorities.is_some())
    }

    /// Whether an engine of this version, with or without the containerd image store, can use it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn fits(&self, engine: &str, containerd_store: bool, authorities: Option<&str>) -> Result<(), Unfit> {
        let is_older = |than| Version::parse(engine).is_some_and(|version| version < than);
        let engine = engine.to_owned();
        if self.is_in_daemon_json() {
            let url = self.url.clone();
            if !self.path.is_empty() && is_older(PATHS) {
                return Err(Unfit::Path { engine, url });
            }
            let needs_hosts = self.needs_hosts(containerd_store, authorities);
            return if needs_hosts && is_older(HOSTS) { Err(Unfit::Certificates { engine, url }) } else { Ok(()) };
        }
        let registry = self.registry.clone();
        if is_older(HOSTS) {
            return Err(Unfit::TooOld { engine, registry });
        }
        if containerd_store { Ok(()) } else { Err(Unfit::Store { registry }) }
    }

    /// The repository that the URL names, if it names one.
    fn repository(&self) -> Option<&str> {
        let name = self.path.strip_prefix(BY_NAME)?;
        (!name.contains('/')).then_some(name)
    }
}

impl FromStr for Mirror {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, MirrorError> {
        let (registry, address) = text.split_once('=').ok_or(MirrorError::Form)?;
        if !is_registry(registry) {
            return Err(MirrorError::Registry(registry.to_owned()));
        }
        let wrong = |why| MirrorError::Url(address.to_owned(), why);
        let url = Url::parse(address).map_err(|_| wrong("it cannot be read; write http://HOST:PORT"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it must begin with http:// or https://"));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no host"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(MirrorError::Url("it".to_owned(), "dockerd takes no user name or password in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("dockerd takes no query in it"));
        }
        // A port that is the scheme's own is left out, as dockerd and its folders of certificates would have it.
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = url.path().trim_end_matches('/').to_owned();
        Ok(Self {
            registry: registry.to_owned(),
            url: format!("{}://{authority}{path}", url.scheme()),
            authority,
            path,
            is_plain: url.scheme() == "http",
        })
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.registry, self.url)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn mirror(text: &str) -> Mirror {
        text.parse().unwrap()
    }

    #[test]
    fn a_mirror_is_a_registry_and_a_url() {
        let hub = mirror("docker.io=http://10.0.2.2:8181/");
        assert_eq!(
            (hub.registry(), hub.url(), hub.authority()),
            ("docker.io", "http://10.0.2.2:8181", "10.0.2.2:8181")
        );
        let lists =
            Lists { mirrors: vec!["http://10.0.2.2:8181".to_owned()], insecure: vec!["10.0.2.2:8181".to_owned()] };
        assert_eq!(hub.lists(), lists);
        let secure = mirror("docker.io=https://cache.test/repository/hub");
        assert!(secure.lists().insecure.is_empty());
        assert_eq!(secure.target(Some("pem")).repository.as_deref(), Some("hub"));
        assert_eq!(secure.target(Some("pem")).ca_bundle.as_deref(), Some("pem"));
        assert_eq!(hub.target(Some("pem")), Target { url: hub.url, repository: None, ca_bundle: None });
    }

    #[test]
    fn what_dockerd_would_refuse_is_refused_before_it() {
        for text in ["docker.io", "=http://a", "Docker Hub=http://a", "docker.io=a:5000", "docker.io=ftp://a"] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
        for text in ["docker.io=http://a/?x=1", "docker.io=http://a/#x", "docker.io=http://"] {
            assert!(matches!(text.parse::<Mirror>(), Err(MirrorError::Url(..))), "{text}");
        }
        let secret = "docker.io=http://me:secret@a".parse::<Mirror>().unwrap_err();
        assert!(!secret.to_string().contains("secret"), "{secret}");
    }

    #[test]
    fn an_engine_that_cannot_is_told_from_one_that_can() {
        let (hub, path, other) =
            (mirror("docker.io=http://a:1"), mirror("docker.io=http://a:1/x"), mirror("ghcr.io=http://a:1/x"));
        for (engine, store, fits) in [
            ("20.10.24+dfsg1", false, [true, false, false]),
            ("26.1.5+dfsg1", true, [true, true, false]),
            ("28.5.2+dfsg3", false, [true, true, false]),
            ("28.5.2+dfsg3", true, [true, true, true]),
        ] {
            assert_eq!([&hub, &path, &other].map(|mirror| mirror.fits(engine, store, None).is_ok()), fits, "{engine}");
        }
        assert!(matches!(other.fits("28.5.2", false, None), Err(Unfit::Store { .. })));
        assert!(matches!(other.fits("26.1.5", true, None), Err(Unfit::TooOld { .. })));
        let secure = mirror("docker.io=https://a:1");
        assert!(matches!(secure.fits("26.1.5", true, Some("pem")), Err(Unfit::Certificates { .. })));
        assert!(secure.fits("26.1.5", false, Some("pem")).is_ok() && secure.fits("28.5.2", true, Some("pem")).is_ok());
        assert!(secure.needs_hosts(true, Some("pem")) && !secure.needs_hosts(false, Some("pem")));
        assert!(
            !secure.needs_hosts(true, None) && !hub.needs_hosts(true, Some("pem")) && other.needs_hosts(true, None)
        );
    }
}
