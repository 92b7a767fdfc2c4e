//! A program that a run started: it has a log file, and ends with its handle, by its own id.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(20);
/// How much of a log is worth showing beside a failure.
const TAIL_BYTES: usize = 4_000;

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let err = out.try_clone().context("cannot share the log file")?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child =
            command.spawn().with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it printed so far, over restarts under the same name too.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Asks it to end with SIGTERM and waits; one that does not end in time is killed, which is an error.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        if let Some(status) = self.wait(STOP_LIMIT).await? {
            return Ok(status);
        }
        self.kill()?;
        bail!("{} did not end within {STOP_LIMIT:?} of SIGTERM", self.name)
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(|_| ())
            .with_context(|| format!("cannot kill {}", self.name))
    }

    /// Waits at most `limit` for it to end by itself.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until `ready` says so; fails early, with the end of the log, when the process ends first.
    pub async fn until<F>(&mut self, limit: Duration, mut ready: F) -> Result<()>
    where
        F: AsyncFnMut() -> bool,
    {
        let deadline = Instant::now() + limit;
        while !ready().await {
            if let Some(status) = self.ended()? {
                bail!("{} ended ({}) before it was ready:\n{}", self.name, how_it_ended(status), tail(&self.log));
            }
            if Instant::now() >= deadline {
                bail!("{} was not ready within {limit:?}:\n{}", self.name, tail(&self.log));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The memory that it holds now (resident set).
    pub fn rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
            .with_context(|| format!("{path} has no VmRSS; has {} ended?", self.name))?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nobody to tell otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log file, for beside a failure.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = read_lossy(log);
    let from = text.ceil_char_boundary(text.len().saturating_sub(TAIL_BYTES));
    text[from..].to_owned()
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
