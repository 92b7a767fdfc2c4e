//! Real container engines on nodes of the laboratory, each with folders of its own, pulling as users pull.

mod containerd;
mod docker;
mod docker_client;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use containerd::{Containerd, Major};
pub use docker::Docker;
pub use docker_client::{DockerClient, Registries};

use crate::lab::{Node, network};

/// How long an engine may take to answer on its socket.
const START_LIMIT: std::time::Duration = std::time::Duration::from_mins(1);

/// What every engine can do, whatever its dialect.
#[derive(Debug)]
pub enum Engine {
    /// containerd, asked over the CRI as a kubelet asks.
    Containerd(Containerd),
    /// dockerd, asked by `docker`.
    Docker(Docker),
}

impl Engine {
    /// The name of its node.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Containerd(engine) => engine.name(),
            Self::Docker(engine) => engine.name(),
        }
    }

    /// Pulls an image (`docker.io/library/nginx:latest`); an error says what the engine said.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        match self {
            Self::Containerd(engine) => engine.pull(reference).await,
            Self::Docker(engine) => engine.pull(reference).await,
        }
        .with_context(|| format!("{} did not pull {reference}", self.name()))
    }

    /// Removes images; those must be all that it has. Its blobs are gone then, so that the next pull fetches them.
    pub async fn remove_all(&self, references: &[String]) -> Result<()> {
        match self {
            Self::Containerd(engine) => engine.remove_all(references).await,
            Self::Docker(engine) => engine.remove_all(references).await,
        }
        .with_context(|| format!("{} did not remove its images", self.name()))
    }

    /// Ends it.
    pub async fn stop(&mut self) -> Result<()> {
        match self {
            Self::Containerd(engine) => engine.stop().await,
            Self::Docker(engine) => engine.stop().await,
        }
    }
}

/// The private folders of a node: what its programs see as `/etc/containerd` and `/etc/docker`.
#[derive(Debug)]
struct Home {
    node: Node,
    folder: PathBuf,
    /// Folders of programs that go before the machine's own.
    programs: Vec<PathBuf>,
}

impl Home {
    fn create(node: Node, folder: PathBuf, programs: Vec<PathBuf>) -> Result<Self> {
        let home = Self { node, folder, programs };
        for inner in ["etc/containerd", "etc/docker", "root", "state"] {
            make(&home.folder.join(inner))?;
        }
        // They are mount points; /etc and /run are the laboratory's own.
        make(Path::new("/etc/containerd"))?;
        make(Path::new("/etc/docker"))?;
        make(&home.sockets())?;
        Ok(home)
    }

    /// Where the sockets are: a short path, since a socket's is limited.
    fn sockets(&self) -> PathBuf {
        Self::sockets_of(self.node)
    }

    fn sockets_of(node: Node) -> PathBuf {
        Path::new("/run").join(node.name)
    }

    fn write(&self, file: &str, content: &str) -> Result<()> {
        let path = self.folder.join(file);
        make(path.parent().unwrap_or(&self.folder))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A command that runs on the node; every step replaces itself by the next, so the process id stays the same.
    fn command<S: AsRef<OsStr>>(&self, program: S) -> Result<Command> {
        const ENTER: &str =
            r#"mount --bind "$1" /etc/containerd && mount --bind "$2" /etc/docker && shift 2 && exec "$@""#;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", network::namespace_of(self.node).display()))
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"])
            .arg(self.folder.join("etc/containerd"))
            .arg(self.folder.join("etc/docker"))
            .arg(program)
            .env("PATH", self.path()?);
        Ok(command)
    }

    fn path(&self) -> Result<std::ffi::OsString> {
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.programs.iter().cloned().chain(std::env::split_paths(&inherited));
        std::env::join_paths(folders).context("a folder of programs has a colon in its name")
    }
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Runs a client program to its end without blocking the runtime; an error is what it printed.
pub async fn ask(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
