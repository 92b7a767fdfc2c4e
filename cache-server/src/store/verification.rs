//! The first read of a stored blob in a process, or after its file changed: it is hashed along the way.

use std::{io, os::unix::fs::FileExt, sync::Arc};

use super::{
    Store,
    blobs::Stamp,
    growing::{Failure, Growing, Phase},
};
use crate::oci::Hasher;

/// Bytes hashed at once.
const STEP: usize = 512 * 1024;

impl Store {
    pub(super) fn spawn_verification(self: &Arc<Self>, growing: Arc<Growing>, total: u64) {
        let store = Arc::clone(self);
        tokio::task::spawn_blocking(move || store.verify(&growing, total));
    }

    fn verify(&self, growing: &Arc<Growing>, total: u64) {
        let digest = growing.digest();
        match hash(growing, total) {
            Ok(Some(stamp)) => {
                self.remember_verified(growing, stamp);
                self.let_go(growing);
                growing.publish(Phase::Whole { total });
            }
            Ok(None) => {
                tracing::warn!(%digest, "a stored blob does not hash to its digest; it is put aside and will be fetched again");
                self.put_aside(digest);
                self.let_go(growing);
                growing.publish(Phase::Failed(Failure::Damaged(digest.clone())));
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a stored blob could not be read");
                self.put_aside(digest);
                self.let_go(growing);
                growing.publish(Phase::Failed(Failure::Io { action: "read", source: Arc::new(error) }));
            }
        }
    }
}

/// What the file looked like, when it hashes to its digest.
fn hash(growing: &Growing, total: u64) -> io::Result<Option<Stamp>> {
    let stamp = Stamp::of(&growing.file().metadata()?);
    let mut hasher = Hasher::new(growing.digest().algorithm());
    let mut buffer = vec![0_u8; STEP];
    let mut offset = 0;
    // A file in doubt is read by nobody before it has proved right.
    let shown = !matches!(growing.phase(), Phase::Opening);
    while offset < total {
        let wanted = usize::try_from(total - offset).unwrap_or(STEP).min(STEP);
        growing.file().read_exact_at(&mut buffer[..wanted], offset)?;
        hasher.update(&buffer[..wanted]);
        offset += wanted as u64;
        if shown {
            growing.publish(Phase::Running { total: Some(total), available: offset });
        }
    }
    Ok((hasher.finish() == *growing.digest()).then_some(stamp))
}
