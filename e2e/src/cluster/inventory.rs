//! What of the product is in the cluster: where its parts are, and how they say that they are well.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;

/// The namespace of the operator, the cache servers and their Secrets.
pub const SYSTEM: &str = "entrepot-system";
/// The namespace of the node agents and of the pods that verify nodes.
pub const NODE: &str = "entrepot-node";
/// Where the apiserver keeps our kinds.
pub const KINDS: &str = "/apis/entrepot.dev/v1alpha1";

/// A pod, as far as it shows whether it was replaced or restarted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Its namespace and name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// How often its containers were restarted.
    pub restarts: u64,
}

/// The items of a list: `/api/v1/nodes`.
pub async fn items(cluster: &Cluster, path: &str) -> Result<Vec<Value>> {
    match cluster.get(path).await?["items"].take() {
        Value::Array(items) => Ok(items),
        other => anyhow::bail!("GET {path} is no list: {other}"),
    }
}

/// The `RegistryMirror` by this name, if there is one.
pub async fn mirror(cluster: &Cluster, name: &str) -> Result<Option<Value>> {
    let all = items(cluster, &format!("{KINDS}/registrymirrors")).await?;
    Ok(all.into_iter().find(|mirror| mirror["metadata"]["name"] == name))
}

/// The `NodeMirror` of a node.
pub async fn node_mirror(cluster: &Cluster, node: &str) -> Result<Value> {
    cluster.get(&format!("{KINDS}/nodemirrors/{node}")).await
}

/// A condition of an object.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether the status of an object speaks of the spec that is there now.
#[must_use]
pub fn is_observed(object: &Value) -> bool {
    let generation = &object["metadata"]["generation"];
    generation.is_u64() && object["status"]["observedGeneration"] == *generation
}

/// The pods of both namespaces that a Deployment or the `DaemonSet` keeps running.
pub async fn lives(cluster: &Cluster) -> Result<Vec<Life>> {
    let mut lives = Vec::new();
    for namespace in [SYSTEM, NODE] {
        for pod in items(cluster, &format!("/api/v1/namespaces/{namespace}/pods")).await? {
            let owner = &pod["metadata"]["ownerReferences"][0]["kind"];
            if owner == "ReplicaSet" || owner == "DaemonSet" {
                lives.push(life(&pod));
            }
        }
    }
    ensure!(!lives.is_empty(), "no pod of the product runs");
    lives.sort();
    Ok(lives)
}

fn life(pod: &Value) -> Life {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &pod["metadata"];
    let containers = pod["status"]["containerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
    Life {
        name: format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"])),
        uid: text(&metadata["uid"]),
        restarts: containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum(),
    }
}

/// The address of the pod of a cache server; pods are reachable from where the cases run.
pub async fn cache_address(cluster: &Cluster, server: &str) -> Result<IpAddr> {
    let selector = format!("app.kubernetes.io%2Fname%3Dcache-server,app.kubernetes.io%2Finstance%3D{server}");
    let pods = items(cluster, &format!("/api/v1/namespaces/{SYSTEM}/pods?labelSelector={selector}")).await?;
    let running =
        pods.iter().find(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null());
    let address = running.and_then(|pod| pod["status"]["podIP"].as_str());
    let address = address.with_context(|| format!("no pod of the cache server {server:?} runs"))?;
    address.parse().with_context(|| format!("{address:?} is no address"))
}

/// The operator's Deployment.
pub async fn operator(cluster: &Cluster) -> Result<Value> {
    let selector = "app.kubernetes.io%2Fcomponent%3Doperator,app.kubernetes.io%2Fpart-of%3Dentrepot";
    let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments?labelSelector={selector}");
    items(cluster, &path).await?.into_iter().next().context("the operator has no Deployment; is the chart installed?")
}

/// The pod of the node agent on a node.
pub async fn agent(cluster: &Cluster, node: &str) -> Result<Value> {
    let pods = items(cluster, &format!("/api/v1/namespaces/{NODE}/pods")).await?;
    let is_agent =
        |pod: &Value| pod["spec"]["nodeName"] == node && pod["metadata"]["ownerReferences"][0]["kind"] == "DaemonSet";
    pods.into_iter().find(is_agent).with_context(|| format!("no agent runs on {node}"))
}

/// A token of a `ServiceAccount`, as the apiserver makes it; `bound_to` is a pod of it, whose node the token then names.
pub async fn token(cluster: &Cluster, namespace: &str, account: &str, bound_to: Option<&str>) -> Result<String> {
    let mut words = vec!["create", "token", account, "--namespace", namespace, "--duration=1h"];
    if let Some(pod) = bound_to {
        words.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
    }
    Ok(cluster.kubectl(&words).await?.trim().to_owned())
}
