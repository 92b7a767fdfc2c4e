//! Images written without an engine: layers, a config, manifests, as an OCI layout that skopeo reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::digest::{Hashing, sha256};

/// The media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of a config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of a layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The tag under which a layout names its image.
pub const TAG: &str = "latest";

/// Names content by its type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type.
    pub media_type: String,
    /// The sha256, in hexadecimal.
    pub sha256: String,
    /// The size in bytes.
    pub size: u64,
}

impl Descriptor {
    /// As OCI writes it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.size })
    }

    /// `sha256:…`.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }
}

/// A layer: what manifests say of it, and what configs say of it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The compressed blob.
    pub blob: Descriptor,
    /// The sha256 of the tar file, in hexadecimal.
    pub diff_id: String,
}

/// A folder that becomes an OCI layout.
#[derive(Debug)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// An empty layout in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        write(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Adds a layer: `contents` writes its files.
    pub fn add_layer<F>(&self, compression: Compression, contents: F) -> Result<Layer>
    where
        F: FnOnce(&mut dyn Write) -> Result<()>,
    {
        let temporary = self.folder.join("blobs/layer");
        let file = File::create(&temporary).with_context(|| format!("cannot write {}", temporary.display()))?;
        let gzip = GzEncoder::new(Hashing::new(BufWriter::new(file)), compression);
        let mut tar = Hashing::new(gzip);
        contents(&mut tar)?;
        let (gzip, diff_id, _) = tar.finish();
        let (mut file, sha256, size) = gzip.finish().context("cannot end a layer")?.finish();
        file.flush().context("cannot write a layer")?;
        fs::rename(&temporary, self.blob(&sha256)).context("cannot name a layer")?;
        Ok(Layer { blob: descriptor(LAYER, sha256, size), diff_id })
    }

    /// Adds the manifest and config of an image; `config` is the `config` part of the latter.
    pub fn add_image(&self, architecture: &str, config: &Value, layers: &[Layer]) -> Result<Descriptor> {
        let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
        let config = self.add_json(
            CONFIG,
            &json!({
                "architecture": architecture,
                "os": "linux",
                "config": config,
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
        )?;
        let layers: Vec<Value> = layers.iter().map(|layer| layer.blob.json()).collect();
        self.add_json(
            MANIFEST,
            &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.json(), "layers": layers }),
        )
    }

    /// Adds an index over images, each with its architecture.
    pub fn add_index(&self, images: &[(&str, Descriptor)]) -> Result<Descriptor> {
        let manifests: Vec<Value> = images
            .iter()
            .map(|(architecture, image)| {
                let mut entry = image.json();
                entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
                entry
            })
            .collect();
        self.add_json(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
    }

    /// Ends the layout: `root` is what its tag names.
    pub fn finish(&self, root: &Descriptor) -> Result<()> {
        let mut entry = root.json();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        write(&self.folder.join("index.json"), &serde_json::to_vec(&index)?)
    }

    /// Adds a document as a blob.
    pub fn add_json(&self, media_type: &str, document: &Value) -> Result<Descriptor> {
        self.add_blob(media_type, &serde_json::to_vec(document)?)
    }

    /// Adds bytes as a blob.
    pub fn add_blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
        let sha256 = sha256(bytes);
        write(&self.blob(&sha256), bytes)?;
        Ok(descriptor(media_type, sha256, bytes.len() as u64))
    }

    fn blob(&self, sha256: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(sha256)
    }
}

fn descriptor(media_type: &str, sha256: String, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), sha256, size }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
