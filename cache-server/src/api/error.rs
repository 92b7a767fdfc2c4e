//! What an error means in HTTP: the only place that chooses a status.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{body::Body, client::Client, mark, pushes::Refused, report::Report, value};
use crate::{
    causes::with_causes,
    oci::{EndpointError, ErrorCode, PushQueryError},
    repository::{Error, PushError, hosted::policy::Forbidden},
    store::uploads::UploadError,
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
    /// What a program may read of it.
    detail: Value,
    /// Further headers.
    headers: HeaderMap,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, status: StatusCode, message: String) -> Self {
        Self {
            code,
            status,
            message,
            retry_after: None,
            challenge: None,
            allow: "GET, HEAD",
            detail: Value::Null,
            headers: HeaderMap::new(),
        }
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

    fn detail(self, detail: Value) -> Self {
        Self { detail, ..self }
    }

    /// The same with these headers.
    pub(super) fn with(self, headers: &HeaderMap) -> Self {
        Self { headers: headers.clone(), ..self }
    }

    /// What to tell people, and the answer in the form that programs read.
    pub(super) fn said(self, report: &mut Report) -> (String, Response<Body>) {
        (self.message.clone(), self.response(report))
    }

    /// The answer, in the form of the distribution spec ("Error Codes").
    pub(super) fn response(self, report: &mut Report) -> Response<Body> {
        report.error(&self.message);
        let body = self.code.body(&self.message, self.detail);
        let mut response = Response::new(Body::bytes(body.into()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
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
            Error::Unusable(_) => unavailable(message).retry_after(None),
            // The gate says how.
            Error::LogIn(_) => ApiError::new(ErrorCode::Unauthorized, StatusCode::UNAUTHORIZED, message),
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

impl ToApi for Refused<'_> {
    fn to_api(&self, client: Client) -> ApiError {
        let message = with_causes(self.error);
        let of = |code: ErrorCode, status| ApiError::new(code, status, message.clone());
        let bad = |code: ErrorCode| of(code, StatusCode::BAD_REQUEST);
        match self.error {
            PushError::Repository(error) => PullError { error: error.clone(), absent: self.absent }.to_api(client),
            PushError::Forbidden { why: Forbidden::ReadOnly, .. } => {
                of(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED)
            }
            PushError::Forbidden { why: Forbidden::ImmutableDeleted(_), .. } => {
                of(ErrorCode::Denied, StatusCode::METHOD_NOT_ALLOWED)
            }
            PushError::Forbidden { .. } | PushError::TooManyReferrers(_) => {
                of(ErrorCode::Denied, StatusCode::FORBIDDEN)
            }
            PushError::Query(PushQueryError::Tag(_) | PushQueryError::TooManyTags) | PushError::Manifest(_) => {
                bad(ErrorCode::ManifestInvalid)
            }
            PushError::Query(_) | PushError::NoDigest | PushError::Mismatch { .. } => bad(ErrorCode::DigestInvalid),
            PushError::ContentRange(_) => of(ErrorCode::RangeInvalid, StatusCode::RANGE_NOT_SATISFIABLE),
            PushError::TooLarge => of(ErrorCode::SizeInvalid, StatusCode::PAYLOAD_TOO_LARGE),
            PushError::Size { .. } => bad(ErrorCode::SizeInvalid),
            PushError::BlobsUnknown { digests, .. } => {
                bad(ErrorCode::ManifestBlobUnknown).detail(json!({ "digests": digests }))
            }
            PushError::NoSpace => of(ErrorCode::InsufficientStorage, StatusCode::INSUFFICIENT_STORAGE),
            PushError::Upload(error) => of_upload(error, message),
        }
    }
}

fn of_upload(error: &UploadError, message: String) -> ApiError {
    let (code, status) = match error {
        UploadError::Unknown => (ErrorCode::BlobUploadUnknown, StatusCode::NOT_FOUND),
        UploadError::Busy => (ErrorCode::BlobUploadInvalid, StatusCode::CONFLICT),
        UploadError::OutOfOrder(_) => (ErrorCode::RangeInvalid, StatusCode::RANGE_NOT_SATISFIABLE),
        UploadError::Length { .. } => (ErrorCode::SizeInvalid, StatusCode::BAD_REQUEST),
        UploadError::Body(_) => (ErrorCode::BlobUploadInvalid, StatusCode::BAD_REQUEST),
        UploadError::Stalled(_) => (ErrorCode::BlobUploadInvalid, StatusCode::REQUEST_TIMEOUT),
        UploadError::Mismatch { .. } => (ErrorCode::DigestInvalid, StatusCode::BAD_REQUEST),
        UploadError::NoSpace(_) => (ErrorCode::InsufficientStorage, StatusCode::INSUFFICIENT_STORAGE),
        UploadError::TooMany => (ErrorCode::TooManyRequests, StatusCode::TOO_MANY_REQUESTS),
        UploadError::Io(_) => (ErrorCode::Unknown, StatusCode::INTERNAL_SERVER_ERROR),
    };
    let api = ApiError::new(code, status, message);
    if matches!(error, UploadError::TooMany) { api.retry_after(None) } else { api }
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
