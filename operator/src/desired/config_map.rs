//! The configuration of a cache server: the objects themselves, without what only works in a cluster.
//! May import `labels`, `names` and `repository`.

use crds::{CacheServer, CacheServerSpec, RegistryMirror, cache_server::TlsMode};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{labels, names};
use crate::repository::Repository;

/// The `ConfigMap` with these documents, and who signs tokens of service accounts where the server takes them.
#[must_use]
pub fn config_map(server: &CacheServer, namespace: &str, documents: &[Value], issuer: Option<&str>) -> Value {
    let mut data = json!({names::CONFIG_KEY: text(documents)});
    if let Some(issuer) = issuer {
        data[names::ISSUER_KEY] = json!(issuer);
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": labels::usual(server, namespace),
        "data": data,
    })
}

/// The documents as one YAML stream.
fn text(documents: &[Value]) -> String {
    documents.iter().flat_map(|document| ["---\n".to_owned(), body(document), "\n".to_owned()]).collect()
}

fn body(document: &Value) -> String {
    // JSON is YAML: what serde_saphyr does not write as blocks is written so.
    let text = serde_saphyr::to_string(document).unwrap_or_else(|_| document.to_string());
    text.trim_end().to_owned()
}

/// The documents of a `ConfigMap` as it was written before; empty if it cannot be read.
#[must_use]
pub fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_str_multiple(text).unwrap_or_default()
}

/// A repository as the cache server reads it.
#[must_use]
pub fn repository_document(repository: &Repository) -> Value {
    let mut spec = repository.spec();
    remove(&mut spec, "nodes");
    for connector in spec.get_mut("connectors").and_then(Value::as_array_mut).into_iter().flatten() {
        remove(connector, "nodePort");
    }
    document(repository.kind(), &repository.name(), repository.meta().generation, &spec)
}

/// A server as the cache server reads it. A default repository that is not served is left out.
#[must_use]
pub fn server_document(server: &CacheServer, repositories: &[String]) -> Value {
    let mut spec = json!(server.spec);
    for field in CacheServerSpec::WORKLOAD_FIELDS {
        remove(&mut spec, field);
    }
    spec["tls"] = match server.spec.tls.mode.unwrap_or(TlsMode::Managed) {
        TlsMode::Managed => json!({"mode": "Secret", "secretRef": {"name": names::MANAGED_TLS}}),
        TlsMode::Secret => json!({"mode": "Secret", "secretRef": server.spec.tls.secret_ref}),
        TlsMode::Disabled => json!({"mode": "Disabled"}),
    };
    if server.spec.default_repository.as_ref().is_some_and(|name| !repositories.contains(name)) {
        remove(&mut spec, "defaultRepository");
    }
    document("CacheServer", &server.name_any(), server.meta().generation, &spec)
}

fn document(kind: &str, name: &str, generation: Option<i64>, spec: &Value) -> Value {
    json!({
        "apiVersion": RegistryMirror::api_version(&()),
        "kind": kind,
        "metadata": {"name": name, "generation": generation.unwrap_or_default()},
        "spec": spec,
    })
}

fn remove(spec: &mut Value, field: &str) {
    if let Some(fields) = spec.as_object_mut() {
        fields.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let spec = json!({
            "upstream": {"url": "https://a.example.com", "caBundle": "-----BEGIN X\nab: c\n"},
            "connectors": [{"port": 5001, "nodePort": 30501}],
            "nodes": {},
        });
        let mirror = RegistryMirror::new("a", serde_json::from_value(spec).expect("should be a mirror"));
        let written = vec![repository_document(&Repository::Mirror(Arc::new(mirror)))];
        assert!(written[0]["spec"].get("nodes").is_none());
        assert_eq!(written[0]["spec"]["connectors"], json!([{"port": 5001}]));
        assert_eq!(documents(&text(&written)), written);
    }

    #[test]
    fn a_server_document_has_no_field_that_only_works_in_a_cluster() {
        let spec =
            json!({"image": "x", "storage": {"emptyDir": {}}, "priorityClassName": "p", "defaultRepository": "gone"});
        let server = CacheServer::new("a", serde_json::from_value(spec).expect("should be a server"));
        let document = server_document(&server, &["other".to_owned()]);
        assert_eq!(document["spec"]["tls"]["secretRef"]["name"], names::MANAGED_TLS);
        for field in CacheServerSpec::WORKLOAD_FIELDS.into_iter().chain(["defaultRepository"]) {
            assert!(document["spec"].get(field).is_none(), "{field}");
        }
    }
}
