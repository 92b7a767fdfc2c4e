//! The Service of a cache server. It is changed in place and never made anew: nodes know its address. May import `labels`.

use crds::{CacheServer, cache_server::ServiceType};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::labels;

/// The port of the registry, in the pod and in the Service.
pub const PORT: u16 = 5000;

/// A port connector, as the Service has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its port, in the pod and in the Service.
    pub port: u16,
    /// The port that every node opens, where one was chosen.
    pub node_port: Option<u16>,
}

/// The Service, with a port for each port connector of the repositories that are served.
#[must_use]
pub fn service(server: &CacheServer, namespace: &str, connectors: &[Port]) -> Value {
    let wanted = server.spec.service.clone().unwrap_or_default();
    let mut metadata = labels::usual(server, namespace);
    metadata["annotations"] = json!(wanted.annotations);
    let entry = |name: &str, Port { port, node_port }: Port| {
        let mut entry = json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
        if let Some(node_port) = node_port.filter(|_| wanted.type_ != ServiceType::ClusterIP) {
            entry["nodePort"] = json!(node_port);
        }
        entry
    };
    let registry = entry("registry", Port { port: PORT, node_port: wanted.node_port });
    let further = connectors.iter().map(|port| entry(&format!("port-{}", port.port), *port));
    let ports: Vec<Value> = std::iter::once(registry).chain(further).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": wanted.type_, "selector": labels::selector(&server.name_any()), "ports": ports},
    })
}
