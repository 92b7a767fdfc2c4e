//! One line in the log and one count in the metrics per request, when its answer has ended.

use std::{sync::Arc, time::Instant};

use crds::names::RepositoryName;
use http::{Request, StatusCode, header};

use crate::{
    causes::with_causes,
    metrics::{Metrics, RequestLabels},
    oci::ImageName,
    repository::Outcome,
};

/// What is said of a request. Said when it is dropped: also when the client left early.
pub(super) struct Report {
    metrics: Arc<Metrics>,
    client: String,
    method: String,
    path: String,
    agent: String,
    user: String,
    repository: String,
    image: String,
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
    pub(super) fn begin<T>(metrics: &Arc<Metrics>, client: String, request: &Request<T>, started: Instant) -> Self {
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Self {
            metrics: Arc::clone(metrics),
            client,
            method: request.method().to_string(),
            // Without the query: a client may have put a token there.
            path: request.uri().path().to_owned(),
            agent: agent.unwrap_or_default().to_owned(),
            user: String::new(),
            repository: String::new(),
            image: String::new(),
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
        name.as_str().clone_into(&mut self.repository);
    }

    /// Who logged in.
    pub(super) fn user(&mut self, name: &str) {
        name.clone_into(&mut self.user);
    }

    pub(super) fn image(&mut self, image: &ImageName) {
        image.as_str().clone_into(&mut self.image);
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
            repository: std::mem::take(&mut self.repository),
            kind: self.kind,
            outcome: self.outcome,
            status: self.status.as_u16(),
        };
        self.metrics.answered(&labels, self.sent);
        if self.routine && self.status == StatusCode::OK {
            return;
        }
        tracing::info!(
            target: "request",
            {
                client.address = self.client,
                http.method = self.method,
                http.path = self.path,
                http.status = labels.status,
                http.user_agent = self.agent,
                user.name = self.user,
                repository = labels.repository,
                image.name = self.image,
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
