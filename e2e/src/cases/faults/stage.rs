//! What every row works on: an image of its own at the upstream, and a cache server of its own.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::CacheServer,
    suite::World,
    upstream::{
        blob::Blob,
        client::{Ask, Ending, Got},
        content::Made,
        counts::Asked,
        fault::{Fault, Target},
        mirror::{Configuration, Mirror},
    },
};

/// The size of the layer of every row's image, as in the measurements of the references.
pub(super) const LAYER: u64 = 4 * 1024 * 1024;

/// One row's image at the upstream.
pub(super) struct Stage<'w> {
    /// The run.
    pub world: &'w World,
    /// The image: one layer, tag `latest`.
    pub made: Made,
    /// Another valid manifest, not of this image.
    pub other: Vec<u8>,
    name: String,
    spoil: fn(&Stage<'_>),
}

impl<'w> Stage<'w> {
    /// Puts an image of one layer under a name of its own on the upstream.
    pub(super) fn new(world: &'w World, name: &str, spoil: fn(&Stage<'_>)) -> Result<Self> {
        Self::with_layer(world, name, LAYER, spoil)
    }

    fn with_layer(world: &'w World, name: &str, length: u64, spoil: fn(&Stage<'_>)) -> Result<Self> {
        let seed = name.bytes().fold(length, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let content = world.upstream.content();
        let image = format!("library/{name}");
        let made = content.put_image(&image, "latest", vec![Blob::generated(seed, length)])?;
        let other = content.put_image(&format!("{image}-other"), "latest", Vec::new())?;
        Ok(Self { world, made, other: other.manifest, name: name.to_owned(), spoil })
    }

    /// The name of this row's servers and folders.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A server with quick limits that mirrors Docker Hub.
    pub(super) async fn server(&self) -> Result<CacheServer> {
        self.server_of(Mirror::hub()).await
    }

    /// A server with quick limits and this mirror.
    pub(super) async fn server_of(&self, mirror: Mirror) -> Result<CacheServer> {
        let configuration = Configuration::quick(&self.world.upstream).mirror(mirror);
        CacheServer::start(&self.world.lab, configuration.setup(&self.name)).await
    }

    /// Makes the upstream fail as the row says.
    pub(super) fn spoil(&self) {
        (self.spoil)(self);
    }

    /// Repairs the upstream for this row's image.
    pub(super) fn repair(&self) {
        self.world.upstream.faults().clear_path(&format!("/{}/", self.made.name));
    }

    /// Requests for the layer.
    pub(super) fn layer_target(&self) -> Target {
        Target::path(self.layer_path()).method("GET")
    }

    /// Requests for the layer, HEAD too.
    pub(super) fn any_layer_target(&self) -> Target {
        Target::path(self.layer_path())
    }

    /// Requests for manifests.
    pub(super) fn manifest_target(&self) -> Target {
        Target::path(format!("/{}/manifests/", self.made.name))
    }

    /// Every request for the image.
    pub(super) fn image_target(&self) -> Target {
        Target::path(format!("/{}/", self.made.name))
    }

    /// Sets a fault.
    pub(super) fn set(&self, target: Target, fault: Fault) {
        self.world.upstream.faults().set(target, fault);
    }

    /// Sets a fault for the next request.
    pub(super) fn set_once(&self, target: Target, fault: Fault) {
        self.world.upstream.faults().set_times(1, target, fault);
    }

    /// The layer's digest.
    pub(super) fn layer_digest(&self) -> &str {
        self.made.layers.first().map_or("", |(digest, _)| digest)
    }

    /// The layer.
    pub(super) fn layer(&self) -> Result<&Blob> {
        let (_, blob) = self.made.layers.first().context("an image without layers")?;
        Ok(blob)
    }

    /// Path of the layer.
    pub(super) fn layer_path(&self) -> String {
        format!("/v2/{}/blobs/{}", self.made.name, self.layer_digest())
    }

    /// Path of the manifest by tag.
    pub(super) fn tag_path(&self) -> String {
        format!("/v2/{}/manifests/latest", self.made.name)
    }

    /// Path of the manifest by digest.
    pub(super) fn digest_path(&self) -> String {
        format!("/v2/{}/manifests/{}", self.made.name, self.made.digest)
    }

    /// Pulls the layer, each byte compared.
    pub(super) async fn pull_layer(&self, server: &CacheServer) -> Result<Got> {
        let ask = Ask::get(self.layer_path()).expecting(self.layer()?, 0);
        ask.run(server.listen()).await
    }

    /// Pulls the layer and fails unless it is whole and right.
    pub(super) async fn pull_whole_layer(&self, server: &CacheServer) -> Result<Got> {
        let got = self.pull_layer(server).await?;
        got.ensure_whole(self.layer_digest())?;
        Ok(got)
    }

    /// Gets the manifest by tag and fails unless it is right.
    pub(super) async fn pull_tag(&self, server: &CacheServer) -> Result<Got> {
        let got = get(server, &self.tag_path()).await?;
        got.ensure_whole(&self.made.digest)?;
        Ok(got)
    }

    /// Fails unless a repaired upstream is usable at once.
    pub(super) async fn ensure_repaired(&self, server: &CacheServer) -> Result<()> {
        self.repair();
        let tag = self.pull_tag(server).await.context("the repaired upstream")?;
        let layer = self.pull_whole_layer(server).await.context("the repaired upstream")?;
        let limit = Duration::from_secs(1);
        ensure!(
            tag.head_after < limit && layer.head_after < limit,
            "the repaired upstream was usable only after {:?}",
            tag.took + layer.took
        );
        Ok(())
    }

    /// GETs of the layer that reached the upstream with a right to it, in order.
    pub(super) fn asked(&self) -> Vec<Asked> {
        let counts = self.world.upstream.counts();
        counts
            .of(self.layer_digest())
            .filter(|asked| asked.path.contains(&self.made.name) && asked.method == "GET" && asked.status != 401)
            .cloned()
            .collect()
    }

    /// Fails unless the second request for the layer asked for the rest of it, and answers where it began.
    pub(super) fn ensure_resumed(&self) -> Result<u64> {
        let asked = self.asked();
        let [_, second, ..] = asked.as_slice() else {
            anyhow::bail!("the upstream was asked for the layer {} times, expected a second one", asked.len());
        };
        let range = second.range.as_deref().context("the second request had no Range")?;
        let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
        let start: u64 = start.with_context(|| format!("not a Range: {range}"))?;
        ensure!(start > 0, "the second request began at 0");
        Ok(start)
    }

    /// Where the store keeps the layer.
    pub(super) fn stored(&self, server: &CacheServer) -> PathBuf {
        let hex = self.layer_digest().trim_start_matches("sha256:");
        server.data().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// The same, once it is there and its fill has ended: a client has a layer a moment before the store has named it, and for
    /// another moment it is still served as what the fill has just checked.
    pub(super) async fn until_stored(&self, server: &CacheServer) -> Result<PathBuf> {
        let path = self.stored(server);
        let kept = async {
            while !(path.exists() && server.metrics().await?.contains("entrepot_fills_running 0\n")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, kept).await.with_context(|| format!("{} is not there", path.display()))??;
        Ok(path)
    }
}

/// GET of any path, with the `Accept` of a runtime.
pub(super) async fn get(server: &CacheServer, path: &str) -> Result<Got> {
    Ask::manifest(path).run(server.listen()).await
}

/// GET as a runtime sends it that uses the cache as one of several hosts.
pub(super) async fn get_as_mirror_client(server: &CacheServer, path: &str) -> Result<Got> {
    Ask::manifest(format!("{path}?ns=docker.io")).run(server.listen()).await
}

/// Fails unless this told the client that the answer is bad: an error status, or a body that is cut by FIN.
pub(super) fn ensure_refused(got: &Got) -> Result<()> {
    let is_cut = got.status == 200 && got.ending == Ending::Closed;
    let is_error = got.status >= 500 && got.ending == Ending::Complete;
    ensure!(is_cut || is_error, "expected a cut body or an error, got {}", got.summary());
    Ok(())
}

/// Fails unless this is 503 with a `Retry-After`.
pub(super) fn ensure_try_later(got: &Got) -> Result<()> {
    got.ensure_status(503)?;
    let retry_after = got.header("retry-after").context("503 without Retry-After")?;
    retry_after.parse::<u32>().with_context(|| format!("Retry-After: {retry_after}"))?;
    Ok(())
}
