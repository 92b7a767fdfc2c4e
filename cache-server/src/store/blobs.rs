//! Finding and keeping blobs. May import `oci`.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use dashmap::{DashMap, Entry};
use quick_cache::{Weighter, sync::Cache};

use super::{
    SMALL, Store, blocking,
    growing::{Growing, Phase},
};
use crate::oci::Digest;

/// Stored blobs whose files stay open, at most.
const OPEN_FILES: usize = 1024;

/// Memory for small blobs and manifests, in bytes.
const MEMORY: u64 = 64 * 1024 * 1024;

/// The blobs in use.
pub(super) struct Blobs {
    /// Running fills and verifications: at most one per digest, and the lock under which a digest's file changes name.
    pub(super) growing: DashMap<Digest, Arc<Growing>>,
    /// Files that proved right in this process.
    open: Cache<Digest, Arc<Verified>>,
    small: Cache<Digest, Bytes, ByLength>,
    /// Blobs that are being linked by a push, and since when: the sweep, which may have looked before the link was written,
    /// leaves them alone. Set under the digest's entry in `growing`, under which the sweep removes.
    pub(super) pinned: DashMap<Digest, Instant>,
    /// Blobs whose transfer broke off for good in mid-stream, and when.
    pub(super) broken: Cache<Digest, Instant>,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Digest, Bytes> for ByLength {
    fn weight(&self, _: &Digest, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 256
    }
}

impl Default for Blobs {
    fn default() -> Self {
        Self {
            growing: DashMap::new(),
            pinned: DashMap::new(),
            open: Cache::new(OPEN_FILES),
            small: Cache::with_weighter(4096, MEMORY, ByLength),
            broken: Cache::new(1024),
        }
    }
}

/// A whole file and what it looked like when it proved right.
struct Verified {
    growing: Arc<Growing>,
    stamp: Stamp,
}

/// By what a changed file is told from an unchanged one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether nothing was written in between. A change of name alone, which moves `changed`, does not count.
    pub(super) fn same_content(self, other: Self) -> bool {
        (self.inode, self.length, self.modified) == (other.inode, other.length, other.modified)
    }
}

impl Verified {
    /// Whether the file is still the one that proved right, and still in the store.
    fn holds(&self) -> bool {
        let metadata = self.growing.file().metadata();
        metadata.is_ok_and(|metadata| metadata.nlink() > 0 && Stamp::of(&metadata) == self.stamp)
    }
}

impl Store {
    /// A small blob that is in memory. It proved right when it was put there.
    #[must_use]
    pub fn small(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.small.get(digest)
    }

    /// Keeps a small blob in memory. The bytes must have proved to hash to `digest`.
    pub fn keep_small(&self, digest: &Digest, bytes: Bytes) {
        if bytes.len() as u64 <= SMALL {
            self.blobs.small.insert(digest.clone(), bytes);
        }
    }

    /// The blob, if it is stored or being filled. A file that this process has not checked, or that changed since, is
    /// checked while it is read; one whose size is not `expected`, before that.
    pub async fn stored(self: &Arc<Self>, digest: &Digest, expected: Option<u64>) -> io::Result<Option<Arc<Growing>>> {
        if let Some(verified) = self.blobs.open.get(digest) {
            if verified.holds() {
                return Ok(Some(Arc::clone(&verified.growing)));
            }
            self.blobs.open.remove(digest);
        }
        if let Some(growing) = self.blobs.growing.get(digest) {
            return Ok(Some(Arc::clone(&growing)));
        }
        let (store, digest) = (Arc::clone(self), digest.clone());
        blocking(move || store.open_unverified(&digest, expected)).await
    }

    /// Whether a blob is stored, in whatever state its file is.
    pub async fn has(&self, digest: &Digest) -> bool {
        let path = self.layout.blob(digest);
        blocking(move || path.exists()).await
    }

    /// The fill or verification that runs for a digest.
    #[must_use]
    pub fn running(&self, digest: &Digest) -> Option<Arc<Growing>> {
        self.blobs.growing.get(digest).map(|growing| Arc::clone(&growing))
    }

    /// Ends what ran for a digest: another may begin, and who waits for this one goes on.
    pub(super) fn let_go(&self, growing: &Growing) {
        self.blobs.growing.remove(growing.digest());
        growing.set_done();
    }

    fn open_unverified(self: &Arc<Self>, digest: &Digest, expected: Option<u64>) -> io::Result<Option<Arc<Growing>>> {
        match self.blobs.growing.entry(digest.clone()) {
            Entry::Occupied(running) => Ok(Some(Arc::clone(running.get()))),
            Entry::Vacant(place) => {
                let Some((file, metadata)) = self.open_file(digest)? else { return Ok(None) };
                // Either the file was damaged or the upstream told a wrong size: the hash says which, before anyone reads.
                let phase = if expected.is_some_and(|expected| expected != metadata.len()) {
                    Phase::Opening
                } else {
                    Phase::Running { total: Some(metadata.len()), available: 0 }
                };
                let growing = Arc::new(Growing::new(digest.clone(), file, phase));
                place.insert(Arc::clone(&growing));
                self.spawn_verification(Arc::clone(&growing), metadata.len());
                Ok(Some(growing))
            }
        }
    }

    pub(super) fn open_file(&self, digest: &Digest) -> io::Result<Option<(File, Metadata)>> {
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
        match File::options().read(true).custom_flags(flags).open(self.layout.blob(digest)) {
            Ok(file) => {
                let metadata = file.metadata()?;
                Ok(Some((file, metadata)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers that a file proved right. `stamp` must have been taken before the check began.
    pub(super) fn remember_verified(&self, growing: &Arc<Growing>, stamp: Stamp) {
        let verified = Verified { growing: Arc::clone(growing), stamp };
        self.blobs.open.insert(growing.digest().clone(), Arc::new(verified));
    }

    pub(super) fn forget_blob(&self, digest: &Digest) {
        self.blobs.open.remove(digest);
        self.blobs.small.remove(digest);
    }

    /// Takes a damaged file out of service, for an administrator to look at; the sweep removes it after a day.
    pub(super) fn put_aside(&self, digest: &Digest) {
        self.forget_blob(digest);
        let path = self.layout.blob(digest);
        let size = path.metadata().map_or(0, |metadata| metadata.len());
        let aside = self.layout.trash().join(format!("damaged-{}-{}", digest.algorithm(), digest.hex()));
        if let Err(error) = std::fs::rename(&path, &aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %path.display(), %error, "a damaged blob could not be put aside");
        }
        self.usage.removed(size);
        self.observer.quarantined();
    }

    /// Stores a small blob, whole. The bytes must hash to `digest`.
    pub async fn put_small(self: &Arc<Self>, digest: &Digest, bytes: Bytes) -> io::Result<()> {
        let (store, digest) = (Arc::clone(self), digest.clone());
        store.keep_small(&digest, bytes.clone());
        blocking(move || {
            let path = store.layout.blob(&digest);
            if path.exists() {
                return Ok(());
            }
            super::files::write_whole(&path, &bytes)?;
            store.usage.added(bytes.len() as u64);
            store.wake_sweep_if_full();
            Ok(())
        })
        .await
    }

    /// Keeps the sweep from a blob until its link is written.
    pub(super) fn pin(&self, digest: &Digest) {
        let _locked = self.blobs.growing.entry(digest.clone());
        self.blobs.pinned.insert(digest.clone(), Instant::now());
    }

    /// Stores a small blob, whole, so that no power cut takes it away. The bytes must hash to `digest`. What was there before is
    /// replaced: it may have been damaged.
    pub(super) fn put_durably(&self, digest: &Digest, bytes: &Bytes) -> io::Result<()> {
        self.pin(digest);
        let path = self.layout.blob(digest);
        let before = path.metadata().map_or(0, |metadata| metadata.len());
        super::files::write_durably(&path, bytes)?;
        self.usage.added(bytes.len() as u64);
        self.usage.removed(before);
        self.keep_small(digest, bytes.clone());
        self.wake_sweep_if_full();
        Ok(())
    }

    /// Has a stored blob on the disk, for one who is going to link it, and says its size; nothing when it is not stored.
    pub(super) fn hold(&self, digest: &Digest) -> io::Result<Option<u64>> {
        self.pin(digest);
        let Some((file, metadata)) = self.open_file(digest)? else { return Ok(None) };
        file.sync_data()?;
        if let Some(folder) = self.layout.blob(digest).parent() {
            super::files::sync_folder(folder)?;
        }
        Ok(Some(metadata.len()))
    }

    /// A small blob from memory or disk, whole and right; nothing when it is missing or damaged (then it is put aside).
    pub async fn read_small(self: &Arc<Self>, digest: &Digest) -> io::Result<Option<Bytes>> {
        if let Some(bytes) = self.small(digest) {
            return Ok(Some(bytes));
        }
        let (store, digest) = (Arc::clone(self), digest.clone());
        blocking(move || {
            let bytes = match std::fs::read(store.layout.blob(&digest)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => Bytes::from(other?),
            };
            if Digest::of(digest.algorithm(), &bytes) != digest {
                tracing::warn!(%digest, "a stored manifest does not hash to its digest; it is put aside and will be fetched again");
                store.put_aside(&digest);
                return Ok(None);
            }
            store.keep_small(&digest, bytes.clone());
            Ok(Some(bytes))
        })
        .await
    }
}
