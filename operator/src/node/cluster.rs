//! The agent's ears and its pen: the node's objects, its files, its status. May import `agent`'s events.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crds::{NodeMirror, NodeMirrorStatus};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::agent::{Event, chain};

/// Whose fields of the status these are.
const MANAGER: &str = "entrepot-node";
/// Time between two looks at the Node's runtime, which changes with an upgrade.
const RUNTIME_INTERVAL: Duration = Duration::from_mins(5);
/// After a request that failed, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// For one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Tells of the node's object whenever it changes.
pub(super) fn watch_object(client: Client, node: String, events: UnboundedSender<Event>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
        let stream = watcher(Api::<NodeMirror>::all(client), config).default_backoff();
        pin_mut!(stream);
        let mut found = None;
        while let Some(event) = stream.next().await {
            let object = match event {
                Ok(watcher::Event::Init) => {
                    found = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    found = Some(Box::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => found.take(),
                Ok(watcher::Event::Apply(object)) => Some(Box::new(object)),
                Ok(watcher::Event::Delete(_)) => None,
                Err(error) => {
                    warn!(
                        node,
                        error = chain(&error),
                        "the apiserver does not tell of the NodeMirror; the last spec stays in force"
                    );
                    continue;
                }
            };
            if events.send(Event::Object(object)).is_err() {
                return;
            }
        }
    }))
}

/// Tells which runtime the Node has.
pub(super) fn watch_runtime(client: Client, node: String, events: UnboundedSender<Event>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let nodes = Api::<Node>::all(client);
        let mut last = None;
        let mut pause = BACK_OFF.0;
        loop {
            match timeout(REQUEST_LIMIT, nodes.get(&node)).await {
                Ok(Ok(found)) => {
                    let info = found.status.and_then(|status| status.node_info);
                    let version = info.map(|info| info.container_runtime_version);
                    if version.is_some() && version != last {
                        last.clone_from(&version);
                        if version.is_some_and(|version| events.send(Event::Runtime(version)).is_err()) {
                            return;
                        }
                    }
                    pause = if last.is_some() { RUNTIME_INTERVAL } else { BACK_OFF.1 };
                }
                Ok(Err(error)) => {
                    debug!(node, error = chain(&error), "the Node cannot be read");
                    pause = (pause * 2).min(BACK_OFF.1);
                }
                Err(_) => pause = BACK_OFF.1,
            }
            sleep(pause).await;
        }
    }))
}

/// Writes each status that differs from the one before, and the newest again until it is written.
pub(super) fn write_statuses(
    client: Client,
    node: String,
    mut statuses: watch::Receiver<Option<NodeMirrorStatus>>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let objects = Api::<NodeMirror>::all(client);
        let parameters = PatchParams::apply(MANAGER).force();
        while statuses.changed().await.is_ok() {
            let mut pause = BACK_OFF.0;
            loop {
                let Some(status) = statuses.borrow_and_update().clone() else { break };
                let patch = serde_json::json!({
                    "apiVersion": "entrepot.dev/v1alpha1",
                    "kind": "NodeMirror",
                    "metadata": {"name": node},
                    "status": status,
                });
                let error = match timeout(REQUEST_LIMIT, objects.patch_status(&node, &parameters, &Patch::Apply(patch)))
                    .await
                {
                    Ok(Ok(_)) => break,
                    // The object is gone; another one will ask for another status.
                    Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => break,
                    Ok(Err(error)) => chain(&error),
                    Err(_) => "no answer in time".to_owned(),
                };
                warn!(node, error, "the status could not be written; it is tried again");
                sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
        }
    }))
}

/// Tells of changed files in a folder, except those of the agent's own state. Without it the minute's look must do.
pub(super) fn watch_files(folder: &Path, own: PathBuf, events: UnboundedSender<Event>) -> Option<RecommendedWatcher> {
    let heard = move |event: notify::Result<notify::Event>| {
        // Reading is no change; else every look would cause the next.
        let is_change =
            event.is_ok_and(|event| !event.kind.is_access() && !event.paths.iter().all(|path| path.starts_with(&own)));
        if is_change {
            // The loop has ended if nobody listens.
            let _ = events.send(Event::Files);
        }
    };
    let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| warn!(error = chain(error), "files cannot be watched; they are looked at once a minute"))
        .ok()
}
