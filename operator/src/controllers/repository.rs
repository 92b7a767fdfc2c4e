//! A `RegistryMirror`: its finalizer and its status. Its server's controller serves it, that of nodes switches nodes over.
//! May import every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crds::RegistryMirror;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;

use super::{Context, is_released, is_withdrawn, node_mirror::offers_of, set_finalizer, shown_on, waited_for_long};
use crate::{
    apply,
    cluster::global,
    desired::{
        config_map, names,
        node_entries::{Offer, plan},
    },
    gather::{Gathered, gather},
    status::{self, NodeState, ServerView},
    validate::{registry, validate},
};

/// Keeps a mirror's finalizer for as long as nodes may need it, and says how it is.
pub async fn reconcile(
    context: &Context,
    mirror: &Arc<RegistryMirror>,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    let mirrors = &context.cluster.mirrors;
    if mirror.metadata.deletion_timestamp.is_some() {
        return release(context, mirror, leaving).await;
    }
    // One that gave its nodes up keeps the finalizer until they did too.
    let has = mirror.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    let needed = mirror.spec.nodes.is_some() || (has && !is_released(context, mirror));
    if set_finalizer(context, mirrors, mirror.as_ref(), needed).await? {
        return Ok(());
    }
    write_status(context, mirror, leaving).await
}

/// A mirror that is being deleted goes when no node and no configuration knows it any more.
async fn release(context: &Context, mirror: &RegistryMirror, leaving: &BTreeSet<String>) -> Result<(), apply::Error> {
    let name = mirror.name_any();
    if !leaving.contains(&name) || is_configured(context, mirror) {
        return Ok(());
    }
    let left = shown_on(context, mirror).unreachable;
    if !left.is_empty() && waited_for_long(mirror) {
        let nodes: Vec<String> = left.into_iter().collect();
        let note =
            format!("these nodes are not ready and keep their files until their agents are back: {}", nodes.join(", "));
        context.publish(mirror, false, "NodesLeft", &note).await;
    }
    set_finalizer(context, &context.cluster.mirrors, mirror, false).await?;
    Ok(())
}

/// Whether the configuration of the mirror's server still has it.
fn is_configured(context: &Context, mirror: &RegistryMirror) -> bool {
    let name = names::objects(&mirror.spec.server);
    let config_map = crate::cluster::named(&context.cluster.config_maps, &context.settings.namespace, &name);
    let text = config_map.and_then(|config_map| config_map.data.as_ref()?.get(names::CONFIG_KEY).cloned());
    let server_runs = global(&context.cluster.servers, &mirror.spec.server)
        .is_some_and(|server| server.metadata.deletion_timestamp.is_none());
    server_runs
        && config_map::documents(&text.unwrap_or_default()).iter().any(|document| {
            document["kind"] == "RegistryMirror" && document["metadata"]["name"] == json!(mirror.name_any())
        })
}

async fn write_status(
    context: &Context,
    mirror: &Arc<RegistryMirror>,
    leaving: &BTreeSet<String>,
) -> Result<(), apply::Error> {
    let (cluster, namespace) = (&context.cluster, &context.settings.namespace);
    let held = mirror.status.clone().unwrap_or_default();
    let server = global(&cluster.servers, &mirror.spec.server);
    let heard = context.observations.of(&mirror.spec.server);
    if server.is_some() && !heard.asked && held.observed_generation == mirror.metadata.generation {
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
    let nodes = mirror.spec.nodes.as_ref().map(|_| nodes(context, mirror, server.as_deref()));
    let status = status::mirror(mirror, &view, nodes.as_deref(), Timestamp::now());
    let transitions = status::transitions(&held.conditions, &status.conditions).into_iter().cloned().collect();
    if context.writer.apply_status(&cluster.mirrors, mirror.as_ref(), &json!(status), &json!(held)).await? {
        context.tell(mirror.as_ref(), transitions).await;
    }
    Ok(())
}

/// What the server's own status says is wrong with it.
fn trouble(gathered: &Gathered) -> Option<String> {
    let conditions = &gathered.server.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == crds::conditions::READY)?;
    (ready.status != "True").then(|| ready.message.clone())
}

/// How each node that a mirror means fares with it, by name.
fn nodes(context: &Context, mirror: &RegistryMirror, server: Option<&crds::CacheServer>) -> Vec<(String, NodeState)> {
    let name = mirror.name_any();
    if is_withdrawn(mirror, server) {
        return Vec::new();
    }
    let mirrors = context.cluster.mirrors.state();
    let unknown = BTreeMap::new();
    let offers: Vec<Offer<'_>> = offers_of(&mirrors, &unknown, &context.cluster);
    let Some(own) = offers.iter().find(|offer| offer.mirror.name_any() == name) else {
        let registry = registry(mirror);
        tracing::debug!(mirror = name, ?registry, "a mirror without a registry means no node");
        return Vec::new();
    };
    let registries = own.registries();
    let mut states = Vec::new();
    for node in super::sorted(context.cluster.nodes.state()) {
        if !own.means(&node) {
            continue;
        }
        let live = global(&context.cluster.node_mirrors, &node.name_any());
        let taken = plan(&node, &offers, live.as_deref()).conflicts.into_iter().find(|(loser, _, _)| *loser == name);
        let taken = taken.map(|(_, registry, holder)| (registry, holder));
        let state = status::node_state(&name, &registries, taken, &node, live.as_deref());
        states.push((node.name_any(), state));
    }
    states
}
