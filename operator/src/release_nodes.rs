//! `operator release-nodes`: puts every node's files back before the release goes. Works while the operator is dead, and
//! can be repeated. May import `apply`'s and `leader`'s names, `desired::names`, `cluster`.

use std::{fmt::Debug, time::Duration};

use crds::{CacheServer, NodeMirror, RegistryMirror, RepositoryGroup};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    apply::FIELD_MANAGER,
    desired::{
        names::FINALIZER,
        node_entries::{has_agent, is_observed, is_ready},
    },
    leader::Leader,
    settings::ReleaseSettings,
};

/// Between two looks at what agents report.
const LOOK: Duration = Duration::from_secs(1);
/// For how long the old leader may take to let the Lease go; it runs out after 15 s by itself.
const LEASE_WITHIN: Duration = Duration::from_mins(1);

/// Why nodes could not be released.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct Error {
    action: String,
    source: Box<kube::Error>,
}

fn failed(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error { action: action.into(), source: Box::new(source) }
}

/// Restores all nodes' files and removes our finalizers. Prints a line per node, then what is left.
pub async fn release_nodes(settings: &ReleaseSettings) -> Result<(), Error> {
    let client = Client::try_default().await.map_err(failed("find the apiserver"))?;
    stop_operator(&client, settings).await?;
    let acquired = timeout(LEASE_WITHIN, Leader::acquire(&client, &settings.namespace, "release-nodes")).await;
    if acquired.is_err() {
        println!("the operator's Lease is still held; going on without it");
    }
    let left = release(&client, settings).await;
    if let Ok(leader) = acquired {
        leader.release().await;
    }
    let left = left?;
    if left.is_empty() {
        println!("all nodes are as they were before; nothing is left");
    } else {
        println!(
            "left: {}. Their agents put the files back when they are there again and find `entries: []`.",
            left.join(", ")
        );
    }
    Ok(())
}

/// The operator would write the entries again.
async fn stop_operator(client: &Client, settings: &ReleaseSettings) -> Result<(), Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &settings.namespace);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match deployments.patch_scale(&settings.deployment, &params(), &none).await {
        Ok(_) => println!("the operator is scaled to zero"),
        Err(kube::Error::Api(status)) if status.code == 404 => println!("the operator is gone already"),
        Err(error) => return Err(failed(format!("scale the Deployment {} to zero", settings.deployment))(error)),
    }
    Ok(())
}

async fn release(client: &Client, settings: &ReleaseSettings) -> Result<Vec<String>, Error> {
    let node_mirrors: Api<NodeMirror> = Api::all(client.clone());
    for live in list(&node_mirrors).await? {
        if !live.spec.entries.is_empty() || live.spec.canary.is_some() {
            empty(&node_mirrors, &live).await?;
        }
    }
    let left = wait(client, &node_mirrors, Duration::from_secs(settings.wait_seconds)).await?;
    remove_canaries(client, settings).await?;
    remove_finalizers::<RegistryMirror>(client).await?;
    remove_finalizers::<RepositoryGroup>(client).await?;
    remove_finalizers::<CacheServer>(client).await?;
    Ok(left)
}

async fn empty(node_mirrors: &Api<NodeMirror>, live: &NodeMirror) -> Result<(), Error> {
    let name = live.name_any();
    let patch = Patch::Merge(json!({"spec": {"entries": [], "canary": null}}));
    match node_mirrors.patch(&name, &params(), &patch).await {
        Ok(_) => Ok(()),
        // Its node is gone, and its files with it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(failed(format!("empty the NodeMirror {name}"))(error)),
    }
}

/// Waits until each agent has said that it put everything back. Returns the nodes that have not.
async fn wait(client: &Client, node_mirrors: &Api<NodeMirror>, limit: Duration) -> Result<Vec<String>, Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let end = Instant::now() + limit;
    loop {
        let known = list(&nodes).await?;
        let lives = list(node_mirrors).await?;
        let states: Vec<(String, State)> = lives
            .iter()
            .filter_map(|live| {
                let node = known.iter().find(|node| node.name_any() == live.name_any())?;
                Some((live.name_any(), state(live, node)))
            })
            .collect();
        let waits = states.iter().any(|(_, state)| *state == State::Waiting);
        if !waits || Instant::now() >= end {
            for (name, state) in &states {
                println!("node {name}: {}", state.text());
            }
            let open = states.into_iter().filter(|(_, state)| matches!(state, State::Waiting | State::Away));
            return Ok(open.map(|(name, state)| format!("node {name} ({})", state.text())).collect());
        }
        sleep(LOOK).await;
    }
}

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Restored,
    NoAgent,
    Away,
    Waiting,
}

impl State {
    const fn text(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::NoAgent => "never had an agent; nothing to restore",
            Self::Away => "not ready; its files are left",
            Self::Waiting => "its agent has not reported in time",
        }
    }
}

fn state(live: &NodeMirror, node: &Node) -> State {
    let shown = live.status.as_ref().is_some_and(|status| !status.entries.is_empty());
    if !has_agent(live) {
        State::NoAgent
    } else if is_observed(live) && !shown {
        State::Restored
    } else if is_ready(node) {
        State::Waiting
    } else {
        State::Away
    }
}

async fn remove_canaries(client: &Client, settings: &ReleaseSettings) -> Result<(), Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &settings.node_namespace);
    let ours =
        ListParams::default().labels("app.kubernetes.io/name=canary,app.kubernetes.io/managed-by=entrepot-operator");
    let found = match pods.list(&ours).await {
        Ok(found) => found.items,
        Err(error) => return Err(failed("list canary pods")(error)),
    };
    for pod in found {
        match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(failed(format!("delete the pod {}", pod.name_any()))(error)),
        }
    }
    Ok(())
}

async fn remove_finalizers<K>(client: &Client) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let name_of = |object: &K| format!("{} {}", K::kind(&()), object.name_any());
    for object in list(&api).await? {
        if !object.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            continue;
        }
        let kept: Vec<&String> = object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let metadata = json!({"resourceVersion": object.resource_version(), "finalizers": kept});
        match api.patch(&object.name_any(), &params(), &Patch::Merge(json!({"metadata": metadata}))).await {
            Ok(_) => println!("{}: finalizer removed; the object stays", name_of(&object)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(failed(format!("remove the finalizer of {}", name_of(&object)))(error)),
        }
    }
    Ok(())
}

/// All objects of a kind; none if the kind itself is gone.
async fn list<K>(api: &Api<K>) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(failed(format!("list {}", K::plural(&())))(error)),
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn live(observed: &Value, entries: &Value) -> NodeMirror {
        serde_json::from_value(json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": "NodeMirror",
            "metadata": {"name": "a", "generation": 2}, "spec": {"entries": []},
            "status": {"observedGeneration": observed, "entries": entries}}))
        .expect("should be a NodeMirror")
    }

    #[test]
    fn a_node_is_restored_when_its_agent_says_so() {
        let shown = json!([{"registry": "r.io", "state": "Configured"}]);
        let none = json!([]);
        for (observed, entries, ready, expected) in [
            (json!(2), &none, "True", State::Restored),
            (json!(2), &none, "False", State::Restored),
            (json!(2), &shown, "True", State::Waiting),
            (json!(1), &none, "True", State::Waiting),
            (json!(1), &shown, "Unknown", State::Away),
            (Value::Null, &none, "True", State::NoAgent),
        ] {
            let own: Node = serde_json::from_value(json!({"metadata": {"name": "a"},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("should be a Node");
            assert_eq!(state(&live(&observed, entries), &own), expected, "{observed} {entries} {ready}");
        }
    }
}
