//! Which upstream answers under which name, address and access rules.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::backend::Backends;
use crate::lab::{BASIC_UPSTREAM, DOCKER_HUB, DOCKER_INDEX, SPARE_UPSTREAMS, TOKEN_SERVER};

/// Docker Hub's registry.
pub const HUB: &str = "registry-1.docker.io";
/// Docker Hub's token server.
pub const AUTH: &str = "auth.docker.io";
/// Docker Hub's index, which is no registry.
pub const INDEX: &str = "index.docker.io";
/// The registry with basic authentication.
pub const BASIC: &str = "basic.registry.test";

/// One name of an upstream.
#[derive(Clone, Debug)]
pub struct Site {
    /// The host name; also how counts and faults name it.
    pub host: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it is.
    pub kind: Kind,
}

/// What a site is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A registry.
    Registry {
        /// Who gets in.
        access: Access,
        /// The registry behind, for images that are not synthetic.
        backend: Option<SocketAddr>,
    },
    /// The token server.
    Tokens,
}

/// Who gets into a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever has a token for the image.
    Token,
    /// Whoever knows the password.
    Basic,
    /// Everyone.
    Open,
}

/// All sites of a run.
#[derive(Debug)]
pub struct Sites(pub Vec<Site>);

impl Sites {
    /// The sites of a laboratory, port 443 of documentation addresses.
    #[must_use]
    pub fn documentation(backends: &Backends) -> Self {
        let mut sites = vec![
            registry(HUB, at(DOCKER_HUB), Access::Token, Some(backends.token_registry())),
            Site { host: AUTH.to_owned(), listen: at(TOKEN_SERVER), kind: Kind::Tokens },
            registry(BASIC, at(BASIC_UPSTREAM), Access::Basic, Some(backends.basic_registry())),
            registry(INDEX, at(DOCKER_INDEX), Access::Open, None),
        ];
        sites.extend(SPARE_UPSTREAMS.map(|address| {
            let host = spare(address);
            registry(&host, at(address), Access::Open, None)
        }));
        Self(sites)
    }

    /// The same three sites and one open one, on loopback ports of the kernel's choice.
    #[cfg(test)]
    #[must_use]
    pub fn loopback() -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tokens = Site { host: AUTH.to_owned(), listen: anywhere, kind: Kind::Tokens };
        Self(vec![
            tokens,
            registry(HUB, anywhere, Access::Token, None),
            registry(BASIC, anywhere, Access::Basic, None),
            registry(&spare(SPARE_UPSTREAMS[0]), anywhere, Access::Open, None),
        ])
    }
}

/// The host name of a spare upstream.
#[must_use]
pub fn spare(address: Ipv4Addr) -> String {
    format!("upstream{}.registry.test", address.octets()[3])
}

fn at(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(address), 443)
}

fn registry(host: &str, listen: SocketAddr, access: Access, backend: Option<SocketAddr>) -> Site {
    Site { host: host.to_owned(), listen, kind: Kind::Registry { access, backend } }
}
