//! The laboratory: one run's work folder, its network without a way out, and the processes that live in it.
//!
//! A run has two phases. The first, in the machine's own namespaces, installs and builds. The second is this same
//! program inside fresh network, mount and process namespaces ([`enter`]); whatever it makes there (addresses, nft
//! rules, mounts, processes) ends with it, also after a crash, because the kernel takes the namespaces apart when
//! their first process dies.

pub mod cache_server;
pub mod cgroups;
pub mod enter;
pub mod network;
pub mod process;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use cache_server::{CacheServer, CacheServerSetup};
pub use process::Process;

/// Answers as `registry-1.docker.io` and `docker.io`: the upstream with bearer tokens.
pub const DOCKER_HUB: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Answers as `auth.docker.io`: the token server.
pub const TOKEN_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// Answers as `basic.registry.test`: the upstream with basic authentication.
pub const BASIC_UPSTREAM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 12);
/// Free for upstreams that tests make up, as `upstream13.registry.test` and so on up to 20.
pub const SPARE_UPSTREAMS: [Ipv4Addr; 8] = [
    Ipv4Addr::new(203, 0, 113, 13),
    Ipv4Addr::new(203, 0, 113, 14),
    Ipv4Addr::new(203, 0, 113, 15),
    Ipv4Addr::new(203, 0, 113, 16),
    Ipv4Addr::new(203, 0, 113, 17),
    Ipv4Addr::new(203, 0, 113, 18),
    Ipv4Addr::new(203, 0, 113, 19),
    Ipv4Addr::new(203, 0, 113, 20),
];
/// Answers as `index.docker.io`: where images of Docker Hub are searched.
pub const DOCKER_INDEX: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
/// The bridge that the nodes see: where a cache listens for them.
pub const CACHE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The names that resolve inside the laboratory, each with its address.
pub const NAMES: [(&str, Ipv4Addr); 19] = [
    ("registry-1.docker.io", DOCKER_HUB),
    ("index.docker.io", DOCKER_INDEX),
    ("docker.io", DOCKER_HUB),
    ("auth.docker.io", TOKEN_SERVER),
    ("basic.registry.test", BASIC_UPSTREAM),
    ("upstream13.registry.test", SPARE_UPSTREAMS[0]),
    ("upstream14.registry.test", SPARE_UPSTREAMS[1]),
    ("upstream15.registry.test", SPARE_UPSTREAMS[2]),
    ("upstream16.registry.test", SPARE_UPSTREAMS[3]),
    ("upstream17.registry.test", SPARE_UPSTREAMS[4]),
    ("upstream18.registry.test", SPARE_UPSTREAMS[5]),
    ("upstream19.registry.test", SPARE_UPSTREAMS[6]),
    ("upstream20.registry.test", SPARE_UPSTREAMS[7]),
    ("project-push.example.com", CACHE),
    ("project.example.com", CACHE),
    ("paths.example.com", CACHE),
    ("outer.example.com", CACHE),
    ("one.example.com", CACHE),
    ("two.example.com", CACHE),
];

/// A machine of the laboratory that runs one engine: a network namespace on the bridge with no route but to it.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Its name, also that of its network namespace.
    pub name: &'static str,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
}

/// Runs containerd 1.7.
pub const NODE17: Node = Node { name: "node17", address: Ipv4Addr::new(198, 51, 100, 11) };
/// Runs containerd 2.
pub const NODE2: Node = Node { name: "node2", address: Ipv4Addr::new(198, 51, 100, 12) };
/// Runs dockerd.
pub const DOCKER1: Node = Node { name: "docker1", address: Ipv4Addr::new(198, 51, 100, 13) };
/// Every node.
pub const NODES: [Node; 3] = [NODE17, NODE2, DOCKER1];

/// One run: its work folder, and what earlier runs left in the cache folder to be used again.
#[derive(Debug)]
pub struct Lab {
    work: PathBuf,
    cache: PathBuf,
}

#[allow(clippy::unused_self, reason = "cutting off is something that one has a laboratory for")]
impl Lab {
    /// A laboratory that keeps this run's files in `work` and reusable ones in `cache`; both must exist.
    #[must_use]
    pub fn new(work: PathBuf, cache: PathBuf) -> Self {
        Self { work, cache }
    }

    /// The work folder of this run; it is removed after the run.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The folder that outlives runs: programs, packages and images.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A folder of this run by name, made if it is not there.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Starts a program; what it prints goes to `logs/NAME.log` in the work folder.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(name, command, &self.log_path(name)?)
    }

    /// Where the log of the process with this name is.
    pub fn log_path(&self, name: &str) -> Result<PathBuf> {
        Ok(self.dir("logs")?.join(format!("{name}.log")))
    }

    /// Lets every packet to and from `address` vanish.
    pub fn black_hole(&self, address: Ipv4Addr) -> Result<()> {
        network::black_hole(address)
    }

    /// Answers every packet to `address` with a TCP reset, as a host does where nothing listens.
    pub fn refuse(&self, address: Ipv4Addr) -> Result<()> {
        network::refuse(address)
    }

    /// Takes back [`Self::black_hole`] and [`Self::refuse`].
    pub fn reopen(&self, address: Ipv4Addr) -> Result<()> {
        network::reopen(address)
    }
}

/// The folder that outlives runs: `ENTREPOT_CACHE`, else `~/.cache/entrepot`.
pub fn cache_dir() -> Result<PathBuf> {
    let path = match std::env::var_os("ENTREPOT_CACHE") {
        Some(path) => PathBuf::from(path),
        None => std::env::home_dir()
            .context("no home folder; set ENTREPOT_CACHE to a folder for programs and images")?
            .join(".cache/entrepot"),
    };
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    path.canonicalize().with_context(|| format!("cannot read {}", path.display()))
}
