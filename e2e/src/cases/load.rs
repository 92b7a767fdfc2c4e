//! The cache under mixed load while its upstream fails at random, and a store that is four times too small for what
//! passes through it. Every choice comes from a seed that is printed.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{interval, sleep, timeout},
};

use crate::{
    lab::CacheServer,
    suite::{Case, World},
    upstream::{
        blob::Blob,
        client::{Ask, Ending, Got},
        content::Made,
        fault::{Encoding, Fault},
        mirror::{Configuration, Mirror},
        request::Request,
    },
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const MINUTE: Duration = Duration::from_mins(1);
const IMAGES: u64 = 40;
const WORKERS: u64 = 16;
/// One request in so many that reaches the upstream meets a fault.
const FAULT_IN: u32 = 12;
/// Nobody waits longer for an answer or for its next byte: the limits of the quick mirror add up to less.
const HUNG: Duration = Duration::from_secs(20);
/// How much more memory the server may hold at the end than after the first third.
const FLAT: u64 = 48 * MIB;

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("load: a minute of faults", |world| Box::pin(mixed(world, MINUTE))),
        Case::new("load: 2 GiB through a store of 512 MiB", |world| Box::pin(small_store(world))),
    ]
}

/// Mixed load with random faults for this long; `cargo e2e soak` runs it for an hour.
pub async fn mixed(world: &World, length: Duration) -> Result<()> {
    let seed = std::env::var("ENTREPOT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("       seed {seed} (ENTREPOT_SEED={seed} repeats its choices)");
    let images = Arc::new(put_images(world, seed)?);
    let configuration = Configuration::quick(&world.upstream)
        .mirror(Mirror::hub().breaker(20).always_revalidating())
        // Small enough that content is dropped and fetched again all the time.
        .max_size("48Mi");
    let server = CacheServer::start(&world.lab, configuration.setup("load")).await?;
    let mut faults = StdRng::seed_from_u64(seed);
    world.upstream.faults().choose(move |request| random_fault(&mut faults, request));

    let tally = Arc::new(Tally::default());
    let end = Instant::now() + length;
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let random = StdRng::seed_from_u64(seed.wrapping_add(worker + 1));
        let work = work(random, server.listen(), Arc::clone(&images), end, Arc::clone(&tally));
        workers.spawn(work);
    }
    let settled = settled_memory(&server, length / 3);
    let (settled, done) = tokio::join!(settled, all_of(workers));
    world.upstream.faults().clear();
    done?;
    println!("       {tally}");
    tally.ensure_meaningful()?;

    let grown = server.rss_bytes()?.saturating_sub(settled?);
    ensure!(grown <= FLAT, "memory grew by {} MiB after the first third", grown / MIB);
    pull_everything(&server, &images).await?;
    nothing_partial(&server).await
}

fn put_images(world: &World, seed: u64) -> Result<Vec<Made>> {
    let mut random = StdRng::seed_from_u64(seed);
    let made = (0..IMAGES).map(|number| {
        let layers = (0..3).map(|_| Blob::generated(random.random(), random.random_range(1..4 * MIB)));
        let layers = layers.collect();
        world.upstream.content().put_image(&format!("load/image-{number}"), "latest", layers)
    });
    made.collect()
}

fn random_fault(random: &mut StdRng, request: &Request) -> Option<Fault> {
    if !request.path.contains("/load/") || !random.random_ratio(1, FAULT_IN) {
        return None;
    }
    let some = random.random_range(0..2 * MIB);
    Some(match random.random_range(0..16) {
        0 => Fault::WrongBytes,
        1 => Fault::Short(some),
        2 => Fault::Html,
        3 | 4 => Fault::Close(some),
        5 | 6 => Fault::Reset(some),
        7 => Fault::Encoded(Encoding::Gzip),
        8 => Fault::Status(429, None),
        9 => Fault::Status(503, Some(1)),
        10 => Fault::Status(500, None),
        11 => Fault::Hang,
        12 => Fault::Rate(100),
        13 => Fault::NoDigest,
        14 => Fault::IgnoreRange,
        _ => Fault::Rate(4 * MIB),
    })
}

/// What the workers saw.
#[derive(Debug, Default)]
struct Tally {
    right: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    left: AtomicU64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (right, refused, cut, left) = (of(&self.right), of(&self.refused), of(&self.cut), of(&self.left));
        write!(formatter, "{right} right, {refused} refused, {cut} cut, {left} left by the client; 0 wrong, 0 hung")
    }
}

impl Tally {
    /// A run in which hardly anything succeeded, or nothing went wrong, shows nothing.
    fn ensure_meaningful(&self) -> Result<()> {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let troubled = of(&self.refused) + of(&self.cut);
        ensure!(of(&self.right) > 200, "only {} answers were right", of(&self.right));
        ensure!(troubled > 0, "no fault was ever seen");
        Ok(())
    }
}

async fn work(
    mut random: StdRng,
    server: SocketAddr,
    images: Arc<Vec<Made>>,
    end: Instant,
    tally: Arc<Tally>,
) -> Result<()> {
    while Instant::now() < end {
        let made = &images[random.random_range(0..images.len())];
        one_pull(&mut random, server, made, &tally).await?;
    }
    Ok(())
}

async fn one_pull(random: &mut StdRng, server: SocketAddr, made: &Made, tally: &Tally) -> Result<()> {
    let (layer, blob) = &made.layers[random.random_range(0..made.layers.len())];
    let layer_path = format!("/v2/{}/blobs/{layer}", made.name);
    let ns = if random.random() { "?ns=docker.io" } else { "" };
    let offset = random.random_range(0..blob.length());
    let (ask, whole) = match random.random_range(0..10) {
        0 | 1 => (Ask::get(format!("/v2/{}/manifests/latest{ns}", made.name)), Some(&made.digest)),
        2 => (Ask::get(format!("/v2/{}/manifests/{}{ns}", made.name, made.digest)), Some(&made.digest)),
        3 => (Ask::head(format!("{layer_path}{ns}")), None),
        4 | 5 => {
            let ask = Ask::get(format!("{layer_path}{ns}")).with("Range", format!("bytes={offset}-"));
            (ask.expecting(blob, offset), None)
        }
        6 => return leave(Ask::get(layer_path), server, offset, tally).await,
        _ => (Ask::get(format!("{layer_path}{ns}")).expecting(blob, 0), Some(layer)),
    };
    let got = ask.clone().patience(HUNG).run(server).await.with_context(|| format!("{ask:?}"))?;
    judge(&got, whole, tally).with_context(|| format!("{ask:?} got {}", got.summary()))
}

async fn leave(ask: Ask, server: SocketAddr, offset: u64, tally: &Tally) -> Result<()> {
    let mut transfer = ask.patience(HUNG).open(server).await?;
    transfer.read_to(offset).await?;
    tally.left.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Complete means right; everything else is an honest refusal or a cut. Only silence and 404 are never allowed.
fn judge(got: &Got, whole: Option<&String>, tally: &Tally) -> Result<()> {
    let counter = match (got.status, got.ending) {
        (_, Ending::Silent) => bail!("hung"),
        (200 | 206, Ending::Complete) => {
            ensure!(got.wrong_at.is_none(), "a wrong byte at {:?} of a complete answer", got.wrong_at);
            ensure!(
                whole.is_none_or(|digest| *digest == got.digest),
                "a complete answer with the digest {}",
                got.digest
            );
            &tally.right
        }
        (200 | 206, Ending::Closed | Ending::Reset) => &tally.cut,
        // 416: an upstream that lies about a blob's length leaves nothing at that offset.
        (416 | 429 | 500..=504, _) => &tally.refused,
        _ => bail!("an answer that nothing explains: {}", got.text()),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// The most memory that the server holds until then.
async fn settled_memory(server: &CacheServer, until: Duration) -> Result<u64> {
    let end = Instant::now() + until;
    let mut ticks = interval(Duration::from_millis(200));
    let mut most = 0;
    while Instant::now() < end {
        ticks.tick().await;
        most = most.max(server.rss_bytes()?);
    }
    Ok(most)
}

async fn all_of(mut workers: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = workers.join_next().await {
        done.context("a worker's task failed")??;
    }
    Ok(())
}

/// With the upstream repaired everything can be pulled; what the faults left behind may refuse for some seconds.
async fn pull_everything(server: &CacheServer, images: &[Made]) -> Result<()> {
    for made in images {
        for (digest, _) in &made.layers {
            let path = format!("/v2/{}/blobs/{digest}", made.name);
            let right = async {
                loop {
                    match Ask::get(&path).run(server.listen()).await {
                        Ok(got) if got.ensure_whole(digest).is_ok() => return,
                        _ => sleep(Duration::from_millis(100)).await,
                    }
                }
            };
            timeout(HUNG, right).await.with_context(|| format!("{path} after the repair"))?;
        }
    }
    Ok(())
}

/// No fill is left half-done.
async fn nothing_partial(server: &CacheServer) -> Result<()> {
    let partial = server.data().join("partial");
    let empty = async {
        while !files_below(&partial).is_empty() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let emptied = timeout(Duration::from_secs(10), empty).await;
    ensure!(emptied.is_ok(), "left in partial/: {:?}", files_below(&partial));
    Ok(())
}

async fn small_store(world: &World) -> Result<()> {
    const LAYER: u64 = 16 * MIB;
    const LAYERS: u64 = 128;
    const AT_ONCE: u64 = 4;
    const BOUND: u64 = 512 * MIB;
    let configuration = Configuration::quick(&world.upstream).mirror(Mirror::hub()).max_size("512Mi");
    let server = CacheServer::start(&world.lab, configuration.setup("small-store")).await?;
    let mut pullers = JoinSet::new();
    for puller in 0..AT_ONCE {
        let listen = server.listen();
        let paths: Vec<_> = (0..LAYERS / AT_ONCE)
            .map(|number| {
                let blob = Blob::generated(9_000 + puller * LAYERS + number, LAYER);
                let digest = world.upstream.content().put_blob("load/small-store", blob);
                (format!("/v2/load/small-store/blobs/{digest}"), digest)
            })
            .collect();
        pullers.spawn(async move {
            for (path, digest) in paths {
                let got = Ask::get(&path).run(listen).await?;
                got.ensure_whole(&digest).with_context(|| path.clone())?;
            }
            Ok(())
        });
    }
    let data = server.data();
    let mut most = 0;
    let mut ticks = interval(Duration::from_millis(50));
    let mut pulled = Box::pin(all_of(pullers));
    loop {
        tokio::select! {
            done = &mut pulled => break done?,
            _ = ticks.tick() => most = most.max(used(&data)),
        }
    }
    let allowed = BOUND + AT_ONCE * LAYER;
    ensure!(most <= allowed, "the store took {} MiB of {} MiB", most / MIB, allowed / MIB);
    ensure!(most >= BOUND / 2, "the store took only {} MiB: nothing was kept", most / MIB);
    Ok(())
}

fn used(data: &Path) -> u64 {
    let sizes = files_below(data).into_iter().filter_map(|path| Some(path.metadata().ok()?.len()));
    sizes.sum()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
