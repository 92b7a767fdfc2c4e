//! What is kept: blobs under their digests, and per repository which of them it may hand out.
//!
//! ```text
//! blobs/<alg>/<2>/<hex>                          immutable, written by rename only
//! repositories/<repository>/_identity            whose content this tree is
//! repositories/<repository>/_pushed              that it was pushed: nothing goes but by its own retention
//! repositories/<repository>/_links/<alg>/<2>/<hex>    blobs this repository may hand out
//! repositories/<repository>/<image>/_links/<alg>/<hex>   manifests of the image
//! repositories/<repository>/<image>/_blobs/<alg>/<2>/<hex>   blobs of an image of a hosted repository
//! repositories/<repository>/<image>/_tags/<tag>
//! repositories/<repository>/<image>/_referrers/<alg>/<hex>
//! partial/<alg>-<hex>                            running fills, and those that can be resumed
//! uploads/<id>/{state,data}                      pushes of blobs that are under way
//! trash/                                         on its way out
//! trial                                          there for a moment, to find out whether writing works
//! ```
//!
//! Read in this order: [`layout`], [`record`], [`blobs`], [`growing`], [`download`], [`fill`], [`verification`],
//! [`through`], [`tree`], [`pushed`], [`uploads`], [`usage`], [`trouble`], [`eviction`], [`sweep`], [`listing`]. May import `oci`; does not know upstreams: what a fill downloads
//! from is a [`download::Source`].

pub mod blobs;
pub mod download;
pub mod eviction;
mod files;
pub mod fill;
pub mod growing;
pub mod layout;
pub mod listing;
pub mod pushed;
pub mod record;
mod sweep;
pub mod through;
pub mod tree;
pub mod uploads;
mod trouble;
mod usage;
mod verification;

use std::{fs::File, io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use blobs::Blobs;
use layout::Layout;
use listing::Survey;
use tree::{Tree, Trees};
use trouble::Trouble;
use uploads::Uploads;
use usage::Usage;

/// The last bytes of a blob, which are handed out only after the whole has proved to hash to its digest.
pub const HELD_BACK: u64 = 64 * 1024;

/// Blobs up to this size are served from memory.
pub const SMALL: u64 = 128 * 1024;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder could not be made.
    #[error("failed to create {path:?}; give the server a data folder that it may write to (--data)")]
    Create {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the folder.
    #[error("the data folder {path:?} is in use by another cache server; give each its own folder (--data)")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

/// Events worth a metric. The store counts nothing itself; it reports.
pub trait Observer: Send + Sync + 'static {
    /// A blob was found damaged and taken out of service.
    fn quarantined(&self) {}
    /// The volume was full: bytes went to clients without being stored.
    fn served_through(&self) {}
    /// A fill went on where an earlier transfer had broken off.
    fn resumed(&self) {}
    /// So many bytes were removed to make room or for age.
    fn evicted(&self, _bytes: u64) {}
    /// A fill began (`+1`) or ended (`-1`).
    fn running_fills(&self, _change: i64) {}
}

/// The store on one volume. One process at a time has it.
pub struct Store {
    layout: Layout,
    blobs: Blobs,
    trees: Trees,
    uploads: Uploads,
    usage: Usage,
    trouble: Trouble,
    observer: Arc<dyn Observer>,
    sweep_wanted: Notify,
    sweeping: tokio::sync::Mutex<()>,
    committing: TaskTracker,
    /// One of those has ended.
    committed: Notify,
    /// Records on their way to the disk that nobody waits for.
    recording: TaskTracker,
    /// What the last sweep found.
    survey: ArcSwapOption<Survey>,
    /// Held for the lock that it carries.
    _lock: File,
}

impl Store {
    /// Opens the store below `root`, creating what is missing. Looks at no content: how much there is, is found out
    /// in the background by [`Self::keep_within_limits`].
    pub fn open(root: PathBuf, observer: Arc<dyn Observer>) -> Result<Arc<Self>, OpenError> {
        let layout = Layout::new(root);
        for folder in layout.folders() {
            std::fs::create_dir_all(&folder).map_err(|source| OpenError::Create { path: folder, source })?;
        }
        let lock = Self::lock(&layout)?;
        Ok(Arc::new(Self {
            blobs: Blobs::default(),
            trees: Trees::default(),
            uploads: Uploads::default(),
            usage: Usage::default(),
            trouble: Trouble::default(),
            layout,
            observer,
            sweep_wanted: Notify::new(),
            sweeping: tokio::sync::Mutex::new(()),
            committing: TaskTracker::new(),
            committed: Notify::new(),
            recording: TaskTracker::new(),
            survey: ArcSwapOption::empty(),
            _lock: lock,
        }))
    }

    fn lock(layout: &Layout) -> Result<File, OpenError> {
        let path = layout.lock_file();
        let create = |source| OpenError::Create { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(create)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| OpenError::InUse { path: layout.root().to_owned() })?;
        Ok(file)
    }

    /// The tree of a repository. When the identity recorded in it is another, the old tree goes into the trash and
    /// an empty one begins: content that one identity could read is never handed out on behalf of another.
    pub fn tree(self: &Arc<Self>, repository: &crds::names::RepositoryName, identity: &str) -> io::Result<Arc<Tree>> {
        Tree::open(self, repository, identity)
    }

    /// Waits until every blob that is whole has its name, and every link its record. For the end of the process: fills that are
    /// not whole are resumed by the next one.
    pub async fn settle(&self) {
        for tracker in [&self.committing, &self.recording] {
            tracker.close();
            tracker.wait().await;
        }
    }

    /// Bytes of all stored blobs, and of what is being stored; zero until the first count after start has ended.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.usage.used()
    }

    /// The limit that [`Self::keep_within_limits`] keeps, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.usage.limit()
    }
}

/// Runs file-system work off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only when the runtime shuts down, and then nobody waits for the answer.
        Err(_) => std::future::pending().await,
    }
}
