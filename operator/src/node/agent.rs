//! The loop: whatever happens (a new spec, a verdict, a changed file, a minute), look at everything and make it true.
//! May import everything of this folder.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use crds::{
    NodeMirror, NodeMirrorSpec, NodeMirrorStatus,
    node_mirror::{Canary, EntryState, NodeEntry, RuntimeStatus},
    nodes::{Fallback, Foreign, ProbeSpec},
};
use jiff::Timestamp;
use kube::Client;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::{
    cluster,
    config::Folder,
    detect::{self, Detected, Reads},
    disk::{Disk, Error},
    plan::Wish,
    probe::Target,
    probing::{Event as ProbeEvent, Probing},
    report::{self, Findings, Proof, Standing},
};
use crate::causes::chain;

/// Everything is looked at once in this time, whatever was not heard of.
const RESYNC: Duration = Duration::from_mins(1);
/// What is remembered is in this folder beside certs.d.
pub(super) const STATE: &str = "entrepot";
/// In the state folder: what was asked for last, for a start without an apiserver.
const SPEC: &str = "spec.json";
/// In the state folder: what is known of containerd's configuration.
const PROOF: &str = "runtime.json";

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its node.
    pub node: String,
    /// The mounted folder of containerd.
    pub containerd_dir: PathBuf,
    /// What is before the host's names of mounted folders.
    pub host_root: PathBuf,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The node's object is this now; `None`: there is none.
    Object(Option<Box<NodeMirror>>),
    /// The Node says that its runtime is this.
    Runtime(String),
    /// A verdict about the cache.
    Verdict(ProbeEvent),
    /// Files changed.
    Files,
}

/// What is asked for, as it is kept for a start without an apiserver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    generation: Option<i64>,
    spec: NodeMirrorSpec,
}

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    node: String,
    folder: Folder,
    disk: Disk,
    probing: Probing,
    asked: Option<Asked>,
    /// The canary that reached the cache last.
    seen: Option<String>,
    runtime: Option<String>,
    /// The status that was computed last, or read at the start.
    status: Option<NodeMirrorStatus>,
    states: BTreeMap<String, Standing>,
    deaf: Option<String>,
    /// Whether the apiserver has shown the object since the start.
    is_live: bool,
    /// Whether the object has no status of ours, because it was made anew.
    is_status_lost: bool,
}

/// Runs the agent until `stop` ends; files stay as they are then.
///
/// # Errors
/// When what it remembers cannot be read at the start.
pub async fn run(client: Client, options: Options, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let (send, mut events) = mpsc::unbounded_channel();
    let mut agent = Agent::start(&options, send.clone())?;
    let (statuses, written) = watch::channel(None);
    let _tasks = [
        cluster::watch_object(client.clone(), options.node.clone(), send.clone()),
        cluster::watch_runtime(client.clone(), options.node.clone(), send.clone()),
        cluster::write_statuses(client, options.node.clone(), written),
        cluster::watch_files(agent.folder.mounted.clone(), send),
    ];
    let mut ticks = interval(RESYNC);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(event) = events.recv() => agent.hear(event),
            _ = ticks.tick() => {}
        }
        while let Ok(event) = events.try_recv() {
            agent.hear(event);
        }
        if let Some(status) = agent.converge() {
            let is_lost = std::mem::take(&mut agent.is_status_lost);
            statuses.send_if_modified(|last| {
                let changed = is_lost || last.as_ref() != Some(&status);
                *last = Some(status);
                changed
            });
        }
    }
}

impl Agent {
    /// Reads what is remembered.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn start(options: &Options, events: mpsc::UnboundedSender<Event>) -> Result<Self, Error> {
        let folder = Folder::new(options.containerd_dir.clone(), &options.host_root);
        let disk = Disk::new(folder.mounted.join(STATE));
        let asked: Option<Asked> = disk.kept(SPEC)?;
        info!(node = options.node, folder = %folder.on_host.display(), remembered = asked.is_some(), "the agent starts");
        let agent = Self {
            node: options.node.clone(),
            folder,
            disk,
            probing: Probing::new(events),
            asked,
            seen: None,
            runtime: None,
            status: None,
            states: BTreeMap::new(),
            deaf: None,
            is_live: false,
            is_status_lost: false,
        };
        agent.disk.sweep(&agent.root(&agent.detect().0.reads))?;
        Ok(agent)
    }

    fn state_folder(&self) -> PathBuf {
        self.folder.mounted.join(STATE)
    }

    /// Takes an event in; [`Self::converge`] acts on it.
    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Object(Some(object)) => self.hear_object(*object),
            Event::Object(None) => {
                // Files stay until there is an object that says otherwise.
                self.is_live = false;
                info!(node = self.node, "there is no NodeMirror of this name; files stay as they are");
            }
            Event::Runtime(version) => self.runtime = Some(version),
            Event::Verdict(event) => self.probing.hear(event),
            Event::Files => {}
        }
    }

    fn hear_object(&mut self, object: NodeMirror) {
        let status = object.status.unwrap_or_default();
        self.is_status_lost |= status.observed_generation.is_none();
        self.seen = status.verified.as_ref().map(|verified| verified.nonce.clone());
        self.status.get_or_insert(status);
        self.is_live = true;
        let asked = Asked { generation: object.metadata.generation, spec: object.spec };
        if self.asked.as_ref() != Some(&asked) {
            info!(node = self.node, generation = asked.generation, entries = asked.spec.entries.len(), "a new spec");
            self.asked = Some(asked);
        }
    }

    /// Makes files what they shall be, and tells the status if there is an object to write it to.
    pub fn converge(&mut self) -> Option<NodeMirrorStatus> {
        let asked = self.asked.clone()?;
        let entries = entries(&asked.spec);
        if let Err(error) = self.remember(&asked, entries.is_empty()) {
            warn!(node = self.node, error = chain(&error), "what is asked for cannot be remembered");
        }
        let (detected, fingerprint) = self.detect();
        let root = self.root(&detected.reads);
        self.probing.ask(entries.iter().map(|entry| (target(entry), entry.probe.clone())));
        let mut standings = self.restore(&root, &entries);
        standings.extend(entries.iter().map(|entry| (entry.registry.clone(), self.entry(&root, entry))));
        if entries.is_empty()
            && let Err(error) = self.disk.leave(&root)
        {
            warn!(node = self.node, error = chain(&error), "the agent's own folder cannot be removed");
        }
        let proof = self.proof(&asked, &fingerprint, entries.is_empty());
        self.log(&standings, &detected.reads);
        let runtime = RuntimeStatus {
            name: "containerd".to_owned(),
            version: self.runtime.as_deref().map(|text| text.trim_start_matches("containerd://").to_owned()),
            config_path: detected.config_path,
            fingerprint: Some(fingerprint),
        };
        let findings =
            Findings { generation: asked.generation, runtime, reads: &detected.reads, proof: &proof, standings };
        let status = report::status(findings, self.status.as_ref(), Timestamp::now());
        self.status = Some(status.clone());
        // Before the version is known everything about the runtime would be said twice.
        (self.is_live && self.runtime.is_some()).then_some(status)
    }

    /// Keeps what is asked for. Once everything is back, there is no folder for it any more.
    fn remember(&self, asked: &Asked, nothing: bool) -> Result<(), Error> {
        if nothing && !self.state_folder().exists() { Ok(()) } else { self.disk.keep(SPEC, asked) }
    }

    fn detect(&self) -> (Detected, String) {
        let version = self.runtime.as_deref();
        let on_host = self.folder.on_host.to_string_lossy().into_owned();
        match self.folder.sources() {
            Ok(sources) => {
                let list_leads_here = self.folder.list_leads_here("/etc/containerd/certs.d:/etc/docker/certs.d");
                let node = detect::Node { version, folder: &on_host, list_leads_here };
                let said = format!("{version:?} {sources:?} {list_leads_here} {:?}", self.folder.written());
                let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, said.as_bytes());
                (detect::detect(&sources, &node), hex::encode(&digest.as_ref()[..8]))
            }
            Err(error) => {
                let text = format!("{on_host}/config.toml cannot be read: {error}; make it readable for root");
                let reads = Reads::Not(detect::Deaf::Unreadable(text));
                (Detected { config_path: None, reads }, String::new())
            }
        }
    }

    /// certs.d as the agent finds it: where containerd reads, else where it would by the cure.
    fn root(&self, reads: &Reads) -> PathBuf {
        let named = match reads {
            Reads::From(root) => self.folder.inside(Path::new(root)),
            Reads::Not(_) => None,
        };
        named.unwrap_or_else(|| self.folder.mounted.join("certs.d"))
    }

    /// Puts back what is no longer asked for, and tells what could not be.
    fn restore(&self, root: &Path, entries: &[NodeEntry]) -> Vec<(String, Standing)> {
        let records = match self.disk.remembered() {
            Ok(records) => records,
            Err(error) => {
                warn!(node = self.node, error = chain(&error), "what was there before cannot be read");
                return vec![("*".to_owned(), Standing::failed("NotRestored", chain(&error)))];
            }
        };
        let gone = records.keys().filter(|registry| entries.iter().all(|entry| entry.registry != **registry));
        gone.filter_map(|registry| match self.disk.fulfil(root, registry, Wish::Away) {
            Ok(_) => {
                info!(node = self.node, registry, state = "Restored", "files are as they were before");
                None
            }
            Err(error) => Some((registry.clone(), Standing::failed("NotRestored", chain(&error)))),
        })
        .collect()
    }

    fn entry(&self, root: &Path, entry: &NodeEntry) -> Standing {
        let (verdict, error) = self.probing.verdict(&target(entry), &entry.probe);
        let before =
            self.status.as_ref().and_then(|status| status.entries.iter().find(|old| old.registry == entry.registry));
        match self.disk.fulfil(root, &entry.registry, report::wish(entry, verdict)) {
            Ok(done) => report::standing(entry, verdict, error.as_deref(), &done.plan.outcome, before),
            Err(error) => Standing::failed("FilesNotWritten", chain(&error)),
        }
    }

    fn proof(&self, asked: &Asked, fingerprint: &str, nothing: bool) -> Proof {
        let kept = self.disk.kept::<Proof>(PROOF).ok().flatten().unwrap_or_default();
        if self.runtime.is_none() {
            return kept;
        }
        let nonce = asked.spec.canary.as_ref().map(|canary| canary.nonce.as_str());
        let proof = kept.observe(fingerprint, self.folder.changed_since_boot(), nonce, self.seen.as_deref());
        if !nothing && let Err(error) = self.disk.keep(PROOF, &proof) {
            warn!(node = self.node, error = chain(&error), "what is known of containerd cannot be remembered");
        }
        proof
    }

    /// One line per change.
    fn log(&mut self, standings: &[(String, Standing)], reads: &Reads) {
        for (registry, standing) in standings {
            if self.states.get(registry) == Some(standing) {
                continue;
            }
            let state = format!("{:?}", standing.state);
            let message = standing.message.as_deref().unwrap_or("files name the cache");
            if matches!(standing.state, EntryState::Configured | EntryState::Pending) {
                info!(node = self.node, registry, state, reason = standing.reason, "{message}");
            } else {
                warn!(node = self.node, registry, state, reason = standing.reason, "{message}");
            }
        }
        self.states = standings.iter().cloned().collect();
        let deaf = match reads {
            Reads::Not(deaf) if self.runtime.is_some() => Some(deaf.to_string()),
            _ => None,
        };
        if deaf != self.deaf {
            if let Some(cure) = &deaf {
                warn!(node = self.node, "{cure}");
            } else {
                info!(node = self.node, "containerd's configuration names the agent's folder");
            }
            self.deaf = deaf;
        }
    }
}

/// The registries of a spec, the canary's among them.
fn entries(spec: &NodeMirrorSpec) -> Vec<NodeEntry> {
    spec.entries.iter().cloned().chain(spec.canary.as_ref().map(canary_entry)).collect()
}

/// The canary as an entry: it is asked of nobody but the cache.
fn canary_entry(canary: &Canary) -> NodeEntry {
    NodeEntry {
        registry: canary.registry.clone(),
        url: canary.url.clone(),
        repository: "probe".to_owned(),
        ca_bundle: canary.ca_bundle.clone(),
        server: Some(canary.url.clone()),
        fallback: Fallback::Allow,
        foreign: Foreign::Replace,
        probe: ProbeSpec::default(),
    }
}

fn target(entry: &NodeEntry) -> Target {
    Target { url: entry.url.clone(), repository: Some(entry.repository.clone()), ca_bundle: entry.ca_bundle.clone() }
}
