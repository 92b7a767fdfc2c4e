//! What was in a directory before us, kept so that it comes back byte for byte.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// What a registry's directory held before us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The certs.d it is in.
    pub root: PathBuf,
    /// The directory in it.
    pub dir: String,
    /// Whether the directory was there.
    pub existed: bool,
    /// Its hosts.toml.
    pub hosts: Original,
}

/// A hosts.toml of someone else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Original {
    /// There was none.
    None,
    /// A file.
    File {
        /// Its bytes.
        #[serde(with = "base64_text")]
        content: Vec<u8>,
        /// Its permission bits.
        mode: u32,
        /// When it was written, since 1970.
        modified: Option<Duration>,
    },
    /// A symbolic link.
    Link {
        /// Where to.
        #[serde(with = "base64_text")]
        target: Vec<u8>,
        /// What was read through it, if anything was.
        #[serde(with = "base64_option")]
        content: Option<Vec<u8>>,
    },
}

impl Original {
    /// What the runtime read.
    #[must_use]
    pub fn content(&self) -> Option<&[u8]> {
        match self {
            Self::None => None,
            Self::File { content, .. } => Some(content),
            Self::Link { content, .. } => content.as_deref(),
        }
    }

    /// Whether it is the same for whoever reads it; when it was written does not count.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { content, mode, .. }, Self::File { content: theirs, mode: their_mode, .. }) => {
                content == theirs && mode == their_mode
            }
            _ => self == other,
        }
    }
}

/// The target of a link as a path.
#[must_use]
pub fn target_path(target: &[u8]) -> PathBuf {
    OsString::from_vec(target.to_vec()).into()
}

/// Bytes that need not be text, as text in JSON.
mod base64_text {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The same for bytes that need not be there.
mod base64_option {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes)).serialize(serializer)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| BASE64_STANDARD.decode(text).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn bytes_that_are_no_text_survive_being_kept() {
        for hosts in [
            Original::None,
            Original::File { content: vec![0xff, 0, b'\n'], mode: 0o600, modified: Some(Duration::new(5, 7)) },
            Original::Link { target: vec![b'/', 0xfe], content: None },
        ] {
            let record = Record { root: "/x".into(), dir: "docker.io".into(), existed: true, hosts };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        }
    }
}
