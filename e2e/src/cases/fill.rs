//! One fill, any number of readers: fifty clients on one cold blob cost the upstream one download.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    lab::CacheServer,
    suite::{Case, World},
    upstream::{
        answer::Gate,
        blob::Blob,
        client::{Ask, Got},
        fault::{Fault, Target},
        mirror::{Configuration, Mirror},
    },
};

const MIB: u64 = 1024 * 1024;
const LENGTH: u64 = 256 * MIB;
const CLIENTS: usize = 50;
const LEAVERS: usize = 25;
const RATE: u64 = 50_000_000;
const JOIN_AT: u64 = 200_000_000;
/// For the first bytes to reach everyone while the upstream waits.
const FIRST_BYTES: Duration = Duration::from_secs(20);
/// For everything: the upstream takes 5.4 s, the rest is hashing fifty times on a small machine.
const ALL_BYTES: Duration = Duration::from_mins(2);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new("fill: fifty clients on one cold blob", |world| Box::pin(fifty_clients(world)))]
}

async fn fifty_clients(world: &World) -> Result<()> {
    let upstream = &world.upstream;
    let configuration = Configuration::quick(upstream).mirror(Mirror::hub());
    let server = CacheServer::start(&world.lab, configuration.setup("fill")).await?;
    let blob = Blob::generated(50, LENGTH);
    let digest = upstream.content().put_blob("library/fifty", blob.clone());
    let path = format!("/v2/library/fifty/blobs/{digest}");
    let gate = Gate::after(MIB);
    upstream.faults().set(Target::path(&digest).method("GET"), Fault::Rate(RATE));
    upstream.faults().set(Target::path(&digest).method("GET"), Fault::Gate(gate.clone()));

    let first_bytes = Arc::new(Semaphore::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let ask = Ask::get(&path);
        clients.spawn(client(ask, server.listen(), number < LEAVERS, Arc::clone(&first_bytes)));
    }
    let everyone = u32::try_from(CLIENTS)?;
    let arrived = timeout(FIRST_BYTES, first_bytes.acquire_many(everyone)).await;
    let waiting = first_bytes.available_permits();
    arrived
        .with_context(|| format!("only {waiting} of {CLIENTS} clients got the first MiB while the upstream waited"))??
        .forget();
    ensure!(upstream.counts().bytes(&digest) == MIB, "the upstream sent more than its gate lets through");

    gate.open();
    let late = join_late(&path, &blob, &server);
    let (late, rest) = tokio::join!(late, timeout(ALL_BYTES, all_of(clients)));
    late.context("the client that joined at an offset")?;
    let finished = rest.with_context(|| format!("not done after {ALL_BYTES:?}"))??;
    ensure!(finished.len() == CLIENTS - LEAVERS, "{} clients finished", finished.len());
    finished.iter().try_for_each(|got| got.ensure_whole(&digest))?;

    let counts = upstream.counts();
    ensure!(counts.gets(&digest) == 1, "the upstream was asked {} times", counts.gets(&digest));
    ensure!(counts.bytes(&digest) == LENGTH, "the upstream sent {} bytes", counts.bytes(&digest));
    upstream.faults().clear_path(&digest);
    Ok(())
}

/// Reads the first MiB and says so; then leaves at half, or reads on to the end.
async fn client(
    ask: Ask,
    server: std::net::SocketAddr,
    leaves: bool,
    first_bytes: Arc<Semaphore>,
) -> Result<Option<Got>> {
    let mut transfer = ask.open(server).await?;
    transfer.read_to(MIB).await?;
    ensure!(transfer.received() >= MIB, "the answer ended after {} bytes", transfer.received());
    first_bytes.add_permits(1);
    if leaves {
        transfer.read_to(LENGTH / 2).await?;
        ensure!(transfer.received() >= LENGTH / 2, "the answer ended before its half");
        return Ok(None);
    }
    transfer.finish().await.map(Some)
}

async fn all_of(mut clients: JoinSet<Result<Option<Got>>>) -> Result<Vec<Got>> {
    let mut finished = Vec::new();
    while let Some(got) = clients.join_next().await {
        finished.extend(got.context("a client's task failed")??);
    }
    Ok(finished)
}

async fn join_late(path: &str, blob: &Blob, server: &CacheServer) -> Result<()> {
    let ask = Ask::get(path).with("Range", format!("bytes={JOIN_AT}-")).expecting(blob, JOIN_AT);
    let got = ask.run(server.listen()).await?;
    got.ensure_status(206)?;
    let range = format!("bytes {JOIN_AT}-{}/{LENGTH}", LENGTH - 1);
    ensure!(got.header("content-range") == Some(&range), "Content-Range is {:?}", got.header("content-range"));
    ensure!(got.received == LENGTH - JOIN_AT, "{}", got.summary());
    ensure!(got.wrong_at.is_none(), "a wrong byte at {:?} of the range", got.wrong_at);
    Ok(())
}
