//! What is measured, of whom, and which ratios are wanted.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::LocalBoxFuture;
use rustls::ClientConfig;
use tokio::runtime::Handle;

use super::{
    client::{self, Background, Connection, Small, ask_busily, fetch_at_once},
    contender::{Contender, Ground, Running, mirror},
    images, instructions, million,
    origin::Origin,
    report::Samples,
    stage::Stage,
};

use Contender::{DockerRegistry, NginxCache, NginxStatic, Ours, Upstream};
use Measure::{Alone, Cold, Warm};

/// Connections for large answers.
const FEW: usize = 4;
/// Connections for small answers.
const MANY: usize = 32;
/// For how long small answers are asked for in one round.
const WHILE: Duration = Duration::from_secs(2);
/// Clients that pull the same at once.
const CROWD: usize = 16;
/// Layers that containerd downloads at once.
const DOWNLOADS: usize = 3;
/// Large transfers beside small answers.
const BESIDE: usize = 64;
/// Pulls of a huge blob at once, half of which read nothing.
const PULLS: usize = 256;
/// For how long they go on.
const PULLING: Duration = Duration::from_secs(8);
/// After so long it is seen what an allocator gives back.
const REST: Duration = Duration::from_secs(15);
/// Connections that say nothing.
const IDLE: usize = 10_000;
/// Connections that ask beside those.
const BUSY: usize = 500;

/// Mirrors of one server.
const MIRRORS: usize = 100;

/// One round's figures of one contender, by their names.
pub type Sample = BTreeMap<&'static str, f64>;

/// A figure.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in a [`Sample`].
    pub name: &'static str,
    /// As tables call it, with its unit.
    pub title: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

/// What is wanted of a ratio, or of a figure.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// The metric.
    pub metric: &'static str,
    /// Ours divided by this one's; ours itself without one.
    pub peer: Option<Contender>,
    /// The bound.
    pub bound: Bound,
}

/// A bound that a ratio or figure should keep.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Not more.
    AtMost(f64),
    /// Not less.
    AtLeast(f64),
}

/// How samples are taken.
#[derive(Debug)]
pub enum Measure {
    /// Each contender runs throughout and has everything; this takes one sample of one.
    Warm(fn(&Round<'_>) -> Result<Sample>),
    /// Each sample is of a contender that has nothing.
    Cold(fn(&Round<'_>) -> Result<Sample>),
    /// By itself, so many rounds.
    Alone(for<'a> fn(&'a Ground, &'a Stage, usize) -> LocalBoxFuture<'a, Result<Samples>>),
}

/// One thing that is measured.
#[derive(Debug)]
pub struct Case {
    /// Short, for the command line and JSON.
    pub name: &'static str,
    /// For tables and plots.
    pub title: &'static str,
    /// Of whom.
    pub contenders: &'static [Contender],
    /// Which upstream is behind them.
    pub origin: fn(&Stage) -> &Origin,
    /// Whether clients speak TLS.
    pub tls: bool,
    /// How many mirrors ours has.
    pub mirrors: usize,
    /// How many rounds there are if so many were asked for: what does not vary needs fewer, what varies much needs more.
    pub rounds: fn(usize) -> usize,
    /// How it is measured.
    pub measure: Measure,
    /// The figures, as columns of its table.
    pub metrics: &'static [Metric],
    /// What is wanted.
    pub goals: &'static [Goal],
}

/// What a sample is taken of.
pub struct Round<'a> {
    /// Where it is taken.
    pub ground: &'a Ground,
    /// What is asked for.
    pub stage: &'a Stage,
    /// Its upstream.
    pub origin: &'a Origin,
    /// Who is measured.
    pub contender: Contender,
    /// The same, running.
    pub running: &'a Running,
    /// How its clients begin TLS.
    pub tls: Option<&'a Arc<ClientConfig>>,
}

const CPU_PER_GB: Metric = Metric { name: "cpu_s_per_gb", title: "CPU s/GB", digits: 3 };
const GB_PER_S: Metric = Metric { name: "gb_per_s", title: "GB/s", digits: 2 };
const CPU_PER_REQUEST: Metric = Metric { name: "cpu_us_per_request", title: "CPU µs/request", digits: 1 };
const REQUESTS: Metric = Metric { name: "requests_per_s", title: "requests/s", digits: 0 };
const P50: Metric = Metric { name: "p50_ms", title: "p50 ms", digits: 3 };
const P99: Metric = Metric { name: "p99_ms", title: "p99 ms", digits: 3 };
const SECONDS: Metric = Metric { name: "seconds", title: "s", digits: 3 };
const CPU: Metric = Metric { name: "cpu_s", title: "CPU s", digits: 2 };

const fn at_most(metric: &'static str, peer: Contender, bound: f64) -> Goal {
    Goal { metric, peer: Some(peer), bound: Bound::AtMost(bound) }
}

const fn at_least(metric: &'static str, peer: Contender, bound: f64) -> Goal {
    Goal { metric, peer: Some(peer), bound: Bound::AtLeast(bound) }
}

const fn itself(metric: &'static str, bound: f64) -> Goal {
    Goal { metric, peer: None, bound: Bound::AtMost(bound) }
}

/// What cases have in common, unless they say otherwise.
const USUAL: Case = Case {
    name: "",
    title: "",
    contenders: &[Ours, NginxCache, DockerRegistry],
    origin: |stage| &stage.fast,
    tls: false,
    mirrors: 1,
    rounds: |asked| asked,
    measure: Warm(large),
    metrics: &[],
    goals: &[],
};

/// Every case, in the order in which they are measured.
pub const ALL: [Case; 17] = [
    Case {
        name: "large",
        title: "warm 256 MiB blob, 4 connections",
        contenders: &[Ours, NginxCache, NginxStatic, DockerRegistry],
        measure: Warm(large),
        metrics: &[CPU_PER_GB, GB_PER_S],
        goals: &[
            at_most("cpu_s_per_gb", NginxCache, 1.05),
            at_most("cpu_s_per_gb", NginxStatic, 1.2),
            at_most("cpu_s_per_gb", DockerRegistry, 0.25),
            at_least("gb_per_s", NginxCache, 1.0),
        ],
        ..USUAL
    },
    Case {
        name: "beside",
        title: "1 KiB blob, 4 connections, beside 64 large transfers",
        contenders: &[Ours, NginxCache, NginxStatic],
        measure: Warm(beside),
        metrics: &[P50, P99],
        goals: &[at_most("p50_ms", NginxCache, 1.05), at_most("p99_ms", NginxCache, 1.05)],
        ..USUAL
    },
    Case {
        name: "large-tls",
        title: "warm 256 MiB blob over TLS 1.3, 4 connections",
        contenders: &[Ours, NginxCache],
        tls: true,
        measure: Warm(large),
        metrics: &[CPU_PER_GB, GB_PER_S],
        goals: &[at_most("cpu_s_per_gb", NginxCache, 0.6)],
        ..USUAL
    },
    Case {
        name: "small",
        title: "warm 10 KiB blob, 32 connections",
        contenders: &[Ours, NginxCache, NginxStatic, DockerRegistry],
        measure: Warm(|round| small(round, &round.stage.small)),
        metrics: &[CPU_PER_REQUEST, REQUESTS, P99],
        goals: &[at_most("cpu_us_per_request", NginxCache, 0.8), at_least("requests_per_s", NginxCache, 1.0)],
        ..USUAL
    },
    Case {
        name: "by-tag",
        title: "warm manifest by tag, 32 connections",
        measure: Warm(|round| small(round, &round.stage.by_tag)),
        metrics: &[CPU_PER_REQUEST, REQUESTS, P99],
        goals: &[
            at_most("cpu_us_per_request", NginxCache, 0.8),
            at_least("requests_per_s", NginxCache, 1.0),
            at_least("requests_per_s", DockerRegistry, 50.0),
        ],
        ..USUAL
    },
    Case {
        name: "by-digest",
        title: "warm manifest by digest, 32 connections",
        measure: Warm(|round| small(round, &round.stage.by_digest)),
        metrics: &[CPU_PER_REQUEST, REQUESTS, P99],
        goals: &[at_most("cpu_us_per_request", NginxCache, 0.8), at_least("requests_per_s", NginxCache, 1.0)],
        ..USUAL
    },
    Case {
        name: "cold",
        title: "cold 256 MiB blob, 1 client, upstream at 300 MB/s",
        origin: |stage| &stage.usual,
        measure: Cold(cold),
        metrics: &[SECONDS, CPU],
        goals: &[at_most("seconds", NginxCache, 1.05)],
        ..USUAL
    },
    Case {
        name: "cold-fast",
        title: "cold 256 MiB blob, 1 client, upstream on the loopback",
        measure: Cold(cold),
        metrics: &[SECONDS, CPU],
        goals: &[at_most("seconds", NginxCache, 1.6), at_most("cpu_s", NginxCache, 2.5)],
        ..USUAL
    },
    Case {
        name: "crowd",
        title: "cold 256 MiB blob, 16 clients, upstream at 50 MB/s",
        origin: |stage| &stage.slow,
        measure: Cold(crowd),
        metrics: &[
            SECONDS,
            Metric { name: "times_one_client", title: "slowest ÷ one client", digits: 3 },
            Metric { name: "last_first_byte_ms", title: "last first byte, ms", digits: 1 },
            Metric { name: "upstream_gets", title: "upstream GETs", digits: 0 },
            CPU,
        ],
        goals: &[itself("times_one_client", 1.05), itself("last_first_byte_ms", 50.0), itself("upstream_gets", 1.0)],
        ..USUAL
    },
    Case {
        name: "layers",
        title: "cold image of 60 layers of 1 MiB through containerd, upstream at 300 MB/s",
        contenders: &[Ours, Upstream, NginxCache, DockerRegistry],
        origin: |stage| &stage.usual,
        // What containerd itself takes differs by a tenth and more from pull to pull.
        rounds: |asked| asked * 3,
        measure: Cold(layers),
        metrics: &[SECONDS, CPU],
        goals: &[at_most("seconds", Upstream, 1.1)],
        ..USUAL
    },
    Case {
        name: "layers-alone",
        title: "the same blobs without containerd, 3 connections, as many as it opens",
        contenders: &[Ours, Upstream, NginxCache, DockerRegistry],
        origin: |stage| &stage.usual,
        measure: Cold(layers_alone),
        metrics: &[SECONDS, P50, P99, CPU],
        ..USUAL
    },
    Case {
        name: "connections",
        title: "warm manifest by tag, 500 connections, beside 10,000 idle ones",
        contenders: &[Ours, NginxCache],
        // What a connection costs shows in a process that has had none.
        measure: Cold(connections),
        metrics: &[P99, P50, REQUESTS, Metric { name: "kib_per_idle", title: "KiB/idle connection", digits: 1 }],
        goals: &[at_most("p99_ms", NginxCache, 1.15), itself("kib_per_idle", 16.0)],
        ..USUAL
    },
    Case {
        name: "memory",
        title: "resident memory at start, and with 256 pulls of a cold 1 GiB blob at once, half of them stalled",
        contenders: &[Ours, NginxCache],
        rounds: |asked| asked.min(3),
        measure: Cold(memory),
        metrics: &[
            Metric { name: "start_mib", title: "at start, MiB", digits: 1 },
            Metric { name: "peak_mib", title: "peak, MiB", digits: 1 },
            Metric { name: "after_mib", title: "15 s later, MiB", digits: 1 },
        ],
        goals: &[itself("start_mib", 20.0), itself("peak_mib", 64.0)],
        ..USUAL
    },
    Case {
        name: "mirrors",
        title: "100 mirrors: warm manifest by tag of the last one, 32 connections (nginx has one)",
        contenders: &[Ours, NginxCache],
        mirrors: MIRRORS,
        measure: Cold(mirrors),
        metrics: &[CPU_PER_REQUEST, REQUESTS, Metric { name: "start_mib", title: "at start, MiB", digits: 1 }],
        goals: &[at_most("cpu_us_per_request", NginxCache, 0.8), at_least("requests_per_s", NginxCache, 1.0)],
        ..USUAL
    },
    Case {
        name: "instructions",
        title: "instructions in user space for a warm answer (callgrind)",
        contenders: &[Ours, NginxCache],
        rounds: |asked| asked.min(3),
        measure: Alone(|ground, stage, rounds| Box::pin(instructions::measure(ground, stage, rounds))),
        metrics: &[
            Metric { name: "by_tag", title: "manifest by tag", digits: 0 },
            Metric { name: "by_digest", title: "by digest", digits: 0 },
            Metric { name: "small", title: "10 KiB blob", digits: 0 },
        ],
        // A tenth above what they were when these were written: more is a regression that somebody should explain.
        goals: &[itself("by_tag", 18_200.0), itself("by_digest", 20_800.0), itself("small", 20_400.0)],
        ..USUAL
    },
    Case {
        name: "images",
        title: "images",
        contenders: &[Ours],
        rounds: |asked| asked.min(1),
        measure: Alone(|ground, _, rounds| Box::pin(ready(images::measure(ground, rounds)))),
        metrics: &[
            Metric { name: "server_mb", title: "cache server, MB", digits: 2 },
            Metric { name: "operator_mb", title: "operator, MB", digits: 2 },
        ],
        goals: &[itself("server_mb", 15.0), itself("operator_mb", 20.0)],
        ..USUAL
    },
    Case {
        name: "million",
        title: "a store of 1,000,000 blobs and 1,000,000 tags; an image of 100,000 tags",
        contenders: &[Ours, DockerRegistry],
        rounds: |asked| asked.min(3),
        measure: Alone(|ground, _, rounds| Box::pin(million::measure(ground, rounds))),
        metrics: &[
            Metric { name: "start_ms", title: "first answer, ms", digits: 1 },
            Metric { name: "times_empty", title: "÷ of an empty store", digits: 2 },
            Metric { name: "after_start_ms", title: "tags, first time, ms", digits: 2 },
            Metric { name: "first_page_ms", title: "first page of tags, ms", digits: 2 },
            Metric { name: "counted_s", title: "counted after, s", digits: 1 },
            Metric { name: "peak_mib", title: "peak, MiB", digits: 1 },
        ],
        goals: &[
            itself("start_ms", 50.0),
            itself("times_empty", 1.5),
            itself("peak_mib", 200.0),
            at_most("first_page_ms", DockerRegistry, 0.02),
        ],
        ..USUAL
    },
];

/// Has a contender fetch everything that warm cases ask for.
pub fn warm_up(round: &Round<'_>) -> Result<()> {
    let Stage { large, small, tiny, by_tag, by_digest, .. } = round.stage;
    let mut connection = Connection::open(round.running.address(), round.tls)?;
    for request in [large, small, tiny, by_tag, by_digest] {
        // The second one finds it stored.
        for _ in 0..2 {
            connection.fetch(request)?;
        }
    }
    Ok(())
}

fn large(round: &Round<'_>) -> Result<Sample> {
    // Enough for the clock of who takes a tenth of a second for a gigabyte.
    let times = if round.contender == DockerRegistry || round.tls.is_some() { 1 } else { 4 };
    let before = round.running.processor_seconds()?;
    let begun = Instant::now();
    let all = fetch_at_once(round.running.address(), round.tls, &round.stage.large, (FEW, times))?;
    let wall = begun.elapsed().as_secs_f64();
    let used = round.running.processor_seconds()? - before;
    let gigabytes = gigabytes(all.iter().map(|one| one.bytes).sum());
    Ok(Sample::from([("cpu_s_per_gb", used / gigabytes), ("gb_per_s", gigabytes / wall)]))
}

fn beside(round: &Round<'_>) -> Result<Sample> {
    let address = round.running.address();
    let background = Background::begin(address, &round.stage.large, BESIDE)?;
    let answered = ask_busily(address, &round.stage.tiny, FEW, WHILE);
    background.end()?;
    let answered = answered?;
    Ok(Sample::from([("p50_ms", answered.within(0.5) * 1e3), ("p99_ms", answered.within(0.99) * 1e3)]))
}

fn small(round: &Round<'_>, request: &[u8]) -> Result<Sample> {
    let before = round.running.processor_seconds()?;
    let answered = ask_busily(round.running.address(), request, MANY, WHILE)?;
    let used = round.running.processor_seconds()? - before;
    Ok(of_small(&answered, used))
}

fn of_small(answered: &Small, used: f64) -> Sample {
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    let count = answered.count() as f64;
    Sample::from([
        ("cpu_us_per_request", used * 1e6 / count),
        ("requests_per_s", count / answered.wall.as_secs_f64()),
        ("p50_ms", answered.within(0.5) * 1e3),
        ("p99_ms", answered.within(0.99) * 1e3),
    ])
}

fn cold(round: &Round<'_>) -> Result<Sample> {
    let mut connection = Connection::open(round.running.address(), round.tls)?;
    let before = round.running.processor_seconds()?;
    let begun = Instant::now();
    let transfer = connection.fetch(&round.stage.large)?;
    let seconds = (transfer.ended - begun).as_secs_f64();
    // Whatever it does after the last byte is part of its cost.
    thread::sleep(Duration::from_millis(500));
    Ok(Sample::from([("seconds", seconds), ("cpu_s", round.running.processor_seconds()? - before)]))
}

fn crowd(round: &Round<'_>) -> Result<Sample> {
    let address = round.running.address();
    let begun = Instant::now();
    let one = Connection::open(address, round.tls)?.fetch(&round.stage.other_large)?;
    let one = (one.ended - begun).as_secs_f64();
    round.origin.forget();
    let before = round.running.processor_seconds()?;
    let begun = Instant::now();
    let all = fetch_at_once(address, round.tls, &round.stage.large, (CROWD, 1))?;
    let used = round.running.processor_seconds()? - before;
    let slowest = all.iter().map(|one| one.ended).max().context("nobody")? - begun;
    let upstream = round.origin.first_byte().context("the upstream was not asked")?;
    let first = all.iter().map(|one| one.first_byte).max().context("nobody")?.saturating_duration_since(upstream);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let gets = round.origin.blob_gets() as f64;
    Ok(Sample::from([
        ("seconds", slowest.as_secs_f64()),
        ("times_one_client", slowest.as_secs_f64() / one),
        ("last_first_byte_ms", first.as_secs_f64() * 1e3),
        ("upstream_gets", gets),
        ("cpu_s", used),
    ]))
}

fn layers(round: &Round<'_>) -> Result<Sample> {
    let pull = async {
        let containerd = round.ground.containerd(round.running.address()).await?;
        let before = round.running.processor_seconds()?;
        let begun = Instant::now();
        containerd.pull(&round.stage.layered).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let used = round.running.processor_seconds()? - before;
        round.ground.end(containerd).await?;
        Ok(Sample::from([("seconds", seconds), ("cpu_s", used)]))
    };
    tokio::task::block_in_place(|| Handle::current().block_on(pull))
}

fn layers_alone(round: &Round<'_>) -> Result<Sample> {
    let before = round.running.processor_seconds()?;
    let answered = client::fetch_in_turn(round.running.address(), &round.stage.layers, DOWNLOADS)?;
    let used = round.running.processor_seconds()? - before;
    let mut sample = of_small(&answered, used);
    sample.extend([("seconds", answered.wall.as_secs_f64()), ("cpu_s", used)]);
    Ok(sample)
}

fn connections(round: &Round<'_>) -> Result<Sample> {
    let address = round.running.address();
    // The second one finds it stored.
    for _ in 0..2 {
        Connection::open(address, None)?.fetch(&round.stage.by_tag)?;
    }
    let before = round.running.memory()?;
    let mut idle = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        let mut connection = Connection::open(address, None)?;
        connection.fetch(&round.stage.by_tag)?;
        idle.push(connection);
    }
    let held = round.running.memory()?.saturating_sub(before);
    let answered = ask_busily(address, &round.stage.by_tag, BUSY, WHILE)?;
    ensure!(idle.len() == IDLE, "an idle connection was lost");
    let mut sample = of_small(&answered, 0.0);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    sample.insert("kib_per_idle", held as f64 / 1024.0 / IDLE as f64);
    Ok(sample)
}

fn mirrors(round: &Round<'_>) -> Result<Sample> {
    let start = round.running.memory()?;
    let request = if round.contender == Ours {
        client::get(&format!("/repository/{}{}", mirror(MIRRORS - 1), round.stage.tagged))
    } else {
        round.stage.by_tag.clone()
    };
    // The second one finds it stored.
    for _ in 0..2 {
        Connection::open(round.running.address(), None)?.fetch(&request)?;
    }
    let mut sample = small(round, &request)?;
    sample.insert("start_mib", mebibytes(start));
    Ok(sample)
}

fn memory(round: &Round<'_>) -> Result<Sample> {
    let (address, running) = (round.running.address(), round.running);
    let (start, half) = (running.memory()?, PULLS / 2);
    let mut stalled = Vec::with_capacity(half);
    for _ in 0..half {
        let mut connection = Connection::open(address, None)?;
        connection.begin(&round.stage.huge)?;
        stalled.push(connection);
    }
    let background = Background::begin(address, &round.stage.huge, half)?;
    let (begun, mut peak) = (Instant::now(), start);
    while begun.elapsed() < PULLING {
        peak = peak.max(running.memory()?);
        thread::sleep(Duration::from_millis(50));
    }
    background.end()?;
    drop(stalled);
    thread::sleep(REST);
    let after = running.memory()?;
    let figures = [("start_mib", start), ("peak_mib", peak), ("after_mib", after)];
    Ok(figures.map(|(name, bytes)| (name, mebibytes(bytes))).into())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
