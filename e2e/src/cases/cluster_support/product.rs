//! What the installed product says of itself, and waiting until it is as every case finds and leaves it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::node_files;
use crate::cluster::demonstration::RELEASE;
use crate::cluster::{Cluster, NODES, is_true};

/// The mirror that every case finds.
pub const MIRROR: &str = "docker-hub";
/// What it stands for.
pub const REGISTRY: &str = "docker.io";
/// The operator's Deployment.
pub const OPERATOR: &str = "deployment/entrepot-operator";
/// The Deployment of the cache server.
pub const CACHE: &str = "deployment/cache-default";
/// The name of the cache server's Service.
pub const SERVICE: &str = "cache-default";
/// How long until the product is whole again after whatever a case did to it.
const WHOLE_LIMIT: Duration = Duration::from_mins(3);
/// How long until pods are gone that were asked to end: a cache server first ends its transfers.
const GONE_LIMIT: Duration = Duration::from_mins(1);

/// The namespace of the operator and of cache servers.
#[must_use]
pub const fn namespace() -> &'static str {
    RELEASE[1]
}

/// "All nodes" as a mirror's status says it.
#[must_use]
pub fn all_nodes() -> String {
    format!("{0} of {0}", NODES.len())
}

/// How many nodes pull through a mirror, as its status says it.
pub async fn summary(cluster: &Cluster, mirror: &str) -> Result<String> {
    let found = cluster.get(&format!("/apis/entrepot.dev/v1alpha1/registrymirrors/{mirror}")).await?;
    Ok(found["status"]["nodes"]["summary"].as_str().unwrap_or_default().to_owned())
}

/// The object in which a node is told and tells what its files say.
pub async fn node_mirror(cluster: &Cluster, node: &str) -> Result<Value> {
    cluster.get(&format!("/apis/entrepot.dev/v1alpha1/nodemirrors/{node}")).await
}

/// A condition of an object; `null` if there is none of this type.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// Waits until the cache server is ready, all nodes are verified, and the files of each name the cache.
pub async fn until_whole(cluster: &Cluster) -> Result<()> {
    cluster
        .until("the product is whole", WHOLE_LIMIT, async || {
            let ready = cache_pod(cluster).await?.is_ready;
            let named = cluster.nodes().iter().all(|node| node_files::names_cache(node, REGISTRY, MIRROR));
            Ok(ready && named && summary(cluster, MIRROR).await? == all_nodes())
        })
        .await
}

/// The pod of the cache server.
#[derive(Debug, Clone)]
pub struct CachePod {
    /// Its name.
    pub name: String,
    /// Its node's name.
    pub node: String,
    /// The id of its container, as the runtime knows it.
    pub container: String,
    /// How often the kubelet started the container again.
    pub restarts: u64,
    /// Whether the Service leads to it.
    pub is_ready: bool,
}

/// The one pod of the cache server that is not about to end.
pub async fn cache_pod(cluster: &Cluster) -> Result<CachePod> {
    let pods = component(cluster, "app.kubernetes.io/name=cache-server").await?;
    let staying: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    ensure!(staying.len() == 1, "there are {} pods of the cache server", staying.len());
    let pod = staying[0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let container = &pod["status"]["containerStatuses"][0];
    Ok(CachePod {
        name: text(&pod["metadata"]["name"]),
        node: text(&pod["spec"]["nodeName"]),
        container: text(&container["containerID"]),
        restarts: container["restartCount"].as_u64().unwrap_or_default(),
        is_ready: is_true(pod, "Ready"),
    })
}

/// Whether a pod of this name is still meant to run.
pub async fn is_staying(cluster: &Cluster, pod: &str) -> Result<bool> {
    let pods = component(cluster, "app.kubernetes.io/name=cache-server").await?;
    Ok(pods.iter().any(|found| found["metadata"]["name"] == pod && found["metadata"]["deletionTimestamp"].is_null()))
}

/// Sets the number of pods of a Deployment.
pub async fn scale(cluster: &Cluster, deployment: &str, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl(&["scale", deployment, "--namespace", namespace(), &replicas]).await.map(drop)
}

/// Ends the operator, and waits until it has ended.
pub async fn end_operator(cluster: &Cluster) -> Result<()> {
    scale(cluster, OPERATOR, 0).await?;
    cluster
        .until("the operator has ended", GONE_LIMIT, async || {
            Ok(component(cluster, "app.kubernetes.io/component=operator").await?.is_empty())
        })
        .await
}

/// Waits until the cache server's Service leads nowhere.
pub async fn until_no_endpoint(cluster: &Cluster) -> Result<()> {
    let label = format!("kubernetes.io/service-name={SERVICE}");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector={label}", namespace());
    cluster
        .until("the Service has no endpoint", GONE_LIMIT, async || {
            let found = cluster.get(&slices).await?;
            let slices = found["items"].as_array().context("no list")?;
            let serves = |endpoint: &Value| endpoint["conditions"]["serving"] != false;
            Ok(!slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten().any(serves))
        })
        .await
}

/// Whether an address is neither a node's nor the laboratory's own: then it is a pod's, and only the cache asks upstreams.
#[must_use]
pub fn is_cache(cluster: &Cluster, address: IpAddr) -> bool {
    !cluster.is_node(address) && matches!(address, IpAddr::V4(address) if address.octets()[..2] == [10, 244])
}

async fn component(cluster: &Cluster, label: &str) -> Result<Vec<Value>> {
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector={label}", namespace());
    let mut list = cluster.get(&path).await?;
    serde_json::from_value(list["items"].take()).context("no list of pods")
}
