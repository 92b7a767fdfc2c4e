//! What is asked for in a benchmark: images, in memory and as plain files, behind upstreams of several speeds.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{
    client,
    origin::{Entry, Origin},
};
use crate::{
    content::{Image, make_layers},
    package::digest::sha256,
};

/// A large layer.
pub const LARGE: usize = 256 * 1024 * 1024;
/// A huge one.
const HUGE: usize = 1024 * 1024 * 1024;
/// A small one.
const SMALL: usize = 10 * 1024;
/// A small answer that is asked for beside large transfers.
const TINY: usize = 1024;
/// The image.
const IMAGE: &str = "library/bench";
/// An image of many layers, and how many, of how many bytes each.
const LAYERED: (&str, u32, usize) = ("library/layers", 60, 1024 * 1024);
/// Its media type.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of blobs.
const BLOB: &str = "application/octet-stream";

/// What is asked for, and the upstreams that have it.
#[derive(Debug)]
pub struct Stage {
    /// As fast as the machine is.
    pub fast: Origin,
    /// 300 MB/s for each connection.
    pub usual: Origin,
    /// 50 MB/s for each connection.
    pub slow: Origin,
    /// The request for a layer of 256 MiB.
    pub large: Vec<u8>,
    /// The request for another one.
    pub other_large: Vec<u8>,
    /// The request for a layer of 1 GiB.
    pub huge: Vec<u8>,
    /// The request for a layer of 10 KiB.
    pub small: Vec<u8>,
    /// The request for a layer of 1 KiB.
    pub tiny: Vec<u8>,
    /// The manifest's path, by tag.
    pub tagged: String,
    /// The request for the manifest, by tag.
    pub by_tag: Vec<u8>,
    /// The same by digest.
    pub by_digest: Vec<u8>,
    /// An image of 60 layers, as an engine names it.
    pub layered: String,
    /// The requests for its blobs.
    pub layers: Vec<Vec<u8>>,
}

impl Stage {
    /// Makes the image, and below `files` the tree of plain files.
    pub fn build(files: &Path) -> Result<Self> {
        let blobs = files.join("v2").join(IMAGE).join("blobs");
        let manifests = files.join("v2").join(IMAGE).join("manifests");
        for folder in [&blobs, &manifests] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut entries = BTreeMap::new();
        let mut random = StdRng::seed_from_u64(6);
        let mut put = |folder: &Path, kind: &str, content_type, names: &[&str], content: &[u8]| -> Result<Vec<u8>> {
            let digest = format!("sha256:{}", sha256(content));
            let entry = Entry::write(folder, &digest, content_type, content)?;
            for name in names {
                fs::hard_link(&entry.file, folder.join(name)).context("cannot name a manifest by its tag")?;
                entries.insert(format!("/v2/{IMAGE}/{kind}/{name}"), entry.clone());
            }
            let path = format!("/v2/{IMAGE}/{kind}/{digest}");
            entries.insert(path.clone(), entry);
            Ok(client::get(&path))
        };
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        put(&blobs, "blobs", BLOB, &[], config)?;
        let mut layers = Vec::new();
        let mut blob = |size: usize| -> Result<Vec<u8>> {
            let mut content = vec![0; size];
            random.fill_bytes(&mut content);
            layers.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{}", sha256(&content)),
                "size": size,
            }));
            put(&blobs, "blobs", BLOB, &[], &content)
        };
        let (large, other_large, huge) = (blob(LARGE)?, blob(LARGE)?, blob(HUGE)?);
        let (small, tiny) = (blob(SMALL)?, blob(TINY)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", sha256(config)),
                "size": config.len(),
            },
            "layers": layers,
        });
        let by_digest = put(&manifests, "manifests", MANIFEST, &["latest"], manifest.to_string().as_bytes())?;
        let tagged = format!("/v2/{IMAGE}/manifests/latest");
        let layered = Image { name: LAYERED.0.to_owned(), layout: files.join("layers") };
        make_layers(&layered.layout, LAYERED.1, LAYERED.2)?;
        let (manifest, digest) = layered.root()?;
        for name in [digest.as_str(), "latest"] {
            let entry = Entry::of(manifest.clone(), &digest, MANIFEST)?;
            entries.insert(format!("/v2/{}/manifests/{name}", layered.name), entry);
        }
        let mut layers = Vec::new();
        for (digest, _) in layered.blobs()? {
            let entry = Entry::of(layered.blob(&digest), &digest, BLOB)?;
            let path = format!("/v2/{}/blobs/{digest}", layered.name);
            layers.push(client::get(&path));
            entries.insert(path, entry);
        }
        Ok(Self {
            fast: Origin::start(entries.clone(), None)?,
            usual: Origin::start(entries.clone(), Some(300_000_000))?,
            slow: Origin::start(entries, Some(50_000_000))?,
            large,
            other_large,
            huge,
            small,
            tiny,
            by_tag: client::get(&tagged),
            tagged,
            by_digest,
            layered: layered.reference(),
            layers,
        })
    }
}
