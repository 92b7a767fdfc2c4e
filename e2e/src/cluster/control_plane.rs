//! What a cluster has once: etcd, the apiserver, the controllers, the scheduler, and names for its nodes and pods.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::KeyPair;
use serde_json::json;

use super::authority::{Authority, MASTERS};
use super::client::Client;
use super::{API_PORT, PODS, SERVICES};
use crate::install::Programs;
use crate::lab::{CACHE, Lab, Process};

/// How long the apiserver may take until it is ready.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// The first address of [`SERVICES`]: the apiserver's own Service.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Where etcd listens.
const ETCD: &str = "http://127.0.0.1:2379";

/// The processes; dropping this kills them.
#[derive(Debug)]
pub struct ControlPlane {
    processes: Vec<Process>,
    audit: PathBuf,
}

/// Where and with what it is started.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The laboratory.
    pub lab: &'a Lab,
    /// The programs.
    pub programs: &'a Programs,
    /// The folder for its files.
    pub folder: &'a Path,
    /// The cluster's CA.
    pub authority: &'a Authority,
}

impl ControlPlane {
    /// Starts everything and waits until the apiserver is ready.
    pub async fn start(setup: Setup<'_>, client: &Client) -> Result<Self> {
        setup.write("ca.pem", setup.authority.pem())?;
        setup.write_service_account_key()?;
        setup.write_apiserver_files()?;
        let mut plane = Self { processes: Vec::new(), audit: setup.folder.join("audit.log") };
        plane.processes.push(setup.etcd()?);
        plane.processes.push(setup.names()?);
        let mut apiserver = setup.apiserver(&plane.audit)?;
        apiserver
            .until(READY_LIMIT, async || client.raw("/readyz").await.is_ok())
            .await
            .context("the apiserver does not get ready")?;
        plane.processes.push(apiserver);
        plane.processes.push(setup.controllers()?);
        plane.processes.push(setup.scheduler()?);
        Ok(plane)
    }

    /// The apiserver's audit log: one JSON document a line.
    #[must_use]
    pub fn audit(&self) -> &Path {
        &self.audit
    }
}

impl Setup<'_> {
    /// Writes one of the cluster's files.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes the file by which a client reaches the apiserver.
    pub fn kubeconfig(&self, file: &str, user: &str, group: &str) -> Result<PathBuf> {
        let client = self.authority.client(user, group)?;
        self.write(file, &self.authority.kubeconfig(&format!("https://{CACHE}:{API_PORT}"), &client))
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn kubernetes(&self, program: &str) -> Command {
        Command::new(self.programs.kubernetes().join(program))
    }

    fn write_service_account_key(&self) -> Result<()> {
        let key = KeyPair::generate().context("cannot make the key of service accounts")?;
        self.write("service-accounts.key", &key.serialize_pem())?;
        self.write("service-accounts.pub", &key.public_key_pem()).map(drop)
    }

    fn write_apiserver_files(&self) -> Result<()> {
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let pair = self.authority.server(&names, &[CACHE, API_SERVICE, Ipv4Addr::LOCALHOST])?;
        self.write("apiserver.pem", &pair.certificate)?;
        self.write("apiserver.key", &pair.key)?;
        let to_kubelets = self.authority.client("apiserver-to-kubelets", MASTERS)?;
        self.write("to-kubelets.pem", &to_kubelets.certificate)?;
        self.write("to-kubelets.key", &to_kubelets.key)?;
        let everything = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata" }],
        });
        self.write("audit-policy.json", &everything.to_string()).map(drop)
    }

    fn etcd(&self) -> Result<Process> {
        let mut command = Command::new(self.programs.etcd());
        // In memory: nothing outlives a run, and a small disk would set the pace.
        command
            .args(["--data-dir", "/run/etcd", "--log-level", "warn", "--unsafe-no-fsync"])
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        self.lab.spawn("etcd", command)
    }

    /// Serves the names of `/etc/hosts` to nodes and pods; no other name exists.
    fn names(&self) -> Result<Process> {
        let mut command = Command::new("dnsmasq");
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-poll", "--pid-file="])
            .args(["--user=root", "--log-facility=-", "--bind-interfaces", "--address=/#/"])
            .arg(format!("--listen-address={CACHE}"));
        self.lab.spawn("dnsmasq", command)
    }

    fn apiserver(&self, audit: &Path) -> Result<Process> {
        let mut command = self.kubernetes("kube-apiserver");
        command
            .arg(format!("--etcd-servers={ETCD}"))
            .arg(format!("--secure-port={API_PORT}"))
            .arg(format!("--advertise-address={CACHE}"))
            .arg(format!("--external-hostname={CACHE}"))
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .arg(format!("--tls-cert-file={}", self.file("apiserver.pem")))
            .arg(format!("--tls-private-key-file={}", self.file("apiserver.key")))
            .arg(format!("--client-ca-file={}", self.file("ca.pem")))
            // Nobody has this name: no extension server is in front.
            .arg(format!("--requestheader-client-ca-file={}", self.file("ca.pem")))
            .arg("--requestheader-allowed-names=nobody")
            .arg(format!("--kubelet-certificate-authority={}", self.file("ca.pem")))
            .arg(format!("--kubelet-client-certificate={}", self.file("to-kubelets.pem")))
            .arg(format!("--kubelet-client-key={}", self.file("to-kubelets.key")))
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", self.file("service-accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", self.file("service-accounts.key")))
            .arg("--authorization-mode=Node,RBAC")
            .arg("--enable-admission-plugins=NodeRestriction")
            .arg("--allow-privileged")
            .arg(format!("--audit-policy-file={}", self.file("audit-policy.json")))
            .arg(format!("--audit-log-path={}", audit.display()))
            .args(["--audit-log-maxsize=0", "--profiling=false"]);
        self.lab.spawn("kube-apiserver", command)
    }

    fn controllers(&self) -> Result<Process> {
        let user = "system:kube-controller-manager";
        let kubeconfig = self.kubeconfig("controller-manager.kubeconfig", user, user)?.display().to_string();
        let mut command = self.kubernetes("kube-controller-manager");
        command
            .arg(format!("--kubeconfig={kubeconfig}"))
            .arg(format!("--authentication-kubeconfig={kubeconfig}"))
            .arg(format!("--authorization-kubeconfig={kubeconfig}"))
            .arg(format!("--cluster-cidr={PODS}"))
            .arg(format!("--root-ca-file={}", self.file("ca.pem")))
            .arg(format!("--service-account-private-key-file={}", self.file("service-accounts.key")))
            .args(["--use-service-account-credentials", "--leader-elect=false", "--bind-address=127.0.0.1"]);
        self.lab.spawn("kube-controller-manager", command)
    }

    fn scheduler(&self) -> Result<Process> {
        let user = "system:kube-scheduler";
        let kubeconfig = self.kubeconfig("scheduler.kubeconfig", user, user)?.display().to_string();
        let mut command = self.kubernetes("kube-scheduler");
        command
            .arg(format!("--kubeconfig={kubeconfig}"))
            .arg(format!("--authentication-kubeconfig={kubeconfig}"))
            .arg(format!("--authorization-kubeconfig={kubeconfig}"))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        self.lab.spawn("kube-scheduler", command)
    }
}
