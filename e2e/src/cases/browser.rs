//! A real browser looks at what a host without internet pulled through a group.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::engines::start_cache;
use crate::engine::Docker;
use crate::suite::{Case, World};

/// Where this case's cache serves: not 5060, which browsers keep for telephony.
const PORT: u16 = 5090;
/// Chromium without windows.
const BROWSER: &str = "chromium-headless-shell";

/// A group over the mirror, for requests that name no repository.
const GROUP: &str = "---
apiVersion: entrepot.dev/v1alpha1
kind: RepositoryGroup
metadata: {name: all}
spec: {members: [docker-hub]}
---
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {name: default}
spec: {defaultRepository: all}
";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new("browser: Chromium shows the tags, manifests and blobs of a pulled image", |world| {
        Box::pin(looks(world))
    })]
}

async fn looks(world: &World) -> Result<()> {
    let mut cache = start_cache(world, "browser", PORT, GROUP).await?;
    // What an earlier case pulled, dockerd would not fetch: a manifest stays when its image is removed.
    let mut keys = Docker::keys(&world.lab, "browser")?;
    keys["registry-mirrors"] = json!([cache.url()]);
    let mut docker = Docker::start_with(&world.lab, &world.programs, &keys.to_string(), &[]).await?;
    let image = &world.images.mysql;
    docker.pull(&image.reference()).await?;
    docker.stop().await?;

    let begun = Instant::now();
    let browser = Browser { profile: world.lab.dir("browser")? };
    let front = browser.page(&cache.url())?;
    ensure!(front.contains("all") && front.contains("docker-hub"), "the first page lists other repositories:\n{front}");
    ensure!(front.contains("href=\"/browse/all\""), "the first page does not lead to the group:\n{front}");
    for repository in ["all", "docker-hub"] {
        let images = browser.page(&format!("{}/browse/{repository}", cache.url()))?;
        ensure!(images.contains(&image.name), "{repository} does not list {}:\n{images}", image.name);
        let name = image.name.replace('/', "%2F");
        let page = browser.page(&format!("{}/browse/{repository}?image={name}", cache.url()))?;
        let pull = format!("docker pull {}/{repository}/{}:latest", cache.listen(), image.name);
        ensure!(page.contains(&pull), "{repository} does not say {pull:?}:\n{page}");
        let blobs = image.blobs()?;
        for (digest, _) in &blobs {
            ensure!(page.contains(digest.as_str()), "{repository} does not show the blob {digest}:\n{page}");
        }
        let whole = format!("{0} of {0} parts cached", blobs.len());
        ensure!(page.contains(&whole), "{repository} does not say {whole:?}:\n{page}");
    }
    println!("         Chromium showed 5 pages in {:.1} s", begun.elapsed().as_secs_f64());
    cache.stop().await
}

/// A browser with a profile of its own.
struct Browser {
    profile: std::path::PathBuf,
}

impl Browser {
    /// The document that a browser has made of a page. A page that asks for more than its own policy allows is an error.
    fn page(&self, url: &str) -> Result<String> {
        let output = Command::new(BROWSER)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--enable-logging=stderr", "--dump-dom"])
            .arg(profile(&self.profile))
            .arg(url)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {BROWSER}"))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{BROWSER} ended with {} at {url}:\n{told}", output.status);
        ensure!(!told.contains("Content Security Policy"), "{url} breaks its own policy:\n{told}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn profile(folder: &Path) -> String {
    format!("--user-data-dir={}", folder.display())
}
