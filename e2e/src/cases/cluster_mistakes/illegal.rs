//! Objects that no apiserver may take, each with the sentence by which it is refused.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// The kinds, with a spec that is taken.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Mirror,
    Server,
    Node,
}

/// Where a good object is spoilt, by what, and what the refusal must say.
type Row = (Kind, &'static str, Value, &'static str);

/// Every row is refused with its sentence, the good objects are not, and nothing was made.
pub(super) async fn all_are_refused(cluster: &Cluster) -> Result<()> {
    for kind in [Kind::Mirror, Kind::Server, Kind::Node] {
        let taken = apply(cluster, &kind.good(), true).await;
        taken.with_context(|| format!("{kind:?}: even the good object is refused"))?;
    }
    let rows = rows();
    for (kind, pointer, value, sentence) in &rows {
        let object = spoilt(*kind, pointer, value.clone())?;
        is_refused(apply(cluster, &object, false).await, sentence)
            .with_context(|| format!("{kind:?} {pointer}: {value}"))?;
    }
    storage_stays_what_it_is(cluster).await?;
    println!("       {} illegal objects were refused", rows.len() + 1);
    Ok(())
}

/// The one rule about a change: content does not move between a volume and the node's disk.
async fn storage_stays_what_it_is(cluster: &Cluster) -> Result<()> {
    // A server that is refused every pod by its selector costs nothing while it exists.
    let name = "illegal-change";
    let mut server = Kind::Server.good();
    server["metadata"]["name"] = name.into();
    server["spec"] = json!({"storage": {"emptyDir": {}}, "nodeSelector": {"no-node": "has-this"}});
    apply(cluster, &server, false).await?;
    server["spec"]["storage"] = json!({"volume": {}});
    let refused = apply(cluster, &server, false).await;
    cluster.kubectl(&["delete", "cacheserver", name, "--timeout=60s"]).await?;
    is_refused(refused, "storage must not change between volume and emptyDir: create another CacheServer")
}

/// As a user does it, or only asked whether it could be done.
async fn apply(cluster: &Cluster, object: &Value, only_asked: bool) -> Result<String> {
    let words: &[&str] = if only_asked { &["apply", "--dry-run=server", "-f", "-"] } else { &["apply", "-f", "-"] };
    cluster.client().kubectl_with_input(words, &object.to_string()).await
}

fn is_refused(answer: Result<String>, sentence: &str) -> Result<()> {
    let complaint = match answer {
        Ok(taken) => bail!("it was taken: {taken}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(complaint.contains(sentence), "it must be refused with {sentence:?}, was with: {complaint}");
    Ok(())
}

fn spoilt(kind: Kind, pointer: &str, value: Value) -> Result<Value> {
    let mut object = kind.good();
    let (parent, key) = pointer.rsplit_once('/').context("a pointer begins with a slash")?;
    let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
    parent.with_context(|| format!("the good object has no {pointer}"))?.insert(key.to_owned(), value);
    Ok(object)
}

impl Kind {
    fn good(self) -> Value {
        let (kind, spec) = match self {
            Self::Mirror => (
                "RegistryMirror",
                json!({
                    "anonymousPull": true,
                    "upstream": {"url": "https://registry.example.com", "credentialsSecretRef": {"name": "account"}},
                    "freshness": {},
                    "nodes": {},
                }),
            ),
            Self::Server => ("CacheServer", json!({"limits": {}})),
            Self::Node => (
                "NodeMirror",
                json!({"entries": [{"registry": "docker.io", "url": "https://10.0.0.1:5000", "repository": "hub"}]}),
            ),
        };
        json!({
            "apiVersion": "entrepot.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": "illegal"},
            "spec": spec,
        })
    }
}

#[expect(clippy::too_many_lines, reason = "a table, a line or two per row")]
fn rows() -> Vec<Row> {
    use Kind::{Mirror, Node, Server};
    vec![
        // Names.
        (Mirror, "/metadata/name", json!("docker.io"), "a repository name must be 1 to 63 of a-z, 0-9 and '-'"),
        (Mirror, "/metadata/name", json!("a".repeat(64)), "a repository name must be 1 to 63 of a-z, 0-9 and '-'"),
        (Mirror, "/metadata/name", json!("library"), "that path means something else; choose another name"),
        (Mirror, "/metadata/name", json!("probe"), "that path means something else; choose another name"),
        (Server, "/metadata/name", json!("a.b"), "the name of a CacheServer must be 1 to 50 of a-z, 0-9 and '-'"),
        (Server, "/metadata/name", json!("a".repeat(51)), "the name of a CacheServer must be 1 to 50 of a-z"),
        // Rules of RegistryMirror.
        (Mirror, "/spec/anonymousPull", Value::Null, "anonymousPull must be set when credentialsSecretRef is"),
        (Mirror, "/spec/upstream/url", json!("ftp://example.com"), "url must start with https:// or http://"),
        (Mirror, "/spec/upstream/url", json!("https://me:pw@example.com"), "put them into a Secret and name it"),
        (
            Mirror,
            "/spec/upstream",
            json!({"url": "https://a.example.com", "insecureSkipVerify": true, "caBundle": "-----BEGIN CERTIFICATE-----"}),
            "insecureSkipVerify must not be set together with caBundle",
        ),
        (
            Mirror,
            "/spec/upstream",
            json!({"url": "http://a.example.com", "insecureSkipVerify": true}),
            "insecureSkipVerify must only be set with an https:// url",
        ),
        (Mirror, "/spec/upstream/caBundle", json!("LS0tLS1CRUdJTiBDRVJU"), "caBundle must be certificates in PEM"),
        (
            Mirror,
            "/spec/upstream/proxyURL",
            json!("socks5://proxy:1080"),
            "proxyURL must start with http:// or https://",
        ),
        (Mirror, "/spec/upstream/proxyURL", json!("http://me:pw@proxy:80"), "proxyURL must not contain credentials"),
        (Mirror, "/spec/upstream/limits", json!({"connect": "0s"}), "limits.headerWithCopy must be longer than 0s"),
        (
            Mirror,
            "/spec/upstream/limits",
            json!({"stall": {"window": "9ms"}}),
            "limits.stall.window must be at least 1s",
        ),
        (Mirror, "/spec/upstream/breaker", json!({"minOpen": "0s"}), "breaker.minOpen must be longer than 0s"),
        (Mirror, "/spec/upstream/breaker", json!({"minOpen": "1h"}), "must not be longer than breaker.maxOpen"),
        (Mirror, "/spec/connectors", json!([{}]), "a connector must have either port or host"),
        (Mirror, "/spec/connectors", json!([{"port": 1, "host": "a"}]), "a connector must have either port or host"),
        (
            Mirror,
            "/spec/connectors",
            json!([{"host": "a", "tls": {"secretRef": {"name": "tls"}}}]),
            "tls must only be set on a connector with a port",
        ),
        (
            Mirror,
            "/spec/connectors",
            json!([{"host": "a", "nodePort": 30501}]),
            "nodePort must only be set on a connector with a port",
        ),
        (
            Mirror,
            "/spec/connectors",
            json!([{"port": 5001, "tlsSecretRef": {"name": "tls"}}]),
            "tlsSecretRef must only be set on a connector with a host",
        ),
        (
            Mirror,
            "/spec/nodes",
            json!({"fallback": "Never"}),
            "acknowledgeBootstrapRisk must be true when fallback is Never",
        ),
        (
            Mirror,
            "/spec/nodes",
            json!({"probe": {"interval": "0s"}}),
            "probe.interval and probe.timeout must be longer",
        ),
        // Rules of CacheServer.
        (Server, "/spec/tls", json!({"mode": "Secret"}), "secretRef must be set when mode is Secret, and only then"),
        (Server, "/spec/tls", json!({"secretRef": {"name": "tls"}}), "secretRef must be set when mode is Secret"),
        (Server, "/spec/limits", json!({"idle": "0s"}), "limits.writeStall must be longer than 0s"),
        (Server, "/spec/storage", json!({}), "storage must have either volume or emptyDir"),
        (Server, "/spec/storage", json!({"volume": {}, "emptyDir": {}}), "storage must have either volume or emptyDir"),
        (
            Server,
            "/spec/storage",
            json!({"volume": {"existingClaim": "mine", "size": "1Gi"}}),
            "must not be set together with existingClaim, which is not ours to make or delete",
        ),
        (Server, "/spec/service", json!({"nodePort": 30500}), "service.nodePort must only be set with type NodePort"),
        // Shapes: fields that do not exist, are missing, of another type, out of bounds.
        (Mirror, "/spec/upstream/uri", json!("https://a"), "unknown field \"spec.upstream.uri\""),
        (Server, "/spec/replicas", json!(2), "unknown field \"spec.replicas\""),
        (Node, "/spec/nodeName", json!("node1"), "unknown field \"spec.nodeName\""),
        (Mirror, "/spec/upstream", json!({}), "spec.upstream.url: Required value"),
        (Node, "/spec", json!({}), "spec.entries: Required value"),
        (Mirror, "/spec/online", json!("yes"), "spec.online in body must be of type boolean"),
        (Mirror, "/spec/upstream/registry", json!("Docker.IO"), "spec.upstream.registry in body should match"),
        (Mirror, "/spec/freshness/tags", json!("5 minutes"), "spec.freshness.tags in body should match"),
        (Mirror, "/spec/freshness/onDenied", json!("Serve"), "supported values: \"Refuse\", \"ServeCached\""),
        (Mirror, "/spec/nodes/foreign", json!("Keep"), "supported values: \"Prepend\", \"Replace\", \"Skip\""),
        (Mirror, "/spec/upstream/limits", json!({"concurrency": 0}), "should be greater than or equal to 1"),
        (Mirror, "/spec/connectors", json!([{"port": 70_000}]), "should be less than or equal to 65535"),
        (Server, "/spec/maxSize", json!("10 GB"), "spec.maxSize in body should match"),
        (Node, "/spec/entries/0/url", json!("x"), "spec.entries[0].url in body should be at least 8 chars long"),
        (Node, "/spec/entries/0/registry", json!("https://docker.io"), "spec.entries[0].registry in body should match"),
        (Node, "/spec/entries/0/fallback", json!("Perhaps"), "supported values: \"Allow\", \"Never\""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_spoils_its_good_object() -> Result<()> {
        for (kind, pointer, value, _) in rows() {
            assert_ne!(spoilt(kind, pointer, value)?, kind.good(), "{pointer}");
        }
        Ok(())
    }
}
