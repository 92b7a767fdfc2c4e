//! What the agent says of its node: states, conditions, the status. Pure. May import `detect`, `plan` and `probe`.

use crds::{
    conditions,
    node_mirror::{EntryState, NodeEntry, NodeEntryStatus, NodeMirrorStatus, RuntimeStatus},
    nodes::Fallback,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::{Deserialize, Serialize};

use super::{
    detect::Reads,
    plan::{Outcome, Wish},
    probe::Verdict,
};

/// What is in force for a registry, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: EntryState,
    /// Why, in one word.
    pub reason: Option<&'static str>,
    /// Why, and what to do.
    pub message: Option<String>,
    /// The hash of the entry that is in force.
    pub hash: Option<String>,
}

impl Standing {
    /// Something went wrong with files.
    #[must_use]
    pub fn failed(reason: &'static str, message: String) -> Self {
        Self { state: EntryState::Failed, reason: Some(reason), message: Some(message), hash: None }
    }
}

/// What an entry's files shall say while its probe says this.
#[must_use]
pub fn wish(entry: &NodeEntry, verdict: Verdict) -> Wish<'_> {
    match (verdict, entry.fallback) {
        (Verdict::Up, _) => Wish::InForce(entry),
        (Verdict::Down, Fallback::Allow) => Wish::Withdrawn(entry),
        (Verdict::Unknown, _) | (Verdict::Down, Fallback::Never) => Wish::AsIs(entry),
    }
}

/// Stands for the hash of a version that is not known.
const UNKNOWN: &str = "unknown";

/// What an entry's state is. `before` is what was said of it last.
#[must_use]
pub fn standing(
    entry: &NodeEntry,
    verdict: Verdict,
    error: Option<&str>,
    outcome: &Outcome,
    before: Option<&NodeEntryStatus>,
) -> Standing {
    let url = &entry.url;
    let silent = || format!("{url}/v2/ does not answer this node: {}", error.unwrap_or("no answer yet"));
    let (state, reason, message) = match (outcome, verdict) {
        (Outcome::Conflict(conflict), _) => (EntryState::Conflict, Some(conflict.reason()), Some(conflict.to_string())),
        (Outcome::InForce, Verdict::Down) => (
            EntryState::Configured,
            Some("CacheNotAnswering"),
            Some(format!(
                "{}; with fallback Never the node pulls nothing of {} until it does",
                silent(),
                entry.registry
            )),
        ),
        (Outcome::InForce, _) => (EntryState::Configured, None, None),
        (Outcome::Older, Verdict::Down) => (
            EntryState::Pending,
            Some("CacheNotAnswering"),
            Some(format!("{}; until it does the node's files name the cache as they did before", silent())),
        ),
        (Outcome::Older, _) => (
            EntryState::Pending,
            Some("Probing"),
            Some(format!(
                "{url}/v2/ is being asked; until it answers the node's files name the cache as they did before"
            )),
        ),
        (Outcome::Absent, Verdict::Up) => (
            EntryState::Failed,
            Some("FilesKeepChanging"),
            Some("another program changes the same files all the time; stop it".to_owned()),
        ),
        (Outcome::Absent, verdict) => {
            let was =
                before.is_some_and(|before| matches!(before.state, EntryState::Configured | EntryState::Withdrawn));
            match (was, verdict) {
                (true, Verdict::Down) => (
                    EntryState::Withdrawn,
                    Some("CacheNotAnswering"),
                    Some(format!("{}; the node pulls as if the cache were not there until it does", silent())),
                ),
                (_, Verdict::Down) => (
                    EntryState::Pending,
                    Some("CacheNotAnswering"),
                    Some(format!("{}; the node's files are written when it does", silent())),
                ),
                _ => (EntryState::Pending, Some("Probing"), Some(format!("{url}/v2/ is being asked"))),
            }
        }
    };
    let hash = match (outcome, state) {
        // An agent that was started since does not know which version it was, but that it was another.
        (Outcome::Older, _) => {
            Some(before.and_then(|before| before.hash.clone()).unwrap_or_else(|| UNKNOWN.to_owned()))
        }
        (_, EntryState::Configured) => Some(entry.hash()),
        _ => None,
    };
    Standing { state, reason, message, hash }
}

/// Whether containerd was seen to read the configuration that is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Proof {
    /// Of which configuration this is said.
    pub fingerprint: String,
    /// It was changed when containerd may have been running already.
    pub suspicious: bool,
    /// A canary went through since.
    pub proven: bool,
    /// The canary that was there when the configuration changed: it says nothing of the new one.
    pub stale_nonce: Option<String>,
}

impl Proof {
    /// Takes in what is known now: the configuration, whether it is newer than the machine's start, the canary that is
    /// asked for, and the last one that reached the cache.
    #[must_use]
    pub fn observe(self, fingerprint: &str, newer_than_boot: bool, asked: Option<&str>, seen: Option<&str>) -> Self {
        let mut proof = self;
        if proof.fingerprint != fingerprint {
            let first = proof.fingerprint.is_empty();
            proof = Self {
                fingerprint: fingerprint.to_owned(),
                suspicious: !first || newer_than_boot,
                proven: false,
                stale_nonce: if first { None } else { asked.map(str::to_owned) },
            };
        }
        proof.proven |= asked.is_some() && asked == seen && asked != proof.stale_nonce.as_deref();
        proof
    }
}

/// The condition that tells whether containerd reads the files.
#[must_use]
pub fn reads_files(reads: &Reads, proof: &Proof) -> (&'static str, &'static str, String) {
    match reads {
        Reads::Not(deaf) => (if deaf.is_certain() { "False" } else { "Unknown" }, deaf.reason(), deaf.to_string()),
        Reads::From(_) if proof.suspicious && !proof.proven => (
            "Unknown",
            "SetNotRestarted",
            "config.toml names the agent's folder, but was changed after containerd may have started; if containerd was not restarted since, restart it: systemctl restart containerd (a pull of the canary settles it)".to_owned(),
        ),
        Reads::From(root) if proof.proven => {
            ("True", "Proven", format!("containerd reads {root}, and a pull of the canary reached the cache"))
        }
        Reads::From(root) => ("True", "Configured", format!("containerd's configuration names {root}")),
    }
}

/// Everything that is said of a node.
#[derive(Clone, Debug)]
pub struct Findings<'a> {
    /// The generation that was acted on.
    pub generation: Option<i64>,
    /// The runtime.
    pub runtime: RuntimeStatus,
    /// Whether it reads the files.
    pub reads: &'a Reads,
    /// Whether it was seen to.
    pub proof: &'a Proof,
    /// The registries.
    pub standings: Vec<(String, Standing)>,
}

/// The status to write. What did not change keeps its time, so that an unchanged status is equal to the one before.
#[must_use]
pub fn status(findings: Findings<'_>, before: Option<&NodeMirrorStatus>, now: Timestamp) -> NodeMirrorStatus {
    let ready = ready(&findings);
    let conditions =
        [(conditions::READY, ready), (conditions::RUNTIME_READS_FILES, reads_files(findings.reads, findings.proof))]
            .map(|(type_, (status, reason, message))| {
                let same = before
                    .and_then(|before| before.conditions.iter().find(|old| old.type_ == type_))
                    .filter(|old| old.status == status);
                Condition {
                    type_: type_.to_owned(),
                    status: status.to_owned(),
                    reason: reason.to_owned(),
                    message,
                    observed_generation: findings.generation,
                    last_transition_time: same.map_or(Time(now), |old| old.last_transition_time.clone()),
                }
            });
    let entries = findings.standings.into_iter().map(|(registry, standing)| {
        let old = before.and_then(|before| before.entries.iter().find(|old| old.registry == registry));
        let since = old.filter(|old| old.state == standing.state).and_then(|old| old.since.clone());
        NodeEntryStatus {
            registry,
            state: standing.state,
            reason: standing.reason.map(str::to_owned),
            message: standing.message,
            since: Some(since.unwrap_or(Time(now))),
            hash: standing.hash,
        }
    });
    NodeMirrorStatus {
        observed_generation: findings.generation,
        runtime: Some(findings.runtime),
        entries: entries.collect(),
        verified: None,
        conditions: conditions.into(),
    }
}

fn ready(findings: &Findings<'_>) -> (&'static str, &'static str, String) {
    let missing: Vec<_> =
        findings.standings.iter().filter(|(_, standing)| standing.state != EntryState::Configured).collect();
    if let Some((_, first)) = missing.first() {
        let said = missing.iter().take(8).map(|(registry, standing)| {
            format!("{registry}: {:?}: {}", standing.state, standing.message.as_deref().unwrap_or_default())
        });
        return ("False", first.reason.unwrap_or("NotConfigured"), said.collect::<Vec<_>>().join("; "));
    }
    if findings.standings.is_empty() {
        return ("True", "Restored", "nothing is asked for; the node's files are as they were before".to_owned());
    }
    if let Reads::Not(deaf) = findings.reads {
        return (if deaf.is_certain() { "False" } else { "Unknown" }, deaf.reason(), deaf.to_string());
    }
    ("True", "Configured", format!("files name the cache for {} registries", findings.standings.len()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::node::{fixtures::entry, plan::Conflict};

    #[test]
    fn each_state_follows_from_probe_and_files() {
        use EntryState::{Configured, Conflict as InConflict, Failed, Pending, Withdrawn};
        let conflict = || Outcome::Conflict(Conflict::EditedByHand("docker.io/hosts.toml".to_owned()));
        for (outcome, verdict, before, expected) in [
            (Outcome::InForce, Verdict::Up, None, Configured),
            (Outcome::InForce, Verdict::Unknown, Some(Configured), Configured),
            (Outcome::InForce, Verdict::Down, Some(Configured), Configured),
            (Outcome::Absent, Verdict::Unknown, None, Pending),
            (Outcome::Absent, Verdict::Down, Some(Pending), Pending),
            (Outcome::Absent, Verdict::Down, Some(Configured), Withdrawn),
            (Outcome::Absent, Verdict::Down, Some(Withdrawn), Withdrawn),
            (Outcome::Absent, Verdict::Up, None, Failed),
            (conflict(), Verdict::Up, None, InConflict),
        ] {
            let before = before.map(|state| said(state, None));
            let found = standing(&entry("docker.io"), verdict, Some("refused"), &outcome, before.as_ref());
            assert_eq!(found.state, expected, "{outcome:?} {verdict:?} {before:?}");
            assert_eq!(found.hash.is_some(), expected == Configured);
        }
    }

    #[test]
    fn an_older_version_that_is_still_in_force_is_told() {
        let entry = entry("docker.io");
        for (before, shown) in [(Some(said(EntryState::Configured, Some("older"))), "older"), (None, "unknown")] {
            for verdict in [Verdict::Unknown, Verdict::Down] {
                let found = standing(&entry, verdict, Some("refused"), &Outcome::Older, before.as_ref());
                assert_eq!((found.state, found.hash.as_deref()), (EntryState::Pending, Some(shown)), "{verdict:?}");
            }
        }
    }

    fn said(state: EntryState, hash: Option<&str>) -> NodeEntryStatus {
        NodeEntryStatus {
            registry: "docker.io".to_owned(),
            state,
            reason: None,
            message: None,
            hash: hash.map(str::to_owned),
            since: None,
        }
    }

    #[test]
    fn without_fallback_nothing_is_ever_withdrawn() {
        let mut strict = entry("docker.io");
        strict.fallback = Fallback::Never;
        assert!(matches!(wish(&strict, Verdict::Down), Wish::AsIs(_)));
        assert!(matches!(wish(&entry("docker.io"), Verdict::Down), Wish::Withdrawn(_)));
    }

    #[test]
    fn a_changed_configuration_is_doubted_until_another_canary_reaches_the_cache() {
        let reads = Reads::From("/etc/containerd/certs.d".to_owned());
        let reason = |proof: &Proof| reads_files(&reads, proof).1;
        let proof = Proof::default().observe("a", false, Some("1"), None);
        assert_eq!(reason(&proof), "Configured");
        let proof = proof.observe("a", false, Some("1"), Some("1"));
        assert_eq!(reason(&proof), "Proven");
        let proof = proof.observe("b", true, Some("1"), Some("1"));
        assert_eq!(reason(&proof), "SetNotRestarted");
        let proof = proof.observe("b", true, Some("2"), Some("1"));
        assert_eq!(reason(&proof), "SetNotRestarted");
        let proof = proof.observe("b", true, Some("2"), Some("2"));
        assert_eq!(reason(&proof), "Proven");
        assert_eq!(reason(&proof.observe("b", true, Some("3"), Some("2"))), "Proven");
        assert_eq!(reason(&Proof::default().observe("a", true, None, None)), "SetNotRestarted");
    }

    #[test]
    fn an_unchanged_finding_gives_an_equal_status_later() {
        let reads = Reads::From("/x".to_owned());
        let proof = Proof::default();
        let state = |state| Standing { state, reason: None, message: None, hash: None };
        let findings = |state_| Findings {
            generation: Some(1),
            runtime: RuntimeStatus::default(),
            reads: &reads,
            proof: &proof,
            standings: vec![("docker.io".to_owned(), state(state_))],
        };
        let early = Timestamp::from_second(100).unwrap();
        let late = Timestamp::from_second(200).unwrap();
        let first = status(findings(EntryState::Configured), None, early);
        assert_eq!(status(findings(EntryState::Configured), Some(&first), late), first);
        let second = status(findings(EntryState::Withdrawn), Some(&first), late);
        assert_eq!(second.entries[0].since, Some(Time(late)));
        assert_eq!(second.conditions[1].last_transition_time, Time(early));
    }
}
