//! The OCI conformance suite: every workflow on a hosted repository, directly and behind nginx, and the read-only mode
//! through a mirror and a group.
//!
//! In the read-only mode the suite is told what there is (two tags, a manifest, two blobs, a subject with a referrer) and
//! asks for it in every way that the specification names. Its program ends badly after the report, so the report is what
//! counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::engines::start_cache;
use super::objects::{Objects, password, users};
use super::proxies::{PUSH_HOST, behind_nginx};
use super::registry::Registry;
use crate::content::one_file::digest;
use crate::lab::CacheServer;
use crate::package::layout::{INDEX, MANIFEST};
use crate::suite::{Case, World};

/// Where the mirror's cache serves.
const PORT: u16 = 5020;
/// Where the hosted repository is served, and the group before it.
const PORTS: [u16; 2] = [5030, 5031];
/// The image name of the read-only mode.
const NAME: &str = "conformance/content";
/// Every check of the read-only mode for what we tell it.
const CHECKS: usize = 18;
/// Who pushes.
const USER: &str = "tester";
/// The config of artifacts: two bytes.
const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const LAYER_TYPE: &str = "application/octet-stream";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("conformance: read-only mode through a mirror, cold and warm", |world| {
            Box::pin(cold_and_warm(world))
        }),
        Case::new("conformance: every workflow on a hosted repository, read-only mode through a group", |world| {
            Box::pin(hosted_and_group(world))
        }),
        Case::new("conformance: every workflow on a hosted repository behind nginx", |world| {
            Box::pin(behind_a_proxy(world))
        }),
    ]
}

async fn cold_and_warm(world: &World) -> Result<()> {
    let content = Content::new();
    content.push(&Registry::at(&format!("http://{}/", world.upstream.push_endpoint()?))?).await?;
    let mut cache = start_cache(world, "conformance", PORT, "").await?;
    for state in ["cold", "warm"] {
        content.ensure_readable(world, state, &cache.listen().to_string()).await?;
    }
    cache.stop().await
}

async fn hosted_and_group(world: &World) -> Result<()> {
    let [hosted, group] = PORTS;
    let objects = Objects::new(&world.upstream)
        .users(&users(&[USER]), all_to(USER))?
        .hosted("conformance", json!({ "connectors": [{ "port": hosted }], "sparseImages": true }))
        .group("reading", &["conformance"], json!({ "connectors": [{ "port": group }] }));
    let mut cache = CacheServer::start(&world.lab, objects.setup("conformance-hosted")).await?;
    let at = |port: u16| format!("{}:{port}", cache.listen().ip());

    let content = Content::new();
    content.push(&Registry::at(&format!("http://{}/", at(hosted)))?.login(USER, &password(USER))).await?;
    content.ensure_readable(world, "group", &at(group)).await?;

    let mut run = Suite::new(world, "hosted", &at(hosted))?;
    run.every_workflow();
    run.run().await?.ensure_nothing_is_amiss()?;
    cache.stop().await
}

async fn behind_a_proxy(world: &World) -> Result<()> {
    let permissions = all_to(USER);
    let mut nginx = behind_nginx(world, "conformance-nginx", &users(&[USER]), permissions).await?;
    let mut suite = Suite::new(world, "nginx", PUSH_HOST)?;
    suite.every_workflow();
    suite.over_tls(&nginx.certificate.ca)?;
    suite.run().await?.ensure_nothing_is_amiss()?;
    nginx.stop().await
}

fn all_to(user: &str) -> Value {
    json!([{ "users": [user], "repositories": ["*"], "actions": ["Pull", "Push", "Delete"] }])
}

/// One run of the suite.
#[derive(Debug)]
struct Suite {
    name: String,
    program: PathBuf,
    folder: PathBuf,
    variables: BTreeMap<&'static str, String>,
}

impl Suite {
    fn new(world: &World, name: &str, registry: &str) -> Result<Self> {
        let folder = world.lab.dir(&format!("conformance/{name}"))?;
        let variables = BTreeMap::from([
            ("OCI_REGISTRY", registry.to_owned()),
            ("OCI_TLS", "disabled".to_owned()),
            ("OCI_VERSION", "1.1".to_owned()),
            ("OCI_RESULTS_DIR", folder.display().to_string()),
        ]);
        Ok(Self { name: name.to_owned(), program: world.programs.conformance(), folder, variables })
    }

    fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.variables.insert(variable, value.into());
    }

    /// All that the suite can ask for, also what it leaves out unless it is told.
    fn every_workflow(&mut self) {
        for (variable, value) in [
            ("OCI_VERSION", "1.1+dev"),
            ("OCI_DATA_SPARSE", "true"),
            ("OCI_REPO1", "conformance/one"),
            ("OCI_REPO2", "conformance/two"),
            ("OCI_USERNAME", USER),
            ("OCI_PASSWORD", &password(USER)),
        ] {
            self.set(variable, value);
        }
    }

    fn over_tls(&mut self, ca: &str) -> Result<()> {
        let file = self.folder.join("ca.pem");
        std::fs::write(&file, ca).context("cannot write an authority")?;
        self.set("OCI_TLS", "enabled");
        self.set("SSL_CERT_FILE", file.display().to_string());
        Ok(())
    }

    async fn run(&self) -> Result<Report> {
        let output = tokio::process::Command::new(&self.program)
            .current_dir(&self.folder)
            .envs(&self.variables)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run the conformance suite")?;
        let report = Report::read(&String::from_utf8_lossy(&output.stdout))?;
        println!("         {}: {}", self.name, report.summary());
        Ok(report)
    }
}

/// What the suite said of a run.
#[derive(Debug)]
struct Report {
    text: String,
    passed: usize,
    failed: usize,
    errors: usize,
    disabled: usize,
    /// Each check that was left out, and why.
    skipped: Vec<(String, String)>,
}

impl Report {
    fn read(text: &str) -> Result<Self> {
        Ok(Self {
            passed: count(text, "Pass")?,
            failed: count(text, "FAIL")?,
            errors: count(text, "Error")?,
            disabled: count(text, "Disabled")?,
            skipped: ended(text, "Skip"),
            text: text.to_owned(),
        })
    }

    fn summary(&self) -> String {
        let Self { passed, failed, errors, disabled, skipped, .. } = self;
        format!("{passed} passed, {failed} failed, {errors} errors, {} skipped, {disabled} disabled", skipped.len())
    }

    /// Fails, and says which, when a check failed or was left out. Every switch of the suite is on.
    fn ensure_nothing_is_amiss(&self) -> Result<()> {
        let failed = ended(&self.text, "FAIL");
        ensure!(failed.is_empty() && self.failed == 0 && self.errors == 0, "{}:\n{failed:#?}", self.summary());
        let disabled: Vec<_> = self.text.lines().filter_map(|line| line.trim().strip_suffix(": Disabled")).collect();
        let none = self.skipped.is_empty() && disabled.is_empty() && self.disabled == 0;
        ensure!(none, "left out, {}:\n{:#?}\n{disabled:#?}", self.summary(), self.skipped);
        Ok(())
    }
}

/// The checks that ended like this, and what the suite said of each in the first line behind it: those that stand for others
/// are left out.
fn ended(text: &str, status: &str) -> Vec<(String, String)> {
    let mut lines = text.lines().peekable();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some((check, word)) = line.rsplit_once(": ") else { continue };
        let reason = lines.peek().and_then(|next| next.trim_start().strip_prefix("- "));
        if let Some(reason) = reason.filter(|_| word == status) {
            found.push((check.trim().to_owned(), reason.to_owned()));
        }
    }
    found
}

/// The number behind a status in the suite's report.
fn count(report: &str, status: &str) -> Result<usize> {
    report
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, number)| name.trim().trim_end_matches('.') == status && number.trim().parse::<usize>().is_ok())
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
        Self { blob, image, referrer, referrers: referrers.to_string().into_bytes() }
    }

    async fn push(&self, registry: &Registry) -> Result<()> {
        for blob in [EMPTY, &self.blob] {
            registry.put_blob(NAME, blob).await?.ensure(201)?;
        }
        let fallback = digest(&self.image).replace(':', "-");
        for (reference, media_type, content) in [
            ("one", MANIFEST, &self.image),
            ("two", MANIFEST, &self.image),
            (digest(&self.referrer).as_str(), MANIFEST, &self.referrer),
            (fallback.as_str(), INDEX, &self.referrers),
        ] {
            registry.put_manifest(NAME, reference, media_type, content).await?.ensure(201)?;
        }
        Ok(())
    }

    /// Runs the read-only mode against a registry that has it all.
    async fn ensure_readable(&self, world: &World, name: &str, registry: &str) -> Result<()> {
        let mut suite = Suite::new(world, name, registry)?;
        for switch in ["OCI_API_PUSH", "OCI_API_BLOBS_DELETE", "OCI_API_MANIFESTS_DELETE", "OCI_API_TAGS_DELETE"] {
            suite.set(switch, "false");
        }
        suite.set("OCI_REPO1", NAME);
        suite.set("OCI_REPO2", NAME);
        suite.set("OCI_RO_DATA_TAGS", "one two");
        suite.set("OCI_RO_DATA_MANIFESTS", digest(&self.image));
        suite.set("OCI_RO_DATA_BLOBS", format!("{} {}", digest(&self.blob), digest(EMPTY)));
        suite.set("OCI_RO_DATA_REFERRERS", digest(&self.image));
        let report = suite.run().await?;
        let whole = report.passed == CHECKS && report.failed == 0;
        ensure!(whole, "{name}: not {CHECKS} passed and none failed\n{}", report.text);
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_suite_says() {
        let text = "Test results
OCI Conformance Test: FAIL
  OCI Conformance Test/empty: FAIL
    OCI Conformance Test/empty/tag list: Pass
    OCI Conformance Test/empty/referrers: FAIL
     - header value mismatch for \"Content-Type\"
      OCI Conformance Test/post only/blob-post-only: Skip
       - registry does not support content in the POST

OCI Conformance Result: FAIL
  Disabled......................:          0
  Skip..........................:          1
  Pass..........................:          1
  FAIL..........................:          1
  Error.........................:          0
  Total.........................:          3
";
        let report = Report::read(text).expect("should be readable");
        assert_eq!((report.passed, report.failed, report.errors, report.disabled), (1, 1, 0, 0));
        let skipped =
            ("OCI Conformance Test/post only/blob-post-only", "registry does not support content in the POST");
        assert_eq!(report.skipped, [(skipped.0.to_owned(), skipped.1.to_owned())]);
        let error = report.ensure_nothing_is_amiss().expect_err("should tell of the failure").to_string();
        assert!(error.contains("empty/referrers") && error.contains("Content-Type"), "{error}");
    }
}
