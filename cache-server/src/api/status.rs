//! What the operator asks: what is loaded and how it is, on the port of `--metrics` alone. Nothing secret is in it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use crds::names::RepositoryName;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    server::{Current, Server},
    upstream::StandingReport,
};

/// Status and check.
pub fn router(server: Arc<Server>) -> Router {
    Router::new().route("/status", get(status)).route("/check/{repository}", post(check)).with_state(server)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    objects: Vec<Object<'a>>,
    mistakes: Vec<Mistake<'a>>,
    /// What keeps groups from serving all that they list.
    problems: Vec<Problem<'a>>,
    /// SHA-256 of the main port's own certificate.
    certificate: Option<String>,
    upstreams: Vec<Upstream>,
    store: Store,
    /// When each canary was last pulled.
    probes: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Object<'a> {
    kind: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
}

#[derive(Serialize)]
struct Mistake<'a> {
    #[serde(flatten)]
    object: Object<'a>,
    field: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the name in the answer")]
struct Problem<'a> {
    kind: &'static str,
    name: &'a RepositoryName,
    problem: String,
}

#[derive(Serialize)]
struct Upstream {
    repository: String,
    state: &'static str,
    message: String,
    since: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Store {
    used_bytes: u64,
    limit_bytes: u64,
    problem: Option<String>,
}

async fn status(State(server): State<Arc<Server>>) -> Response {
    let problem = server.store.problem().await;
    let current = server.current();
    let settings = &current.settings;
    json(&Status {
        objects: settings
            .objects
            .iter()
            .map(|object| Object { kind: &object.kind, name: &object.name, generation: object.generation })
            .collect(),
        mistakes: mistakes(&current),
        problems: problems(&current),
        certificate: current.certificate(),
        upstreams: settings
            .mirrors
            .iter()
            .filter_map(|mirror| Some(upstream(&mirror.name, current.mirror(&mirror.name)?.upstream().standing())))
            .collect(),
        store: Store { used_bytes: server.store.used_bytes(), limit_bytes: server.store.limit_bytes(), problem },
        probes: server.canaries.all().into_iter().map(|(nonce, when)| (nonce, time(when))).collect(),
    })
}

fn problems(current: &Current) -> Vec<Problem<'_>> {
    current.problems().map(|(name, problem)| Problem { kind: "RepositoryGroup", name, problem }).collect()
}

/// Those that belong to no object have an empty kind and name.
fn mistakes(current: &Current) -> Vec<Mistake<'_>> {
    let mistakes = current.settings.mistakes.as_slice().iter();
    mistakes
        .map(|mistake| {
            let object =
                mistake.place.object.as_ref().map_or(Object { kind: "", name: "", generation: None }, |object| {
                    Object { kind: &object.kind, name: &object.name, generation: object.generation }
                });
            Mistake { object, field: &mistake.field, message: &mistake.message }
        })
        .collect()
}

async fn check(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Response {
    let current = server.current();
    let found = name.parse::<RepositoryName>().ok().and_then(|name| current.mirror(&name).map(|mirror| (name, mirror)));
    match found {
        Some((name, mirror)) => json(&upstream(&name, mirror.upstream().check().await)),
        None => (StatusCode::NOT_FOUND, format!("there is no repository {name:?} here\n")).into_response(),
    }
}

fn upstream(name: &RepositoryName, report: StandingReport) -> Upstream {
    let StandingReport { standing, message, since } = report;
    Upstream { repository: name.to_string(), state: standing.as_str(), message, since: time(since) }
}

/// RFC 3339, in whole seconds, as Kubernetes writes times.
fn time(when: SystemTime) -> String {
    let seconds = when.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default().to_string()
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([("content-type", "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
