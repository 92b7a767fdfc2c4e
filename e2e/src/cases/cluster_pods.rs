//! Pods of both nodes pull through one cache, and do so again when the upstream is gone.

use anyhow::{Context, Result};

use crate::cluster::{ClusterWorld, demonstration};
use crate::suite::ClusterCase;

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        first(),
        ClusterCase::new("cluster: pods from both nodes run with the upstream cut off", |world| {
            Box::pin(cut_off(world))
        }),
    ]
}

/// The one that installs the product, which all later ones need.
#[must_use]
pub fn first() -> ClusterCase {
    ClusterCase::new("cluster: pods from both nodes run through one cache", |world| Box::pin(one_cache(world)))
}

async fn one_cache(world: &ClusterWorld) -> Result<()> {
    demonstration::install(&world.cluster).await.context("the chart")?;
    demonstration::mirror_docker_hub(world).await.context("the mirror")?;
    world.world.upstream.reset_counts();
    demonstration::run_workload(&world.cluster).await.context("the pods")?;
    demonstration::sent_once_and_not_to_nodes(world)
}

async fn cut_off(world: &ClusterWorld) -> Result<()> {
    demonstration::install(&world.cluster).await.context("the chart")?;
    demonstration::mirror_docker_hub(world).await.context("the mirror")?;
    demonstration::run_workload(&world.cluster).await.context("with the upstream")?;
    demonstration::run_without_upstream(world).await
}
