//! References: a tag or a digest. May import `digest` and `tag`.

use std::{fmt, str::FromStr};

use super::{
    digest::{Digest, DigestError},
    tag::{Tag, TagError},
};

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A tag, which may move.
    Tag(Tag),
    /// A digest, which never does.
    Digest(Digest),
}

/// Why a text is no [`Reference`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It has a colon, so it must be a digest, and is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It has no colon, so it must be a tag, and is none.
    #[error(transparent)]
    Tag(#[from] TagError),
}

impl Reference {
    /// The tag, if it is one.
    #[must_use]
    pub const fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }

    /// The digest, if it is one.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// A text with a colon must be a digest, since no tag has one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(formatter),
            Self::Digest(digest) => fmt::Display::fmt(digest, formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_it_a_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:beef".parse::<Reference>(), Err(ReferenceError::Digest(_))));
        assert!(matches!("-".parse::<Reference>(), Err(ReferenceError::Tag(_))));
    }
}
