//! Runs and their end: the second phase in namespaces of its own, and the removal of what a run leaves behind.
//!
//! A run is a folder `runs/PID` in the cache folder with a state file. A run that ends removes its folder; one that
//! crashed is removed by the next run, which finds by the state file that nobody is at work there any more.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{NAMES, network};
use crate::command::run;

/// The state file in a run's folder.
const STATE: &str = "state.json";

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

    fn kill(self) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end by itself between the two lines.
            let _ = kill_process(pid, Signal::KILL);
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
        let runs = cache.join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
        remove_abandoned(&runs)?;
        let path = runs.join(std::process::id().to_string());
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
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
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}; the next run will try", self.path.display());
        }
    }
}

fn remove_abandoned(runs: &Path) -> Result<()> {
    for entry in fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))? {
        let path = entry?.path();
        let state: Option<State> = fs::read(path.join(STATE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(state) = state {
            if state.runner.is_alive() {
                continue;
            }
            if let Some(inside) = state.inside {
                inside.kill();
            }
        }
        println!("removing what an earlier run left in {}", path.display());
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Makes the fresh namespaces that this process is in into the laboratory: private `/etc` and `/run`, names, network.
pub fn settle() -> Result<()> {
    end_with_parent();
    run("mount", ["-t", "tmpfs", "tmpfs", "/run"])?;
    private_etc()?;
    fs::write("/etc/hosts", hosts()).context("cannot write the private /etc/hosts")?;
    // Nobody serves DNS here: what /etc/hosts does not name fails at once.
    fs::write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
        .context("cannot write the private /etc/resolv.conf")?;
    network::build()
}

/// Puts an overlay over `/etc`, so that every change to it stays in this mount namespace.
fn private_etc() -> Result<()> {
    for folder in ["/run/etc/upper", "/run/etc/work"] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    run(
        "mount",
        ["-t", "overlay", "overlay", "-o", "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work", "/etc"],
    )?;
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
