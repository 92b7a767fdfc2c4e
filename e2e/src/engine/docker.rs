//! dockerd on a node, configured by `daemon.json` and asked by `docker`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Home, START_LIMIT, ask};
use crate::install::Programs;
use crate::lab::{DOCKER1, Lab, Process};

/// Its configuration, in its folder.
const DAEMON_JSON: &str = "etc/docker/daemon.json";

/// A running dockerd; dropping it kills it.
#[derive(Debug)]
pub struct Docker {
    home: Home,
    client: PathBuf,
    process: Process,
}

impl Docker {
    /// Starts dockerd with `mirror` as its one `registry-mirrors` entry.
    pub async fn start(lab: &Lab, programs: &Programs, mirror: &str) -> Result<Self> {
        let mut keys = Self::keys(lab, "root")?;
        keys["registry-mirrors"] = json!([mirror]);
        Self::start_with(lab, programs, &keys.to_string(), &[]).await
    }

    /// What daemon.json must say in the laboratory, with images in a folder by this name.
    pub fn keys(lab: &Lab, root: &str) -> Result<Value> {
        let sockets = Home::sockets_of(DOCKER1);
        Ok(json!({
            "hosts": [format!("unix://{}/docker.sock", sockets.display())],
            "data-root": lab.dir(DOCKER1.name)?.join(root),
            "exec-root": sockets.join("exec"),
            "pidfile": sockets.join("docker.pid"),
            "storage-driver": "overlay2",
            "iptables": false,
            "ip6tables": false,
            "bridge": "none",
            "userland-proxy": false,
        }))
    }

    /// Starts dockerd with this text as its daemon.json, and with these flags.
    pub async fn start_with(lab: &Lab, programs: &Programs, daemon_json: &str, flags: &[&str]) -> Result<Self> {
        let folders = vec![programs.containerd_of_docker(), programs.runc()];
        let home = Home::create(DOCKER1, lab.dir(DOCKER1.name)?, folders)?;
        home.write(DAEMON_JSON, daemon_json)?;
        let mut command = home.command(programs.dockerd())?;
        command.args(flags);
        let process = lab.spawn(DOCKER1.name, command)?;
        let mut engine = Self { client: programs.docker(), home, process };
        engine.wait_until_ready().await?;
        Ok(engine)
    }

    /// The name of its node.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.home.node.name
    }

    /// Pulls an image.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        self.docker(&["pull", "--quiet", reference]).await.map(drop)
    }

    /// Removes images; dockerd removes their layers before it answers.
    pub async fn remove_all(&self, references: &[String]) -> Result<()> {
        let references = references.iter().map(String::as_str);
        let words: Vec<&str> = ["image", "rm"].into_iter().chain(references).collect();
        self.docker(&words).await.map(drop)
    }

    /// Ends it.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its folder `/etc/docker`, as this program sees it.
    #[must_use]
    pub fn etc(&self) -> PathBuf {
        self.home.folder.join("etc/docker")
    }

    /// A command on its node, which sees its `/etc/docker`.
    pub fn on_node(&self, program: &Path) -> Result<Command> {
        self.home.command(program)
    }

    /// What `docker info` says.
    pub async fn info(&self) -> Result<Value> {
        let text = self.docker(&["info", "--format", "{{json .}}"]).await?;
        serde_json::from_str(&text).context("docker info prints no JSON")
    }

    /// Runs the client.
    pub async fn docker(&self, words: &[&str]) -> Result<String> {
        let host = self.host();
        ask(&self.client, &[&["--host", host.as_str()], words].concat()).await
    }

    fn host(&self) -> String {
        host(&self.home)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let (client, host) = (self.client.clone(), self.host());
        self.process
            .until(START_LIMIT, async || ask(&client, &["--host", &host, "version"]).await.is_ok())
            .await
            .context("dockerd does not answer")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // One that was stopped has ended its containerd. That of one which is killed would go on, and keep the next dockerd from
        // starting its own. There is nobody to tell of a failure.
        let _ = self.process.kill();
        let file = self.home.sockets().join("exec/containerd/containerd.pid");
        let pid = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        let is_containerd = |pid: &Pid| {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim() == "containerd")
        };
        if let Some(pid) = pid.filter(is_containerd) {
            let _ = kill_process(pid, Signal::KILL);
            // It is a zombie until somebody reaps it, and looks alive to the next dockerd.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn host(home: &Home) -> String {
    format!("unix://{}/docker.sock", home.sockets().display())
}
