//! Runs and their end: the second phase in namespaces of its own, and the removal of what a run leaves behind.
//!
//! A run is a folder `runs/PID` in the cache folder with a state file. A run that ends removes its folder; one that
//! crashed is removed by the next run, which finds by the state file that nobody is at work there any more.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{NAMES, Node, cgroups, network};
use crate::command::run;

/// Where runs are in the cache folder.
const RUNS: &str = "runs";
/// The state file in a run's folder.
const STATE: &str = "state.json";

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(50);

/// A process that can be told from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    /// In clock ticks since the machine's start.
    started: u64,
}

impl Identity {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name, in brackets, may hold spaces; the start is the 20th word after it.
        let (_, rest) = stat.rsplit_once(')')?;
        let started = rest.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end by itself between the two lines.
            let _ = kill_process(pid, signal);
        }
    }
}

/// What the next run must know to clean up after this one.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// The program of the first phase.
    runner: Identity,
    /// The first process of the second phase's namespaces; when it dies they go.
    inside: Option<Identity>,
}

/// The folder of one run; dropping it removes the folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Removes what crashed runs left in `cache`, then makes a folder for this one.
    pub fn create(cache: &Path) -> Result<Self> {
        Self::named(cache, &std::process::id().to_string())
    }

    /// The same, by a name that other processes know.
    pub fn named(cache: &Path, name: &str) -> Result<Self> {
        let path = run_folder(cache, name);
        let runs = cache.join(RUNS);
        fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
        remove_abandoned(&runs)?;
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let folder = Self { path };
        folder.write_state(None)?;
        Ok(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts this same program with `arguments` in fresh network, mount and process namespaces.
    ///
    /// The child's standard input is a pipe that nobody writes to: it ends when this process does.
    pub fn launch_inside(&self, arguments: &[OsString], search_path: &OsStr) -> Result<Child> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "--"])
            .arg(own)
            .args(arguments)
            .env("PATH", search_path)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run `unshare`; the tests need root")?;
        self.write_state(i32::try_from(child.id()).ok().and_then(Identity::of))?;
        Ok(child)
    }

    fn write_state(&self, inside: Option<Identity>) -> Result<()> {
        let own = i32::try_from(std::process::id()).context("a process id out of range")?;
        let runner = Identity::of(own).context("cannot read /proc/self/stat")?;
        let text = serde_json::to_string(&State { runner, inside })?;
        let path = self.path.join(STATE);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = cgroups::remove(&cgroups::of_run(std::process::id())) {
            eprintln!("{error:#}; the next run will try");
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}; the next run will try", self.path.display());
        }
    }
}

/// The folder of the run by this name.
#[must_use]
pub fn run_folder(cache: &Path, name: &str) -> PathBuf {
    cache.join(RUNS).join(name)
}

/// Whether the first phase of the run in this folder is at work.
#[must_use]
pub fn is_at_work(folder: &Path) -> bool {
    state_of(folder).is_ok_and(|state| state.runner.is_alive())
}

/// Ends the run in this folder, which must listen to SIGTERM, and removes what it leaves.
pub fn end(folder: &Path, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    if let Ok(state) = state_of(folder) {
        state.runner.signal(Signal::TERM);
        while state.runner.is_alive() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        state.runner.signal(Signal::KILL);
    }
    remove(folder)
}

fn remove_abandoned(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))? {
        let path = entry?.path();
        if !is_at_work(&path) {
            println!("removing what an earlier run left in {}", path.display());
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what the run in this folder left, whose first phase has ended; it may have removed all itself.
fn remove(folder: &Path) -> Result<()> {
    if let Ok(state) = state_of(folder) {
        if let Some(inside) = state.inside {
            inside.signal(Signal::KILL);
        }
        cgroups::remove(&cgroups::of_run(state.runner.pid.unsigned_abs()))?;
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn state_of(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// The process id, in the machine's own namespace, of the first phase of the run in this folder.
pub fn runner_of(work: &Path) -> Result<u32> {
    Ok(state_of(work)?.runner.pid.unsigned_abs())
}

/// What differs between the laboratories of the two kinds of cases.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// The nodes on the bridge.
    pub nodes: &'static [Node],
    /// Who is asked for names that `/etc/hosts` does not have.
    pub resolver: Ipv4Addr,
    /// Folders beside `/etc` in which changes must stay in the laboratory.
    pub private: &'static [&'static str],
}

/// Makes the fresh namespaces that this process is in into the laboratory: private folders, names, network.
pub fn settle(layout: Layout, cache: &Path) -> Result<()> {
    end_with_parent();
    run("mount", ["-t", "tmpfs", "tmpfs", "/run"])?;
    for folder in layout.private {
        keep_private(Path::new(folder), cache)?;
    }
    private_etc()?;
    fs::write("/etc/hosts", hosts()).context("cannot write the private /etc/hosts")?;
    let resolver = format!("nameserver {}\noptions attempts:1 timeout:1\n", layout.resolver);
    fs::write("/etc/resolv.conf", resolver).context("cannot write the private /etc/resolv.conf")?;
    network::build(layout.nodes)
}

/// Puts an overlay over a folder; if the cache folder lies in it, its changes still reach the disk.
fn keep_private(folder: &Path, cache: &Path) -> Result<()> {
    const ASIDE: &str = "/run/cache";
    let inside = cache.starts_with(folder);
    if inside {
        fs::create_dir_all(ASIDE).with_context(|| format!("cannot make {ASIDE}"))?;
        run("mount", ["--bind".as_ref(), cache.as_os_str(), ASIDE.as_ref()])?;
    }
    overlay(folder)?;
    if inside {
        run("mount", ["--bind".as_ref(), ASIDE.as_ref(), cache.as_os_str()])?;
    }
    Ok(())
}

/// Puts an overlay over a folder, so that every change to it stays in this mount namespace.
fn overlay(folder: &Path) -> Result<()> {
    let parts = Path::new("/run/overlays").join(folder.strip_prefix("/").unwrap_or(folder));
    let (upper, work) = (parts.join("upper"), parts.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", folder.display(), upper.display(), work.display());
    run("mount", ["-t", "overlay", "overlay", "-o", &options].map(OsStr::new).into_iter().chain([folder.as_os_str()]))
}

/// An `/etc` in which names can be written.
fn private_etc() -> Result<()> {
    overlay(Path::new("/etc"))?;
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        // A link would lead out of /etc.
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {file}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn hosts() -> String {
    std::iter::once("127.0.0.1 localhost\n".to_owned())
        .chain(NAMES.map(|(name, address)| format!("{address} {name}\n")))
        .collect()
}

/// Ends this process, and with it the namespaces, when the first phase is gone: its end of our standard input closes.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(130);
    });
}
