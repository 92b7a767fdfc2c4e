//! What the roles of the product grant, right by right, and what of it a request used.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::inventory::{self, NODE, SYSTEM};
use crate::cluster::{Cluster, trail};

/// Where roles are.
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
/// Resources whose readers, and verbs whose users, can make themselves more than they are.
const DANGEROUS_VERBS: [&str; 3] = ["escalate", "bind", "impersonate"];

/// One right of one account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Grant {
    /// `NAMESPACE/NAME`.
    account: String,
    /// Where; nothing: everywhere.
    namespace: Option<String>,
    /// `GROUP/RESOURCE[/SUBRESOURCE]`; the core group is empty.
    resource: String,
    verb: String,
    /// The one object; nothing: all of them.
    name: Option<String>,
}

/// What a request took.
#[derive(Clone, Debug)]
pub(super) struct Use {
    account: String,
    namespace: Option<String>,
    resource: String,
    verbs: Vec<String>,
    name: Option<String>,
}

impl Use {
    /// What a request of ours took that was allowed.
    pub(super) fn of(event: &Value) -> Option<Self> {
        if event["annotations"]["authorization.k8s.io/decision"] != "allow" {
            return None;
        }
        let text = |field: &str| event["objectRef"][field].as_str().map(str::to_owned);
        Some(Self {
            account: trail::account(event)?,
            namespace: text("namespace"),
            resource: trail::resource(event),
            verbs: trail::verbs(event).into_iter().map(str::to_owned).collect(),
            name: text("name"),
        })
    }
}

impl Grant {
    /// Whether the request needed this right.
    pub(super) fn allows(&self, one: &Use) -> bool {
        self.account == one.account
            && self.resource == one.resource
            && one.verbs.contains(&self.verb)
            && (self.namespace.is_none() || self.namespace == one.namespace)
            && (self.name.is_none() || self.name == one.name)
    }

    /// Why nobody of ours may have it.
    pub(super) fn leads_to_more(&self) -> Option<&'static str> {
        if self.resource.contains('*') || self.verb.contains('*') {
            return Some("it is a wildcard");
        }
        if DANGEROUS_VERBS.contains(&self.verb.as_str()) {
            return Some("its owner can give itself every right");
        }
        match (self.resource.as_str(), &self.namespace) {
            ("/nodes/proxy", _) => Some("its owner can run programs in every pod"),
            ("/secrets", None) => Some("it is about every Secret of the cluster"),
            _ => None,
        }
    }
}

/// What is granted to our accounts now, and by the hooks of the release while they run.
pub(super) async fn now(cluster: &Cluster, release: &str, namespace: &str) -> Result<BTreeSet<Grant>> {
    let mut objects = hooks(cluster, release, namespace).await?;
    for kind in ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"] {
        let path = format!("{RBAC}/{}s", kind.to_lowercase());
        for mut object in inventory::items(cluster, &path).await? {
            // Items of a list do not say what they are.
            object["kind"] = kind.into();
            objects.push(object);
        }
    }
    let mut grants = BTreeSet::new();
    for binding in objects.iter().filter(|object| text(&object["kind"]).ends_with("Binding")) {
        let accounts = accounts(binding);
        if accounts.is_empty() {
            continue;
        }
        let reference = &binding["roleRef"];
        let role = objects.iter().find(|object| {
            let is_it = object["kind"] == reference["kind"] && object["metadata"]["name"] == reference["name"];
            is_it && (reference["kind"] == "ClusterRole" || namespace_of(object) == namespace_of(binding))
        });
        let role = role.with_context(|| format!("{binding} is to a role that is not there"))?;
        for account in accounts {
            expand(&account, namespace_of(binding), role, &mut grants);
        }
    }
    for owner in ["operator", "node", "release-nodes", "check"] {
        let is_there = grants.iter().any(|grant| grant.account.ends_with(&format!("-{owner}")));
        ensure!(is_there, "nothing is granted to the account of {owner}; did its name change?");
    }
    Ok(grants)
}

/// The objects that exist only while helm runs a hook.
async fn hooks(cluster: &Cluster, release: &str, namespace: &str) -> Result<Vec<Value>> {
    let yaml = cluster.helm(&["get", "hooks", release, "--namespace", namespace]).await?;
    // Whatever is in YAML, kubectl can say in JSON.
    let words = ["create", "--dry-run=client", "--validate=false", "--output=json", "-f", "-"];
    let json = cluster.client().kubectl_with_input(&words, &yaml).await?;
    let mut objects = Vec::new();
    for document in serde_json::Deserializer::from_str(&json).into_iter::<Value>() {
        let mut document = document.context("kubectl printed hooks that are not JSON")?;
        match document["items"].take() {
            Value::Array(items) => objects.extend(items),
            _ => objects.push(document),
        }
    }
    ensure!(!objects.is_empty(), "the release has no hooks");
    Ok(objects)
}

/// The accounts of our namespaces that a binding names.
fn accounts(binding: &Value) -> Vec<String> {
    let subjects = binding["subjects"].as_array().into_iter().flatten();
    subjects
        .filter(|subject| subject["kind"] == "ServiceAccount")
        .map(|subject| (text(&subject["namespace"]), text(&subject["name"])))
        .filter(|(namespace, _)| [SYSTEM, NODE].contains(namespace))
        .map(|(namespace, name)| format!("{namespace}/{name}"))
        .collect()
}

fn expand(account: &str, namespace: Option<&str>, role: &Value, grants: &mut BTreeSet<Grant>) {
    for rule in role["rules"].as_array().into_iter().flatten() {
        let names: Vec<Option<&str>> = match texts(&rule["resourceNames"]) {
            names if names.is_empty() => vec![None],
            names => names.into_iter().map(Some).collect(),
        };
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    grants.extend(names.iter().map(|name| Grant {
                        account: account.to_owned(),
                        namespace: namespace.map(str::to_owned),
                        resource: format!("{group}/{resource}"),
                        verb: verb.to_owned(),
                        name: name.map(str::to_owned),
                    }));
                }
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn namespace_of(object: &Value) -> Option<&str> {
    object["metadata"]["namespace"].as_str()
}

fn file(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("granted.json")
}

/// Adds grants to those that were written down before.
pub(super) fn keep(cluster: &Cluster, grants: &BTreeSet<Grant>) -> Result<()> {
    let path = file(cluster);
    let mut all = if path.exists() { kept(cluster)? } else { BTreeSet::new() };
    all.extend(grants.iter().cloned());
    fs::write(&path, serde_json::to_vec(&all)?).with_context(|| format!("cannot write {}", path.display()))
}

/// What was written down.
pub(super) fn kept(cluster: &Cluster) -> Result<BTreeSet<Grant>> {
    let path = file(cluster);
    let text = fs::read(&path).with_context(|| format!("cannot read {}; was nothing captured?", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what was written", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expanded(rule: &Value, namespace: Option<&str>) -> Vec<Grant> {
        let mut grants = BTreeSet::new();
        expand("entrepot-system/op", namespace, &json!({"rules": [rule]}), &mut grants);
        grants.into_iter().collect()
    }

    #[test]
    fn a_right_is_used_by_a_request_of_its_owner_in_its_place() {
        let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]});
        let grants = expanded(&rule, Some("entrepot-system"));
        let request = |namespace: &str, account: &str, code: u16| {
            Use::of(&json!({
                "verb": "patch",
                "user": {"username": format!("system:serviceaccount:entrepot-system:{account}")},
                "objectRef": {"resource": "configmaps", "namespace": namespace, "name": "a"},
                "responseStatus": {"code": code},
                "annotations": {"authorization.k8s.io/decision": "allow"},
            }))
        };
        let allows = |one: Option<Use>| one.is_some_and(|one| grants[0].allows(&one));
        assert!(allows(request("entrepot-system", "op", 201)), "an apply that creates takes the right to create");
        assert!(!allows(request("entrepot-system", "op", 200)));
        assert!(!allows(request("default", "op", 201)));
        assert!(!allows(request("entrepot-system", "other", 201)));
    }

    #[test]
    fn what_leads_to_more_is_seen() {
        let rule = |resource: &str, verb: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": [verb]});
        let leads = |rule: &Value, namespace| expanded(rule, namespace)[0].leads_to_more().is_some();
        assert!(leads(&rule("*", "get"), None));
        assert!(leads(&rule("roles", "escalate"), Some("a")));
        assert!(leads(&rule("nodes/proxy", "get"), None));
        assert!(leads(&rule("secrets", "list"), None));
        assert!(!leads(&rule("secrets", "list"), Some("entrepot-system")));
    }
}
