//! Runtimes that do not read the files: each is reported with its cure, is not counted, and is counted once cured as told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cluster_support::product::{MIRROR, all_nodes, condition, node_mirror, summary, until_whole};
use crate::cluster::runtime::{CERTS_D, CONFIG};
use crate::cluster::{Cluster, ClusterWorld, Node, is_true};
use crate::engine::Major;
use crate::suite::ClusterCase;

/// How long until a node is reported; agents look at the runtime's files every minute at least.
const REPORT_LIMIT: Duration = Duration::from_mins(2);
/// What containerd 2.2 and later has by default, and 2.1 takes for one folder.
const COLON_LIST: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// The condition that speaks of it.
const READS: &str = "RuntimeReadsFiles";
/// The condition of a node that was seen to pull through the cache.
const VERIFIED: &str = "Verified";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![ClusterCase::new("cluster: runtimes that read no files are reported and cured", |world| {
        Box::pin(reported_and_cured(world))
    })]
}

async fn reported_and_cured(world: &ClusterWorld) -> Result<()> {
    until_whole(&world.cluster).await?;
    let result = report_and_cure(world).await;
    if result.is_err() {
        for node in world.cluster.nodes() {
            configure(world, node, CERTS_D).await?;
        }
    }
    result?;
    until_whole(&world.cluster).await
}

async fn report_and_cure(world: &ClusterWorld) -> Result<()> {
    let cluster = &world.cluster;
    for node in cluster.nodes() {
        configure(world, node, blind(node).0).await?;
    }
    let mut cures = Vec::new();
    for node in cluster.nodes() {
        let message = until_reported(cluster, node).await?;
        let cure =
            quoted_path(&message).with_context(|| format!("{} is told no config_path: {message:?}", node.name()))?;
        ensure!(message.contains("restart"), "{} is not told to restart containerd: {message:?}", node.name());
        println!("         {}: {message}", node.name());
        cures.push(cure.to_owned());
    }
    until_not_counted(cluster).await?;

    // Exactly what the messages say, and nothing else.
    for (node, cure) in cluster.nodes().iter().zip(&cures) {
        configure(world, node, cure).await?;
    }
    for node in cluster.nodes() {
        let what = format!("{} reads files again, and is seen to", node.name());
        let reads_again = async || {
            let found = node_mirror(cluster, node.name()).await?;
            Ok(is_true(&found, READS) && is_true(&found, VERIFIED))
        };
        cluster.until(&what, REPORT_LIMIT, reads_again).await?;
    }
    let counted = async || Ok(summary(cluster, MIRROR).await? == all_nodes());
    cluster.until("all nodes count again", REPORT_LIMIT, counted).await
}

/// A `config_path` with which a node's runtime reads no files, and the reason that is expected.
fn blind(node: &Node) -> (&'static str, &'static str) {
    match node.major() {
        Major::One => ("", "NoConfigPath"),
        Major::Two => (COLON_LIST, "ColonConfigPath"),
    }
}

/// Writes the runtime's configuration and restarts it.
async fn configure(world: &ClusterWorld, node: &Node, config_path: &str) -> Result<()> {
    node.write(CONFIG, &node.containerd_configuration(Some(config_path)))?;
    node.restart_containerd(&world.world.lab).await
}

/// Waits until the node says why its runtime reads no files; answers the message.
async fn until_reported(cluster: &Cluster, node: &Node) -> Result<String> {
    let (_, reason) = blind(node);
    let reported = async || {
        let found = node_mirror(cluster, node.name()).await?;
        let said = condition(&found, READS);
        ensure!(said["status"] == "False" && said["reason"] == reason, "it says {said}");
        Ok(true)
    };
    cluster.until(&format!("{} reports {reason}", node.name()), REPORT_LIMIT, reported).await?;
    let found = node_mirror(cluster, node.name()).await?;
    Ok(condition(&found, READS)["message"].as_str().unwrap_or_default().to_owned())
}

/// Waits until neither node counts as one that pulls through the cache.
async fn until_not_counted(cluster: &Cluster) -> Result<()> {
    let not_counted = async || {
        let mut found: Vec<Value> = Vec::new();
        for node in cluster.nodes() {
            found.push(node_mirror(cluster, node.name()).await?);
        }
        let seen = found.iter().any(|node| is_true(node, VERIFIED));
        let summary = summary(cluster, MIRROR).await?;
        let mirror = cluster.get(&format!("/apis/entrepot.dev/v1alpha1/registrymirrors/{MIRROR}")).await?;
        ensure!(!seen && summary == none_of_all() && !is_true(&mirror, "NodesConfigured"), "the mirror says {summary}");
        Ok(true)
    };
    cluster.until("no node is counted as verified", REPORT_LIMIT, not_counted).await
}

fn none_of_all() -> String {
    all_nodes().replacen(|digit: char| digit.is_ascii_digit(), "0", 1)
}

/// The value to which a message says that `config_path` should be set.
fn quoted_path(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("set config_path = \"")?;
    rest.split_once('"').map(|(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_is_read_from_its_message() {
        let message = "it takes config_path = \"/a:/b\" for one folder; set config_path = \"/etc/containerd/certs.d\"";
        assert_eq!(quoted_path(message), Some("/etc/containerd/certs.d"));
        assert_eq!(quoted_path("config_path = \"/a:/b\" is wrong"), None);
    }

    #[test]
    fn none_is_written_as_all_are() {
        assert_eq!(none_of_all(), "0 of 2");
    }
}
