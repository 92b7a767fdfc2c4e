//! The server under test: the real one, in a runtime of its own that ends as abruptly as a process does.

use std::{net::SocketAddr, path::Path, sync::Arc};

use cache_server::{
    run::{Options, Reload, Running},
    server::Server,
    settings::Sources,
};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot},
};

use super::{Client, Registry};

/// What a server is started with. Lives on when the server ends, so that it can be started again.
pub(crate) struct Setup {
    root: TempDir,
    keep_going: bool,
}

impl Setup {
    /// With this configuration.
    pub(crate) fn new(config: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("secrets")).unwrap();
        let setup = Self { root, keep_going: false };
        setup.configure(config);
        setup
    }

    /// One mirror `hub` that stands for `docker.io`, with limits that let tests be short.
    pub(crate) fn mirroring(registry: &Registry) -> Self {
        Self::new(&mirror("hub", "docker.io", &registry.url(), ""))
    }

    /// The same with more fields of the spec.
    pub(crate) fn mirroring_with(registry: &Registry, fields: &str) -> Self {
        Self::new(&mirror("hub", "docker.io", &registry.url(), fields))
    }

    /// The same, serving what is good of a configuration with mistakes.
    pub(crate) fn keep_going(self) -> Self {
        Self { keep_going: true, ..self }
    }

    /// Writes another configuration, as an administrator would: the file is there whole or not at all.
    pub(crate) fn configure(&self, config: &str) {
        let (new, file) = (self.root.path().join("new"), self.root.path().join("config.yaml"));
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// Writes a key of a Secret.
    pub(crate) fn secret(&self, name: &str, key: &str, value: &str) {
        std::fs::write(self.root.path().join("secrets").join(format!("{name}_{key}")), value).unwrap();
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources {
            config: Some(self.root.path().join("config.yaml")),
            secrets: Some(self.root.path().join("secrets")),
            main_port: None,
        }
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            sources: self.sources(),
            data: self.data(),
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics: Some("127.0.0.1:0".parse().unwrap()),
            keep_going: self.keep_going,
        }
    }

    /// Starts a server.
    pub(crate) async fn start(&self) -> Cache {
        self.start_from(self.options()).await
    }

    /// Starts a server whose settings are somewhere else.
    pub(crate) async fn start_with(&self, sources: Sources) -> Cache {
        self.start_from(Options { sources, ..self.options() }).await
    }

    async fn start_from(&self, options: Options) -> Cache {
        let loaded = options.load().unwrap_or_else(|mistakes| unreachable!("{mistakes}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .event_interval(8)
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, start) = oneshot::channel();
        let reload = Arc::new(Notify::new());
        let asked = Arc::clone(&reload);
        let ended = runtime.spawn(async move {
            let running = Running::start(options, loaded).await.unwrap();
            let metrics = running.metrics_address().unwrap();
            started.send((running.address(), metrics, Arc::clone(running.server()))).ok().unwrap();
            let stop = async move { drop(stopped.await) };
            let reload = move || -> Reload {
                let asked = Arc::clone(&asked);
                Box::pin(async move { asked.notified().await })
            };
            running.until(stop, reload).await;
        });
        let (address, metrics, server) = start.await.expect("the server should start");
        // A server whose main port is closed has none.
        let address = address.unwrap_or_else(|| "127.0.0.1:1".parse().unwrap());
        Cache {
            address,
            metrics,
            server: Some(server),
            stop: Some(stop),
            ended: Some(ended),
            reload,
            runtime: Some(runtime),
        }
    }
}

/// The YAML of a mirror. `fields` are further lines of its spec.
pub(crate) fn mirror(name: &str, registry: &str, url: &str, fields: &str) -> String {
    let mut text = format!(
        "---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {{name: {name}}}
spec:
  upstream:
    registry: {registry}
    url: '{url}'
    limits: {{}}
    breaker: {{failures: 1000}}
"
    );
    for line in fields.lines() {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// A server that runs.
pub(crate) struct Cache {
    pub address: SocketAddr,
    /// The port for metrics and status.
    pub metrics: SocketAddr,
    server: Option<Arc<Server>>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<()>>,
    reload: Arc<Notify>,
    runtime: Option<Runtime>,
}

impl Cache {
    pub(crate) fn client(&self) -> Client {
        Client::to(self.address)
    }

    /// A client of the port for metrics and status.
    pub(crate) fn operator(&self) -> Client {
        Client::to(self.metrics)
    }

    /// What `/status` says.
    pub(crate) async fn status(&self) -> serde_json::Value {
        self.operator().get("/status").await.json()
    }

    pub(crate) fn server(&self) -> &Arc<Server> {
        self.server.as_ref().unwrap()
    }

    /// Has the configuration looked at now.
    pub(crate) fn reload(&self) {
        self.reload.notify_one();
    }

    /// Asks it to end, as SIGTERM does.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has drained.
    pub(crate) async fn drained(&mut self) {
        let ended = self.ended.take().unwrap();
        tokio::time::timeout(super::PATIENCE, ended).await.expect("should drain").unwrap();
    }

    /// Ends it as a crash does: nothing is finished.
    pub(crate) async fn kill(mut self) {
        drop(self.server.take());
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(super::PATIENCE)).await.unwrap();
    }

    /// A number from the metrics.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.client().get("/metrics").await.text();
        let value = text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let (metric, value) = line.rsplit_once(' ')?;
            (metric == name).then(|| value.parse().unwrap())
        });
        value.unwrap_or_else(|| unreachable!("no metric {name} in\n{text}"))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where the configuration's certificate goes.
pub(crate) fn certificate(setup: &Setup, secret: &str) -> Vec<u8> {
    certificate_for(setup, secret, "localhost")
}

/// A certificate for another name.
pub(crate) fn certificate_for(setup: &Setup, secret: &str, name: &str) -> Vec<u8> {
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    setup.secret(secret, "tls.crt", &issued.cert.pem());
    setup.secret(secret, "tls.key", &issued.signing_key.serialize_pem());
    issued.cert.der().to_vec()
}

/// The folder's files below, for messages.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    entries.unwrap_or_default().iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
