//! What nodes' files shall say: a function of repositories, where they are served, and nodes. Pure. May import `names`, `sign`
//! and `repository`.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    NodeMirror,
    node_mirror::{Canary, EntryState, NodeEntry},
    nodes::NodesSpec,
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use serde_json::json;

use super::names;
use crate::{
    repository::{Holders, Repository, registry},
    sign::hash,
};

/// Where a server is, as nodes reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://10.96.0.7:5000`.
    pub origin: String,
    /// The authorities that sign its certificate.
    pub ca_bundle: Option<String>,
}

impl Endpoint {
    /// The URL of a repository, as node files name it.
    #[must_use]
    pub fn repository(&self, name: &str) -> String {
        format!("{}/repository/{name}", self.origin)
    }
}

/// A repository that nodes may pull through.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// What it wants of nodes.
    pub nodes: &'a NodesSpec,
    /// The registries that nodes pull through it.
    pub registries: BTreeSet<String>,
    /// Where the mirrors behind it pull the registries from that they stand for.
    upstreams: BTreeMap<String, String>,
    /// Where it is served. `None`: not known now, so that nodes keep what they have of it.
    pub endpoint: Option<&'a Endpoint>,
}

impl<'a> Offer<'a> {
    /// What a repository offers; `None` if it wants nothing of nodes. A mirror offers the registry that it stands for, unless
    /// it names others; a group those that it names.
    #[must_use]
    pub fn new(repository: &'a Repository, holders: &Holders, endpoint: Option<&'a Endpoint>) -> Option<Self> {
        let nodes = repository.nodes()?;
        let leaves = repository.leaves(holders);
        let upstreams: BTreeMap<String, String> = leaves
            .iter()
            .filter_map(|leaf| match leaf {
                Repository::Mirror(mirror) => Some((registry(mirror)?, mirror.spec.upstream.url.clone())),
                Repository::Hosted(_) | Repository::Group(_) => None,
            })
            .collect();
        let mut registries: BTreeSet<String> = nodes.registries.iter().cloned().collect();
        if let (Repository::Mirror(mirror), true) = (repository, registries.is_empty()) {
            registries.insert(registry(mirror)?);
        }
        Some(Self { repository, nodes, registries, upstreams, endpoint })
    }

    /// Whether it means a node.
    #[must_use]
    pub fn means(&self, node: &Node) -> bool {
        is_linux(node) && selects(self.nodes.selector.as_ref(), node)
    }

    fn entry(&self, registry: &str, endpoint: &Endpoint) -> NodeEntry {
        let name = self.repository.name();
        NodeEntry {
            registry: registry.to_owned(),
            url: endpoint.repository(&name),
            repository: name,
            ca_bundle: endpoint.ca_bundle.clone(),
            server: self.upstreams.get(registry).and_then(|url| own_url(registry, url)),
            fallback: self.nodes.fallback,
            foreign: self.nodes.foreign,
            probe: self.nodes.probe.clone(),
        }
    }
}

/// What a runtime asks last: the upstream, where it is not what the runtime takes for the registry anyway.
fn own_url(registry: &str, url: &str) -> Option<String> {
    let url = url.trim_end_matches('/');
    let usual = match registry {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        _ => format!("https://{registry}"),
    };
    (url != usual).then(|| url.to_owned())
}

/// What one node shall write, and which repository each registry was given to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The entries, by registry.
    pub entries: Vec<NodeEntry>,
    /// Registries that a repository wanted here and another one has.
    pub conflicts: Vec<Conflict>,
}

/// A registry that two repositories want on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The [`Repository::key`] of the one that does not have it.
    pub loser: String,
    /// The registry.
    pub registry: String,
    /// The one that has it, as messages name it.
    pub holder: String,
}

/// What a node shall write. Of two repositories that claim a registry the older one has it; `offers` must be sorted by
/// [`Repository::age`].
#[must_use]
pub fn plan(node: &Node, offers: &[Offer<'_>], live: Option<&NodeMirror>) -> Plan {
    let mut entries: BTreeMap<String, Option<NodeEntry>> = BTreeMap::new();
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    let mut plan = Plan::default();
    for offer in offers.iter().filter(|offer| offer.means(node)) {
        for registry in &offer.registries {
            if let Some(holder) = holders.get(registry) {
                let (loser, registry) = (offer.repository.key(), registry.clone());
                plan.conflicts.push(Conflict { loser, registry, holder: holder.clone() });
                continue;
            }
            let entry = match offer.endpoint {
                Some(endpoint) => Some(offer.entry(registry, endpoint)),
                None => live.and_then(|live| held(live, registry, &offer.repository.name())).cloned(),
            };
            holders.insert(registry.clone(), offer.repository.to_string());
            entries.insert(registry.clone(), entry);
        }
    }
    plan.entries = entries.into_values().flatten().collect();
    plan
}

fn held<'a>(live: &'a NodeMirror, registry: &str, repository: &str) -> Option<&'a NodeEntry> {
    live.spec.entries.iter().find(|entry| entry.registry == registry && entry.repository == repository)
}

/// The pull by which a node with these entries is verified.
#[must_use]
pub fn canary(node: &Node, entries: &[NodeEntry], live: Option<&NodeMirror>) -> Option<Canary> {
    let first = entries.first()?;
    let origin = first.url.split("/repository/").next()?;
    let url = format!("{origin}/repository/probe");
    let fingerprint =
        live.and_then(|live| live.status.as_ref()?.runtime.as_ref()?.fingerprint.clone()).unwrap_or_default();
    let nonce = hash(&json!([node.uid(), url, first.ca_bundle, fingerprint]));
    Some(Canary { registry: names::CANARY_REGISTRY.to_owned(), url, ca_bundle: first.ca_bundle.clone(), nonce })
}

/// Whether a node runs Linux, as far as it says.
#[must_use]
pub fn is_linux(node: &Node) -> bool {
    let system = node.status.as_ref().and_then(|status| Some(status.node_info.as_ref()?.operating_system.as_str()));
    let label = node.labels().get("kubernetes.io/os").map(String::as_str);
    label.or(system).is_none_or(|system| system == "linux" || system.is_empty())
}

/// Whether a node's kubelet says that it is there.
#[must_use]
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn selects(selector: Option<&LabelSelector>, node: &Node) -> bool {
    let Some(selector) = selector else { return true };
    // A selector that cannot be read selects nothing; the apiserver's schema lets none through.
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(node.labels()))
}

/// Whether a node's files carry what its object says for a registry.
#[must_use]
pub fn in_force(node: &NodeMirror, entry: &NodeEntry) -> bool {
    let states = node.status.iter().flat_map(|status| &status.entries);
    let hash = entry.hash();
    states.into_iter().any(|state| {
        state.registry == entry.registry && state.state == EntryState::Configured && state.hash.as_ref() == Some(&hash)
    })
}

/// Whether every agent of a ready node has put this bundle of authorities in force wherever a server's entries are.
#[must_use]
pub fn all_trust(endpoint: &Endpoint, node_mirrors: &[&NodeMirror], nodes: &[&Node]) -> bool {
    let ready = |live: &&&NodeMirror| nodes.iter().any(|node| node.name_any() == live.name_any() && is_ready(node));
    let prefix = format!("{}/", endpoint.origin);
    node_mirrors.iter().filter(ready).filter(|live| has_agent(live)).all(|live| {
        let mut entries = live.spec.entries.iter().filter(|entry| entry.url.starts_with(&prefix)).peekable();
        entries.peek().is_none()
            || is_observed(live)
                && entries.all(|entry| entry.ca_bundle == endpoint.ca_bundle && !shows_another(live, entry))
    })
}

/// Whether a node's files carry another version of an entry.
fn shows_another(live: &NodeMirror, entry: &NodeEntry) -> bool {
    let states = live.status.iter().flat_map(|status| &status.entries);
    let hash = entry.hash();
    states
        .into_iter()
        .any(|state| state.registry == entry.registry && state.hash.as_ref().is_some_and(|shown| *shown != hash))
}

/// Whether a node was seen to pull what its object says.
#[must_use]
pub fn is_verified(node: &NodeMirror) -> bool {
    let seen = node.status.as_ref().and_then(|status| Some(&status.verified.as_ref()?.nonce));
    node.spec.canary.as_ref().is_some_and(|canary| seen == Some(&canary.nonce))
}

/// Whether a node's agent has read the object as it is now.
#[must_use]
pub fn is_observed(node: &NodeMirror) -> bool {
    let observed = node.status.as_ref().and_then(|status| status.observed_generation);
    observed.is_some() && observed >= node.metadata.generation
}

/// The nodes on which a repository's entries are, or may still be, in force: nodes that are not ready apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Nodes whose agents have still to act.
    pub reachable: BTreeSet<String>,
    /// Nodes that are not ready.
    pub unreachable: BTreeSet<String>,
}

/// Where a repository still shows in nodes' files. A node that is gone took its files along.
#[must_use]
pub fn remains(repository: &str, registries: &[String], node_mirrors: &[&NodeMirror], nodes: &[&Node]) -> Remains {
    let mut remains = Remains::default();
    for live in node_mirrors {
        let name = live.name_any();
        let Some(node) = nodes.iter().find(|node| node.name_any() == name) else { continue };
        let wanted = live.spec.entries.iter().any(|entry| entry.repository == repository);
        let given_on = |registry: &String| live.spec.entries.iter().any(|entry| entry.registry == *registry);
        let states = live.status.iter().flat_map(|status| &status.entries);
        let shown = states.into_iter().any(|state| {
            registries.contains(&state.registry) && !given_on(&state.registry) && state.state != EntryState::Conflict
        });
        if wanted || shown || (!is_observed(live) && has_agent(live)) {
            let set = if is_ready(node) { &mut remains.reachable } else { &mut remains.unreachable };
            set.insert(name);
        }
    }
    remains
}

/// Whether an agent ever reported for the node.
#[must_use]
pub fn has_agent(node: &NodeMirror) -> bool {
    node.status.as_ref().is_some_and(|status| status.observed_generation.is_some())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("should be an object of its kind")
    }

    fn node(name: &str, labels: &Value) -> Node {
        read(json!({"metadata": {"name": name, "uid": name, "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}))
    }

    fn mirror(name: &str, url: &str, nodes: &Value) -> Repository {
        Repository::Mirror(Arc::new(read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": name}, "spec": {"upstream": {"url": url}, "nodes": nodes}}))))
    }

    fn group(name: &str, members: &[&str], nodes: &Value) -> Repository {
        Repository::Group(Arc::new(read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "RepositoryGroup",
            "metadata": {"name": name}, "spec": {"members": members, "nodes": nodes}}))))
    }

    fn endpoint() -> Endpoint {
        Endpoint { origin: "https://10.96.0.7:5000".to_owned(), ca_bundle: Some("PEM".to_owned()) }
    }

    fn offer<'a>(repository: &'a Repository, endpoint: Option<&'a Endpoint>) -> Offer<'a> {
        Offer::new(repository, &Holders::new(), endpoint).expect("should have nodes")
    }

    #[test]
    fn an_entry_names_the_cache_and_where_the_runtime_goes_otherwise() {
        let mirror = mirror("hub", "https://registry-1.docker.io", &json!({}));
        let endpoint = endpoint();
        let plan = plan(&node("a", &json!({})), &[offer(&mirror, Some(&endpoint))], None);
        let entry = &plan.entries[0];
        assert_eq!(entry.url, "https://10.96.0.7:5000/repository/hub");
        assert_eq!((entry.registry.as_str(), entry.server.as_deref()), ("docker.io", None));
        assert_eq!(own_url("docker.io", "http://registry.lan:5000/").as_deref(), Some("http://registry.lan:5000"));
        let canary = canary(&node("a", &json!({})), &plan.entries, None).expect("should be one");
        assert_eq!(canary.url, "https://10.96.0.7:5000/repository/probe");
    }

    #[test]
    fn only_linux_nodes_that_the_selector_means_get_entries() {
        let selector = json!({"selector": {"matchLabels": {"pool": "x"}}});
        let mirror = mirror("hub", "https://a.example.com", &selector);
        let endpoint = endpoint();
        for (labels, entries) in [
            (json!({"pool": "x"}), 1),
            (json!({"pool": "y"}), 0),
            (json!({}), 0),
            (json!({"pool": "x", "kubernetes.io/os": "windows"}), 0),
        ] {
            let plan = plan(&node("a", &labels), &[offer(&mirror, Some(&endpoint))], None);
            assert_eq!(plan.entries.len(), entries, "{labels}");
        }
    }

    #[test]
    fn the_first_of_two_mirrors_has_a_registry_and_the_other_is_told() {
        let (one, two) = (
            mirror("one", "https://a.example.com", &json!({})),
            mirror("two", "https://b.example.com", &json!({"registries": ["a.example.com", "b.example.com"]})),
        );
        let endpoint = endpoint();
        let offers = [offer(&one, Some(&endpoint)), offer(&two, Some(&endpoint))];
        let plan = plan(&node("a", &json!({})), &offers, None);
        let given: Vec<_> =
            plan.entries.iter().map(|entry| (entry.registry.as_str(), entry.repository.as_str())).collect();
        assert_eq!(given, [("a.example.com", "one"), ("b.example.com", "two")]);
        let lost = Conflict {
            loser: "RegistryMirror/two".to_owned(),
            registry: "a.example.com".to_owned(),
            holder: "RegistryMirror one".to_owned(),
        };
        assert_eq!(plan.conflicts, [lost]);
    }

    #[test]
    fn a_group_offers_the_registries_that_it_names_and_falls_back_to_its_members_upstreams() {
        let hub = mirror("hub", "http://hub.lan:5000", &Value::Null);
        let all = group("all", &["hub", "gone"], &json!({"registries": ["hub.lan:5000", "quay.io"]}));
        let holders = crate::repository::holders(&[hub, all.clone()], &BTreeSet::new());
        let endpoint = endpoint();
        let offer = Offer::new(&all, &holders, Some(&endpoint)).expect("should have nodes");
        let plan = plan(&node("a", &json!({})), &[offer], None);
        let given: Vec<_> = plan
            .entries
            .iter()
            .map(|entry| (entry.registry.as_str(), entry.url.as_str(), entry.server.as_deref()))
            .collect();
        let url = "https://10.96.0.7:5000/repository/all";
        assert_eq!(given, [("hub.lan:5000", url, Some("http://hub.lan:5000")), ("quay.io", url, None)]);
    }

    #[test]
    fn what_is_not_known_now_stays_as_it_is() {
        let mirror = mirror("hub", "https://a.example.com", &json!({}));
        let endpoint = endpoint();
        let before = plan(&node("a", &json!({})), &[offer(&mirror, Some(&endpoint))], None).entries;
        let live = NodeMirror::new("a", crds::NodeMirrorSpec { entries: before.clone(), canary: None });
        let unknown = [offer(&mirror, None)];
        assert_eq!(plan(&node("a", &json!({})), &unknown, Some(&live)).entries, before);
        assert!(plan(&node("a", &json!({})), &unknown, None).entries.is_empty());
    }

    #[test]
    fn a_node_trusts_a_new_authority_once_its_files_name_it() {
        let node = node("a", &json!({}));
        let entry = json!({"registry": "r.io", "url": "https://10.96.0.7:5000/repository/hub", "repository": "hub",
            "caBundle": "PEM"});
        let hash = read::<NodeEntry>(entry.clone()).hash();
        let with = |observed: i64, states: Value| -> NodeMirror {
            read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "NodeMirror",
                "metadata": {"name": "a", "generation": 2}, "spec": {"entries": [entry]},
                "status": {"observedGeneration": observed, "entries": states}}))
        };
        let state = |state: &str, hash: Value| json!([{"registry": "r.io", "state": state, "hash": hash}]);
        for (live, trusts) in [
            (with(2, state("Configured", json!(hash))), true),
            (with(1, state("Configured", json!(hash))), false),
            (with(2, state("Configured", json!("older"))), false),
            // The new version is being probed; until it answers the old files are in force.
            (with(2, state("Pending", json!("older"))), false),
            (with(2, state("Pending", Value::Null)), true),
            (with(2, state("Withdrawn", Value::Null)), true),
        ] {
            assert_eq!(all_trust(&endpoint(), &[&live], &[&node]), trusts, "{live:?}");
            let other = Endpoint { ca_bundle: Some("OTHER".to_owned()), ..endpoint() };
            assert!(!all_trust(&other, &[&live], &[&node]));
        }
    }

    #[test]
    fn a_mirror_remains_until_each_agent_has_said_that_it_is_gone() {
        let node = node("a", &json!({}));
        let with = |entries: Value, generation: i64, observed: Value, states: Value| -> NodeMirror {
            read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "NodeMirror",
                "metadata": {"name": "a", "generation": generation}, "spec": {"entries": entries},
                "status": {"observedGeneration": observed, "entries": states}}))
        };
        let entry = json!([{"registry": "r.io", "url": "https://x/repository/hub", "repository": "hub"}]);
        let shown = json!([{"registry": "r.io", "state": "Configured"}]);
        for (live, remains_there) in [
            (with(entry, 1, json!(1), shown.clone()), true),
            (with(json!([]), 2, json!(1), shown.clone()), true),
            (with(json!([]), 2, json!(2), shown), true),
            (with(json!([]), 2, json!(2), json!([])), false),
            (with(json!([]), 2, Value::Null, json!([])), false),
        ] {
            let left = remains("hub", &["r.io".to_owned()], &[&live], &[&node]);
            assert_eq!(left.reachable.contains("a"), remains_there, "{live:?}");
            assert!(remains("hub", &["r.io".to_owned()], &[&live], &[]).reachable.is_empty(), "the node is gone");
        }
    }
}
