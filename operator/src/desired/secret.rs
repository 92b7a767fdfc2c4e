//! The Secrets of a cache server: the one that is mounted, and the one of its authority. May import `labels` and `names`.

use std::collections::BTreeMap;

use crds::CacheServer;
use k8s_openapi::ByteString;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{labels, names};

/// The mounted Secret: the referenced keys of all mirrors, and the managed certificate.
#[must_use]
pub fn mounted(server: &CacheServer, namespace: &str, data: &BTreeMap<String, ByteString>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": labels::usual(server, namespace),
        "data": data,
    })
}

/// The Secret of the authority, with the rotation that was heeded.
#[must_use]
pub fn authority(
    server: &CacheServer,
    namespace: &str,
    data: &BTreeMap<String, ByteString>,
    rotated: Option<&str>,
) -> Value {
    let mut metadata = labels::owned(server, namespace, &names::authority(&server.name_any()));
    if let Some(rotated) = rotated {
        metadata["annotations"] = json!({names::ROTATE: rotated});
    }
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data})
}
