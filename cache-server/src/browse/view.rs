//! What is shown, as the API writes it in JSON; the pages print the same. Pure. Holds no secret, no upstream's address and
//! nothing of a client.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A number of bytes: a number in JSON, and for people in units of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        // Tenths of a unit, in whole numbers.
        let mut tenths = u128::from(self.0) * 10;
        if self.0 < 1024 {
            return write!(formatter, "{} bytes", self.0);
        }
        for unit in UNITS {
            tenths /= 1024;
            if tenths < 10_240 || unit == UNITS[UNITS.len() - 1] {
                return write!(formatter, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        Ok(())
    }
}

/// A time as RFC 3339 in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

impl Moment {
    /// So many milliseconds since 1970.
    #[must_use]
    pub fn of_millis(millis: u64) -> Self {
        Self(SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        time.unwrap_or_default().fmt(formatter)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A repository.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Its name.
    pub name: String,
    /// The kind of its object.
    pub kind: &'static str,
    /// Whether it serves.
    pub online: bool,
    /// The registries that it stands for.
    pub registries: Vec<String>,
    /// How a mirror's upstream stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// A group's members, in the order in which they are asked; those left out that who asks may not see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<String>>,
    /// The member that takes a group's pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_to: Option<String>,
    /// The ways to it.
    pub ways: Ways,
}

/// How an upstream stands.
#[derive(Clone, Debug, Serialize)]
pub struct Upstream {
    /// `Unknown`, `Reachable`, `Unreachable` or `Denied`.
    pub state: &'static str,
    /// Since when.
    pub since: Moment,
}

/// The ways to a repository.
#[derive(Clone, Debug, Serialize)]
pub struct Ways {
    /// What stands in front of an image's name, on the main port.
    pub paths: Vec<String>,
    /// Ports of its own.
    pub ports: Vec<u16>,
    /// Host names of its own.
    pub hosts: Vec<String>,
}

/// An image that a repository has something of.
#[derive(Clone, Debug, Serialize)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// The repositories that hold it: the repository itself, or members of the group.
    pub repositories: Vec<String>,
}

/// A tag, as one repository holds it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tag {
    /// The tag.
    pub name: String,
    /// The repository that holds it. Of several with the same tag, a group answers with the first.
    pub repository: String,
    /// What it points to.
    pub digest: String,
    /// The media type of that.
    pub media_type: String,
    /// The size of that manifest, without what it points to.
    pub size: Size,
    /// Whether that manifest is here.
    pub cached: bool,
    /// When the upstream last confirmed it, or when it was pushed.
    pub confirmed: Moment,
    /// When it was last used, to the hour.
    pub last_used: Moment,
}

/// A manifest in a list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestEntry {
    /// Its digest.
    pub digest: String,
    /// The repository that holds it.
    pub repository: String,
    /// Its media type.
    pub media_type: String,
    /// Its size, without what it points to.
    pub size: Size,
    /// When it was last used, to the hour.
    pub last_used: Moment,
}

/// A manifest and what it points to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The image, as the repository that holds it knows it.
    pub image: String,
    /// The repository that holds it.
    pub repository: String,
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// What kind of artifact it says it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Its size, without what it points to.
    pub size: Size,
    /// When it was last used, to the hour.
    pub last_used: Moment,
    /// When the tag that was asked for was last confirmed by the upstream, or pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Moment>,
    /// An index's manifests.
    pub manifests: Vec<Part>,
    /// An image's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Part>,
    /// An image's layers.
    pub layers: Vec<Part>,
    /// How many further parts it has, which are not shown.
    pub left_out: usize,
    /// The manifest that it says something about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What says something about it, as last heard.
    pub referrers: Vec<Referrer>,
}

impl Manifest {
    /// Its config and layers, or an index's manifests.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.config.iter().chain(&self.layers).chain(&self.manifests)
    }

    /// How many parts are here.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.parts().filter(|part| part.cached).count()
    }

    /// How many parts it has, of those that are shown.
    #[must_use]
    pub fn count(&self) -> usize {
        self.parts().count()
    }

    /// The size of all parts, of those that say it.
    #[must_use]
    pub fn parts_size(&self) -> Size {
        Size(self.parts().filter_map(|part| part.size).fold(0, |sum, size| sum.saturating_add(size.0)))
    }
}

/// Something that a manifest points to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// `config`, `layer` or `manifest`.
    #[serde(skip)]
    pub role: &'static str,
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size, where the manifest says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// The platform that a manifest of an index is for, as `os/architecture/variant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Whether all of it is here.
    pub cached: bool,
    /// How far it has come, while it is on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filling: Option<Progress>,
}

/// How far something has come.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Bytes that are here.
    pub bytes: Size,
    /// Bytes that it will have, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Size>,
}

/// What says something about a manifest.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// What kind of artifact it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// How full the store is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Bytes stored, and being stored; all repositories together.
    pub stored_bytes: Size,
    /// The most that may be stored.
    pub limit_bytes: Size,
    /// When the repositories were last counted; nothing before the first count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<Moment>,
    /// What each held then.
    pub repositories: Vec<RepositoryUsage>,
}

/// What a repository holds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryUsage {
    /// Its name.
    pub name: String,
    /// Manifests of all its images.
    pub manifests: u64,
    /// Blobs that it may hand out.
    pub blobs: u64,
    /// Their sizes, those too that it shares with other repositories.
    pub bytes: Size,
}

/// A blob on its way.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fill {
    /// Its digest.
    pub digest: String,
    /// The repositories that wait for it.
    pub repositories: Vec<String>,
    /// How far it has come.
    #[serde(flatten)]
    pub progress: Progress,
    /// When it began.
    pub began: Moment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1023.9 KiB"),
            (30_009_330, "28.6 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn moments_are_rfc_3339_and_never_fail() {
        assert_eq!(Moment::of_millis(1_700_000_000_999).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(Moment::of_millis(u64::MAX).to_string(), "1970-01-01T00:00:00Z");
    }
}
