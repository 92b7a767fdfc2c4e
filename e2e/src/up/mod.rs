//! `cargo e2e up` and `down`: the cluster to look at, from a bare machine to pods that run, and back.
//!
//! `up` installs, builds and starts the *keeper*, a process in the background that owns the namespaces and a port
//! of the loopback. *Inside* the namespaces the cluster runs and takes the steps of the demonstration; whoever connects
//! to its socket is told how far it is. In reading order: [`progress`], [`inside`], [`keeper`], [`relay`].

pub mod inside;
pub mod keeper;
pub mod progress;
mod relay;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::progress::Message;
use crate::checks;
use crate::cluster::demonstration::{RELEASE, WORKLOAD};
use crate::install::{self, Engines, Programs};
use crate::lab::process::tail;
use crate::lab::{cache_dir, enter};
use crate::run::{prepare, step};

/// The name of the run; there is one such cluster for each cache folder.
const NAME: &str = "cluster";
/// In the run's folder: who connects is told of the progress.
const PROGRESS: &str = "progress.sock";
/// In the run's folder: leads to the apiserver.
const API: &str = "api.sock";
/// In the run's folder: for the administrator.
const KUBECONFIG: &str = "kubeconfig";
/// How long the keeper may take until somebody tells of the progress.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long the end of everything may take.
const END_LIMIT: Duration = Duration::from_mins(1);
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(100);

/// Brings everything up that is not up yet, and shows how far it is.
pub fn up() -> Result<ExitCode> {
    let cache = cache_dir()?;
    let folder = folder(&cache);
    let keeper = if enter::is_at_work(&folder) {
        println!("the cluster is there already; what is missing goes on");
        None
    } else {
        let kubernetes = install::begin_kubernetes(&cache)?;
        prepare(&cache)?;
        step("build our programs", checks::build_shipped)?;
        step("build Kubernetes and helm", || kubernetes.finish())?;
        Some(start_keeper(&cache)?)
    };
    let stream = connect(&cache, &folder, keeper)?;
    if !follow(stream)? {
        println!("\nLook around with these, then try again with `cargo e2e up`:\n{}", surroundings(&cache)?);
        return Ok(ExitCode::FAILURE);
    }
    println!("{}", what_next(&cache)?);
    Ok(ExitCode::SUCCESS)
}

/// Ends everything that [`up`] started and removes what it left, save what the cache folder keeps for the next time.
pub fn down() -> Result<ExitCode> {
    let cache = cache_dir()?;
    let folder = folder(&cache);
    if !folder.exists() {
        println!("there is no cluster");
        return Ok(ExitCode::SUCCESS);
    }
    step("end the cluster", || enter::end(&folder, END_LIMIT))?;
    let log = log(&cache);
    fs::remove_file(&log).with_context(|| format!("cannot remove {}", log.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn folder(cache: &Path) -> PathBuf {
    enter::run_folder(cache, NAME)
}

/// The keeper's log; it is read when the run's folder is gone.
fn log(cache: &Path) -> PathBuf {
    cache.join("cluster.log")
}

/// Starts the keeper in a session of its own, so that it outlives this terminal.
fn start_keeper(cache: &Path) -> Result<Child> {
    let path = log(cache);
    let out = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let err = out.try_clone().context("cannot share the log file")?;
    Command::new("setsid")
        .arg(std::env::current_exe().context("cannot tell where this program is")?)
        .arg("keep")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .context("cannot run `setsid`; is util-linux installed?")
}

/// Waits until somebody tells of the progress.
fn connect(cache: &Path, folder: &Path, mut keeper: Option<Child>) -> Result<UnixStream> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(stream) = UnixStream::connect(folder.join(PROGRESS)) {
            return Ok(stream);
        }
        let ended = keeper.as_mut().map(Child::try_wait).transpose().context("cannot wait for the keeper")?.flatten();
        if let Some(status) = ended {
            bail!("the cluster ended before it was up ({status}):\n{}", tail(&log(cache)));
        }
        if Instant::now() >= deadline {
            bail!("the cluster does not answer; `cargo e2e down` ends it\n{}", tail(&log(cache)));
        }
        thread::sleep(POLL);
    }
}

/// Prints the progress to its end, and tells whether all is up.
fn follow(stream: UnixStream) -> Result<bool> {
    for line in BufReader::new(stream).lines() {
        let line = line.context("the cluster stopped telling of its progress")?;
        match serde_json::from_str(&line).context("the cluster tells of its progress in a form of another version")? {
            Message::Line(line) => println!("{line}"),
            Message::Done => return Ok(true),
            Message::Failed => return Ok(false),
        }
    }
    bail!("the cluster ended; {} may say why", log(&cache_dir()?).display())
}

fn surroundings(cache: &Path) -> Result<String> {
    let kubeconfig = folder(cache).join(KUBECONFIG);
    let programs = Programs::in_cache(cache, Engines::default())?;
    Ok(format!(
        "
export KUBECONFIG={}
export PATH={}:$PATH
kubectl get nodes,pods --all-namespaces --output=wide
kubectl get rmir,cserver,nmir",
        kubeconfig.display(),
        programs.kubernetes().display()
    ))
}

fn what_next(cache: &Path) -> Result<String> {
    let [release, namespace] = RELEASE;
    Ok(format!(
        "
The cluster is up. To look around:
{}
kubectl describe rmir docker-hub
helm test {release} --namespace {namespace}

To pull once more (the upstream has nginx, mysql, sixty and big under docker.io/library):

kubectl delete -f {WORKLOAD}
kubectl apply -f {WORKLOAD}

To end all this:

cargo e2e down",
        surroundings(cache)?
    ))
}
