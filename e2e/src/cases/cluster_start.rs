//! The cluster itself is what the other cases take it for.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::cluster::{ClusterWorld, runtime::PAUSE};
use crate::suite::ClusterCase;

/// How long a pod whose image is there may take to run.
const POD_LIMIT: Duration = Duration::from_secs(30);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![ClusterCase::new("cluster: pods run on both nodes", |world| Box::pin(pods_run(world)))]
}

async fn pods_run(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    for node in cluster.nodes() {
        let name = format!("pause-{}", node.name());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "nodeName": node.name(),
                "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{ "name": "pause", "image": PAUSE }],
            },
        });
        cluster.apply(&pod.to_string()).await?;
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        cluster
            .until(&format!("{name} runs"), POD_LIMIT, async || {
                Ok(cluster.get(&path).await?["status"]["phase"] == "Running")
            })
            .await?;
        let pod = cluster.get(&path).await?;
        let container = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default().to_owned();
        ensure!(!node.processes(&container)?.is_empty(), "{container} has no process");
        cluster.kubectl(&["delete", "pod", &name, "--wait=false"]).await?;
    }
    Ok(())
}
