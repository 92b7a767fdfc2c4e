//! Every metric of the operator, and the port that shows them. May import nothing of ours.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;

/// The operator's metrics. Labels are the names of controllers, never of objects.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ControllerLabel, Counter>,
    errors: Family<ControllerLabel, Counter>,
    duration: Histogram,
    writes: Counter,
    leader: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ControllerLabel {
    controller: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("entrepot_operator");
        let reconciles = Family::default();
        registry.register("reconciles", "Objects that were brought in line or found so", reconciles.clone());
        let errors = Family::default();
        registry.register("reconcile_errors", "Reconciles that failed and are tried again", errors.clone());
        let duration = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        registry.register_with_unit("pass_duration", "One look at all objects", Unit::Seconds, duration.clone());
        let writes = Counter::default();
        registry.register("writes", "Requests that changed an object at the apiserver", writes.clone());
        let leader = Gauge::default();
        registry.register("leader", "Whether this process holds the Lease", leader.clone());
        Self { registry, reconciles, errors, duration, writes, leader }
    }
}

impl Metrics {
    /// Counts one object that was looked at.
    pub fn reconciled(&self, controller: &'static str, good: bool) {
        self.reconciles.get_or_create(&ControllerLabel { controller }).inc();
        if !good {
            self.errors.get_or_create(&ControllerLabel { controller }).inc();
        }
    }

    /// Records how long one look at all objects took.
    pub fn passed(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a write at the apiserver.
    pub fn wrote(&self) {
        self.writes.inc();
    }

    /// Says that this process leads.
    pub fn leads(&self) {
        self.leader.set(1);
    }

    /// All metrics as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Binds the port of `/livez`, `/readyz` and `/metrics`, then answers until the process ends.
///
/// A standby is ready too: it is there to take over.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let metrics = Arc::clone(&metrics);
            tokio::spawn(async move {
                let answer =
                    service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer_to(&request, &metrics))));
                let served = http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(5))
                    .serve_connection(TokioIo::new(stream), answer);
                // A prober that hangs up is no event.
                let _ = served.await;
            });
        }
    });
    Ok(())
}

fn answer_to<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/livez" | "/readyz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
        _ => (StatusCode::NOT_FOUND, "known here are /livez, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_shows_in_the_text() {
        let metrics = Metrics::default();
        metrics.reconciled("cache_server", false);
        metrics.wrote();
        let text = metrics.text();
        for line in [
            "entrepot_operator_reconciles_total{controller=\"cache_server\"} 1",
            "entrepot_operator_reconcile_errors_total{controller=\"cache_server\"} 1",
            "entrepot_operator_writes_total 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn an_unknown_path_is_told_the_known_ones() {
        let request = Request::get("/").body(()).unwrap_or_default();
        assert_eq!(answer_to(&request, &Metrics::default()).status(), StatusCode::NOT_FOUND);
    }
}
