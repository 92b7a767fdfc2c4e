//! An image of one file, in memory, as engines take it.

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;

use super::header;
use crate::package::digest::sha256;
use crate::package::layout::{CONFIG, LAYER, MANIFEST};

/// An image of one layer with one file.
#[derive(Debug, Clone)]
pub struct OneFile {
    /// The layer before it was compressed: a tar file.
    pub tar: Vec<u8>,
    /// The layer.
    pub layer: Vec<u8>,
    /// The config.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
}

impl OneFile {
    /// The image of a file with this content; another content makes another image.
    pub fn new(content: &[u8]) -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_data(&mut header(content.len() as u64, 0o644), "file", content).context("cannot write a layer")?;
        let tar = tar.into_inner().context("cannot end a layer")?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(1));
        std::io::Write::write_all(&mut gzip, &tar).context("cannot compress a layer")?;
        let layer = gzip.finish().context("cannot compress a layer")?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/file"] },
            "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media_type: &str, blob: &[u8]| json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
        });
        Ok(Self { tar, layer, manifest: manifest.to_string().into_bytes(), config })
    }

    /// The manifest's digest.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The layer's digest.
    #[must_use]
    pub fn layer_digest(&self) -> String {
        digest(&self.layer)
    }
}

/// As OCI writes it.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}
