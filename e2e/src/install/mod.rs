//! Everything that the tests need beside Rust, brought to a bare machine: Debian packages (installed, or only
//! unpacked where a second version or a service would be in the way) and programs written in Go.

pub mod apt;
pub mod go;
pub mod unpacked;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use unpacked::Suite;

/// Where the programs are that are not installed on the machine.
#[derive(Debug, Clone)]
pub struct Programs {
    cache: PathBuf,
    tools: PathBuf,
}

impl Programs {
    /// The programs in the cache folder `cache`, which [`install`] put there.
    pub fn in_cache(cache: &Path) -> Result<Self> {
        Ok(Self { cache: cache.to_owned(), tools: go::folder(cache)? })
    }

    /// The folder with containerd 1.7 and its `ctr`.
    #[must_use]
    pub fn containerd_1(&self) -> PathBuf {
        self.package(Suite::Trixie, "containerd").join("usr/bin")
    }

    /// The folder with containerd 2 and its `ctr`.
    #[must_use]
    pub fn containerd_2(&self) -> PathBuf {
        self.package(Suite::Sid, "containerd").join("usr/bin")
    }

    /// The Docker daemon.
    #[must_use]
    pub fn dockerd(&self) -> PathBuf {
        self.package(Suite::Sid, "docker.io").join("usr/sbin/dockerd")
    }

    /// The Docker client.
    #[must_use]
    pub fn docker(&self) -> PathBuf {
        self.package(Suite::Sid, "docker-cli").join("usr/bin/docker")
    }

    /// The folder with `runc`.
    #[must_use]
    pub fn runc(&self) -> PathBuf {
        self.package(Suite::Bookworm, "runc").join("usr/sbin")
    }

    /// Our client of the CRI.
    #[must_use]
    pub fn cri(&self) -> PathBuf {
        self.tools.join("cri")
    }

    /// The OCI conformance suite.
    #[must_use]
    pub fn conformance(&self) -> PathBuf {
        self.tools.join("conformance")
    }

    /// A `PATH` that finds `docker-registry` and the superuser's programs whoever started us.
    pub fn search_path(&self) -> Result<OsString> {
        let registry = self.package(Suite::Bookworm, "docker-registry").join("usr/bin");
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(registry)
            .chain(std::env::split_paths(&inherited))
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
        std::env::join_paths(folders).context("ENTREPOT_CACHE must not hold a colon")
    }

    fn package(&self, suite: Suite, package: &str) -> PathBuf {
        unpacked::folder(&self.cache, suite, package)
    }
}

/// Brings everything that is missing.
pub fn install(cache: &Path) -> Result<Programs> {
    apt::install_missing()?;
    unpacked::fetch_missing(cache)?;
    go::build_missing(cache)?;
    Programs::in_cache(cache)
}
