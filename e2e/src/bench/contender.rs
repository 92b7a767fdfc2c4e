//! The servers that are measured beside each other, each set up as its guides say.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tokio::net::TcpStream;

use super::origin::Origin;
use crate::{
    engine::{Containerd, Major},
    install::Programs,
    lab::{CACHE, Lab, Process, cgroups, enter},
    package::beside_this_program,
    proxy::Certificate,
    upstream::backend::PROGRAM,
};

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A file that is larger is not kept when its server has ended, in bytes.
const LARGE: u64 = 4 * 1024 * 1024;

/// A server that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The cache server of this repository.
    Ours,
    /// nginx as a caching proxy (`proxy_cache`).
    NginxCache,
    /// nginx over plain files, without an upstream.
    NginxStatic,
    /// Debian's docker-registry as a pull-through cache.
    DockerRegistry,
    /// The upstream itself, with nobody in between.
    Upstream,
}

impl Contender {
    /// As tables call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "entrepot",
            Self::NginxCache => "nginx proxy_cache",
            Self::NginxStatic => "nginx static",
            Self::DockerRegistry => "docker-registry",
            Self::Upstream => "upstream",
        }
    }
}

/// What servers are started with.
#[derive(Debug)]
pub struct Ground {
    lab: Lab,
    programs: Programs,
    /// The group below which each server has its own.
    group: PathBuf,
    /// What the plain files are, by path.
    files: PathBuf,
    /// Shown to clients over TLS.
    pub certificate: Certificate,
}

impl Ground {
    /// The ground of one run; `files` has the answers as a tree.
    pub fn new(lab: Lab, programs: Programs, files: PathBuf) -> Result<Self> {
        let group = cgroups::of_run(enter::runner_of(lab.work())?);
        Ok(Self { lab, programs, group, files, certificate: Certificate::wildcard()? })
    }

    /// A folder of the run.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        self.lab.dir(name)
    }

    /// Starts a program that is measured without a group of its own.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        self.lab.spawn(name, command)
    }

    /// A containerd without images that asks only `mirror` for those of Docker Hub.
    pub async fn containerd(&self, mirror: SocketAddr) -> Result<Containerd> {
        Containerd::start(&self.lab, &self.programs, Major::Two, &format!("http://{mirror}")).await
    }

    /// Ends it, and puts aside what it kept.
    pub async fn end(&self, mut containerd: Containerd) -> Result<()> {
        containerd.stop().await?;
        self.put_aside(&self.lab.dir(containerd.name())?)
    }

    /// Keeps a folder until the run ends, without what is large in it. For minutes, ext4 passes over the inode of each removed file
    /// one by one, and who makes files next would be measured with that.
    fn put_aside(&self, folder: &Path) -> Result<()> {
        let aside = tempfile::tempdir_in(self.lab.work()).context("cannot make a folder")?.keep();
        fs::rename(folder, &aside).with_context(|| format!("cannot put {} aside", folder.display()))?;
        remove_large(&aside).with_context(|| format!("cannot remove what is large in {}", aside.display()))
    }
}

fn remove_large(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_large(&entry.path())?;
        } else if entry.metadata()?.len() > LARGE {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How a contender is started.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Who.
    pub contender: Contender,
    /// The upstream behind it.
    pub origin: &'a Origin,
    /// Whether it ends TLS itself.
    pub tls: bool,
    /// How many mirrors ours has, each of a registry of its own, all with the same upstream: see [`mirror`].
    pub mirrors: usize,
    /// What the files' names begin with into which callgrind writes, if it runs under that.
    pub counts: Option<&'a Path>,
}

/// The name of one of [`Setup::mirrors`]; the first one is that of Docker Hub.
#[must_use]
pub fn mirror(number: usize) -> String {
    if number == 0 { "docker-hub".to_owned() } else { format!("mirror-{number}") }
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    /// The upstream is no process of its own.
    process: Option<Process>,
    group: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
}

impl Running {
    /// Starts a server with empty folders, and waits until it listens.
    pub async fn start(ground: &Ground, setup: Setup<'_>) -> Result<Self> {
        let Setup { contender, origin, .. } = setup;
        let address = if contender == Contender::Upstream { origin.address() } else { free_address()? };
        let name = format!("{}-{}", contender.name().replace(' ', "-"), address.port());
        let folder = ground.lab.dir(&name)?;
        let group = ground.group.join(&name);
        cgroups::create(&group)?;
        let command = match contender {
            Contender::Ours => Some(ours(&folder, ground, setup, address)?),
            Contender::NginxCache | Contender::NginxStatic => Some(nginx(&folder, ground, setup, address)?),
            Contender::DockerRegistry => Some(docker_registry(&folder, Some(origin), address)?),
            Contender::Upstream => None,
        };
        let mut process = None;
        if let Some(mut command) = command {
            if let Some(counts) = setup.counts {
                command = ground.programs.callgrind(counts, &command);
            }
            let started = process.insert(ground.lab.spawn(&name, cgroups::counted(&group, &command)?)?);
            started.until(START_LIMIT, async || TcpStream::connect(address).await.is_ok()).await?;
        }
        Ok(Self { process, group, folder, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The processor time that it and its children have used, in seconds.
    pub fn processor_seconds(&self) -> Result<f64> {
        cgroups::processor_seconds(&self.group)
    }

    /// The memory that it and its children hold now (resident sets), in bytes.
    pub fn memory(&self) -> Result<u64> {
        let members = cgroups::counted_processes(&self.group)?;
        Ok(members.into_iter().filter_map(resident).sum())
    }

    /// Ends it, and puts aside what it kept.
    pub async fn stop(mut self, ground: &Ground) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM)?;
            process.wait(Duration::from_secs(10)).await?;
        }
        cgroups::remove(&self.group)?;
        ground.put_aside(&self.folder)
    }
}

fn resident(process: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// An address of the cache's host on which nobody listens.
pub(super) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((CACHE, 0)).and_then(|listener| listener.local_addr());
    listener.context("cannot find a free port")
}

fn ours(folder: &Path, ground: &Ground, setup: Setup<'_>, address: SocketAddr) -> Result<Command> {
    let Setup { origin, tls, mirrors, .. } = setup;
    let mirrors = (0..mirrors).map(|number| {
        let registry = if number == 0 { "docker.io".to_owned() } else { format!("registry-{number}.example.com") };
        format!(
            "---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {{name: {}}}
spec:
  anonymousPull: true
  upstream: {{url: '{}', registry: {registry}}}
",
            mirror(number),
            origin.url()
        )
    });
    let mut objects: String = mirrors.collect();
    let secrets = folder.join("secrets");
    fs::create_dir_all(&secrets).with_context(|| format!("cannot make {}", secrets.display()))?;
    if tls {
        objects.push_str(
            "---
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {name: default}
spec: {tls: {mode: Secret, secretRef: {name: site}}}
",
        );
        write(&secrets.join("site_tls.crt"), &ground.certificate.chain)?;
        write(&secrets.join("site_tls.key"), &ground.certificate.key)?;
    }
    let configuration = folder.join("config.yaml");
    write(&configuration, &objects)?;
    let mut command = Command::new(beside_this_program("cache-server")?);
    command.arg("--config").arg(configuration).arg("--data").arg(folder.join("data"));
    command.arg("--secrets").arg(secrets).arg("--listen").arg(address.to_string());
    Ok(command)
}

/// As Debian configures it: a worker per processor, an access log, `sendfile`, `tcp_nopush`.
fn nginx(folder: &Path, ground: &Ground, setup: Setup<'_>, address: SocketAddr) -> Result<Command> {
    let Setup { contender, origin, tls, .. } = setup;
    let (chain, key) = (folder.join("site.crt"), folder.join("site.key"));
    write(&chain, &ground.certificate.chain)?;
    write(&key, &ground.certificate.key)?;
    let location = if contender == Contender::NginxStatic {
        format!("root {};", ground.files.display())
    } else {
        format!(
            "proxy_pass {origin}; proxy_http_version 1.1; proxy_set_header Connection '';
      proxy_cache blobs; proxy_cache_valid 200 1d; proxy_cache_key $uri; proxy_ignore_headers Cache-Control Expires;
      proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;",
            origin = origin.url()
        )
    };
    let (listen, certificate) = if tls {
        let files = format!("ssl_certificate {}; ssl_certificate_key {};", chain.display(), key.display());
        (format!("{address} ssl"), files)
    } else {
        (address.to_string(), String::new())
    };
    let configuration = format!(
        "daemon off; user root; worker_processes auto; worker_rlimit_nofile 65536; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 16384; }}
http {{
  access_log {folder}/access.log; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
  keepalive_timeout 1h; default_type application/octet-stream; ssl_protocols TLSv1.3;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/data levels=1:2 keys_zone=blobs:16m max_size=100g inactive=1d use_temp_path=off;
  server {{
    listen {listen} backlog=4096; {certificate}
    location / {{ {location} }}
  }}
}}
",
        folder = folder.display()
    );
    let file = folder.join("nginx.conf");
    write(&file, &configuration)?;
    let mut command = ground.programs.nginx().command();
    command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "stderr"]);
    Ok(command)
}

/// Debian's docker-registry over `folder`, as a cache of `upstream` if there is one.
pub(super) fn docker_registry(folder: &Path, upstream: Option<&Origin>, address: SocketAddr) -> Result<Command> {
    let proxy = upstream.map_or_else(String::new, |origin| format!("proxy: {{remoteurl: '{}'}}\n", origin.url()));
    let configuration = format!(
        "version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {}}}}}
http: {{addr: '{address}'}}
{proxy}",
        folder.join("data").display()
    );
    let file = folder.join("config.yml");
    write(&file, &configuration)?;
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
    Ok(command)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
