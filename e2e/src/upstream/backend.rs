//! Debian's docker-registry behind the front: one with tokens, one with basic authentication, and beside each a
//! bare one on the same files, through which a test pushes.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use super::{
    sites::{AUTH, HUB},
    token::{ISSUER, SERVICE, TokenServer},
    users::HTPASSWD,
};
use crate::lab::{Lab, Process};

/// Debian's registry, from the package of the same name.
pub const PROGRAM: &str = "docker-registry";
/// How long a registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The registries behind the front.
#[derive(Debug)]
pub struct Backends {
    token: Registry,
    token_push: Registry,
    basic: Registry,
    basic_push: Registry,
}

impl Backends {
    /// Starts all four and waits until they listen.
    pub async fn start(lab: &Lab, tokens: &TokenServer) -> Result<Self> {
        let root = lab.dir("upstream")?;
        let bundle = root.join("tokens.pem");
        write(&bundle, tokens.certificate_pem())?;
        let htpasswd = root.join("htpasswd");
        write(&htpasswd, HTPASSWD)?;
        let token_access = token_access(&bundle);
        let basic_access = basic_access(&htpasswd);
        Ok(Self {
            token: Registry::start(lab, "upstream-token", &root.join("token"), &token_access).await?,
            token_push: Registry::start(lab, "upstream-token-push", &root.join("token"), "").await?,
            basic: Registry::start(lab, "upstream-basic", &root.join("basic"), &basic_access).await?,
            basic_push: Registry::start(lab, "upstream-basic-push", &root.join("basic"), "").await?,
        })
    }

    /// The registry with tokens.
    #[must_use]
    pub const fn token_registry(&self) -> SocketAddr {
        self.token.address
    }

    /// The registry with basic authentication.
    #[must_use]
    pub const fn basic_registry(&self) -> SocketAddr {
        self.basic.address
    }

    /// Where to push images for the registry with tokens.
    #[must_use]
    pub fn token_push(&self) -> String {
        self.token_push.address.to_string()
    }

    /// Where to push images for the registry with basic authentication.
    #[must_use]
    pub fn basic_push(&self) -> String {
        self.basic_push.address.to_string()
    }
}

/// One running docker-registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    _process: Process,
}

impl Registry {
    /// Starts a registry over these files, with more lines of configuration.
    pub async fn start(lab: &Lab, name: &str, files: &Path, more: &str) -> Result<Self> {
        Self::start_with(lab, name, files, more, &[]).await
    }

    /// The same with environment variables.
    pub async fn start_with(
        lab: &Lab,
        name: &str,
        files: &Path,
        more: &str,
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let address = free_address()?;
        let config = lab.dir("upstream")?.join(format!("{name}.yml"));
        write(&config, &configuration(address, files, more))?;
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        command.envs(environment.iter().copied());
        let mut process = lab.spawn(name, command)?;
        process.until(START_LIMIT, async || TcpStream::connect(address).await.is_ok()).await?;
        Ok(Self { address, _process: process })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn configuration(address: SocketAddr, files: &Path, more: &str) -> String {
    format!(
        "version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {files}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: '{address}', relativeurls: true}}
{more}",
        files = files.display(),
    )
}

fn token_access(bundle: &Path) -> String {
    format!(
        "auth: {{token: {{realm: 'https://{AUTH}/token', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}\n",
        bundle.display()
    )
}

fn basic_access(htpasswd: &Path) -> String {
    format!("auth: {{htpasswd: {{realm: basic.registry.test, path: {}}}}}\n", htpasswd.display())
}

/// The configuration that makes a registry a pull-through cache of Docker Hub.
#[must_use]
pub fn proxy_of_hub() -> String {
    format!("proxy: {{remoteurl: 'https://{HUB}'}}\n")
}

/// A loopback address that is free now.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("failed to find a free port")
}

fn write(path: &PathBuf, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
