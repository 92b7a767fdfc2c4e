//! The life of the process: start, reload, drain.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    access::Logins,
    api,
    metrics::Metrics,
    ports::{PortError, Ports},
    server::Server,
    settings::{Loaded, Mistakes, Settings, Sources},
    store::{OpenError, Store},
};

/// How often files are looked at for changes. Kubernetes renews mounted files at its own pace; this adds at most so much.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a server that keeps going waits for a former one to let its data folder go: longer than one drains.
const FORMER_SERVER: Duration = Duration::from_secs(80);

/// How often it looks.
const LOOK_FOR_DATA_EVERY: Duration = Duration::from_millis(200);

/// How long the end of the process waits for the volume.
const SETTLE: Duration = Duration::from_secs(5);

/// How the process was started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where settings come from.
    pub sources: Sources,
    /// The folder of the store.
    pub data: PathBuf,
    /// The main port.
    pub listen: SocketAddr,
    /// A port of its own for metrics and health.
    pub metrics: Option<SocketAddr>,
    /// Whether objects with mistakes are left out, instead of refusing the whole configuration.
    pub keep_going: bool,
}

impl Options {
    /// Loads the settings to start with: any mistake refuses them, unless the server is to keep going.
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        if self.keep_going { Ok(Settings::load_good(&self.sources, None)) } else { Settings::load(&self.sources) }
    }
}

/// A server that has started.
pub struct Running {
    server: Arc<Server>,
    ports: Ports,
    drain: CancellationToken,
    metrics: Option<SocketAddr>,
    sources: Sources,
    keep_going: bool,
    loaded: Loaded,
    /// Whether a port could not be had, so that it is tried again.
    lacks_port: bool,
}

impl Running {
    /// Starts with settings that were loaded. Asks no upstream and looks at no content.
    pub async fn start(options: Options, loaded: Loaded) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let patience = if options.keep_going { FORMER_SERVER } else { Duration::ZERO };
        let store = open_store(options.data.clone(), &metrics, patience).await.context("failed to open the store")?;
        // Behind the store's lock: no other process makes a key here.
        let logins = Logins::new(&options.data);
        let server = Server::new(loaded.settings.clone(), store, metrics, logins, options.keep_going)?;
        let drain = CancellationToken::new();
        let mut ports = Ports::new(Arc::clone(&server), options.listen, drain.clone());
        let mut lacks_port = false;
        for error in ports.follow(&loaded.settings).await {
            if !options.keep_going || error.port() == options.listen.port() {
                return Err(error.into());
            }
            lacks_port = true;
            log_lacking(&error);
        }
        let metrics = match options.metrics {
            Some(address) => Some(serve_metrics(Arc::clone(&server), address).await?),
            None => None,
        };
        log_left_out(&loaded.settings);
        tokio::spawn(Arc::clone(&server.store).keep_within_limits());
        let Options { sources, keep_going, .. } = options;
        Ok(Self { server, ports, drain, metrics, sources, keep_going, loaded, lacks_port })
    }

    /// Where the main port listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.ports.main_address()
    }

    /// Where metrics, health and status are, if they have a port of their own.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The server.
    #[must_use]
    pub const fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Serves until `stop`, reloading when a file changes or `reload` says so; then lets running transfers end, for as
    /// long as the settings allow.
    pub async fn until(mut self, stop: impl Future<Output = ()>, mut reload: impl FnMut() -> Reload) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(LOOK_EVERY) => self.reload_if_changed().await,
                () = reload() => self.reload_if_changed().await,
            }
        }
        self.drain().await;
    }

    /// Loads the files anew if one changed. Mistakes are logged, and the old settings stay in force: all of them, or with
    /// `keep_going` those of the objects that have mistakes. A port that could not be had is tried again in any case.
    pub async fn reload_if_changed(&mut self) {
        let sources = self.sources.clone();
        let Ok(fingerprint) = tokio::task::spawn_blocking(move || sources.fingerprint()).await else { return };
        if fingerprint == self.loaded.fingerprint {
            if self.lacks_port && self.ports.follow(&self.server.current().settings).await.is_empty() {
                self.lacks_port = false;
                tracing::info!("every port listens as configured");
                self.server.metrics.reloaded(true);
            }
            return;
        }
        let (sources, keep_going, previous) = (self.sources.clone(), self.keep_going, self.server.current());
        let load = move || {
            if keep_going {
                Ok(Settings::load_good(&sources, Some(&previous.settings)))
            } else {
                Settings::load(&sources)
            }
        };
        let Ok(loaded) = tokio::task::spawn_blocking(load).await else { return };
        let ok = match loaded {
            Ok(loaded) => {
                log_left_out(&loaded.settings);
                let taken = self.take(&loaded).await;
                let whole = self.server.current().settings.mistakes.as_slice().is_empty();
                self.loaded = loaded;
                taken && whole
            }
            Err(mistakes) => {
                for mistake in mistakes.as_slice() {
                    tracing::error!(%mistake, "the changed configuration is not loaded; the last good one stays in force");
                }
                self.loaded.fingerprint = fingerprint;
                false
            }
        };
        self.server.metrics.reloaded(ok);
    }

    async fn take(&mut self, loaded: &Loaded) -> bool {
        if let Err(error) = self.server.apply(loaded.settings.clone()) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the changed configuration is not loaded; the last good one stays in force"
            );
            return false;
        }
        let failed = self.ports.follow(&loaded.settings).await;
        failed.iter().for_each(log_lacking);
        self.lacks_port = !failed.is_empty();
        tracing::info!(
            repositories = loaded.settings.repositories().count(),
            "the configuration changed and is loaded"
        );
        !self.lacks_port
    }

    async fn drain(self) {
        let grace = self.server.current().settings.server.limits.drain.get();
        self.server.begin_draining();
        self.drain.cancel();
        let connections = self.server.connections.clone();
        tracing::info!(
            connections = connections.len(),
            grace_seconds = grace.as_secs(),
            "ending: no new connections; running transfers may go on"
        );
        connections.close();
        if tokio::time::timeout(grace, connections.wait()).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "transfers were still running at the end of the grace and are cut; raise limits.drain if they should not be"
            );
        }
        if tokio::time::timeout(SETTLE, self.server.store.settle()).await.is_err() {
            tracing::warn!(
                "the volume is too slow: blobs that are whole will be given their names by the next process"
            );
        }
    }
}

/// Opens the store; one that another server still has is waited for. A pod that is deleted drains while its successor starts.
async fn open_store(data: PathBuf, metrics: &Metrics, patience: Duration) -> Result<Arc<Store>, OpenError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut waiting = false;
    loop {
        match Store::open(data.clone(), Arc::new(metrics.store_observer())) {
            Err(OpenError::InUse { path }) if tokio::time::Instant::now() < deadline => {
                if !waiting {
                    tracing::info!(path = %path.display(), "the data folder is in use by another server; waiting for it to end");
                }
                waiting = true;
                tokio::time::sleep(LOOK_FOR_DATA_EVERY).await;
            }
            opened => return opened,
        }
    }
}

/// A wait for the next wish to reload.
pub type Reload = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn log_lacking(error: &PortError) {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "a port does not listen as configured; it is tried again until it does"
    );
}

/// Says what is wrong where the server keeps going.
fn log_left_out(settings: &Settings) {
    for mistake in settings.mistakes.as_slice() {
        tracing::error!(%mistake, "an object is left out; its last good version stays in force, if there was one");
    }
}

async fn serve_metrics(server: Arc<Server>, address: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listen = || format!("failed to listen on {address} (--metrics)");
    let listener = TcpListener::bind(address).await.with_context(listen)?;
    let bound = listener.local_addr().with_context(listen)?;
    let router = api::pages::router(Arc::clone(&server)).merge(api::status::router(server));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(bound)
}
