//! What the operator has to do: a mirror is created, changed and deleted, with one node that pulls through it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::inventory::{self, NODE};
use crate::cluster::{Cluster, ClusterWorld};
use crate::lab::SPARE_UPSTREAMS;
use crate::upstream::sites::spare;

/// The mirror.
pub(super) const MIRROR: &str = "crash";
/// The node that pulls through it. One is enough to go through every kind of write, and half the time of two.
const ON: &str = "node1";
/// How long until the mirror and what came of it are gone.
const GONE_LIMIT: Duration = Duration::from_mins(1);

/// One of the three steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The mirror is made.
    Creating,
    /// Its freshness and its nodes change.
    Changing,
    /// It is deleted.
    Deleting,
}

impl Step {
    /// In their order.
    pub(super) const ALL: [Self; 3] = [Self::Creating, Self::Changing, Self::Deleting];

    /// What the administrator does.
    pub(super) async fn begin(self, ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
        let ca = world.upstream.ca_pem();
        match self {
            Self::Creating => cluster.apply(&mirror(ca, "5m", &["crash.registry.test"]).to_string()).await,
            Self::Changing => {
                let registries = ["crash.registry.test", "second.registry.test"];
                cluster.apply(&mirror(ca, "10m", &registries).to_string()).await
            }
            Self::Deleting => cluster.kubectl(&["delete", "registrymirror", MIRROR, "--wait=false"]).await,
        }
        .map(drop)
    }

    /// Whether everything that follows from it has happened; an error says what has not.
    pub(super) async fn is_done(self, cluster: &Cluster) -> Result<bool> {
        let mirror = inventory::mirror(cluster, MIRROR).await?;
        let registries: &[&str] = match self {
            Self::Creating => &["crash.registry.test"],
            Self::Changing => &["crash.registry.test", "second.registry.test"],
            Self::Deleting => &[],
        };
        match (self, mirror) {
            (Self::Deleting, None) => {}
            (Self::Deleting, Some(mirror)) => anyhow::bail!("the mirror is still there: {}", mirror["metadata"]),
            (_, mirror) => is_in_force(&mirror.context("the mirror is not there")?)?,
        }
        nodes_are_done(cluster, registries).await?;
        Ok(true)
    }
}

fn mirror(ca: &str, tags: &str, registries: &[&str]) -> Value {
    json!({
        "apiVersion": "entrepot.dev/v1alpha1",
        "kind": "RegistryMirror",
        "metadata": {"name": MIRROR},
        "spec": {
            "upstream": {"url": format!("https://{}", spare(SPARE_UPSTREAMS[5])), "caBundle": ca},
            "freshness": {"tags": tags},
            "nodes": {
                "registries": registries,
                "selector": {"matchLabels": {"kubernetes.io/hostname": ON}},
                "probe": {"interval": "1s", "successes": 1},
                "rollout": {"maxUnavailablePercent": 100},
            },
        },
    })
}

fn is_in_force(mirror: &Value) -> Result<()> {
    let is_true = |kind| inventory::condition(mirror, kind).is_some_and(|found| found["status"] == "True");
    let all_true = ["Ready", "UpstreamReachable", "NodesConfigured"].into_iter().all(is_true);
    let counted = mirror["status"]["nodes"]["summary"] == "1 of 1";
    ensure!(inventory::is_observed(mirror) && all_true && counted, "the mirror's status is {}", mirror["status"]);
    Ok(())
}

/// The node is asked for these registries of the mirror, says that they are configured, and was verified since.
async fn nodes_are_done(cluster: &Cluster, registries: &[&str]) -> Result<()> {
    for node in cluster.nodes() {
        let object = inventory::node_mirror(cluster, node.name()).await?;
        let (spec, status) = (&object["spec"], &object["status"]);
        let entries = spec["entries"].as_array().map_or(&[][..], Vec::as_slice);
        let asked: Vec<_> = entries.iter().filter(|entry| entry["repository"] == MIRROR).collect();
        let expected = if node.name() == ON { registries } else { &[] };
        let is_asked = asked.len() == expected.len()
            && asked.iter().all(|entry| expected.iter().any(|one| entry["registry"] == *one));
        let reported = status["entries"].as_array().map_or(&[][..], Vec::as_slice);
        let state = |registry: &Value| {
            reported.iter().find(|entry| entry["registry"] == *registry).map(|entry| &entry["state"])
        };
        let all_configured =
            entries.iter().all(|entry| state(&entry["registry"]).is_some_and(|state| state == "Configured"));
        // Those that went are restored before the agent stops reporting them.
        let none_left = reported.iter().all(|entry| {
            entry["registry"] == spec["canary"]["registry"]
                || entries.iter().any(|asked| asked["registry"] == entry["registry"])
        });
        let verified = spec["canary"].is_null() || status["verified"]["nonce"] == spec["canary"]["nonce"];
        ensure!(
            is_asked && all_configured && none_left && verified && inventory::is_observed(&object),
            "the NodeMirror of {} is {spec} with {status}",
            node.name()
        );
    }
    let pods = inventory::items(cluster, &format!("/api/v1/namespaces/{NODE}/pods")).await?;
    let canaries: Vec<_> = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "entrepot-operator")
        .collect();
    ensure!(canaries.is_empty(), "pods that verified nodes are still there: {canaries:?}");
    Ok(())
}

/// Removes whatever a step that failed left. An operator must be there, or come.
pub(super) async fn remove(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "registrymirror", MIRROR, "--ignore-not-found", "--wait=false"]).await.map(drop)
}

/// Waits until [`remove`] has been carried out.
pub(super) async fn is_removed(cluster: &Cluster) -> Result<()> {
    cluster
        .until("what was left of the crashes is gone", GONE_LIMIT, async || Step::Deleting.is_done(cluster).await)
        .await
}
