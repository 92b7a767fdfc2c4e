//! What one repository may hand out: its links, manifests and tags. May import `oci`.
//!
//! Records come from bounded memory; the files are the truth.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use crds::names::RepositoryName;
use quick_cache::{Weighter, sync::Cache, unsync};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Store, blocking,
    files::{self, Unreadable},
    layout::TreeLayout,
    record::{LinkRecord, ManifestRecord, TagRecord, millis},
};
use crate::oci::{Digest, ImageName, Tag};

/// Records of each sort in memory, at most.
const RECORDS: usize = 50_000;

/// Of how many images it is remembered at most that they have a blob.
const HOLDERS: usize = 4;

/// After so long without a change, a folder's next change shows in its time.
const SETTLED: Duration = Duration::from_secs(1);

/// Lists of tags in memory, about, and how many tags they have together at most.
const LISTS: usize = 1024;
/// See above. A tag takes some 40 bytes.
const LISTED: u64 = 500_000;

/// By what a folder whose entries changed is told from the same one before. Times of files advance every few milliseconds only.
type FolderStamp = (u64, SystemTime);

/// In one piece: each shard of one that is shared would refuse what exceeds its part of the whole.
type TagLists = Mutex<unsync::Cache<(u64, ImageName), (FolderStamp, Arc<Vec<Tag>>), ByTags>>;

#[derive(Clone)]
struct ByTags;

impl Weighter<(u64, ImageName), (FolderStamp, Arc<Vec<Tag>>)> for ByTags {
    fn weight(&self, _: &(u64, ImageName), (_, tags): &(FolderStamp, Arc<Vec<Tag>>)) -> u64 {
        tags.len() as u64 + 1
    }
}

/// The trees in use, and their records in memory.
pub(super) struct Trees {
    next: AtomicU64,
    open: Mutex<HashMap<PathBuf, Weak<Tree>>>,
    links: Cache<(u64, Digest), Arc<Used<LinkRecord>>>,
    pub(super) image_blobs: Cache<(u64, ImageName, Digest), Arc<Used<LinkRecord>>>,
    pub(super) manifests: Cache<(u64, ImageName, Digest), Arc<Used<ManifestRecord>>>,
    pub(super) tags: Cache<(u64, ImageName, Tag), Arc<Used<TagRecord>>>,
    /// Lists of tags, and what their folder looked like.
    tag_lists: TagLists,
    /// Which images were found to have a blob, the last one first. A hint: the files say whether it is so still.
    holders: Cache<(u64, Digest), Arc<[ImageName]>>,
}

impl Default for Trees {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(0),
            open: Mutex::default(),
            links: Cache::new(RECORDS),
            image_blobs: Cache::new(RECORDS),
            manifests: Cache::new(RECORDS),
            tags: Cache::new(RECORDS),
            tag_lists: Mutex::new(unsync::Cache::with_weighter(LISTS, LISTED, ByTags)),
            holders: Cache::new(RECORDS),
        }
    }
}

impl Trees {
    fn tag_list(&self, key: &(u64, ImageName), stamp: FolderStamp) -> Option<Arc<Vec<Tag>>> {
        let lists = self.tag_lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.get(key).filter(|(read, _)| *read == stamp).map(|(_, tags)| Arc::clone(tags))
    }

    fn remember_tag_list(&self, key: (u64, ImageName), stamp: FolderStamp, tags: Arc<Vec<Tag>>) {
        self.tag_lists.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (stamp, tags));
    }

    /// The tree of a folder, if a repository has it open.
    pub(super) fn at(&self, path: &std::path::Path) -> Option<Arc<Tree>> {
        self.lock().get(path).and_then(Weak::upgrade)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Weak<Tree>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record and when it was last used.
#[derive(Debug)]
pub struct Used<T> {
    /// The record.
    pub record: T,
    used: AtomicU64,
}

impl<T> Used<T> {
    pub(super) fn new(record: T, used: SystemTime) -> Arc<Self> {
        Arc::new(Self { record, used: AtomicU64::new(millis(used)) })
    }

    /// Whether this use must be recorded; says so once an hour.
    fn is_due(&self, now: SystemTime) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        let last = UNIX_EPOCH + Duration::from_millis(used);
        files::touch_due(last, now)
            && self.used.compare_exchange(used, millis(now), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// One repository's tree.
pub struct Tree {
    pub(super) key: u64,
    pub(super) store: Arc<Store>,
    pub(super) layout: TreeLayout,
    retention: Mutex<Retention>,
    /// Set when another identity has taken the folder: what still runs for the old one writes nothing there.
    pub(super) retired: Arc<AtomicBool>,
    /// Whether nobody can say again what the records say.
    only_copy: AtomicBool,
    /// How often a record was changed or removed behind the back of those who read it; also the lock under which records
    /// that were read come into memory. What was read before such a change must not be remembered after it.
    changes: Mutex<u64>,
    /// One image is changed by one at a time; images share a few locks.
    pub(super) images: [Mutex<()>; IMAGE_LOCKS],
}

/// Locks for the images of one tree.
pub(super) const IMAGE_LOCKS: usize = 32;

/// What a repository may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// At most so many bytes.
    pub max_size: Option<u64>,
    /// Nothing that was not used for this long.
    pub unused_for: Option<Duration>,
}

impl Tree {
    pub(super) fn open(store: &Arc<Store>, repository: &RepositoryName, identity: &str) -> io::Result<Arc<Self>> {
        let layout = TreeLayout::new(store.layout.repository(repository));
        let mut open = store.trees.lock();
        if let Some(tree) = open.get(layout.root()).and_then(Weak::upgrade) {
            if tree.has_identity(identity) {
                return Ok(tree);
            }
            tree.retired.store(true, Ordering::SeqCst);
        }
        let recorded = match std::fs::read(layout.identity()) {
            Ok(recorded) => Some(recorded),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // What cannot be read may be what was here: it is not thrown away for that.
            Err(error) => return Err(error),
        };
        if recorded.is_none_or(|recorded| recorded != identity.as_bytes()) {
            discard(store, &layout)?;
            files::write_durably(&layout.identity(), identity.as_bytes())?;
        }
        let tree = Arc::new(Self {
            key: store.trees.next.fetch_add(1, Ordering::Relaxed),
            store: Arc::clone(store),
            retention: Mutex::default(),
            retired: Arc::default(),
            only_copy: AtomicBool::new(false),
            changes: Mutex::default(),
            images: Default::default(),
            layout: layout.clone(),
        });
        open.insert(layout.root().to_owned(), Arc::downgrade(&tree));
        Ok(tree)
    }

    fn has_identity(&self, identity: &str) -> bool {
        std::fs::read(self.layout.identity()).is_ok_and(|recorded| recorded == identity.as_bytes())
    }

    /// From now on a record that cannot be read is an error: no upstream can say again what it said, so it must not count as
    /// missing.
    pub fn hold_the_only_copy(&self) {
        self.only_copy.store(true, Ordering::Relaxed);
    }

    /// Says what this repository may keep; the next sweep applies it.
    pub fn set_retention(&self, retention: Retention) {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner) = retention;
    }

    pub(super) fn retention(&self) -> Retention {
        *self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn layout(&self) -> &TreeLayout {
        &self.layout
    }

    /// Whether an image of a hosted repository has a blob. Counts as a use.
    pub async fn image_blob(&self, image: &ImageName, digest: &Digest) -> io::Result<Option<Arc<Used<LinkRecord>>>> {
        let key = (self.key, image.clone(), digest.clone());
        self.record(&self.store.trees.image_blobs, key, || self.layout.image_blob(image, digest)).await
    }

    /// Images of a hosted repository that had a blob when that was last seen, the last one first: those to look at, without
    /// looking at all. Some may not have it any more, and others may. A new process knows none until the first sweep.
    #[must_use]
    pub fn holders(&self, digest: &Digest) -> Arc<[ImageName]> {
        self.store.trees.holders.get(&(self.key, digest.clone())).unwrap_or_default()
    }

    /// Remembers that an image got a blob.
    pub(super) fn note_holder(&self, image: &ImageName, digest: &Digest) {
        let known = self.holders(digest);
        let others = known.iter().filter(|other| *other != image);
        let holders = std::iter::once(image).chain(others).take(HOLDERS).cloned().collect();
        self.store.trees.holders.insert((self.key, digest.clone()), holders);
    }

    /// Remembers that an image was found to have a blob, if not enough others are known.
    pub(super) fn learn_holder(&self, image: &ImageName, digest: &Digest) {
        let known = self.holders(digest);
        if known.len() < HOLDERS && !known.contains(image) {
            self.note_holder(image, digest);
        }
    }

    pub(super) fn forget_holder(&self, image: &ImageName, digest: &Digest) {
        let known = self.holders(digest);
        if known.contains(image) {
            let others = known.iter().filter(|other| *other != image).cloned().collect();
            self.store.trees.holders.insert((self.key, digest.clone()), others);
        }
    }

    /// Whether this repository may hand out a blob. Counts as a use.
    pub async fn link(&self, digest: &Digest) -> io::Result<Option<Arc<Used<LinkRecord>>>> {
        let key = (self.key, digest.clone());
        self.record(&self.store.trees.links, key, || self.layout.link(digest)).await
    }

    /// Lets this repository hand out a blob. To be called only when its own upstream, with its own credentials, has
    /// answered that it has it.
    pub async fn add_link(&self, digest: &Digest, size: Option<u64>) {
        let key = (self.key, digest.clone());
        self.write(&self.store.trees.links, key, self.layout.link(digest), LinkRecord { size }).await;
    }

    /// The same, without waiting for the disk: whoever asked waits for the first byte of the blob.
    pub fn add_link_soon(self: &Arc<Self>, digest: &Digest, size: Option<u64>) {
        let (tree, path, record) = (Arc::clone(self), self.layout.link(digest), LinkRecord { size });
        self.store.trees.links.insert((self.key, digest.clone()), Used::new(record.clone(), SystemTime::now()));
        self.store.recording.spawn(async move { tree.on_disk(move || files::write_record(&path, &record)).await });
    }

    /// A manifest of an image. Counts as a use.
    pub async fn manifest(&self, image: &ImageName, digest: &Digest) -> io::Result<Option<Arc<Used<ManifestRecord>>>> {
        let key = (self.key, image.clone(), digest.clone());
        self.record(&self.store.trees.manifests, key, || self.layout.manifest(image, digest)).await
    }

    /// Stores a manifest of an image. The bytes must hash to `digest`.
    pub async fn add_manifest(&self, image: &ImageName, digest: &Digest, record: ManifestRecord, bytes: Bytes) {
        let store = Arc::clone(&self.store);
        if let Err(error) = store.put_small(digest, bytes).await {
            tracing::error!(%digest, %error, "a manifest could not be stored; it is handed on all the same");
        }
        let key = (self.key, image.clone(), digest.clone());
        self.write(&self.store.trees.manifests, key, self.layout.manifest(image, digest), record).await;
    }

    /// A tag of an image. Counts as a use.
    pub async fn tag(&self, image: &ImageName, tag: &Tag) -> io::Result<Option<Arc<Used<TagRecord>>>> {
        let key = (self.key, image.clone(), tag.clone());
        self.record(&self.store.trees.tags, key, || self.layout.tag(image, tag)).await
    }

    /// Records what the upstream said of a tag.
    pub async fn set_tag(&self, image: &ImageName, tag: &Tag, record: TagRecord) {
        let key = (self.key, image.clone(), tag.clone());
        self.write(&self.store.trees.tags, key, self.layout.tag(image, tag), record).await;
    }

    /// Forgets a tag that the upstream does not have any more. The manifest stays.
    pub async fn remove_tag(&self, image: &ImageName, tag: &Tag) -> io::Result<()> {
        self.store.trees.tags.remove(&(self.key, image.clone(), tag.clone()));
        let path = self.layout.tag(image, tag);
        blocking(move || files::remove_if_there(&path)).await
    }

    /// The tags of an image that are here, sorted. A long list is read again only when a tag came or went.
    pub async fn tags(&self, image: &ImageName) -> io::Result<Arc<Vec<Tag>>> {
        let (store, key, folder) = (Arc::clone(&self.store), (self.key, image.clone()), self.layout.tags(image));
        blocking(move || {
            let Some(stamp) = stamp_of(&folder)? else { return Ok(Arc::default()) };
            if let Some(tags) = store.trees.tag_list(&key, stamp) {
                return Ok(tags);
            }
            let tags = Arc::new(tags_in(&folder)?);
            // What changed a moment ago may change again without looking different.
            if stamp.1.elapsed().is_ok_and(|age| age > SETTLED) {
                store.trees.remember_tag_list(key, stamp, Arc::clone(&tags));
            }
            Ok(tags)
        })
        .await
    }

    /// The same, for one who is off the event loop.
    pub(super) fn tags_now(&self, image: &ImageName) -> io::Result<Vec<Tag>> {
        tags_in(&self.layout.tags(image))
    }

    /// The referrers of a digest, as last heard.
    pub async fn referrers(&self, image: &ImageName, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        let path = self.layout.referrers(image, digest);
        blocking(move || match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        })
        .await
    }

    /// Records the referrers of a digest.
    pub async fn set_referrers(&self, image: &ImageName, digest: &Digest, index: Vec<u8>) {
        let path = self.layout.referrers(image, digest);
        self.on_disk(move || files::write_whole(&path, &index)).await;
    }

    /// Writes to this tree's folder. A volume that is full or broken takes a record away, never an answer: the record
    /// stays in memory, and the upstream can say it again.
    async fn on_disk(&self, write: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let retired = Arc::clone(&self.retired);
        let written = blocking(move || if retired.load(Ordering::SeqCst) { Ok(()) } else { write() }).await;
        if let Err(error) = written {
            self.store.trouble.note(&error);
            tracing::error!(repository = %self.layout.root().display(), %error, "the store cannot record what the upstream said; free space on the volume, or mend it");
        }
    }

    async fn record<K: Hash + Eq + Clone, T: DeserializeOwned + Send + 'static>(
        &self,
        cache: &Cache<K, Arc<Used<T>>>,
        key: K,
        path: impl FnOnce() -> PathBuf,
    ) -> io::Result<Option<Arc<Used<T>>>> {
        let now = SystemTime::now();
        if let Some(record) = cache.get(&key) {
            if record.is_due(now) {
                let path = path();
                blocking(move || files::touch(&path, now)).await;
            }
            return Ok(Some(record));
        }
        let (before, path) = (*self.changes(), path());
        let unreadable = if self.only_copy.load(Ordering::Relaxed) { Unreadable::Error } else { Unreadable::Missing };
        let read = blocking(move || {
            let read = files::read_record(&path, unreadable)?;
            if let Some((_, used)) = &read
                && files::touch_due(*used, now)
            {
                files::touch(&path, now);
            }
            io::Result::Ok(read)
        })
        .await?;
        Ok(read.map(|(record, _)| {
            let record = Used::new(record, now);
            let changes = self.changes();
            if *changes == before {
                cache.insert(key, Arc::clone(&record));
            }
            record
        }))
    }

    fn changes(&self) -> std::sync::MutexGuard<'_, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has memory say what the disk says now: the record, or that there is none.
    pub(super) fn publish<K: Hash + Eq, T>(&self, cache: &Cache<K, Arc<Used<T>>>, key: K, record: Option<T>) {
        let mut changes = self.changes();
        *changes += 1;
        match record {
            Some(record) => cache.insert(key, Used::new(record, SystemTime::now())),
            None => drop(cache.remove(&key)),
        }
    }

    async fn write<K: Hash + Eq, T: Serialize + Clone + Send + 'static>(
        &self,
        cache: &Cache<K, Arc<Used<T>>>,
        key: K,
        path: PathBuf,
        record: T,
    ) {
        cache.insert(key, Used::new(record.clone(), SystemTime::now()));
        self.on_disk(move || files::write_record(&path, &record)).await;
    }

    pub(super) fn forget_link(&self, digest: &Digest) {
        self.store.trees.links.remove(&(self.key, digest.clone()));
    }

    pub(super) fn forget_manifest(&self, image: &ImageName, digest: &Digest) {
        self.store.trees.manifests.remove(&(self.key, image.clone(), digest.clone()));
    }

    pub(super) fn forget_tag(&self, image: &ImageName, tag: &Tag) {
        self.store.trees.tags.remove(&(self.key, image.clone(), tag.clone()));
    }
}

/// How a folder looks; nothing where there is none.
fn stamp_of(folder: &std::path::Path) -> io::Result<Option<FolderStamp>> {
    match folder.metadata() {
        Ok(metadata) => Ok(Some((metadata.ino(), metadata.modified()?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn tags_in(folder: &std::path::Path) -> io::Result<Vec<Tag>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut tags: Vec<Tag> = names.filter_map(|name| name.parse().ok()).collect();
    tags.sort_unstable();
    Ok(tags)
}

/// Moves a tree into the trash, where the sweep removes it.
fn discard(store: &Store, layout: &TreeLayout) -> io::Result<()> {
    let name = layout.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = store.layout.trash().join(format!("repository-{name}-{}", millis(SystemTime::now())));
    match std::fs::rename(layout.root(), aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) => Ok(()),
        Ok(()) => {
            tracing::info!(
                repository = name,
                "the repository now stands for another upstream or identity; it begins empty, and the old content is removed"
            );
            store.sweep_wanted.notify_one();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::fs::{self, File};

    use super::*;

    struct Silent;

    impl crate::store::Observer for Silent {}

    #[tokio::test]
    async fn a_list_of_tags_is_read_again_when_one_came_or_went() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned(), Arc::new(Silent)).unwrap();
        let tree = store.tree(&"hub".parse().unwrap(), "identity").unwrap();
        let image: ImageName = "library/app".parse().unwrap();
        let listed = async || tree.tags(&image).await.unwrap();
        let named = async || listed().await.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(named().await, "", "no folder");

        let folder = tree.layout.tags(&image);
        fs::create_dir_all(&folder).unwrap();
        let age = |seconds| {
            let then = SystemTime::now() - Duration::from_secs(seconds);
            File::open(&folder).unwrap().set_modified(then).unwrap();
        };
        for name in ["v2", "v1"] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(named().await, "v1 v2");
        assert!(!Arc::ptr_eq(&listed().await, &listed().await), "changed a moment ago");
        age(60);
        let first = listed().await;
        assert!(Arc::ptr_eq(&first, &listed().await), "read once");
        fs::remove_file(folder.join("v1")).unwrap();
        assert_eq!(named().await, "v2");
        age(60);
        assert_eq!(named().await, "v2");
        fs::write(folder.join("v3"), "").unwrap();
        assert_eq!(named().await, "v2 v3");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(named().await, "");
    }

    #[test]
    fn one_list_of_tags_may_take_nearly_all_the_memory_for_lists() {
        let trees = Trees::default();
        let (key, stamp) = ((0, "library/app".parse().unwrap()), (7, SystemTime::UNIX_EPOCH));
        let tags = (0..LISTED / 10 * 9).map(|number| format!("v{number}").parse().unwrap()).collect();
        trees.remember_tag_list(key.clone(), stamp, Arc::new(tags));
        assert!(trees.tag_list(&key, stamp).is_some());
        assert!(trees.tag_list(&key, (8, SystemTime::UNIX_EPOCH)).is_none(), "another folder");
    }
}
