//! Nodes that are configured already, oddly: everything works with us and without us, and what was there comes back byte
//! for byte, also when nobody is left to ask for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cluster_support::node_files::{self, Tree};
use super::cluster_support::odd::{self, DEFAULT_HOST, Kind, ODD, Odd};
use super::cluster_support::pods_images::put_synthetic;
use super::cluster_support::product::{
    OPERATOR, all_nodes, end_operator, is_cache, namespace, node_mirror, scale, summary, until_whole,
};
use super::cluster_support::pulls::keep_pulling;
use crate::cluster::{ClusterWorld, Node, demonstration};
use crate::suite::ClusterCase;

/// How long until mirrors are in force on all nodes.
const IN_FORCE_LIMIT: Duration = Duration::from_mins(3);
/// How long until nodes are as they were once mirrors are deleted.
const RESTORED_LIMIT: Duration = Duration::from_mins(2);
/// The pre-delete Job's own bound.
const UNINSTALL_LIMIT: Duration = Duration::from_mins(5);
/// Fewer pulls meanwhile would show nothing.
const LEAST_PULLS: usize = 24;

/// The cases of this file that leave the product as they find it.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![ClusterCase::new("cluster: odd files of someone else are heeded, and come back", |world| {
        Box::pin(mirrors_come_and_go(world))
    })]
}

/// The case that takes the product away; nothing can come after it.
#[must_use]
pub fn uninstall() -> Vec<ClusterCase> {
    vec![ClusterCase::new("cluster: uninstalled while the operator is dead", |world| Box::pin(uninstalled(world)))]
}

async fn mirrors_come_and_go(world: &ClusterWorld) -> Result<()> {
    let cluster = &world.cluster;
    demonstration::remove_workload(cluster).await?;
    until_whole(cluster).await?;
    let result = with_odd_files(world, async || come_and_go(world).await).await;
    let cleaned = clean_up(world).await.context("the nodes do not get rid of what the case put there");
    result.and(cleaned)
}

/// Leaves the product as the next case expects it.
async fn clean_up(world: &ClusterWorld) -> Result<()> {
    delete_mirrors(world).await?;
    world.cluster.nodes().iter().try_for_each(odd::remove)?;
    until_whole(&world.cluster).await
}

async fn come_and_go(world: &ClusterWorld) -> Result<()> {
    let cluster = &world.cluster;
    let before = trees(world, odd::foreign_files)?;
    pulls(world, "before", |_| false).await.context("before there are mirrors")?;

    make_mirrors(world).await?;
    cluster.nodes().iter().try_for_each(in_force)?;
    reported(world).await?;
    let goes_through = |odd: &Odd| odd.kind != Kind::Broken;
    pulls(world, "during", goes_through).await.context("while there are mirrors")?;

    delete_mirrors(world).await?;
    until_restored(world, &before, odd::foreign_files).await?;
    pulls(world, "after", |_| false).await.context("after the mirrors are gone")
}

async fn uninstalled(world: &ClusterWorld) -> Result<()> {
    let cluster = &world.cluster;
    demonstration::remove_workload(cluster).await?;
    until_whole(cluster).await?;
    with_odd_files(world, async || uninstall_without_operator(world).await).await
}

async fn uninstall_without_operator(world: &ClusterWorld) -> Result<()> {
    // Without the product the nodes would have nothing else.
    let before = trees(world, odd::foreign_files)?;
    make_mirrors(world).await?;
    cannot_run_again(world).await?;

    let [release, namespace] = demonstration::RELEASE;
    let begun = Instant::now();
    world.cluster.helm(&["uninstall", release, "--namespace", namespace, "--timeout", "6m"]).await?;
    let took = begun.elapsed();
    println!("         uninstalled without an operator in {:.1} s", took.as_secs_f64());
    ensure!(took <= UNINSTALL_LIMIT, "helm uninstall took {took:.1?}");

    until_restored(world, &before, odd::all_files).await?;
    objects_stay(world).await?;
    pulls(world, "uninstalled", |_| false).await.context("after helm uninstall")
}

/// The operator dies and its image is gone, so that whoever starts it again starts nothing.
async fn cannot_run_again(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    end_operator(cluster).await?;
    let image = "operator=entrepot.test/entrepot/operator:gone";
    cluster.kubectl(&["set", "image", OPERATOR, image, "--namespace", namespace()]).await?;
    scale(cluster, OPERATOR, 1).await
}

/// Seeds the nodes, does the work, and pulls all along.
async fn with_odd_files(world: &ClusterWorld, work: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let ca_pem = world.world.upstream.ca_pem();
    world.cluster.nodes().iter().try_for_each(|node| odd::seed(node, ca_pem))?;
    let steady = ODD.iter().map(|odd| image(world, odd, "steady")).collect::<Result<Vec<_>>>()?;
    let done = CancellationToken::new();
    let (result, pulled) = tokio::join!(
        async {
            let result = work().await;
            done.cancel();
            result
        },
        keep_pulling(world, &steady, &done)
    );
    result?;
    let pulled = pulled.context("among the pulls that ran throughout")?;
    println!("         {pulled} pulls ran throughout");
    ensure!(pulled >= LEAST_PULLS, "only {pulled} pulls ran meanwhile");
    Ok(())
}

/// Makes an image that only the registry has; answers how it is written.
fn image(world: &ClusterWorld, odd: &Odd, name: &str) -> Result<String> {
    let name = format!("odd/{name}-{}", odd.mirror);
    put_synthetic(&world.world, &name)?;
    Ok(format!("{}/{name}:1", odd.registry))
}

/// Has every node pull a fresh image of each registry, and asserts whether the cache or the nodes asked for it.
async fn pulls(world: &ClusterWorld, phase: &str, through_cache: fn(&Odd) -> bool) -> Result<()> {
    let ClusterWorld { world: lab, cluster } = world;
    for odd in &ODD {
        let reference = image(world, odd, phase)?;
        for node in cluster.nodes() {
            node.pull(&reference).await?;
        }
        let path = format!("/v2/odd/{phase}-{}/", odd.mirror);
        let counts = lab.upstream.counts();
        let asked: Vec<_> = counts.all().iter().filter(|asked| asked.path.starts_with(&path)).collect();
        let by_nodes = asked.iter().filter(|asked| cluster.is_node(asked.client)).count();
        let by_cache = asked.iter().filter(|asked| is_cache(cluster, asked.client)).count();
        let is_right = if through_cache(odd) { by_nodes == 0 && by_cache > 0 } else { by_nodes > 0 && by_cache == 0 };
        ensure!(is_right, "the upstream was asked for {reference} by nodes {by_nodes}, by the cache {by_cache} times");
    }
    Ok(())
}

/// Makes the mirrors of all odd registries and waits until those that can be in force are.
async fn make_mirrors(world: &ClusterWorld) -> Result<()> {
    let ClusterWorld { world: lab, cluster } = world;
    let objects: Vec<Value> = ODD.iter().map(|odd| odd.object(lab.upstream.ca_pem())).collect();
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()).await?;
    for odd in ODD.iter().filter(|odd| odd.kind != Kind::Broken) {
        cluster
            .until(&format!("all nodes are verified for {}", odd.mirror), IN_FORCE_LIMIT, async || {
                Ok(summary(cluster, odd.mirror).await? == all_nodes())
            })
            .await?;
    }
    Ok(())
}

/// Deletes them and waits until they are gone; those that are not there are no mistake.
async fn delete_mirrors(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    let names = ODD.map(|odd| odd.mirror);
    let delete = ["delete", "registrymirrors", "--ignore-not-found", "--timeout=3m"];
    cluster.kubectl(&[&delete[..], &names[..]].concat()).await.map(drop)
}

/// Asserts of the files of a node what nodes.md says of each kind.
fn in_force(node: &Node) -> Result<()> {
    for odd in &ODD {
        file_in_force(node, odd).with_context(|| format!("{} on {}", odd.folder, node.name()))?;
    }
    Ok(())
}

fn file_in_force(node: &Node, odd: &Odd) -> Result<()> {
    let path = format!("{}/hosts.toml", odd.folder);
    let text = node_files::text(node, &path)?.context("there is no hosts.toml")?;
    let ours = node_files::position_of(&text, odd.mirror);
    if odd.kind == Kind::Broken {
        ensure!(ours.is_none(), "a file that nobody can read was changed:\n{text}");
        return Ok(());
    }
    let ours = ours.with_context(|| format!("the cache is not named:\n{text}"))?;
    match odd.kind {
        Kind::Certificates => ensure!(text.contains("ca.crt"), "ca.crt is not carried over:\n{text}"),
        Kind::Default => {
            let theirs = text.find(DEFAULT_HOST).with_context(|| format!("what _default said is lost:\n{text}"))?;
            ensure!(ours < theirs, "the cache does not come first:\n{text}");
        }
        Kind::Hosts | Kind::Broken => {}
    }
    for line in odd.kept_lines() {
        ensure!(text.contains(line), "{line:?} is lost:\n{text}");
        ensure!(
            !line.starts_with("[host.") || text.find(line) > Some(ours),
            "{line:?} comes before the cache:\n{text}"
        );
    }
    one_spelling(node, odd)
}

/// A second folder for the same registry would hide one of the two.
fn one_spelling(node: &Node, odd: &Odd) -> Result<()> {
    let Some((host, port)) = odd.registry.split_once(':') else { return Ok(()) };
    for other in [format!("{host}:{port}"), format!("{host}_{port}_"), host.to_owned()] {
        let is_there = node_files::text(node, &format!("{other}/hosts.toml"))?.is_some();
        ensure!(!is_there || other == odd.folder, "there is {other} too");
    }
    Ok(())
}

/// Waits until each node says that it cannot read the broken file.
async fn reported(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    let broken = ODD.iter().find(|odd| odd.kind == Kind::Broken).context("none is broken")?;
    for node in cluster.nodes() {
        let is_reported = async || {
            let found = node_mirror(cluster, node.name()).await?;
            let entries = found["status"]["entries"].as_array().context("no entries")?;
            let entry = entries.iter().find(|entry| entry["registry"] == broken.registry).context("no such entry")?;
            ensure!(entry["state"] == "Conflict" && entry["reason"] == "ForeignUnparsable", "it says {entry}");
            let message = entry["message"].as_str().unwrap_or_default();
            ensure!(message.contains("hosts.toml"), "the message does not name the file: {message:?}");
            Ok(true)
        };
        cluster.until(&format!("{} reports the broken file", node.name()), IN_FORCE_LIMIT, is_reported).await?;
    }
    ensure!(summary(cluster, broken.mirror).await? != all_nodes(), "a mirror counts nodes that do not pull through it");
    Ok(())
}

/// The files of all nodes.
fn trees(world: &ClusterWorld, of: fn(&Node) -> Result<Tree>) -> Result<Vec<Tree>> {
    world.cluster.nodes().iter().map(of).collect()
}

/// Waits until the files of all nodes are what they were.
async fn until_restored(world: &ClusterWorld, before: &[Tree], of: fn(&Node) -> Result<Tree>) -> Result<()> {
    let restored = async || {
        for (node, before) in world.cluster.nodes().iter().zip(before) {
            let differences = before.differences(&of(node)?);
            ensure!(differences.is_empty(), "on {}:\n{}", node.name(), differences.join("\n"));
        }
        Ok(true)
    };
    world.cluster.until("the nodes' files are what they were", RESTORED_LIMIT, restored).await
}

/// Asserts that every object is still there, and that nothing would hinder whoever deletes it now.
async fn objects_stay(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    let mirrors = ODD.iter().map(|odd| ("registrymirrors", odd.mirror)).chain([("registrymirrors", "docker-hub")]);
    for (kind, name) in mirrors.chain([("cacheservers", "default")]) {
        let found = cluster.get(&format!("/apis/entrepot.dev/v1alpha1/{kind}/{name}")).await?;
        let metadata = &found["metadata"];
        let finalizers = metadata["finalizers"].as_array().map_or(0, Vec::len);
        ensure!(finalizers == 0, "{kind}/{name} has finalizers: {}", metadata["finalizers"]);
        ensure!(metadata["deletionTimestamp"].is_null(), "{kind}/{name} is being deleted");
    }
    Ok(())
}
