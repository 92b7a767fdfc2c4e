//! A blob's file that may still be growing, and its readers. May import `oci`.
//!
//! One task writes (a fill) or checks (a verification) and publishes how far; any number of readers follow at any
//! offset. A reader holds an offset and nothing else, so a slow one slows nobody.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use memmap2::Mmap;
use tokio::sync::watch;

use super::{HELD_BACK, blocking};
use crate::oci::{Digest, Hasher};

/// Bytes that one read hands on at most.
pub const WINDOW: u64 = 1024 * 1024;

/// Why a blob's file will not become whole.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// Where the bytes come from failed for good.
    #[error("the upstream failed for good")]
    Source(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The bytes do not hash to the digest.
    #[error("the bytes received hash to {actual}, not to {expected}")]
    Mismatch {
        /// The digest asked for.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
    /// A stored file was damaged; it has been taken out of service.
    #[error("the stored copy of {0} was damaged and has been put aside")]
    Damaged(Digest),
    /// The volume is full. Readers go on by themselves from where the file ends.
    #[error("the volume is full")]
    NoSpace(Rest),
    /// The volume failed.
    #[error("failed to {action} the store")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

/// Where a file ended when the volume was full.
#[derive(Clone)]
pub struct Rest {
    /// How many bytes the file holds.
    pub offset: u64,
    /// The size of the whole, if known.
    pub total: Option<u64>,
    /// The hash of those bytes.
    pub hasher: Hasher,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Rest").field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// How far a file has come.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Nobody has answered yet.
    Opening,
    /// The first `available` bytes are there; not yet known to be right.
    Running {
        /// The size, if known.
        total: Option<u64>,
        /// Bytes in the file.
        available: u64,
    },
    /// All `total` bytes are there and hash to the digest.
    Whole {
        /// The size.
        total: u64,
    },
    /// It will not become whole.
    Failed(Failure),
}

/// A blob's file with its progress.
pub struct Growing {
    digest: Digest,
    file: File,
    began: SystemTime,
    mapping: OnceLock<Option<Arc<Mapping>>>,
    phase: watch::Sender<Phase>,
    /// Whether its task is done with the file: it has its name, or never will.
    done: watch::Sender<bool>,
}

/// A file mapped as a range of addresses that stand for it. Nobody reads through it: the connection recognises the
/// addresses and has the kernel send from the file. A mapping, unlike any other token, would still be the right bytes
/// if it were read.
pub struct Mapping {
    map: Mmap,
}

impl Mapping {
    fn of(file: &File, length: u64) -> Option<Arc<Self>> {
        let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
        #[expect(
            unsafe_code,
            reason = "a stored file is immutable and a growing one only grows; the map is an address token that is not read"
        )]
        // SAFETY: see the reason; if a file were truncated under us, the map is still not read by the process.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(file) }.ok()?;
        Some(Arc::new(Self { map }))
    }

    /// The address range.
    #[must_use]
    pub fn addresses(&self) -> std::ops::Range<usize> {
        let range = self.map.as_ptr_range();
        range.start as usize..range.end as usize
    }
}

/// A part of a mapping, as the bytes of a body.
struct Slice {
    mapping: Arc<Mapping>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.mapping.map[self.start..self.end]
    }
}

impl Growing {
    pub(super) fn new(digest: Digest, file: File, phase: Phase) -> Self {
        Self {
            digest,
            file,
            began: SystemTime::now(),
            mapping: OnceLock::new(),
            phase: watch::Sender::new(phase),
            done: watch::Sender::new(false),
        }
    }

    /// The blob.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The file. Its descriptor stays valid as long as `self`.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// When its task began.
    #[must_use]
    pub const fn began(&self) -> SystemTime {
        self.began
    }

    /// How far it has come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(super) fn publish(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(super) fn set_done(&self) {
        self.done.send_replace(true);
    }

    /// Waits until its task is done with the file.
    pub(super) async fn done(&self) {
        // The sender lives in `self`.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Waits until somebody has answered, and for a small blob until it has been checked, so that its failure can
    /// still become a status. Returns the size, if known.
    pub async fn opened(&self) -> Result<Option<u64>, Failure> {
        let mut phases = self.phase.subscribe();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Opening => {}
                Phase::Running { total: Some(total), .. } if *total <= HELD_BACK => {}
                Phase::Running { total, .. } => return Ok(*total),
                Phase::Whole { total } => return Ok(Some(*total)),
                // Readers go on without the file.
                Phase::Failed(Failure::NoSpace(rest)) => return Ok(rest.total),
                Phase::Failed(failure) => return Err(failure.clone()),
            }
            // The sender lives in `self`.
            let _ = phases.changed().await;
        }
    }

    /// Waits until bytes from `position` on may be read, and returns the offset up to which. Equal to `position`
    /// only at the end of a whole blob.
    pub async fn readable(&self, position: u64) -> Result<u64, Failure> {
        if let Some(limit) = self.limit_beyond(position) {
            return limit;
        }
        let mut phases = self.phase.subscribe();
        loop {
            phases.mark_unchanged();
            if let Some(limit) = self.limit_beyond(position) {
                return limit;
            }
            let _ = phases.changed().await;
        }
    }

    fn limit_beyond(&self, position: u64) -> Option<Result<u64, Failure>> {
        match &*self.phase.borrow() {
            Phase::Opening => None,
            Phase::Running { total, available } => {
                let limit = unheld(*total, *available);
                (limit > position).then_some(Ok(limit))
            }
            Phase::Whole { total } => Some(Ok(*total)),
            Phase::Failed(failure) => Some(Err(failure.clone())),
        }
    }

    /// Bytes `start..end` as a token for the kernel to send, for a connection that recognises it; nothing when the
    /// file cannot be mapped. `total` is the blob's size.
    #[must_use]
    pub fn token(&self, start: u64, end: u64, total: u64) -> Option<(Arc<Mapping>, Bytes)> {
        let mapping = self.mapping.get_or_init(|| Mapping::of(&self.file, total)).as_ref()?;
        let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
        let slice = Slice { mapping: Arc::clone(mapping), start, end };
        if end > slice.mapping.map.len() {
            return None;
        }
        Some((Arc::clone(mapping), Bytes::from_owner(slice)))
    }

    /// Whether the bytes at `start` and just before `end` are in memory, so that sending them does not wait for a disk.
    #[must_use]
    pub fn resident(&self, start: u64, end: u64) -> bool {
        [start, end - 1].into_iter().all(|offset| {
            let mut byte = [0_u8; 1];
            let read = rustix::io::preadv2(
                &self.file,
                &mut [io::IoSliceMut::new(&mut byte)],
                offset,
                rustix::io::ReadWriteFlags::NOWAIT,
            );
            // A file system without NOWAIT cannot tell; then the kernel may wait, as nginx would.
            !matches!(read, Err(rustix::io::Errno::AGAIN))
        })
    }

    /// Brings bytes `start..end` into memory, off the event loop.
    pub async fn fetch_into_memory(self: &Arc<Self>, start: u64, end: u64) {
        let growing = Arc::clone(self);
        blocking(move || {
            let mut buffer = vec![0_u8; 128 * 1024];
            let mut position = start;
            while position < end {
                match growing.file.read_at(&mut buffer, position) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => position += read as u64,
                }
            }
        })
        .await;
    }

    /// Reads bytes `start..end` into a buffer; off the event loop only when they are not in memory.
    /// Fails when the file is shorter.
    pub async fn read(self: &Arc<Self>, start: u64, end: u64) -> io::Result<Bytes> {
        let length = usize::try_from(end - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut buffer = BytesMut::zeroed(length);
        let read = rustix::io::preadv2(
            &self.file,
            &mut [io::IoSliceMut::new(&mut buffer)],
            start,
            rustix::io::ReadWriteFlags::NOWAIT,
        );
        if matches!(read, Ok(read) if read == length) {
            return Ok(buffer.freeze());
        }
        let growing = Arc::clone(self);
        blocking(move || {
            growing.file.read_exact_at(&mut buffer, start)?;
            Ok(buffer.freeze())
        })
        .await
    }
}

impl std::fmt::Debug for Growing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Growing")
            .field("digest", &self.digest)
            .field("fd", &self.file.as_raw_fd())
            .field("phase", &*self.phase.borrow())
            .finish_non_exhaustive()
    }
}

/// Up to where bytes may be handed out before they have proved right, when `available` of `total` are there.
#[must_use]
pub fn unheld(total: Option<u64>, available: u64) -> u64 {
    total.map_or_else(|| available.saturating_sub(HELD_BACK), |total| available.min(total.saturating_sub(HELD_BACK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_held_back_whether_or_not_the_size_is_known() {
        assert_eq!(unheld(Some(100_000), 100_000), 100_000 - HELD_BACK);
        assert_eq!(unheld(Some(100_000), 10), 10);
        assert_eq!(unheld(Some(10), 10), 0);
        assert_eq!(unheld(None, 100_000), 100_000 - HELD_BACK);
        assert_eq!(unheld(None, 10), 0);
    }
}
