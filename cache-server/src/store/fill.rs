//! One fill per digest: it owns the download and writes one partial file; readers follow. May import `oci`.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dashmap::Entry;
use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use tokio::task::JoinHandle;

use super::{
    Store,
    blobs::Stamp,
    blocking,
    download::{Again, Download, Source, SourceError},
    files,
    growing::{Failure, Growing, Phase, Rest},
    trouble::is_full,
    usage::Reservation,
};
use crate::oci::{Digest, Hasher};

/// Bytes that wait for the disk at most, per fill.
const BACKLOG: usize = 1024 * 1024;

/// So often the disk is told to begin with what a fill appended. What all waits for the end makes one long journal commit, and on
/// ext4 another fill's first byte waits for that (110 to 170 ms after 256 MiB). A fill that is shorter leaves it to its commit: its
/// readers need the processors more.
const WRITE_BEHIND: Duration = Duration::from_millis(500);

/// With so much free space beyond what a fill needs, none is taken beforehand: fallocate(2) waits for the file system's journal,
/// and readers for their first byte. Where many fills use it up all the same, the one that finds the volume full is handed on
/// without being stored.
const PLENTY: u64 = 1024 * 1024 * 1024;

/// Bytes read at once when a partial file is hashed again.
const REHASH: usize = 1024 * 1024;

impl Store {
    /// The blob from the store, or from the fill that runs for it, or from a new fill of `source`.
    /// The fill goes on when all its readers leave.
    pub async fn blob(
        self: &Arc<Self>,
        digest: &Digest,
        expected: Option<u64>,
        source: Arc<dyn Source>,
    ) -> io::Result<Arc<Growing>> {
        loop {
            if let Some(growing) = self.stored(digest, expected).await? {
                return Ok(growing);
            }
            if let Some(growing) = self.begin_fill(digest, &source)? {
                return Ok(growing);
            }
        }
    }

    /// Waits until a blob that is whole has its name. One that is not kept never gets it, and is not waited for either.
    pub async fn named(&self, digest: &Digest) {
        while let Some(growing) = self.running(digest) {
            growing.done().await;
        }
    }

    /// How long ago a transfer of the blob broke off for good in mid-stream, when it did and was not made good since.
    #[must_use]
    pub fn broke_off(&self, digest: &Digest) -> Option<Duration> {
        self.blobs.broken.get(digest).map(|when| when.elapsed())
    }

    /// Nothing when the blob has come into the store meanwhile.
    fn begin_fill(self: &Arc<Self>, digest: &Digest, source: &Arc<dyn Source>) -> io::Result<Option<Arc<Growing>>> {
        // The partial file is opened under the digest's lock: a fill that just ended renames it under the same lock,
        // so two never write to one file.
        match self.blobs.growing.entry(digest.clone()) {
            Entry::Occupied(running) => Ok(Some(Arc::clone(running.get()))),
            Entry::Vacant(place) => {
                if self.layout.blob(digest).exists() {
                    return Ok(None);
                }
                let file = match self.open_partial(digest) {
                    Err(error) if is_full(&error) => {
                        self.trouble.note(&error);
                        return self.without_a_file(digest).map(Some);
                    }
                    other => other?,
                };
                let growing = Arc::new(Growing::new(digest.clone(), file, Phase::Opening));
                place.insert(Arc::clone(&growing));
                let task = Fill { store: Arc::clone(self), growing: Arc::clone(&growing), source: Arc::clone(source) };
                tokio::spawn(task.run());
                Ok(Some(growing))
            }
        }
    }

    /// A blob for which not even an empty file can be made: every reader downloads for itself.
    fn without_a_file(&self, digest: &Digest) -> io::Result<Arc<Growing>> {
        self.observer.served_through();
        let empty = rustix::fs::memfd_create("no-space", rustix::fs::MemfdFlags::CLOEXEC)?;
        let rest = Rest { offset: 0, total: None, hasher: Hasher::new(digest.algorithm()) };
        Ok(Arc::new(Growing::new(digest.clone(), File::from(empty), Phase::Failed(Failure::NoSpace(rest)))))
    }

    fn open_partial(&self, digest: &Digest) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).open(self.layout.partial(digest))
    }
}

/// A fill that proved right.
struct Filled {
    total: u64,
    reservation: Reservation,
    /// What the file looked like when its last byte had been written, before anyone else could know its name.
    stamp: Stamp,
}

struct Fill {
    store: Arc<Store>,
    growing: Arc<Growing>,
    source: Arc<dyn Source>,
}

impl Fill {
    async fn run(self) {
        self.store.observer.running_fills(1);
        let digest = self.growing.digest().clone();
        // Whatever happens, readers must learn of it: nobody may wait for a fill that is gone.
        let ended = AssertUnwindSafe(self.to_end()).catch_unwind().await;
        match ended.unwrap_or_else(|_| Err(failed_to("fill", io::Error::other("the fill panicked; this is a bug")))) {
            Ok(filled) => {
                self.store.blobs.broken.remove(&digest);
                // Readers go on at once; making it durable is not their concern, but the process waits for it.
                let committing = self.store.committing.token();
                self.growing.publish(Phase::Whole { total: filled.total });
                let (store, growing) = (Arc::clone(&self.store), Arc::clone(&self.growing));
                blocking(move || store.commit(&growing, filled)).await;
                drop(committing);
                self.store.committed.notify_waiters();
            }
            Err(failure) => {
                tracing::warn!(%digest, error = &failure as &dyn std::error::Error, "a fill failed for good");
                if matches!(failure, Failure::Source(_)) && matches!(self.growing.phase(), Phase::Running { .. }) {
                    self.store.blobs.broken.insert(digest, Instant::now());
                }
                let remove = !matches!(failure, Failure::Source(_));
                let (store, growing) = (Arc::clone(&self.store), Arc::clone(&self.growing));
                blocking(move || store.leave_partial(&growing, remove)).await;
                self.growing.publish(Phase::Failed(failure));
            }
        }
        self.store.observer.running_fills(-1);
    }

    /// Downloads, writes and hashes until the end.
    async fn to_end(&self) -> Result<Filled, Failure> {
        let written = self.rehash().await?;
        if written.offset > 0 && written.hasher.clone().finish() == *self.growing.digest() {
            // An earlier process had it all and ended before it could give the file its name.
            return self.filled(written.offset, self.store.usage.reserve(written.offset));
        }
        let (download, written) = self.begin(written).await?;
        let total = download.total();
        let mut reservation = self.store.usage.reserve(total.unwrap_or_default());
        self.store.make_room(total.unwrap_or_default()).await;
        self.preallocate(total, &written).await?;
        self.growing.publish(Phase::Running { total, available: written.offset });
        let written = self.copy(download.into_stream(), total, written).await?;
        reservation.set(written.offset);
        let actual = written.hasher.finish();
        if actual != *self.growing.digest() {
            return Err(Failure::Mismatch { expected: self.growing.digest().clone(), actual });
        }
        self.filled(written.offset, reservation)
    }

    fn filled(&self, total: u64, reservation: Reservation) -> Result<Filled, Failure> {
        let metadata = self.growing.file().metadata().map_err(|source| failed_to("look at", source))?;
        Ok(Filled { total, reservation, stamp: Stamp::of(&metadata) })
    }

    /// Hashes what an earlier process or an earlier, broken fill left.
    async fn rehash(&self) -> Result<Written, Failure> {
        let nothing = Written { offset: 0, hasher: Hasher::new(self.growing.digest().algorithm()) };
        if self.growing.file().metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Ok(nothing);
        }
        let growing = Arc::clone(&self.growing);
        let written = blocking(move || {
            let mut written = nothing;
            let mut buffer = vec![0_u8; REHASH];
            loop {
                match growing.file().read_at(&mut buffer, written.offset)? {
                    0 => return Ok(written),
                    read => {
                        written.hasher.update(&buffer[..read]);
                        written.offset += read as u64;
                    }
                }
            }
        })
        .await
        .map_err(|source| failed_to("read the partial file in", source))?;
        self.store.usage.removed(written.offset);
        Ok(written)
    }

    async fn begin(&self, written: Written) -> Result<(Download, Written), Failure> {
        let observer = Arc::clone(&self.store.observer);
        let on_resume = move || observer.resumed();
        let begun = Download::begin(Arc::clone(&self.source), written.offset, Box::new(on_resume.clone())).await;
        match begun {
            Ok(download) if download.total().is_none_or(|total| written.offset <= total) => {
                if written.offset > 0 {
                    on_resume();
                }
                Ok((download, written))
            }
            Err(error) if written.offset == 0 || error.again != Again::FromStart => {
                self.store.usage.added(written.offset);
                Err(Failure::Source(error.cause))
            }
            // What is in the file cannot be the beginning of what the upstream has.
            _ => {
                self.growing.file().set_len(0).map_err(|source| failed_to("empty the partial file in", source))?;
                let written = Written { offset: 0, hasher: Hasher::new(self.growing.digest().algorithm()) };
                let begun = Download::begin(Arc::clone(&self.source), 0, Box::new(on_resume)).await;
                begun.map(|download| (download, written)).map_err(|error| Failure::Source(error.cause))
            }
        }
    }

    /// Takes the space now where there may not be enough, so that a full volume shows before the first byte is handed out.
    async fn preallocate(&self, total: Option<u64>, written: &Written) -> Result<(), Failure> {
        let Some(total) = total.filter(|total| *total > written.offset) else { return Ok(()) };
        for attempt in 0..2 {
            let growing = Arc::clone(&self.growing);
            match blocking(move || take_space(growing.file(), total)).await {
                Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                    if attempt == 0 && self.store.make_free(total).await {
                        continue;
                    }
                    return Err(self.no_space(written, Some(total)));
                }
                // A file system that cannot preallocate says so when it is written to.
                _ => return Ok(()),
            }
        }
        Err(self.no_space(written, Some(total)))
    }

    fn no_space(&self, written: &Written, total: Option<u64>) -> Failure {
        self.store.trouble.note(&io::ErrorKind::StorageFull.into());
        tracing::error!(digest = %self.growing.digest(), "the volume is full: the blob is handed on without being stored; enlarge the volume or lower maxSize");
        self.store.observer.served_through();
        Failure::NoSpace(Rest { offset: written.offset, total, hasher: written.hasher.clone() })
    }

    /// Copies to the file, one write at a time, while the next bytes arrive.
    async fn copy(
        &self,
        mut chunks: BoxStream<'static, Result<Bytes, SourceError>>,
        total: Option<u64>,
        written: Written,
    ) -> Result<Written, Failure> {
        let mut behind = WriteBehind { begun: written.offset, last: Instant::now(), running: None };
        let mut idle = Some(written);
        let mut writing: Option<JoinHandle<Result<Written, (Written, io::Error)>>> = None;
        let mut backlog: Vec<Bytes> = Vec::new();
        let mut backlog_bytes = 0;
        let mut ended: Option<Result<(), SourceError>> = None;
        loop {
            if !backlog.is_empty()
                && let Some(written) = idle.take()
            {
                let (growing, chunks) = (Arc::clone(&self.growing), std::mem::take(&mut backlog));
                backlog_bytes = 0;
                writing = Some(tokio::task::spawn_blocking(move || written.append(&growing, &chunks)));
            }
            match (&mut writing, &ended) {
                (None, Some(_)) => break,
                (None, None) => match chunks.next().await {
                    Some(Ok(chunk)) => push(&mut backlog, &mut backlog_bytes, chunk),
                    Some(Err(error)) => ended = Some(Err(error)),
                    None => ended = Some(Ok(())),
                },
                (Some(write), _) => {
                    tokio::select! {
                        result = write => {
                            writing = None;
                            let written = self.written(result, total)?;
                            behind.follow(&self.growing, written.offset);
                            idle = Some(written);
                        }
                        chunk = chunks.next(), if ended.is_none() && backlog_bytes < BACKLOG => match chunk {
                            Some(Ok(chunk)) => push(&mut backlog, &mut backlog_bytes, chunk),
                            Some(Err(error)) => ended = Some(Err(error)),
                            None => ended = Some(Ok(())),
                        },
                    }
                }
            }
        }
        let written = idle.ok_or_else(|| failed_to("write to", io::ErrorKind::Other.into()))?;
        match ended {
            Some(Err(error)) => {
                self.store.usage.added(written.offset);
                Err(Failure::Source(error.cause))
            }
            _ => Ok(written),
        }
    }

    fn written(
        &self,
        result: Result<Result<Written, (Written, io::Error)>, tokio::task::JoinError>,
        total: Option<u64>,
    ) -> Result<Written, Failure> {
        match result {
            Ok(Ok(written)) => {
                self.growing.publish(Phase::Running { total, available: written.offset });
                Ok(written)
            }
            Ok(Err((written, error))) if is_full(&error) => Err(self.no_space(&written, total)),
            Ok(Err((_, error))) => Err(failed_to("write to", error)),
            Err(error) => Err(failed_to("write to", io::Error::other(error))),
        }
    }
}

fn push(backlog: &mut Vec<Bytes>, backlog_bytes: &mut usize, chunk: Bytes) {
    *backlog_bytes += chunk.len();
    backlog.push(chunk);
}

/// Has the disk write what a fill appended. Beside the fill, and one piece at a time, since a disk with much to do makes this wait
/// although it is asked to begin only.
struct WriteBehind {
    /// So far the disk was told to begin.
    begun: u64,
    last: Instant,
    running: Option<JoinHandle<()>>,
}

impl WriteBehind {
    fn follow(&mut self, growing: &Arc<Growing>, written: u64) {
        if self.last.elapsed() < WRITE_BEHIND || self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        self.last = Instant::now();
        let (growing, offset) = (Arc::clone(growing), std::mem::replace(&mut self.begun, written));
        let length = written.saturating_sub(offset);
        self.running =
            Some(tokio::task::spawn_blocking(move || files::begin_writing_out(growing.file(), offset, length)));
    }
}

/// What the file holds.
struct Written {
    offset: u64,
    hasher: Hasher,
}

impl Written {
    /// Appends to the file, and hashes. On failure the state is that before.
    fn append(mut self, growing: &Growing, chunks: &[Bytes]) -> Result<Self, (Self, io::Error)> {
        if let Err(error) = files::write_all_at(growing.file(), chunks, self.offset) {
            return Err((self, error));
        }
        for chunk in chunks {
            self.hasher.update(chunk);
            self.offset += chunk.len() as u64;
        }
        Ok(self)
    }
}

/// Takes space for `total` bytes of a file, unless there is plenty.
fn take_space(file: &File, total: u64) -> rustix::io::Result<()> {
    let volume = rustix::fs::fstatvfs(file)?;
    if volume.f_bavail.saturating_mul(volume.f_frsize) >= total.saturating_add(PLENTY) {
        return Ok(());
    }
    // The size is kept, so that after a crash the file's length says how many bytes are there.
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, total)
}

fn failed_to(action: &'static str, source: io::Error) -> Failure {
    Failure::Io { action, source: Arc::new(source) }
}

impl Store {
    /// Makes a whole fill a stored blob: on the disk first, then under its name. A blob that is larger than the store
    /// may become is not kept.
    fn commit(&self, growing: &Arc<Growing>, filled: Filled) {
        let digest = growing.digest();
        let kept = filled.total <= self.usage.limit() && self.rename_into_place(growing, filled.total, filled.stamp);
        if kept {
            filled.reservation.kept();
        } else {
            let _ = files::remove_if_there(&self.layout.partial(digest));
        }
        self.let_go(growing);
        self.wake_sweep_if_full();
    }

    fn rename_into_place(&self, growing: &Arc<Growing>, total: u64, written: Stamp) -> bool {
        let digest = growing.digest();
        let blob = self.layout.blob(digest);
        let folder = blob.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        let renamed = rustix::fs::fdatasync(growing.file())
            .map_err(io::Error::from)
            .and_then(|()| std::fs::create_dir_all(&folder))
            // Its name is on the disk a little later. Until then a power cut leaves it under the old one, whole, and the next
            // request for it goes on there.
            .and_then(|()| std::fs::rename(self.layout.partial(digest), &blob))
            .and_then(|()| growing.file().metadata());
        match renamed {
            Ok(metadata) if metadata.len() == total => {
                let stamp = Stamp::of(&metadata);
                // Somebody wrote to it since: the next reader checks it.
                if stamp.same_content(written) {
                    self.remember_verified(growing, stamp);
                }
                true
            }
            Ok(metadata) => {
                tracing::error!(%digest, size_bytes = metadata.len(), expected_bytes = total, "a blob's file changed its size while it was stored; it is not kept");
                let _ = files::remove_if_there(&blob);
                false
            }
            Err(error) => {
                self.trouble.note(&error);
                tracing::error!(%digest, %error, "a blob could not be stored; it was handed on all the same");
                false
            }
        }
    }

    /// Ends a failed fill; the next request may begin another, which resumes what is left.
    fn leave_partial(&self, growing: &Growing, remove: bool) {
        let partial = self.layout.partial(growing.digest());
        let empty = partial.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if (remove || empty)
            && let Err(error) = files::remove_if_there(&partial)
        {
            tracing::error!(path = %partial.display(), %error, "a partial file could not be removed");
        }
        self.let_go(growing);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::store::Observer;

    struct Nobody;

    impl Observer for Nobody {}

    #[tokio::test]
    async fn who_waits_for_a_name_is_told_when_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), Arc::new(Nobody)).unwrap();
        for keep in [true, false] {
            let content = vec![u8::from(keep); 1000];
            let digest = Digest::of(crate::oci::Algorithm::Sha256, &content);
            store.named(&digest).await;
            let file = store.open_partial(&digest).unwrap();
            file.write_all_at(&content, 0).unwrap();
            let growing = Arc::new(Growing::new(digest.clone(), file, Phase::Whole { total: 1000 }));
            store.blobs.growing.insert(digest.clone(), Arc::clone(&growing));
            let mut named = std::pin::pin!(store.named(&digest));
            assert!(named.as_mut().now_or_never().is_none(), "it is on its way");
            if keep {
                let stamp = Stamp::of(&growing.file().metadata().unwrap());
                let reservation = store.usage.reserve(1000);
                store.commit(&growing, Filled { total: 1000, reservation, stamp });
            } else {
                store.leave_partial(&growing, true);
            }
            assert!(named.now_or_never().is_some(), "and it is known at once that it is there, or never will be");
            assert_eq!(store.layout.blob(&digest).exists(), keep);
        }
    }

    #[tokio::test]
    async fn a_fill_that_does_not_fit_waits_for_those_that_are_on_their_way_to_the_disk_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), Arc::new(Nobody)).unwrap();
        store.usage.set_limit(1000);
        let reservation = store.usage.reserve(1500);
        store.make_room(500).await;

        let committing = store.committing.token();
        let mut room = std::pin::pin!(store.make_room(500));
        let waited = tokio::time::timeout(Duration::from_millis(200), room.as_mut()).await;
        assert!(waited.is_err(), "one is on its way");
        drop(reservation);
        drop(committing);
        store.committed.notify_waiters();
        tokio::time::timeout(Duration::from_secs(5), room).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_was_changed_while_it_was_committed_is_checked_before_it_counts_as_right() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned(), Arc::new(Nobody)).unwrap();
        let content = vec![7_u8; 100_000];
        let digest = Digest::of(crate::oci::Algorithm::Sha256, &content);
        let file = store.open_partial(&digest).unwrap();
        file.write_all_at(&content, 0).unwrap();
        let growing = Arc::new(Growing::new(digest.clone(), file, Phase::Whole { total: 100_000 }));
        let stamp = Stamp::of(&growing.file().metadata().unwrap());
        // File systems without fine time stamps count in ticks of the kernel.
        std::thread::sleep(Duration::from_millis(20));
        growing.file().write_all_at(&[8], 50_000).unwrap();
        let reservation = store.usage.reserve(100_000);
        store.commit(&growing, Filled { total: 100_000, reservation, stamp });
        let stored = store.stored(&digest, None).await.unwrap().unwrap();
        assert!(matches!(stored.readable(100_000).await, Err(Failure::Damaged(_))));
    }
}
