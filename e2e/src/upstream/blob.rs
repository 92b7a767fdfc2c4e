//! Bytes that an upstream serves: given ones, or generated ones that take no memory.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

/// Generated content is made in blocks of this size, each from the seed and its own number.
const BLOCK: u64 = 64 * 1024;

/// The content of one blob; cheap to clone.
#[derive(Clone, Debug)]
pub enum Blob {
    /// These very bytes.
    Given(Bytes),
    /// Pseudo-random bytes, the same for the same seed.
    Generated {
        /// Decides the bytes.
        seed: u64,
        /// How many there are.
        length: u64,
    },
}

impl Blob {
    /// Pseudo-random content that does not compress.
    #[must_use]
    pub const fn generated(seed: u64, length: u64) -> Self {
        Self::Generated { seed, length }
    }

    /// The number of bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Given(bytes) => bytes.len() as u64,
            Self::Generated { length, .. } => *length,
        }
    }

    /// Some bytes from `offset` on: at least one before the end, never more than `limit`.
    pub fn read(&self, offset: u64, limit: u64) -> Bytes {
        let available = self.length().saturating_sub(offset).min(limit);
        match self {
            Self::Given(bytes) => bytes.slice(index(offset)..index(offset + available)),
            Self::Generated { seed, .. } => {
                let within = offset % BLOCK;
                let end = within + available.min(BLOCK - within);
                block(*seed, offset / BLOCK).slice(index(within)..index(end))
            }
        }
    }

    /// All bytes in one piece.
    #[cfg(test)]
    pub fn collect(&self) -> Bytes {
        if let Self::Given(bytes) = self {
            return bytes.clone();
        }
        let mut all = Vec::with_capacity(index(self.length()));
        while (all.len() as u64) < self.length() {
            all.extend_from_slice(&self.read(all.len() as u64, BLOCK));
        }
        all.into()
    }

    /// The digest in the form `sha256:<hex>`.
    pub fn digest(&self) -> String {
        let mut hash = Hash::new();
        let mut offset = 0;
        while offset < self.length() {
            let piece = self.read(offset, u64::MAX);
            hash.update(&piece);
            offset += piece.len() as u64;
        }
        hash.finish()
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Given(bytes.into())
    }
}

/// A running sha256.
#[derive(Clone)]
pub struct Hash(Context);

impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

impl Hash {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in the form `sha256:<hex>`.
    #[must_use]
    pub fn finish(self) -> String {
        format!("sha256:{}", hex::encode(self.0.finish()))
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> String {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.finish()
    }
}

fn block(seed: u64, number: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03);
    let mut bytes = Vec::with_capacity(index(BLOCK));
    for _ in 0..BLOCK / 8 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        bytes.extend_from_slice(&mixed(state).to_le_bytes());
    }
    bytes.into()
}

const fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Blob, Hash};

    #[test]
    fn generated_content_is_the_same_from_any_offset() {
        let blob = Blob::generated(7, 3 * BLOCK + 11);
        let all = blob.collect();
        assert_eq!(all.len() as u64, blob.length());
        let middle = blob.read(BLOCK + 5, 100);
        assert_eq!(middle[..], all[65_541..65_641]);
        assert_eq!(blob.digest(), Hash::of(&all));
        assert_ne!(blob.digest(), Blob::generated(8, blob.length()).digest());
    }
}
