//! containerd 1.7 and 2 on a node, configured by `hosts.toml` and asked over the CRI.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Home, START_LIMIT, ask};
use crate::install::Programs;
use crate::lab::{Lab, NODE2, NODE17, Node, Process};

/// How long containerd may take to collect the blobs of a removed image.
const COLLECT_LIMIT: Duration = Duration::from_mins(1);

/// Which containerd; their configuration differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Major {
    /// 1.7, on `node17`.
    One,
    /// 2, on `node2`.
    Two,
}

impl Major {
    fn node(self) -> Node {
        match self {
            Self::One => NODE17,
            Self::Two => NODE2,
        }
    }

    /// The folder with it and its `ctr`.
    #[must_use]
    pub fn programs(self, programs: &Programs) -> PathBuf {
        match self {
            Self::One => programs.containerd_1(),
            Self::Two => programs.containerd_2(),
        }
    }

    /// The parts of config.toml that concern pulls.
    fn images_configuration(self) -> &'static str {
        match self {
            Self::One => {
                r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
"#
            }
            Self::Two => {
                r#"version = 3
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"
"#
            }
        }
    }
}

/// A running containerd; dropping it kills it.
#[derive(Debug)]
pub struct Containerd {
    home: Home,
    cri: PathBuf,
    ctr: PathBuf,
    process: Process,
}

impl Containerd {
    /// Starts containerd with `mirror` as the only place for `docker.io`: the URL that its hosts.toml names.
    pub async fn start(lab: &Lab, programs: &Programs, major: Major, mirror: &str) -> Result<Self> {
        let node = major.node();
        let folder = major.programs(programs);
        let home = Home::create(node, lab.dir(node.name)?, vec![folder.clone(), programs.runc()])?;
        home.write("etc/containerd/config.toml", &configuration(major, &home))?;
        home.write("etc/containerd/certs.d/docker.io/hosts.toml", &hosts(mirror))?;
        let mut command = home.command(folder.join("containerd"))?;
        command.args(["--config", "/etc/containerd/config.toml"]);
        let process = lab.spawn(node.name, command)?;
        let mut engine = Self { cri: programs.cri(), ctr: folder.join("ctr"), home, process };
        engine.wait_until_ready().await?;
        Ok(engine)
    }

    /// The name of its node.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.home.node.name
    }

    /// Pulls an image over the CRI.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        self.cri(&["pull", reference]).await.map(drop)
    }

    /// Removes all its images over the CRI and waits until no blob is left.
    pub async fn remove_all(&self, references: &[String]) -> Result<()> {
        for reference in references {
            self.cri(&["remove", reference]).await?;
        }
        let deadline = Instant::now() + COLLECT_LIMIT;
        while !self.blobs().await?.is_empty() {
            if Instant::now() >= deadline {
                bail!("blobs are still there after {COLLECT_LIMIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }

    /// The digests in its content store, one a line.
    async fn blobs(&self) -> Result<String> {
        let socket = self.socket();
        ask(&self.ctr, &["--address", &socket, "--namespace", "k8s.io", "content", "ls", "-q"]).await
    }

    async fn cri(&self, words: &[&str]) -> Result<String> {
        let socket = self.socket();
        ask(&self.cri, &[&[socket.as_str()], words].concat()).await
    }

    fn socket(&self) -> String {
        self.home.sockets().join("containerd.sock").display().to_string()
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.socket();
        let cri = self.cri.clone();
        self.process
            .until(START_LIMIT, async || ask(&cri, &[&socket, "list"]).await.is_ok())
            .await
            .context("containerd's CRI does not answer")
    }
}

fn configuration(major: Major, home: &Home) -> String {
    format!(
        "{}\n[grpc]\naddress = \"{}/containerd.sock\"\n",
        major.images_configuration().replacen(
            '\n',
            &format!("\nroot = \"{}/root\"\nstate = \"{}/state\"\n", home.folder.display(), home.sockets().display()),
            1
        ),
        home.sockets().display()
    )
}

fn hosts(mirror: &str) -> String {
    // `server` is what containerd asks last; a strict node names the mirror there too.
    format!("server = \"{mirror}\"\n\n[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}
