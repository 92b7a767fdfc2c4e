//! Manifests.

use http::{HeaderValue, Response, header};

use super::{body::Body, error::PullError, mark, report::Report, request::Pull, value};
use crate::{
    oci::{ErrorCode, ImageName, Reference},
    repository::{Asking, Outcome, Repository, Want},
};

/// A manifest with its digest and length, for GET and HEAD alike. A range is ignored, as containerd expects.
pub(super) async fn answer(
    repository: &Repository,
    asking: &Asking<'_>,
    image: &ImageName,
    reference: &Reference,
    pull: &Pull<'_>,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let answer = repository.manifest(image, reference, pull.want, asking).await;
    let answer = answer.map_err(|error| PullError { error, absent: ErrorCode::ManifestUnknown })?;
    report.outcome(answer.outcome);
    let body = match (pull.want, answer.bytes) {
        (Want::Content, Some(bytes)) => Body::bytes(bytes),
        _ => Body::none(),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if let Some(media_type) = value(answer.media_type.as_str()) {
        headers.insert(header::CONTENT_TYPE, media_type);
    }
    if let Some(digest) = value(answer.digest.as_str()) {
        headers.insert("docker-content-digest", digest);
    }
    if let Some(tag) = value(&format!("\"{}\"", answer.digest)) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(answer.size));
    if answer.outcome == Outcome::Stale {
        headers.insert(header::WARNING, HeaderValue::from_static("110 - \"the upstream could not be asked\""));
    }
    mark(&mut response);
    Ok(response)
}
