//! The agent against a cache that answers, freezes and comes back: over TLS, with real files, without an apiserver.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crds::{
    NodeMirror, NodeMirrorSpec, NodeMirrorStatus, conditions,
    names::Span,
    node_mirror::{Canary, EntryState, NodeEntry},
    nodes::{Fallback, Foreign, ProbeSpec},
};
use operator::node::agent::{Agent, Event, Options};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

const LIMIT: Duration = Duration::from_secs(20);

/// Something that answers as a cache does, until it is frozen.
struct Cache {
    origin: String,
    ca: String,
    frozen: Arc<AtomicBool>,
}

impl Cache {
    async fn start() -> Self {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("https://{}", listener.local_addr().unwrap());
        let frozen = Arc::new(AtomicBool::new(false));
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&frozen)));
        Self { origin, ca: issued.cert.pem(), frozen }
    }

    fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    fn entry(&self, registry: &str) -> NodeEntry {
        NodeEntry {
            registry: registry.to_owned(),
            url: format!("{}/repository/hub", self.origin),
            repository: "hub".to_owned(),
            ca_bundle: Some(self.ca.clone()),
            server: None,
            fallback: Fallback::Allow,
            foreign: Foreign::Prepend,
            probe: ProbeSpec { interval: Span::millis(100), timeout: Span::millis(500), ..ProbeSpec::default() },
        }
    }

    fn canary(&self) -> Canary {
        Canary {
            registry: "probe.entrepot.invalid".to_owned(),
            url: format!("{}/repository/probe", self.origin),
            ca_bundle: Some(self.ca.clone()),
            nonce: "n1".to_owned(),
        }
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, frozen: Arc<AtomicBool>) {
    let mut held = vec![];
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if frozen.load(Ordering::SeqCst) {
            held.push(stream);
            continue;
        }
        let tls = tls.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = tls.accept(stream).await else { return };
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let name = request
                .strip_prefix("GET /repository/")
                .and_then(|rest| rest.split_once("/v2/ "))
                .map(|(name, _)| name);
            let answer = match name {
                Some(name) => {
                    format!("HTTP/1.1 200 OK\r\nEntrepot-Repository: {name}\r\nContent-Length: 2\r\n\r\n{{}}")
                }
                None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}

/// A node with an agent that is driven by hand.
struct Node {
    root: TempDir,
    agent: Agent,
    events: mpsc::UnboundedReceiver<Event>,
    generation: i64,
}

impl Node {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let folder = root.path().join("etc/containerd");
        fs::create_dir_all(folder.join("certs.d/docker.io")).unwrap();
        fs::write(folder.join("certs.d/docker.io/ca.crt"), "theirs").unwrap();
        let config = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";
        fs::write(folder.join("config.toml"), config).unwrap();
        let (agent, events) = start(&root);
        Self { root, agent, events, generation: 0 }
    }

    /// The agent ends as by SIGTERM, and another one starts.
    fn restart(&mut self) {
        (self.agent, self.events) = start(&self.root);
    }

    fn hosts(&self, registry: &str) -> PathBuf {
        self.root.path().join("etc/containerd/certs.d").join(registry).join("hosts.toml")
    }

    fn ask(&mut self, entries: Vec<NodeEntry>, canary: Option<Canary>) {
        self.generation += 1;
        let mut object = NodeMirror::new("n1", NodeMirrorSpec { entries, canary });
        object.metadata.generation = Some(self.generation);
        self.agent.hear(Event::Runtime("containerd://2.1.9".to_owned()));
        self.agent.hear(Event::Object(Some(Box::new(object))));
    }

    /// Lets the agent go on until its files or its status are so.
    async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&Self, Option<&NodeMirrorStatus>) -> bool,
    ) -> Option<NodeMirrorStatus> {
        let mut last = self.agent.converge();
        timeout(LIMIT, async {
            while !holds(self, last.as_ref()) {
                let event = self.events.recv().await.unwrap();
                self.agent.hear(event);
                last = self.agent.converge();
            }
        })
        .await
        .unwrap_or_else(|_| unreachable!("{what}: {last:#?}"));
        last
    }
}

fn start(root: &TempDir) -> (Agent, mpsc::UnboundedReceiver<Event>) {
    let (send, events) = mpsc::unbounded_channel();
    let options = Options {
        node: "n1".to_owned(),
        containerd_dir: root.path().join("etc/containerd"),
        host_root: root.path().to_owned(),
    };
    (Agent::start(&options, send).unwrap(), events)
}

fn is(state: EntryState) -> impl Fn(&Node, Option<&NodeMirrorStatus>) -> bool {
    move |_, status| status.is_some_and(|status| status.entries.iter().all(|entry| entry.state == state))
}

fn condition<'a>(status: &'a NodeMirrorStatus, type_: &str) -> (&'a str, &'a str) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (&found.status, &found.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_follow_the_cache_and_go_with_the_entries() {
    let cache = Cache::start().await;
    let mut node = Node::new();
    node.ask(vec![cache.entry("docker.io"), cache.entry("quay.io")], Some(cache.canary()));
    let status = node.agent.converge().unwrap();
    assert!(status.entries.iter().all(|entry| entry.state == EntryState::Pending), "{status:#?}");
    assert!(!node.hosts("docker.io").exists());

    let status = node.until("configured", is(EntryState::Configured)).await.unwrap();
    assert_eq!(status.entries.len(), 3);
    assert_eq!(status.entries[0].hash, Some(cache.entry("docker.io").hash()));
    assert_eq!(condition(&status, conditions::READY), ("True", "Configured"));
    assert!(fs::read_to_string(node.hosts("docker.io")).unwrap().contains("ca = [\"ca.crt\"]"));
    let canary = fs::read_to_string(node.hosts("probe.entrepot.invalid")).unwrap();
    assert_eq!(canary.matches("/repository/probe\"").count(), 2, "{canary}");

    cache.freeze(true);
    let status = node.until("withdrawn", is(EntryState::Withdrawn)).await.unwrap();
    assert!(!node.hosts("docker.io").exists() && !node.hosts("quay.io").parent().unwrap().exists());
    assert!(status.entries[0].message.as_ref().unwrap().contains("no answer in time"), "{status:#?}");
    assert_eq!(condition(&status, conditions::READY), ("False", "CacheNotAnswering"));

    cache.freeze(false);
    node.until("back", is(EntryState::Configured)).await;

    node.ask(vec![], None);
    let status =
        node.until("restored", |_, status| status.is_some_and(|status| status.entries.is_empty())).await.unwrap();
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(condition(&status, conditions::READY), ("True", "Restored"));
    let folder = node.root.path().join("etc/containerd");
    assert!(!node.hosts("docker.io").exists() && !folder.join("entrepot").exists());
    assert_eq!(fs::read_dir(folder.join("certs.d")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_an_apiserver_keeps_files_and_still_withdraws() {
    let cache = Cache::start().await;
    let mut node = Node::new();
    node.ask(vec![cache.entry("docker.io")], None);
    node.until("configured", is(EntryState::Configured)).await;

    node.restart();
    assert_eq!(node.agent.converge(), None, "there is no object to report to");
    assert!(node.hosts("docker.io").exists());
    cache.freeze(true);
    node.until("withdrawn", |node, _| !node.hosts("docker.io").exists()).await;
    cache.freeze(false);
    node.until("back", |node, _| node.hosts("docker.io").exists()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fallback_files_stay_while_the_cache_is_silent() {
    let cache = Cache::start().await;
    let mut node = Node::new();
    let mut strict = cache.entry("docker.io");
    strict.fallback = Fallback::Never;
    node.ask(vec![strict], None);
    node.until("configured", is(EntryState::Configured)).await;
    cache.freeze(true);
    let silent = |_: &Node, status: Option<&NodeMirrorStatus>| {
        status.is_some_and(|status| status.entries[0].reason.as_deref() == Some("CacheNotAnswering"))
    };
    let status = node.until("silent", silent).await.unwrap();
    assert_eq!(status.entries[0].state, EntryState::Configured);
    assert!(node.hosts("docker.io").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_address_never_gets_into_files() {
    let (cache, other) = (Cache::start().await, Cache::start().await);
    let mut wrong_name = cache.entry("docker.io");
    wrong_name.repository = "another".to_owned();
    let mut wrong_authority = cache.entry("quay.io");
    wrong_authority.ca_bundle = Some(other.ca.clone());
    let mut node = Node::new();
    node.ask(vec![wrong_name, wrong_authority], None);
    let said = |_: &Node, status: Option<&NodeMirrorStatus>| {
        status.is_some_and(|status| {
            status.entries.iter().all(|entry| entry.reason.as_deref() == Some("CacheNotAnswering"))
        })
    };
    let status = node.until("refused", said).await.unwrap();
    assert!(is(EntryState::Pending)(&node, Some(&status)), "{status:#?}");
    let message = |index: usize| status.entries[index].message.clone().unwrap();
    assert!(message(0).contains("instead of repository \"another\""), "{}", message(0));
    assert!(message(1).contains("certificate"), "{}", message(1));
    assert!(!node.hosts("docker.io").exists() && !node.hosts("quay.io").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_reads_nothing_is_named_with_its_cure_and_doubted_until_a_canary_passes() {
    let cache = Cache::start().await;
    let mut node = Node::new();
    let config = node.root.path().join("etc/containerd/config.toml");
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, good.replace("/etc/containerd/certs.d", "")).unwrap();
    node.ask(vec![cache.entry("docker.io")], Some(cache.canary()));
    let status = node.until("configured", is(EntryState::Configured)).await.unwrap();
    assert_eq!(condition(&status, conditions::RUNTIME_READS_FILES), ("False", "NoConfigPath"));

    fs::write(&config, good).unwrap();
    let status = node.agent.converge().unwrap();
    assert_eq!(condition(&status, conditions::RUNTIME_READS_FILES), ("Unknown", "SetNotRestarted"));

    let mut object =
        NodeMirror::new("n1", NodeMirrorSpec { entries: vec![cache.entry("docker.io")], canary: Some(cache.canary()) });
    object.spec.canary.as_mut().unwrap().nonce = "n2".to_owned();
    object.metadata.generation = Some(2);
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now());
    let verified = crds::node_mirror::Verified { nonce: "n2".to_owned(), time };
    object.status = Some(NodeMirrorStatus { verified: Some(verified), ..status });
    node.agent.hear(Event::Object(Some(Box::new(object))));
    let status = node.agent.converge().unwrap();
    assert_eq!(condition(&status, conditions::RUNTIME_READS_FILES), ("True", "Proven"));
}
