//! The read-only mode of the OCI conformance suite through a mirror.
//!
//! The suite is told what there is (two tags, a manifest, two blobs, a subject with a referrer) and asks for it in every
//! way that the specification names. Its program ends badly after the report, so the report is what counts.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::Client;
use serde_json::{Value, json};
use url::Url;

use super::engines::start_cache;
use crate::package::digest::sha256;
use crate::package::layout::{INDEX, MANIFEST};
use crate::suite::{Case, World};

/// Where this case's cache serves.
const PORT: u16 = 5020;
/// The image name on the upstream.
const NAME: &str = "conformance/content";
/// Every check of the read-only mode for what we tell it.
const CHECKS: usize = 18;
/// The config of artifacts: two bytes.
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const LAYER_TYPE: &str = "application/octet-stream";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new("conformance: read-only mode through a mirror, cold and warm", |world| {
        Box::pin(cold_and_warm(world))
    })]
}

async fn cold_and_warm(world: &World) -> Result<()> {
    let content = Content::new();
    content.push(&world.upstream.push_endpoint()?).await?;
    let mut cache = start_cache(world, "conformance", PORT, "").await?;
    for state in ["cold", "warm"] {
        let folder = world.lab.dir(&format!("conformance/{state}"))?;
        let report = content
            .grade(&world.programs.conformance(), &cache.listen().to_string(), &folder)
            .await?;
        let (passed, failed) = (count(&report, "Pass")?, count(&report, "FAIL")?);
        println!("         {state}: {passed} of {CHECKS}");
        ensure!(passed == CHECKS && failed == 0, "{state}: {passed} passed, {failed} failed\n{report}");
    }
    cache.stop().await
}

/// The number behind a status in the suite's report.
fn count(report: &str, status: &str) -> Result<usize> {
    report
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().trim_end_matches('.') == status)
        .and_then(|(_, number)| number.trim().parse().ok())
        .with_context(|| format!("the suite did not say how many are {status}:\n{report}"))
}

/// What the suite is told to ask for.
#[derive(Debug)]
struct Content {
    blob: Vec<u8>,
    image: Vec<u8>,
    referrer: Vec<u8>,
    /// The index under the tag that stands for the referrers API where a registry has none.
    referrers: Vec<u8>,
}

impl Content {
    fn new() -> Self {
        let blob = b"a blob of the conformance case".to_vec();
        let image = manifest("application/vnd.oci.image.config.v1+json", &blob, None);
        let subject = descriptor(MANIFEST, &image);
        let referrer = manifest(EMPTY_TYPE, &blob, Some(subject));
        let mut entry = descriptor(MANIFEST, &referrer);
        entry["artifactType"] = json!("application/vnd.example.signature");
        let referrers = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        Self {
            blob,
            image,
            referrer,
            referrers: referrers.to_string().into_bytes(),
        }
    }

    async fn push(&self, endpoint: &str) -> Result<()> {
        let registry = Registry::at(endpoint)?;
        registry.put_blob(EMPTY).await?;
        registry.put_blob(&self.blob).await?;
        registry.put_manifest("one", MANIFEST, &self.image).await?;
        registry.put_manifest("two", MANIFEST, &self.image).await?;
        registry.put_manifest(&digest(&self.referrer), MANIFEST, &self.referrer).await?;
        let fallback = digest(&self.image).replace(':', "-");
        registry.put_manifest(&fallback, INDEX, &self.referrers).await
    }

    /// Runs the suite against a registry; what it printed.
    async fn grade(&self, suite: &Path, registry: &str, folder: &Path) -> Result<String> {
        let output = tokio::process::Command::new(suite)
            .current_dir(folder)
            .env("OCI_REGISTRY", registry)
            .env("OCI_TLS", "disabled")
            .env("OCI_VERSION", "1.1")
            .env("OCI_REPO1", NAME)
            .env("OCI_REPO2", NAME)
            .env("OCI_RESULTS_DIR", folder)
            .env("OCI_API_PUSH", "false")
            .env("OCI_API_BLOBS_DELETE", "false")
            .env("OCI_API_MANIFESTS_DELETE", "false")
            .env("OCI_API_TAGS_DELETE", "false")
            .env("OCI_RO_DATA_TAGS", "one two")
            .env("OCI_RO_DATA_MANIFESTS", digest(&self.image))
            .env("OCI_RO_DATA_BLOBS", format!("{} {}", digest(&self.blob), digest(EMPTY)))
            .env("OCI_RO_DATA_REFERRERS", digest(&self.image))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run the conformance suite")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn manifest(config_type: &str, layer: &[u8], subject: Option<Value>) -> Vec<u8> {
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config_type, EMPTY),
        "layers": [descriptor(LAYER_TYPE, layer)],
    });
    if let Some(subject) = subject {
        document["artifactType"] = json!("application/vnd.example.signature");
        document["subject"] = subject;
    }
    document.to_string().into_bytes()
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

/// The bare registry of the upstream, to push documents that are no images to.
#[derive(Debug)]
struct Registry {
    http: Client,
    base: Url,
}

impl Registry {
    fn at(endpoint: &str) -> Result<Self> {
        Ok(Self {
            http: Client::builder().no_proxy().build()?,
            base: Url::parse(&format!("http://{endpoint}/v2/{NAME}/"))?,
        })
    }

    async fn put_blob(&self, content: &[u8]) -> Result<()> {
        let begin = self.http.post(self.base.join("blobs/uploads/")?).header(CONTENT_LENGTH, 0);
        let begun = begin.send().await?.error_for_status()?;
        let location = begun
            .headers()
            .get(LOCATION)
            .context("the registry began an upload without a Location")?;
        let mut target = self.base.join(location.to_str()?)?;
        target.query_pairs_mut().append_pair("digest", &digest(content));
        let put = self.http.put(target).header(CONTENT_TYPE, LAYER_TYPE).body(content.to_vec());
        put.send().await?.error_for_status().map(drop).context("the registry refused a blob")
    }

    async fn put_manifest(&self, reference: &str, media_type: &str, content: &[u8]) -> Result<()> {
        // A path segment with a colon would be read as a scheme.
        let target = self.base.join(&format!("./manifests/{reference}"))?;
        let put = self.http.put(target).header(CONTENT_TYPE, media_type).body(content.to_vec());
        let answer = put.send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "the registry refused {reference}: {status} {}", answer.text().await?);
        Ok(())
    }
}
