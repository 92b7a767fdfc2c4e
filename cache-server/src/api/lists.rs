//! Lists: tags and referrers.

use bytes::Bytes;
use http::{HeaderValue, Response, header};

use super::{body::Body, error::PullError, mark, report::Report, request::Pull, value};
use crate::{
    oci::{Digest, ErrorCode, ImageName, Manifest, Tag, manifest},
    repository::{Asking, Repository},
};

/// The tags of an image, in order: `limit` of them behind `last`, with a link to the next page (distribution-spec, "Listing Tags").
pub(super) async fn tags(
    repository: &Repository,
    asking: &Asking<'_>,
    image: &ImageName,
    limit: Option<usize>,
    last: Option<&str>,
    pull: &Pull<'_>,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let tags = repository.tags(image, asking).await;
    let (tags, outcome) = tags.map_err(|error| PullError { error, absent: ErrorCode::NameUnknown })?;
    report.outcome(outcome);
    let first = last.map_or(0, |last| tags.partition_point(|tag| tag.as_str() <= last));
    let end = limit.map_or(tags.len(), |limit| tags.len().min(first.saturating_add(limit)));
    let page: Vec<&str> = tags[first..end].iter().map(Tag::as_str).collect();
    let content = serde_json::json!({ "name": image.as_str(), "tags": page });
    let mut response = Response::new(Body::bytes(content.to_string().into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let (Some(limit), Some(last)) = (limit, page.last())
        && end < tags.len()
        && let Some(link) = value(&format!("<{}>; rel=\"next\"", next_page(pull, limit, last)))
    {
        response.headers_mut().insert(header::LINK, link);
    }
    mark(&mut response);
    Ok(response)
}

/// What the client asked for, at the address that it used, so that the link leads back through the same way in.
fn next_page(pull: &Pull<'_>, limit: usize, last: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("n", &limit.to_string()).append_pair("last", last);
    let asked = url::form_urlencoded::parse(pull.uri.query().unwrap_or_default().as_bytes());
    query.extend_pairs(asked.filter(|(key, _)| key != "n" && key != "last"));
    pull.origin.address(pull.route, &format!("{}?{}", pull.route.rest, query.finish()))
}

/// The referrers of a digest, of one artifact type if asked for (distribution-spec, "Listing Referrers").
pub(super) async fn referrers(
    repository: &Repository,
    asking: &Asking<'_>,
    image: &ImageName,
    digest: &Digest,
    artifact_type: Option<&str>,
    report: &mut Report,
) -> Result<Response<Body>, PullError> {
    let index = repository.referrers(image, digest, asking).await;
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
