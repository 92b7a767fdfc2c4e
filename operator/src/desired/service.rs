//! The Service of a cache server. It is changed in place and never made anew: nodes know its address. May import `labels`.

use crds::{CacheServer, cache_server::ServiceType};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::labels;

/// The port of the registry, in the pod and in the Service.
pub const PORT: u16 = 5000;

/// The Service, with a port for each port connector of the mirrors that are served.
#[must_use]
pub fn service(server: &CacheServer, namespace: &str, connectors: &[u16]) -> Value {
    let wanted = server.spec.service.clone().unwrap_or_default();
    let mut metadata = labels::usual(server, namespace);
    metadata["annotations"] = json!(wanted.annotations);
    let mut registry = json!({"name": "registry", "port": PORT, "targetPort": PORT, "protocol": "TCP"});
    if let (Some(node_port), true) = (wanted.node_port, wanted.type_ != ServiceType::ClusterIP) {
        registry["nodePort"] = json!(node_port);
    }
    let further = connectors
        .iter()
        .map(|port| json!({"name": format!("port-{port}"), "port": port, "targetPort": port, "protocol": "TCP"}));
    let ports: Vec<Value> = std::iter::once(registry).chain(further).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": wanted.type_, "selector": labels::selector(&server.name_any()), "ports": ports},
    })
}
