//! A node: containerd, kubelet and kube-proxy on ground of their own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::Mutex;

use super::PODS;
use super::control_plane::Setup;
use super::ground::{Ground, Plan};
use super::runtime::{self, CERTS_D, Own};
use crate::engine::{Major, ask};
use crate::lab::{CACHE, Lab, Process, cgroups};

/// How long a program of a node may take to start.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long containerd may take to collect the blobs of removed images.
const COLLECT_LIMIT: Duration = Duration::from_mins(1);
/// containerd's socket.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// A running node; dropping it kills its programs, but not its pods.
#[derive(Debug)]
pub struct Node {
    runtime: Runtime,
    group: PathBuf,
    containerd: Mutex<Process>,
    kubelet: Option<Process>,
    proxy: Option<Process>,
    own: Vec<String>,
    /// The digests of our own images, one a line.
    own_blobs: String,
}

impl Node {
    /// Makes the namespaces and starts containerd with these images in it. `group` is the node's control group.
    pub async fn start(setup: Setup<'_>, plan: Plan, group: PathBuf, upstream_ca: &Path, own: &[Own]) -> Result<Self> {
        cgroups::create(&group)?;
        let runtime = Runtime::prepare(setup, plan, upstream_ca).await?;
        let containerd = Mutex::new(runtime.launch(setup.lab).await?);
        for Own { reference, archive } in own {
            let archive = archive.display().to_string();
            runtime.ctr(&["images", "import", &archive]).await.with_context(|| format!("cannot import {reference}"))?;
        }
        let own_blobs = runtime.ctr(&["content", "ls", "-q"]).await?;
        let own = own.iter().map(|image| image.reference.clone()).collect();
        Ok(Self { runtime, group, containerd, kubelet: None, proxy: None, own, own_blobs })
    }

    /// Starts kubelet and kube-proxy; the apiserver must be there.
    pub fn join(&mut self, setup: Setup<'_>) -> Result<()> {
        self.kubelet = Some(self.launch_kubelet(setup)?);
        self.proxy = Some(self.launch_proxy(setup)?);
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.runtime.ground.plan().place.name
    }

    /// Its address; the addresses of its pods are [`Plan::pods`].
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.runtime.ground.plan().place.address
    }

    /// Its containerd's line of versions.
    #[must_use]
    pub fn major(&self) -> Major {
        self.runtime.ground.plan().major
    }

    /// A file or folder of the node (`/etc/containerd/certs.d`) by the path at which this process sees it.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.runtime.ground.file(path)
    }

    /// Writes a file of the node, with the folders above it.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.runtime.ground.write(path, content)
    }

    /// A command that runs on the node, as its administrator's shell would run it.
    #[must_use]
    pub fn enter(&self, program: &str) -> Command {
        self.runtime.ground.enter(program)
    }

    /// The processes of a container on this node, by the id that its pod's status names (`containerd://…`).
    pub fn processes(&self, container: &str) -> Result<Vec<i32>> {
        cgroups::processes(&self.group, container.trim_start_matches("containerd://"))
    }

    /// Sends a signal to every process of a container.
    pub fn signal_container(&self, container: &str, signal: Signal) -> Result<()> {
        let processes = self.processes(container)?;
        if processes.is_empty() {
            bail!("{container} has no process on {}", self.name());
        }
        for process in processes.into_iter().filter_map(Pid::from_raw) {
            kill_process(process, signal).with_context(|| format!("cannot send {signal:?} to {container}"))?;
        }
        Ok(())
    }

    /// Its containerd, to signal it; [`Self::restart_containerd`] restarts it.
    #[must_use]
    pub fn containerd(&self) -> &Mutex<Process> {
        &self.containerd
    }

    /// Its kubelet, once the node has joined.
    #[must_use]
    pub fn kubelet(&self) -> Option<&Process> {
        self.kubelet.as_ref()
    }

    /// A `config.toml` for [`runtime::CONFIG`] with this `config_path`; see [`runtime::configuration`].
    #[must_use]
    pub fn containerd_configuration(&self, config_path: Option<&str>) -> String {
        self.runtime.configuration(config_path)
    }

    /// Ends containerd and starts it again, as `systemctl restart` does; pods run on.
    pub async fn restart_containerd(&self, lab: &Lab) -> Result<()> {
        let mut process = self.containerd.lock().await;
        process.stop().await?;
        *process = self.runtime.launch(lab).await?;
        Ok(())
    }

    /// Pulls an image over the CRI, as the kubelet does.
    pub async fn pull(&self, reference: &str) -> Result<()> {
        self.runtime.cri(&["pull", reference]).await.map(drop)
    }

    /// The names of its images.
    pub async fn images(&self) -> Result<Vec<String>> {
        runtime::names(&self.runtime.cri(&["list"]).await?)
    }

    /// Removes every image but ours and waits until their blobs are gone, so that the next pull fetches them.
    /// Pods that use them must have gone.
    pub async fn remove_images(&self) -> Result<()> {
        // What a container still stands on is kept, and a pull that finds it fetches nothing.
        self.collected("containers of removed pods", async || {
            let containers = self.runtime.ctr(&["containers", "ls"]).await?;
            let images = containers.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
            Ok(images.filter(|image| !self.own.iter().any(|own| own == image)).map(str::to_owned).collect())
        })
        .await?;
        for name in self.images().await?.into_iter().filter(|name| !self.own.contains(name)) {
            self.runtime.cri(&["remove", &name]).await?;
        }
        self.collected("blobs of removed images", async || {
            let blobs = self.runtime.ctr(&["content", "ls", "-q"]).await?;
            Ok(blobs.lines().filter(|blob| !self.own_blobs.contains(*blob)).map(str::to_owned).collect())
        })
        .await
    }

    /// Waits until nothing is left of something.
    async fn collected(&self, what: &str, left: impl AsyncFn() -> Result<Vec<String>>) -> Result<()> {
        let deadline = Instant::now() + COLLECT_LIMIT;
        loop {
            let left = left().await?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{} still has these {what} after {COLLECT_LIMIT:?}: {left:?}", self.name());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn launch_kubelet(&self, setup: Setup<'_>) -> Result<Process> {
        let name = self.name();
        let user = format!("system:node:{name}");
        let kubeconfig = setup.kubeconfig(&format!("{name}-kubelet.kubeconfig"), &user, "system:nodes")?;
        let pair = setup.authority.server(&[name], &[self.address()])?;
        let certificate = setup.write(&format!("{name}.pem"), &pair.certificate)?;
        let key = setup.write(&format!("{name}.key"), &pair.key)?;
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": setup.folder.join("ca.pem") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": certificate,
            "tlsPrivateKeyFile": key,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.group,
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "clusterDNS": [CACHE],
            "clusterDomain": "cluster.local",
            "serializeImagePulls": false,
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            "makeIPTablesUtilChains": false,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            // The tests share a disk with whatever else is on the machine.
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
        });
        let configuration = setup.write(&format!("{name}-kubelet.json"), &configuration.to_string())?;
        let mut command = self.enter("kubelet");
        command
            .arg(format!("--config={}", configuration.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={}", self.address()));
        setup.lab.spawn(&format!("{name}-kubelet"), command)
    }

    fn launch_proxy(&self, setup: Setup<'_>) -> Result<Process> {
        let name = self.name();
        let user = "system:kube-proxy";
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": PODS,
            "hostnameOverride": name,
            "clientConnection": { "kubeconfig": setup.kubeconfig(&format!("{name}-proxy.kubeconfig"), user, user)? },
            "conntrack": { "maxPerCore": 0, "min": 0 },
        });
        let configuration = setup.write(&format!("{name}-proxy.json"), &configuration.to_string())?;
        let mut command = self.enter("kube-proxy");
        command.arg(format!("--config={}", configuration.display()));
        setup.lab.spawn(&format!("{name}-kube-proxy"), command)
    }
}

/// A node's containerd: how it is started and asked.
#[derive(Debug)]
struct Runtime {
    ground: Ground,
    ctr: PathBuf,
    cri: PathBuf,
    pod_network: PathBuf,
    /// The upstream's CA, which containerd trusts when it asks the upstream itself.
    upstream_ca: PathBuf,
}

impl Runtime {
    async fn prepare(setup: Setup<'_>, plan: Plan, upstream_ca: &Path) -> Result<Self> {
        let Setup { lab, programs, .. } = setup;
        let containerd = plan.major.programs(programs);
        let folders = [containerd.as_path(), &programs.runc(), programs.kubernetes()];
        let runtime = Self {
            ground: Ground::prepare(lab, plan, &folders).await?,
            ctr: containerd.join("ctr"),
            cri: programs.cri(),
            pod_network: programs.pod_network(),
            upstream_ca: upstream_ca.to_owned(),
        };
        runtime.ground.write("/etc/cni/net.d/10-pods.conflist", &pod_network(&plan))?;
        runtime.ground.write(runtime::CONFIG, &runtime.configuration(Some(CERTS_D)))?;
        fs::create_dir_all(runtime.ground.file(CERTS_D)).context("cannot make the folder of hosts.toml files")?;
        Ok(runtime)
    }

    fn configuration(&self, config_path: Option<&str>) -> String {
        runtime::configuration(self.ground.plan().major, &self.pod_network, config_path)
    }

    async fn launch(&self, lab: &Lab) -> Result<Process> {
        let mut command = self.ground.enter("containerd");
        command.args(["--config", runtime::CONFIG]).env("SSL_CERT_FILE", &self.upstream_ca);
        let mut process = lab.spawn(&format!("{}-containerd", self.ground.plan().place.name), command)?;
        process
            .until(START_LIMIT, async || self.cri(&["list"]).await.is_ok())
            .await
            .context("containerd's CRI does not answer")?;
        Ok(process)
    }

    async fn ctr(&self, words: &[&str]) -> Result<String> {
        self.ask(&self.ctr, &[&["--address", &self.socket(), "--namespace", "k8s.io"], words].concat()).await
    }

    async fn cri(&self, words: &[&str]) -> Result<String> {
        self.ask(&self.cri, &[&[self.socket().as_str()], words].concat()).await
    }

    async fn ask(&self, program: &Path, words: &[&str]) -> Result<String> {
        ask(program, words).await.with_context(|| format!("on {}", self.ground.plan().place.name))
    }

    fn socket(&self) -> String {
        self.ground.file(SOCKET).display().to_string()
    }
}

/// Point-to-point links: on a bridge, answers between pods of one node would pass by the node's own rules.
fn pod_network(plan: &Plan) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": plan.pods() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}
