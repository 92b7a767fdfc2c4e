//! The other column: Debian's docker-registry as a pull-through cache under the same faults. What it does is shown,
//! not judged.

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use super::{Row, stage::Stage};
use crate::{
    lab::SPARE_UPSTREAMS,
    suite::World,
    upstream::{
        backend::{Registry, proxy_of_hub},
        client::{Ask, Ending, half_a_head},
        sites::spare,
    },
};

/// How long it may say nothing.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a row's look at it may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How the reference is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Theirs {
    /// Not: the fault has no counterpart there.
    Skipped,
    /// One pull of the layer.
    Layer,
    /// One GET of the tag.
    Tag,
    /// One GET of the manifest by digest.
    Digest,
    /// Half a request header.
    HalfAHead,
    /// A start while its upstream refuses connections.
    DownAtStart,
    /// A pull, then damage to the stored layer, then a pull.
    Damaged(fn(&Path) -> Result<()>),
}

/// What the reference was seen to do.
pub(super) async fn seen(world: &World, number: usize, row: &Row) -> String {
    let seen = timeout(LIMIT, look(world, number, row)).await;
    match seen {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => format!("{:.60}", format!("{error:#}").replace('\n', " ")),
        Err(_) => format!("nothing within {LIMIT:?}"),
    }
}

async fn look(world: &World, number: usize, row: &Row) -> Result<String> {
    if matches!(row.theirs, Theirs::Skipped) {
        return Ok("-".to_owned());
    }
    let name = format!("reference-{number}");
    let stage = Stage::new(world, &name, row.spoil)?;
    let files = world.lab.dir(&name)?;
    if matches!(row.theirs, Theirs::DownAtStart) {
        return down_at_start(&stage, &files).await;
    }
    let registry = start(&stage, &files, &proxy_of_hub()).await?;
    let address = registry.address();
    let ask = match row.theirs {
        Theirs::HalfAHead => {
            let closed = half_a_head(address, PATIENCE).await;
            return Ok(
                closed.map_or_else(|_| format!("held open {PATIENCE:?}"), |took| format!("closed after {took:.1?}"))
            );
        }
        Theirs::Damaged(damage) => {
            let ask = Ask::get(stage.layer_path()).patience(PATIENCE);
            ask.clone().run(address).await?.ensure_whole(stage.layer_digest())?;
            let stored = stored(&files, stage.layer_digest());
            kept(&stored).await?;
            damage(&stored)?;
            ask
        }
        Theirs::Tag => Ask::manifest(stage.tag_path()),
        Theirs::Digest => Ask::manifest(stage.digest_path()),
        Theirs::Layer | Theirs::Skipped | Theirs::DownAtStart => {
            Ask::get(stage.layer_path()).expecting(stage.layer()?, 0)
        }
    };
    stage.spoil();
    let got = ask.patience(PATIENCE).run(address).await;
    stage.repair();
    let got = got?;
    let wanted = match row.theirs {
        Theirs::Tag | Theirs::Digest => &stage.made.digest,
        _ => stage.layer_digest(),
    };
    let verdict = match (got.status, got.ending) {
        (200, Ending::Complete) if got.digest == *wanted => ", right",
        (200, Ending::Complete) => ", WRONG BYTES",
        (200, _) if got.wrong_at.is_some() => ", WRONG BYTES before that",
        _ => "",
    };
    Ok(format!("{}{verdict}", got.summary()))
}

async fn start(stage: &Stage<'_>, files: &Path, more: &str) -> Result<Registry> {
    let trust = [("SSL_CERT_FILE", stage.world.upstream.ca_file())];
    Registry::start_with(&stage.world.lab, stage.name(), files, more, &trust).await
}

async fn down_at_start(stage: &Stage<'_>, files: &Path) -> Result<String> {
    let [.., address] = SPARE_UPSTREAMS;
    stage.world.lab.refuse(address)?;
    let more = format!("proxy: {{remoteurl: 'https://{}'}}\n", spare(address));
    let started = timeout(PATIENCE, start(stage, files, &more)).await;
    stage.world.lab.reopen(address)?;
    Ok(match started {
        Ok(Ok(_)) => "starts".to_owned(),
        Ok(Err(_)) => "does not start: it ends".to_owned(),
        Err(_) => format!("does not listen within {PATIENCE:?}"),
    })
}

fn stored(files: &Path, digest: &str) -> std::path::PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    files.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

/// It stores a layer only after it has sent it.
async fn kept(stored: &Path) -> Result<()> {
    let appears = async {
        while !stored.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, appears).await.context("it did not keep the layer")
}

/// Flips one bit in the middle of a file.
pub(super) fn flip_a_bit(path: &Path) -> Result<()> {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, SeekFrom},
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("failed to open {}", path.display()))?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle))?;
    file.read_exact(&mut byte)?;
    byte[0] ^= 1;
    file.seek(SeekFrom::Start(middle))?;
    file.write_all(&byte).context("failed to flip a bit")
}

/// Cuts a file to 1000 bytes.
pub(super) fn truncate(path: &Path) -> Result<()> {
    let file = std::fs::File::options().write(true).open(path);
    file.and_then(|file| file.set_len(1000)).with_context(|| format!("failed to truncate {}", path.display()))
}

/// Removes a file.
pub(super) fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).with_context(|| format!("failed to remove {}", path.display()))
}
