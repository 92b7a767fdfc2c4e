//! Labels and the owner of a cache server's objects. May import `names`.

use crds::CacheServer;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::names;

/// The labels of every object of a cache server.
#[must_use]
pub fn of(server: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "cache-server",
        "app.kubernetes.io/instance": server,
        "app.kubernetes.io/managed-by": "entrepot-operator",
        "app.kubernetes.io/part-of": "entrepot",
    })
}

/// The labels by which a cache server's pods are found. They never change.
#[must_use]
pub fn selector(server: &str) -> Value {
    json!({"app.kubernetes.io/name": "cache-server", "app.kubernetes.io/instance": server})
}

/// Metadata of an object that goes with its `CacheServer`.
#[must_use]
pub fn owned(server: &CacheServer, namespace: &str, name: &str) -> Value {
    let mut metadata = kept(server, namespace, name);
    metadata["ownerReferences"] = json!([{
        "apiVersion": CacheServer::api_version(&()),
        "kind": CacheServer::kind(&()),
        "name": server.name_any(),
        "uid": server.uid(),
        "controller": true,
    }]);
    metadata
}

/// Metadata of an object that outlives its `CacheServer`.
#[must_use]
pub fn kept(server: &CacheServer, namespace: &str, name: &str) -> Value {
    json!({"name": name, "namespace": namespace, "labels": of(&server.name_any())})
}

/// Metadata of an object with the usual name, owned.
#[must_use]
pub fn usual(server: &CacheServer, namespace: &str) -> Value {
    owned(server, namespace, &names::objects(&server.name_any()))
}
