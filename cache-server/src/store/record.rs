//! What the small files hold, as JSON. Pure. May import `oci`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, MediaType};

/// That a repository may hand out a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The blob's size in bytes, where the upstream said it.
    pub size: Option<u64>,
}

/// A manifest of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// The media type with which it came; served with it again.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// The digests it points to; used as long as it is used.
    pub references: Vec<Digest>,
    /// The manifest of a hosted image that it says something about; it is used as long as that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
}

/// What a tag pointed to when the upstream was last heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagRecord {
    /// The manifest.
    pub target: TagTarget,
    /// When the upstream last confirmed it, in milliseconds since 1970.
    pub checked: u64,
    /// What it pointed to before, kept until the manifest of `target` is stored, so that a failing upstream does not
    /// take a cached copy away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<TagTarget>,
}

/// A manifest as a tag names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagTarget {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
}

impl TagRecord {
    /// How long ago the upstream confirmed it, seen from `now`; zero if that lies ahead (the clock was set back).
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.checked))
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
