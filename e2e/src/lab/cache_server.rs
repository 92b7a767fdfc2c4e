//! The real cache server, started as a user starts it: a configuration file, a data folder, an address.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{CACHE, Lab, Process};
use crate::package::beside_this_program;
use rustix::process::Signal;

/// How long a start may take until `/readyz` answers 200.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// What a cache server is started with.
#[derive(Debug, Clone)]
pub struct CacheServerSetup {
    /// Names the data folder and the log; unique among the servers of a run.
    pub name: String,
    /// The configuration file: objects in YAML.
    pub objects: String,
    /// Secrets: file name `<secret>_<key>` to content.
    pub secrets: BTreeMap<String, String>,
    /// Where it serves.
    pub listen: SocketAddr,
    /// Where it serves `/metrics`, `/livez` and `/readyz`.
    pub metrics: SocketAddr,
    /// Where it keeps its data; `data` in its own folder if not said.
    pub data: Option<PathBuf>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    /// A program to start it under, with its arguments (`prlimit --fsize=…`); none by default.
    pub wrapper: Vec<String>,
}

impl CacheServerSetup {
    /// A server by this name and configuration on the nodes' bridge at `port`, metrics on the loopback at `port + 1`.
    #[must_use]
    pub fn new(name: &str, port: u16, objects: &str) -> Self {
        Self {
            name: name.to_owned(),
            objects: objects.to_owned(),
            secrets: BTreeMap::new(),
            listen: SocketAddr::from((CACHE, port)),
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1)),
            data: None,
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// The same with a secret file.
    #[must_use]
    pub fn secret(mut self, file: &str, content: &str) -> Self {
        self.secrets.insert(file.to_owned(), content.to_owned());
        self
    }
}

/// A running cache server; dropping it kills it.
#[derive(Debug)]
pub struct CacheServer {
    setup: CacheServerSetup,
    folder: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    http: reqwest::Client,
}

impl CacheServer {
    /// Starts a server and waits until it is ready.
    pub async fn start(lab: &Lab, setup: CacheServerSetup) -> Result<Self> {
        let folder = lab.dir(&format!("servers/{}", setup.name))?;
        let mut server = Self { log: lab.log_path(&setup.name)?, folder, setup, process: None, http: http_client()? };
        server.write_configuration()?;
        server.write_secrets()?;
        server.launch().await?;
        Ok(server)
    }

    /// Where it serves.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.setup.listen
    }

    /// `http://ADDRESS`, to put a path behind.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.setup.listen)
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.setup.data.clone().unwrap_or_else(|| self.folder.join("data"))
    }

    /// The folder of secret files.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    /// The configuration file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// Replaces the configuration file while it runs (or before a restart).
    pub fn reconfigure(&mut self, objects: &str) -> Result<()> {
        objects.clone_into(&mut self.setup.objects);
        self.write_configuration()
    }

    /// Ends it with SIGTERM and waits for that.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            let status = process.stop().await?;
            ensure!(status.success(), "{} ended with {status} after SIGTERM", self.setup.name);
        }
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`] (ended with SIGTERM if it still runs).
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process()?.signal(signal)
    }

    /// Everything that it logged, over restarts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        let url = format!("http://{}/metrics", self.setup.metrics);
        let answer = self.http.get(&url).send().await.context("the cache server gives no metrics")?;
        answer.error_for_status()?.text().await.context("the metrics of the cache server broke off")
    }

    /// The memory that it holds now.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.process()?.rss_bytes()
    }

    /// Its process, if it runs.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("the cache server {} does not run", self.setup.name))
    }

    fn write_configuration(&self) -> Result<()> {
        write(&self.configuration(), &self.setup.objects)
    }

    fn write_secrets(&self) -> Result<()> {
        let folder = self.secrets();
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        self.setup.secrets.iter().try_for_each(|(file, content)| write(&folder.join(file), content))
    }

    async fn launch(&mut self) -> Result<()> {
        let mut process = Process::spawn(&self.setup.name, self.command()?, &self.log)?;
        let url = format!("http://{}/readyz", self.setup.metrics);
        process
            .until(
                READY_LIMIT,
                async || matches!(self.http.get(&url).send().await, Ok(answer) if answer.status().is_success()),
            )
            .await?;
        self.process = Some(process);
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let program = beside_this_program("cache-server")?;
        let mut command = match self.setup.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .arg("--config")
            .arg(self.configuration())
            .arg("--data")
            .arg(self.data())
            .arg("--secrets")
            .arg(self.secrets())
            .arg("--listen")
            .arg(self.setup.listen.to_string())
            .arg("--metrics")
            .arg(self.setup.metrics.to_string())
            .envs(self.setup.environment.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }
}

fn http_client() -> Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().context("cannot make an HTTP client")
}

fn write(path: &Path, content: &str) -> Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
