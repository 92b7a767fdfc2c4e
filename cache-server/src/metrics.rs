//! Every metric, in one place. May import `store`, to which it listens.

use std::sync::atomic::AtomicU64;

use crds::names::RepositoryName;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::store;

/// The metrics of one server. Labels come from settings and closed sets, never from what a client or upstream wrote.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    sent_bytes: Family<RepositoryLabel, Counter>,
    received_bytes: Family<RepositoryLabel, Counter>,
    reloads: Family<ReloadLabel, Counter>,
    failed_logins: Family<FailedLoginLabel, Counter>,
    connections: Gauge,
    store: StoreMetrics,
    upstream_available: Family<RepositoryLabel, Gauge>,
    rate_limit: Family<RepositoryLabel, Gauge>,
    rate_remaining: Family<RepositoryLabel, Gauge>,
}

#[derive(Clone, Default)]
struct StoreMetrics {
    used: Gauge<u64, AtomicU64>,
    limit: Gauge<u64, AtomicU64>,
    running_fills: Gauge,
    resumed: Counter,
    quarantined: Counter,
    served_through: Counter,
    evicted_bytes: Counter,
}

/// What is told apart in requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The repository; empty if the request reached none.
    pub repository: String,
    /// `manifest`, `blob`, `upload`, `tags`, `referrers`, `token` or `other`.
    pub kind: &'static str,
    /// Where the answer came from; `broke_off` if it did not become complete; empty for an error or a push.
    pub outcome: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// What counts answers that are alike.
#[derive(Clone, Debug)]
pub struct Counters {
    requests: Counter,
    /// Requests that reached no repository have none.
    sent_bytes: Option<Counter>,
}

impl Counters {
    /// Counts one that has ended.
    pub fn count(&self, sent_bytes: u64) {
        self.requests.inc();
        if let Some(counter) = &self.sent_bytes {
            counter.inc_by(sent_bytes);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepositoryLabel {
    repository: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedLoginLabel {
    reason: &'static str,
}

/// Why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedLogin {
    /// There is no such user, or it is not the password.
    Wrong,
    /// Too many failed before from the same address.
    Limited,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("entrepot"),
            requests: Family::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            reloads: Family::default(),
            failed_logins: Family::default(),
            connections: Gauge::default(),
            store: StoreMetrics::default(),
            upstream_available: Family::default(),
            rate_limit: Family::default(),
            rate_remaining: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let Self {
            registry,
            requests,
            sent_bytes,
            received_bytes,
            reloads,
            failed_logins,
            connections,
            store,
            upstream_available,
            rate_limit,
            rate_remaining,
        } = self;
        registry.register("requests", "Requests answered", requests.clone());
        registry.register_with_unit("sent", "Bytes of answers sent to clients", Unit::Bytes, sent_bytes.clone());
        registry.register_with_unit(
            "upstream_received",
            "Bytes of manifests and blobs received from upstreams; what was sent beyond that was saved",
            Unit::Bytes,
            received_bytes.clone(),
        );
        registry.register(
            "config_reloads",
            "Configurations loaded (result=ok) or refused (result=refused)",
            reloads.clone(),
        );
        registry.register(
            "failed_logins",
            "Logins refused: user or password wrong (reason=wrong), or not looked at after too many failures (reason=limited)",
            failed_logins.clone(),
        );
        registry.register("connections", "Open client connections", connections.clone());
        registry.register_with_unit("store_used", "Bytes stored and being stored", Unit::Bytes, store.used.clone());
        registry.register_with_unit("store_limit", "Most bytes that may be stored", Unit::Bytes, store.limit.clone());
        registry.register("fills_running", "Blobs being downloaded", store.running_fills.clone());
        registry.register(
            "fills_resumed",
            "Broken downloads that went on where they had stopped",
            store.resumed.clone(),
        );
        registry.register(
            "store_quarantined_blobs",
            "Stored blobs found damaged; they were put aside and fetched again",
            store.quarantined.clone(),
        );
        registry.register(
            "store_served_through",
            "Blobs handed on without being stored because the volume was full",
            store.served_through.clone(),
        );
        registry.register_with_unit(
            "store_evicted",
            "Bytes removed for size or age",
            Unit::Bytes,
            store.evicted_bytes.clone(),
        );
        registry.register(
            "upstream_available",
            "1 if the upstream is asked, 0 while it is left alone after failures",
            upstream_available.clone(),
        );
        registry.register(
            "upstream_rate_limit",
            "Requests that the upstream allows per window, as it last said",
            rate_limit.clone(),
        );
        registry.register(
            "upstream_rate_limit_remaining",
            "Requests that the upstream still allows in this window, as it last said",
            rate_remaining.clone(),
        );
    }

    /// Counts an answer that has ended.
    pub fn answered(&self, labels: &RequestLabels, sent_bytes: u64) {
        self.counters(labels).count(sent_bytes);
    }

    /// What counts answers with these labels.
    #[must_use]
    pub fn counters(&self, labels: &RequestLabels) -> Counters {
        let label = RepositoryLabel { repository: labels.repository.clone() };
        Counters {
            requests: self.requests.get_or_create_owned(labels),
            sent_bytes: (!labels.repository.is_empty()).then(|| self.sent_bytes.get_or_create_owned(&label)),
        }
    }

    /// The counter of what a repository receives from its upstream. The same one for every call with the same name.
    #[must_use]
    pub fn received(&self, repository: &RepositoryName) -> Counter {
        let label = RepositoryLabel { repository: repository.to_string() };
        self.received_bytes.get_or_create(&label).clone()
    }

    /// Counts a configuration.
    pub fn reloaded(&self, ok: bool) {
        self.reloads.get_or_create(&ReloadLabel { result: if ok { "ok" } else { "refused" } }).inc();
    }

    /// Counts a login that was refused.
    pub fn login_failed(&self, why: FailedLogin) {
        let reason = match why {
            FailedLogin::Wrong => "wrong",
            FailedLogin::Limited => "limited",
        };
        self.failed_logins.get_or_create(&FailedLoginLabel { reason }).inc();
    }

    /// Takes down how an upstream is doing: whether it is asked, and the rate limit that it last told.
    pub fn upstream(&self, repository: &RepositoryName, available: bool, limit: Option<u64>, remaining: Option<u64>) {
        let label = RepositoryLabel { repository: repository.to_string() };
        self.upstream_available.get_or_create(&label).set(i64::from(available));
        for (family, value) in [(&self.rate_limit, limit), (&self.rate_remaining, remaining)] {
            if let Some(value) = value {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }

    /// The text that Prometheus reads. What is not counted as it happens is given here.
    #[must_use]
    pub fn text(&self, used_bytes: u64, limit_bytes: u64, connections: usize) -> String {
        self.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
        self.store.used.set(used_bytes);
        self.store.limit.set(limit_bytes);
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// What the store reports to.
    #[must_use]
    pub fn store_observer(&self) -> impl store::Observer + use<> {
        self.store.clone()
    }
}

impl store::Observer for StoreMetrics {
    fn quarantined(&self) {
        self.quarantined.inc();
    }

    fn served_through(&self) {
        self.served_through.inc();
    }

    fn resumed(&self) {
        self.resumed.inc();
    }

    fn evicted(&self, bytes: u64) {
        self.evicted_bytes.inc_by(bytes);
    }

    fn running_fills(&self, change: i64) {
        self.running_fills.inc_by(change);
    }
}
