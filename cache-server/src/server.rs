//! What all requests share: the repositories as they are now, the store, the metrics.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use crds::names::RepositoryName;
use tokio_util::task::TaskTracker;

use crate::{
    access::Logins,
    canary::record::Pulls,
    metrics::Metrics,
    oci::{Algorithm, Digest},
    repository::{Group, Hosted, Leaf, Mirror, Repository, hosted, mirror},
    routing::Routing,
    settings::{HostedSettings, MainPort, MirrorSettings, Settings},
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
    /// Which canaries were pulled.
    pub canaries: Pulls,
    /// Who logs in.
    pub logins: Logins,
    current: ArcSwap<Current>,
    changes: AtomicU64,
    keep_going: bool,
    draining: AtomicBool,
}

/// What the last good configuration says.
pub struct Current {
    /// The settings.
    pub settings: Settings,
    /// The way to each repository.
    pub routing: Routing,
    repositories: HashMap<RepositoryName, Repository>,
}

/// Why a repository cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A mirror.
    #[error(transparent)]
    Mirror(#[from] mirror::BuildError),
    /// A hosted repository.
    #[error(transparent)]
    Hosted(#[from] hosted::BuildError),
}

impl Current {
    /// With `keep_going` repositories that cannot be made are left out.
    fn new(
        mut settings: Settings,
        store: &Arc<Store>,
        metrics: &Metrics,
        previous: Option<&Self>,
        keep_going: bool,
    ) -> Result<Self, BuildError> {
        let mirrors = settings.mirrors.iter().map(|wanted| (&wanted.name, mirror(wanted, store, metrics, previous)));
        let hosted = settings.hosted.iter().map(|wanted| (&wanted.name, hosted(wanted, store, previous)));
        let (mut leaves, mut failed) = (HashMap::new(), Vec::new());
        for (name, made) in mirrors.chain(hosted) {
            match made {
                Ok(made) => drop(leaves.insert(name.clone(), made)),
                Err(error) if keep_going => failed.push((name.clone(), error)),
                Err(error) => return Err(error),
            }
        }
        let is_unmade = |hosted: &&HostedSettings| failed.iter().any(|(name, _)| *name == hosted.name);
        let unmade: Vec<HostedSettings> = settings.hosted.iter().filter(is_unmade).cloned().collect();
        for (name, error) in failed {
            tracing::error!(error = &error as &dyn std::error::Error, "a repository cannot be made and is left out");
            settings.leave_out(&name, &error);
        }
        let groups: Vec<_> =
            settings.groups.iter().map(|wanted| Group::new(wanted.clone(), &settings, &leaves, &unmade)).collect();
        let mut repositories: HashMap<_, _> =
            leaves.into_iter().map(|(name, leaf)| (name, Repository::from(leaf))).collect();
        repositories.extend(groups.into_iter().map(|group| (group.settings().name.clone(), Repository::Group(group))));
        Ok(Self { routing: Routing::new(&settings), settings, repositories })
    }

    /// The repository of a name that routing gave.
    #[must_use]
    pub fn repository(&self, name: &RepositoryName) -> Option<&Repository> {
        self.repositories.get(name)
    }

    /// The repositories of all kinds.
    pub fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.repositories.values()
    }

    /// The mirror of a name.
    #[must_use]
    pub fn mirror(&self, name: &RepositoryName) -> Option<&Arc<Mirror>> {
        match self.repositories.get(name)? {
            Repository::Leaf(Leaf::Mirror(mirror)) => Some(mirror),
            Repository::Leaf(Leaf::Hosted(_)) | Repository::Group(_) => None,
        }
    }

    /// What keeps groups from serving all that they list: the group, and a sentence.
    pub fn problems(&self) -> impl Iterator<Item = (&RepositoryName, String)> {
        let groups = self.settings.groups.iter();
        groups.flat_map(|group| {
            self.settings.membership(group).problems.into_iter().map(|problem| (&group.name, problem))
        })
    }

    /// SHA-256 of the certificate that the main port shows, in hexadecimal digits; nothing without TLS.
    #[must_use]
    pub fn certificate(&self) -> Option<String> {
        let MainPort::Tls(certificate) = &self.settings.server.main_port else { return None };
        let own = certificate.chain().first()?;
        Some(Digest::of(Algorithm::Sha256, own).hex().to_owned())
    }

    /// All mirrors.
    pub fn mirrors(&self) -> impl Iterator<Item = &Arc<Mirror>> {
        self.settings.mirrors.iter().filter_map(|mirror| self.mirror(&mirror.name))
    }
}

/// What did not change keeps its tokens, its breaker and what it remembers.
fn mirror(
    wanted: &MirrorSettings,
    store: &Arc<Store>,
    metrics: &Metrics,
    previous: Option<&Current>,
) -> Result<Leaf, BuildError> {
    let kept = previous.and_then(|previous| previous.mirror(&wanted.name)).filter(|kept| kept.settings() == wanted);
    Ok(Leaf::Mirror(match kept {
        Some(kept) => Arc::clone(kept),
        None => Mirror::new(wanted.clone(), Arc::clone(store), metrics.received(&wanted.name))?,
    }))
}

/// What did not change keeps what it has under way.
fn hosted(wanted: &HostedSettings, store: &Arc<Store>, previous: Option<&Current>) -> Result<Leaf, BuildError> {
    let kept = match previous.and_then(|previous| previous.repository(&wanted.name)) {
        Some(Repository::Leaf(Leaf::Hosted(kept))) if kept.settings() == wanted => Some(kept),
        _ => None,
    };
    Ok(Leaf::Hosted(match kept {
        Some(kept) => Arc::clone(kept),
        None => Hosted::new(wanted.clone(), Arc::clone(store))?,
    }))
}

impl Server {
    /// A server over a store. Asks no upstream. A repository that cannot be made is an error, or with `keep_going` left out.
    pub fn new(
        settings: Settings,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        logins: Logins,
        keep_going: bool,
    ) -> Result<Arc<Self>, BuildError> {
        store.set_limit(settings.server.max_size);
        let current = Current::new(settings, &store, &metrics, None, keep_going)?;
        Ok(Arc::new(Self {
            store,
            metrics,
            connections: TaskTracker::new(),
            canaries: Pulls::default(),
            logins,
            current: ArcSwap::from_pointee(current),
            changes: AtomicU64::new(0),
            keep_going,
            draining: AtomicBool::new(false),
        }))
    }

    /// What holds now. A request keeps what it began with.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// The same, for a moment.
    #[must_use]
    pub fn current_guard(&self) -> Guard<Arc<Current>> {
        self.current.load()
    }

    /// How often clients have changed what is served. The same number twice: they have not, in between.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A client may change what is served, until this is dropped.
    #[must_use]
    pub const fn change(&self) -> Change<'_> {
        Change(self)
    }

    /// Takes other settings, for all requests that begin from now on. On failure the old ones hold.
    pub fn apply(&self, settings: Settings) -> Result<(), BuildError> {
        let max_size = settings.server.max_size;
        let next = Current::new(settings, &self.store, &self.metrics, Some(&self.current()), self.keep_going)?;
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

    /// Whether new requests should come here: it does not end, and has a main port. Never depends on an upstream.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.current.load().settings.server.main_port != MainPort::Closed
    }
}

/// A change of what is served, which is there for all when this is dropped.
pub struct Change<'a>(&'a Server);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.changes.fetch_add(1, Ordering::Release);
    }
}
