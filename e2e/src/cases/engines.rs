//! Real engines pull real images through the cache: each byte leaves the upstream once, and none is missed when the
//! upstream is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::content::Image;
use crate::engine::{Containerd, Docker, Engine, Major};
use crate::lab::{CacheServer, CacheServerSetup, DOCKER_HUB, TOKEN_SERVER};
use crate::suite::{Case, World};

/// Where these cases' cache serves.
const PORT: u16 = 5000;
/// Until the breaker opens, a warm tag waits for at most this.
const WARM_LIMIT: Duration = Duration::from_millis(2_500);
/// Once it is open, for at most this.
const OPEN_LIMIT: Duration = Duration::from_millis(100);
/// The failures that open the breaker.
const FAILURES: usize = 3;

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("engines: real images through the cache, the upstream then cut off", |world| {
            Box::pin(pull_everything(world))
        }),
        Case::new("engines: a warm tag with the upstream black-holed", |world| Box::pin(warm_tag(world))),
    ]
}

async fn pull_everything(world: &World) -> Result<()> {
    let mut cache = start_cache(world, "engines", PORT, "").await?;
    let mut engines = start_engines(world, &cache).await?;
    world.upstream.reset_counts();

    pull_all(&engines, &world.images.all()).await?;
    sent_once_and_only_to_the_cache(world)?;

    for cut in [Cut::Refused, Cut::BlackHole] {
        remove_all(world, &engines).await?;
        cut.begin(world)?;
        let pulled = pull_all(&engines, &world.images.all()).await;
        reopen(world)?;
        pulled.with_context(|| format!("with the upstream cut off ({cut:?})"))?;
    }

    for engine in &mut engines {
        engine.stop().await?;
    }
    cache.stop().await
}

async fn start_engines(world: &World, cache: &CacheServer) -> Result<Vec<Engine>> {
    let World { lab, programs, .. } = world;
    let by_path = format!("{}/repository/docker-hub", cache.url());
    Ok(vec![
        Engine::Containerd(Containerd::start(lab, programs, Major::One, &by_path).await?),
        Engine::Containerd(Containerd::start(lab, programs, Major::Two, &by_path).await?),
        Engine::Docker(Docker::start(lab, programs, &cache.url()).await?),
    ])
}

/// Every engine pulls every image, one image after the other, all engines at once.
async fn pull_all(engines: &[Engine], images: &[&Image]) -> Result<()> {
    for image in images {
        let begun = Instant::now();
        let reference = image.reference();
        let pulls = engines.iter().map(|engine| engine.pull(&reference));
        futures_util::future::try_join_all(pulls).await?;
        println!("         {} engines pulled {reference} in {:.1} s", engines.len(), begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn remove_all(world: &World, engines: &[Engine]) -> Result<()> {
    let references = world.images.all().map(Image::reference);
    for engine in engines {
        engine.remove_all(&references).await?;
    }
    Ok(())
}

fn sent_once_and_only_to_the_cache(world: &World) -> Result<()> {
    world.sent_once(world.images.all(), is_a_node)
}

fn is_a_node(client: std::net::IpAddr) -> bool {
    crate::lab::NODES.iter().any(|node| client == node.address)
}

/// A way to lose the upstream.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Refused,
    BlackHole,
}

impl Cut {
    fn begin(self, world: &World) -> Result<()> {
        [DOCKER_HUB, TOKEN_SERVER].into_iter().try_for_each(|address| match self {
            Self::Refused => world.lab.refuse(address),
            Self::BlackHole => world.lab.black_hole(address),
        })
    }
}

fn reopen(world: &World) -> Result<()> {
    [DOCKER_HUB, TOKEN_SERVER].into_iter().try_for_each(|address| world.lab.reopen(address))
}

async fn warm_tag(world: &World) -> Result<()> {
    let freshness = "  freshness:\n    tags: 1s\n";
    let mut cache = start_cache(world, "warm-tag", PORT + 10, freshness).await?;
    let url = format!("{}/v2/library/sixty/manifests/latest", cache.url());
    let http = reqwest::Client::builder().no_proxy().build()?;
    get(&http, &url).await.context("cold")?;
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    Cut::BlackHole.begin(world)?;
    let answered = answer_times(&http, &url).await;
    reopen(world)?;

    let answered = answered?;
    println!("         a warm tag without its upstream: {answered:.1?}");
    let (before, after) = answered.split_at(FAILURES);
    ensure!(before.iter().all(|time| *time <= WARM_LIMIT), "before the breaker opened: {before:?}");
    ensure!(after.iter().all(|time| *time <= OPEN_LIMIT), "after the breaker opened: {after:?}");
    cache.stop().await
}

/// How long answers take while the tag is stale: those until the breaker opens, then five more.
async fn answer_times(http: &reqwest::Client, url: &str) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..FAILURES + 5 {
        let begun = Instant::now();
        get(http, url).await.context("with the upstream black-holed")?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

async fn get(http: &reqwest::Client, url: &str) -> Result<()> {
    let answer = http.get(url).header("accept", crate::package::layout::MANIFEST).send().await?.error_for_status()?;
    answer.bytes().await.map(drop).context("the body broke off")
}

/// A cache server with one mirror of Docker Hub by the name of `docker-hub`; `more` is added to its spec.
pub async fn start_cache(world: &World, name: &str, port: u16, more: &str) -> Result<CacheServer> {
    let bundle = world.upstream.ca_pem().lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n");
    let objects = format!(
        "apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata:
  name: docker-hub
spec:
  upstream:
    url: https://registry-1.docker.io
    caBundle: |
{bundle}
{more}"
    );
    CacheServer::start(&world.lab, CacheServerSetup::new(name, port, &objects)).await
}
