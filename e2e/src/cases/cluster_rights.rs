//! Nobody can do more than its work takes: the agents' tokens, the pods of the namespaces, the roles; and no password is
//! to be found anywhere but in Secrets.
//!
//! In reading order: [`granted`] (roles, rule by rule), [`secrecy`] (where a password must not be), the cases.
//!
//! [`last`] uninstalls the product, so it belongs behind every other case. The others leave everything as they found it.

mod granted;
mod secrecy;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::{Value, json};

use crate::cluster::bearer::Bearer;
use crate::cluster::inventory::{self, KINDS, NODE, SYSTEM};
use crate::cluster::runtime::PAUSE;
use crate::cluster::{Cluster, ClusterWorld, demonstration, trail};
use crate::suite::ClusterCase;

/// The release.
const RELEASE: &str = "entrepot";
/// How long the operator may take to act on a `CacheServer`.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// How long until the operator, or the agents' namespace, has gone.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// The cases of this file, but for [`last`].
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        ClusterCase::new("cluster rights: an agent's token changes its own node's status and nothing else", |world| {
            Box::pin(agents_token(&world.cluster))
        }),
        ClusterCase::new("cluster rights: operator and caches live where only restricted pods may", |world| {
            Box::pin(restricted(&world.cluster))
        }),
        ClusterCase::new("cluster rights: no role grants what leads to more", |world| {
            Box::pin(capture(&world.cluster))
        }),
        ClusterCase::new("cluster rights: a password is found in Secrets alone", |world| {
            Box::pin(secrecy::is_kept(world))
        }),
    ]
}

/// The case behind all others: uninstalls the product and compares what was granted with what was used in the whole run.
#[must_use]
pub fn last() -> ClusterCase {
    ClusterCase::new("cluster rights: what was granted was used", |world| Box::pin(granted_is_used(world)))
}

async fn agents_token(cluster: &Cluster) -> Result<()> {
    let pod = inventory::agent(cluster, "node1").await?;
    let account = pod["spec"]["serviceAccountName"].as_str().context("the agent has no ServiceAccount")?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let bound = Bearer::new(cluster, inventory::token(cluster, NODE, account, Some(name)).await?)?;
    let unbound = Bearer::new(cluster, inventory::token(cluster, NODE, account, None).await?)?;

    let status = |node: &str| format!("{KINDS}/nodemirrors/{node}/status?dryRun=All");
    let change = json!({"status": {"runtime": {"name": "containerd", "version": "0.0"}}});
    patches(&bound, &status("node1"), &change, 200, "0.0").await?;
    patches(&bound, &status("node2"), &change, 403, "must only change the NodeMirror of that name, not node2").await?;
    patches(&unbound, &status("node1"), &change, 403, "must use the token of its pod").await?;
    let spec = json!({"spec": {"entries": []}});
    patches(&bound, &format!("{KINDS}/nodemirrors/node1?dryRun=All"), &spec, 403, "forbidden").await?;
    patches(&bound, &format!("{KINDS}/nodemirrors/node2?dryRun=All"), &spec, 403, "forbidden").await?;

    reads_no_secret(cluster, &bound).await?;
    for namespace in namespaces(cluster).await? {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let answer = bound.write(Method::POST, &path, "application/json", pause().to_string()).await?;
        ensure!(answer.status == 403, "POST {path}: {} {}", answer.status, answer.text);
    }
    Ok(())
}

async fn patches(bearer: &Bearer, path: &str, change: &Value, status: u16, part: &str) -> Result<()> {
    let answer = bearer.write(Method::PATCH, path, "application/merge-patch+json", change.to_string()).await?;
    let as_wanted = answer.status == status && answer.text.contains(part);
    ensure!(as_wanted, "PATCH {path} must be {status} with {part:?}, was {} {}", answer.status, answer.text);
    Ok(())
}

/// Neither a list of Secrets nor any that there is.
async fn reads_no_secret(cluster: &Cluster, bearer: &Bearer) -> Result<()> {
    let mut paths = vec!["/api/v1/secrets".to_owned()];
    paths.extend(namespaces(cluster).await?.iter().map(|name| format!("/api/v1/namespaces/{name}/secrets")));
    let secrets = inventory::items(cluster, "/api/v1/secrets").await?;
    ensure!(!secrets.is_empty(), "there is no Secret to be read");
    paths.extend(secrets.iter().map(|secret| {
        let text = |field: &str| secret["metadata"][field].as_str().unwrap_or_default();
        format!("/api/v1/namespaces/{}/secrets/{}", text("namespace"), text("name"))
    }));
    for path in paths {
        let answer = bearer.ask(Method::GET, &path).await?;
        ensure!(answer.status == 403, "GET {path} must be 403, was {}", answer.status);
    }
    Ok(())
}

async fn namespaces(cluster: &Cluster) -> Result<Vec<String>> {
    let all = inventory::items(cluster, "/api/v1/namespaces").await?;
    Ok(all.iter().filter_map(|namespace| namespace["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

fn pause() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one-more"},
        "spec": {"containers": [{"name": "pause", "image": PAUSE}]},
    })
}

async fn restricted(cluster: &Cluster) -> Result<()> {
    let operator = inventory::operator(cluster).await?;
    let mut homes: BTreeSet<String> = [namespace_of(&operator)].into();
    let servers = "/apis/apps/v1/deployments?labelSelector=app.kubernetes.io%2Fname%3Dcache-server";
    let servers = inventory::items(cluster, servers).await?;
    ensure!(!servers.is_empty(), "there is no cache server");
    homes.extend(servers.iter().map(namespace_of));
    for namespace in &homes {
        let labels = &cluster.get(&format!("/api/v1/namespaces/{namespace}")).await?["metadata"]["labels"];
        let level = &labels["pod-security.kubernetes.io/enforce"];
        ensure!(level == "restricted", "the namespace {namespace} enforces {level}");
        let image = format!("--image={PAUSE}");
        let words =
            ["run", "privileged", &image, "--privileged", "--namespace", namespace.as_str(), "--dry-run=server"];
        match cluster.kubectl(&words).await {
            Ok(taken) => bail!("{namespace} takes a privileged pod: {taken}"),
            Err(error) => {
                let complaint = format!("{error:#}");
                ensure!(complaint.contains("violates PodSecurity \"restricted"), "{complaint}");
            }
        }
    }
    Ok(())
}

fn namespace_of(object: &Value) -> String {
    object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned()
}

/// Writes down what is granted now, for [`last`], and refuses grants that lead to more.
pub async fn capture(cluster: &Cluster) -> Result<()> {
    let grants = granted::now(cluster, RELEASE, SYSTEM).await?;
    granted::keep(cluster, &grants)?;
    let dangerous: Vec<_> = grants.iter().filter_map(|grant| Some((grant.leads_to_more()?, grant))).collect();
    ensure!(dangerous.is_empty(), "these lead to more: {dangerous:#?}");
    println!("       {} rights are granted", grants.len());
    Ok(())
}

async fn granted_is_used(world: &ClusterWorld) -> Result<()> {
    let cluster = &world.cluster;
    // The case before removed it; the objects stayed, so everything comes back by itself.
    cluster
        .until("the agents' namespace is gone", STOP_LIMIT, async || {
            Ok(!namespaces(cluster).await?.iter().any(|name| name == NODE))
        })
        .await?;
    // What is right of mirrors was shown; one whose files on the nodes are someone else's would keep `helm test` waiting.
    cluster.kubectl(&["delete", "registrymirrors", "--all", "--timeout=60s"]).await?;
    demonstration::install(cluster).await?;
    demonstration::mirror_docker_hub(world).await?;
    group_for_nodes(cluster).await?;
    capture(cluster).await?;
    cluster.helm(&["test", RELEASE, "--namespace", SYSTEM]).await?;
    switch_managed_tls_off(cluster).await?;
    leave_a_mess(cluster).await?;
    cluster.helm(&["uninstall", RELEASE, "--namespace", SYSTEM, "--timeout", "6m"]).await?;
    let grants = granted::kept(cluster)?;
    let events = trail::since(cluster, trail::BEGINNING)?;
    let uses: Vec<_> = events.iter().filter_map(granted::Use::of).collect();
    let unused: Vec<_> = grants.iter().filter(|grant| !uses.iter().any(|one| grant.allows(one))).collect();
    ensure!(unused.is_empty(), "of {} rights these were never used: {unused:#?}", grants.len());
    Ok(())
}

/// A group whose files are on the nodes, and a hosted repository in it: there are rights for each kind.
async fn group_for_nodes(cluster: &Cluster) -> Result<()> {
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let group = json!({"members": ["own", "docker-hub"], "nodes": {"registries": ["own.registry.test"]}});
    cluster.apply(&object("HostedRepository", "own", json!({})).to_string()).await?;
    cluster.apply(&object("RepositoryGroup", "everything", group).to_string()).await?;
    let wait = ["wait", "hostedrepository/own", "repositorygroup/everything", "--for=condition=Ready", "--timeout=60s"];
    cluster.kubectl(&wait).await.map(drop)
}

/// The one change that takes the right to delete a Secret: the key of a server's own CA goes when nobody needs it any more.
async fn switch_managed_tls_off(cluster: &Cluster) -> Result<()> {
    let name = "plain";
    let server = |mode: &str| {
        json!({
            "apiVersion": "entrepot.dev/v1alpha1",
            "kind": "CacheServer",
            "metadata": {"name": name},
            // No pod of it is to run.
            "spec": {"storage": {"emptyDir": {}}, "nodeSelector": {"no-node": "has-this"}, "tls": {"mode": mode}},
        })
    };
    let path = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let has_key = async || {
        let secrets = inventory::items(cluster, &path).await?;
        anyhow::Ok(secrets.iter().any(|secret| secret["metadata"]["name"] == format!("cache-{name}-ca")))
    };
    cluster.apply(&server("Managed").to_string()).await?;
    cluster.until("a server has a CA of its own", CHANGE_LIMIT, async || has_key().await).await?;
    cluster.apply(&server("Disabled").to_string()).await?;
    cluster.until("the CA's key is gone", CHANGE_LIMIT, async || Ok(!has_key().await?)).await?;
    cluster.kubectl(&["delete", "cacheserver", name, "--timeout=60s"]).await.map(drop)
}

/// What an operator that died badly leaves: no Lease, and a pod that was to verify a node. Cleaning up takes rights of its own.
async fn leave_a_mess(cluster: &Cluster) -> Result<()> {
    let operator = inventory::operator(cluster).await?;
    let name = operator["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    cluster.kubectl(&["scale", "deployment", &name, "--replicas=0", "--namespace", SYSTEM]).await?;
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases");
    cluster
        .until("the operator has gone", STOP_LIMIT, async || {
            let lives = inventory::lives(cluster).await?;
            Ok(!lives.iter().any(|life| life.name.starts_with(&format!("{SYSTEM}/{name}-"))))
        })
        .await?;
    for lease in inventory::items(cluster, &lease).await? {
        let name = lease["metadata"]["name"].as_str().unwrap_or_default();
        cluster.kubectl(&["delete", "lease", name, "--namespace", SYSTEM]).await?;
    }
    let mut pod = pause();
    pod["metadata"] = json!({"name": "canary-left", "namespace": NODE, "labels": {
        "app.kubernetes.io/name": "canary",
        "app.kubernetes.io/managed-by": "entrepot-operator",
        "app.kubernetes.io/part-of": "entrepot",
    }});
    cluster.apply(&pod.to_string()).await.map(drop)
}
