//! Everything that the operator is responsible for, as one document, without what differs from run to run: identities, times,
//! counters of changes, and hashes that have one of them in it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::cluster::inventory::{self, KINDS, NODE, SYSTEM};
use crate::cluster::runtime::CERTS_D;
use crate::cluster::{Cluster, Node};

/// What the operator makes, by the selector of its label.
const OURS: &str = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dentrepot-operator";
/// Fields, anywhere, that are never the same twice.
const MASKED: [&str; 12] = [
    "uid",
    "resourceVersion",
    "generation",
    "observedGeneration",
    "managedFields",
    "creationTimestamp",
    "lastTransitionTime",
    "lastUpdateTime",
    "since",
    "time",
    // Another one for each verification, and what is signed with it.
    "nonce",
    "entrepot.dev/applied",
];
/// What the user's own tool keeps of the object, in another order of words each time.
const KUBECTL: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The document.
pub(super) async fn dump(cluster: &Cluster) -> Result<Value> {
    let mut all = Map::new();
    for path in [
        format!("{KINDS}/registrymirrors"),
        format!("{KINDS}/cacheservers"),
        format!("{KINDS}/nodemirrors"),
        format!("/api/v1/namespaces/{SYSTEM}/configmaps?{OURS}"),
        format!("/api/v1/namespaces/{SYSTEM}/secrets?{OURS}"),
        format!("/api/v1/namespaces/{SYSTEM}/services?{OURS}"),
        format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts?{OURS}"),
        format!("/api/v1/namespaces/{SYSTEM}/persistentvolumeclaims?{OURS}"),
        format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments?{OURS}"),
        format!("/api/v1/namespaces/{NODE}/pods?{OURS}"),
    ] {
        let mut objects = Map::new();
        for object in inventory::items(cluster, &path).await? {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            objects.insert(name, masked(object));
        }
        all.insert(path, Value::Object(objects));
    }
    // A pod that was replaced has another name.
    let lives = inventory::lives(cluster).await?;
    all.insert(
        "pods".to_owned(),
        lives.iter().map(|life| json!({"name": life.name, "restarts": life.restarts})).collect(),
    );
    for node in cluster.nodes() {
        all.insert(format!("files of {}", node.name()), files(node)?);
    }
    Ok(Value::Object(all))
}

fn masked(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(key, _)| !MASKED.contains(&key.as_str()) && key != KUBECTL);
            kept.map(|(key, value)| (key, masked(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(masked).collect(),
        other => other,
    }
}

/// The runtime's folder of mirrors, file by file.
fn files(node: &Node) -> Result<Value> {
    let root = node.file(CERTS_D);
    let mut found = Map::new();
    read_below(&root, &root, &mut found)?;
    Ok(Value::Object(found))
}

fn read_below(root: &Path, folder: &Path, found: &mut Map<String, Value>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_below(root, &path, found)?;
        } else {
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.insert(name, String::from_utf8_lossy(&text).into_owned().into());
        }
    }
    Ok(())
}

/// Where two documents differ, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences(Vec<(String, String)>);

impl Differences {
    /// What is different between two documents.
    pub(super) fn between(one: &Value, other: &Value) -> Self {
        let mut found = Self::default();
        found.compare("", one, other);
        found
    }

    /// Those in places in which `known` has none.
    pub(super) fn beyond(mut self, known: &Self) -> Self {
        self.0.retain(|(place, _)| !known.0.iter().any(|(other, _)| other == place));
        self
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn compare(&mut self, place: &str, one: &Value, other: &Value) {
        match (one, other) {
            (Value::Object(one), Value::Object(other)) => {
                let more = other.keys().filter(|key| !one.contains_key(*key));
                for key in one.keys().chain(more) {
                    let of = |fields: &Map<String, Value>| fields.get(key).cloned().unwrap_or_default();
                    self.compare(&format!("{place} > {key}"), &of(one), &of(other));
                }
            }
            (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
                for (index, (one, other)) in one.iter().zip(other).enumerate() {
                    self.compare(&format!("{place} > {index}"), one, other);
                }
            }
            (one, other) if one != other => self.0.push((place.to_owned(), format!("{one} became {other}"))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_and_times_are_no_difference() {
        let object = |uid: &str, tags: &str| {
            masked(json!({"metadata": {"name": "a", "uid": uid}, "spec": {"tags": tags}, "status": [{"since": uid}]}))
        };
        assert!(Differences::between(&object("1", "5m"), &object("2", "5m")).is_empty());
        assert!(!Differences::between(&object("1", "5m"), &object("1", "6m")).is_empty());
    }

    #[test]
    fn what_is_missing_and_what_is_more_are_differences() {
        let (less, more) = (json!({"a": [1]}), json!({"a": [1], "b": 2}));
        for (one, other) in [(&less, &more), (&more, &less)] {
            let found = Differences::between(one, other);
            assert!(!found.is_empty());
            assert!(found.clone().beyond(&found).is_empty());
            assert!(!found.beyond(&Differences::default()).is_empty());
        }
        assert!(!Differences::between(&json!([1]), &json!([1, 2])).is_empty());
    }
}
