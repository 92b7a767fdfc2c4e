//! Media types of manifests (image-spec `media-types.md`; Docker's schema 2 documents). May import nothing of ours.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What an upstream is asked for: everything that clients understand. Docker's schema 1 stands last, for registries that
/// have nothing else.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws";

/// A media type without parameters, such as `application/vnd.oci.image.index.v1+json`.
///
/// Invariants: `type/subtype`, both RFC 9110 tokens, at most 255 characters; so it is safe as a header value.
/// Case is kept as written, since manifests are handed on as they came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediaType(Cow<'static, str>);

/// Why a text is no [`MediaType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a media type must be type/subtype of at most 255 characters, got {0:?}")]
pub struct MediaTypeError(String);

impl MediaType {
    /// An OCI image index.
    pub const OCI_INDEX: Self = Self(Cow::Borrowed("application/vnd.oci.image.index.v1+json"));
    /// An OCI image manifest.
    pub const OCI_MANIFEST: Self = Self(Cow::Borrowed("application/vnd.oci.image.manifest.v1+json"));
    /// A Docker manifest list.
    pub const DOCKER_LIST: Self = Self(Cow::Borrowed("application/vnd.docker.distribution.manifest.list.v2+json"));
    /// A Docker image manifest, schema 2.
    pub const DOCKER_MANIFEST: Self = Self(Cow::Borrowed("application/vnd.docker.distribution.manifest.v2+json"));
    /// A signed Docker image manifest, schema 1.
    pub const DOCKER_SCHEMA1_SIGNED: Self =
        Self(Cow::Borrowed("application/vnd.docker.distribution.manifest.v1+prettyjws"));
    /// A Docker image manifest, schema 1.
    pub const DOCKER_SCHEMA1: Self = Self(Cow::Borrowed("application/vnd.docker.distribution.manifest.v1+json"));
    /// The artifact manifest that image-spec 1.1 dropped before its release; some registries still hold such manifests.
    pub const OCI_ARTIFACT: Self = Self(Cow::Borrowed("application/vnd.oci.artifact.manifest.v1+json"));
    /// Bytes of which nothing is known.
    pub const OCTET_STREAM: Self = Self(Cow::Borrowed("application/octet-stream"));

    /// The media type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a list of manifests, of OCI or Docker.
    #[must_use]
    pub fn is_index(&self) -> bool {
        [Self::OCI_INDEX, Self::DOCKER_LIST].contains(self)
    }

    /// Whether it is a layer whose bytes stay with their owner: nobody pushes it.
    #[must_use]
    pub fn is_foreign_layer(&self) -> bool {
        self.0.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
            || self.0.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
    }

    /// Whether content of this type is asked for under `/manifests/` (everything else is a blob).
    #[must_use]
    pub fn is_manifest_like(&self) -> bool {
        const OTHERS: [MediaType; 5] = [
            MediaType::OCI_MANIFEST,
            MediaType::DOCKER_MANIFEST,
            MediaType::DOCKER_SCHEMA1_SIGNED,
            MediaType::DOCKER_SCHEMA1,
            MediaType::OCI_ARTIFACT,
        ];
        self.is_index() || OTHERS.contains(self)
    }
}

impl FromStr for MediaType {
    type Err = MediaTypeError;

    /// Takes a `Content-Type` too: parameters and surrounding spaces are dropped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = text.split(';').next().unwrap_or_default().trim_matches([' ', '\t']);
        let token = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        match bare.split_once('/') {
            Some((kind, subtype)) if bare.len() <= 255 && token(kind) && token(subtype) => {
                Ok(Self(bare.to_owned().into()))
            }
            _ => Err(MediaTypeError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for MediaType {
    type Error = MediaTypeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.0.into_owned()
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_dropped() {
        assert_eq!(
            " application/json ; charset=utf-8".parse::<MediaType>().map(String::from),
            Ok("application/json".to_owned())
        );
        assert_eq!(MediaType::OCI_INDEX.as_str().parse(), Ok(MediaType::OCI_INDEX));
    }

    #[test]
    fn bad_media_types_are_refused() {
        for text in
            ["", "json", "/", "a/", "/b", "a/b/c", "a b/c", "a/b\r\nx: y", "a/\0", &format!("a/{}", "b".repeat(255))]
        {
            assert!(text.parse::<MediaType>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn everything_we_accept_is_a_manifest_and_schema_1_stands_last() {
        let accepted: Vec<MediaType> = ACCEPT.split(", ").filter_map(|text| text.parse().ok()).collect();
        assert_eq!(accepted.len(), 5);
        assert!(accepted.iter().all(MediaType::is_manifest_like));
        assert_eq!(accepted.iter().filter(|media_type| media_type.is_index()).count(), 2);
        assert_eq!(accepted.last(), Some(&MediaType::DOCKER_SCHEMA1_SIGNED));
        assert!(!MediaType::OCTET_STREAM.is_manifest_like());
    }
}
