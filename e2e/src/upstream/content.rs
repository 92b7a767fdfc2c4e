//! Images that the front serves from memory, or makes up as it goes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use http::header::{IF_RANGE, RANGE};
use serde_json::json;

use super::{
    answer::{Answer, Body},
    blob::{Blob, Hash},
    request::Request,
};

/// The media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Images by name.
#[derive(Debug, Default)]
pub struct Content {
    images: Mutex<HashMap<String, Image>>,
}

#[derive(Debug, Default)]
struct Image {
    blobs: HashMap<String, Blob>,
    manifests: BTreeMap<String, Manifest>,
}

#[derive(Clone, Debug)]
struct Manifest {
    media_type: String,
    digest: String,
    bytes: Vec<u8>,
}

/// What [`Content::put_image`] made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The image's name.
    pub name: String,
    /// The manifest's digest.
    pub digest: String,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The layers with their digests.
    pub layers: Vec<(String, Blob)>,
}

impl Content {
    /// Adds a blob to an image; answers its digest.
    pub fn put_blob(&self, image: &str, blob: impl Into<Blob>) -> String {
        let blob = blob.into();
        let digest = blob.digest();
        self.lock().entry(image.to_owned()).or_default().blobs.insert(digest.clone(), blob);
        digest
    }

    /// Adds a manifest to an image under its digest and, where one is given, under a tag; answers its digest.
    pub fn put_manifest(&self, image: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> String {
        let manifest = Manifest { media_type: media_type.to_owned(), digest: Hash::of(bytes), bytes: bytes.to_vec() };
        let digest = manifest.digest.clone();
        let mut images = self.lock();
        let manifests = &mut images.entry(image.to_owned()).or_default().manifests;
        if let Some(tag) = tag {
            manifests.insert(tag.to_owned(), manifest.clone());
        }
        manifests.insert(digest.clone(), manifest);
        digest
    }

    /// Makes an image of these layers.
    pub fn put_image(&self, name: &str, tag: &str, layers: Vec<Blob>) -> Result<Made> {
        let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "name": name, "tag": tag});
        let config = serde_json::to_vec(&config).context("failed to write a config")?;
        let config_length = config.len();
        let config = self.put_blob(name, config);
        let layers: Vec<_> = layers.into_iter().map(|layer| (self.put_blob(name, layer.clone()), layer)).collect();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(digest, blob)| json!({"mediaType": OCI_LAYER, "digest": digest, "size": blob.length()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config, "size": config_length},
            "layers": descriptors,
        });
        let manifest = serde_json::to_vec(&manifest).context("failed to write a manifest")?;
        let digest = self.put_manifest(name, Some(tag), OCI_MANIFEST, &manifest);
        Ok(Made { name: name.to_owned(), digest, manifest, layers })
    }

    /// Whether this image is served here and not by the registry behind.
    pub fn has(&self, image: &str) -> bool {
        self.lock().contains_key(image)
    }

    /// The names of the images that are here, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Answers a request for an image that is here.
    pub fn answer(&self, request: &Request, wanted: &Wanted<'_>) -> Answer {
        let images = self.lock();
        let Some(image) = images.get(wanted.image) else {
            return not_found("NAME_UNKNOWN");
        };
        match wanted.kind {
            "manifests" => image.manifest(wanted.reference),
            "blobs" => image
                .blobs
                .get(wanted.reference)
                .map_or_else(|| not_found("BLOB_UNKNOWN"), |blob| ranged(request, wanted.reference, blob.clone())),
            "tags" => image.tags(wanted.image),
            _ => not_found("UNSUPPORTED"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Image>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    fn manifest(&self, reference: &str) -> Answer {
        let Some(manifest) = self.manifests.get(reference) else {
            return not_found("MANIFEST_UNKNOWN");
        };
        Answer::blob(200, &manifest.media_type, manifest.bytes.clone().into())
            .with("Docker-Content-Digest", &manifest.digest)
            .with("ETag", format!("\"{}\"", manifest.digest))
    }

    fn tags(&self, name: &str) -> Answer {
        let tags: Vec<_> = self.manifests.keys().filter(|key| !key.contains(':')).collect();
        Answer::text(200, "application/json", json!({"name": name, "tags": tags}).to_string())
    }
}

/// What a registry path asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The image's name.
    pub image: &'a str,
    /// `manifests`, `blobs`, `tags`, `referrers`.
    pub kind: &'a str,
    /// The tag, digest, or `list`.
    pub reference: &'a str,
}

impl<'a> Wanted<'a> {
    /// Reads `/v2/<image>/<kind>/<reference>`.
    #[must_use]
    pub fn from_path(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2/")?;
        let (rest, reference) = rest.rsplit_once('/')?;
        let (image, kind) = rest.rsplit_once('/')?;
        Some(Self { image, kind, reference })
    }
}

/// An error as the distribution specification writes it.
#[must_use]
pub fn not_found(code: &str) -> Answer {
    error(404, code)
}

/// An error of any status as the distribution specification writes it.
#[must_use]
pub fn error(status: u16, code: &str) -> Answer {
    let body = json!({"errors": [{"code": code, "message": "said by the test upstream"}]});
    Answer::text(status, "application/json", body.to_string())
}

fn ranged(request: &Request, digest: &str, blob: Blob) -> Answer {
    let etag = format!("\"{digest}\"");
    let whole = blob.length();
    let answer = Answer::blob(200, "application/octet-stream", blob.clone())
        .with("Docker-Content-Digest", digest)
        .with("ETag", &etag)
        .with("Accept-Ranges", "bytes");
    let current = request.header(&IF_RANGE).is_none_or(|validator| validator == etag);
    let Some(range) = request.header(&RANGE).filter(|_| current) else {
        return answer;
    };
    let Some((first, last)) = parse_range(range, whole) else {
        return error(416, "RANGE_INVALID").with("Content-Range", format!("bytes */{whole}"));
    };
    let mut answer = answer.with("Content-Range", format!("bytes {first}-{last}/{whole}"));
    answer.status = 206;
    answer.body = Body::Part { blob, offset: first, length: last - first + 1 };
    answer
}

fn parse_range(range: &str, whole: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = whole.checked_sub(1)?;
    let range = match (first, last) {
        ("", suffix) => (whole.saturating_sub(suffix.parse().ok()?), end),
        (first, "") => (first.parse().ok()?, end),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.min(end)),
    };
    (range.0 <= range.1).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        assert_eq!(parse_range("bytes=0-", 10), Some((0, 9)));
        assert_eq!(parse_range("bytes=2-5", 10), Some((2, 5)));
        assert_eq!(parse_range("bytes=2-50", 10), Some((2, 9)));
        assert_eq!(parse_range("bytes=-3", 10), Some((7, 9)));
        assert_eq!(parse_range("bytes=10-", 10), None);
        assert_eq!(parse_range("bytes=0-", 0), None);
    }
}
