//! Pods of one image, one on each node, and the moment at which they run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pods_images::Runnable;
use crate::cluster::Cluster;

/// How long until removed pods are gone.
const GONE_LIMIT: Duration = Duration::from_secs(40);

/// The pods of one image.
#[derive(Debug)]
pub struct Pods<'w> {
    cluster: &'w Cluster,
    app: String,
    begun: Instant,
}

impl<'w> Pods<'w> {
    /// Makes one on each node; they are told apart from others by `app`.
    pub async fn begin(cluster: &'w Cluster, app: &str, image: &Runnable) -> Result<Self> {
        let pods: Vec<Value> = cluster.nodes().iter().map(|node| pod(app, node.name(), &image.reference())).collect();
        let begun = Instant::now();
        cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }).to_string()).await?;
        Ok(Self { cluster, app: app.to_owned(), begun })
    }

    /// Waits until all run, at most so long after they were made; answers how long it took.
    pub async fn running(&self, limit: Duration) -> Result<Duration> {
        let left = limit.saturating_sub(self.begun.elapsed());
        let what = format!("the pods of {} run, {limit:?} after they were made", self.app);
        self.until_each(&what, left, |pod| pod["status"]["phase"] == "Running").await?;
        Ok(self.begun.elapsed())
    }

    /// Waits until every pull has come to an end, good or bad.
    pub async fn pulled(&self, limit: Duration) -> Result<()> {
        let what = format!("the pulls of {} end", self.app);
        self.until_each(&what, limit, has_pulled).await
    }

    /// Removes them and waits until they are gone.
    pub async fn remove(self) -> Result<()> {
        let label = format!("app={}", self.app);
        self.cluster.kubectl(&["delete", "pods", "--selector", &label, "--wait=false"]).await?;
        let what = format!("the pods of {} are gone", self.app);
        self.cluster.until(&what, GONE_LIMIT, async || Ok(self.all().await?.is_empty())).await
    }

    async fn until_each(&self, what: &str, limit: Duration, is_so: fn(&Value) -> bool) -> Result<()> {
        let wanted = self.cluster.nodes().len();
        self.cluster
            .until(what, limit, async || {
                let pods = self.all().await?;
                Ok(pods.len() == wanted && pods.iter().all(is_so))
            })
            .await
    }

    async fn all(&self) -> Result<Vec<Value>> {
        let path = format!("/api/v1/namespaces/default/pods?labelSelector=app={}", self.app);
        let mut list = self.cluster.get(&path).await?;
        serde_json::from_value(list["items"].take()).context("no list of pods")
    }
}

/// Whether the runtime has an image for the pod, or has said that it cannot have it.
fn has_pulled(pod: &Value) -> bool {
    let state = &pod["status"]["containerStatuses"][0]["state"];
    let reason = state["waiting"]["reason"].as_str().unwrap_or_default();
    state["running"].is_object() || matches!(reason, "ErrImagePull" | "ImagePullBackOff")
}

fn pod(app: &str, node: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("{app}-{node}"), "namespace": "default", "labels": { "app": app } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{ "name": "noise", "image": image, "imagePullPolicy": "Always" }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_has_ended_when_the_container_runs_or_the_kubelet_says_that_it_failed() {
        let with = |state: Value| json!({ "status": { "containerStatuses": [{ "state": state }] } });
        assert!(has_pulled(&with(json!({ "running": { "startedAt": "now" } }))));
        assert!(has_pulled(&with(json!({ "waiting": { "reason": "ErrImagePull" } }))));
        assert!(!has_pulled(&with(json!({ "waiting": { "reason": "ContainerCreating" } }))));
        assert!(!has_pulled(&json!({ "status": {} })));
    }
}
