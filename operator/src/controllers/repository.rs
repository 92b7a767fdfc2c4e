//! A repository of any kind: its finalizer and its status. Its server's controller serves it, that of nodes switches nodes
//! over. May import every step.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::json;

use super::{Context, is_released, is_withdrawn, node_mirror::offers_of, set_finalizer, shown_on, waited_for_long};
use crate::{
    apply,
    cluster::{global, named},
    desired::{config_map, names, node_entries::plan},
    gather::{Gathered, gather},
    repository::{Holders, Repository},
    status::{self, NodeState, NodesView, Said, ServerView},
    validate::{login_for_nodes, validate},
};

/// Keeps a repository's finalizer for as long as nodes may need it, and says how it is.
pub async fn reconcile(
    context: &Context,
    repository: &Repository,
    all: &[Repository],
    holders: &Holders,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    if repository.is_leaving() {
        return release(context, repository, holders, leaving).await;
    }
    // One that gave its nodes up keeps the finalizer until they did too.
    let has = repository.has_finalizer(names::FINALIZER);
    let needed = repository.nodes().is_some() || (has && !is_released(context, repository, holders));
    if finalize(context, repository, needed).await? {
        return Ok(());
    }
    write_status(context, repository, all, holders, leaving).await
}

/// A repository that is being deleted goes when no node and no configuration knows it any more.
async fn release(
    context: &Context,
    repository: &Repository,
    holders: &Holders,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    if !leaving.contains(&repository.key()) || is_configured(context, repository) {
        return Ok(());
    }
    let left = shown_on(context, repository, holders).unreachable;
    if !left.is_empty() && waited_for_long(repository) {
        let nodes: Vec<String> = left.into_iter().collect();
        let note =
            format!("these nodes are not ready and keep their files until their agents are back: {}", nodes.join(", "));
        match repository {
            Repository::Mirror(it) => context.publish(it.as_ref(), false, "NodesLeft", &note).await,
            Repository::Hosted(it) => context.publish(it.as_ref(), false, "NodesLeft", &note).await,
            Repository::Group(it) => context.publish(it.as_ref(), false, "NodesLeft", &note).await,
        }
    }
    finalize(context, repository, false).await?;
    Ok(())
}

/// Adds or removes our finalizer. Returns whether it wrote.
async fn finalize(context: &Context, repository: &Repository, wanted: bool) -> Result<bool, apply::Error> {
    let cluster = &context.cluster;
    match repository {
        Repository::Mirror(it) => set_finalizer(context, &cluster.mirrors, it.as_ref(), wanted).await,
        Repository::Hosted(it) => set_finalizer(context, &cluster.hosted, it.as_ref(), wanted).await,
        Repository::Group(it) => set_finalizer(context, &cluster.groups, it.as_ref(), wanted).await,
    }
}

/// Whether the configuration of the repository's server still has it.
fn is_configured(context: &Context, repository: &Repository) -> bool {
    let name = names::objects(repository.server());
    let config_map = named(&context.cluster.config_maps, &context.settings.namespace, &name);
    let text = config_map.and_then(|config_map| config_map.data.as_ref()?.get(names::CONFIG_KEY).cloned());
    let server_runs = global(&context.cluster.servers, repository.server())
        .is_some_and(|server| server.metadata.deletion_timestamp.is_none());
    server_runs
        && config_map::documents(&text.unwrap_or_default()).iter().any(|document| {
            document["kind"] == repository.kind() && document["metadata"]["name"] == json!(repository.name())
        })
}

async fn write_status(
    context: &Context,
    repository: &Repository,
    all: &[Repository],
    holders: &Holders,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    let (cluster, namespace) = (&context.cluster, &context.settings.namespace);
    let server = global(&cluster.servers, repository.server());
    let heard = context.observations.of(repository.server());
    if server.is_some() && !heard.asked && repository.observed_generation() == repository.meta().generation {
        return Ok(());
    }
    let gathered = server.as_ref().map(|server| gather(cluster, namespace, server));
    let valid = gathered.as_ref().map(|gathered| validate(gathered, namespace, leaving));
    let endpoint = gathered.as_ref().and_then(super::cache_server::endpoint);
    let view = match (&server, &gathered, &valid) {
        (Some(server), _, _) if server.metadata.deletion_timestamp.is_some() => ServerView::Leaving,
        (Some(_), Some(gathered), Some(valid)) => {
            ServerView::There { valid, heard: &heard, endpoint: endpoint.as_ref(), trouble: trouble(gathered) }
        }
        _ => {
            let known: BTreeSet<String> = cluster.servers.state().iter().map(|server| server.name_any()).collect();
            ServerView::Missing(known.into_iter().collect())
        }
    };
    let nodes = repository.nodes().map(|_| match login_for_nodes(repository, holders) {
        Some(problem) => NodesView::Refused(problem),
        None => NodesView::Each(nodes(context, repository, all, holders, server.as_deref())),
    });
    let said = status::repository(repository, &view, nodes.as_ref(), Timestamp::now());
    tell(context, repository, said).await
}

/// Writes a status, and events of what changed in it.
async fn tell(context: &Context, repository: &Repository, said: Said) -> Result<(), apply::Error> {
    let (cluster, writer, held) = (&context.cluster, &context.writer, repository.status());
    let told: Vec<Condition> =
        status::transitions(repository.conditions(), &said.conditions).into_iter().cloned().collect();
    match repository {
        Repository::Mirror(it) => {
            if writer.apply_status(&cluster.mirrors, it.as_ref(), &said.status, &held).await? {
                context.tell(it.as_ref(), told).await;
            }
        }
        Repository::Hosted(it) => {
            if writer.apply_status(&cluster.hosted, it.as_ref(), &said.status, &held).await? {
                context.tell(it.as_ref(), told).await;
            }
        }
        Repository::Group(it) => {
            if writer.apply_status(&cluster.groups, it.as_ref(), &said.status, &held).await? {
                context.tell(it.as_ref(), told).await;
            }
        }
    }
    Ok(())
}

/// What the server's own status says is wrong with it.
fn trouble(gathered: &Gathered) -> Option<String> {
    let conditions = &gathered.server.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == crds::conditions::READY)?;
    (ready.status != "True").then(|| ready.message.clone())
}

/// How each node that a repository means fares with it, by name.
fn nodes(
    context: &Context,
    repository: &Repository,
    all: &[Repository],
    holders: &Holders,
    server: Option<&crds::CacheServer>,
) -> Vec<(String, NodeState)> {
    if is_withdrawn(repository, server) {
        return Vec::new();
    }
    let unknown = BTreeMap::new();
    let offers = offers_of(all, holders, &unknown, &context.cluster);
    let key = repository.key();
    let Some(own) = offers.iter().find(|offer| offer.repository.key() == key) else {
        tracing::debug!(repository = key, "a repository without a registry, or without its name, means no node");
        return Vec::new();
    };
    let mut states = Vec::new();
    for node in super::sorted(context.cluster.nodes.state()) {
        if !own.means(&node) {
            continue;
        }
        let live = global(&context.cluster.node_mirrors, &node.name_any());
        let conflicts = plan(&node, &offers, live.as_deref()).conflicts;
        let taken = conflicts.iter().find(|conflict| conflict.loser == key);
        let state = status::node_state(&repository.name(), &own.registries, taken, &node, live.as_deref());
        states.push((node.name_any(), state));
    }
    states
}
