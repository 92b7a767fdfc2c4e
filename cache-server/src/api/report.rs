//! One line in the log and one count in the metrics per request, when its answer has ended.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use crds::names::RepositoryName;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};

use crate::{
    causes::with_causes,
    metrics::{Metrics, RequestLabels},
    oci::ImageName,
    repository::Outcome,
};

/// The outcome of an answer that did not become complete.
const BROKE_OFF: &str = "broke_off";

/// What is said of a request. Said when it is dropped: also when the client left early.
pub(super) struct Report {
    metrics: Arc<Metrics>,
    client: Address,
    said: Said,
    error: Option<String>,
    routine: bool,
    started: Instant,
    sent: u64,
}

/// A client behind a proxy has no port that is known.
pub(super) type Address = (IpAddr, Option<u16>);

/// What the same request is always said to be.
#[derive(Clone)]
pub(super) struct Said {
    method: Method,
    uri: Uri,
    agent: Option<HeaderValue>,
    user: String,
    repository: Option<RepositoryName>,
    image: Option<ImageName>,
    kind: &'static str,
    reference: String,
    outcome: &'static str,
    status: StatusCode,
}

impl Report {
    pub(super) fn begin<T>(metrics: &Arc<Metrics>, client: Address, request: &Request<T>, started: Instant) -> Self {
        let said = Said {
            method: request.method().clone(),
            uri: request.uri().clone(),
            agent: request.headers().get(header::USER_AGENT).cloned(),
            user: String::new(),
            repository: None,
            image: None,
            kind: "other",
            reference: String::new(),
            outcome: "",
            status: StatusCode::OK,
        };
        Self { metrics: Arc::clone(metrics), client, said, error: None, routine: false, started, sent: 0 }
    }

    /// What is said so far.
    pub(super) const fn said(&self) -> &Said {
        &self.said
    }

    pub(super) fn repository(&mut self, name: &RepositoryName) {
        self.said.repository = Some(name.clone());
    }

    /// Who logged in.
    pub(super) fn user(&mut self, name: &str) {
        name.clone_into(&mut self.said.user);
    }

    pub(super) fn image(&mut self, image: &ImageName) {
        self.said.image = Some(image.clone());
    }

    pub(super) fn kind(&mut self, kind: &'static str, reference: &str) {
        self.said.kind = kind;
        reference.clone_into(&mut self.said.reference);
    }

    /// Every node asks this every few seconds: it is logged only if it fails.
    pub(super) const fn routine(&mut self) {
        self.routine = true;
    }

    pub(super) const fn outcome(&mut self, outcome: Outcome) {
        self.said.outcome = outcome.as_str();
    }

    pub(super) const fn status(&mut self, status: StatusCode) {
        self.said.status = status;
    }

    pub(super) fn error(&mut self, message: &str) {
        self.error = Some(message.to_owned());
    }

    pub(super) const fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(super) fn broke_off(&mut self, error: &dyn std::error::Error) {
        self.error = Some(with_causes(error));
        self.said.outcome = BROKE_OFF;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.metrics.answered(&self.said.labels(), self.sent);
        if self.routine && self.said.status == StatusCode::OK {
            return;
        }
        self.said.log(self.client, self.error.as_deref(), self.sent, self.started);
    }
}

impl Said {
    /// How it is counted.
    pub(super) fn labels(&self) -> RequestLabels {
        RequestLabels {
            repository: self.repository.as_ref().map(ToString::to_string).unwrap_or_default(),
            kind: self.kind,
            outcome: self.outcome,
            status: self.status.as_u16(),
        }
    }

    /// The same of an answer that was not taken to its end.
    pub(super) fn broken_off(&self) -> Self {
        Self { outcome: BROKE_OFF, ..self.clone() }
    }

    /// Whether it came from the store, without asking anybody.
    pub(super) fn is_hit(&self) -> bool {
        self.status == StatusCode::OK && self.outcome == Outcome::Hit.as_str()
    }

    /// One line.
    pub(super) fn log(&self, client: Address, error: Option<&str>, sent: u64, started: Instant) {
        let (address, port) = client;
        // Only what is said costs anything.
        let client = std::fmt::from_fn(|text| match port {
            Some(port) => write!(text, "{}", SocketAddr::new(address, port)),
            None => write!(text, "{address}"),
        });
        tracing::info!(
            target: "request",
            {
                client.address = %client,
                http.method = self.method.as_str(),
                // Without the query: a client may have put a token there.
                http.path = self.uri.path(),
                http.status = self.status.as_u16(),
                http.user_agent = self.agent.as_ref().and_then(|agent| agent.to_str().ok()).unwrap_or_default(),
                user.name = self.user,
                repository = self.repository.as_ref().map(RepositoryName::as_str).unwrap_or_default(),
                image.name = self.image.as_ref().map(ImageName::as_str).unwrap_or_default(),
                kind = self.kind,
                reference = self.reference,
                outcome = self.outcome,
                error = error,
                sent_bytes = sent,
                duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
            "answered"
        );
    }
}
