//! A registry, asked over HTTP as a client asks it that also pushes: any method, with a login or without.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Certificate, Client, Method, RequestBuilder, redirect::Policy};
use url::Url;

use crate::content::one_file::{OneFile, digest};
use crate::package::layout::{INDEX, MANIFEST};
use crate::upstream::content::Content;

/// The type under which blobs are sent.
const BLOB: &str = "application/octet-stream";

/// A registry under a base URL, as one of its users sees it.
#[derive(Debug, Clone)]
pub struct Registry {
    http: Client,
    base: Url,
    login: Option<(String, String)>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// The URL that was asked.
    pub url: Url,
    /// What was asked, for beside a failure.
    asked: String,
}

impl Registry {
    /// The registry whose `v2/` lies in this folder (`http://HOST:PORT/`, `…/repository/NAME/`), nobody logged in.
    pub fn at(base: &str) -> Result<Self> {
        Ok(Self {
            http: Client::builder().no_proxy().redirect(Policy::none()).build()?,
            base: Url::parse(base)?,
            login: None,
        })
    }

    /// The same over TLS with this authority; every host name leads to `address`.
    pub fn trusting(base: &str, ca: &str, address: SocketAddr) -> Result<Self> {
        let base = Url::parse(base)?;
        let host = base.host_str().context("a base without a host")?.to_owned();
        let ca = Certificate::from_pem(ca.as_bytes())?;
        let builder = Client::builder().no_proxy().redirect(Policy::none()).tls_certs_only([ca]);
        Ok(Self { http: builder.resolve(&host, address).build()?, base, login: None })
    }

    /// The same, as a user.
    #[must_use]
    pub fn login(&self, user: &str, password: &str) -> Self {
        Self { login: Some((user.to_owned(), password.to_owned())), ..self.clone() }
    }

    /// The same, as nobody in particular.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self { login: None, ..self.clone() }
    }

    /// The same client at another base.
    pub fn rebased(&self, base: &str) -> Result<Self> {
        Ok(Self { base: self.base.join(base)?, ..self.clone() })
    }

    /// The base URL.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// A request for a path below the base (`v2/app/tags/list`), or for a whole URL.
    pub fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let url = self.base.join(path).with_context(|| format!("{path} is no path"))?;
        let request = self.http.request(method, url);
        Ok(match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        })
    }

    /// Sends a request and reads the answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let request = request.build()?;
        let url = request.url().clone();
        let asked = format!("{} {url}", request.method());
        let answer = self.http.execute(request).await.with_context(|| asked.clone())?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.with_context(|| asked.clone())?.to_vec();
        Ok(Answer { status, headers, body, url, asked })
    }

    /// Asks without a body, for manifests of every type.
    pub async fn ask(&self, method: Method, path: &str) -> Result<Answer> {
        let any = format!("{MANIFEST}, {INDEX}, application/vnd.docker.distribution.manifest.v2+json, */*");
        self.send(self.request(method, path)?.header(ACCEPT, any)).await
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Method::GET, path).await
    }

    /// HEAD.
    pub async fn head(&self, path: &str) -> Result<Answer> {
        self.ask(Method::HEAD, path).await
    }

    /// A token as a challenge asks for it, for this login.
    pub async fn token(&self, challenge: &str) -> Result<String> {
        let part = |name: &str| {
            let (_, rest) = challenge.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let mut url = Url::parse(part("realm").with_context(|| format!("no realm in {challenge}"))?)?;
        for name in ["service", "scope"] {
            if let Some(value) = part(name) {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        let answer = self.get(url.as_str()).await?;
        answer.ensure(200)?;
        let token = answer.json()?["token"].as_str().map(str::to_owned);
        token.with_context(|| format!("no token: {}", answer.said()))
    }

    /// Begins an upload, perhaps with a query (`mount=…`).
    pub async fn post_upload(&self, image: &str, query: &str) -> Result<Answer> {
        let path = format!("v2/{image}/blobs/uploads/{query}");
        self.send(self.request(Method::POST, &path)?.header(CONTENT_LENGTH, 0)).await
    }

    /// Uploads a blob by POST and PUT, where the `Location` leads.
    pub async fn put_blob(&self, image: &str, content: &[u8]) -> Result<Answer> {
        let begun = self.post_upload(image, "").await?;
        if begun.status != 202 {
            return Ok(begun);
        }
        let mut target =
            self.base.join(&format!("v2/{image}/blobs/uploads/"))?.join(begun.header(LOCATION.as_str())?)?;
        target.query_pairs_mut().append_pair("digest", &digest(content));
        let put = self.request(Method::PUT, target.as_str())?.header(CONTENT_TYPE, BLOB);
        self.send(put.body(content.to_vec())).await
    }

    /// Puts a manifest.
    pub async fn put_manifest(&self, image: &str, reference: &str, media_type: &str, content: &[u8]) -> Result<Answer> {
        let put =
            self.request(Method::PUT, &format!("v2/{image}/manifests/{reference}"))?.header(CONTENT_TYPE, media_type);
        self.send(put.body(content.to_vec())).await
    }

    /// Pushes an image whole.
    pub async fn push(&self, image: &str, tag: &str, pushed: &OneFile) -> Result<()> {
        for blob in [&pushed.config, &pushed.layer] {
            self.put_blob(image, blob).await?.ensure(201)?;
        }
        self.put_manifest(image, tag, MANIFEST, &pushed.manifest).await?.ensure(201)
    }

    /// Pulls an image whole, by tag, and compares.
    pub async fn pull(&self, image: &str, tag: &str, expected: &OneFile) -> Result<()> {
        let manifest = self.get(&format!("v2/{image}/manifests/{tag}")).await?;
        manifest.ensure(200)?;
        ensure!(manifest.body == expected.manifest, "{} is not the manifest that was pushed", manifest.asked);
        for blob in [&expected.config, &expected.layer] {
            let got = self.get(&format!("v2/{image}/blobs/{}", digest(blob))).await?;
            got.ensure(200)?;
            ensure!(got.body == *blob, "{} is not the blob that was pushed", got.asked);
        }
        Ok(())
    }
}

impl Answer {
    /// A header that must be there.
    pub fn header(&self, name: &str) -> Result<&str> {
        let value = self.headers.get(name).with_context(|| format!("{} was answered without {name}", self.said()))?;
        value.to_str().with_context(|| format!("{} was answered with a {name} that is no text", self.asked))
    }

    /// Fails unless the status is this.
    pub fn ensure(&self, status: u16) -> Result<()> {
        ensure!(self.status == status, "expected {status}: {}", self.said());
        Ok(())
    }

    /// What was asked and answered.
    #[must_use]
    pub fn said(&self) -> String {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]).into_owned();
        format!("{} was answered by {} {body}", self.asked, self.status)
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.said()))
    }
}

/// Puts an image into the upstream's synthetic content.
pub fn put_upstream(content: &Content, name: &str, tag: &str, image: &OneFile) {
    content.put_blob(name, image.config.clone());
    content.put_blob(name, image.layer.clone());
    content.put_manifest(name, Some(tag), MANIFEST, &image.manifest);
}
