//! Which nodes are changed now: in waves, by name, so that a mistake stops at a few nodes. Pure. May import `node_entries`.

use std::time::Duration;

use crds::{
    NodeMirror, NodeMirrorSpec, conditions,
    node_mirror::{EntryState, NodeEntry},
};

use super::node_entries::{has_agent, in_force, is_observed, is_verified};

/// For how long a node whose agent has not said anything counts as one that is being changed.
pub const SILENCE: Duration = Duration::from_mins(1);

/// A node as the rollout sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether its kubelet says that it is there.
    pub ready: bool,
    /// What its object says now.
    pub live: Option<&'a NodeMirror>,
    /// What it shall say.
    pub wanted: NodeMirrorSpec,
    /// How long ago we changed its object, as far as this process knows.
    pub changed_ago: Option<Duration>,
    /// The least `maxUnavailablePercent` of the mirrors that mean it.
    pub percent: u32,
}

/// The names of the nodes whose objects are changed now, in order.
#[must_use]
pub fn next_wave<'a>(candidates: &[Candidate<'a>]) -> Vec<&'a str> {
    let percent = candidates.iter().map(|candidate| candidate.percent).min().unwrap_or(100);
    let meant = candidates.iter().filter(|candidate| !candidate.wanted.entries.is_empty()).count();
    let budget = (meant * percent as usize / 100).max(1);
    let mut in_flight = candidates.iter().filter(|candidate| is_in_flight(candidate)).count();
    let mut wave = Vec::new();
    for candidate in candidates.iter().filter(|candidate| differs(candidate)) {
        if is_harmless(candidate) {
            wave.push(candidate.name);
        } else if is_in_flight(candidate) {
            // It has its place already: what it shall say has changed once more.
            wave.push(candidate.name);
        } else if in_flight < budget {
            in_flight += usize::from(candidate.ready && !runtime_is_deaf(candidate.live));
            wave.push(candidate.name);
        }
    }
    wave
}

fn differs(candidate: &Candidate<'_>) -> bool {
    match candidate.live {
        Some(live) => live.spec != candidate.wanted,
        // While there is no object an agent leaves its node's files; there is nothing to say to it then.
        None => !candidate.wanted.entries.is_empty(),
    }
}

/// Changed, and not yet seen to work.
fn is_in_flight(candidate: &Candidate<'_>) -> bool {
    let Some(live) = candidate.live else { return false };
    if !candidate.ready || live.spec.entries.is_empty() || runtime_is_deaf(candidate.live) {
        return false;
    }
    if !has_agent(live) || !is_observed(live) {
        return candidate.changed_ago.is_some_and(|ago| ago < SILENCE);
    }
    !is_verified(live) || !live.spec.entries.iter().all(|entry| in_force(live, entry) || stays_foreign(live, entry))
}

/// Whether files of someone else stay as they are for an entry: nothing more will come of it, and nothing bad.
fn stays_foreign(live: &NodeMirror, entry: &NodeEntry) -> bool {
    let mut states = live.status.iter().flat_map(|status| &status.entries);
    states.any(|state| state.registry == entry.registry && state.state == EntryState::Conflict)
}

/// A change that takes nothing new to a node: entries that go, or another pull to verify it by.
fn is_harmless(candidate: &Candidate<'_>) -> bool {
    let Some(live) = candidate.live else { return false };
    let known = |entry: &NodeEntry| live.spec.entries.contains(entry);
    candidate.wanted.entries.iter().all(known)
}

/// Whether the runtime is known not to read its files: nothing that is written there matters to it.
fn runtime_is_deaf(live: Option<&NodeMirror>) -> bool {
    let conditions = live.and_then(|live| Some(&live.status.as_ref()?.conditions)).into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition.type_ == conditions::RUNTIME_READS_FILES && condition.status == "False")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry(registry: &str) -> NodeEntry {
        serde_json::from_value(json!({"registry": registry, "url": "https://x/repository/hub", "repository": "hub"}))
            .expect("should be an entry")
    }

    fn wanted(registries: &[&str]) -> NodeMirrorSpec {
        let canary = json!({"registry": "p", "url": "https://x/repository/probe", "nonce": "n"});
        let canary = serde_json::from_value(canary).expect("should be a canary");
        NodeMirrorSpec { entries: registries.iter().map(|registry| entry(registry)).collect(), canary: Some(canary) }
    }

    fn live(registries: &[&str], verified: &str) -> NodeMirror {
        let mut live = NodeMirror::new("n", wanted(registries));
        live.metadata.generation = Some(1);
        let states: Vec<Value> = registries
            .iter()
            .map(|registry| json!({"registry": registry, "state": "Configured", "hash": entry(registry).hash()}))
            .collect();
        live.status = serde_json::from_value(json!({"observedGeneration": 1, "entries": states,
            "verified": {"nonce": verified, "time": "2026-01-01T00:00:00Z"}}))
        .ok();
        live
    }

    fn candidate<'a>(name: &'a str, live: Option<&'a NodeMirror>) -> Candidate<'a> {
        Candidate { name, ready: true, live, wanted: wanted(&["r.io"]), changed_ago: None, percent: 34 }
    }

    #[test]
    fn no_more_nodes_than_allowed_are_changed_and_unverified_at_a_time() {
        let first = [candidate("a", None), candidate("b", None), candidate("c", None)];
        assert_eq!(next_wave(&first), ["a"]);
        let flying = live(&["r.io"], "other");
        assert!(next_wave(&[candidate("a", Some(&flying)), candidate("b", None), candidate("c", None)]).is_empty());
        let done = live(&["r.io"], "n");
        assert_eq!(next_wave(&[candidate("a", Some(&done)), candidate("b", None), candidate("c", None)]), ["b"]);
    }

    #[test]
    fn nodes_that_are_away_or_deaf_hold_nobody_up() {
        let flying = live(&["r.io"], "other");
        let away = Candidate { ready: false, ..candidate("a", Some(&flying)) };
        assert_eq!(next_wave(&[away, candidate("b", None)]), ["b"]);
        let mut deaf = live(&["r.io"], "other");
        let condition = json!({"type": "RuntimeReadsFiles", "status": "False", "reason": "NoConfigPath", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        deaf.status.as_mut().expect("should have a status").conditions =
            vec![serde_json::from_value(condition).expect("should be a condition")];
        assert_eq!(next_wave(&[candidate("a", Some(&deaf)), candidate("b", None)]), ["b"]);
    }

    #[test]
    fn files_of_others_that_stay_hold_nobody_up() {
        let mut kept = live(&["r.io"], "n");
        let status = kept.status.as_mut().expect("should have a status");
        status.entries[0].state = EntryState::Conflict;
        assert_eq!(next_wave(&[candidate("a", Some(&kept)), candidate("b", None)]), ["b"]);
        kept.status.as_mut().expect("should have a status").entries[0].state = EntryState::Withdrawn;
        assert!(next_wave(&[candidate("a", Some(&kept)), candidate("b", None)]).is_empty());
    }

    #[test]
    fn a_silent_agent_holds_the_rollout_up_for_a_minute_only() {
        let mut silent = live(&["r.io"], "other");
        silent.status = None;
        for (ago, wave) in [(59, vec![]), (60, vec!["b"])] {
            let waiting = Candidate { changed_ago: Some(Duration::from_secs(ago)), ..candidate("a", Some(&silent)) };
            assert_eq!(next_wave(&[waiting, candidate("b", None)]), wave);
        }
    }

    #[test]
    fn entries_go_from_all_nodes_at_once() {
        let (one, two) = (live(&["q.io", "r.io"], "n"), live(&["q.io", "r.io"], "n"));
        assert_eq!(next_wave(&[candidate("a", Some(&one)), candidate("b", Some(&two))]), ["a", "b"]);
    }
}
