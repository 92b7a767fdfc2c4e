//! A password is used, rightly and wrongly, and then looked for wherever it must not be.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::json;

use crate::cluster::inventory::{self, NODE, SYSTEM};
use crate::cluster::{Cluster, ClusterWorld};
use crate::upstream::sites::{BASIC, HUB};
use crate::upstream::users::{ALICE, CAROL};

/// A password that the upstream refuses.
const REFUSED: &str = "canary-refused-90be";
/// The mirrors with credentials, each with a Secret of its name: host, login, password, and the condition's status.
const MIRRORS: [(&str, &str, &str, &str, &str); 2] = [
    ("secrecy-good", HUB, ALICE.name, ALICE.password, "True"),
    ("secrecy-refused", BASIC, CAROL.name, REFUSED, "False"),
];
/// How long until the upstreams have been asked.
const ASKED_LIMIT: Duration = Duration::from_secs(30);
/// The end of a base64 text depends on what follows; so many of its characters do not.
const SURE: usize = 16;

/// The case.
pub(super) async fn is_kept(world: &ClusterWorld) -> Result<()> {
    let found = async {
        use_passwords(world).await?;
        search(&world.cluster).await
    }
    .await;
    for (name, ..) in MIRRORS {
        world.cluster.kubectl(&["delete", "registrymirror", name, "--ignore-not-found", "--timeout=60s"]).await?;
        world.cluster.kubectl(&["delete", "secret", name, "--namespace", SYSTEM, "--ignore-not-found"]).await?;
    }
    found
}

async fn use_passwords(ClusterWorld { world, cluster }: &ClusterWorld) -> Result<()> {
    for (name, host, login, password, _) in MIRRORS {
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": SYSTEM},
            "stringData": {"username": login, "password": password},
        });
        // Not `apply`, which would keep the password in an annotation.
        cluster.client().kubectl_with_input(&["create", "-f", "-"], &secret.to_string()).await?;
        let mirror = json!({
            "apiVersion": "entrepot.dev/v1alpha1",
            "kind": "RegistryMirror",
            "metadata": {"name": name},
            "spec": {"anonymousPull": true, "upstream": {
                "registry": format!("{name}.registry.test"),
                "url": format!("https://{host}"),
                "caBundle": world.upstream.ca_pem(),
                "credentialsSecretRef": {"name": name},
            }},
        });
        cluster.apply(&mirror.to_string()).await?;
    }
    for (name, .., status) in MIRRORS {
        cluster
            .until(&format!("{name} has asked its upstream"), ASKED_LIMIT, async || {
                let mirror = inventory::mirror(cluster, name).await?.context("the mirror is gone")?;
                let condition = inventory::condition(&mirror, "UpstreamReachable");
                ensure!(condition.is_some_and(|found| found["status"] == status), "its status is {}", mirror["status"]);
                Ok(true)
            })
            .await?;
    }
    // Someone pulls, too: answers and what is logged of them come from another place than what the operator asks.
    let address = inventory::cache_address(cluster, "default").await?;
    let client = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true).build()?;
    for (name, ..) in MIRRORS {
        let url = format!("https://{address}:5000/repository/{name}/v2/library/nginx/manifests/latest");
        let answer = client.get(url).header("Accept", "*/*").send().await.context("the cache does not answer")?;
        let told = format!("{:?} {}", answer.headers().clone(), answer.text().await?);
        clean(&format!("the answer of {name}"), &told)?;
    }
    Ok(())
}

async fn search(cluster: &Cluster) -> Result<()> {
    for question in [
        "registrymirrors,cacheservers,nodemirrors,pods,deployments,daemonsets,replicasets,services,configmaps,\
         persistentvolumeclaims,serviceaccounts,leases,jobs",
        "events.events.k8s.io",
    ] {
        let told = cluster.kubectl(&["get", question, "--all-namespaces", "--output=yaml"]).await?;
        ensure!(told.contains("entrepot"), "nothing of ours is in `kubectl get {question}`");
        clean(question, &told)?;
    }
    for namespace in [SYSTEM, NODE] {
        for pod in inventory::items(cluster, &format!("/api/v1/namespaces/{namespace}/pods")).await? {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            // A pod that has just gone has no log any more.
            let told = cluster.kubectl(&["logs", name, "--namespace", namespace, "--all-containers"]).await;
            clean(&format!("the log of {name}"), &told.unwrap_or_default())?;
        }
    }
    let address = inventory::cache_address(cluster, "default").await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    for page in ["metrics", "status"] {
        let told = client.get(format!("http://{address}:9090/{page}")).send().await?.error_for_status()?.text().await?;
        clean(page, &told)?;
    }
    clean("the audit log", &fs::read_to_string(cluster.folder().join("audit.log"))?)?;
    processes()
}

/// What every process was started with, those of pods too: ours is an ancestor of their namespaces.
fn processes() -> Result<()> {
    let mut seen = 0;
    for entry in fs::read_dir("/proc").context("cannot list the processes")? {
        let folder = entry?.path();
        for file in ["cmdline", "environ"] {
            // Whoever ends meanwhile, and what is no process, has none.
            let Ok(text) = fs::read(folder.join(file)) else { continue };
            seen += 1;
            clean(&folder.join(file).display().to_string(), &String::from_utf8_lossy(&text))?;
        }
    }
    ensure!(seen > 0, "no process was seen");
    Ok(())
}

fn clean(place: &str, text: &str) -> Result<()> {
    let found = MIRRORS
        .iter()
        .find(|(_, _, login, password, _)| disguises(login, password).iter().any(|one| text.contains(one)));
    ensure!(found.is_none(), "{place} shows the password of {}", found.map_or("nobody", |(name, ..)| name));
    Ok(())
}

/// The password as it is, in base64, and as the header of basic authentication has it.
fn disguises(login: &str, password: &str) -> [String; 3] {
    let sure = |text: &str| {
        let encoded = STANDARD_NO_PAD.encode(text);
        encoded[..encoded.len().min(SURE)].to_owned()
    };
    [password.to_owned(), sure(password), STANDARD.encode(format!("{login}:{password}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found_in_every_disguise() {
        for text in [
            ALICE.password.to_owned(),
            format!("data: {}", STANDARD.encode(ALICE.password)),
            format!("Basic {}", STANDARD.encode(format!("{}:{}", ALICE.name, ALICE.password))),
        ] {
            assert!(clean("here", &text).is_err(), "{text}");
        }
        assert!(clean("here", "canary:probe.entrepot.invalid").is_ok());
    }
}
