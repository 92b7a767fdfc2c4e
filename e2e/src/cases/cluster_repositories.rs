//! Hosted repositories and groups in the cluster: what a group lacks is told and heals without a restart, connectors are reached
//! through ports of nodes, nodes pull through a group, and a server that people push to is not deleted by a slip.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::cluster_support::node_files;
use super::cluster_support::pods_images::put_synthetic;
use super::cluster_support::product::{MIRROR, all_nodes, condition, is_cache};
use crate::cluster::inventory::{self, KINDS};
use crate::cluster::{Cluster, ClusterWorld};
use crate::lab::SPARE_UPSTREAMS;
use crate::suite::ClusterCase;
use crate::upstream::sites::spare;

/// From an object to a status that says so: 10 s, and the patience of a busy machine.
const TOLD: &str = "--timeout=60s";
/// The same, for what is looked at otherwise.
const TOLD_LIMIT: Duration = Duration::from_mins(1);
/// Until a server's pod runs, and until all nodes are verified.
const SERVED_LIMIT: Duration = Duration::from_mins(2);
/// For one answer of a cache server.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The group whose members come and go.
const GROUP: &str = "members-group";
/// Another one.
const RING: &str = "members-ring";
/// The hosted repository that is missing at first.
const LATE: &str = "members-late";
/// The server of the team's repositories.
const SERVER: &str = "teams";
/// The team's group, and the port that nodes open for its connector.
const TEAM: (&str, u16) = ("team-group", 30187);
/// The team's hosted repository, likewise.
const TEAM_HOSTED: (&str, u16) = ("team-hosted", 30186);
/// The team's mirror.
const TEAM_MIRROR: &str = "team-upstream";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        ClusterCase::new("cluster repositories: a group tells of its members and heals without a restart", |world| {
            Box::pin(members(world))
        }),
        ClusterCase::new("cluster repositories: a team's group serves nodes, and clients through nodePorts", |world| {
            Box::pin(team(world))
        }),
    ]
}

async fn members(ClusterWorld { cluster, .. }: &ClusterWorld) -> Result<()> {
    let lives = inventory::lives(cluster).await?;
    let told = members_come_and_go(cluster).await;
    let names =
        [format!("repositorygroup/{GROUP}"), format!("repositorygroup/{RING}"), format!("hostedrepository/{LATE}")];
    delete(cluster, &names).await?;
    told?;
    let after = inventory::lives(cluster).await?;
    ensure!(lives == after, "pods were replaced or restarted; before: {lives:#?}, after: {after:#?}");
    Ok(())
}

async fn members_come_and_go(cluster: &Cluster) -> Result<()> {
    apply(cluster, &[group(GROUP, json!({"members": [MIRROR, LATE]}))]).await?;
    told(cluster, GROUP, "MemberMissing", &[LATE, "create it, or remove it from spec.members"]).await?;
    serves(cluster, GROUP).await.context("with a member that is missing")?;
    apply(cluster, &[hosted(LATE, json!({}))]).await?;
    ready(cluster, &format!("repositorygroup/{GROUP}")).await?;

    apply(cluster, &[hosted(LATE, json!({"server": "elsewhere"}))]).await?;
    let words = [LATE, "which the CacheServer elsewhere serves; set its spec.server to default"];
    told(cluster, GROUP, "MemberOnOtherServer", &words).await?;
    serves(cluster, GROUP).await.context("with a member of another server")?;
    apply(cluster, &[hosted(LATE, json!({"server": "default"}))]).await?;
    ready(cluster, &format!("repositorygroup/{GROUP}")).await?;

    let ring = [group(RING, json!({"members": [GROUP]})), group(GROUP, json!({"members": [MIRROR, LATE, RING]}))];
    apply(cluster, &ring).await?;
    let (here, there) = (format!("({GROUP} → {RING} → {GROUP})"), format!("({RING} → {GROUP} → {RING})"));
    told(cluster, GROUP, "MemberCycle", &[&here]).await?;
    told(cluster, RING, "MemberCycle", &[&there]).await?;
    serves(cluster, GROUP).await.context("in a ring")?;
    serves(cluster, RING).await.context("in a ring")?;
    apply(cluster, &[group(GROUP, json!({"members": [MIRROR, LATE]}))]).await?;
    ready(cluster, &format!("repositorygroup/{GROUP}")).await?;
    ready(cluster, &format!("repositorygroup/{RING}")).await
}

async fn team(world: &ClusterWorld) -> Result<()> {
    let served = team_is_served(world).await;
    let cluster = &world.cluster;
    let asked = match &served {
        Ok(()) => deletion_is_held(cluster).await,
        Err(_) => Ok(()),
    };
    let cleaned = clean_up_team(cluster).await;
    served?;
    asked?;
    cleaned
}

async fn team_is_served(world: &ClusterWorld) -> Result<()> {
    let ClusterWorld { world: lab, cluster } = world;
    let registry = spare(SPARE_UPSTREAMS[7]);
    let connector = |port: u16, node_port: u16| json!([{"port": port, "nodePort": node_port}]);
    let objects = [
        // No volume is left on the nodes.
        object("CacheServer", SERVER, json!({"storage": {"emptyDir": {}}})),
        hosted(TEAM_HOSTED.0, json!({"server": SERVER, "connectors": connector(8186, TEAM_HOSTED.1)})),
        object(
            "RegistryMirror",
            TEAM_MIRROR,
            json!({"server": SERVER, "upstream": {
                "url": format!("https://{registry}"), "caBundle": lab.upstream.ca_pem(),
            }}),
        ),
        group(
            TEAM.0,
            json!({
                "server": SERVER,
                "members": [TEAM_HOSTED.0, TEAM_MIRROR],
                "connectors": connector(8187, TEAM.1),
                "nodes": {"registries": [registry]},
            }),
        ),
    ];
    apply(cluster, &objects).await?;
    told(cluster, TEAM.0, "NoNodePorts", &["set service.type of the CacheServer teams"]).await?;
    let node_ports = json!({"spec": {"service": {"type": "NodePort"}}}).to_string();
    cluster.kubectl(&["patch", "cacheserver", SERVER, "--type=merge", "--patch", &node_ports]).await?;
    cluster.kubectl(&["wait", &format!("cacheserver/{SERVER}"), "--for=condition=Ready", "--timeout=2m"]).await?;
    for name in [format!("repositorygroup/{}", TEAM.0), format!("hostedrepository/{}", TEAM_HOSTED.0)] {
        ready(cluster, &name).await?;
    }
    let found = cluster.get(&format!("{KINDS}/cacheservers/{SERVER}")).await?;
    ensure!(found["status"]["repositoryCount"] == 3, "repositories of all kinds count: {}", found["status"]);

    let image = "repositories/through-nodeports";
    put_synthetic(lab, image)?;
    for node in cluster.nodes() {
        // The Service is as it is told before kube-proxy has opened its ports on every node.
        let url = |port: u16| format!("http://{}:{port}/v2/{image}/manifests/1", node.address());
        answers(cluster, &url(TEAM.1), StatusCode::OK).await?;
        answers(cluster, &url(TEAM_HOSTED.1), StatusCode::NOT_FOUND).await.context("nobody pushed it")?;
    }
    nodes_pull_through_the_group(world, &registry).await
}

async fn nodes_pull_through_the_group(world: &ClusterWorld, registry: &str) -> Result<()> {
    let ClusterWorld { world: lab, cluster } = world;
    let path = format!("{KINDS}/repositorygroups/{}", TEAM.0);
    cluster
        .until("all nodes are verified for the group", SERVED_LIMIT, async || {
            let found = cluster.get(&path).await?;
            ensure!(found["status"]["nodes"]["summary"] == all_nodes(), "its status is {}", found["status"]);
            Ok(true)
        })
        .await?;
    let image = "repositories/through-the-group";
    put_synthetic(lab, image)?;
    for node in cluster.nodes() {
        ensure!(node_files::names_cache(node, registry, TEAM.0), "{} does not name the group", node.name());
        node.pull(&format!("{registry}/{image}:1")).await?;
    }
    let counts = lab.upstream.counts();
    let prefix = format!("/v2/{image}/");
    let asked: Vec<_> = counts.all().iter().filter(|asked| asked.path.starts_with(&prefix)).collect();
    let by_nodes = asked.iter().filter(|asked| cluster.is_node(asked.client)).count();
    let by_cache = asked.iter().filter(|asked| is_cache(cluster, asked.client)).count();
    ensure!(by_nodes == 0 && by_cache > 0, "the upstream was asked by nodes {by_nodes}, by the cache {by_cache} times");
    Ok(())
}

/// The server has a hosted repository, so its deletion waits, and it goes on serving.
async fn deletion_is_held(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "cacheserver", SERVER, "--wait=false"]).await?;
    let reason = "--for=jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}=HoldsHostedContent";
    cluster.kubectl(&["wait", &format!("cacheserver/{SERVER}"), reason, TOLD]).await?;
    let found = cluster.get(&format!("{KINDS}/cacheservers/{SERVER}")).await?;
    let message = condition(&found, "Ready")["message"].as_str().unwrap_or_default().to_owned();
    let words = [TEAM_HOSTED.0, "kubectl annotate cacheserver teams entrepot.dev/confirm-delete=teams"];
    ensure!(words.iter().all(|word| message.contains(word)), "the message must say {words:?}: {message}");
    println!("       told: {message}");
    inventory::cache_address(cluster, SERVER).await.map(drop)
}

async fn clean_up_team(cluster: &Cluster) -> Result<()> {
    let confirm = format!("entrepot.dev/confirm-delete={SERVER}");
    let server = format!("cacheserver/{SERVER}");
    if cluster.kubectl(&["get", &server, "--ignore-not-found", "--output=name"]).await?.trim().is_empty() {
        return Ok(());
    }
    cluster.kubectl(&["annotate", &server, &confirm, "--overwrite"]).await?;
    cluster.kubectl(&["delete", &server, "--ignore-not-found", "--timeout=2m"]).await?;
    let names = [
        format!("repositorygroup/{}", TEAM.0),
        format!("hostedrepository/{}", TEAM_HOSTED.0),
        format!("registrymirror/{TEAM_MIRROR}"),
    ];
    delete(cluster, &names).await?;
    // Other cases count the pods of cache servers.
    cluster
        .until("the team's cache server is gone", SERVED_LIMIT, async || {
            let label = format!("app.kubernetes.io/name=cache-server,app.kubernetes.io/instance={SERVER}");
            Ok(cluster.pods(inventory::SYSTEM, &label).await?.is_empty())
        })
        .await
}

#[expect(clippy::needless_pass_by_value, reason = "callers write the value in place")]
fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn group(name: &str, spec: Value) -> Value {
    object("RepositoryGroup", name, spec)
}

fn hosted(name: &str, spec: Value) -> Value {
    object("HostedRepository", name, spec)
}

async fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()).await.map(drop)
}

async fn delete(cluster: &Cluster, names: &[String]) -> Result<()> {
    for name in names {
        cluster.kubectl(&["delete", name, "--ignore-not-found", "--timeout=2m"]).await?;
    }
    Ok(())
}

/// Waits until an object, `kind/name`, is served as it is written.
async fn ready(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["wait", name, "--for=condition=Ready", TOLD]).await.map(drop)
}

/// Waits until a group's status has this reason, and asserts what its message says.
async fn told(cluster: &Cluster, name: &str, reason: &str, words: &[&str]) -> Result<()> {
    let wanted = format!("--for=jsonpath={{.status.conditions[?(@.type==\"Ready\")].reason}}={reason}");
    cluster.kubectl(&["wait", &format!("repositorygroup/{name}"), &wanted, TOLD]).await?;
    let found = cluster.get(&format!("{KINDS}/repositorygroups/{name}")).await?;
    let ready = condition(&found, "Ready");
    let message = ready["message"].as_str().unwrap_or_default();
    ensure!(ready["status"] == "False", "{name} is {ready}");
    ensure!(words.iter().all(|word| message.contains(word)), "the message must say {words:?}: {message}");
    println!("       told: {message}");
    Ok(())
}

/// Pulls a manifest of Docker Hub through the group's path, as soon as the cache server has the group.
async fn serves(cluster: &Cluster, group: &str) -> Result<()> {
    let address = inventory::cache_address(cluster, "default").await?;
    let url = format!("https://{address}:5000/repository/{group}/v2/library/nginx/manifests/latest");
    answers(cluster, &url, StatusCode::OK).await
}

/// Asks until this is the answer.
async fn answers(cluster: &Cluster, url: &str, status: StatusCode) -> Result<()> {
    let client = client()?;
    cluster
        .until(&format!("GET {url} is answered by {status}"), TOLD_LIMIT, async || {
            let answer = client.get(url).header("Accept", ACCEPT).send().await?;
            ensure!(answer.status() == status, "{}", answer.status());
            Ok(true)
        })
        .await
}

/// What a runtime accepts.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER_LIMIT)
        // The pod's own address is in no certificate; that nodes trust it is what other cases show.
        .tls_danger_accept_invalid_certs(true)
        .build()
        .context("cannot make a client of the cache")
}
