//! What the server tests share: an upstream that plays what it is told, the real server over a temporary folder, and a
//! plain client that hides nothing.

mod cache;
mod client;
mod registry;

use std::{
    future::Future,
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

pub(crate) use cache::{Cache, Setup, certificate, certificate_for, files, mirror};
pub(crate) use client::{Answer, Client, Reply};
pub(crate) use registry::{Gate, Play, Registry, Seen};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Longer than anything here takes on a busy machine; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes that look random and are the same for the same seed.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut made = Vec::with_capacity(length + 8);
    while made.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        made.extend_from_slice(&state.to_le_bytes());
    }
    made.truncate(length);
    made
}

/// The sha256 digest, as text.
pub(crate) fn digest(bytes: &[u8]) -> String {
    cache_server::oci::Digest::of(cache_server::oci::Algorithm::Sha256, bytes).to_string()
}

/// An image manifest that has these blobs; the first is its config.
pub(crate) fn manifest_of(blobs: &[&[u8]]) -> Vec<u8> {
    let descriptor = |media_type: &str, blob: &[u8]| serde_json::json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() });
    let layers: Vec<_> =
        blobs[1..].iter().map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", blobs[0]);
    // Not how a serializer would write it: only the same bytes have the same digest.
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
    }));
    format!("{}\n", text.unwrap()).into_bytes()
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until an answer is as wanted.
pub(crate) async fn until_answer<F: Future<Output = Answer>>(
    what: &str,
    mut ask: impl FnMut() -> F,
    wanted: impl Fn(&Answer) -> bool,
) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}; the last answer was {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that nobody has at the moment and that the system gives nobody who asks for any: those begin above.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Where the store keeps a blob.
pub(crate) fn blob_path(data: &std::path::Path, digest: &str) -> PathBuf {
    let hex = digest.strip_prefix("sha256:").unwrap();
    data.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// Where a fill writes.
pub(crate) fn partial_path(data: &std::path::Path, digest: &str) -> PathBuf {
    data.join("partial").join(digest.replacen(':', "-", 1))
}
