//! Pulls that go on while something happens to the product.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterWorld, Node};
use crate::engine::ask;

/// How often something is pulled.
const PACE: Duration = Duration::from_millis(250);

/// Pulls and removes images on all nodes in turn until told to stop; answers how many. The first failure ends it.
pub async fn keep_pulling(world: &ClusterWorld, references: &[String], done: &CancellationToken) -> Result<usize> {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulled = 0;
    for reference in references.iter().cycle() {
        for node in world.cluster.nodes() {
            pace.tick().await;
            if done.is_cancelled() {
                return Ok(pulled);
            }
            node.pull(reference).await.with_context(|| format!("pull {pulled}, of {reference}"))?;
            remove_image(world, node, reference).await?;
            pulled += 1;
        }
    }
    Ok(pulled)
}

async fn remove_image(world: &ClusterWorld, node: &Node, reference: &str) -> Result<()> {
    let socket = node.file("/run/containerd/containerd.sock").display().to_string();
    ask(&world.world.programs.cri(), &[&socket, "remove", reference]).await.map(drop)
}
