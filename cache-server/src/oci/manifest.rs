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

/// A manifest that a client pushes: read strictly, since what is wrong in it would be wrong for everyone who pulls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedManifest {
    /// What it is; both its `Content-Type` and its own `mediaType` say so, where they say anything.
    pub media_type: MediaType,
    /// The blobs that must be there before it: config and layers, but for layers whose bytes stay with their owner.
    pub required: Vec<Descriptor>,
    /// Everything that it points to but its subject. The entries of an index may be absent.
    pub references: Vec<Digest>,
    /// The manifest that it says something about, which may be absent.
    pub subject: Option<Descriptor>,
    /// What kind of artifact it is: `artifactType`, else the media type of its config.
    pub artifact_type: Option<String>,
    /// Its own annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Why a pushed manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum PushedManifestError {
    /// It is none.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Docker's schema 1.
    #[error(
        "image manifests of Docker's schema 1 are not taken: push with a client that writes schema 2 or OCI manifests"
    )]
    Schema1,
    /// Not version 2.
    #[error("a manifest must have schemaVersion 2")]
    SchemaVersion,
    /// Neither the request nor the document says what it is.
    #[error("a manifest must say its media type, in Content-Type or in mediaType")]
    NoMediaType,
    /// The request and the document disagree.
    #[error("Content-Type says {header} and mediaType says {document}: they must be the same")]
    MediaTypes {
        /// The `Content-Type`.
        header: MediaType,
        /// The `mediaType`.
        document: MediaType,
    },
    /// No type that is taken.
    #[error("{0} is not taken as a manifest; OCI image manifests and indexes are, and Docker's of schema 2")]
    UnknownMediaType(MediaType),
    /// An image without config, or with entries of an index, and the other way round.
    #[error("a manifest of type {media_type} must {must}")]
    Shape {
        /// What it says it is.
        media_type: MediaType,
        /// What it lacks.
        must: &'static str,
    },
    /// A descriptor without digest or size, or with a digest that cannot be verified.
    #[error("every descriptor must have a digest of sha256 or sha512 and a size; that of {0} has not")]
    Descriptor(String),
}

impl PushedManifest {
    /// Reads a manifest that came with this `Content-Type`. The caller bounds the length of `bytes`.
    pub fn parse(bytes: &[u8], content_type: Option<&MediaType>) -> Result<Self, PushedManifestError> {
        // What nobody may be handed, nobody may push.
        let manifest = Manifest::parse(bytes)?;
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(ManifestError::NotAManifest)?;
        let schema1 = [MediaType::DOCKER_SCHEMA1, MediaType::DOCKER_SCHEMA1_SIGNED];
        if raw.schema_version == Some(1) || content_type.is_some_and(|it| schema1.contains(it)) {
            return Err(PushedManifestError::Schema1);
        }
        if raw.schema_version != Some(2) {
            return Err(PushedManifestError::SchemaVersion);
        }
        let media_type = match (content_type, &manifest.media_type) {
            (Some(header), Some(document)) if header != document => {
                return Err(PushedManifestError::MediaTypes { header: header.clone(), document: document.clone() });
            }
            (Some(it), _) | (None, Some(it)) => it.clone(),
            (None, None) => return Err(PushedManifestError::NoMediaType),
        };
        let must = |must| PushedManifestError::Shape { media_type: media_type.clone(), must };
        let is_image = raw.config.is_some() || raw.layers.seen > 0;
        let is_index = raw.manifests.seen > 0;
        if media_type.is_index() {
            if is_image {
                return Err(must("have manifests, not config and layers"));
            }
        } else if [MediaType::OCI_MANIFEST, MediaType::DOCKER_MANIFEST].contains(&media_type) {
            if is_index || raw.config.is_none() {
                return Err(must("have a config and layers, not manifests"));
            }
        } else {
            return Err(PushedManifestError::UnknownMediaType(media_type));
        }
        let strict = |raw: RawDescriptor, is_manifest: bool| {
            let named = raw.digest.clone().unwrap_or_else(|| "no digest".to_owned());
            let checked = raw.check(is_manifest).filter(|descriptor| descriptor.size.is_some());
            checked.ok_or(PushedManifestError::Descriptor(named))
        };
        let blobs = raw.config.into_iter().chain(raw.layers.kept);
        let mut required = blobs.map(|blob| strict(blob, false)).collect::<Result<Vec<_>, _>>()?;
        let entries = raw.manifests.kept.into_iter().map(|entry| strict(entry, true)).collect::<Result<Vec<_>, _>>()?;
        let subject = raw.subject.map(|subject| strict(subject, true)).transpose()?;
        let references = required.iter().chain(&entries).map(|descriptor| descriptor.digest.clone()).collect();
        required.retain(|blob| !blob.media_type.is_foreign_layer());
        Ok(Self {
            media_type,
            required,
            references,
            subject,
            artifact_type: manifest.artifact_type,
            annotations: manifest.annotations,
        })
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

    fn push(document: &Value, content_type: Option<&str>) -> Result<PushedManifest, String> {
        let content_type = content_type.map(|text| text.parse().unwrap());
        PushedManifest::parse(document.to_string().as_bytes(), content_type.as_ref()).map_err(|error| error.to_string())
    }

    fn pushable() -> Value {
        let mut document = image();
        document["layers"][1]["digest"] = json!(digest('d'));
        document["layers"][1]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        document
    }

    #[test]
    fn a_pushed_image_needs_its_config_and_the_layers_that_may_be_handed_out() {
        let pushed = push(&pushable(), Some("application/vnd.oci.image.manifest.v1+json")).unwrap();
        let required: Vec<_> = pushed.required.iter().map(|blob| blob.digest.to_string()).collect();
        assert_eq!(required, [digest('a'), digest('b')]);
        assert_eq!(pushed.references.len(), 3);
        assert_eq!(pushed.subject.map(|subject| subject.digest.to_string()), Some(digest('c')));
        assert_eq!(pushed.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
        assert_eq!(push(&pushable(), None).unwrap().media_type, MediaType::OCI_MANIFEST);
    }

    #[test]
    fn a_pushed_index_may_be_sparse() {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_INDEX,
            "manifests": [{"mediaType": MediaType::OCI_MANIFEST, "digest": digest('a'), "size": 5}],
        });
        let pushed = push(&index, None).unwrap();
        assert!(pushed.required.is_empty());
        assert_eq!(pushed.references.len(), 1);
    }

    #[test]
    fn what_is_wrong_in_a_manifest_is_refused_before_anyone_pulls_it() {
        let with = |path: &str, value: Value| {
            let mut document = pushable();
            *document.pointer_mut(path).unwrap() = value;
            document
        };
        let unsized_config = json!({"mediaType": "a/b", "digest": digest('a')});
        for (document, content_type, says) in [
            (pushable(), Some("application/vnd.oci.image.index.v1+json"), "must be the same"),
            (with("/schemaVersion", json!(1)), None, "schema 1"),
            (with("/schemaVersion", json!(3)), None, "schemaVersion 2"),
            (with("/mediaType", json!("application/json")), None, "not taken as a manifest"),
            (with("/mediaType", Value::Null), None, "must say its media type"),
            (with("/mediaType", json!(MediaType::OCI_INDEX)), None, "must have manifests"),
            (with("/config", Value::Null), None, "must have a config"),
            (with("/config", unsized_config), None, "must have a digest"),
            (with("/layers/0/digest", json!("blake3:00")), None, "must have a digest"),
            (with("/layers/0/size", json!(-1)), None, "must have a digest"),
            (json!({"schemaVersion": 2, "manifests": [], "config": {}, "layers": [{}], "x": 1}), None, "media type"),
        ] {
            let refused = push(&document, content_type).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
        assert!(PushedManifest::parse(b"[]", None).is_err());
    }
}
