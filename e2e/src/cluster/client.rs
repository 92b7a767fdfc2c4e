//! Asking the cluster as its administrator does, with kubectl and helm, and quicker where a case waits.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use reqwest::{Certificate, Identity};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::API_PORT;
use super::authority::{Authority, Pair};

/// The administrator.
#[derive(Debug, Clone)]
pub struct Client {
    /// Where kubectl and helm are.
    programs: PathBuf,
    /// The file by which they reach the apiserver.
    kubeconfig: PathBuf,
    /// Where they keep what they remember.
    home: PathBuf,
    http: reqwest::Client,
}

impl Client {
    /// One that uses this kubeconfig; what programs remember goes to `home`.
    pub fn new(programs: &Path, kubeconfig: &Path, home: &Path, authority: &Authority, own: &Pair) -> Result<Self> {
        // Fails only if it is set already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let identity = format!("{}{}", own.certificate, own.key);
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(
                [Certificate::from_pem(authority.pem().as_bytes()).context("the cluster's CA is unusable")?],
            )
            .identity(Identity::from_pem(identity.as_bytes()).context("the administrator's key is unusable")?)
            .build()
            .context("cannot make a client of the apiserver")?;
        Ok(Self { programs: programs.into(), kubeconfig: kubeconfig.into(), home: home.into(), http })
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs `kubectl` and gives what it printed on standard output; an error says what it complained of.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("kubectl", arguments, "").await
    }

    /// Runs `kubectl` with something to read.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run("kubectl", arguments, input).await
    }

    /// Runs `helm`.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run("helm", arguments, "").await
    }

    /// The body of a GET of the apiserver, which must answer 200: `/api/v1/nodes`.
    pub async fn raw(&self, path: &str) -> Result<String> {
        let answer = self.http.get(format!("https://127.0.0.1:{API_PORT}{path}")).send().await?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("GET {path} broke off"))?;
        ensure!(status == 200, "GET {path}: {status} {text}");
        Ok(text)
    }

    /// The same, as JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let text = self.raw(path).await?;
        serde_json::from_str(&text).with_context(|| format!("GET {path} is not JSON"))
    }

    async fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = tokio::process::Command::new(self.programs.join(program))
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read ends with an error of its own.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.with_context(|| format!("cannot wait for {program}"))?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{program} {}`: {out}{complaint}", arguments.join(" "));
        Ok(out)
    }
}
