//! Blobs.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{
    blob_stream::BlobStream, body::Body, client::Client, error::PullError, mark, report::Report, request::Pull, value,
};
use crate::{
    oci::{
        Digest, ErrorCode, ImageName,
        range::{RangeRequest, Ranged},
    },
    repository::{Asking, BlobAnswer, BlobContent, BlobRequest, Repository, Want},
    server::Server,
};

/// A blob or a part of it, whether it is stored, being filled, or not here yet.
pub(super) async fn answer(
    server: &Arc<Server>,
    repository: &Repository,
    asking: &Asking<'_>,
    image: &ImageName,
    digest: &Digest,
    pull: &Pull<'_>,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let range = if pull.want == Want::Content { range(pull.headers, digest) } else { None };
    let continues = !matches!(range, None | Some(RangeRequest::From(0) | RangeRequest::FromTo(0, _)));
    let request = BlobRequest { want: pull.want, may_go_elsewhere: pull.client == Client::Mirror && continues };
    let answer = repository.blob(image, digest, request, asking).await;
    let answer = answer.map_err(|error| PullError { error, absent: ErrorCode::BlobUnknown })?;
    report.outcome(answer.outcome);
    let part = Part::of(range, answer.size);
    let mut response = Response::new(Body::none());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(digest_value) = value(digest.as_str()) {
        headers.insert("docker-content-digest", digest_value);
    }
    if let Some(tag) = value(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, tag);
    }
    part.describe(headers);
    *response.status_mut() = part.status();
    *response.body_mut() = body(server, answer, &part, pull);
    mark(&mut response);
    Ok(response)
}

/// The range that a request asks for; nothing if it wants the whole. With `If-Range`, only if it names this content.
fn range(headers: &HeaderMap, digest: &Digest) -> Option<RangeRequest> {
    if let Some(condition) = headers.get(header::IF_RANGE)
        && condition.as_bytes() != format!("\"{digest}\"").as_bytes()
    {
        return None;
    }
    RangeRequest::parse(headers.get(header::RANGE)?.to_str().ok()?)
}

/// The part of a blob that an answer carries.
enum Part {
    Whole { total: Option<u64> },
    Range { start: u64, end: u64, total: u64 },
    Unsatisfiable { total: u64 },
}

impl Part {
    /// Without a known size no range can be described, and the whole is sent.
    fn of(range: Option<RangeRequest>, size: Option<u64>) -> Self {
        match (range, size) {
            (Some(range), Some(total)) => match range.resolve(total) {
                Ranged::Whole => Self::Whole { total: size },
                Ranged::Part { start, end_inclusive } => Self::Range { start, end: end_inclusive + 1, total },
                Ranged::Unsatisfiable => Self::Unsatisfiable { total },
            },
            _ => Self::Whole { total: size },
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Whole { .. } => StatusCode::OK,
            Self::Range { .. } => StatusCode::PARTIAL_CONTENT,
            Self::Unsatisfiable { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    fn describe(&self, headers: &mut HeaderMap) {
        match self {
            Self::Whole { total: Some(total) } => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(*total));
            }
            Self::Whole { total: None } => {}
            Self::Range { start, end, total } => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
                if let Some(range) = value(&format!("bytes {start}-{}/{total}", end - 1)) {
                    headers.insert(header::CONTENT_RANGE, range);
                }
            }
            Self::Unsatisfiable { total } => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0_u16));
                if let Some(range) = value(&format!("bytes */{total}")) {
                    headers.insert(header::CONTENT_RANGE, range);
                }
            }
        }
    }

    /// First byte, and the one behind the last if known.
    const fn bounds(&self) -> Option<(u64, Option<u64>)> {
        match self {
            Self::Whole { total } => Some((0, *total)),
            Self::Range { start, end, .. } => Some((*start, Some(*end))),
            Self::Unsatisfiable { .. } => None,
        }
    }
}

fn body(server: &Arc<Server>, answer: BlobAnswer, part: &Part, pull: &Pull<'_>) -> Body {
    let Some((start, end)) = part.bounds() else { return Body::none() };
    match answer.content {
        BlobContent::None => Body::none(),
        BlobContent::Memory(bytes) => Body::bytes(slice(&bytes, start, end)),
        BlobContent::File { growing, source } => {
            let stream = BlobStream {
                store: Arc::clone(&server.store),
                connection: Arc::clone(pull.connection),
                growing,
                source,
                position: start,
                end,
                total: answer.size,
            };
            Body::stream(stream.into_stream(), end.map(|end| end - start))
        }
    }
}

fn slice(bytes: &Bytes, start: u64, end: Option<u64>) -> Bytes {
    let end = end.unwrap_or(bytes.len() as u64);
    // Both lie within the blob, which is in memory.
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(start)..index(end))
}
