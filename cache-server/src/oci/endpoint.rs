//! What a path behind `/v2/` asks for (distribution-spec, "Endpoints"): the only path parser.
//! May import the other words of `oci`.

use super::{
    digest::{Digest, DigestError},
    error_code::ErrorCode,
    image_name::{ImageName, ImageNameError},
    reference::{Reference, ReferenceError},
    tag::TagError,
};

/// The most tags that one answer may list.
pub const MAX_LISTED: usize = 100_000;

/// An endpoint with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v2/`.
    Base,
    /// `<name>/manifests/<reference>`.
    Manifest {
        /// Of this image.
        image: ImageName,
        /// A tag or a digest.
        reference: Reference,
    },
    /// `<name>/blobs/<digest>`.
    Blob {
        /// Of this image.
        image: ImageName,
        /// The blob's digest.
        digest: Digest,
    },
    /// `<name>/tags/list?n=…&last=…`.
    Tags {
        /// Of this image.
        image: ImageName,
        /// How many, at most [`MAX_LISTED`].
        limit: Option<usize>,
        /// Only those that sort behind this text.
        last: Option<String>,
    },
    /// `<name>/referrers/<digest>?artifactType=…`.
    Referrers {
        /// Of this image.
        image: ImageName,
        /// The digest of the subject.
        digest: Digest,
        /// Only referrers of this type.
        artifact_type: Option<String>,
    },
    /// `<name>/blobs/uploads/…`.
    Uploads {
        /// Of this image.
        image: ImageName,
        /// What follows `uploads/`, decoded: empty, or the upload's id.
        rest: String,
    },
    /// Nothing that the spec describes.
    Unknown,
}

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// A percent escape that is none, that hides a slash or a NUL, or bytes that are no UTF-8.
    #[error("a path must be UTF-8 with percent escapes that hide neither a slash nor a control character, got {0:?}")]
    BadEscape(String),
    /// No image name.
    #[error(transparent)]
    Image(#[from] ImageNameError),
    /// No digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// No tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// No number of tags.
    #[error("n must be a number, got {0:?}")]
    BadLimit(String),
}

impl From<ReferenceError> for EndpointError {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Digest(error) => Self::Digest(error),
            ReferenceError::Tag(error) => Self::Tag(error),
        }
    }
}

impl EndpointError {
    /// The code of the answer. A bad tag is a manifest that cannot exist: the conformance suite asks for one and wants 404.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BadEscape(_) | Self::Image(_) => ErrorCode::NameInvalid,
            Self::Digest(_) => ErrorCode::DigestInvalid,
            Self::Tag(_) => ErrorCode::ManifestUnknown,
            Self::BadLimit(_) => ErrorCode::PaginationNumberInvalid,
        }
    }
}

impl Endpoint {
    /// Reads what follows `/v2/` (raw, as it came, without leading slash) and the query. Escapes are decoded exactly once, after
    /// the path was split. The path is split from the right, because image names contain slashes.
    pub fn parse(path_after_v2: &str, query: Option<&str>) -> Result<Self, EndpointError> {
        if path_after_v2.is_empty() {
            return Ok(Self::Base);
        }
        let segments = path_after_v2.split('/').map(decode_segment).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            [image @ .., "blobs", "uploads"] => Ok(Self::Uploads { image: image_name(image)?, rest: String::new() }),
            [image @ .., "blobs", "uploads", rest] => {
                Ok(Self::Uploads { image: image_name(image)?, rest: (*rest).to_owned() })
            }
            [image @ .., "manifests", reference] => {
                Ok(Self::Manifest { image: image_name(image)?, reference: reference.parse::<Reference>()? })
            }
            [image @ .., "blobs", digest] => Ok(Self::Blob { image: image_name(image)?, digest: digest.parse()? }),
            [image @ .., "tags", "list"] => {
                Ok(Self::Tags { image: image_name(image)?, limit: limit(query)?, last: parameter(query, "last")? })
            }
            [image @ .., "referrers", digest] => Ok(Self::Referrers {
                image: image_name(image)?,
                digest: digest.parse()?,
                artifact_type: parameter(query, "artifactType")?,
            }),
            _ => Ok(Self::Unknown),
        }
    }

    /// The image that it is about, if it is about one.
    #[must_use]
    pub const fn image(&self) -> Option<&ImageName> {
        match self {
            Self::Base | Self::Unknown => None,
            Self::Manifest { image, .. }
            | Self::Blob { image, .. }
            | Self::Tags { image, .. }
            | Self::Referrers { image, .. }
            | Self::Uploads { image, .. } => Some(image),
        }
    }
}

fn image_name(segments: &[&str]) -> Result<ImageName, EndpointError> {
    Ok(segments.join("/").parse()?)
}

/// A segment decoded once. A slash or a control character hidden in an escape is refused, since what stands behind us might
/// read it otherwise.
fn decode_segment(raw: &str) -> Result<String, EndpointError> {
    decode(raw)
        .filter(|text| !text.contains(|char: char| char == '/' || char == '\\' || char.is_control()))
        .ok_or_else(|| EndpointError::BadEscape(raw.to_owned()))
}

/// The first non-empty value of `name`. A plus sign stands for itself: artifact types end in `+json`, and nothing here has spaces.
fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, EndpointError> {
    let value = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty());
    value.map(|(_, raw)| decode(raw).ok_or_else(|| EndpointError::BadEscape(raw.to_owned()))).transpose()
}

fn limit(query: Option<&str>) -> Result<Option<usize>, EndpointError> {
    let Some(text) = parameter(query, "n")? else { return Ok(None) };
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::BadLimit(text));
    }
    // More digits than a number holds are more than the most that is listed.
    Ok(Some(text.parse().unwrap_or(MAX_LISTED).min(MAX_LISTED)))
}

/// Percent-decodes once; `None` if an escape is broken or the result is no UTF-8.
fn decode(raw: &str) -> Option<String> {
    if !raw.contains('%') {
        return Some(raw.to_owned());
    }
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let (escape, tail) = tail.split_at_checked(2)?;
        let mut byte = [0];
        hex::decode_to_slice(escape, &mut byte).ok()?;
        decoded.push(byte[0]);
        rest = tail;
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use http::StatusCode;
    use proptest::prelude::*;

    use super::*;

    fn sha() -> String {
        format!("sha256:{}", "a".repeat(64))
    }

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    fn parse(path: &str) -> Result<Endpoint, EndpointError> {
        Endpoint::parse(path, None)
    }

    #[test]
    fn paths_are_split_from_the_right() {
        let digest: Digest = sha().parse().unwrap();
        let manifest = |image: &str, reference: &str| Endpoint::Manifest {
            image: name(image),
            reference: reference.parse().unwrap(),
        };
        for (path, expected) in [
            (String::new(), Endpoint::Base),
            ("library/mysql/manifests/8.0".into(), manifest("library/mysql", "8.0")),
            ("a/b/c/d/manifests/latest".into(), manifest("a/b/c/d", "latest")),
            (format!("a/manifests/{}", sha()), manifest("a", &sha())),
            (format!("a/manifests/{}", sha().replace(':', "%3A")), manifest("a", &sha())),
            ("a/manifests/b/manifests/c".into(), manifest("a/manifests/b", "c")),
            ("a/tags/list/manifests/c".into(), manifest("a/tags/list", "c")),
            ("a/blobs/manifests/uploads".into(), manifest("a/blobs", "uploads")),
            (format!("a/blobs/{}", sha()), Endpoint::Blob { image: name("a"), digest: digest.clone() }),
            (format!("a/blobs/b/blobs/{}", sha()), Endpoint::Blob { image: name("a/blobs/b"), digest: digest.clone() }),
            ("a/b/tags/list".into(), Endpoint::Tags { image: name("a/b"), limit: None, last: None }),
            (format!("a/referrers/{}", sha()), Endpoint::Referrers { image: name("a"), digest, artifact_type: None }),
            ("a/blobs/uploads/".into(), Endpoint::Uploads { image: name("a"), rest: String::new() }),
            ("a/blobs/uploads".into(), Endpoint::Uploads { image: name("a"), rest: String::new() }),
            ("a/blobs/uploads/5f-1".into(), Endpoint::Uploads { image: name("a"), rest: "5f-1".into() }),
            ("_catalog".into(), Endpoint::Unknown),
            ("token".into(), Endpoint::Unknown),
            ("a/b".into(), Endpoint::Unknown),
            ("a/manifests".into(), Endpoint::Unknown),
            ("a/tags/list/".into(), Endpoint::Unknown),
            (format!("a/blobs/{}/", sha()), Endpoint::Unknown),
        ] {
            assert_eq!(parse(&path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn bad_paths_have_their_code_and_status() {
        let long = "a".repeat(300);
        for (path, code, status) in [
            ("manifests/x".to_owned(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("A/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("../manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/../b/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/%2e%2e/b/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a//b/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("/a/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a%2fb/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a%252fb/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/..%2fx".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/x%00".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a%5cb/manifests/x".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/%".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/%4".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/%zz".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/%ff".into(), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            (format!("{long}/manifests/x"), ErrorCode::NameInvalid, StatusCode::BAD_REQUEST),
            ("a/manifests/.INVALID_MANIFEST_NAME".into(), ErrorCode::ManifestUnknown, StatusCode::NOT_FOUND),
            (format!("a/manifests/{long}"), ErrorCode::ManifestUnknown, StatusCode::NOT_FOUND),
            ("a/manifests/".into(), ErrorCode::ManifestUnknown, StatusCode::NOT_FOUND),
            ("a/manifests/sha256:beef".into(), ErrorCode::DigestInvalid, StatusCode::BAD_REQUEST),
            ("a/blobs/latest".into(), ErrorCode::DigestInvalid, StatusCode::BAD_REQUEST),
            ("a/referrers/latest".into(), ErrorCode::DigestInvalid, StatusCode::BAD_REQUEST),
        ] {
            let error = parse(&path).expect_err(&path);
            assert_eq!((error.code(), error.code().status()), (code, status), "{path}: {error}");
        }
    }

    #[test]
    fn listings_take_a_bounded_number_and_a_start() {
        let tags = |query| match Endpoint::parse("a/tags/list", Some(query)) {
            Ok(Endpoint::Tags { limit, last, .. }) => Ok((limit, last)),
            Ok(_) => Err(ErrorCode::Unknown),
            Err(error) => Err(error.code()),
        };
        assert_eq!(tags("n=5&last=1.2%2B3"), Ok((Some(5), Some("1.2+3".into()))));
        assert_eq!(tags("last=x&n=0"), Ok((Some(0), Some("x".into()))));
        assert_eq!(tags("n=99999999999999999999999"), Ok((Some(MAX_LISTED), None)));
        assert_eq!(tags("n=&ns=docker.io&&x"), Ok((None, None)));
        for bad in ["n=-1", "n=1.5", "n=x", "n=%201", "n=+1"] {
            assert_eq!(tags(bad), Err(ErrorCode::PaginationNumberInvalid), "{bad}");
        }
    }

    #[test]
    fn an_artifact_type_keeps_its_plus_sign() {
        for query in ["artifactType=application/x%2Bjson", "artifactType=application%2Fx+json"] {
            let endpoint = Endpoint::parse(&format!("a/referrers/{}", sha()), Some(query)).unwrap();
            assert!(
                matches!(endpoint, Endpoint::Referrers { artifact_type: Some(text), .. } if text == "application/x+json")
            );
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path: String, query: Option<String>) {
            let _ = Endpoint::parse(&path, query.as_deref());
        }

        #[test]
        fn any_name_is_found_again(image in "[a-z0-9]{1,5}(/(blobs|manifests|tags|list|uploads|referrers|[a-z0-9]{1,5})){0,4}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,10}") {
            let endpoint = Endpoint::parse(&format!("{image}/manifests/{tag}"), None);
            // `blobs/uploads/<id>` would need an image that ends in `blobs` and the word `uploads` in place of `manifests`.
            prop_assert_eq!(endpoint, Ok(Endpoint::Manifest { image: image.parse().unwrap(), reference: tag.parse().unwrap() }));
        }
    }
}
