//! What a newcomer is shown and the first cases assert: the chart, one mirror, pods on both nodes, no upstream.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::{Cluster, ClusterWorld, NODES};
use crate::lab::{DOCKER_HUB, TOKEN_SERVER};

/// The chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/entrepot");
/// The release, and its namespace.
pub const RELEASE: [&str; 2] = ["entrepot", "entrepot-system"];
/// What the chart's images are put behind, which makes them those that the nodes hold; see [`super::OWN`].
pub const VALUES: &str = "global.imageRegistry=entrepot.test";
/// One nginx and one mysql on every node.
pub const WORKLOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/workload.yaml");
/// The label of its pods.
const WORKLOAD_LABELS: &str = "part=workload";
/// The chart's sample mirror.
pub const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/entrepot/samples/docker-hub.yaml");
/// The line of the sample behind which the laboratory's CA goes.
const URL: &str = "    url: https://registry-1.docker.io\n";

/// How long until every node is configured and its pull of the canary was seen.
const MIRROR_LIMIT: Duration = Duration::from_mins(2);
/// How long until the pods run; most of it is the runtimes' unpacking.
const PODS_LIMIT: Duration = Duration::from_mins(3);
/// How long a pod that is ready may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Installs the chart, as its README says, and waits until its pods run; again is fine.
pub async fn install(cluster: &Cluster) -> Result<()> {
    let [release, namespace] = RELEASE;
    let installed = cluster
        .helm(&[
            "upgrade",
            "--install",
            release,
            CHART,
            "--namespace",
            namespace,
            "--create-namespace",
            "--set",
            VALUES,
            "--wait",
            "--timeout",
            "3m",
        ])
        .await;
    match installed {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(cluster.state().await)),
    }
}

/// Applies the sample mirror and waits until all nodes pull through it.
pub async fn mirror_docker_hub(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    cluster.apply(&sample(world.upstream.ca_pem())?).await?;
    let all = format!("{0} of {0}", NODES.len());
    let path = "/apis/entrepot.dev/v1alpha1/registrymirrors/docker-hub";
    cluster
        .until(&format!("the mirror says that {all} nodes are configured"), MIRROR_LIMIT, async || {
            Ok(cluster.get(path).await?["status"]["nodes"]["summary"] == all.as_str())
        })
        .await
}

/// The chart's [`SAMPLE`], which here must trust the laboratory's CA.
pub fn sample(ca_pem: &str) -> Result<String> {
    let sample = fs::read_to_string(SAMPLE).with_context(|| format!("cannot read {SAMPLE}"))?;
    ensure!(sample.contains(URL), "{SAMPLE} has no longer the line {URL:?}");
    let bundle = ca_pem.lines().fold(String::new(), |bundle, line| bundle + "      " + line + "\n");
    Ok(sample.replacen(URL, &format!("{URL}    caBundle: |\n{bundle}"), 1))
}

/// Runs one nginx and one mysql on every node, and has each answer.
pub async fn run_workload(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["apply", "-f", WORKLOAD]).await?;
    let wanted = 2 * NODES.len();
    cluster
        .until(&format!("{wanted} pods are ready"), PODS_LIMIT, async || {
            let pods = cluster.pods("default", WORKLOAD_LABELS).await?;
            Ok(pods.len() == wanted && pods.iter().all(|pod| super::is_true(pod, "Ready")))
        })
        .await?;
    for pod in cluster.pods("default", WORKLOAD_LABELS).await? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let address: IpAddr = pod["status"]["podIP"].as_str().unwrap_or_default().parse()?;
        let app = pod["metadata"]["labels"]["app"].as_str().unwrap_or_default();
        tokio::time::timeout(ANSWER_LIMIT, answers(app, address))
            .await
            .with_context(|| format!("{name} does not answer within {ANSWER_LIMIT:?}"))?
            .with_context(|| format!("{name} does not answer"))?;
    }
    Ok(())
}

/// Removes what [`run_workload`] made, and waits until it is gone.
pub async fn remove_workload(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "-f", WORKLOAD, "--ignore-not-found", "--cascade=foreground"]).await?;
    cluster
        .until("the pods are gone", PODS_LIMIT, async || Ok(cluster.pods("default", WORKLOAD_LABELS).await?.is_empty()))
        .await
}

/// Asserts that the upstream sent every blob of the workload's images once, and nothing to a node.
pub fn sent_once_and_not_to_nodes(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    world.sent_once([&world.images.nginx, &world.images.mysql], |client| cluster.is_node(client))
}

/// Removes the images from the nodes, cuts the upstream off and runs the workload again; then the upstream is back.
pub async fn run_without_upstream(world: &ClusterWorld) -> Result<()> {
    let ClusterWorld { world, cluster } = world;
    remove_workload(cluster).await?;
    for node in cluster.nodes() {
        node.remove_images().await?;
    }
    let upstreams = [DOCKER_HUB, TOKEN_SERVER];
    upstreams.into_iter().try_for_each(|address| world.lab.refuse(address))?;
    let ran = run_workload(cluster).await;
    upstreams.into_iter().try_for_each(|address| world.lab.reopen(address))?;
    ran.context("with the upstream cut off")
}

async fn answers(app: &str, address: IpAddr) -> Result<()> {
    if app == "nginx" {
        let client = reqwest::Client::builder().no_proxy().build()?;
        client.get(format!("http://{address}/")).send().await?.error_for_status()?;
        return Ok(());
    }
    // The server speaks first, and says its name.
    let mut greeting = [0; 256];
    let length = TcpStream::connect((address, 3306)).await?.read(&mut greeting).await?;
    let greeting = String::from_utf8_lossy(&greeting[..length]);
    ensure!(greeting.contains("MariaDB"), "the greeting is {greeting:?}");
    Ok(())
}
