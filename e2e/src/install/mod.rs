//! Everything that the tests need beside Rust, brought to a bare machine: Debian packages (installed, or only
//! unpacked where a second version or a service would be in the way) and programs written in Go.

pub mod apt;
pub mod go;
pub mod unpacked;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use unpacked::Suite;

/// Engines as a release of Debian ships them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Engines {
    /// Docker 20.10 with containerd 1.6.
    #[value(name = "20.10")]
    Docker20,
    /// Docker 26.1 with containerd 1.7.
    #[value(name = "26.1")]
    Docker26,
    /// Docker 28 with containerd 2: what every run uses.
    #[default]
    #[value(name = "28")]
    Docker28,
}

impl Engines {
    const fn suite(self) -> Suite {
        match self {
            Self::Docker20 => Suite::Bookworm,
            Self::Docker26 => Suite::Trixie,
            Self::Docker28 => Suite::Sid,
        }
    }
}

/// Where the programs are that are not installed on the machine.
#[derive(Debug, Clone)]
pub struct Programs {
    cache: PathBuf,
    engines: Engines,
    tools: PathBuf,
    kubernetes: PathBuf,
}

impl Programs {
    /// The programs in the cache folder `cache`, which [`install`] put there.
    pub fn in_cache(cache: &Path, engines: Engines) -> Result<Self> {
        let (tools, kubernetes) = (go::TOOLS.folder(cache)?, go::KUBERNETES.folder(cache)?);
        Ok(Self { cache: cache.to_owned(), engines, tools, kubernetes })
    }

    /// Which generation they are of.
    #[must_use]
    pub const fn engines(&self) -> Engines {
        self.engines
    }

    /// The folder with containerd 1.7 and its `ctr`; with the oldest engines 1.6.
    #[must_use]
    pub fn containerd_1(&self) -> PathBuf {
        let suite = if self.engines == Engines::Docker20 { Suite::Bookworm } else { Suite::Trixie };
        self.package(suite, "containerd").join("usr/bin")
    }

    /// The folder with containerd 2 and its `ctr`.
    #[must_use]
    pub fn containerd_2(&self) -> PathBuf {
        self.package(Suite::Sid, "containerd").join("usr/bin")
    }

    /// The folder with the containerd that [`Self::dockerd`] starts.
    #[must_use]
    pub fn containerd_of_docker(&self) -> PathBuf {
        self.package(self.engines.suite(), "containerd").join("usr/bin")
    }

    /// The Docker daemon.
    #[must_use]
    pub fn dockerd(&self) -> PathBuf {
        self.package(self.engines.suite(), "docker.io").join("usr/sbin/dockerd")
    }

    /// The Docker client.
    #[must_use]
    pub fn docker(&self) -> PathBuf {
        let package = if self.engines == Engines::Docker20 { "docker.io" } else { "docker-cli" };
        self.package(self.engines.suite(), package).join("usr/bin/docker")
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

    /// The program that keeps a pod's namespaces alive.
    #[must_use]
    pub fn pause(&self) -> PathBuf {
        self.tools.join("pause")
    }

    /// The folder with the programs of Kubernetes and with `helm`; there once [`begin_kubernetes`] has come to its end.
    #[must_use]
    pub fn kubernetes(&self) -> &Path {
        &self.kubernetes
    }

    /// The store of a control plane.
    #[must_use]
    pub fn etcd(&self) -> PathBuf {
        self.package(Suite::Trixie, "etcd-server").join("usr/bin/etcd")
    }

    /// The folder with the plugins that give pods a network.
    #[must_use]
    pub fn pod_network(&self) -> PathBuf {
        self.package(Suite::Bookworm, "containernetworking-plugins").join("usr/lib/cni")
    }

    /// The reverse proxy nginx, in a tree with its libraries.
    #[must_use]
    pub fn nginx(&self) -> Tree {
        Tree { root: self.package(Suite::Bookworm, "nginx"), program: "usr/sbin/nginx" }
    }

    /// The reverse proxy Apache httpd, in a tree with its modules and libraries.
    #[must_use]
    pub fn apache(&self) -> Tree {
        Tree { root: self.package(Suite::Bookworm, "apache2-bin"), program: "usr/sbin/apache2" }
    }

    /// A command that runs `command` and counts the instructions of it and its children: each process writes into a file whose name
    /// begins with `counts`.
    #[must_use]
    pub fn callgrind(&self, counts: &Path, command: &Command) -> Command {
        let tree = self.package(Suite::Bookworm, "valgrind");
        let mut counting = Command::new(tree.join("usr/bin/valgrind.bin"));
        counting.env("VALGRIND_LIB", tree.join("usr/libexec/valgrind"));
        counting.args(["--tool=callgrind", "--trace-children=yes", "--quiet"]);
        counting.arg(format!("--callgrind-out-file={}.%p", counts.display()));
        counting.arg(command.get_program()).args(command.get_args());
        counting.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        counting
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

/// A program that was unpacked together with its libraries.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    program: &'static str,
}

impl Tree {
    /// A folder or file of the tree.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// A command that runs the program with the libraries of its tree.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.path(self.program));
        command.env("LD_LIBRARY_PATH", unpacked::library_path(&self.root));
        command
    }
}

/// Brings what is missing, save what a cluster needs.
pub fn install(cache: &Path) -> Result<Programs> {
    apt::install_missing()?;
    unpacked::fetch_missing(cache)?;
    go::TOOLS.begin(cache)?.finish()?;
    Programs::in_cache(cache, Engines::default())
}

/// Brings the engines that only a matrix of them needs.
pub fn install_older_engines(cache: &Path) -> Result<()> {
    unpacked::fetch_older_engines(cache)
}

/// Brings what only benchmarks need.
pub fn install_for_bench(cache: &Path) -> Result<()> {
    unpacked::fetch_of_bench(cache)
}

/// Begins to build what only a cluster needs. It takes minutes and may go on beside everything else.
pub fn begin_kubernetes(cache: &Path) -> Result<go::Build> {
    go::KUBERNETES.begin(cache)
}
