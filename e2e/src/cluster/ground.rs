//! What a node stands on: a network namespace on the bridge, and a mount namespace in which every default path is
//! the node's own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{NODES, SERVICES};
use crate::command::run;
use crate::engine::Major;
use crate::lab::{CACHE, Lab, Node as Place, Process, network};

/// The folder that stands for a disk of the node's.
pub const VOLUME: &str = "/var/lib/volume";
/// Folders that each node has of its own, beside `/run`.
const PRIVATE: [&str; 11] = [
    VOLUME,
    "/etc/containerd",
    "/etc/docker",
    "/etc/cni",
    "/opt/containerd",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/entrepot",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];
/// Makes the mount namespace and keeps it.
const HOLD: &str = r#"set -e
hostname "$1"; folder=$2; shift 2
for path in "$@"; do mkdir -p "$folder$path" "$path"; mount --bind "$folder$path" "$path"; done
mount -t tmpfs tmpfs /run
touch /run/settled
exec sleep infinity
"#;
/// How long the namespaces may take to be made.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// How one node differs from the others.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its name and address.
    pub place: Place,
    /// Its containerd.
    pub major: Major,
    /// The third number of its pods' addresses.
    pub number: u8,
}

impl Plan {
    /// The addresses of its pods.
    #[must_use]
    pub fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }
}

/// The namespaces of a node; they go when this is dropped and nothing runs in them.
#[derive(Debug)]
pub struct Ground {
    plan: Plan,
    search_path: OsString,
    holder: Process,
}

impl Ground {
    /// Makes the namespaces. Programs that are entered are looked for in `programs` first.
    pub async fn prepare(lab: &Lab, plan: Plan, programs: &[&Path]) -> Result<Self> {
        route(&plan)?;
        Ok(Self { plan, search_path: search_path(programs)?, holder: hold(lab, &plan).await? })
    }

    /// What distinguishes the node.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// A file or folder of the node (`/etc/containerd/certs.d`) by the path at which this process sees it.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.holder.pid().to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Writes a file of the node, with the folders above it.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let file = self.file(path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&file, content).with_context(|| format!("cannot write {path} on {}", self.plan.place.name))
    }

    /// A command that runs on the node, found by the node's `PATH`.
    pub fn enter<S: AsRef<OsStr>>(&self, program: S) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.pid().to_string(), "--mount", "--net", "--uts", "--"])
            .arg(program)
            .env("PATH", &self.search_path);
        command
    }
}

/// Makes the node's namespaces and waits until everything is mounted.
async fn hold(lab: &Lab, plan: &Plan) -> Result<Process> {
    let name = plan.place.name;
    let folder = lab.dir(&format!("nodes/{name}"))?;
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", network::namespace_of(plan.place).display()))
        .args(["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", HOLD, "sh", name])
        .arg(folder)
        .args(PRIVATE);
    let mut holder = lab.spawn(&format!("{name}-holder"), command)?;
    let settled = PathBuf::from(format!("/proc/{}/root/run/settled", holder.pid()));
    holder.until(SETTLE_LIMIT, async || settled.exists()).await?;
    Ok(holder)
}

/// Lets packets find the upstream, the other node's pods and, from outside, this node's pods; nothing else.
fn route(plan: &Plan) -> Result<()> {
    let Place { name, address } = plan.place;
    let inside = |words: &[&str]| run("ip", [&["-n", name, "route", "add"], words].concat());
    inside(&["203.0.113.0/24", "via", &CACHE.to_string()])?;
    // A packet needs a way before kube-proxy's rules send it another.
    inside(&[SERVICES, "via", &CACHE.to_string()])?;
    for other in NODES.iter().filter(|other| other.number != plan.number) {
        inside(&[&other.pods(), "via", &other.place.address.to_string()])?;
    }
    run("ip", ["route", "add", &plan.pods(), "via", &address.to_string()])
}

fn search_path(folders: &[&Path]) -> Result<OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let folders = folders.iter().map(|folder| folder.to_path_buf()).chain(std::env::split_paths(&inherited));
    std::env::join_paths(folders).context("a folder of programs has a colon in its name")
}
