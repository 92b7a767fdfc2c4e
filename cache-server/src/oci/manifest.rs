//! What a manifest points to (image-spec `manifest.md`, `image-index.md`; Docker's schema 1 and 2).
//! May import `digest` and `media_type`.
//!
//! Manifests are handed on byte for byte; this only reads them, as forgivingly as clients do: unknown fields, missing
//! fields and descriptors with a digest of an unknown algorithm are passed over.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor},
};

use super::{digest::Digest, media_type::MediaType};

/// The most descriptors that a manifest may have; what lies beyond is no image but an attack on memory.
pub const MAX_DESCRIPTORS: usize = 10_000;

/// What stands in a manifest, as far as a registry needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The document's own `mediaType`. It may differ from the `Content-Type` under which it came.
    pub media_type: Option<MediaType>,
    /// The manifest that this one says something about.
    pub subject: Option<Descriptor>,
    /// What kind of artifact it is: `artifactType`, else the media type of its config (distribution-spec, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// Its own annotations.
    pub annotations: BTreeMap<String, String>,
    descriptors: Vec<Descriptor>,
    shape: Shape,
}

/// A pointer to content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the content is; `application/octet-stream` where the manifest does not say.
    pub media_type: MediaType,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, where the manifest says it.
    pub size: Option<u64>,
    /// What kind of artifact it is, if it is a manifest.
    pub artifact_type: Option<String>,
    /// Annotations; not those of the content itself.
    pub annotations: BTreeMap<String, String>,
    /// Whether the content is asked for under `/manifests/`, not `/blobs/`. By media type, since an index may also list blobs
    /// (`BuildKit` keeps its cache so); an entry of an index that names no media type counts as a manifest.
    pub is_manifest: bool,
}

/// Why bytes are no manifest that may be handed on.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No JSON object, or a known field of the wrong type.
    #[error("a manifest must be a JSON object as the OCI image spec describes it")]
    NotAManifest(#[source] serde_json::Error),
    /// Clients would disagree on what it is (CVE-2021-41190).
    #[error("a manifest must not have both `manifests` and `layers` or `config`: clients would disagree on what it is")]
    Hybrid,
    /// More than [`MAX_DESCRIPTORS`].
    #[error("a manifest must have at most {MAX_DESCRIPTORS} descriptors, got {0}")]
    TooManyDescriptors(usize),
}

/// Which document it is by its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Index,
    Image,
    Schema1,
    Unknown,
}

impl Manifest {
    /// Reads a manifest. The caller bounds the length of `bytes`; memory is proportional to it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(ManifestError::NotAManifest)?;
        let is_index = raw.manifests.seen > 0;
        let is_image = raw.layers.seen > 0 || raw.config.is_some();
        if is_index && is_image {
            return Err(ManifestError::Hybrid);
        }
        let count = raw.layers.seen + raw.blobs.seen + raw.manifests.seen;
        if count > MAX_DESCRIPTORS {
            return Err(ManifestError::TooManyDescriptors(count));
        }
        let config_type = raw.config.as_ref().and_then(|config| config.media_type.clone());
        let shape = if is_index || raw.media_type().is_some_and(|media_type| media_type.is_index()) {
            Shape::Index
        } else if raw.schema_version == Some(1) {
            Shape::Schema1
        } else if is_image {
            Shape::Image
        } else {
            Shape::Unknown
        };
        let media_type = raw.media_type();
        let blobs = raw.config.into_iter().chain(raw.layers.kept).chain(raw.blobs.kept);
        let descriptors = blobs
            .filter_map(|blob| blob.check(false))
            .chain(raw.manifests.kept.into_iter().filter_map(|entry| entry.check(true)))
            .collect();
        Ok(Self {
            media_type,
            subject: raw.subject.and_then(|subject| subject.check(true)),
            artifact_type: raw.artifact_type.filter(|text| !text.is_empty()).or(config_type),
            annotations: raw.annotations.unwrap_or_default(),
            descriptors,
            shape,
        })
    }

    /// Everything it points to but its subject: config, layers, blobs, manifests, in this order. Descriptors without a digest
    /// that can be verified are left out.
    #[must_use]
    pub fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The media type, else what its fields imply; for upstreams that send no usable `Content-Type`.
    #[must_use]
    pub fn implied_media_type(&self) -> Option<MediaType> {
        self.media_type.clone().or(match self.shape {
            Shape::Index => Some(MediaType::OCI_INDEX),
            Shape::Image => Some(MediaType::OCI_MANIFEST),
            Shape::Schema1 => Some(MediaType::DOCKER_SCHEMA1_SIGNED),
            Shape::Unknown => None,
        })
    }

    /// Whether it lists other manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.shape == Shape::Index
    }
}

/// The image index that answers a request for referrers.
#[must_use]
pub fn index_of(referrers: Vec<Descriptor>) -> Vec<u8> {
    let index = RawIndex {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests: referrers
            .into_iter()
            .map(|referrer| RawReferrer {
                media_type: referrer.media_type,
                digest: referrer.digest,
                size: referrer.size.unwrap_or_default(),
                artifact_type: referrer.artifact_type,
                annotations: referrer.annotations,
            })
            .collect(),
    };
    // Strings and numbers always serialize; an empty answer is what a client would see if they did not.
    serde_json::to_vec(&index).unwrap_or_default()
}

/// The fields of every kind of manifest at once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Option<i64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Capped,
    #[serde(default)]
    blobs: Capped,
    #[serde(default)]
    manifests: Capped,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

impl RawManifest {
    fn media_type(&self) -> Option<MediaType> {
        self.media_type.as_ref()?.parse().ok()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<i64>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl RawDescriptor {
    fn check(self, listed_as_manifest: bool) -> Option<Descriptor> {
        let media_type: Option<MediaType> = self.media_type.and_then(|text| text.parse().ok());
        Some(Descriptor {
            digest: self.digest?.parse().ok()?,
            size: self.size.and_then(|size| u64::try_from(size).ok()),
            artifact_type: self.artifact_type,
            annotations: self.annotations.unwrap_or_default(),
            is_manifest: media_type.as_ref().map_or(listed_as_manifest, MediaType::is_manifest_like),
            media_type: media_type.unwrap_or(MediaType::OCTET_STREAM),
        })
    }
}

/// A list of which no more than [`MAX_DESCRIPTORS`] are held in memory, however many there are.
#[derive(Default)]
struct Capped {
    kept: Vec<RawDescriptor>,
    seen: usize,
}

impl<'de> Deserialize<'de> for Capped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrNull;

        impl<'de> Visitor<'de> for ListOrNull {
            type Value = Capped;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list of descriptors")
            }

            fn visit_unit<E>(self) -> Result<Capped, E> {
                Ok(Capped::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Capped, A::Error> {
                let mut list = Capped::default();
                while let Some(entry) = entries.next_element::<RawDescriptor>()? {
                    list.seen += 1;
                    if list.kept.len() < MAX_DESCRIPTORS {
                        list.kept.push(entry);
                    }
                }
                Ok(list)
            }
        }

        deserializer.deserialize_any(ListOrNull)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RawIndex {
    schema_version: u8,
    media_type: MediaType,
    manifests: Vec<RawReferrer>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RawReferrer {
    media_type: MediaType,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn parse(document: &Value) -> Result<Manifest, ManifestError> {
        Manifest::parse(document.to_string().as_bytes())
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest('a'), "size": 10},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest('b'), "size": 20},
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "blake3:00", "size": 20},
            ],
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest('c'), "size": 30},
            "annotations": {"a": "b"},
        })
    }

    #[test]
    fn an_image_points_to_its_config_and_layers() {
        let manifest = parse(&image()).unwrap();
        let found: Vec<_> = manifest
            .descriptors()
            .iter()
            .map(|found| (found.digest.to_string(), found.size, found.is_manifest))
            .collect();
        assert_eq!(found, [(digest('a'), Some(10), false), (digest('b'), Some(20), false)]);
        assert_eq!(manifest.subject.as_ref().unwrap().digest.to_string(), digest('c'));
        assert_eq!(manifest.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
        assert_eq!(manifest.annotations["a"], "b");
        assert_eq!(manifest.media_type, Some(MediaType::OCI_MANIFEST));
        assert!(!manifest.is_index());
    }

    #[test]
    fn an_index_points_to_manifests_but_may_list_blobs() {
        let manifest = parse(&json!({"manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest('a'), "size": 1},
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest('b'), "size": -1},
            {"digest": digest('c')},
        ]}))
        .unwrap();
        let found: Vec<_> = manifest.descriptors().iter().map(|found| (found.size, found.is_manifest)).collect();
        assert_eq!(found, [(Some(1), true), (None, false), (None, true)]);
        assert!(manifest.is_index());
        assert_eq!(manifest.media_type, None);
        assert_eq!(manifest.implied_media_type(), Some(MediaType::OCI_INDEX));
    }

    #[test]
    fn schema_1_parses_without_descriptors() {
        let manifest =
            parse(&json!({"schemaVersion": 1, "name": "x", "fsLayers": [{"blobSum": digest('a')}], "history": []}))
                .unwrap();
        assert!(manifest.descriptors().is_empty());
        assert_eq!(manifest.implied_media_type(), Some(MediaType::DOCKER_SCHEMA1_SIGNED));
    }

    #[test]
    fn nulls_and_unknown_fields_are_passed_over() {
        let manifest =
            parse(&json!({"layers": null, "manifests": null, "config": null, "annotations": null, "x": {"y": [1]}}))
                .unwrap();
        assert!(manifest.descriptors().is_empty());
        assert_eq!(manifest.implied_media_type(), None);
    }

    #[test]
    fn hybrids_are_refused() {
        let entry = json!({"digest": digest('a'), "size": 1});
        for document in [
            json!({"manifests": [entry], "layers": [entry]}),
            json!({"manifests": [entry], "config": entry}),
            json!({"manifests": [entry], "layers": [entry], "mediaType": MediaType::OCI_INDEX}),
        ] {
            assert!(matches!(parse(&document), Err(ManifestError::Hybrid)), "{document}");
        }
        assert!(parse(&json!({"manifests": [], "layers": [entry]})).is_ok());
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in [
            "",
            "null",
            "[]",
            "3",
            "\"x\"",
            "<html>",
            "{",
            "{} {}",
            r#"{"layers": 3}"#,
            r#"{"layers": [3]}"#,
            r#"{"layers":[],"layers":[]}"#,
        ] {
            assert!(matches!(Manifest::parse(text.as_bytes()), Err(ManifestError::NotAManifest(_))), "{text}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Manifest::parse(format!("{{\"x\":{nested}}}").as_bytes()).is_ok());
        assert!(Manifest::parse(format!("{{\"layers\":{nested}}}").as_bytes()).is_err());
    }

    #[test]
    fn the_number_of_descriptors_is_bounded() {
        let entry = json!({"digest": digest('a'), "size": 1});
        let most = json!({"layers": vec![entry.clone(); MAX_DESCRIPTORS]});
        assert_eq!(parse(&most).unwrap().descriptors().len(), MAX_DESCRIPTORS);
        let more = json!({"layers": vec![entry; MAX_DESCRIPTORS + 5]});
        assert!(matches!(parse(&more), Err(ManifestError::TooManyDescriptors(10_005))));
    }

    #[test]
    fn referrers_become_an_index_that_reads_back() {
        let empty: Value = serde_json::from_slice(&index_of(vec![])).unwrap();
        assert_eq!(empty, json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": []}));

        let referrers = vec![Descriptor {
            media_type: MediaType::OCI_MANIFEST,
            digest: digest('a').parse().unwrap(),
            size: Some(7),
            artifact_type: Some("application/x".into()),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            is_manifest: true,
        }];
        assert_eq!(Manifest::parse(&index_of(referrers.clone())).unwrap().descriptors(), referrers);
    }
}
