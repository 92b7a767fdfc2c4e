//! The mirror of Docker Hub, asked for a manifest all the time: it must not notice what happens to another mirror.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::cluster::inventory;

/// The mirror that is asked.
pub(super) const NAME: &str = "docker-hub";
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// What a runtime would wait at most before it turned to the next host.
const PATIENCE: Duration = Duration::from_secs(5);
/// A manifest that the mirror has, or gets at its first question.
const MANIFEST: &str = "/repository/docker-hub/v2/library/nginx/manifests/latest";

/// The questions, under way.
#[derive(Debug)]
pub(super) struct Bystander {
    stop: Stop,
    asking: JoinHandle<Answers>,
    /// The object's `resourceVersion`, which a change of its status would move.
    version: String,
}

/// Ends the questions when it is dropped.
#[derive(Debug)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Answers {
    good: usize,
    bad: Vec<String>,
}

impl Bystander {
    /// Begins to ask.
    pub(super) async fn start(cluster: &Cluster) -> Result<Self> {
        let address = inventory::cache_address(cluster, "default").await?;
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let asking = tokio::spawn(ask(client()?, address, Arc::clone(&stop.0)));
        Ok(Self { stop, asking, version: version(cluster).await? })
    }

    /// Stops and judges.
    pub(super) async fn finish(self, cluster: &Cluster) -> Result<()> {
        drop(self.stop);
        let Answers { good, bad } = self.asking.await.context("the bystander fell over")?;
        ensure!(bad.is_empty(), "the mirror {NAME} failed {} times, {good} times it did not: {bad:?}", bad.len());
        ensure!(good > 0, "the mirror {NAME} was not asked once");
        let version = version(cluster).await?;
        ensure!(version == self.version, "the mirror {NAME} was written to: {} became {version}", self.version);
        Ok(())
    }
}

async fn version(cluster: &Cluster) -> Result<String> {
    let mirror = inventory::mirror(cluster, NAME).await?.with_context(|| format!("there is no mirror {NAME}"))?;
    Ok(mirror["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
}

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        // The pod's own address is in no certificate; that nodes trust it is what other cases show.
        .tls_danger_accept_invalid_certs(true)
        .build()
        .context("cannot make a client of the cache")
}

async fn ask(client: reqwest::Client, address: IpAddr, stop: Arc<AtomicBool>) -> Answers {
    let mut answers = Answers::default();
    let url = format!("https://{address}:5000{MANIFEST}");
    let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    while !stop.load(Ordering::Relaxed) {
        match client.get(&url).header("Accept", accept).send().await {
            Ok(answer) if answer.status().is_success() => match answer.bytes().await {
                Ok(_) => answers.good += 1,
                Err(error) => answers.bad.push(format!("{error:#}")),
            },
            Ok(answer) => answers.bad.push(answer.status().to_string()),
            Err(error) => answers.bad.push(format!("{error:#}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
    answers
}
