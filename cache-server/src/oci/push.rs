//! What a push says beside its path: parameters of the query, and the range of a chunk (distribution-spec, "Pushing Blobs",
//! "Pushing Manifests"). May import `digest` and `tag`.

use url::form_urlencoded;

use super::{
    digest::{Algorithm, Digest, DigestError},
    tag::{Tag, TagError},
};

/// The most tags that one push of a manifest may set.
pub const MAX_TAGS: usize = 100;

/// The parameters of a request to `blobs/uploads/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadQuery {
    /// `digest`: what the content hashes to.
    pub digest: Option<Digest>,
    /// The blob that is to be mounted instead of sent, where `mount` is a digest. One that is none is no mistake: the client
    /// gets an upload instead, as the spec wants it.
    pub mount: Option<Digest>,
    /// `from`: whence. Not an image name yet: it may begin with a repository's.
    pub from: Option<String>,
    /// `digest-algorithm`: how the content will be hashed.
    pub algorithm: Algorithm,
}

/// The parameters with which a manifest is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestQuery {
    /// Each `tag`: tags to set beside what the path names.
    pub tags: Vec<Tag>,
    /// `digest`: what the content hashes to, for a push by tag.
    pub digest: Option<Digest>,
    /// `digest-algorithm`: how the content is hashed, for a push by tag.
    pub algorithm: Algorithm,
}

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushQueryError {
    /// No digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// No tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// No algorithm that can be verified here.
    #[error("digest-algorithm must be sha256 or sha512, got {0:?}")]
    Algorithm(String),
    /// More than [`MAX_TAGS`].
    #[error("one push may set at most {MAX_TAGS} tags")]
    TooManyTags,
}

impl UploadQuery {
    /// Reads a query.
    pub fn parse(query: Option<&str>) -> Result<Self, PushQueryError> {
        let mut parsed = Self { digest: None, mount: None, from: None, algorithm: Algorithm::Sha256 };
        for (key, value) in pairs(query) {
            match key.as_ref() {
                "digest" if parsed.digest.is_none() => parsed.digest = Some(value.parse()?),
                "mount" => parsed.mount = value.parse().ok(),
                "from" => parsed.from = Some(value.into_owned()),
                "digest-algorithm" => parsed.algorithm = algorithm(&value)?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

impl ManifestQuery {
    /// Reads a query.
    pub fn parse(query: Option<&str>) -> Result<Self, PushQueryError> {
        let mut parsed = Self { tags: Vec::new(), digest: None, algorithm: Algorithm::Sha256 };
        for (key, value) in pairs(query) {
            match key.as_ref() {
                "tag" => {
                    let tag = value.parse()?;
                    if !parsed.tags.contains(&tag) {
                        parsed.tags.push(tag);
                    }
                }
                "digest" if parsed.digest.is_none() => parsed.digest = Some(value.parse()?),
                "digest-algorithm" => parsed.algorithm = algorithm(&value)?,
                _ => {}
            }
            if parsed.tags.len() > MAX_TAGS {
                return Err(PushQueryError::TooManyTags);
            }
        }
        Ok(parsed)
    }
}

/// The pairs that have a value.
fn pairs(query: Option<&str>) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).filter(|(_, value)| !value.is_empty())
}

fn algorithm(text: &str) -> Result<Algorithm, PushQueryError> {
    let known = Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == text);
    known.ok_or_else(|| PushQueryError::Algorithm(text.to_owned()))
}

/// Where a chunk lies in its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// Its first byte.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

impl ChunkRange {
    /// Reads a `Content-Range`: `<first>-<last>`, as the spec writes it, or `bytes <first>-<last>/<total>`, as HTTP does.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
        let (range, _total) = bare.split_once('/').unwrap_or((bare, ""));
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { text.parse::<u64>().ok() } else { None }
        };
        let (start, last) = (number(first)?, number(last)?);
        Some(Self { start, length: last.checked_sub(start)?.checked_add(1)? })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn sha() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    #[test]
    fn an_upload_says_what_it_will_be() {
        let query = UploadQuery::parse(Some(&format!("mount={}&from=team%2Fbase&x=y", sha()))).unwrap();
        assert_eq!(query.mount, sha().parse().ok());
        assert_eq!(query.from.as_deref(), Some("team/base"));
        let query = UploadQuery::parse(Some(&format!("digest={}&digest-algorithm=sha512", sha()))).unwrap();
        assert_eq!((query.digest, query.algorithm), (sha().parse().ok(), Algorithm::Sha512));
        assert_eq!(UploadQuery::parse(Some("mount=nothing&from=")).unwrap(), UploadQuery::parse(None).unwrap());
        assert!(matches!(UploadQuery::parse(Some("digest=x")), Err(PushQueryError::Digest(_))));
        assert!(matches!(UploadQuery::parse(Some("digest-algorithm=md5")), Err(PushQueryError::Algorithm(_))));
    }

    #[test]
    fn a_manifest_may_be_given_many_tags_but_not_any_number() {
        let query = ManifestQuery::parse(Some("tag=a&tag=b&tag=a&tag=")).unwrap();
        assert_eq!(query.tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert!(matches!(ManifestQuery::parse(Some("tag=.x")), Err(PushQueryError::Tag(_))));
        let many: Vec<String> = (0..=MAX_TAGS).map(|number| format!("tag=t{number}")).collect();
        let many = many.join("&");
        assert_eq!(ManifestQuery::parse(Some(&many)), Err(PushQueryError::TooManyTags));
    }

    #[test]
    fn a_chunk_lies_where_it_says() {
        let whole = Some(ChunkRange { start: 0, length: 10 });
        assert_eq!(ChunkRange::parse("0-9"), whole);
        assert_eq!(ChunkRange::parse("bytes 0-9/100"), whole);
        assert_eq!(ChunkRange::parse("bytes=0-9"), whole);
        for bad in ["", "-", "0-", "-9", "9-0", "a-b", "+0-9", "0-18446744073709551615", "0 - 9"] {
            assert_eq!(ChunkRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = ChunkRange::parse(&text);
            let _ = UploadQuery::parse(Some(&text));
            let _ = ManifestQuery::parse(Some(&text));
        }
    }
}
