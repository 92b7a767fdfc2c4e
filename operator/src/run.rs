//! The life of `operator run`: wait for the Lease, watch, reconcile, give the Lease back. May import what it joins.

use std::{sync::Arc, time::Instant};

use kube::{
    Client,
    runtime::{events::Recorder, reflector::store::WriterDropped},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    apply::{self, FIELD_MANAGER, Writer},
    causes::chain,
    cluster::Cluster,
    controllers::{self, Context, default_server},
    issuer::Issuer,
    leader::Leader,
    metrics::{self, Metrics},
    observe::{Observations, observe},
    settings::Settings,
};

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No apiserver is known.
    #[error("failed to find the apiserver; run in a pod, or set KUBECONFIG")]
    Client(#[source] Box<kube::Error>),
    /// The port of the metrics cannot be had.
    #[error("failed to listen for /livez, /readyz and /metrics")]
    Metrics(#[source] std::io::Error),
    /// Signals cannot be caught.
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
    /// A watch ended for good.
    #[error("a watch ended")]
    Watch(#[source] WriterDropped),
    /// Someone else leads now, or the apiserver does not answer.
    #[error("the leader Lease is lost; another process may lead now")]
    LeaseLost,
    /// The default server could not be made.
    #[error("failed to make the default CacheServer")]
    DefaultServer(#[source] apply::Error),
}

/// Runs until SIGTERM or SIGINT, or until the Lease is lost.
pub async fn run(settings: Settings) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    metrics::serve(settings.metrics, Arc::clone(&metrics)).await.map_err(Error::Metrics)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let client = Client::try_default().await.map_err(|error| Error::Client(Box::new(error)))?;
    let identity = identity(&settings);
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stopped);
    tracing::info!(identity, "waiting for the leader Lease");
    let leader = tokio::select! {
        leader = Leader::acquire(&client, &settings.namespace, &identity) => leader,
        () = &mut stopped => return Ok(()),
    };
    metrics.leads();
    tracing::info!(identity, "leading");
    let outcome = tokio::select! {
        outcome = lead(client, settings, metrics) => outcome,
        () = leader.keep() => return Err(Error::LeaseLost),
        () = &mut stopped => Ok(()),
    };
    leader.release().await;
    outcome
}

async fn lead(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Result<(), Error> {
    let changes = watch::Sender::new(0);
    let cluster = Cluster::watch(&client, &settings, &changes);
    cluster.ready().await.map_err(Error::Watch)?;
    let observations = Observations::new(changes);
    tokio::spawn(observe(cluster.clone(), observations.clone(), settings.status_port));
    let context = Context {
        writer: Writer::new(client.clone(), cluster.changes(), Arc::clone(&metrics)),
        issuer: Issuer::new(client.clone()),
        recorder: Recorder::new(client, FIELD_MANAGER.into()),
        settings,
        cluster,
        observations,
        metrics,
        began: Instant::now(),
    };
    if let Err(error) = default_server::ensure(&context).await {
        if !error.is_refusal() {
            return Err(Error::DefaultServer(error));
        }
        tracing::error!(error = %chain(&error), "the default CacheServer is refused; correct its values in the chart");
    }
    controllers::run(&context).await;
    Ok(())
}

/// The pod's name, so that a restarted container goes on with the Lease it has. Outside of a pod: a name of this process.
fn identity(settings: &Settings) -> String {
    settings.identity.clone().unwrap_or_else(|| {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return host;
        }
        let now = jiff::Timestamp::now().as_nanosecond();
        let sign = crate::sign::hash(&serde_json::json!([host, std::process::id(), now.to_string()]));
        format!("{host}_{}", &sign[..8])
    })
}
