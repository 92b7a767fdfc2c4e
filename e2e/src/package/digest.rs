//! Digests as OCI writes them.

use std::io::{self, Write};

use aws_lc_rs::digest::{Context, SHA256, digest};

/// The sha256 of `bytes` in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

/// Passes bytes on and knows their number and sha256 at the end.
pub struct Hashing<W> {
    inner: W,
    context: Context,
    size: u64,
}

impl<W: Write> Hashing<W> {
    /// Passes on to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, context: Context::new(&SHA256), size: 0 }
    }

    /// What it passed on to, the sha256 in hexadecimal, and the number of bytes.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, hex::encode(self.context.finish()), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.context.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
