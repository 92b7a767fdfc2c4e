//! The controllers: each is a one-page reconcile over what is watched, and one loop drives them, so that no two of them
//! ever write at the same time. May import every step.
//!
//! Read in this order: [`cache_server`], [`repository`], [`node_mirror`], [`default_server`] (made once, at start).

pub mod cache_server;
pub mod repository;
pub mod node_mirror;
pub mod default_server;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::CacheServer;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder},
};
use tokio::time::{sleep, timeout};

use crate::{
    apply::{self, Writer},
    causes::chain,
    cluster::Cluster,
    desired::{
        names,
        node_entries::{Remains, remains},
    },
    gather::{name_holders, repositories},
    issuer::Issuer,
    metrics::Metrics,
    observe::Observations,
    repository::{Holders, Repository, registry},
    requeue::{Failure, Requeue},
    settings::Settings,
};

/// How often everything is looked at although nothing changed: certificates age, waits end.
const RESYNC: Duration = Duration::from_secs(15);
/// For how long changes are collected before they are looked at.
const GATHER: Duration = Duration::from_millis(50);
/// For how long a node that is not ready is waited for before its files are left to themselves.
const UNREACHABLE_GRACE: Duration = Duration::from_mins(5);

/// What all controllers share.
pub struct Context {
    /// The environment's settings.
    pub settings: Settings,
    /// What the apiserver holds.
    pub cluster: Cluster,
    /// What cache servers say.
    pub observations: Observations,
    /// The only writer.
    pub writer: Writer,
    /// Who signs tokens of service accounts.
    pub issuer: Issuer,
    /// Events.
    pub recorder: Recorder,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// When this process began: the moment that all waits are counted from.
    pub began: Instant,
}

impl Context {
    /// The time since this process began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells of conditions that changed. An event that cannot be written is no reason to stop.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, transitions: Vec<Condition>) {
        for condition in transitions {
            let good = condition.status == "True";
            let note = format!("{}: {}", condition.type_, condition.message);
            self.publish(object, good, &condition.reason, &note).await;
        }
    }

    /// Writes one event.
    pub async fn publish<K: Resource<DynamicType = ()>>(&self, object: &K, good: bool, reason: &str, note: &str) {
        let event = Event {
            type_: if good { EventType::Normal } else { EventType::Warning },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference: ObjectReference = object.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(reason, error = %chain(&error), "failed to write an event");
        }
    }
}

/// Drives the controllers until the process ends: after each change, and every 15 s.
pub async fn run(context: &Context) {
    let mut requeue = Requeue::default();
    let mut nodes = node_mirror::Memory::default();
    let mut changes = context.cluster.changes();
    loop {
        changes.mark_unchanged();
        let began = Instant::now();
        pass(context, &mut requeue, &mut nodes).await;
        context.metrics.passed(began.elapsed());
        let pause = requeue.next().map_or(RESYNC, |next| next.saturating_sub(context.now()).max(GATHER).min(RESYNC));
        if let Ok(changed) = timeout(pause, changes.changed()).await {
            if changed.is_err() {
                return;
            }
            sleep(GATHER).await;
        }
    }
}

async fn pass(context: &Context, requeue: &mut Requeue, nodes: &mut node_mirror::Memory) {
    let leaving = leaving(context);
    let servers = context.cluster.servers.state();
    context.observations.keep(&servers.iter().map(|server| server.name_any()).collect());
    for server in sorted(servers) {
        let (key, version) = (format!("CacheServer/{}", server.name_any()), version(&server.metadata));
        if requeue.is_due(&key, &version, context.now()) {
            let outcome = cache_server::reconcile(context, &server, &leaving).await;
            settle(context, requeue, "cache_server", &key, &version, outcome);
        }
    }
    let key = "NodeMirror/".to_owned();
    if requeue.is_due(&key, "", context.now()) {
        let outcome = node_mirror::reconcile(context, &leaving, nodes).await;
        settle(context, requeue, "node_mirror", &key, "", outcome);
    }
    // Servers and nodes were written to since.
    let (all, holders) = (repositories(&context.cluster), name_holders(&context.cluster));
    for repository in &all {
        let (key, version) = (repository.key(), version(repository.meta()));
        if requeue.is_due(&key, &version, context.now()) {
            let outcome = repository::reconcile(context, repository, &all, &holders, &leaving).await;
            settle(context, requeue, controller_of(repository), &key, &version, outcome);
        }
    }
}

/// The label in the metrics.
const fn controller_of(repository: &Repository) -> &'static str {
    match repository {
        Repository::Mirror(_) => "registry_mirror",
        Repository::Hosted(_) => "hosted_repository",
        Repository::Group(_) => "repository_group",
    }
}

fn settle(
    context: &Context,
    requeue: &mut Requeue,
    controller: &'static str,
    key: &str,
    version: &str,
    outcome: Result<(), apply::Error>,
) {
    context.metrics.reconciled(controller, outcome.is_ok());
    match outcome {
        Ok(()) => requeue.succeeded(key),
        Err(error) => {
            tracing::warn!(object = key, error = %chain(&error), "failed to bring an object in line, trying again");
            let failure = if error.is_refusal() { Failure::Refused } else { Failure::Passing };
            requeue.failed(key, version, failure, context.now());
        }
    }
}

/// The keys of the repositories that are on their way out and show on no node any more: they leave the configuration.
fn leaving(context: &Context) -> BTreeSet<String> {
    let holders = name_holders(&context.cluster);
    let mut gone = repositories(&context.cluster);
    gone.retain(|repository| repository.is_leaving() && is_released(context, repository, &holders));
    gone.iter().map(Repository::key).collect()
}

/// Where a repository still shows in nodes' files. What they name by its name is another one's if that has the name.
fn shown_on(context: &Context, repository: &Repository, holders: &Holders) -> Remains {
    if holders.get(&repository.name()).is_some_and(|holder| !holder.is_same(repository)) {
        return Remains::default();
    }
    let node_mirrors = context.cluster.node_mirrors.state();
    let nodes = context.cluster.nodes.state();
    let mut registries = repository.nodes().map(|nodes| nodes.registries.clone()).unwrap_or_default();
    if let Repository::Mirror(mirror) = repository {
        registries.extend(registry(mirror));
    }
    let node_mirrors: Vec<_> = node_mirrors.iter().map(AsRef::as_ref).collect();
    let nodes: Vec<_> = nodes.iter().map(AsRef::as_ref).collect();
    remains(&repository.name(), &registries, &node_mirrors, &nodes)
}

/// Whether no node's files need a repository any more, nodes that were away for too long apart. None ever needs a hosted one.
fn is_released(context: &Context, repository: &Repository, holders: &Holders) -> bool {
    if let Repository::Hosted(_) = repository {
        return true;
    }
    let remains = shown_on(context, repository, holders);
    remains.reachable.is_empty() && (remains.unreachable.is_empty() || waited_for_long(repository))
}

fn waited_for_long(repository: &Repository) -> bool {
    is_long_ago(repository.meta().deletion_timestamp.as_ref())
}

fn is_long_ago(since: Option<&Time>) -> bool {
    since.is_some_and(|since| {
        let waited = jiff::Timestamp::now().duration_since(since.0);
        waited.unsigned_abs() >= UNREACHABLE_GRACE && !waited.is_negative()
    })
}

/// Whether nodes shall not pull through a repository any more: it or its server is on its way out.
fn is_withdrawn(repository: &Repository, server: Option<&CacheServer>) -> bool {
    repository.is_leaving() || server.is_some_and(|server| server.metadata.deletion_timestamp.is_some())
}

/// Adds or removes our finalizer. Returns whether it wrote.
async fn set_finalizer<K: crate::cluster::Kind>(
    context: &Context,
    store: &kube::runtime::reflector::Store<K>,
    object: &K,
    wanted: bool,
) -> Result<bool, apply::Error> {
    let has = object.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    if has == wanted {
        return Ok(false);
    }
    let mut finalizers: Vec<String> = object.finalizers().to_vec();
    if wanted {
        finalizers.push(names::FINALIZER.to_owned());
    } else {
        finalizers.retain(|finalizer| finalizer != names::FINALIZER);
    }
    context.writer.patch_metadata(store, object, serde_json::json!({"finalizers": finalizers})).await?;
    Ok(true)
}

/// A version of what people write: a status is none.
fn version(metadata: &kube::api::ObjectMeta) -> String {
    let annotations = serde_json::json!(metadata.annotations);
    format!("{:?}/{}/{}", metadata.generation, annotations, metadata.deletion_timestamp.is_some())
}

fn sorted<K: ResourceExt>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.sort_by_key(|object| object.name_any());
    objects
}
