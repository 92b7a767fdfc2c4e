//! The cache goes away while nodes pull through it, in four ways: pods run all the same, and what it had is not lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::cluster_support::node_files;
use super::cluster_support::pods::Pods;
use super::cluster_support::pods_images::Runnable;
use super::cluster_support::product::{
    CACHE, CachePod, MIRROR, OPERATOR, REGISTRY, cache_pod, end_operator, is_cache, is_staying, namespace, scale,
    until_no_endpoint, until_whole,
};
use crate::cluster::{ClusterWorld, Node, demonstration};
use crate::suite::ClusterCase;
use crate::upstream::counts::{Asked, Snapshot};

/// How much later than undisturbed a pod may run.
const LATER: Duration = Duration::from_secs(30);
/// The same when the cache's pod was deleted.
const LATER_DELETED: Duration = Duration::from_mins(1);
/// How long an undisturbed pull of [`Runnable`] may take; the upstream alone takes eight seconds.
const CALM_LIMIT: Duration = Duration::from_mins(1);
/// How long until a pull is half way.
const HALF_LIMIT: Duration = Duration::from_secs(30);
/// What may have been on its way to the cache when it died: 2 MiB in its memory, and what sockets hold, which is more the slower
/// the disk is. A fill that began anew would take half of a blob more, 12 MiB.
const SLACK: u64 = 8 << 20;
/// How long until the nodes leave out a cache that is frozen.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(10);
/// How much longer a pull may take at a node that has left the cache out.
const AT_ONCE: Duration = Duration::from_secs(3);
/// How long after the freeze a pull that was caught in it may last.
const CAUGHT_LIMIT: Duration = Duration::from_mins(1);
/// How long until the kubelet has started a frozen cache again: three probes of five seconds, then the grace period.
const RESTART_LIMIT: Duration = Duration::from_mins(2);
/// How long until the nodes ask the cache again once it answers.
const RETURN_LIMIT: Duration = Duration::from_secs(15);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        ClusterCase::new("cluster: the cache server killed while nodes pull", |world| Box::pin(killed(world))),
        ClusterCase::new("cluster: the cache server's pod deleted while nodes pull", |world| Box::pin(deleted(world))),
        ClusterCase::new("cluster: the cache's Service without endpoints while nodes pull", |world| {
            Box::pin(without_endpoints(world))
        }),
        ClusterCase::new("cluster: the cache server frozen while nodes pull", |world| Box::pin(frozen(world))),
    ]
}

async fn killed(world: &ClusterWorld) -> Result<()> {
    let outage = Outage::prepare(world, "killed").await?;
    let image = outage.disturbed(LATER, async |cache| outage.signal(cache, Signal::KILL)).await?;
    outage.resumed(&image, Cut::ForCertain).await
}

async fn deleted(world: &ClusterWorld) -> Result<()> {
    let outage = Outage::prepare(world, "deleted").await?;
    let image = outage
        .disturbed(LATER_DELETED, async |cache| {
            let delete = ["delete", "pod", &cache.name, "--namespace", namespace(), "--wait=false"];
            world.cluster.kubectl(&delete).await.map(drop)
        })
        .await?;
    outage.resumed(&image, Cut::Perhaps).await?;
    ensure!(cache_pod(&world.cluster).await?.name != outage.cache.name, "the pod was not deleted");
    Ok(())
}

async fn without_endpoints(world: &ClusterWorld) -> Result<()> {
    let outage = Outage::prepare(world, "unserved").await?;
    // It would start the cache again at once.
    end_operator(&world.cluster).await?;
    let image = outage.disturbed(LATER, async |cache| outage.take_away(cache).await).await;
    let restored = give_back(world).await;
    let image = image?;
    restored.context("the cache and the operator do not come back")?;
    outage.resumed(&image, Cut::ForCertain).await
}

async fn give_back(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    scale(cluster, CACHE, 1).await?;
    scale(cluster, OPERATOR, 1).await?;
    until_whole(cluster).await
}

async fn frozen(world: &ClusterWorld) -> Result<()> {
    let ClusterWorld { world: lab, cluster } = world;
    let outage = Outage::prepare(world, "frozen").await?;
    // Made before, because then every second counts.
    let before = Runnable::publish(lab, "frozen-before")?;
    let after = Runnable::publish(lab, "frozen-after")?;
    let again = Runnable::publish(lab, "frozen-again")?;
    let quick = outage.pull(&before, Through::Cache).await?;
    let (image, pods) = outage.begin("frozen").await?;

    outage.signal(&outage.cache, Signal::STOP)?;
    let since = Instant::now();
    // What is caught shall wait for the cache alone.
    image.speed_up(&lab.upstream);
    let withdrawn = async || Ok(!cluster.nodes().iter().any(names_cache));
    cluster.until("the nodes leave the frozen cache out", WITHDRAW_LIMIT, withdrawn).await?;
    println!("         nodes left the frozen cache out after {:.1} s", since.elapsed().as_secs_f64());
    let without = outage.pull(&after, Through::Nothing).await?;
    ensure!(without <= quick + AT_ONCE, "a pull took {without:.1?} with the cache left out, {quick:.1?} before");

    let left = CAUGHT_LIMIT.saturating_sub(since.elapsed());
    let (caught, returned) = tokio::join!(pods.pulled(left), outage.return_of_the_cache());
    caught.with_context(|| format!("pulls that were caught do not end within {CAUGHT_LIMIT:?} of the freeze"))?;
    returned?;
    // One that ended badly is repeated by the kubelet, after a pause of its own.
    pods.running(CALM_LIMIT + CAUGHT_LIMIT + LATER).await?;
    outage.pull(&again, Through::Cache).await?;
    pods.remove().await?;
    until_whole(cluster).await
}

/// Where a pull shall find its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Cache,
    Nothing,
}

/// Whether a fill was cut, so that it must have been resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    ForCertain,
    /// A cache that ends in order may have completed it.
    Perhaps,
}

/// One way to lose the cache, and what to compare with.
#[derive(Debug)]
struct Outage<'w> {
    world: &'w ClusterWorld,
    /// Tells images and pods apart from those of other cases.
    name: &'static str,
    /// The cache before it was lost.
    cache: CachePod,
    /// How long undisturbed pods took.
    calm: Duration,
}

impl<'w> Outage<'w> {
    /// Removes what earlier cases ran, and takes the time of undisturbed pods.
    async fn prepare(world: &'w ClusterWorld, name: &'static str) -> Result<Self> {
        let cluster = &world.cluster;
        demonstration::remove_workload(cluster).await?;
        until_whole(cluster).await?;
        let cache = cache_pod(cluster).await?;
        let mut outage = Self { world, name, cache, calm: Duration::ZERO };
        let (image, pods) = outage.begin("calm").await?;
        outage.calm = pods.running(CALM_LIMIT).await.context("undisturbed")?;
        pods.remove().await?;
        image.speed_up(&world.world.upstream);
        println!("         undisturbed, both pods ran after {:.1} s", outage.calm.as_secs_f64());
        Ok(outage)
    }

    /// Has both nodes pull a fresh image that takes a while, and waits until the cache has half of it.
    async fn begin(&self, what: &str) -> Result<(Runnable, Pods<'w>)> {
        let ClusterWorld { world, cluster } = self.world;
        let app = format!("{}-{what}", self.name);
        let image = Runnable::publish(world, &app)?;
        image.slow_down(&world.upstream);
        let pods = Pods::begin(cluster, &app, &image).await?;
        let is_half_way = |counts: &Snapshot| self.sent(counts, &image) >= image.noise.size / 2;
        world.upstream.counters().until("the cache has half of it", HALF_LIMIT, is_half_way).await?;
        Ok((image, pods))
    }

    /// Does something to the cache while both nodes pull, and wants the pods to run at most `later` than undisturbed.
    async fn disturbed(&self, later: Duration, disturb: impl AsyncFnOnce(&CachePod) -> Result<()>) -> Result<Runnable> {
        let upstream = &self.world.world.upstream;
        let (image, pods) = self.begin("disturbed").await?;
        let had = self.sent(&upstream.counts(), &image);
        disturb(&self.cache).await?;
        ensure!(had < image.noise.size, "the disturbance came too late: the cache had everything");
        let limit = self.calm + later;
        let took = pods
            .running(limit)
            .await
            .with_context(|| format!("undisturbed it took {:.1} s", self.calm.as_secs_f64()))?;
        println!("         {}: both pods ran after {:.1} s", self.name, took.as_secs_f64());
        pods.remove().await?;
        image.speed_up(upstream);
        Ok(image)
    }

    /// Has a node pull the image once more through the cache, which must fetch no more than it did not have.
    async fn resumed(&self, image: &Runnable, cut: Cut) -> Result<()> {
        let ClusterWorld { world, cluster } = self.world;
        until_whole(cluster).await?;
        for node in cluster.nodes() {
            node.remove_images().await?;
        }
        for node in cluster.nodes() {
            node.pull(&image.reference()).await?;
        }
        let counts = world.upstream.counts();
        let asked: Vec<&Asked> = self.asked(&counts, image).collect();
        let (sent, size) = (self.sent(&counts, image), image.noise.size);
        ensure!(
            (size..=size + SLACK).contains(&sent),
            "the upstream sent the cache {sent} bytes of a blob of {size}: {asked:#?}"
        );
        let resumes = asked.iter().skip(1).all(|asked| asked.range.as_deref().is_some_and(begins_later));
        ensure!(resumes, "a fill was begun anew instead of resumed: {asked:#?}");
        ensure!(cut == Cut::Perhaps || asked.len() > 1, "the fill was never resumed: {asked:#?}");
        Ok(())
    }

    /// Has each node pull a fresh image; answers how long it took, and asserts whom they asked.
    async fn pull(&self, image: &Runnable, through: Through) -> Result<Duration> {
        let ClusterWorld { world, cluster } = self.world;
        let (reference, begun) = (image.reference(), Instant::now());
        futures_util::future::try_join_all(cluster.nodes().iter().map(|node| node.pull(&reference))).await?;
        let took = begun.elapsed();
        let counts = world.upstream.counts();
        let by_nodes = counts.of(&image.noise.digest()).filter(|asked| cluster.is_node(asked.client)).count();
        let is_right = match through {
            Through::Cache => by_nodes == 0,
            Through::Nothing => by_nodes >= cluster.nodes().len(),
        };
        ensure!(is_right, "with {through:?} between, nodes asked the upstream {by_nodes} times for {reference}");
        Ok(took)
    }

    fn signal(&self, cache: &CachePod, signal: Signal) -> Result<()> {
        self.world.cluster.node(&cache.node)?.signal_container(&cache.container, signal)
    }

    /// Lets the Service lead nowhere, at once and for good.
    async fn take_away(&self, cache: &CachePod) -> Result<()> {
        let cluster = &self.world.cluster;
        scale(cluster, CACHE, 0).await?;
        let ends = async || Ok(!is_staying(cluster, &cache.name).await?);
        cluster.until("the cache's pod is told to end", WITHDRAW_LIMIT, ends).await?;
        // In order it would end its transfers first, and serve them meanwhile.
        self.signal(cache, Signal::KILL)?;
        until_no_endpoint(cluster).await
    }

    /// Waits until the kubelet has started the cache again, and then until both nodes ask it.
    async fn return_of_the_cache(&self) -> Result<()> {
        let cluster = &self.world.cluster;
        let restarted = async || {
            let now = cache_pod(cluster).await?;
            Ok(now.is_ready && now.name == self.cache.name && now.restarts > self.cache.restarts)
        };
        cluster.until("the kubelet has started the frozen cache again", RESTART_LIMIT, restarted).await?;
        let returned = async || Ok(cluster.nodes().iter().all(names_cache));
        cluster.until("the nodes ask the cache again", RETURN_LIMIT, returned).await
    }

    /// What the cache asked the upstream for the image's noise.
    fn asked<'s>(&self, counts: &'s Snapshot, image: &Runnable) -> impl Iterator<Item = &'s Asked> {
        let (cluster, digest) = (&self.world.cluster, image.noise.digest());
        counts.all().iter().filter(move |asked| {
            asked.is_for(&digest)
                && asked.method == "GET"
                && matches!(asked.status, 200 | 206)
                && is_cache(cluster, asked.client)
        })
    }

    /// The bytes of the image's noise that the upstream sent to the cache.
    fn sent(&self, counts: &Snapshot, image: &Runnable) -> u64 {
        self.asked(counts, image).map(|asked| asked.sent).sum()
    }
}

fn names_cache(node: &Node) -> bool {
    node_files::names_cache(node, REGISTRY, MIRROR)
}

/// Whether a `Range` leaves out the beginning.
fn begins_later(range: &str) -> bool {
    let first = range.strip_prefix("bytes=").and_then(|range| range.split('-').next());
    first.and_then(|first| first.parse::<u64>().ok()).is_some_and(|first| first > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_from_the_first_byte_is_no_resumption() {
        assert!(begins_later("bytes=7-"));
        assert!(!begins_later("bytes=0-"));
        assert!(!begins_later("bytes=-7"));
    }
}
