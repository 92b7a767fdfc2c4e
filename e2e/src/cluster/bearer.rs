//! Asking the apiserver as someone else: with a token, and nothing of the administrator's.

use std::fs;

use anyhow::{Context, Result};
use http::Method;
use http::header::{self, CONTENT_TYPE};
use reqwest::Certificate;

use super::{API_PORT, Cluster};

/// How these requests call themselves in the audit log, to be told from those of the product.
pub const USER_AGENT: &str = "entrepot-e2e";

/// Whoever owns a token.
#[derive(Debug)]
pub struct Bearer {
    http: reqwest::Client,
    token: String,
}

/// What the apiserver answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub text: String,
}

impl Bearer {
    /// One with this token.
    pub fn new(cluster: &Cluster, token: String) -> Result<Self> {
        Ok(Self { http: client(cluster)?, token })
    }

    /// Sends a request without a body.
    pub async fn ask(&self, method: Method, path: &str) -> Result<Answer> {
        self.send(self.request(method, path)).await
    }

    /// Sends a request with a JSON body of this type (`application/merge-patch+json`).
    pub async fn write(&self, method: Method, path: &str, kind: &str, body: String) -> Result<Answer> {
        self.send(self.request(method, path).header(CONTENT_TYPE, kind).body(body)).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, url(path)).bearer_auth(&self.token).header(header::USER_AGENT, USER_AGENT)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let answer = request.send().await.context("the apiserver does not answer")?;
        Ok(Answer { status: answer.status().as_u16(), text: answer.text().await.context("an answer broke off")? })
    }
}

/// A client that trusts the cluster's CA and is nobody.
pub fn client(cluster: &Cluster) -> Result<reqwest::Client> {
    let path = cluster.folder().join("ca.pem");
    let pem = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&pem).context("the cluster's CA is unusable")?])
        .build()
        .context("cannot make a client of the apiserver")
}

/// The URL of a path at the apiserver.
#[must_use]
pub fn url(path: &str) -> String {
    format!("https://127.0.0.1:{API_PORT}{path}")
}
