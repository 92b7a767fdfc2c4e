//! Inside the namespaces: starts the cluster, takes the steps of the demonstration, and stays.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::future::LocalBoxFuture;
use tokio::net::UnixListener;

use super::progress::{Message, Progress};
use super::{API, KUBECONFIG, PROGRESS, relay};
use crate::cluster::authority::MASTERS;
use crate::cluster::{self, API_PORT, Cluster, ClusterWorld, demonstration};
use crate::install::Engines;
use crate::lab::{cache_dir, enter};
use crate::run::world;

/// Runs until the keeper ends, which says at which port of the machine's loopback the apiserver is.
pub fn stay(work: PathBuf, port: u16) -> Result<ExitCode> {
    enter::settle(cluster::LAYOUT, &cache_dir()?)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
    runtime.block_on(async {
        let progress = Arc::new(Progress::default());
        let told = tokio::spawn(Arc::clone(&progress).serve(listen(&work, PROGRESS)?));
        let apiserver = SocketAddr::from((Ipv4Addr::LOCALHOST, API_PORT));
        let relayed = tokio::spawn(relay::socket_to_port(listen(&work, API)?, apiserver));
        tokio::select! {
            ended = take_steps(work, port, &progress) => ended,
            ended = told => ended?,
            ended = relayed => ended?,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn listen(work: &Path, name: &str) -> Result<UnixListener> {
    let path = work.join(name);
    UnixListener::bind(&path)
        .with_context(|| format!("cannot listen at {}; a shorter ENTREPOT_CACHE may help", path.display()))
}

async fn take_steps(work: PathBuf, port: u16, progress: &Progress) -> Result<()> {
    let started = start(work, port, progress).await;
    if let Err(error) = &started {
        progress.tell(Message::Line(format!("{error:#}")));
        progress.tell(Message::Failed);
    }
    let world = started?;
    let mut taken = 0;
    loop {
        match show(&world, progress, &mut taken).await {
            Ok(()) => progress.tell(Message::Done),
            Err(error) => {
                progress.tell(Message::Line(format!("{error:#}")));
                progress.tell(Message::Failed);
            }
        }
        progress.asked_again().await;
    }
}

async fn start(work: PathBuf, port: u16, progress: &Progress) -> Result<ClusterWorld> {
    let kubeconfig = work.join(KUBECONFIG);
    let world = progress.step("start the upstream registries and fill them", world(work, Engines::default())).await?;
    let cluster = progress.step("start Kubernetes on two nodes", Cluster::start(&world)).await?;
    let text = cluster.kubeconfig(&format!("https://127.0.0.1:{port}"), "administrator", MASTERS)?;
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&kubeconfig)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
    Ok(ClusterWorld { world, cluster })
}

/// Takes the steps that were not taken yet; `taken` counts them.
async fn show(world: &ClusterWorld, progress: &Progress, taken: &mut usize) -> Result<()> {
    let cluster = &world.cluster;
    let steps: [(&str, LocalBoxFuture<'_, Result<()>>); 4] = [
        ("install the chart with helm", Box::pin(demonstration::install(cluster))),
        ("apply a mirror of docker.io", Box::pin(demonstration::mirror_docker_hub(world))),
        ("run nginx and mysql on both nodes", Box::pin(demonstration::run_workload(cluster))),
        (
            "run them again, their images removed and the upstream cut off",
            Box::pin(demonstration::run_without_upstream(world)),
        ),
    ];
    for (name, work) in steps.into_iter().skip(*taken) {
        progress.step(name, work).await?;
        *taken += 1;
    }
    Ok(())
}
