//! The upstream registries of a run: everything that the cache under test reaches beyond itself.
//!
//! One front ends TLS under a private CA for every address of the documentation range, counts what
//! is asked, limits rates and injects faults. Behind it stand two of Debian's docker-registry (one
//! with tokens, one with basic authentication), the token server, and synthetic content in memory.
//!
//! In reading order: [`blob`] and [`content`] (what is served), [`request`] (HTTP/1.1 as bytes, so that
//! a fault can cut it anywhere), [`answer`] (what is sent back), [`fault`] (how it is spoilt),
//! [`counts`] (what was asked), [`token`], [`index`], [`front`], [`backend`]; [`client`] is the other end.

pub mod answer;
pub mod authority;
pub mod backend;
pub mod blob;
pub mod client;
pub mod content;
pub mod counts;
pub mod fault;
pub mod front;
pub mod index;
pub mod mirror;
pub mod request;
pub mod sites;
pub mod token;
pub mod trap;
pub mod users;

#[cfg(test)]
use std::net::SocketAddr;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};

use self::{
    authority::Authority,
    backend::Backends,
    content::Content,
    counts::{Counts, Snapshot},
    fault::Faults,
    front::Front,
    sites::Sites,
    token::TokenServer,
};
use crate::lab::Lab;

/// Every upstream of one run. Dropping it closes the front; the lab ends the registries behind it.
#[derive(Debug)]
pub struct Upstream {
    authority: Authority,
    ca_file: PathBuf,
    front: Front,
    backends: Option<Backends>,
}

impl Upstream {
    /// Starts the registries, the token server and the front on the addresses of [`Sites::documentation`].
    pub async fn start(lab: &Lab) -> Result<Self> {
        let authority = Authority::new()?;
        let tokens = Arc::new(TokenServer::new()?);
        let backends = Backends::start(lab, &tokens).await?;
        let sites = Sites::documentation(&backends);
        Self::assemble(authority, tokens, sites, lab.work(), Some(backends)).await
    }

    /// Starts only the front, on loopback ports of the kernel's choice and without registries behind it.
    #[cfg(test)]
    pub async fn on_loopback(dir: &Path) -> Result<Self> {
        let tokens = Arc::new(TokenServer::new()?);
        Self::assemble(Authority::new()?, tokens, Sites::loopback(), dir, None).await
    }

    async fn assemble(
        authority: Authority,
        tokens: Arc<TokenServer>,
        sites: Sites,
        dir: &Path,
        backends: Option<Backends>,
    ) -> Result<Self> {
        let ca_file = dir.join("upstream-ca.pem");
        std::fs::write(&ca_file, authority.ca_pem())
            .with_context(|| format!("failed to write {}", ca_file.display()))?;
        let front = Front::start(&authority, sites, tokens).await?;
        Ok(Self { authority, ca_file, front, backends })
    }

    /// The private CA that signs every upstream, in PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// The file that holds [`Self::ca_pem`].
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Everything that was asked since the start or the last [`Self::reset_counts`].
    #[must_use]
    pub fn counts(&self) -> Snapshot {
        self.front.counts().snapshot()
    }

    /// The live counters, for those who wait until something has been asked.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counts> {
        self.front.counts()
    }

    /// Forgets what was asked so far.
    pub fn reset_counts(&self) {
        self.front.counts().reset();
    }

    /// The faults that the front injects.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        self.front.faults()
    }

    /// Blobs and manifests that the front serves itself, before it asks the registries behind it.
    #[must_use]
    pub fn content(&self) -> &Content {
        self.front.content()
    }

    /// The address on which the site with this host name really listens.
    #[cfg(test)]
    #[must_use]
    pub fn address(&self, host: &str) -> Option<SocketAddr> {
        self.front.address(host)
    }

    /// Where images of the registry with tokens are pushed: plain HTTP, `host:port`, no credentials.
    pub fn push_endpoint(&self) -> Result<String> {
        self.backends().map(Backends::token_push)
    }

    /// Where images of the registry with basic authentication are pushed: plain HTTP, `host:port`, no credentials.
    pub fn basic_push_endpoint(&self) -> Result<String> {
        self.backends().map(Backends::basic_push)
    }

    fn backends(&self) -> Result<&Backends> {
        self.backends.as_ref().context("this upstream was started without registries behind it")
    }
}

#[cfg(test)]
mod tests;
