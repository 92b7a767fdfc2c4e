//! Small files, read and written whole. May import nothing of ours.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use serde::{Serialize, de::DeserializeOwned};

/// Last use is recorded at most this often.
const TOUCH_EVERY: Duration = Duration::from_hours(1);

/// Writes a file so that a reader sees the old content or the new, never a part. Parent folders are made.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".new-{}-{unique}", std::process::id()));
    let mut file = create_in(folder, &temporary)?;
    let written = file.write_all(content).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // The original error says more than a failure to clean up would.
        let _ = std::fs::remove_file(&temporary);
    }
    written
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

/// Reads a record and when it was last used; nothing if the file is missing. A record that cannot be parsed counts
/// as missing: it is derived from the upstream and will be written again.
pub(super) fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<(T, SystemTime)>> {
    let content = match std::fs::read(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
    let used = std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    match serde_json::from_slice(&content) {
        Ok(record) => Ok(Some((record, used))),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record in the store cannot be read; it will be fetched anew");
            Ok(None)
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
