//! What an error means in HTTP: the only place that chooses a status.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};

use super::{body::Body, client::Client, mark, report::Report, value};
use crate::{
    causes::with_causes,
    oci::{EndpointError, ErrorCode},
    repository::Error,
    upstream,
};

/// After how long a client may ask again when nothing better is known.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// An error as a client sees it.
#[derive(Debug)]
pub(super) struct ApiError {
    code: ErrorCode,
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
    /// How to log in, for a 401.
    challenge: Option<String>,
    /// The methods that are offered, for a 405.
    allow: &'static str,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, status: StatusCode, message: String) -> Self {
        Self { code, status, message, retry_after: None, challenge: None, allow: "GET, HEAD" }
    }

    /// With what the client is to do to log in.
    pub(super) fn with_challenge(self, challenge: String) -> Self {
        Self { challenge: Some(challenge), ..self }
    }

    /// With the methods that are offered.
    pub(super) fn allowing(self, allow: &'static str) -> Self {
        Self { allow, ..self }
    }

    /// With another challenge, if it has one.
    pub(super) fn with_challenge_if_any(self, challenge: &str) -> Self {
        Self { challenge: self.challenge.map(|_| challenge.to_owned()), ..self }
    }

    pub(super) fn retry_after(self, wait: Option<Duration>) -> Self {
        Self { retry_after: Some(wait.unwrap_or(ASK_AGAIN)), ..self }
    }

    /// The answer, in the form of the distribution spec ("Error Codes").
    pub(super) fn response(self, report: &mut Report) -> Response<Body> {
        report.error(&self.message);
        let body = self.code.body(&self.message, serde_json::Value::Null);
        let mut response = Response::new(Body::bytes(body.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            // Never zero: that would invite the client to come back at once.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if let Some(challenge) = self.challenge.as_deref().and_then(value) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static(self.allow));
        }
        mark(&mut response);
        response
    }
}

impl From<EndpointError> for ApiError {
    fn from(error: EndpointError) -> Self {
        Self::new(error.code(), error.code().status(), error.to_string())
    }
}

/// An error of what was asked for, with the code that the spec has for it.
pub(super) struct PullError {
    pub(super) error: Error,
    pub(super) absent: ErrorCode,
}

/// Translation into HTTP.
pub(super) trait ToApi {
    /// What the client is told.
    fn to_api(&self, client: Client) -> ApiError;
}

impl ToApi for PullError {
    fn to_api(&self, client: Client) -> ApiError {
        // None of the causes holds a secret or an upstream's own words.
        let message = with_causes(&self.error);
        let unavailable = |message| ApiError::new(ErrorCode::Unavailable, StatusCode::SERVICE_UNAVAILABLE, message);
        match &self.error {
            Error::Offline(_) => unavailable(message),
            Error::NotFound { .. } | Error::Denied { .. } => ApiError::new(self.absent, StatusCode::NOT_FOUND, message),
            Error::BrokeOff { wait, .. } => unavailable(message).retry_after(Some(*wait)),
            Error::WrongContent { .. } => ApiError::new(ErrorCode::Unknown, StatusCode::BAD_GATEWAY, message),
            Error::Store(_) => ApiError::new(ErrorCode::Unknown, StatusCode::INTERNAL_SERVER_ERROR, message),
            Error::Upstream { source, .. } => of_upstream(source, message, client),
        }
    }
}

fn of_upstream(source: &upstream::Error, message: String, client: Client) -> ApiError {
    use upstream::Error as Upstream;
    let retry_after = source.retry_after();
    match source {
        Upstream::RateLimited { .. } if client == Client::Direct => {
            ApiError::new(ErrorCode::TooManyRequests, StatusCode::TOO_MANY_REQUESTS, message).retry_after(retry_after)
        }
        Upstream::TooManyRedirects { .. }
        | Upstream::ForbiddenAddress { .. }
        | Upstream::ForbiddenRealm { .. }
        | Upstream::WrongContent(_)
        | Upstream::Protocol(_) => ApiError::new(ErrorCode::Unknown, StatusCode::BAD_GATEWAY, message),
        _ => ApiError::new(ErrorCode::Unavailable, StatusCode::SERVICE_UNAVAILABLE, message).retry_after(retry_after),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn status(source: upstream::Error, client: Client) -> (StatusCode, bool) {
        let error = Error::Upstream { what: "a".into(), registry: "docker.io".into(), source };
        let api = PullError { error, absent: ErrorCode::ManifestUnknown }.to_api(client);
        (api.status, api.retry_after.is_some())
    }

    #[test]
    fn a_mirror_client_never_sees_429() {
        let limited = || upstream::Error::RateLimited { retry_after: None };
        assert_eq!(status(limited(), Client::Mirror), (StatusCode::SERVICE_UNAVAILABLE, true));
        assert_eq!(status(limited(), Client::Direct), (StatusCode::TOO_MANY_REQUESTS, true));
    }

    #[test]
    fn an_outage_is_503_with_retry_after_for_everyone() {
        for client in [Client::Mirror, Client::Direct] {
            for source in [
                upstream::Error::Unavailable { status: 503, retry_after: None },
                upstream::Error::TimedOut { what: upstream::Slow::Header },
                upstream::Error::CircuitOpen { until: Instant::now() },
                upstream::Error::Broken,
            ] {
                assert_eq!(status(source, client), (StatusCode::SERVICE_UNAVAILABLE, true));
            }
        }
    }

    #[test]
    fn an_upstream_that_misbehaves_is_502() {
        for client in [Client::Mirror, Client::Direct] {
            assert_eq!(
                status(upstream::Error::TooManyRedirects { limit: 5 }, client),
                (StatusCode::BAD_GATEWAY, false)
            );
        }
    }
}
