//! The canary image, over HTTP.

use std::time::SystemTime;

use http::{HeaderValue, Method, Response, StatusCode, header};

use super::{base, body::Body, error::ApiError, mark, report::Report, value};
use crate::{
    canary::{
        IMAGE,
        image::{CANARY, Content, is_nonce},
    },
    oci::{Endpoint, ErrorCode, Reference},
    server::Server,
};

/// Answers what is asked of the canary's repository: its manifests and blobs, and 404 for all else. A pull by tag is noted.
pub(super) fn answer(
    server: &Server,
    method: &Method,
    rest: &str,
    report: &mut Report,
) -> Result<Response<Body>, ApiError> {
    let endpoint = Endpoint::parse(rest, None)?;
    if !matches!(*method, Method::GET | Method::HEAD) || endpoint.image().is_some_and(|image| image.as_str() != IMAGE) {
        return Err(absent(ErrorCode::NameUnknown));
    }
    let found = match &endpoint {
        Endpoint::Base => {
            report.routine();
            return Ok(base());
        }
        Endpoint::Manifest { reference: Reference::Tag(tag), .. } if is_nonce(tag) => {
            report.kind("manifest", tag.as_str());
            server.canaries.note(tag.as_str(), SystemTime::now());
            Some(CANARY.index())
        }
        Endpoint::Manifest { reference, .. } => {
            report.kind("manifest", &reference.to_string());
            reference.digest().and_then(|digest| CANARY.manifest(digest))
        }
        Endpoint::Blob { digest, .. } => {
            report.kind("blob", digest.as_str());
            CANARY.blob(digest)
        }
        _ => None,
    };
    let code =
        if matches!(endpoint, Endpoint::Blob { .. }) { ErrorCode::BlobUnknown } else { ErrorCode::ManifestUnknown };
    found.map(|content| response(content, method)).ok_or_else(|| absent(code))
}

fn response(content: &Content, method: &Method) -> Response<Body> {
    let body = if *method == Method::HEAD { Body::none() } else { Body::bytes(content.bytes.clone()) };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content.media_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.bytes.len()));
    if let Some(digest) = value(content.digest.as_str()) {
        headers.insert("docker-content-digest", digest);
    }
    mark(&mut response);
    response
}

fn absent(code: ErrorCode) -> ApiError {
    let message = format!("here is only the built-in image {IMAGE}, by which nodes are tested");
    ApiError::new(code, StatusCode::NOT_FOUND, message)
}
