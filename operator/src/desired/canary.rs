//! The pull by which it is seen that a node's runtime reads its files: what to do about it now, and the pod. Pure.
//! May import `names` and `node_entries`.

use std::time::Duration;

use crds::{NodeMirror, conditions, node_mirror::Canary};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::{
    names,
    node_entries::{is_observed, is_ready, is_verified},
};

/// For how long a canary may take.
const DEADLINE_SECONDS: i64 = 60;
/// The first wait after a canary that was not seen; each failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How a node's canaries went so far, as this process knows. Times are since any fixed moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// What was pulled.
    pub nonce: String,
    /// How often in vain.
    pub failures: u32,
    /// Not before.
    pub not_before: Duration,
}

impl Attempts {
    /// Records that a canary was not seen.
    pub fn failed(&mut self, nonce: &str, now: Duration) {
        if self.nonce != nonce {
            *self = Self { nonce: nonce.to_owned(), ..Self::default() };
        }
        let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + wait;
    }
}

/// What to do about a node's canary now. One thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Start the pod.
    Start,
    /// The cache saw it: write that down.
    Verified,
    /// What was seen before says nothing of the node as it is now: write that down.
    Outdated,
    /// It ended unseen: write that down, wait, and try again.
    Failed,
    /// Take the pod away: it is done, or it is of another nonce.
    Remove,
}

/// What to do now. `seen` says whether the cache saw the nonce.
#[must_use]
pub fn next(
    live: &NodeMirror,
    node: Option<&Node>,
    pod: Option<&Pod>,
    seen: bool,
    attempts: &Attempts,
    now: Duration,
) -> Action {
    let Some(canary) = &live.spec.canary else { return pod.map_or(Action::None, |_| Action::Remove) };
    if is_verified(live) {
        return pod.map_or(Action::None, |_| Action::Remove);
    }
    if seen {
        return Action::Verified;
    }
    if live.status.as_ref().is_some_and(|status| status.verified.is_some()) {
        return Action::Outdated;
    }
    if let Some(pod) = pod {
        return if pod.annotations().get(names::NONCE) != Some(&canary.nonce) || attempts_cover(attempts, canary, now) {
            Action::Remove
        } else if has_ended(pod) {
            Action::Failed
        } else {
            Action::None
        };
    }
    let waits = attempts.nonce == canary.nonce && now < attempts.not_before;
    if !waits && node.is_some_and(is_ready) && may_be_asked(live) { Action::Start } else { Action::None }
}

/// Whether a failure was written down for this nonce and its pod is still there.
fn attempts_cover(attempts: &Attempts, canary: &Canary, now: Duration) -> bool {
    attempts.nonce == canary.nonce && now < attempts.not_before
}

/// The agent wrote what was asked for, and the runtime may read it.
fn may_be_asked(live: &NodeMirror) -> bool {
    let Some(status) = &live.status else { return false };
    let deaf = status
        .conditions
        .iter()
        .any(|condition| condition.type_ == conditions::RUNTIME_READS_FILES && condition.status == "False");
    let registry = live.spec.canary.as_ref().map(|canary| &canary.registry);
    let own: Vec<_> = status.entries.iter().filter(|state| Some(&state.registry) == registry).collect();
    // An agent that does not list the canary says by the first entry whether it wrote.
    let written = if own.is_empty() {
        status.entries.iter().any(|state| state.state == crds::node_mirror::EntryState::Configured)
    } else {
        own.iter().any(|state| state.state == crds::node_mirror::EntryState::Configured)
    };
    is_observed(live) && written && !deaf
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The pod: it is given to the node past the scheduler, and goes with the node's object.
#[must_use]
pub fn pod(live: &NodeMirror, canary: &Canary, namespace: &str) -> Value {
    let node = live.name_any();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names::canary(&node),
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/name": "canary",
                "app.kubernetes.io/managed-by": "entrepot-operator",
                "app.kubernetes.io/part-of": "entrepot",
            },
            "annotations": {names::NONCE: canary.nonce, "entrepot.dev/node": node},
            "ownerReferences": [{
                "apiVersion": NodeMirror::api_version(&()),
                "kind": NodeMirror::kind(&()),
                "name": node,
                "uid": live.uid(),
                "controller": true,
            }],
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "canary",
                "image": format!("{}/canary:{}", canary.registry, canary.nonce),
                "imagePullPolicy": "Always",
                "resources": {
                    "requests": {"cpu": "1m", "memory": "8Mi"},
                    "limits": {"cpu": "100m", "memory": "32Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("should be an object of its kind")
    }

    fn live(verified: &str, state: &str, reads: &str) -> NodeMirror {
        let seen = (!verified.is_empty()).then(|| json!({"nonce": verified, "time": "2026-01-01T00:00:00Z"}));
        read(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "NodeMirror",
            "metadata": {"name": "a", "generation": 1, "uid": "u"},
            "spec": {"entries": [], "canary": {"registry": names::CANARY_REGISTRY, "url": "https://x/repository/probe", "nonce": "n"}},
            "status": {"observedGeneration": 1,
                "entries": [{"registry": names::CANARY_REGISTRY, "state": state}],
                "verified": seen,
                "conditions": [{"type": "RuntimeReadsFiles", "status": reads, "reason": "X", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
    }

    fn node(ready: &str) -> Node {
        read(json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
    }

    fn pod_in(phase: &str, nonce: &str) -> Pod {
        read(json!({"metadata": {"name": "c", "annotations": {names::NONCE: nonce}}, "status": {"phase": phase}}))
    }

    #[test]
    fn a_canary_starts_only_where_the_runtime_may_read_what_was_written() {
        let none = Attempts::default();
        for (live, ready, expected) in [
            (live("", "Configured", "Unknown"), "True", Action::Start),
            (live("", "Pending", "True"), "True", Action::None),
            (live("", "Configured", "False"), "True", Action::None),
            (live("", "Configured", "True"), "False", Action::None),
            (live("n", "Configured", "True"), "True", Action::None),
            (live("old", "Configured", "False"), "True", Action::Outdated),
        ] {
            assert_eq!(next(&live, Some(&node(ready)), None, false, &none, Duration::ZERO), expected, "{live:?}");
        }
    }

    #[test]
    fn a_canary_goes_from_its_start_to_its_end() {
        let (waiting, node, fresh) = (live("", "Configured", "True"), node("True"), Attempts::default());
        let at = |pod: &Pod, seen| next(&waiting, Some(&node), Some(pod), seen, &fresh, Duration::ZERO);
        assert_eq!(at(&pod_in("Pending", "n"), false), Action::None);
        assert_eq!(at(&pod_in("Pending", "n"), true), Action::Verified);
        assert_eq!(at(&pod_in("Failed", "n"), false), Action::Failed);
        assert_eq!(at(&pod_in("Pending", "old"), false), Action::Remove);
        let done = live("n", "Configured", "True");
        assert_eq!(
            next(&done, Some(&node), Some(&pod_in("Succeeded", "n")), true, &fresh, Duration::ZERO),
            Action::Remove
        );
    }

    #[test]
    fn after_a_failure_the_next_canary_waits_longer_each_time() {
        let (waiting, node) = (live("", "Configured", "True"), node("True"));
        let mut attempts = Attempts::default();
        let mut waits = Vec::new();
        for _ in 0..5 {
            attempts.failed("n", Duration::ZERO);
            waits.push(attempts.not_before.as_secs());
        }
        assert_eq!(waits, [30, 60, 120, 240, 300]);
        let ended = pod_in("Failed", "n");
        assert_eq!(next(&waiting, Some(&node), Some(&ended), false, &attempts, Duration::ZERO), Action::Remove);
        assert_eq!(next(&waiting, Some(&node), None, false, &attempts, Duration::from_secs(299)), Action::None);
        assert_eq!(next(&waiting, Some(&node), None, false, &attempts, Duration::from_mins(5)), Action::Start);
    }
}
