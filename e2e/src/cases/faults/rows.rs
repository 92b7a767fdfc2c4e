//! The rows, in the order of the table.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::{sleep, timeout};

use super::{
    Row,
    reference::{Theirs, flip_a_bit, remove, truncate},
    stage::{LAYER, Stage, ensure_refused, ensure_try_later, get, get_as_mirror_client},
};
use crate::{
    lab::{CacheServer, SPARE_UPSTREAMS},
    upstream::{
        answer::Gate,
        blob::Blob,
        client::{Ask, Ending, half_a_head},
        fault::{Encoding, Fault},
        mirror::{Configuration, HEADER, HEADER_WITH_COPY, Mirror, REQUEST_HEADER, STALL, WRITE_STALL},
        sites::{HUB, spare},
    },
};

const MIB: u64 = 1024 * 1024;
/// What a shared machine may add to a limit.
const SLACK: Duration = Duration::from_millis(1500);

macro_rules! row {
    ($name:literal, $theirs:expr, $ours:path, $spoil:expr) => {
        Row { name: $name, spoil: $spoil, ours: |stage| Box::pin($ours(stage)), theirs: $theirs }
    };
}

/// Every row.
pub(super) fn all() -> Vec<Row> {
    [wrong_content(), broken_transfers(), refusals(), slowness(), oddities(), storage(), clients()]
        .into_iter()
        .flatten()
        .collect()
}

fn wrong_content() -> Vec<Row> {
    vec![
        row!("layer: wrong bytes, same length", Theirs::Layer, poisoned_layer, |stage| {
            stage.set(stage.layer_target(), Fault::WrongBytes);
        }),
        row!("layer: short, length agrees", Theirs::Layer, poisoned_layer, |stage| {
            stage.set(stage.layer_target(), Fault::Short(MIB));
        }),
        row!("layer: a web page with 200", Theirs::Layer, poisoned_layer, |stage| {
            stage.set(stage.layer_target(), Fault::Html);
        }),
        row!("manifest by digest: another valid one", Theirs::Digest, poisoned_manifest, |stage| {
            stage.set(stage.manifest_target(), Fault::Swapped(stage.other.clone()));
        }),
        row!("manifest by tag: not what the header says", Theirs::Tag, mislabelled_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Swapped(stage.other.clone()));
        }),
        row!("manifest: a web page with 200", Theirs::Tag, mislabelled_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Html);
        }),
    ]
}

fn broken_transfers() -> Vec<Row> {
    vec![
        row!("layer: closed early, once", Theirs::Layer, resumed, |stage| {
            stage.set_once(stage.layer_target(), Fault::Close(MIB));
        }),
        row!("layer: reset, once", Theirs::Layer, resumed, |stage| {
            stage.set_once(stage.layer_target(), Fault::Reset(MIB));
        }),
        row!("layer: closed early, Range ignored", Theirs::Skipped, whole_layer, |stage| {
            stage.set(stage.layer_target(), Fault::IgnoreRange);
            stage.set_once(stage.layer_target(), Fault::Close(MIB));
        }),
        row!("layer: closed early, for good", Theirs::Layer, broken_for_good, |stage| {
            stage.set(stage.layer_target(), Fault::Close(0));
            stage.set_once(stage.layer_target(), Fault::Close(MIB));
        }),
        row!("layer: reset, for good", Theirs::Layer, broken_for_good, |stage| {
            stage.set(stage.layer_target(), Fault::Reset(0));
            stage.set_once(stage.layer_target(), Fault::Reset(MIB));
        }),
        row!("layer: gzip content encoding", Theirs::Layer, whole_layer, |stage| {
            stage.set(stage.layer_target(), Fault::Encoded(Encoding::Gzip));
        }),
        row!("layer: zstd content encoding", Theirs::Layer, whole_layer, |stage| {
            stage.set(stage.layer_target(), Fault::Encoded(Encoding::Zstd));
        }),
    ]
}

fn refusals() -> Vec<Row> {
    vec![
        row!("manifest: 429, nothing cached", Theirs::Tag, limited_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Status(429, None));
        }),
        row!("manifest: 429 + Retry-After, nothing cached", Theirs::Tag, limited_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Status(429, Some(2)));
        }),
        row!("manifest: 503, nothing cached", Theirs::Tag, failing_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Status(503, None));
        }),
        row!("manifest: 429, a copy cached", Theirs::Skipped, stale_copy, |stage| {
            stage.set(stage.manifest_target(), Fault::Status(429, Some(30)));
        }),
        row!("manifest: 503, a copy cached", Theirs::Skipped, stale_copy, |stage| {
            stage.set(stage.manifest_target(), Fault::Status(503, None));
        }),
        row!("layer: 429", Theirs::Layer, limited_layer, |stage| {
            stage.set(stage.any_layer_target(), Fault::Status(429, None));
        }),
        row!("layer: 503", Theirs::Layer, failing_layer, |stage| {
            stage.set(stage.any_layer_target(), Fault::Status(503, None));
        }),
        row!("layer: redirect loop", Theirs::Layer, redirect_loop, |stage| {
            stage.set(stage.any_layer_target(), Fault::Redirect(format!("https://{HUB}{{path}}")));
        }),
    ]
}

fn slowness() -> Vec<Row> {
    vec![
        row!("manifest: accepted, never answered", Theirs::Tag, hanging_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Hang);
        }),
        row!("layer: accepted, never answered", Theirs::Layer, hanging_layer, |stage| {
            stage.set(stage.any_layer_target(), Fault::Hang);
        }),
        row!("manifest: never answered, a copy cached", Theirs::Skipped, hanging_with_copy, |stage| {
            stage.set(stage.manifest_target(), Fault::Hang);
        }),
        row!("manifest: one byte a second", Theirs::Tag, trickling_tag, |stage| {
            stage.set(stage.manifest_target(), Fault::Rate(1));
        }),
        row!("layer: 100 bytes a second, once", Theirs::Layer, trickling_layer, |stage| {
            stage.set_once(stage.layer_target(), Fault::Rate(100));
        }),
    ]
}

fn oddities() -> Vec<Row> {
    vec![
        row!("no Docker-Content-Digest", Theirs::Tag, no_digest, |stage| {
            stage.set(stage.image_target(), Fault::NoDigest);
        }),
        row!("upstream down at start", Theirs::DownAtStart, down_at_start, nothing),
        row!("cold Range", Theirs::Skipped, cold_range, nothing),
    ]
}

fn storage() -> Vec<Row> {
    vec![
        row!("killed in mid-fill", Theirs::Skipped, killed, nothing),
        row!("bit flipped while stopped", Theirs::Skipped, flipped_while_stopped, nothing),
        row!("bit flipped in place", Theirs::Damaged(flip_a_bit), flipped_in_place, nothing),
        row!("stored layer truncated", Theirs::Damaged(truncate), truncated, nothing),
        row!("stored layer missing", Theirs::Damaged(remove), missing, nothing),
        row!("disk full", Theirs::Skipped, disk_full, nothing),
    ]
}

fn clients() -> Vec<Row> {
    vec![
        row!("client leaves", Theirs::Skipped, client_leaves, |stage| {
            stage.set(stage.layer_target(), Fault::Rate(8 * MIB));
        }),
        row!("300 clients stall", Theirs::Skipped, stalled_clients, nothing),
        row!("half a request header", Theirs::HalfAHead, half_a_header, nothing),
    ]
}

const fn nothing(_: &Stage<'_>) {}

async fn poisoned_layer(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.pull_tag(&server).await?;
    stage.spoil();
    let got = stage.pull_layer(&server).await?;
    ensure_refused(&got)?;
    ensure!(!stage.stored(&server).exists(), "wrong bytes were kept");
    stage.ensure_repaired(&server).await?;
    Ok(got.summary())
}

async fn poisoned_manifest(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = get(&server, &stage.digest_path()).await?;
    got.ensure_status(502)?;
    stage.repair();
    get(&server, &stage.digest_path()).await?.ensure_whole(&stage.made.digest)?;
    Ok(got.summary())
}

async fn mislabelled_tag(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = get(&server, &stage.tag_path()).await?;
    got.ensure_status(502)?;
    stage.ensure_repaired(&server).await?;
    Ok(got.summary())
}

async fn resumed(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    stage.pull_whole_layer(&server).await?;
    let start = stage.ensure_resumed()?;
    ensure!(stage.asked().len() == 2, "the upstream was asked {} times", stage.asked().len());
    Ok(format!("whole, resumed at {start}"))
}

async fn whole_layer(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = stage.pull_whole_layer(&server).await?;
    ensure!(got.header("content-encoding").is_none(), "the encoding was passed on");
    stage.pull_whole_layer(&server).await.context("from the store")?;
    Ok("whole".to_owned())
}

async fn broken_for_good(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = stage.pull_layer(&server).await?;
    ensure!(got.status == 200 && got.ending == Ending::Closed, "expected FIN in mid-body, got {}", got.summary());
    ensure!(got.received <= MIB, "{} bytes, the upstream sent {MIB}", got.received);
    ensure!(got.wrong_at.is_none(), "something was appended at {:?}", got.wrong_at);
    let rest = Ask::get(format!("{}?ns=docker.io", stage.layer_path()));
    let rest = rest.with("Range", format!("bytes={}-", got.received));
    let rest = rest.run(server.listen()).await?;
    ensure_try_later(&rest).context("the rest for a mirror client")?;
    stage.repair();
    let whole = async {
        while stage.pull_whole_layer(&server).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    // The failures may have opened the breaker, for a second.
    timeout(Duration::from_secs(3), whole).await.context("the repaired upstream")?;
    Ok(format!("{}, then 503", got.summary()))
}

async fn limited_tag(stage: &Stage<'_>) -> Result<String> {
    refused(stage, &stage.tag_path(), 429).await
}

async fn failing_tag(stage: &Stage<'_>) -> Result<String> {
    refused(stage, &stage.tag_path(), 503).await
}

async fn limited_layer(stage: &Stage<'_>) -> Result<String> {
    refused(stage, &stage.layer_path(), 429).await
}

async fn failing_layer(stage: &Stage<'_>) -> Result<String> {
    refused(stage, &stage.layer_path(), 503).await
}

async fn refused(stage: &Stage<'_>, path: &str, status: u16) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let direct = get(&server, path).await?;
    direct.ensure_status(status).context("a direct client")?;
    let mirror = get_as_mirror_client(&server, path).await?;
    ensure_try_later(&mirror).context("a mirror client")?;
    Ok(format!("direct {}, mirror client {}", direct.status, mirror.status))
}

async fn stale_copy(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server_of(Mirror::hub().always_revalidating()).await?;
    stage.pull_tag(&server).await?;
    stage.spoil();
    let direct = stage.pull_tag(&server).await.context("a direct client")?;
    let mirror = get_as_mirror_client(&server, &stage.tag_path()).await?;
    mirror.ensure_whole(&stage.made.digest).context("a mirror client")?;
    ensure!(direct.took < SLACK, "the copy came after {:?}", direct.took);
    let asked = stage.world.upstream.counts();
    let asked = asked.of("latest").filter(|asked| asked.path.contains(&stage.made.name));
    ensure!(asked.filter(|asked| asked.status >= 429).count() > 0, "the upstream was not asked at all");
    Ok(format!("the copy, after {:.2} s", direct.took.as_secs_f64()))
}

async fn redirect_loop(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = get(&server, &stage.layer_path()).await?;
    got.ensure_status(502)?;
    let counts = stage.world.upstream.counts();
    let hops = counts.of(stage.layer_digest()).filter(|asked| asked.status == 307).count();
    ensure!((1..=6).contains(&hops), "{hops} requests into the loop");
    stage.ensure_repaired(&server).await?;
    Ok(format!("502 after {hops} requests"))
}

async fn hanging_tag(stage: &Stage<'_>) -> Result<String> {
    given_up(stage, &stage.tag_path(), HEADER + SLACK).await
}

async fn hanging_layer(stage: &Stage<'_>) -> Result<String> {
    given_up(stage, &stage.layer_path(), HEADER + SLACK).await
}

async fn trickling_tag(stage: &Stage<'_>) -> Result<String> {
    given_up(stage, &stage.tag_path(), HEADER + STALL + SLACK).await
}

async fn given_up(stage: &Stage<'_>, path: &str, limit: Duration) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = get_as_mirror_client(&server, path).await?;
    ensure_try_later(&got)?;
    ensure!(got.took <= limit, "the answer came after {:?}, the limit is {limit:?}", got.took);
    stage.ensure_repaired(&server).await?;
    Ok(got.summary())
}

async fn hanging_with_copy(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server_of(Mirror::hub().always_revalidating()).await?;
    stage.pull_tag(&server).await?;
    stage.spoil();
    let got = stage.pull_tag(&server).await?;
    let limit = HEADER_WITH_COPY + Duration::from_millis(500);
    ensure!(got.took <= limit, "the copy came after {:?}, the limit is {limit:?}", got.took);
    Ok(format!("the copy, after {:.2} s", got.took.as_secs_f64()))
}

async fn trickling_layer(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = stage.pull_whole_layer(&server).await?;
    let limit = STALL * 2 + SLACK;
    ensure!(got.took <= limit, "whole only after {:?}, the limit is {limit:?}", got.took);
    let asked = stage.asked();
    ensure!(asked.len() == 2, "the upstream was asked {} times", asked.len());
    Ok(format!("whole after {:.1} s, second request {:?}", got.took.as_secs_f64(), asked[1].range))
}

async fn no_digest(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let got = stage.pull_tag(&server).await?;
    ensure!(got.header("docker-content-digest") == Some(&stage.made.digest), "no digest of our own");
    ensure!(got.took < SLACK, "it took {:?}", got.took);
    let head = Ask::head(stage.tag_path()).run(server.listen()).await?;
    ensure!(head.header("docker-content-digest") == Some(&stage.made.digest), "no digest of our own on HEAD");
    stage.pull_whole_layer(&server).await?;
    Ok("right, with a digest".to_owned())
}

async fn down_at_start(stage: &Stage<'_>) -> Result<String> {
    let [address, ..] = SPARE_UPSTREAMS;
    let mut server = stage.server_of(Mirror::of("docker-hub", &spare(address))).await?;
    stage.pull_tag(&server).await?;
    stage.pull_whole_layer(&server).await?;
    server.stop().await?;
    stage.world.lab.refuse(address)?;
    let seen = served_while_down(stage, &mut server).await;
    stage.world.lab.reopen(address)?;
    seen
}

async fn served_while_down(stage: &Stage<'_>, server: &mut CacheServer) -> Result<String> {
    server.restart().await?;
    let got = stage.pull_tag(server).await?;
    stage.pull_whole_layer(server).await?;
    let unknown = format!("/v2/library/never-seen/manifests/latest?ns={}", spare(SPARE_UPSTREAMS[0]));
    let unknown = get(server, &unknown).await?;
    ensure_try_later(&unknown).context("what it does not have")?;
    Ok(format!("starts, tag after {:.3} s", got.took.as_secs_f64()))
}

async fn cold_range(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    let ask = Ask::get(stage.layer_path()).with("Range", "bytes=1000000-1999999");
    let got = ask.expecting(stage.layer()?, 1_000_000).run(server.listen()).await?;
    got.ensure_status(206)?;
    ensure!(got.received == 1_000_000 && got.wrong_at.is_none(), "{}, wrong at {:?}", got.summary(), got.wrong_at);
    Ok(got.summary())
}

async fn killed(stage: &Stage<'_>) -> Result<String> {
    let mut server = stage.server().await?;
    let gate = Gate::after(LAYER / 2);
    stage.set(stage.layer_target(), Fault::Gate(gate.clone()));
    let mut transfer = Ask::get(stage.layer_path()).open(server.listen()).await?;
    transfer.read_to(LAYER / 2).await?;
    ensure!(transfer.received() == LAYER / 2, "{} bytes before the gate", transfer.received());
    server.kill()?;
    gate.open();
    server.restart().await?;
    stage.pull_whole_layer(&server).await?;
    let start = stage.ensure_resumed()?;
    Ok(format!("whole, resumed at {start}"))
}

async fn flipped_while_stopped(stage: &Stage<'_>) -> Result<String> {
    let mut server = stage.server().await?;
    stage.pull_whole_layer(&server).await?;
    let stored = stage.stored(&server);
    server.stop().await?;
    let modified = std::fs::metadata(&stored).and_then(|metadata| metadata.modified()).context("no stored layer")?;
    flip_a_bit(&stored)?;
    // As a failing disk does it: nothing but the byte changes.
    let file = std::fs::File::options().write(true).open(&stored)?;
    file.set_modified(modified)?;
    server.restart().await?;
    healed(stage, &server).await
}

async fn flipped_in_place(stage: &Stage<'_>) -> Result<String> {
    damaged_in_place(stage, flip_a_bit).await
}

async fn truncated(stage: &Stage<'_>) -> Result<String> {
    damaged_in_place(stage, truncate).await
}

async fn missing(stage: &Stage<'_>) -> Result<String> {
    damaged_in_place(stage, remove).await
}

async fn damaged_in_place(stage: &Stage<'_>, damage: fn(&Path) -> Result<()>) -> Result<String> {
    let server = stage.server().await?;
    stage.pull_whole_layer(&server).await?;
    let stored = stage.until_stored(&server).await?;
    // The second read is one of a file that is known to be right.
    stage.pull_whole_layer(&server).await?;
    damage(&stored)?;
    healed(stage, &server).await
}

/// The first answer may be cut, as it is found out on the way; the second is right, and the upstream was asked for it.
async fn healed(stage: &Stage<'_>, server: &CacheServer) -> Result<String> {
    let first = stage.pull_layer(server).await?;
    if first.is_complete() {
        first.ensure_whole(stage.layer_digest())?;
    } else {
        ensure_refused(&first)?;
    }
    stage.pull_whole_layer(server).await?;
    ensure!(stage.asked().len() == 2, "the upstream was asked {} times", stage.asked().len());
    Ok(format!("{}, then whole", first.summary()))
}

async fn disk_full(stage: &Stage<'_>) -> Result<String> {
    let data = stage.world.lab.dir("full-disk")?;
    let mount = ["-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs"].map(std::ffi::OsStr::new);
    crate::command::run("mount", mount.into_iter().chain([data.as_os_str()]))?;
    let seen = served_from_full_disk(stage, &data).await;
    crate::command::run("umount", ["--lazy".as_ref(), data.as_os_str()])?;
    seen
}

async fn served_from_full_disk(stage: &Stage<'_>, data: &Path) -> Result<String> {
    let configuration = Configuration::quick(&stage.world.upstream).mirror(Mirror::hub());
    let mut setup = configuration.setup(stage.name());
    setup.data = Some(data.to_owned());
    let server = CacheServer::start(&stage.world.lab, setup).await?;
    for _ in 0..2 {
        stage.pull_tag(&server).await?;
        stage.pull_whole_layer(&server).await?;
    }
    let counted = metric(&server, "served_through").await?;
    ensure!(counted >= 1.0, "the metric says that {counted} answers were served through");
    let log = server.log();
    ensure!(log.contains("full") || log.contains("space"), "the log does not say that the disk is full");
    Ok(format!("whole, {counted} served through"))
}

/// The sum of the samples whose name contains this.
async fn metric(server: &CacheServer, name: &str) -> Result<f64> {
    let text = server.metrics().await?;
    let samples = text.lines().filter(|line| !line.starts_with('#') && line.contains(name));
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum())
}

async fn client_leaves(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    stage.spoil();
    let mut transfer = Ask::get(stage.layer_path()).open(server.listen()).await?;
    transfer.read_to(64 * 1024).await?;
    drop(transfer);
    let digest = stage.layer_digest();
    let counters = stage.world.upstream.counters();
    counters.until("the fill is complete", Duration::from_secs(5), |counts| counts.bytes(digest) == LAYER).await?;
    stage.pull_whole_layer(&server).await?;
    ensure!(stage.asked().len() == 1, "the upstream was asked {} times", stage.asked().len());
    Ok("the fill completes, the next client hits".to_owned())
}

async fn stalled_clients(stage: &Stage<'_>) -> Result<String> {
    const CLIENTS: usize = 300;
    // More than the kernel buffers for one connection, else nobody stalls.
    let blob = Blob::generated(300, 16 * MIB);
    let digest = stage.world.upstream.content().put_blob(&stage.made.name, blob);
    let path = format!("/v2/{}/blobs/{digest}", stage.made.name);
    let server = stage.server().await?;
    get(&server, &path).await?.ensure_whole(&digest)?;
    let files = open_files(&server)?;
    let before = server.rss_bytes()?;
    let mut stalled = Vec::new();
    for _ in 0..CLIENTS {
        stalled.push(Ask::get(&path).open(server.listen()).await?);
    }
    // Their own count: how many files were open before may hold a connection that was just ending.
    let metrics = server.metrics().await?;
    let connected = metrics.lines().find_map(|line| line.strip_prefix("entrepot_connections ")?.parse::<usize>().ok());
    ensure!(connected.is_some_and(|connected| connected >= CLIENTS), "{connected:?} clients are connected");
    let since = Instant::now();
    let limit = WRITE_STALL + Duration::from_secs(4);
    let mut most = server.rss_bytes()?;
    while open_files(&server)? > files + 10 {
        ensure!(since.elapsed() < limit, "{} files still open after {limit:?}", open_files(&server)?);
        most = most.max(server.rss_bytes()?);
        sleep(Duration::from_millis(100)).await;
    }
    let grown = most.saturating_sub(before) / MIB;
    ensure!(grown <= 64, "memory grew by {grown} MiB");
    Ok(format!("+{grown} MiB, dropped after {:.1} s", since.elapsed().as_secs_f64()))
}

fn open_files(server: &CacheServer) -> Result<usize> {
    let folder = format!("/proc/{}/fd", server.process()?.pid());
    let entries = std::fs::read_dir(&folder).with_context(|| format!("failed to list {folder}"))?;
    Ok(entries.count())
}

async fn half_a_header(stage: &Stage<'_>) -> Result<String> {
    let server = stage.server().await?;
    let took = half_a_head(server.listen(), Duration::from_secs(10)).await?;
    ensure!(took <= REQUEST_HEADER + SLACK, "closed after {took:?}");
    Ok(format!("closed after {:.1} s", took.as_secs_f64()))
}
