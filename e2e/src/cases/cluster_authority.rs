//! The operator's own authority is replaced while nodes pull: they trust both for as long as it takes, and no pull goes past
//! the cache.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_util::sync::CancellationToken;

use super::cluster_support::product::until_whole;
use super::cluster_support::pulls::keep_pulling;
use crate::cluster::{Cluster, ClusterWorld, demonstration};
use crate::suite::ClusterCase;

/// The folder of a node whose files name the cache for Docker Hub.
const FOLDER: &str = "/etc/containerd/certs.d/docker.io";
/// How long until every node trusts both authorities, and until it trusts the new one alone.
const STEP_LIMIT: Duration = Duration::from_mins(1);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![ClusterCase::new("cluster: the cache's authority is replaced while nodes pull", |world| {
        Box::pin(replaced(world))
    })]
}

async fn replaced(world: &ClusterWorld) -> Result<()> {
    let ClusterWorld { world: laboratory, cluster } = world;
    demonstration::remove_workload(cluster).await?;
    until_whole(cluster).await?;
    let image = &laboratory.images.sixty;
    laboratory.upstream.reset_counts();
    let (references, done) = ([image.reference()], CancellationToken::new());
    let (result, pulled) = tokio::join!(
        async {
            let result = replace(cluster).await;
            done.cancel();
            result
        },
        keep_pulling(world, &references, &done)
    );
    result?;
    let pulled = pulled.context("among the pulls that ran throughout")?;
    println!("         {pulled} pulls ran throughout");
    ensure!(pulled > 0, "no pull ran meanwhile");
    let counts = laboratory.upstream.counts();
    let past = counts.all().iter().find(|asked| cluster.is_node(asked.client));
    ensure!(past.is_none(), "a node asked the upstream itself, so it did not trust the cache: {past:#?}");
    until_whole(cluster).await
}

async fn replace(cluster: &Cluster) -> Result<()> {
    let before = trusted(cluster)?;
    ensure!(before.iter().all(|one| one.len() == 1), "before, nodes trust one authority each: {before:#?}");
    cluster.kubectl(&["annotate", "cacheserver", "default", "entrepot.dev/rotate-ca=once", "--overwrite"]).await?;
    cluster
        // One of them for some seconds; the last one for the moment that the server takes to show its new certificate. That no
        // pull goes past the cache says the rest.
        .until("a node trusts the old authority and a new one", STEP_LIMIT, async || {
            let now = trusted(cluster)?;
            Ok(now.iter().zip(&before).any(|(now, old)| now.len() == 2 && now.contains(&old[0])))
        })
        .await?;
    cluster
        .until("every node trusts the new authority alone", STEP_LIMIT, async || {
            let now = trusted(cluster)?;
            Ok(now.iter().zip(&before).all(|(now, old)| now.len() == 1 && now[0] != old[0]))
        })
        .await
}

/// The certificates beside each node's file for Docker Hub.
fn trusted(cluster: &Cluster) -> Result<Vec<Vec<String>>> {
    cluster.nodes().iter().map(|node| certificates(&node.file(FOLDER))).collect()
}

/// Those of the file that hosts.toml names; while files are exchanged there may be two.
fn certificates(folder: &std::path::Path) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let hosts = read("hosts.toml")?;
    let named = hosts
        .lines()
        .find_map(|line| line.trim().strip_prefix("ca = [\"")?.strip_suffix("\"]"))
        .with_context(|| format!("no authority is named in\n{hosts}"))?;
    let end = "-----END CERTIFICATE-----";
    Ok(read(named)?.split_inclusive(end).map(|one| one.trim().to_owned()).filter(|one| one.ends_with(end)).collect())
}
