//! What all requests share: the repositories as they are now, the store, the metrics.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use crds::names::RepositoryName;
use tokio_util::task::TaskTracker;

use crate::{
    metrics::Metrics,
    repository::{Mirror, mirror::BuildError},
    routing::Routing,
    settings::Settings,
    store::Store,
    upstream::Availability,
};

/// A running server.
pub struct Server {
    /// The store of all repositories.
    pub store: Arc<Store>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Its client connections.
    pub connections: TaskTracker,
    current: ArcSwap<Current>,
    draining: AtomicBool,
}

/// What the last good configuration says.
pub struct Current {
    /// The settings.
    pub settings: Settings,
    /// The way to each repository.
    pub routing: Routing,
    mirrors: HashMap<RepositoryName, Arc<Mirror>>,
}

impl Current {
    fn new(
        settings: Settings,
        store: &Arc<Store>,
        metrics: &Metrics,
        previous: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let mut mirrors = HashMap::new();
        for mirror in &settings.mirrors {
            // What did not change keeps its tokens, its breaker and what it remembers.
            let kept = previous.and_then(|previous| previous.mirrors.get(&mirror.name));
            let made = match kept.filter(|kept| kept.settings() == mirror) {
                Some(kept) => Arc::clone(kept),
                None => Mirror::new(mirror.clone(), Arc::clone(store), metrics.received(&mirror.name))?,
            };
            mirrors.insert(mirror.name.clone(), made);
        }
        Ok(Self { routing: Routing::new(&settings), settings, mirrors })
    }

    /// The mirror of a name that routing gave.
    #[must_use]
    pub fn mirror(&self, name: &RepositoryName) -> Option<&Arc<Mirror>> {
        self.mirrors.get(name)
    }

    /// All mirrors.
    pub fn mirrors(&self) -> impl Iterator<Item = &Arc<Mirror>> {
        self.mirrors.values()
    }
}

impl Server {
    /// A server over a store. Asks no upstream.
    pub fn new(settings: Settings, store: Arc<Store>, metrics: Arc<Metrics>) -> Result<Arc<Self>, BuildError> {
        store.set_limit(settings.server.max_size);
        let current = Current::new(settings, &store, &metrics, None)?;
        Ok(Arc::new(Self {
            store,
            metrics,
            connections: TaskTracker::new(),
            current: ArcSwap::from_pointee(current),
            draining: AtomicBool::new(false),
        }))
    }

    /// What holds now. A request keeps what it began with.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Takes other settings, for all requests that begin from now on. On failure the old ones hold.
    pub fn apply(&self, settings: Settings) -> Result<(), BuildError> {
        let max_size = settings.server.max_size;
        let next = Current::new(settings, &self.store, &self.metrics, Some(&self.current()))?;
        self.current.store(Arc::new(next));
        self.store.set_limit(max_size);
        Ok(())
    }

    /// The metrics as Prometheus reads them.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        for mirror in self.current().mirrors() {
            let available = matches!(mirror.upstream().availability(), Availability::Available);
            let rate = mirror.upstream().rate_limit();
            let limit = rate.and_then(|rate| rate.limit);
            self.metrics.upstream(&mirror.settings().name, available, limit, rate.and_then(|rate| rate.remaining));
        }
        self.metrics.text(self.store.used_bytes(), self.store.limit_bytes(), self.connections.len())
    }

    /// From now on the server is not ready: it ends.
    pub fn begin_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new requests should come here. Never depends on an upstream.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }
}
