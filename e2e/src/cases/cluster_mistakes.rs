//! Mistakes of an administrator: each is told where `kubectl describe` shows it, with the cure; the cure works within
//! seconds and without a restart; the other mirrors never notice. What one object can show to be wrong is refused at once.
//!
//! In reading order: [`bystander`] (a mirror that must not notice), [`told`] (what is asserted of a message), the cases,
//! [`illegal`] (objects that no apiserver may take).

mod bystander;
mod illegal;
mod told;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::bystander::Bystander;
use self::told::{Told, UPSTREAM_REACHABLE};
use crate::cluster::inventory::{self, SYSTEM};
use crate::cluster::{Cluster, ClusterWorld};
use crate::lab::SPARE_UPSTREAMS;
use crate::suite::ClusterCase;
use crate::upstream::sites::{BASIC, spare};
use crate::upstream::users::CAROL;

/// From a mistake, or its cure, to a status that says so: 10 s from an object to what is served, and 15 s between two looks at an
/// upstream that was bad.
const TOLD_LIMIT: Duration = Duration::from_mins(1);
/// How long until an object that was deleted is gone.
const GONE_LIMIT: Duration = Duration::from_secs(30);
/// The Secret of the mistakes.
const SECRET: &str = "basic-account";
/// The mirror of the mistakes.
const MIRROR: &str = "mistaken";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<ClusterCase> {
    vec![
        ClusterCase::new("cluster mistakes: a wrong Secret is told and its cure heals", |world| {
            Box::pin(beside_a_bystander(world, secret(world)))
        }),
        ClusterCase::new("cluster mistakes: an upstream out of reach is told and heals", |world| {
            Box::pin(beside_a_bystander(world, upstream(world)))
        }),
        ClusterCase::new("cluster mistakes: a registry that is taken is told and its cure heals", |world| {
            Box::pin(beside_a_bystander(world, clash(world)))
        }),
        ClusterCase::new("cluster mistakes: an unknown server is told and its cure heals", |world| {
            Box::pin(beside_a_bystander(world, unknown_server(world)))
        }),
        ClusterCase::new("cluster mistakes: illegal objects are refused with a sentence that helps", |world| {
            Box::pin(beside_a_bystander(world, illegal::all_are_refused(&world.cluster)))
        }),
    ]
}

/// Makes a mistake and its cure while a bystander is asked all the time; no pod may restart, and nothing stays behind.
async fn beside_a_bystander(
    ClusterWorld { cluster, .. }: &ClusterWorld,
    mistake: impl Future<Output = Result<()>>,
) -> Result<()> {
    let lives = inventory::lives(cluster).await?;
    let bystander = Bystander::start(cluster).await?;
    let made = mistake.await;
    let cleaned = clean(cluster).await;
    let unharmed = bystander.finish(cluster).await;
    made?;
    cleaned?;
    unharmed?;
    // What a case started may still be going; a restart would not be undone.
    cluster
        .until("the pods are those from before", GONE_LIMIT, async || {
            let after = inventory::lives(cluster).await?;
            ensure!(lives == after, "before: {lives:#?}, after: {after:#?}");
            Ok(true)
        })
        .await
}

async fn secret(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    let ca = world.upstream.ca_pem();
    let mut spec = json!({
        "anonymousPull": true,
        "upstream": {"url": format!("https://{BASIC}"), "caBundle": ca, "credentialsSecretRef": {"name": SECRET}},
    });
    // So that a wrong password is not remembered for longer than a case lasts.
    spec["freshness"] = json!({"denied": "1s"});
    apply_mirror(cluster, &spec).await?;
    told::by_describe(cluster, MIRROR, &Told::MISSING_SECRET, TOLD_LIMIT).await?;

    apply_secret(cluster, &json!({"user": CAROL.name, "pass": CAROL.password})).await?;
    told::by_describe(cluster, MIRROR, &Told::WRONG_KEYS, TOLD_LIMIT).await?;

    apply_secret(cluster, &json!({"username": CAROL.name, "password": "not-hers"})).await?;
    told::by_describe(cluster, MIRROR, &Told::WRONG_PASSWORD, TOLD_LIMIT).await?;

    apply_secret(cluster, &json!({"username": CAROL.name, "password": CAROL.password})).await?;
    healthy(cluster, TOLD_LIMIT).await
}

async fn upstream(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    let address = SPARE_UPSTREAMS[6];
    let spec = json!({"upstream": {
        "url": format!("https://{}", spare(address)),
        "caBundle": world.upstream.ca_pem(),
        // Otherwise the breaker, not the case, would decide when the upstream is asked.
        "breaker": {"minOpen": "1s", "maxOpen": "1s"},
    }});
    world.lab.refuse(address)?;
    let told = async {
        apply_mirror(cluster, &spec).await?;
        told::by_describe(cluster, MIRROR, &Told::OUT_OF_REACH, TOLD_LIMIT).await
    }
    .await;
    world.lab.reopen(address)?;
    told?;
    healthy(cluster, TOLD_LIMIT).await
}

async fn clash(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    let upstream = |registry: &str| {
        json!({"upstream": {
            "registry": registry,
            "url": format!("https://{}", spare(SPARE_UPSTREAMS[7])),
            "caBundle": world.upstream.ca_pem(),
        }})
    };
    apply_mirror(cluster, &upstream("docker.io")).await?;
    told::by_describe(cluster, MIRROR, &Told::REGISTRY_TAKEN, TOLD_LIMIT).await?;
    apply_mirror(cluster, &upstream("other.registry.test")).await?;
    healthy(cluster, TOLD_LIMIT).await
}

async fn unknown_server(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    let on = |server: &str| {
        json!({"server": server, "upstream": {
            "url": format!("https://{}", spare(SPARE_UPSTREAMS[7])),
            "caBundle": world.upstream.ca_pem(),
        }})
    };
    apply_mirror(cluster, &on("nowhere")).await?;
    told::by_describe(cluster, MIRROR, &Told::UNKNOWN_SERVER, TOLD_LIMIT).await?;
    apply_mirror(cluster, &on("default")).await?;
    healthy(cluster, TOLD_LIMIT).await
}

async fn apply_mirror(cluster: &Cluster, spec: &Value) -> Result<()> {
    let mirror = json!({
        "apiVersion": "entrepot.dev/v1alpha1",
        "kind": "RegistryMirror",
        "metadata": {"name": MIRROR},
        "spec": spec,
    });
    cluster.apply(&mirror.to_string()).await.map(drop)
}

async fn apply_secret(cluster: &Cluster, data: &Value) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": SYSTEM},
        "stringData": data,
    });
    // Not `apply`: what was there before shall go, and no annotation shall keep a password.
    cluster.kubectl(&["delete", "secret", SECRET, "--namespace", SYSTEM, "--ignore-not-found"]).await?;
    cluster.client().kubectl_with_input(&["create", "-f", "-"], &secret.to_string()).await.map(drop)
}

/// Waits until the mirror is served as it is written and its upstream answers.
async fn healthy(cluster: &Cluster, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    cluster
        .until("the mirror is ready and its upstream reachable", limit, async || {
            let mirror = inventory::mirror(cluster, MIRROR).await?.context("the mirror is gone")?;
            let is_true = |kind| inventory::condition(&mirror, kind).is_some_and(|found| found["status"] == "True");
            if inventory::is_observed(&mirror) && is_true("Ready") && is_true(UPSTREAM_REACHABLE) {
                return Ok(true);
            }
            bail!("its status is {}", mirror["status"])
        })
        .await?;
    println!("       healed after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Removes what the mistakes were made of.
async fn clean(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "registrymirror", MIRROR, "--ignore-not-found", "--wait=false"]).await?;
    cluster.kubectl(&["delete", "secret", SECRET, "--namespace", SYSTEM, "--ignore-not-found"]).await?;
    cluster
        .until("the mistaken mirror is gone", GONE_LIMIT, async || {
            Ok(inventory::mirror(cluster, MIRROR).await?.is_none())
        })
        .await
}
