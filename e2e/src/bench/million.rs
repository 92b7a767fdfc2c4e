//! A store of a million blobs and tags, as the cache server lays it out (`cache-server/src/store/mod.rs` says how), and an image
//! of as many tags for docker-registry.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    cases::Sample,
    client::{self, Connection},
    contender::{Contender, Ground, docker_registry, free_address},
    report::Samples,
};
use crate::{
    lab::Process,
    package::{beside_this_program, digest::sha256},
};

/// Blobs.
const BLOBS: u32 = 1_000_000;
/// Images, and tags of each.
const IMAGES: (u32, u32) = (10, 100_000);
/// The hosted repository that has them.
const REPOSITORY: &str = "bench";
/// How long a server may take to answer, and to look at the whole store.
const PATIENCE: Duration = Duration::from_mins(5);
/// The metric that is zero until the count after a start has ended.
const USED: &str = "entrepot_store_used_bytes ";

/// The folders of one run.
struct Stores {
    empty: PathBuf,
    full: PathBuf,
    registry: PathBuf,
}

/// Each round starts each of them on its store.
pub async fn measure(ground: &Ground, rounds: usize) -> Result<Samples> {
    let folder = ground.dir("million")?;
    let stores = Stores { empty: folder.join("empty"), full: folder.join("full"), registry: folder.join("registry") };
    for data in [&stores.empty, &stores.full] {
        // It makes the folders itself.
        let mut one = Started::ours(ground, data).await?;
        one.process.stop().await?;
    }
    println!("writing a store of {BLOBS} blobs and {} tags", IMAGES.0 * IMAGES.1);
    write_ours(&stores.full)?;
    write_registry(&stores.registry)?;
    let mut samples = Samples::new();
    for _ in 0..rounds {
        let ours = of_ours(ground, &stores).await?;
        let registry = of_registry(ground, &stores.registry).await?;
        samples.push([(Contender::Ours, ours), (Contender::DockerRegistry, registry)].into());
    }
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(samples)
}

/// A server, and how long it took from its start to its first answer.
struct Started {
    process: Process,
    address: SocketAddr,
    milliseconds: f64,
}

impl Started {
    async fn ours(ground: &Ground, data: &Path) -> Result<Self> {
        let address = free_address()?;
        let configuration = data.with_extension("yaml");
        let objects = format!(
            "apiVersion: entrepot.dev/v1alpha1
kind: HostedRepository
metadata: {{name: {REPOSITORY}}}
spec: {{anonymousPull: true}}
"
        );
        fs::write(&configuration, objects).with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut command = Command::new(beside_this_program("cache-server")?);
        command.arg("--config").arg(configuration).arg("--data").arg(data);
        command.arg("--listen").arg(address.to_string());
        Self::begin(ground, "million-entrepot", command, address).await
    }

    async fn registry(ground: &Ground, folder: &Path) -> Result<Self> {
        let address = free_address()?;
        Self::begin(ground, "million-registry", docker_registry(folder, None, address)?, address).await
    }

    async fn begin(ground: &Ground, name: &str, command: Command, address: SocketAddr) -> Result<Self> {
        let begun = Instant::now();
        let mut process = ground.spawn(name, command)?;
        let request = client::get("/v2/");
        while Connection::open(address, None).and_then(|mut one| one.fetch(&request)).is_err() {
            let ended = process.ended()?;
            ensure!(ended.is_none() && begun.elapsed() < PATIENCE, "{name} does not answer:\n{}", process.log());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(Self { process, address, milliseconds: begun.elapsed().as_secs_f64() * 1e3 })
    }

    /// How long the answer to a request takes, in milliseconds.
    fn time(&self, path: &str) -> Result<f64> {
        let request = client::get(path);
        let connection = Connection::open(self.address, None)?;
        let begun = Instant::now();
        connection.last(&request)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// The most memory that it ever held, in MiB.
    fn peak(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).context("it has ended")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmHWM is no number")?;
        Ok(kibibytes / 1024.0)
    }
}

async fn of_ours(ground: &Ground, stores: &Stores) -> Result<Sample> {
    let mut empty = Started::ours(ground, &stores.empty).await?;
    empty.process.stop().await?;
    let mut full = Started::ours(ground, &stores.full).await?;
    let list = format!("/repository/{REPOSITORY}/v2/{}/tags/list?n=100", image(0));
    let (first, second) = (full.time(&list)?, full.time(&list)?);
    let begun = Instant::now();
    while !has_counted(&full)? {
        ensure!(begun.elapsed() < PATIENCE, "the store is not counted after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(100));
    }
    let counted = begun.elapsed().as_secs_f64();
    let peak = full.peak()?;
    full.process.stop().await?;
    Ok(Sample::from([
        ("start_ms", full.milliseconds),
        ("times_empty", full.milliseconds / empty.milliseconds),
        ("after_start_ms", first),
        ("first_page_ms", second),
        ("counted_s", counted),
        ("peak_mib", peak),
    ]))
}

async fn of_registry(ground: &Ground, folder: &Path) -> Result<Sample> {
    let mut started = Started::registry(ground, folder).await?;
    let list = format!("/v2/{}/tags/list?n=100", image(0));
    let (first, second) = (started.time(&list)?, started.time(&list)?);
    let peak = started.peak()?;
    started.process.stop().await?;
    Ok(Sample::from([
        ("start_ms", started.milliseconds),
        ("after_start_ms", first),
        ("first_page_ms", second),
        ("peak_mib", peak),
    ]))
}

fn has_counted(started: &Started) -> Result<bool> {
    let text = Connection::open(started.address, None)?.last(&client::get("/metrics"))?;
    Ok(text.lines().filter_map(|line| line.strip_prefix(USED)).any(|value| value != "0"))
}

fn image(number: u32) -> String {
    format!("library/image{number}")
}

/// As many digests as there are blobs.
fn digest(number: u32) -> String {
    sha256(&number.to_be_bytes())
}

fn write_ours(data: &Path) -> Result<()> {
    let tree = data.join("repositories").join(REPOSITORY);
    let manifest = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let target = sha256(manifest);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let size = manifest.len();
    // The count of the store ends with a number that is not zero.
    put(&blob(&data.join("blobs"), &target), manifest)?;
    let tag = format!(
        r#"{{"target":{{"digest":"sha256:{target}","mediaType":"{media_type}","size":{size}}},"checked":1700000000000}}"#
    );
    for number in 0..IMAGES.0 {
        let folder = tree.join(image(number));
        let record = format!(r#"{{"mediaType":"{media_type}","size":{size},"references":[]}}"#);
        put(&folder.join("_links/sha256").join(&target), record.as_bytes())?;
        let tags = folder.join("_tags");
        fs::create_dir_all(&tags).with_context(|| format!("cannot make {}", tags.display()))?;
        for number in 0..IMAGES.1 {
            write(&tags.join(format!("v{number:06}")), tag.as_bytes())?;
        }
    }
    let links = tree.join(image(0)).join("_blobs");
    for first in 0..=u8::MAX {
        for folder in [&links, &data.join("blobs")] {
            let folder = folder.join(format!("sha256/{first:02x}"));
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
    }
    for number in 0..BLOBS {
        let digest = digest(number);
        write(&blob(&links, &digest), br#"{"size":0}"#)?;
        write(&blob(&data.join("blobs"), &digest), b"")?;
    }
    Ok(())
}

fn write_registry(folder: &Path) -> Result<()> {
    let tags = folder.join("data/docker/registry/v2/repositories").join(image(0)).join("_manifests/tags");
    let link = format!("sha256:{}", digest(0));
    for number in 0..IMAGES.1 {
        put(&tags.join(format!("v{number:06}/current/link")), link.as_bytes())?;
    }
    Ok(())
}

fn blob(folder: &Path, digest: &str) -> PathBuf {
    folder.join("sha256").join(&digest[..2]).join(digest)
}

fn put(file: &Path, content: &[u8]) -> Result<()> {
    let folder = file.parent().context("a path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write(file, content)
}

fn write(file: &Path, content: &[u8]) -> Result<()> {
    fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))
}
