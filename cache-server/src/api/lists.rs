//! Lists: tags and referrers.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, Uri, header};

use super::{body::Body, error::PullError, mark, report::Report, value};
use crate::{
    oci::{Digest, ErrorCode, ImageName, Manifest, Tag, manifest},
    repository::Mirror,
};

/// The tags of `image`, which the client calls `named`, in order: `limit` of them behind `last`, with a link to the next page (distribution-spec, "Listing Tags").
pub(super) async fn tags(
    repository: &Arc<Mirror>,
    image: &ImageName,
    named: &ImageName,
    limit: Option<usize>,
    last: Option<&str>,
    uri: &Uri,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let tags = repository.tags(image).await;
    let (tags, outcome) = tags.map_err(|error| PullError { error, absent: ErrorCode::NameUnknown })?;
    report.outcome(outcome);
    let first = last.map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let end = limit.map_or(tags.len(), |limit| tags.len().min(first.saturating_add(limit)));
    let page: Vec<&str> = tags[first..end].iter().map(Tag::as_str).collect();
    let list = serde_json::json!({ "name": named.as_str(), "tags": page });
    let mut response = Response::new(Body::bytes(list.to_string().into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let (Some(limit), Some(last)) = (limit, page.last())
        && end < tags.len()
        // The client's own path, so that the link leads back through the connector that it used.
        && let Some(link) = value(&format!("<{}?n={limit}&last={last}>; rel=\"next\"", uri.path()))
    {
        response.headers_mut().insert(header::LINK, link);
    }
    mark(&mut response);
    Ok(response)
}

/// The referrers of a digest, of one artifact type if asked for (distribution-spec, "Listing Referrers").
pub(super) async fn referrers(
    repository: &Arc<Mirror>,
    image: &ImageName,
    digest: &Digest,
    artifact_type: Option<&str>,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let index = repository.referrers(image, digest).await;
    let (index, outcome) = index.map_err(|error| PullError { error, absent: ErrorCode::ManifestUnknown })?;
    report.outcome(outcome);
    let index = artifact_type.map_or_else(|| index.clone(), |artifact_type| filtered(&index, artifact_type));
    let mut response = Response::new(Body::bytes(index));
    let headers = response.headers_mut();
    let media_type = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");
    headers.insert(header::CONTENT_TYPE, media_type);
    if artifact_type.is_some() {
        headers.insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    mark(&mut response);
    Ok(response)
}

fn filtered(index: &Bytes, artifact_type: &str) -> Bytes {
    let listed = Manifest::parse(index).map(|index| index.descriptors().to_vec()).unwrap_or_default();
    let of_type = |descriptor: &crate::oci::Descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type);
    manifest::index_of(listed.into_iter().filter(of_type).collect()).into()
}
