//! The parts of a manifest with what only people want to know of them: which is the config, which platform an entry is for.
//! Pure. May import `oci`.
//!
//! What a manifest points to is decided by `oci::Manifest`; this reads the same bytes again, as forgivingly.

use std::collections::HashMap;

use serde::Deserialize;

use crate::oci::{Digest, Manifest, ManifestError, MediaType};

/// The most parts that are shown of one manifest.
const MAX_PARTS: usize = 1_000;

/// A manifest's parts.
#[derive(Debug, Default)]
pub struct Document {
    /// They, at most 1,000.
    pub parts: Vec<Described>,
    /// How many more it has.
    pub left_out: usize,
    /// The manifest that it says something about.
    pub subject: Option<Digest>,
    /// What kind of artifact it says it is.
    pub artifact_type: Option<String>,
}

/// What a part is of its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The image's configuration.
    Config,
    /// A layer, or whatever else is a blob.
    Layer,
    /// A manifest of an index.
    Manifest,
}

/// A part.
#[derive(Debug)]
pub struct Described {
    /// What it is.
    pub role: Role,
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size, where the manifest says it.
    pub size: Option<u64>,
    /// Whether it is asked for as a manifest, not as a blob.
    pub is_manifest: bool,
    /// `os/architecture/variant`, in words without odd characters.
    pub platform: Option<String>,
}

impl Document {
    /// Reads a manifest that a store keeps.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest = Manifest::parse(bytes)?;
        let raw: Raw = serde_json::from_slice(bytes).map_err(ManifestError::NotAManifest)?;
        let config = raw.config.and_then(|config| config.digest);
        let entries = raw.manifests.unwrap_or_default();
        // Of two entries for the same manifest, the first tells its platform.
        let listed = entries.iter().rev().filter_map(|entry| Some((entry.digest.as_deref()?, entry)));
        let entries: HashMap<&str, &Entry> = listed.collect();
        let described = manifest.descriptors().iter().enumerate().map(|(place, found)| {
            let entry = entries.get(found.digest.as_str());
            let role = match entry {
                Some(_) => Role::Manifest,
                // The config stands first; a layer may have the same digest.
                None if place == 0 && config.as_deref() == Some(found.digest.as_str()) => Role::Config,
                None => Role::Layer,
            };
            Described {
                role,
                digest: found.digest.clone(),
                media_type: found.media_type.clone(),
                size: found.size,
                is_manifest: found.is_manifest,
                platform: entry.and_then(|entry| entry.platform.as_ref()).and_then(Platform::text),
            }
        });
        Ok(Self {
            parts: described.take(MAX_PARTS).collect(),
            left_out: manifest.descriptors().len().saturating_sub(MAX_PARTS),
            subject: manifest.subject.map(|subject| subject.digest),
            artifact_type: manifest.artifact_type,
        })
    }
}

#[derive(Deserialize)]
struct Raw {
    config: Option<Entry>,
    manifests: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    digest: Option<String>,
    #[serde(default, deserialize_with = "forgiving")]
    platform: Option<Platform>,
}

#[derive(Default, Deserialize)]
struct Platform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Platform {
    /// The words that have only characters which platforms have.
    fn text(&self) -> Option<String> {
        let good = |word: &&str| {
            !word.is_empty()
                && word.len() <= 64
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let words = [&self.os, &self.architecture, &self.variant].map(|word| word.as_deref().filter(good));
        match words {
            [None, None, _] => None,
            words => Some(words.into_iter().flatten().collect::<Vec<_>>().join("/")),
        }
    }
}

/// A platform of another shape is none.
fn forgiving<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn read(document: &Value) -> Vec<(Role, String, Option<String>)> {
        let document = Document::read(document.to_string().as_bytes()).unwrap();
        document.parts.into_iter().map(|part| (part.role, part.digest.to_string(), part.platform)).collect()
    }

    #[test]
    fn an_image_has_a_config_and_layers() {
        let parts = read(&json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest('a'), "size": 2},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest('b'), "size": 3},
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest('a'), "size": 2},
            ],
        }));
        assert_eq!(
            parts,
            [(Role::Config, digest('a'), None), (Role::Layer, digest('b'), None), (Role::Layer, digest('a'), None)]
        );
    }

    #[test]
    fn entries_of_an_index_say_their_platform() {
        let entry = |digit, platform: Value| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(digit), "size": 1, "platform": platform});
        let parts = read(&json!({"schemaVersion": 2, "manifests": [
            entry('a', json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            entry('b', json!({"os": "linux", "architecture": "<script>"})),
            entry('c', json!("linux")),
            entry('d', json!({"variant": "v8"})),
        ]}));
        let platforms: Vec<_> = parts.into_iter().map(|(role, _, platform)| (role, platform)).collect();
        assert_eq!(
            platforms,
            [
                (Role::Manifest, Some("linux/arm/v7".to_owned())),
                (Role::Manifest, Some("linux".to_owned())),
                (Role::Manifest, None),
                (Role::Manifest, None),
            ]
        );
    }

    #[test]
    fn a_huge_manifest_is_shown_in_part() {
        let layers: Vec<Value> = (0..1_500).map(|_| json!({"digest": digest('b'), "size": 3})).collect();
        let document = Document::read(json!({"schemaVersion": 2, "layers": layers}).to_string().as_bytes()).unwrap();
        assert_eq!((document.parts.len(), document.left_out), (1_000, 500));
    }
}
