//! Reverse proxies before a cache server, from Debian's packages: a case writes their sites as a guide has them, and the
//! rest of their configuration is here.

pub mod certificate;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpStream;

pub use certificate::Certificate;

use crate::install::Programs;
use crate::lab::{Lab, Process};

/// How long a proxy may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The modules that a proxy to HTTP with TLS needs; those that every Apache has are not among them.
const APACHE_MODULES: [(&str, &str); 6] = [
    ("mpm_event_module", "mod_mpm_event.so"),
    ("authz_core_module", "mod_authz_core.so"),
    ("headers_module", "mod_headers.so"),
    ("proxy_module", "mod_proxy.so"),
    ("proxy_http_module", "mod_proxy_http.so"),
    ("ssl_module", "mod_ssl.so"),
];

/// A running reverse proxy; dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
}

impl Proxy {
    /// Starts nginx with these `server` blocks and waits until it listens on all of these addresses. `CERTIFICATE` and
    /// `KEY` in them stand for the files of the certificate.
    pub async fn nginx(
        lab: &Lab,
        programs: &Programs,
        name: &str,
        (sites, certificate): (&str, &Certificate),
        listen: &[SocketAddr],
    ) -> Result<Self> {
        let folder = lab.dir(&format!("proxies/{name}"))?;
        let sites = certificate.write_into(&folder, sites)?;
        // One process without a master, so that it ends with its handle.
        let configuration = format!(
            "daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 512; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{sites}
}}
",
            folder = folder.display()
        );
        let file = folder.join("nginx.conf");
        write(&file, &configuration)?;
        let mut command = programs.nginx().command();
        command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
        Self::start(lab, name, command, listen).await
    }

    /// Starts Apache httpd with these virtual hosts; the rest as for [`Self::nginx`].
    pub async fn apache(
        lab: &Lab,
        programs: &Programs,
        name: &str,
        (sites, certificate): (&str, &Certificate),
        listen: &[SocketAddr],
    ) -> Result<Self> {
        let folder = lab.dir(&format!("proxies/{name}"))?;
        let sites = certificate.write_into(&folder, sites)?;
        let tree = programs.apache();
        let modules = tree.path("usr/lib/apache2/modules");
        let modules =
            APACHE_MODULES.map(|(module, file)| format!("LoadModule {module} {}/{file}\n", modules.display()));
        let ports: Vec<String> = listen.iter().map(|address| format!("Listen {address}\n")).collect();
        let configuration = format!(
            "ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/apache.pid
ServerName proxy
User www-data
Group www-data
ErrorLog /dev/stderr
{modules}{ports}{sites}
",
            folder = folder.display(),
            modules = modules.concat(),
            ports = ports.concat(),
        );
        let file = folder.join("apache.conf");
        write(&file, &configuration)?;
        let mut command = tree.command();
        // One process, so that it ends with its handle.
        command.arg("-X").arg("-f").arg(&file);
        Self::start(lab, name, command, listen).await
    }

    async fn start(lab: &Lab, name: &str, command: Command, listen: &[SocketAddr]) -> Result<Self> {
        let mut process = lab.spawn(name, command)?;
        for address in listen {
            process.until(START_LIMIT, async || TcpStream::connect(address).await.is_ok()).await?;
        }
        Ok(Self { process })
    }

    /// Ends it at once: it holds nothing, and Apache's debug mode does not always heed SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        self.process.kill()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
