//! Whether the store can keep what it is given. May import `files`.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{Store, blocking, files};

/// For how long a full volume is spoken of after it was last found full: what fits now may not be what did not fit.
const FULL_FOR: Duration = Duration::from_mins(5);

/// Bytes written to find out whether writing works: more than fits into an inode.
const TRIAL: [u8; 4096] = [0; 4096];

/// When the volume was last found full.
#[derive(Default)]
pub(super) struct Trouble(Mutex<Option<Instant>>);

impl Trouble {
    /// Looks at an error of the volume.
    pub(super) fn note(&self, error: &io::Error) {
        if is_full(error) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    fn was_full(&self) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|when| when.elapsed() < FULL_FOR)
    }
}

impl Store {
    /// Why the store cannot keep what it is given, and what to do; nothing when all is well. Writes a few bytes to find out.
    pub async fn problem(&self) -> Option<String> {
        let path = self.layout.root().join("trial");
        let written = blocking(move || write_trial(&path)).await;
        if let Err(error) = &written {
            self.trouble.note(error);
        }
        match written {
            Err(error) if !is_full(&error) => Some(format!(
                "cannot write to the volume ({error}); mend the volume or the rights to it; images are handed on without being kept"
            )),
            _ if self.trouble.was_full() => Some(
                "the volume is full; enlarge it, or set maxSize to less than its size; images are handed on without being kept"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn write_trial(path: &Path) -> io::Result<()> {
    let written = files::write_whole(path, &TRIAL);
    let removed = files::remove_if_there(path);
    written.and(removed)
}

/// Whether an error says that there is no space left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::Arc;

    use super::*;

    struct Nobody;
    impl crate::store::Observer for Nobody {}

    #[tokio::test]
    async fn a_store_says_why_it_cannot_keep() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().join("data"), Arc::new(Nobody)).unwrap();
        assert_eq!(store.problem().await, None);
        assert!(!root.path().join("data/trial").exists());

        store.trouble.note(&io::ErrorKind::StorageFull.into());
        assert!(store.problem().await.unwrap().contains("full; enlarge it"));

        // A folder in its place: not even root can write there.
        let other = Store::open(root.path().join("other"), Arc::new(Nobody)).unwrap();
        std::fs::create_dir_all(root.path().join("other/trial/full")).unwrap();
        let problem = other.problem().await.unwrap();
        assert!(problem.contains("cannot write to the volume") && problem.contains("mend"), "{problem}");
        std::fs::remove_dir_all(root.path().join("other/trial")).unwrap();
        assert_eq!(other.problem().await, None);
    }
}
