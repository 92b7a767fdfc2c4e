//! The operator as a process of this machine: the same program, environment and rights as in its Deployment, but it can be
//! killed at any moment and is back at once. Its way to the apiserver is a [`CrashProxy`].

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::crash_proxy::CrashProxy;
use crate::cluster::inventory::{self, SYSTEM};
use crate::cluster::{Cluster, ClusterWorld};
use crate::lab::{Process, process};
use crate::package;

/// How it calls itself in the Lease: always the same, so that its own Lease never keeps it waiting.
const IDENTITY: &str = "crash";
/// Its own port, beside that of the Deployment's pods.
const METRICS: &str = "127.0.0.1:9191";
/// How long the Deployment may take to stop and to start.
const SCALE_LIMIT: Duration = Duration::from_mins(2);
/// How long the process may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What the operator is in the cluster.
#[derive(Debug)]
pub(super) struct Account {
    /// `NAMESPACE/NAME` of its `ServiceAccount`.
    pub(super) name: String,
    deployment: String,
    replicas: u64,
    environment: Vec<(String, String)>,
}

/// Stops the operator's Deployment, so that another process can stand in for it.
pub(super) async fn stand_in(cluster: &Cluster) -> Result<Account> {
    let deployment = inventory::operator(cluster).await?;
    let pod = &deployment["spec"]["template"]["spec"];
    let name = deployment["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let service_account = pod["serviceAccountName"].as_str().context("the operator has no ServiceAccount")?;
    let account = Account {
        name: format!("{SYSTEM}/{service_account}"),
        deployment: name,
        replicas: deployment["spec"]["replicas"].as_u64().unwrap_or(1),
        environment: environment(&pod["containers"][0]["env"])?,
    };
    scale(cluster, &account.deployment, 0).await?;
    Ok(account)
}

/// Starts the Deployment again.
pub(super) async fn stand_back(cluster: &Cluster, account: &Account) -> Result<()> {
    scale(cluster, &account.deployment, account.replicas).await
}

/// The environment of the Deployment's container.
fn environment(list: &Value) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for variable in list.as_array().context("the operator has no environment")? {
        let name = variable["name"].as_str().unwrap_or_default();
        let value = match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
            (Some(value), _) => value,
            (None, Some("metadata.namespace")) => SYSTEM,
            _ => bail!("the operator's {name} comes from somewhere that this case does not know: {variable}"),
        };
        variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(variables)
}

async fn scale(cluster: &Cluster, deployment: &str, replicas: u64) -> Result<()> {
    let count = format!("--replicas={replicas}");
    cluster.kubectl(&["scale", "deployment", deployment, &count, "--namespace", SYSTEM]).await?;
    let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/deployments/{deployment}");
    let prefix = format!("{SYSTEM}/{deployment}-");
    cluster
        .until(&format!("{deployment} has {replicas} pods"), SCALE_LIMIT, async || {
            let status = &cluster.get(&path).await?["status"];
            let ready = status["readyReplicas"].as_u64().unwrap_or_default() == replicas;
            let lives = inventory::lives(cluster).await?;
            let there = lives.iter().filter(|life| life.name.starts_with(&prefix)).count();
            Ok(ready && u64::try_from(there)? == replicas)
        })
        .await
}

/// The process.
#[derive(Debug)]
pub(super) struct HostOperator {
    process: Process,
    proxy: CrashProxy,
    environment: Vec<(String, String)>,
}

impl HostOperator {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(world: &ClusterWorld, account: &Account) -> Result<Self> {
        let cluster = &world.cluster;
        let service_account = account.name.split_once('/').map_or("", |(_, name)| name);
        let token = inventory::token(cluster, SYSTEM, service_account, None).await?;
        let proxy = CrashProxy::start(cluster, token).await?;
        let kubeconfig = cluster.folder().join("crash.kubeconfig");
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "crash", "cluster": {"server": proxy.url()}}],
            "users": [{"name": "crash", "user": {}}],
            "contexts": [{"name": "crash", "context": {"cluster": "crash", "user": "crash"}}],
            "current-context": "crash",
        });
        std::fs::write(&kubeconfig, text.to_string())
            .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
        let mut environment = account.environment.clone();
        environment.push(("KUBECONFIG".to_owned(), kubeconfig.display().to_string()));
        environment.push(("ENTREPOT_IDENTITY".to_owned(), IDENTITY.to_owned()));
        environment.push(("ENTREPOT_METRICS".to_owned(), METRICS.to_owned()));
        let process = launch(world, &environment)?;
        let mut operator = Self { process, proxy, environment };
        operator.await_ready().await?;
        Ok(operator)
    }

    /// Starts it again after it was killed.
    pub(super) async fn restart(&mut self, world: &ClusterWorld) -> Result<()> {
        // It was sent SIGKILL; what is left is to take note of its end.
        self.process.kill()?;
        self.process = launch(world, &self.environment)?;
        self.await_ready().await
    }

    /// The proxy before it.
    pub(super) fn proxy(&self) -> &CrashProxy {
        &self.proxy
    }

    /// An error if it ended although nobody killed it.
    pub(super) fn must_live(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) if !self.proxy.has_killed() => {
                bail!("the operator ended by itself ({status}):\n{}", self.log())
            }
            _ => Ok(()),
        }
    }

    /// The end of what it printed.
    pub(super) fn log(&self) -> String {
        process::tail(self.process.log_path())
    }

    /// Ends it as Kubernetes does, so that it gives the Lease back.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.process.stop().await.map(drop)
    }

    async fn await_ready(&mut self) -> Result<()> {
        self.proxy.watch_over(self.process.pid());
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{METRICS}/readyz");
        self.process
            .until(START_LIMIT, async || client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()))
            .await
    }
}

fn launch(world: &ClusterWorld, environment: &[(String, String)]) -> Result<Process> {
    let mut command = Command::new(package::beside_this_program("operator")?);
    command.arg("run").envs(environment.iter().map(|(name, value)| (name, value)));
    world.world.lab.spawn("crash-operator", command)
}
