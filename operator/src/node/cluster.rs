//! The agent's ears and its pen: the node's objects, its files, its status. May import `agent`'s events.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crds::{NodeMirror, NodeMirrorStatus};
use futures_util::{StreamExt, pin_mut};
use inotify::{Inotify, WatchMask, Watches};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::agent::{Event, STATE};
use crate::causes::chain;

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

/// Tells of changed files in containerd's folder and in certs.d. Without it the minute's look must do.
pub(super) fn watch_files(folder: PathBuf, events: UnboundedSender<Event>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = tell_of_files(&folder, &events).await {
            warn!(error = chain(&error), "files cannot be watched; they are looked at once a minute");
        }
    }))
}

async fn tell_of_files(folder: &Path, events: &UnboundedSender<Event>) -> io::Result<()> {
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    watch_all(&mut watches, folder)?;
    let mut buffer = [0; 4096];
    let mut stream = inotify.into_event_stream(&mut buffer)?;
    while let Some(event) = stream.next().await {
        event?;
        if events.send(Event::Files).is_err() {
            break;
        }
        // There may be new directories; the ones that are watched already stay so.
        watch_all(&mut watches, folder)?;
    }
    Ok(())
}

/// Watches the folder, the folders in it and those in certs.d; not our own, since what we remember tells us nothing.
fn watch_all(watches: &mut Watches, folder: &Path) -> io::Result<()> {
    // No reads: every look would cause the next.
    let changes = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::ATTRIB
        | WatchMask::ONLYDIR;
    watches.add(folder, changes)?;
    for inner in folders(folder).into_iter().filter(|inner| !inner.ends_with(STATE)) {
        for path in folders(&inner).into_iter().chain([inner]) {
            match watches.add(&path, changes) {
                // Gone in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                added => drop(added?),
            }
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[tokio::test]
    async fn a_file_that_changes_in_a_new_directory_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let (send, mut events) = tokio::sync::mpsc::unbounded_channel();
        let _watch = watch_files(folder.path().to_owned(), send);
        let limit = Duration::from_secs(10);
        // Until the watch stands; then each of these must be told of.
        let config = folder.path().join("config.toml");
        let heard = async {
            while timeout(Duration::from_millis(50), events.recv()).await.is_err() {
                fs::write(&config, "version = 3\n").unwrap();
            }
        };
        timeout(limit, heard).await.unwrap();
        for name in ["certs.d", "certs.d/docker.io", "certs.d/docker.io/hosts.toml"] {
            while events.try_recv().is_ok() {}
            let path = folder.path().join(name);
            if path.extension().is_some_and(|extension| extension == "toml") {
                fs::write(&path, "x").unwrap();
            } else {
                fs::create_dir(&path).unwrap();
            }
            let told = timeout(limit, events.recv()).await;
            assert!(matches!(told, Ok(Some(Event::Files))), "{name}: {told:?}");
            // The new directory is watched once the event was handled: ask until it is.
            let inner = path.join("x");
            while path.is_dir() && timeout(Duration::from_millis(50), events.recv()).await.is_err() {
                fs::write(&inner, "x").unwrap();
            }
            let _ = fs::remove_file(inner);
        }
    }
}
