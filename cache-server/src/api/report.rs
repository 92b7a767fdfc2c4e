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

/// What is said of a request. Said when it is dropped: also when the client left early.
pub(super) struct Report {
    metrics: Arc<Metrics>,
    /// A client behind a proxy has no port that is known.
    client: (IpAddr, Option<u16>),
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
    error: Option<String>,
    routine: bool,
    started: Instant,
    sent: u64,
}

impl Report {
    pub(super) fn begin<T>(
        metrics: &Arc<Metrics>,
        client: (IpAddr, Option<u16>),
        request: &Request<T>,
        started: Instant,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            client,
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
            error: None,
            routine: false,
            started,
            sent: 0,
        }
    }

    pub(super) fn repository(&mut self, name: &RepositoryName) {
        self.repository = Some(name.clone());
    }

    /// Who logged in.
    pub(super) fn user(&mut self, name: &str) {
        name.clone_into(&mut self.user);
    }

    pub(super) fn image(&mut self, image: &ImageName) {
        self.image = Some(image.clone());
    }

    pub(super) fn kind(&mut self, kind: &'static str, reference: &str) {
        self.kind = kind;
        reference.clone_into(&mut self.reference);
    }

    /// Every node asks this every few seconds: it is logged only if it fails.
    pub(super) const fn routine(&mut self) {
        self.routine = true;
    }

    pub(super) const fn outcome(&mut self, outcome: Outcome) {
        self.outcome = outcome.as_str();
    }

    pub(super) const fn status(&mut self, status: StatusCode) {
        self.status = status;
    }

    pub(super) fn error(&mut self, message: &str) {
        self.error = Some(message.to_owned());
    }

    pub(super) const fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(super) fn broke_off(&mut self, error: &dyn std::error::Error) {
        self.error = Some(with_causes(error));
        self.outcome = "broke_off";
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let labels = RequestLabels {
            repository: self.repository.as_ref().map(ToString::to_string).unwrap_or_default(),
            kind: self.kind,
            outcome: self.outcome,
            status: self.status.as_u16(),
        };
        self.metrics.answered(&labels, self.sent);
        if self.routine && self.status == StatusCode::OK {
            return;
        }
        let (address, port) = self.client;
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
                http.status = labels.status,
                http.user_agent = self.agent.as_ref().and_then(|agent| agent.to_str().ok()).unwrap_or_default(),
                user.name = self.user,
                repository = labels.repository,
                image.name = self.image.as_ref().map(ImageName::as_str).unwrap_or_default(),
                kind = self.kind,
                reference = self.reference,
                outcome = self.outcome,
                error = self.error.as_deref(),
                sent_bytes = self.sent,
                duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            },
            "answered"
        );
    }
}
