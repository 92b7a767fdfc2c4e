//! `NodeMirror`s: what each node shall write, in waves, and the pull that proves it. May import every step.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use crds::{NodeMirror, NodeMirrorSpec, NodeMirrorStatus, conditions, node_mirror::Verified};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{Context, is_withdrawn, sorted};
use crate::{
    apply,
    cluster::{Cluster, global, named},
    desired::{
        canary::{self, Action, Attempts},
        names,
        node_entries::{Endpoint, Offer, canary as canary_of, is_ready, plan},
        rollout::{Candidate, next_wave},
    },
    gather::{gather, name_holders, repositories},
    repository::{Holders, Repository},
    status::{Fact, conditions_of, transitions},
    validate::{Verdict, login_for_nodes, validate},
};

/// What this process knows of nodes beside their objects.
#[derive(Default)]
pub struct Memory {
    changed: HashMap<String, Duration>,
    attempts: HashMap<String, Attempts>,
}

/// Gives the next nodes what they shall write, and takes the next step of each node's canary.
pub async fn reconcile(context: &Context, leaving: &BTreeSet<String>, memory: &mut Memory) -> Result<(), apply::Error> {
    let endpoints = endpoints(context, leaving);
    let (all, holders) = (repositories(&context.cluster), name_holders(&context.cluster));
    let offers = offers_of(&all, &holders, &endpoints, &context.cluster);
    roll_out(context, &offers, memory).await?;
    for live in sorted(context.cluster.node_mirrors.state()) {
        verify(context, &live, memory).await?;
    }
    Ok(())
}

/// Where each repository is served, by its key, as far as its server has loaded it, or had once. Others nodes keep as they are.
fn endpoints(context: &Context, leaving: &BTreeSet<String>) -> BTreeMap<String, Endpoint> {
    let mut found = BTreeMap::new();
    let namespace = &context.settings.namespace;
    let node_mirrors = context.cluster.node_mirrors.state();
    for server in context.cluster.servers.state() {
        let gathered = gather(&context.cluster, namespace, &server);
        let Some(endpoint) = super::cache_server::endpoint(&gathered) else { continue };
        let heard = context.observations.of(&server.name_any());
        let verdicts = validate(&gathered, namespace, leaving).verdicts;
        for repository in &gathered.repositories {
            let (key, name) = (repository.key(), repository.name());
            let Some(verdict) = verdicts.get(&key) else { continue };
            let known = node_mirrors.iter().any(|live| live.spec.entries.iter().any(|entry| entry.repository == name));
            let served = !matches!(verdict, Verdict::Refused(_)) && (known || heard.serves(repository.kind(), &name));
            if served {
                found.insert(key, endpoint.clone());
            }
        }
    }
    found
}

/// What repositories offer to nodes, the older first. One whose server is not known now has no endpoint; one that would ask
/// nodes to log in offers nothing, nor does one whose name is another's.
pub(super) fn offers_of<'a>(
    all: &'a [Repository],
    holders: &Holders,
    endpoints: &'a BTreeMap<String, Endpoint>,
    cluster: &Cluster,
) -> Vec<Offer<'a>> {
    let mut offers: Vec<Offer<'a>> = all
        .iter()
        .filter(|repository| {
            let server = global(&cluster.servers, repository.server());
            let has_its_name = holders.get(&repository.name()).is_some_and(|holder| holder.is_same(repository));
            has_its_name
                && server.is_some()
                && !is_withdrawn(repository, server.as_deref())
                && login_for_nodes(repository, holders).is_none()
        })
        .filter_map(|repository| Offer::new(repository, holders, endpoints.get(&repository.key())))
        .collect();
    offers.sort_by_key(|offer| offer.repository.age());
    offers
}

async fn roll_out(context: &Context, offers: &[Offer<'_>], memory: &mut Memory) -> Result<(), apply::Error> {
    let nodes = sorted(context.cluster.nodes.state());
    let names: Vec<String> = nodes.iter().map(|node| node.name_any()).collect();
    let lives: Vec<Option<Arc<NodeMirror>>> =
        names.iter().map(|name| global(&context.cluster.node_mirrors, name)).collect();
    let candidates: Vec<Candidate<'_>> = nodes
        .iter()
        .zip(&names)
        .zip(&lives)
        .filter(|((node, _), _)| node.metadata.deletion_timestamp.is_none())
        .map(|((node, name), live)| {
            let entries = plan(node, offers, live.as_deref()).entries;
            let canary = canary_of(node, &entries, live.as_deref());
            let percents = offers.iter().filter(|offer| offer.means(node));
            Candidate {
                name,
                ready: is_ready(node),
                live: live.as_deref(),
                wanted: NodeMirrorSpec { entries, canary },
                changed_ago: memory.changed.get(name).map(|at| context.now().saturating_sub(*at)),
                percent: percents.map(|offer| offer.nodes.rollout.max_unavailable_percent).min().unwrap_or(100),
            }
        })
        .collect();
    for name in next_wave(&candidates) {
        let candidate = candidates.iter().find(|candidate| candidate.name == name);
        let node = nodes.iter().find(|node| node.name_any() == name);
        let (Some(candidate), Some(node)) = (candidate, node) else { continue };
        context.writer.apply(&context.cluster.node_mirrors, &object(node, &candidate.wanted)).await?;
        memory.changed.insert(name.to_owned(), context.now());
    }
    memory.changed.retain(|name, _| names.contains(name));
    memory.attempts.retain(|name, _| names.contains(name));
    Ok(())
}

/// The object of a node: it goes with the node.
fn object(node: &Node, spec: &NodeMirrorSpec) -> Value {
    json!({
        "apiVersion": NodeMirror::api_version(&()),
        "kind": NodeMirror::kind(&()),
        "metadata": {
            "name": node.name_any(),
            "labels": {
                "app.kubernetes.io/managed-by": "entrepot-operator",
                "app.kubernetes.io/part-of": "entrepot",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name_any(), "uid": node.uid()}],
        },
        "spec": spec,
    })
}

async fn verify(context: &Context, live: &Arc<NodeMirror>, memory: &mut Memory) -> Result<(), apply::Error> {
    let name = live.name_any();
    let node = global(&context.cluster.nodes, &name);
    let pod = named(&context.cluster.canaries, &context.settings.node_namespace, &names::canary(&name));
    let pod = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let seen = live.spec.canary.as_ref().and_then(|canary| seen(context, &canary.nonce));
    let attempts = memory.attempts.entry(name).or_default();
    let now = context.now();
    let canaries = &context.cluster.canaries;
    match canary::next(live, node.as_deref(), pod.as_deref(), seen.is_some(), attempts, now) {
        Action::None => Ok(()),
        Action::Start => match &live.spec.canary {
            Some(canary) => {
                let pod = canary::pod(live, canary, &context.settings.node_namespace);
                context.writer.create(canaries, &pod).await
            }
            None => Ok(()),
        },
        Action::Remove => match &pod {
            Some(pod) => context.writer.delete(canaries, pod.as_ref()).await,
            None => Ok(()),
        },
        Action::Verified => {
            let nonce = live.spec.canary.as_ref().map(|canary| canary.nonce.clone()).unwrap_or_default();
            let time = seen.and_then(|time| time.parse().ok()).unwrap_or_else(Timestamp::now);
            let fact = Fact::yes(conditions::VERIFIED, "CanarySeen", "a pull of this node was seen at the cache");
            write(context, live, Some(Verified { nonce, time: Time(time) }), fact).await
        }
        Action::Outdated => {
            let message = "the node's configuration, or the cache's address, changed since a pull was seen; the next one is to come";
            write(context, live, None, Fact::unknown(conditions::VERIFIED, "Outdated", message)).await
        }
        Action::Failed => {
            let nonce = live.spec.canary.as_ref().map(|canary| canary.nonce.clone()).unwrap_or_default();
            attempts.failed(&nonce, now);
            let wait = attempts.not_before.saturating_sub(now).as_secs();
            let message = format!(
                "the runtime of {} did not ask the cache within a minute; check that it reads its certs.d (containerd's config_path, then a restart of containerd) and reaches the cache's cluster IP; next try in {wait} s",
                live.name_any()
            );
            write(context, live, None, Fact::no(conditions::VERIFIED, "CanaryNotSeen", message)).await
        }
    }
}

/// When any cache server saw a nonce.
fn seen(context: &Context, nonce: &str) -> Option<String> {
    context
        .cluster
        .servers
        .state()
        .iter()
        .find_map(|server| context.observations.of(&server.name_any()).report?.probes.get(nonce).cloned())
}

/// Writes the operator's part of a node's status: the agent's is its own.
async fn write(
    context: &Context,
    live: &Arc<NodeMirror>,
    verified: Option<Verified>,
    fact: Fact,
) -> Result<(), apply::Error> {
    let held = live.status.clone().unwrap_or_default();
    let ours: Vec<Condition> =
        held.conditions.iter().filter(|condition| condition.type_ == conditions::VERIFIED).cloned().collect();
    let new = conditions_of(&ours, vec![fact], live.metadata.generation, Timestamp::now());
    let told = transitions(&ours, &new).into_iter().cloned().collect();
    let status = json!(NodeMirrorStatus { verified, conditions: new, ..NodeMirrorStatus::default() });
    let held = json!(NodeMirrorStatus { verified: held.verified, conditions: ours, ..NodeMirrorStatus::default() });
    if context.writer.apply_status(&context.cluster.node_mirrors, live.as_ref(), &status, &held).await? {
        context.tell(live.as_ref(), told).await;
    }
    Ok(())
}
