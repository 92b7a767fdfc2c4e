//! Digests and how they are computed (image-spec, `descriptor.md`, "Digests"). May import nothing of ours.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// A registered digest algorithm. Others cannot be verified here, so they are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, what nearly everything uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, most common first.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The word in front of the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits a digest of this algorithm has.
    #[must_use]
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    fn implementation(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A digest: `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits.
///
/// Invariants: exactly one of those two forms, so the text is safe as a path component. Cloning counts a reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

/// Why a text is no [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `algorithm:hex`.
    #[error("a digest must be an algorithm, a colon and hexadecimal digits, got {0:?}")]
    NoAlgorithm(String),
    /// An algorithm that cannot be verified here.
    #[error("a digest must use sha256 or sha512, got {0:?}")]
    UnknownAlgorithm(String),
    /// Wrong length, upper case, or no hexadecimal digits.
    #[error("a {algorithm} digest must have {} lower-case hexadecimal digits, got {got:?}", .algorithm.hex_len())]
    BadHex {
        /// The algorithm that the text names.
        algorithm: Algorithm,
        /// What follows the colon.
        got: String,
    },
}

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Which algorithm it is of.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        // The prefixes have one length; the whole text tells the two apart.
        if self.0.len() == Algorithm::Sha256.as_str().len() + 1 + Algorithm::Sha256.hex_len() {
            Algorithm::Sha256
        } else {
            Algorithm::Sha512
        }
    }

    /// The hexadecimal digits behind the colon, lower case.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[self.algorithm().as_str().len() + 1..]
    }

    /// The whole text, `sha256:…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or_else(|| DigestError::UnknownAlgorithm(name.to_owned()))?;
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::BadHex { algorithm, got: hex.to_owned() });
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.as_str().to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Computes a digest from pieces. A clone goes on from the same state.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: digest::Context,
    len: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, context: digest::Context::new(algorithm.implementation()), len: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// How many bytes were taken so far.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte was taken so far.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        let hex = hex::encode(self.context.finish());
        Digest(format!("{}:{hex}", self.algorithm).into())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Hasher({}, {} bytes)", self.algorithm, self.len)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn good_digests_read_back_as_written() {
        for (text, algorithm) in
            [(EMPTY.to_owned(), Algorithm::Sha256), (format!("sha512:{}", "0f".repeat(64)), Algorithm::Sha512)]
        {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest.algorithm(), algorithm);
            assert_eq!(format!("{algorithm}:{}", digest.hex()), text);
        }
    }

    #[test]
    fn bad_digests_are_refused() {
        let sixty_four = "a".repeat(64);
        for text in [
            String::new(),
            "sha256".into(),
            "sha256:".into(),
            format!("sha256:{}", "a".repeat(63)),
            format!("sha256:{}", "a".repeat(65)),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}g", "a".repeat(63)),
            format!("SHA256:{sixty_four}"),
            format!("sha512:{sixty_four}"),
            format!("md5:{sixty_four}"),
            format!("sha256+b64:{sixty_four}"),
            format!(" sha256:{sixty_four}"),
            format!("sha256:{sixty_four}\n"),
            format!("sha256:../../{}", "a".repeat(58)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").as_str(), EMPTY);
        assert!(Hasher::new(Algorithm::Sha512).is_empty());
    }

    #[test]
    fn json_goes_through_the_check() {
        assert!(serde_json::from_str::<Digest>("\"sha256:xyz\"").is_err());
        let digest: Digest = serde_json::from_str(&format!("\"{EMPTY}\"")).unwrap();
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{EMPTY}\""));
    }

    proptest! {
        #[test]
        fn pieces_hash_like_the_whole(bytes: Vec<u8>, cut in 0_usize..200) {
            let cut = cut.min(bytes.len());
            for algorithm in Algorithm::ALL {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(&bytes[..cut]);
                let mut copy = hasher.clone();
                copy.update(&bytes[cut..]);
                prop_assert_eq!(copy.len(), bytes.len() as u64);
                prop_assert_eq!(copy.finish(), Digest::of(algorithm, &bytes));
            }
        }
    }
}
