//! What is said of objects: conditions, counts, events. Pure. May import `gather`, `observe`, `repository`, `validate` and
//! `desired`.

use std::collections::BTreeSet;

use crds::{
    CacheServerStatus, HostedRepositoryStatus, RegistryMirror, RegistryMirrorStatus, RepositoryGroupStatus, conditions,
    node_mirror::EntryState, nodes::NodeCounts,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    desired::{
        claim::claim_name,
        node_entries::{Conflict, Endpoint, in_force, is_ready, is_verified},
    },
    gather::Gathered,
    observe::Heard,
    repository::{Repository, registry},
    validate::{Problem, Valid, Verdict},
};

/// How many nodes a message names.
const NAMED_NODES: usize = 3;

/// One thing that is the case or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Fact {
    /// It is the case.
    #[must_use]
    pub fn yes(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status: "True", reason: reason.to_owned(), message: message.into() }
    }

    /// It is not.
    #[must_use]
    pub fn no(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status: "False", reason: reason.to_owned(), message: message.into() }
    }

    /// Nobody knows.
    #[must_use]
    pub fn unknown(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { kind, status: "Unknown", reason: reason.to_owned(), message: message.into() }
    }
}

/// The conditions that say these facts. A time moves only when a status does.
#[must_use]
pub fn conditions_of(held: &[Condition], facts: Vec<Fact>, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    // The apiserver keeps whole seconds.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    facts
        .into_iter()
        .map(|fact| {
            let before = held.iter().find(|condition| condition.type_ == fact.kind && condition.status == fact.status);
            Condition {
                last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
                message: fact.message,
                observed_generation: generation,
                reason: fact.reason,
                status: fact.status.to_owned(),
                type_: fact.kind.to_owned(),
            }
        })
        .collect()
}

/// Reasons that pass by themselves in seconds: an event of each would only hide the others.
const PASSING: [&str; 2] = ["Loading", "RollingOut"];

/// The conditions that became another status or another reason: those are worth an event.
#[must_use]
pub fn transitions<'a>(held: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    let same = |one: &Condition| {
        held.iter().any(|held| held.type_ == one.type_ && held.status == one.status && held.reason == one.reason)
    };
    new.iter()
        .filter(|condition| {
            condition.status != "Unknown"
                && condition.type_ != conditions::PROGRESSING
                && !PASSING.contains(&condition.reason.as_str())
                && !same(condition)
        })
        .collect()
}

/// The status of a cache server. `failure`: why its objects could not be written, reason and message.
#[must_use]
pub fn server(
    gathered: &Gathered,
    valid: &Valid,
    heard: &Heard,
    endpoint: Option<&Endpoint>,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> CacheServerStatus {
    let server = &gathered.server;
    let held = server.status.clone().unwrap_or_default();
    let generation = server.metadata.generation;
    let pods = pod_trouble(gathered);
    let available = deployment_is_available(gathered);
    let ready = if let Some((reason, message)) = failure {
        Fact::no(conditions::READY, reason, message)
    } else if let Some(problem) = valid.server.first_problem() {
        Fact::no(conditions::READY, problem.reason(), problem.to_string())
    } else if let Some(message) = heard.mistake("CacheServer", &server.name_any(), generation) {
        Fact::no(conditions::READY, "Mistake", message)
    } else if let Some(missing) = default_repository_missing(gathered, valid) {
        Fact::no(conditions::READY, "DefaultRepositoryNotServed", missing)
    } else if heard.report.is_none() {
        Fact::no(conditions::READY, "NotRunning", pods.unwrap_or_else(|| "its pod does not answer yet".to_owned()))
    } else if heard.has_loaded("CacheServer", &server.name_any(), generation) {
        Fact::yes(conditions::READY, "Serving", "it serves what is written here")
    } else {
        Fact::no(conditions::READY, "Loading", "its pod has not loaded this version yet; that takes a few seconds")
    };
    let progressing = if available {
        Fact::no(conditions::PROGRESSING, "Settled", "the Deployment is as it should be")
    } else {
        Fact::yes(conditions::PROGRESSING, "RollingOut", "the Deployment is not available yet")
    };
    let facts = vec![ready, progressing, storage(gathered, heard)];
    CacheServerStatus {
        observed_generation: generation,
        endpoint: endpoint.map(|endpoint| endpoint.origin.clone()),
        repository_count: u32::try_from(valid.repositories.len()).ok(),
        repositories: valid.repositories.clone(),
        registries: valid.holders.clone(),
        conditions: conditions_of(&held.conditions, facts, generation, now),
    }
}

fn default_repository_missing(gathered: &Gathered, valid: &Valid) -> Option<String> {
    let wanted = gathered.server.spec.default_repository.as_ref()?;
    let served = valid.served();
    let known = if served.is_empty() { "none".to_owned() } else { served.join(", ") };
    (!served.contains(wanted)).then(|| {
        format!("spec.defaultRepository must be the name of a repository of this cache server ({known}), got {wanted:?}; everything else is served")
    })
}

fn deployment_is_available(gathered: &Gathered) -> bool {
    gathered.deployment.as_ref().is_some_and(|deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.observed_generation >= deployment.metadata.generation
            && status.available_replicas.unwrap_or_default() > 0
            && status.updated_replicas.unwrap_or_default() > 0
    })
}

/// Why a pod is not running, as far as its kubelet or the scheduler says.
fn pod_trouble(gathered: &Gathered) -> Option<String> {
    gathered.pods.iter().find_map(|pod| {
        let status = pod.status.as_ref()?;
        let waiting = status.container_statuses.iter().flatten().find_map(|container| {
            let waiting = container.state.as_ref()?.waiting.as_ref()?;
            Some(format!("{}: {}", waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or("no message")))
        });
        let unscheduled = status.conditions.iter().flatten().find_map(|condition| {
            let stuck = condition.type_ == "PodScheduled" && condition.status == "False";
            stuck.then(|| format!("not scheduled: {}", condition.message.as_deref().unwrap_or("no message")))
        });
        waiting.or(unscheduled).map(|why| format!("the pod {} does not run: {why}", pod.name_any()))
    })
}

fn storage(gathered: &Gathered, heard: &Heard) -> Fact {
    let kind = conditions::STORAGE_HEALTHY;
    let problem = heard.report.as_ref().and_then(|report| report.store.problem.clone());
    if let Some(name) = claim_name(&gathered.server) {
        let Some(claim) = &gathered.claim else {
            return Fact::no(
                kind,
                "ClaimNotFound",
                format!(
                    "there is no PersistentVolumeClaim {name}; create it, or correct spec.storage.volume.existingClaim"
                ),
            );
        };
        let phase = claim.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        match phase.as_str() {
            "Bound" => {}
            "Lost" => {
                return Fact::no(
                    kind,
                    "ClaimLost",
                    format!(
                        "the volume behind the claim {name} is gone; restore it, or delete the claim to begin with an empty one"
                    ),
                );
            }
            _ => {
                let class = match class.as_deref() {
                    None => "it has no storage class and the cluster no default one; mark a StorageClass as the default, or make a volume for it by hand".to_owned(),
                    Some("") => "it waits for a volume made by hand".to_owned(),
                    Some(class) => format!("it waits for the provisioner of the StorageClass {class}; see `kubectl describe pvc {name} -n {}`", claim.namespace().unwrap_or_default()),
                };
                return Fact::no(kind, "ClaimPending", format!("the claim {name} has no volume: {class}"));
            }
        }
    }
    match (problem, &heard.report) {
        (Some(problem), _) => Fact::no(kind, "StoreProblem", problem),
        (None, Some(_)) => Fact::yes(kind, "Healthy", "it can keep what it fetches"),
        (None, None) => Fact::unknown(kind, "NotRunning", "the cache server does not answer yet"),
    }
}

/// How the server of a repository is, as its repositories see it.
#[derive(Clone, Debug)]
pub enum ServerView<'a> {
    /// There is none of that name. The names of those that there are.
    Missing(Vec<String>),
    /// It is being deleted.
    Leaving,
    /// It is there.
    There {
        /// What was judged of its repositories.
        valid: &'a Valid,
        /// What it says.
        heard: &'a Heard,
        /// Where it is.
        endpoint: Option<&'a Endpoint>,
        /// Why it does not run, if it does not.
        trouble: Option<String>,
    },
}

/// How one node fares with a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It was seen to pull through it.
    Verified,
    /// Its files name it.
    Configured(String),
    /// It left it out because it did not answer.
    Withdrawn(String),
    /// The files could not be written, or are someone else's.
    Failed(String),
    /// Another repository has the registry here.
    Taken(String),
    /// Nothing yet.
    Pending(String),
}

/// How nodes fare with a repository that wants some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodesView {
    /// None is switched over, since that would do no good.
    Refused(Problem),
    /// Each node that is meant, by name.
    Each(Vec<(String, NodeState)>),
}

/// A status as it shall be.
#[derive(Clone, Debug)]
pub struct Said {
    /// The whole of it.
    pub status: Value,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The status of a repository. `nodes`: `None` without `spec.nodes`.
#[must_use]
pub fn repository(repository: &Repository, view: &ServerView<'_>, nodes: Option<&NodesView>, now: Timestamp) -> Said {
    let held = repository.conditions();
    let observed_generation = repository.meta().generation;
    let upstream = match repository {
        Repository::Mirror(mirror) => Some(upstream(mirror, view, held)),
        Repository::Hosted(_) | Repository::Group(_) => None,
    };
    let ready = ready(repository, view, upstream.as_ref());
    let progressing = match ready.reason.as_str() {
        "Loading" | "ServerNotRunning" => Fact::yes(conditions::PROGRESSING, &ready.reason, ready.message.clone()),
        _ => Fact::no(conditions::PROGRESSING, "Settled", "nothing is under way"),
    };
    let mut facts = vec![ready, progressing];
    facts.extend(upstream);
    facts.extend(nodes.map(nodes_configured));
    let endpoint = match view {
        ServerView::There { endpoint, .. } => endpoint.map(|endpoint| endpoint.repository(&repository.name())),
        _ => None,
    };
    let conditions = conditions_of(held, facts, observed_generation, now);
    let said = conditions.clone();
    let nodes = nodes.map(counts);
    let status = match repository {
        Repository::Mirror(mirror) => {
            json!(RegistryMirrorStatus { observed_generation, registry: registry(mirror), endpoint, nodes, conditions })
        }
        Repository::Hosted(_) => json!(HostedRepositoryStatus { observed_generation, endpoint, conditions }),
        Repository::Group(_) => json!(RepositoryGroupStatus { observed_generation, endpoint, nodes, conditions }),
    };
    Said { status, conditions: said }
}

fn ready(repository: &Repository, view: &ServerView<'_>, upstream: Option<&Fact>) -> Fact {
    let kind = conditions::READY;
    let (name, server) = (repository.name(), repository.server());
    let (valid, heard, trouble) = match view {
        ServerView::Missing(known) => {
            let known = if known.is_empty() {
                "there is none yet".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            };
            return Fact::no(
                kind,
                "ServerNotFound",
                format!(
                    "spec.server names the CacheServer {server:?}, which does not exist ({known}); create it, or correct spec.server"
                ),
            );
        }
        ServerView::Leaving => {
            return Fact::no(
                kind,
                "ServerDeleted",
                format!(
                    "the CacheServer {server} is being deleted; set spec.server to another one, or delete this {}",
                    repository.kind()
                ),
            );
        }
        ServerView::There { valid, heard, trouble, .. } => (valid, heard, trouble),
    };
    let partly = match valid.verdicts.get(&repository.key()) {
        Some(Verdict::Refused(problem)) => return Fact::no(kind, problem.reason(), problem.to_string()),
        Some(Verdict::Kept(problem)) => {
            return Fact::no(kind, problem.reason(), format!("{problem}. Until then the last good version is served"));
        }
        Some(Verdict::Partly(problems)) => problems.as_slice(),
        Some(Verdict::Good) => &[],
        None => return Fact::no(kind, "Leaving", "it is being deleted"),
    };
    let generation = repository.meta().generation;
    if let Some(message) = heard.mistake(repository.kind(), &name, generation) {
        return Fact::no(kind, "Mistake", message);
    }
    if let Some(first) = partly.first() {
        let all: Vec<String> = partly.iter().map(ToString::to_string).collect();
        return Fact::no(
            kind,
            first.reason(),
            format!("{}. Until then everything else of it is served", all.join("; ")),
        );
    }
    if heard.report.is_none() {
        let why = trouble.clone().unwrap_or_else(|| "its pod does not answer yet".to_owned());
        return Fact::no(kind, "ServerNotRunning", format!("the CacheServer {server} does not serve: {why}"));
    }
    if !heard.has_loaded(repository.kind(), &name, generation) {
        return Fact::no(kind, "Loading", "the cache server has not loaded this version yet; that takes a few seconds");
    }
    if !repository.is_online() {
        return Fact::yes(
            kind,
            "Offline",
            "it is served as written: online is false, so every request is answered 503",
        );
    }
    if upstream.is_some_and(|upstream| upstream.status == "False") {
        return Fact::yes(
            kind,
            "ServingCachedOnly",
            "it is served as written, but the upstream does not answer (see UpstreamReachable): only what is cached already can be pulled",
        );
    }
    Fact::yes(kind, "Serving", "it is served as written here")
}

fn upstream(mirror: &RegistryMirror, view: &ServerView<'_>, held: &[Condition]) -> Fact {
    let kind = conditions::UPSTREAM_REACHABLE;
    if !mirror.spec.online {
        return Fact::unknown(kind, "Offline", "nobody asks it while online is false");
    }
    let answer = match view {
        ServerView::There { heard, .. } => heard.upstreams.get(&mirror.name_any()),
        _ => None,
    };
    if !matches!(view, ServerView::There { .. }) {
        return Fact::unknown(kind, "NoServer", "there is no cache server that could ask it");
    }
    let message = answer.and_then(|answer| answer.message.clone()).filter(|message| !message.is_empty());
    match answer.map(|answer| answer.state.as_str()) {
        Some("Reachable") => Fact::yes(kind, "Reachable", "the upstream answers"),
        Some("Denied") => Fact::no(
            kind,
            "Denied",
            message.unwrap_or_else(|| "the upstream refuses these credentials; correct the Secret".to_owned()),
        ),
        Some("Unreachable") => {
            Fact::no(kind, "Unreachable", message.unwrap_or_else(|| "the upstream does not answer".to_owned()))
        }
        _ => {
            // What was known before this process began stays until it is asked anew.
            let before = held.iter().find(|condition| {
                condition.type_ == kind && condition.observed_generation == mirror.metadata.generation
            });
            match before {
                Some(before) if before.status == "True" => Fact::yes(kind, &before.reason, before.message.clone()),
                Some(before) if before.status == "False" => Fact::no(kind, &before.reason, before.message.clone()),
                _ => Fact::unknown(kind, "NotAsked", "the upstream was not asked yet"),
            }
        }
    }
}

fn counts(nodes: &NodesView) -> NodeCounts {
    let nodes = match nodes {
        NodesView::Refused(_) => &[],
        NodesView::Each(nodes) => nodes.as_slice(),
    };
    let count = |wanted: fn(&NodeState) -> bool| {
        u32::try_from(nodes.iter().filter(|(_, state)| wanted(state)).count()).unwrap_or(u32::MAX)
    };
    let verified = count(|state| matches!(state, NodeState::Verified));
    let desired = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    NodeCounts {
        summary: format!("{verified} of {desired}"),
        desired,
        configured: count(|state| matches!(state, NodeState::Verified | NodeState::Configured(_))),
        verified,
        withdrawn: count(|state| matches!(state, NodeState::Withdrawn(_))),
        failed: count(|state| matches!(state, NodeState::Failed(_) | NodeState::Taken(_))),
    }
}

fn nodes_configured(nodes: &NodesView) -> Fact {
    let kind = conditions::NODES_CONFIGURED;
    let nodes = match nodes {
        NodesView::Refused(problem) => return Fact::no(kind, problem.reason(), problem.to_string()),
        NodesView::Each(nodes) => nodes,
    };
    let (all, mut open) = (nodes.len(), Vec::new());
    let mut reason = ("RollingOut", 0);
    for (name, state) in nodes {
        let (word, weight, why) = match state {
            NodeState::Verified => continue,
            NodeState::Pending(why) => ("RollingOut", 1, why),
            NodeState::Configured(why) => ("NotVerified", 2, why),
            NodeState::Withdrawn(why) => ("Withdrawn", 3, why),
            NodeState::Failed(why) => ("Failed", 4, why),
            NodeState::Taken(why) => ("RegistryConflict", 5, why),
        };
        if weight > reason.1 {
            reason = (word, weight);
        }
        open.push((weight, format!("{name}: {why}")));
    }
    let summary = format!("{} of {all} nodes verified", all - open.len());
    if all == 0 {
        return Fact::no(
            kind,
            "NoNodes",
            "no node of this cluster is meant; correct spec.nodes.selector, or add nodes with these labels",
        );
    }
    if open.is_empty() {
        return Fact::yes(kind, "AllVerified", summary);
    }
    open.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    let further = open.len().saturating_sub(NAMED_NODES);
    let named: Vec<String> = open.into_iter().take(NAMED_NODES).map(|(_, text)| text).collect();
    let further = if further > 0 { format!("; and {further} more") } else { String::new() };
    Fact::no(kind, reason.0, format!("{summary}; {}{further}", named.join("; ")))
}

/// How one node fares with a repository that has these registries there.
#[must_use]
pub fn node_state(
    repository: &str,
    registries: &BTreeSet<String>,
    taken: Option<&Conflict>,
    node: &k8s_openapi::api::core::v1::Node,
    live: Option<&crds::NodeMirror>,
) -> NodeState {
    if let Some(Conflict { registry, holder, .. }) = taken {
        return NodeState::Taken(format!("{registry} goes through the {holder} there, which is older"));
    }
    if !is_ready(node) {
        return NodeState::Pending("the node is not ready".to_owned());
    }
    let Some(live) = live else { return NodeState::Pending("its turn has not come yet".to_owned()) };
    let entries: Vec<_> = live
        .spec
        .entries
        .iter()
        .filter(|entry| entry.repository == repository && registries.contains(&entry.registry))
        .collect();
    if entries.len() < registries.len() {
        return NodeState::Pending("its turn has not come yet".to_owned());
    }
    let Some(status) = live.status.as_ref().filter(|status| status.observed_generation.is_some()) else {
        return NodeState::Pending("its agent has not reported; see the DaemonSet's pod on that node".to_owned());
    };
    let deaf = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == conditions::RUNTIME_READS_FILES && condition.status == "False");
    if let Some(deaf) = deaf {
        return NodeState::Failed(format!("{}: {}", deaf.reason, deaf.message));
    }
    for entry in &entries {
        let state = status.entries.iter().find(|state| state.registry == entry.registry);
        let text = |state: &crds::node_mirror::NodeEntryStatus| {
            let message = state.message.clone().or_else(|| state.reason.clone());
            message.unwrap_or_else(|| format!("{:?}", state.state))
        };
        match state {
            Some(state) if state.state == EntryState::Withdrawn => return NodeState::Withdrawn(text(state)),
            Some(state) if matches!(state.state, EntryState::Failed | EntryState::Conflict) => {
                return NodeState::Failed(text(state));
            }
            Some(state) if state.state == EntryState::Pending => return NodeState::Pending(text(state)),
            _ if in_force(live, entry) => {}
            _ => return NodeState::Pending("its agent has not written this version yet".to_owned()),
        }
    }
    if is_verified(live) {
        return NodeState::Verified;
    }
    let verified = status.conditions.iter().find(|condition| condition.type_ == conditions::VERIFIED);
    let why = verified.filter(|condition| condition.status == "False").map(|condition| condition.message.clone());
    NodeState::Configured(
        why.unwrap_or_else(|| "its files are written; the pull that proves it is under way".to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_moves_only_when_a_status_does() {
        let early = Timestamp::from_second(100).unwrap_or_default();
        let late = Timestamp::from_second(200).unwrap_or_default();
        let first = conditions_of(&[], vec![Fact::no("Ready", "A", "a")], Some(1), early);
        let second = conditions_of(&first, vec![Fact::no("Ready", "B", "b")], Some(2), late);
        assert_eq!(second[0].last_transition_time, first[0].last_transition_time);
        let third = conditions_of(&second, vec![Fact::yes("Ready", "C", "c")], Some(2), late);
        assert_eq!(third[0].last_transition_time.0, late);
        assert_eq!(conditions_of(&third, vec![Fact::yes("Ready", "C", "c")], Some(2), early), third);
    }

    #[test]
    fn an_event_is_worth_a_new_status_or_reason() {
        let at = Timestamp::from_second(100).unwrap_or_default();
        let of = |fact: Fact| conditions_of(&[], vec![fact], Some(1), at);
        let held = of(Fact::no("Ready", "A", "a"));
        for (new, count) in [
            (of(Fact::no("Ready", "A", "other words")), 0),
            (of(Fact::no("Ready", "B", "a")), 1),
            (of(Fact::yes("Ready", "A", "a")), 1),
            (of(Fact::unknown("Ready", "C", "a")), 0),
            (of(Fact::yes("Progressing", "A", "a")), 0),
        ] {
            assert_eq!(transitions(&held, &new).len(), count, "{new:?}");
        }
    }

    #[test]
    fn nodes_are_summed_up_by_the_worst_of_them() {
        let node = |name: &str, state: NodeState| (name.to_owned(), state);
        let why = || "why".to_owned();
        let nodes = vec![
            node("a", NodeState::Verified),
            node("b", NodeState::Pending(why())),
            node("c", NodeState::Failed(why())),
            node("d", NodeState::Configured(why())),
            node("e", NodeState::Pending(why())),
        ];
        let first = NodesView::Each(nodes[..1].to_vec());
        let nodes = NodesView::Each(nodes);
        let fact = nodes_configured(&nodes);
        assert_eq!((fact.status, fact.reason.as_str()), ("False", "Failed"));
        assert_eq!(fact.message, "1 of 5 nodes verified; c: why; d: why; b: why; and 1 more");
        assert_eq!(counts(&nodes).summary, "1 of 5");
        assert_eq!(nodes_configured(&first).message, "1 of 1 nodes verified");
        assert_eq!(nodes_configured(&NodesView::Each(Vec::new())).reason, "NoNodes");
        let login = Problem::LoginRequired { who: "RepositoryGroup all".to_owned() };
        assert_eq!(nodes_configured(&NodesView::Refused(login)).reason, "LoginRequired");
    }
}
