//! dockerd that goes to registries itself, and the people who use it, each with logins of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::Docker;
use crate::install::Programs;
use crate::lab::{DOCKER1, Lab};

/// What dockerd is told about registries.
#[derive(Debug, Default)]
pub struct Registries<'a> {
    /// `insecure-registries`: `HOST:PORT`, or a network.
    pub insecure: &'a [&'a str],
    /// Registries (`HOST[:PORT]`) with an authority of their own, in PEM, as in `certs.d`.
    pub trusted: &'a [(&'a str, &'a str)],
}

impl Registries<'_> {
    /// Starts dockerd with these registries, and with images in a folder by this name.
    pub async fn docker(&self, lab: &Lab, programs: &Programs, root: &str) -> Result<Docker> {
        let mut keys = Docker::keys(lab, root)?;
        keys["insecure-registries"] = json!(self.insecure);
        for (registry, authority) in self.trusted {
            let folder = lab.dir(&format!("{}/etc/docker/certs.d/{registry}", DOCKER1.name))?;
            fs::write(folder.join("ca.crt"), authority).context("cannot write an authority for dockerd")?;
        }
        Docker::start_with(lab, programs, &keys.to_string(), &[]).await
    }
}

/// Someone who uses a dockerd: the `docker` program with a folder of its own, where logins are kept.
#[derive(Debug)]
pub struct DockerClient<'d> {
    docker: &'d Docker,
    folder: PathBuf,
}

impl<'d> DockerClient<'d> {
    /// A user whose logins are in a folder of this name, made if it is not there.
    pub fn new(docker: &'d Docker, folder: &Path, name: &str) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { docker, folder })
    }

    /// Runs a `docker` command; what it printed. An error is what it printed too.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let folder = self.folder.display().to_string();
        self.docker.docker(&[&["--config", folder.as_str()], words].concat()).await
    }

    /// Logs in to a registry.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<()> {
        let words = ["login", "--username", user, "--password", password, registry];
        self.run(&words).await.map(drop).with_context(|| format!("{user} could not log in to {registry}"))
    }

    /// Makes an image of a tar file.
    pub async fn import(&self, tar: &Path, reference: &str) -> Result<()> {
        self.run(&["import", &tar.display().to_string(), reference]).await.map(drop)
    }

    /// Gives an image a second name.
    pub async fn tag(&self, reference: &str, other: &str) -> Result<()> {
        self.run(&["tag", reference, other]).await.map(drop)
    }

    /// Pushes an image.
    pub async fn push(&self, reference: &str) -> Result<()> {
        self.run(&["push", "--quiet", reference]).await.map(drop).with_context(|| format!("docker push {reference}"))
    }

    /// Pulls an image that is not here: one of that name goes first.
    pub async fn pull_anew(&self, reference: &str) -> Result<()> {
        if self.has(reference).await {
            self.remove(reference).await?;
        }
        self.run(&["pull", "--quiet", reference]).await.map(drop).with_context(|| format!("docker pull {reference}"))
    }

    /// Removes an image, by this name.
    pub async fn remove(&self, reference: &str) -> Result<()> {
        self.run(&["image", "rm", reference]).await.map(drop)
    }

    /// Whether an image of this name is here.
    pub async fn has(&self, reference: &str) -> bool {
        self.run(&["image", "inspect", reference]).await.is_ok()
    }
}
