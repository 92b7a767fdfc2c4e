//! What is not the registry API: health, metrics, and a word for those who come with a browser.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use http::{Request, Response};
use hyper::body::Incoming;
use tower::ServiceExt;

use super::body::Body;
use crate::server::Server;

/// Answers a page.
pub(super) async fn answer(server: &Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let response = match router(Arc::clone(server)).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    response.map(Body::page)
}

/// The pages, for the main port and for the port of `--metrics`.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(welcome))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(server)
}

async fn welcome(State(server): State<Arc<Server>>) -> String {
    let current = server.current();
    let ways = current
        .settings
        .repositories()
        .map(|repository| format!("  {0}: {1} at /repository/{0}/v2/\n", repository.name, repository.kind));
    format!("Entrepôt, a pull-through registry. Repositories:\n{}", ways.collect::<String>())
}

async fn readyz(State(server): State<Arc<Server>>) -> impl IntoResponse {
    if server.is_ready() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], server.metrics_text())
}
