//! dockerd on a node, configured by `daemon.json` and asked by `docker`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Home, START_LIMIT, ask};
use crate::install::Programs;
use crate::lab::{DOCKER1, Lab, Process};

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
        let folders = vec![programs.containerd_2(), programs.runc()];
        let home = Home::create(DOCKER1, lab.dir(DOCKER1.name)?, folders)?;
        home.write("etc/docker/daemon.json", &configuration(&home, mirror).to_string())?;
        let process = lab.spawn(DOCKER1.name, home.command(programs.dockerd())?)?;
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

    async fn docker(&self, words: &[&str]) -> Result<String> {
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

fn host(home: &Home) -> String {
    format!("unix://{}/docker.sock", home.sockets().display())
}

fn configuration(home: &Home, mirror: &str) -> serde_json::Value {
    json!({
        "registry-mirrors": [mirror],
        "hosts": [host(home)],
        "data-root": home.folder.join("root"),
        "exec-root": home.sockets().join("exec"),
        "pidfile": home.sockets().join("docker.pid"),
        "storage-driver": "overlay2",
        "iptables": false,
        "ip6tables": false,
        "bridge": "none",
        "userland-proxy": false,
    })
}
