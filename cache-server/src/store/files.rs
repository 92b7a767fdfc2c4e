//! Small files, read and written whole. May import nothing of ours.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Last use is recorded at most this often.
const TOUCH_EVERY: Duration = Duration::from_hours(1);

/// Writes a file so that a reader sees the old content or the new, never a part. Parent folders are made.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(content))
}

/// The same, and when it returns, no power cut takes it away.
pub(super) fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_durably(folder)?;
    replace(path, |file| {
        file.write_all(content)?;
        file.sync_all()
    })?;
    sync_folder(folder)
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".new-{}-{unique}", std::process::id()));
    let mut file = create_in(folder, &temporary)?;
    let written = write(&mut file).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The original error says more than a failure to clean up would.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Makes a folder and those above it, each on the disk before what lies in it.
pub(super) fn create_durably(folder: &Path) -> io::Result<()> {
    let parent = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_durably(parent)?;
            create_durably(folder)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(parent),
    }
}

/// As many pieces as the kernel takes at once (`UIO_MAXIOV`).
const PIECES: usize = 1024;

/// Writes all of `chunks`, one behind the other, from `offset` on.
pub(super) fn write_all_at(file: &File, chunks: &[Bytes], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut left = &mut slices[..];
    // Empty ones go.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::pwritev(file, &left[..left.len().min(PIECES)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Has the disk begin to write `length` bytes from `offset` on, without waiting for it: they are not durable when this returns.
pub(super) fn begin_writing_out(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return };
    #[expect(unsafe_code, reason = "neither the standard library nor rustix has this call")]
    // SAFETY: the descriptor is open as long as `file` lives, and the call touches no memory of ours.
    //
    // What fails is done later by fdatasync, which also tells of it.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Has the names in a folder on the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file so that no power cut brings it back; says whether it was there.
pub(super) fn remove_durably(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => {
            sync_folder(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            Ok(true)
        }
    }
}

fn create_in(folder: &Path, path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(folder)?;
            File::create_new(path)
        }
        other => other,
    }
}

/// Writes a record, whole.
pub(super) fn write_record(path: &Path, record: &impl Serialize) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec(record)?)
}

/// What a record that is there and cannot be read counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// As missing: it will be written again, by what the upstream says or by who needs it.
    Missing,
    /// As an error: nobody can say it again.
    Error,
}

/// Reads a record and when it was last used; nothing if the file is missing.
pub(super) fn read_record<T: DeserializeOwned>(
    path: &Path,
    unreadable: Unreadable,
) -> io::Result<Option<(T, SystemTime)>> {
    let content = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A folder on the way is a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory && unreadable == Unreadable::Missing => {
            return Ok(None);
        }
        other => other?,
    };
    let used = std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    match (serde_json::from_slice(&content), unreadable) {
        (Ok(record), _) => Ok(Some((record, used))),
        (Err(error), Unreadable::Missing) => {
            tracing::warn!(path = %path.display(), %error, "a record in the store cannot be read; it will be fetched anew");
            Ok(None)
        }
        (Err(error), Unreadable::Error) => {
            tracing::error!(path = %path.display(), %error, "a record of a hosted repository cannot be read; push its image again, or restore the file");
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}

/// Whether a use now needs recording, when the last recorded one was `used`.
pub(super) fn touch_due(used: SystemTime, now: SystemTime) -> bool {
    now.duration_since(used).is_ok_and(|age| age >= TOUCH_EVERY)
}

/// Records a use. A failure is harmless: the content looks older than it is.
pub(super) fn touch(path: &Path, now: SystemTime) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(now);
    }
}

/// Removes a file; a missing one is fine.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn what_cannot_be_read_counts_as_one_says() {
        let root = tempfile::tempdir().unwrap();
        let (good, bad, gone) = (root.path().join("good"), root.path().join("bad"), root.path().join("gone"));
        write_record(&good, &7).unwrap();
        std::fs::write(&bad, "{").unwrap();
        for unreadable in [Unreadable::Missing, Unreadable::Error] {
            let read = |path: &Path| read_record::<u32>(path, unreadable).map(|read| read.map(|(record, _)| record));
            assert_eq!((read(&good).unwrap(), read(&gone).unwrap()), (Some(7), None));
            for path in [&bad, &good.join("below")] {
                match unreadable {
                    Unreadable::Missing => assert_eq!(read(path).unwrap(), None, "{path:?}"),
                    Unreadable::Error => assert!(read(path).is_err(), "{path:?}"),
                }
            }
        }
    }

    #[test]
    fn chunks_are_written_whole_however_many_and_however_short() {
        let mut file = tempfile::tempfile().unwrap();
        write_all_at(&file, &[], 0).unwrap();
        write_all_at(&file, &[Bytes::new()], 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let chunks: Vec<Bytes> =
            (0..3000_u16).map(|number| vec![number.to_be_bytes()[1]; usize::from(number % 4)].into()).collect();
        write_all_at(&file, &chunks, 2).unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut content).unwrap();
        assert_eq!(content, [&[0, 0], &chunks.concat()[..]].concat());
    }

    #[test]
    fn what_is_written_durably_is_there_whole_in_folders_that_were_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(root.path().join("a/b")).unwrap().count(), 1);
        assert!(remove_durably(&path).unwrap());
        assert!(!remove_durably(&path).unwrap());
        assert!(!remove_durably(&root.path().join("x/y")).unwrap());
    }
}
