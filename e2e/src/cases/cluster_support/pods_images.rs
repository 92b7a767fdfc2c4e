//! Images that are made for one case, so that nobody has them yet.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use crate::content::{Image, file_layer};
use crate::package::layout::{Descriptor, Layout, MANIFEST};
use crate::suite::World;
use crate::upstream::Upstream;
use crate::upstream::fault::{Fault, Target};

/// The size of the layer that takes its time.
const LARGE: usize = 24 << 20;
/// At this rate it takes eight seconds.
const RATE: u64 = 3 << 20;
/// The size of the layer of an image that is only pulled.
const SMALL: usize = 64 << 10;
/// Every layer's bytes are others.
static SEED: AtomicU64 = AtomicU64::new(7_000);

/// An image at Docker Hub that keeps running, with one layer of noise.
#[derive(Debug)]
pub struct Runnable {
    image: Image,
    /// The layer of noise.
    pub noise: Descriptor,
}

impl Runnable {
    /// Makes it and pushes it to the upstream as `library/NAME`.
    pub fn publish(world: &World, name: &str) -> Result<Self> {
        let folder = world.lab.dir("runnable")?.join(name);
        let layout = Layout::create(&folder)?;
        let program = fs::read(world.programs.pause()).context("cannot read the program that keeps a pod alive")?;
        let program = file_layer(&layout, "pause", 0o755, &program)?;
        let noise = file_layer(&layout, "noise", 0o644, &noise(LARGE))?;
        let config = json!({ "User": "65532:65532", "Entrypoint": ["/pause"] });
        let blob = noise.blob.clone();
        layout.finish(&layout.add_image("amd64", &config, &[program, noise])?)?;
        let image = Image { name: format!("library/{name}"), layout: folder };
        image.push(&world.upstream.push_endpoint()?)?;
        Ok(Self { image, noise: blob })
    }

    /// As users write it.
    #[must_use]
    pub fn reference(&self) -> String {
        self.image.reference()
    }

    /// Lets the upstream take its time over the noise.
    pub fn slow_down(&self, upstream: &Upstream) {
        upstream.faults().set(Target::path(self.noise.digest()).method("GET"), Fault::Rate(RATE));
    }

    /// The upstream is as quick as it can be again.
    pub fn speed_up(&self, upstream: &Upstream) {
        upstream.faults().clear_path(&self.noise.digest());
    }
}

/// Makes an image that every upstream serves under `name`, tag `1`, and that is good for being pulled.
pub fn put_synthetic(world: &World, name: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(world.lab.work()).context("cannot make a folder for an image")?;
    let layout = Layout::create(folder.path())?;
    let layer = file_layer(&layout, "noise", 0o644, &noise(SMALL))?;
    let image = layout.add_image("amd64", &json!({ "Cmd": ["/noise"] }), &[layer])?;
    let content = world.upstream.content();
    let blobs = folder.path().join("blobs/sha256");
    for entry in fs::read_dir(&blobs).context("cannot list the blobs of an image")? {
        let path = entry.context("cannot list the blobs of an image")?.path();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if path.ends_with(&image.sha256) {
            content.put_manifest(name, Some("1"), MANIFEST, &bytes);
        } else {
            content.put_blob(name, bytes);
        }
    }
    Ok(())
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(SEED.fetch_add(1, Ordering::Relaxed)).fill_bytes(&mut bytes);
    bytes
}
