//! dockerd: asked over its socket, told to load daemon.json by a signal. May import `plan`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use super::plan::{Lists, is_same};

/// What the process is called.
const NAME: &str = "dockerd";
/// For an answer of the engine, which may be busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a reload may take to show.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks for it.
const POLL: Duration = Duration::from_millis(50);
/// What the containerd image store calls itself.
const CONTAINERD_STORE: &str = "io.containerd.snapshotter.v1";

/// Why the engine cannot be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run.
    #[error(
        "dockerd does not run: nothing answers on {0}, and {1} names no dockerd. Start it and run this again; if it does run, say where with --socket and --pid-file"
    )]
    NotRunning(PathBuf, PathBuf),
    /// It runs and does not answer.
    #[error(
        "dockerd (process {pid}) does not answer on {socket}: {why}; if its socket is elsewhere, say where with --socket"
    )]
    Silent {
        /// Its process.
        pid: i32,
        /// Where it was asked.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
    /// It answers, but its process cannot be found.
    #[error("dockerd answers on {0}, but {1} does not name its process; say where its pid file is with --pid-file")]
    NoProcess(PathBuf, PathBuf),
    /// It stopped answering.
    #[error("{0} does not answer: {1}")]
    Lost(PathBuf, String),
    /// Its answer cannot be read.
    #[error("what answers on {0} does not answer as dockerd does: {1}")]
    Answer(PathBuf, String),
    /// It may not be signalled.
    #[error("dockerd (process {0}) cannot be told to load daemon.json: {1}; run this as root")]
    Signal(i32, io::Error),
}

/// Where an engine is found.
#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    pid_file: PathBuf,
    client: reqwest::Client,
}

/// A running engine.
#[derive(Debug)]
pub struct Daemon {
    /// Its process.
    pub pid: i32,
    /// What it was started with; the program is the first.
    pub arguments: Vec<String>,
    /// What it says of itself.
    pub info: Info,
    handle: OwnedFd,
}

/// What an engine says of itself: what `docker info` shows.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Info {
    /// Its version.
    pub server_version: String,
    #[serde(default)]
    driver_status: Option<Vec<(String, String)>>,
    registry_config: RegistryConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RegistryConfig {
    #[serde(default)]
    mirrors: Option<Vec<String>>,
    #[serde(default, rename = "InsecureRegistryCIDRs")]
    networks: Option<Vec<String>>,
    #[serde(default)]
    index_configs: BTreeMap<String, Index>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Index {
    secure: bool,
}

impl Info {
    /// Whether it has the containerd image store.
    #[must_use]
    pub fn has_containerd_store(&self) -> bool {
        self.driver_status.iter().flatten().any(|(_, value)| value == CONTAINERD_STORE)
    }

    /// The two lists as they are in force.
    #[must_use]
    pub fn lists(&self) -> Lists {
        let config = &self.registry_config;
        let hosts = config.index_configs.iter().filter(|(_, index)| !index.secure).map(|(name, _)| name.clone());
        Lists {
            mirrors: config.mirrors.clone().unwrap_or_default(),
            insecure: hosts.chain(config.networks.iter().flatten().cloned()).collect(),
        }
    }

    /// Whether these elements are in force, mirrors before all others.
    #[must_use]
    pub fn has(&self, lists: &Lists) -> bool {
        let found = self.lists();
        let first = found.mirrors.iter().zip(&lists.mirrors).filter(|(one, other)| is_same(one, other)).count();
        first == lists.mirrors.len() && lists.insecure.iter().all(|one| found.insecure.contains(one))
    }

    /// Whether none of these elements is in force.
    #[must_use]
    pub fn has_none_of(&self, lists: &Lists) -> bool {
        let found = self.lists();
        !lists.mirrors.iter().any(|one| found.mirrors.iter().any(|other| is_same(one, other)))
            && !lists.insecure.iter().any(|one| found.insecure.contains(one))
    }
}

impl Engine {
    /// The engine that listens on `socket` and wrote its process id to `pid_file`.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub fn new(socket: PathBuf, pid_file: PathBuf) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().no_proxy().unix_socket(socket.clone()).timeout(ANSWER_LIMIT).build()?;
        Ok(Self { socket, pid_file, client })
    }

    /// The engine, if it runs.
    ///
    /// # Errors
    /// When it runs and cannot be dealt with.
    pub async fn running(&self) -> Result<Option<Daemon>, Error> {
        let process = process(&self.pid_file);
        match (process, self.info().await) {
            (Some((pid, handle, arguments)), Ok(info)) => Ok(Some(Daemon { pid, arguments, info, handle })),
            (None, Ok(_)) => Err(Error::NoProcess(self.socket.clone(), self.pid_file.clone())),
            (Some((pid, ..)), Err(Error::Lost(socket, why))) => Err(Error::Silent { pid, socket, why }),
            (None, Err(Error::Lost(..))) => Ok(None),
            (_, Err(error)) => Err(error),
        }
    }

    /// The engine, which must run.
    ///
    /// # Errors
    /// When it does not, or cannot be dealt with.
    pub async fn daemon(&self) -> Result<Daemon, Error> {
        let daemon = self.running().await?;
        daemon.ok_or_else(|| Error::NotRunning(self.socket.clone(), self.pid_file.clone()))
    }

    /// Tells the engine to load daemon.json, and waits until what it says of itself is `right`. What it said last.
    ///
    /// # Errors
    /// When it cannot be told. That it is not right in time is no error.
    pub async fn reload(&self, daemon: &Daemon, right: impl Fn(&Info) -> bool) -> Result<(bool, Info), Error> {
        pidfd_send_signal(&daemon.handle, Signal::HUP).map_err(|error| Error::Signal(daemon.pid, error.into()))?;
        let looking = async {
            loop {
                let info = self.info().await?;
                if right(&info) {
                    return Ok::<_, Error>(info);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(RELOAD_LIMIT, looking).await {
            Ok(info) => Ok((true, info?)),
            Err(_) => Ok((false, self.info().await?)),
        }
    }

    async fn info(&self) -> Result<Info, Error> {
        let lost = |error: reqwest::Error| Error::Lost(self.socket.clone(), said(&error));
        let answer = self.client.get("http://docker/info").send().await.map_err(lost)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(lost)?;
        if !status.is_success() {
            return Err(Error::Answer(self.socket.clone(), format!("status {status}")));
        }
        serde_json::from_slice(&bytes).map_err(|error| Error::Answer(self.socket.clone(), error.to_string()))
    }
}

/// The process that a pid file names, if it is a dockerd that lives, with a handle that stays its own.
fn process(pid_file: &Path) -> Option<(i32, OwnedFd, Vec<String>)> {
    let number: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok().filter(|number| *number > 0)?;
    let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    // After the handle: its number cannot have become another's in between.
    let name = fs::read_to_string(format!("/proc/{number}/comm")).ok()?;
    let line = fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    (name.trim_end() == NAME).then(|| (number, handle, words.filter(|word| !word.is_empty()).collect()))
}

/// An error with its causes, without the URL, which is none of the user's.
fn said(error: &reqwest::Error) -> String {
    let mut causes = vec![];
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    if error.is_timeout() { "no answer in time".to_owned() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn info(mirrors: &[&str], insecure: &[&str]) -> Info {
        let indexes: serde_json::Map<_, _> =
            insecure.iter().map(|&name| (name.to_owned(), serde_json::json!({"Secure": false}))).collect();
        serde_json::from_value(serde_json::json!({
            "ServerVersion": "28.5.2+dfsg3",
            "DriverStatus": [["Backing Filesystem", "extfs"]],
            "RegistryConfig": {
                "Mirrors": mirrors, "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"], "IndexConfigs": indexes
            }
        }))
        .unwrap()
    }

    #[test]
    fn an_engine_has_our_mirror_only_if_it_asks_it_first() {
        let ours = Lists { mirrors: vec!["http://a:1".to_owned()], insecure: vec!["a:1".to_owned()] };
        assert!(info(&["http://a:1/", "http://b/"], &["a:1"]).has(&ours));
        assert!(!info(&["http://b/", "http://a:1/"], &["a:1"]).has(&ours));
        assert!(!info(&["http://a:1/"], &[]).has(&ours));
        assert!(!info(&["http://a:1/"], &[]).has_none_of(&ours));
        assert!(!info(&[], &["a:1"]).has_none_of(&ours));
        assert!(info(&["http://b/"], &["b"]).has_none_of(&ours));
        assert!(!info(&[], &[]).has_containerd_store());
    }

    #[test]
    fn a_pid_file_that_names_another_program_names_no_engine() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docker.pid");
        assert!(process(&file).is_none());
        for text in ["", "x", "-1", "0", &std::process::id().to_string()] {
            fs::write(&file, text).unwrap();
            assert!(process(&file).is_none(), "{text}");
        }
    }
}
