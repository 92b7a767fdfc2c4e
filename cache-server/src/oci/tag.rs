//! Tags (distribution-spec, "Pulling manifests"). May import nothing of ours.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A tag.
///
/// Invariants: 1 to 128 of letters, digits, `_`, `.` and `-`, the first neither `.` nor `-`; so it is safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// Why a text is no [`Tag`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag must be 1 to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-', got {0:?}")]
pub struct TagError(String);

impl Tag {
    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good = text.len() <= 128
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if good { Ok(Self(text.to_owned())) } else { Err(TagError(text.to_owned())) }
    }
}

impl TryFrom<String> for Tag {
    type Error = TagError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_tags_are_taken() {
        for text in ["latest", "1.25-alpine", "_x", "A", "0", &"t".repeat(128), "sha256-abc.sig"] {
            assert_eq!(text.parse::<Tag>().map(|tag| tag.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn bad_tags_are_refused() {
        for text in ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a:b", "a\0", "ä", "a\n", &"t".repeat(129)] {
            assert!(text.parse::<Tag>().is_err(), "{text:?}");
        }
    }
}
