//! The sweep: finds out what is stored, asks [`super::eviction`] what must go, and removes it. May import `oci`.

use std::{
    collections::{HashMap, HashSet},
    fs::DirEntry,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use dashmap::Entry;
use serde::de::DeserializeOwned;

use super::{
    Store, blocking,
    eviction::{self, Item, Limits},
    files::{self, Unreadable},
    layout::TreeLayout,
    listing::{Held, Survey},
    record::{LinkRecord, ManifestRecord, TagRecord, millis},
    tree::Tree,
    uploads::UploadId,
};
use crate::oci::{Digest, ImageName, Tag};

/// A blob that nothing links is left alone for this long: its link may be on its way.
const GRACE: Duration = Duration::from_mins(10);

/// A partial file that nobody resumed for this long goes.
const PARTIAL_KEPT: Duration = Duration::from_hours(1);

/// A blob that was pushed and that no manifest of its image points to is kept for this long: the manifest may be on its way.
const PUSHED_GRACE: Duration = Duration::from_hours(24);

/// An upload that nobody touched for this long goes.
const UPLOAD_KEPT: Duration = Duration::from_hours(24);

/// Within this time a blob that was pinned has its link.
const PINNED: Duration = Duration::from_mins(10);

/// A damaged blob is kept this long, to be looked at.
const DAMAGED_KEPT: Duration = Duration::from_hours(24);

/// For how long a fill that does not fit waits for others to reach the disk: a store that is too large for a while is better
/// than pulls that stand still.
const COMMITS_LIMIT: Duration = Duration::from_secs(10);

/// How often the sweep looks by itself: it reads every record.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

impl Store {
    /// Sets the most that may be stored; without a number, 80 % of the volume.
    pub fn set_limit(&self, bytes: Option<u64>) {
        let of_volume = || {
            let volume = rustix::fs::statvfs(self.layout.root()).ok()?;
            Some(volume.f_blocks.saturating_mul(volume.f_frsize) / 100 * 80)
        };
        self.usage.set_limit(bytes.or_else(of_volume).unwrap_or(u64::MAX));
        self.wake_sweep_if_full();
    }

    /// Counts what is stored, then cleans whenever there is too much, for as long as the process runs.
    pub async fn keep_within_limits(self: Arc<Self>) {
        let store = Arc::clone(&self);
        blocking(move || store.count()).await;
        loop {
            self.sweep(self.surplus_if_high()).await;
            tokio::select! {
                () = self.sweep_wanted.notified() => {}
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
        }
    }

    pub(super) fn wake_sweep_if_full(&self) {
        if self.usage.is_high() {
            self.sweep_wanted.notify_one();
        }
    }

    /// Called when a fill of so many bytes has been announced: where they would not fit, waits until others are gone. Those
    /// that are on their way to the disk cannot go before they are there; a slow disk holds fills back, but not for ever.
    pub(super) async fn make_room(self: &Arc<Self>, bytes: u64) {
        let mut patience = std::pin::pin!(tokio::time::sleep(COMMITS_LIMIT));
        while bytes <= self.usage.limit() && self.usage.used() > self.usage.limit() {
            let mut committed = std::pin::pin!(self.committed.notified());
            committed.as_mut().enable();
            let are_committing = !self.committing.is_empty();
            if self.sweep(self.usage.surplus()).await > 0 {
                continue;
            }
            if !are_committing {
                break;
            }
            tokio::select! {
                () = committed => {}
                () = &mut patience => break,
            }
        }
        self.wake_sweep_if_full();
    }

    /// Called when the volume is full: frees so many bytes, if there is so much to free. Says whether anything went.
    pub(super) async fn make_free(self: &Arc<Self>, bytes: u64) -> bool {
        self.sweep(bytes).await > 0
    }

    fn surplus_if_high(&self) -> u64 {
        if self.usage.is_high() { self.usage.surplus() } else { 0 }
    }

    /// One sweep at a time; the bytes that became free.
    async fn sweep(self: &Arc<Self>, free: u64) -> u64 {
        let _only = self.sweeping.lock().await;
        let store = Arc::clone(self);
        let freed = blocking(move || store.sweep_now(free)).await;
        if freed > 0 {
            self.observer.evicted(freed);
            tracing::info!(
                freed_bytes = freed,
                used_bytes = self.used_bytes(),
                limit_bytes = self.limit_bytes(),
                "made room in the store"
            );
        }
        freed
    }

    /// What lay there before this process began to count.
    fn count(&self) {
        let started = SystemTime::now();
        let mut bytes = 0;
        for folder in [self.layout.blobs(), self.layout.partials(), self.layout.uploads()] {
            walk(&folder, &mut |entry| {
                if let Ok(metadata) = entry.metadata()
                    && metadata.modified().is_ok_and(|modified| modified < started)
                {
                    bytes += metadata.len();
                }
            });
        }
        self.usage.added(bytes);
        tracing::info!(stored_bytes = bytes, "counted the store");
    }

    fn sweep_now(&self, free: u64) -> u64 {
        let now = SystemTime::now();
        self.empty_trash(now);
        let mut freed = self.remove_old_partials(now) + self.remove_old_uploads(now);
        // Before the inventory is taken: what is not pinned any more has its link by then.
        self.blobs.pinned.retain(|_, since| since.elapsed() < PINNED);
        let inventory = Inventory::take(self, now);
        if !inventory.complete {
            tracing::warn!("the store could not be read whole; nothing that may be in use is removed until it can be");
            return freed;
        }
        freed += self.remove_orphans(&inventory, now);
        let items: Vec<Item> = inventory.places.iter().map(|place| place.item.clone()).collect();
        let mut going = inventory.pushed_that_goes(&items, now);
        going.extend(eviction::plan(&items, &inventory.limits, free.saturating_sub(freed)));
        let mut survey = inventory.survey(now);
        let mut links: HashMap<&Digest, usize> = HashMap::new();
        for item in &items {
            *links.entry(&item.digest).or_default() += 1;
        }
        for index in going {
            let place = &inventory.places[index];
            // Its link would be gone and its bytes would stay, and nobody would find them for long.
            if !place.item.manifest && self.blobs.growing.contains_key(&place.item.digest) {
                continue;
            }
            if !inventory.remove(place) {
                continue;
            }
            if let Some(held) = survey.repositories.get_mut(&inventory.name(place.item.repository)) {
                held.remove(place.item.manifest, place.item.size);
            }
            if let Some(count) = links.get_mut(&place.item.digest) {
                *count -= 1;
                if *count == 0 {
                    freed += self.remove_blob(&place.item.digest);
                }
            }
        }
        self.survey.store(Some(Arc::new(survey)));
        freed
    }

    fn empty_trash(&self, now: SystemTime) {
        for entry in entries(&self.layout.trash()) {
            let damaged = entry.file_name().to_string_lossy().starts_with("damaged-");
            if damaged && !older_than(&entry, now, DAMAGED_KEPT) {
                continue;
            }
            let path = entry.path();
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { files::remove_if_there(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "failed to remove from the trash");
            }
        }
    }

    fn remove_old_partials(&self, now: SystemTime) -> u64 {
        let mut freed = 0;
        for entry in entries(&self.layout.partials()) {
            let Some(digest) = partial_digest(&entry) else { continue };
            if !older_than(&entry, now, PARTIAL_KEPT) {
                continue;
            }
            if let Entry::Vacant(_locked) = self.blobs.growing.entry(digest) {
                let size = entry.metadata().map_or(0, |metadata| metadata.len());
                if files::remove_if_there(&entry.path()).is_ok() {
                    self.usage.removed(size);
                    freed += size;
                }
            }
        }
        freed
    }

    fn remove_old_uploads(&self, now: SystemTime) -> u64 {
        let mut freed = 0;
        for entry in entries(&self.layout.uploads()) {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<UploadId>().ok()) else { continue };
            let data = std::fs::metadata(entry.path().join("data")).and_then(|data| data.modified());
            let touched = data.or_else(|_| entry.metadata().and_then(|folder| folder.modified()));
            if touched.is_ok_and(|touched| now.duration_since(touched).is_ok_and(|since| since >= UPLOAD_KEPT)) {
                freed += self.remove_idle_upload(&id);
            }
        }
        freed
    }

    fn remove_orphans(&self, inventory: &Inventory, now: SystemTime) -> u64 {
        let linked: HashSet<&Digest> = inventory.places.iter().map(|place| &place.item.digest).collect();
        let mut orphans = Vec::new();
        walk_digests(&self.layout.blobs(), &mut |digest, entry| {
            if !linked.contains(&digest) && older_than(entry, now, GRACE) {
                orphans.push(digest);
            }
        });
        orphans.iter().map(|digest| self.remove_blob(digest)).sum()
    }

    /// Renames a blob into the trash under its digest's lock, so that a fill that begins meanwhile cannot lose its
    /// file, then removes it. The bytes that became free.
    fn remove_blob(&self, digest: &Digest) -> u64 {
        let path = self.layout.blob(digest);
        let aside = self.layout.trash().join(format!("{}-{}", digest.algorithm(), digest.hex()));
        let size = match self.blobs.growing.entry(digest.clone()) {
            Entry::Occupied(_) => return 0,
            Entry::Vacant(_locked) => {
                if self.blobs.pinned.contains_key(digest) {
                    return 0;
                }
                self.forget_blob(digest);
                let size = path.metadata().map_or(0, |metadata| metadata.len());
                if std::fs::rename(&path, &aside).is_err() {
                    return 0;
                }
                size
            }
        };
        self.usage.removed(size);
        if let Err(error) = files::remove_if_there(&aside) {
            tracing::warn!(path = %aside.display(), %error, "failed to remove from the trash");
        }
        size
    }
}

/// Everything that repositories keep.
struct Inventory {
    places: Vec<Place>,
    limits: Vec<Limits>,
    trees: Vec<(TreeLayout, Option<Arc<Tree>>)>,
    /// How many images of hosted repositories there are.
    images: usize,
    /// Whether all could be read. A record that could not may be the only one that keeps what was pushed.
    complete: bool,
}

/// Where an item is recorded.
struct Place {
    item: Item,
    image: Option<ImageName>,
    path: PathBuf,
}

impl Inventory {
    fn take(store: &Store, now: SystemTime) -> Self {
        let mut inventory =
            Self { places: Vec::new(), limits: Vec::new(), trees: Vec::new(), images: 0, complete: true };
        for entry in inventory.entries(&store.layout.repositories()) {
            let tree = store.trees.at(&entry.path());
            let retention = tree.as_ref().map(|tree| tree.retention()).unwrap_or_default();
            inventory.limits.push(Limits {
                max_size: retention.max_size,
                used_since: retention.unused_for.and_then(|age| now.checked_sub(age)).map(millis),
                pushed: !matches!(TreeLayout::new(entry.path()).pushed().try_exists(), Ok(false)),
            });
            let layout = tree.as_ref().map_or_else(|| TreeLayout::new(entry.path()), |tree| tree.layout().clone());
            let links = layout.links();
            inventory.trees.push((layout, tree));
            inventory.add_links(store, &links, inventory.trees.len() - 1, None);
            inventory.add_images(store, &entry.path(), inventory.trees.len() - 1);
        }
        inventory
    }

    /// The entries of a folder. One that cannot be read leaves the inventory incomplete.
    fn entries(&mut self, folder: &Path) -> Vec<DirEntry> {
        let read = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        read.unwrap_or_else(|error| {
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                tracing::warn!(path = %folder.display(), %error, "failed to read a folder of the store");
                self.complete = false;
            }
            Vec::new()
        })
    }

    /// A record. One that cannot be read leaves the inventory incomplete, unless an upstream can say it again.
    fn record<T: DeserializeOwned>(&mut self, path: &Path, repository: usize) -> Option<(T, SystemTime)> {
        match files::read_record(path, Unreadable::Missing) {
            Ok(Some(read)) => return Some(read),
            // It may have gone meanwhile.
            Ok(None) if !self.limits[repository].pushed || matches!(path.try_exists(), Ok(false)) => {}
            Ok(None) => self.complete = false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "failed to read a record of the store");
                self.complete = false;
            }
        }
        None
    }

    /// The links below a folder `<alg>/<2>/<hex>`.
    fn add_links(&mut self, store: &Store, folder: &Path, repository: usize, image: Option<&ImageName>) {
        let mut found = Vec::new();
        for algorithm in self.entries(folder) {
            for fan in self.entries(&algorithm.path()) {
                let links = self.entries(&fan.path());
                found.extend(links.iter().filter_map(|entry| Some((digest_of(&algorithm, entry)?, entry.path()))));
            }
        }
        for (digest, path) in found {
            let Some((record, used)) = self.record::<LinkRecord>(&path, repository) else { continue };
            if let (Some(image), Some(tree)) = (image, &self.trees[repository].1) {
                tree.learn_holder(image, &digest);
            }
            // What is on its way is in use now, whenever its link was made.
            let used = if store.blobs.growing.contains_key(&digest) { u64::MAX } else { millis(used) };
            let size = record.size.or_else(|| Some(store.layout.blob(&digest).metadata().ok()?.len()));
            let item = Item {
                repository,
                image: self.images,
                manifest: false,
                digest,
                size: size.unwrap_or_default(),
                used,
                references: Vec::new(),
                subject: None,
            };
            self.places.push(Place { item, image: image.cloned(), path });
        }
    }

    fn add_images(&mut self, store: &Store, folder: &Path, repository: usize) {
        for entry in self.entries(folder) {
            let name = entry.file_name();
            let path = entry.path();
            if !path.is_dir() || name.to_string_lossy().starts_with('_') {
                continue;
            }
            self.images += 1;
            self.add_manifests(store, &path, repository);
            self.add_images(store, &path, repository);
        }
    }

    /// What goes of hosted repositories. Of one that no settings speak of, nothing does.
    fn pushed_that_goes(&self, items: &[Item], now: SystemTime) -> Vec<usize> {
        let grace = now.checked_sub(PUSHED_GRACE).map(millis).unwrap_or_default();
        let mut going = Vec::new();
        for (repository, (_, tree)) in self.trees.iter().enumerate() {
            if !self.limits[repository].pushed || tree.is_none() {
                continue;
            }
            let own: Vec<usize> = (0..items.len()).filter(|index| items[*index].repository == repository).collect();
            let of_repository: Vec<Item> = own.iter().map(|index| items[*index].clone()).collect();
            let planned = eviction::plan_pushed(&of_repository, self.limits[repository], grace);
            going.extend(planned.into_iter().map(|index| own[index]));
        }
        going
    }

    fn add_manifests(&mut self, store: &Store, image_folder: &Path, repository: usize) {
        let root = self.trees[repository].0.root().to_owned();
        let name = image_folder.strip_prefix(&root).ok().and_then(Path::to_str);
        let Some(image) = name.and_then(|name| name.parse::<ImageName>().ok()) else { return };
        let blobs = self.trees[repository].0.image_blobs(&image);
        self.add_links(store, &blobs, repository, Some(&image));
        for algorithm in self.entries(&image_folder.join("_links")) {
            for entry in self.entries(&algorithm.path()) {
                let Some(digest) = digest_of(&algorithm, &entry) else { continue };
                let path = entry.path();
                let Some((record, used)) = self.record::<ManifestRecord>(&path, repository) else { continue };
                let item = Item {
                    repository,
                    image: self.images,
                    manifest: true,
                    digest,
                    size: record.size,
                    used: millis(used),
                    references: record.references,
                    subject: record.subject,
                };
                self.places.push(Place { item, image: Some(image.clone()), path });
            }
        }
    }

    /// The name of a repository.
    fn name(&self, repository: usize) -> String {
        self.trees[repository].0.root().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How much each repository holds.
    fn survey(&self, taken: SystemTime) -> Survey {
        let mut held = vec![Held::default(); self.trees.len()];
        for Place { item, .. } in &self.places {
            held[item.repository].add(item.manifest, item.size);
        }
        let named = held.into_iter().enumerate().map(|(repository, held)| (self.name(repository), held));
        Survey { taken, repositories: named.collect() }
    }

    /// Removes an item unless it was used since the inventory was taken; says whether it went.
    fn remove(&self, place: &Place) -> bool {
        let (layout, tree) = &self.trees[place.item.repository];
        if let (true, Some(image), Some(tree)) = (self.limits[place.item.repository].pushed, &place.image, tree) {
            return tree.change_now(image, |change| {
                if used_since(place) {
                    return false;
                }
                let removed = if place.item.manifest {
                    change.remove_manifest(&place.item.digest)
                } else {
                    change.unlink(&place.item.digest)
                };
                removed.unwrap_or_else(|error| {
                    tracing::warn!(path = %place.path.display(), %error, "failed to remove a record of the store");
                    false
                })
            });
        }
        if used_since(place) {
            return false;
        }
        match &place.image {
            Some(image) => {
                remove_tags_of(layout, tree.as_deref(), image, &place.item.digest);
                if let Some(tree) = tree {
                    tree.forget_manifest(image, &place.item.digest);
                }
            }
            None => {
                if let Some(tree) = tree {
                    tree.forget_link(&place.item.digest);
                }
            }
        }
        files::remove_if_there(&place.path).is_ok()
    }
}

fn used_since(place: &Place) -> bool {
    let used = place.path.metadata().and_then(|metadata| metadata.modified());
    used.is_ok_and(|used| millis(used) > place.item.used)
}

fn remove_tags_of(layout: &TreeLayout, tree: Option<&Tree>, image: &ImageName, digest: &Digest) {
    for entry in entries(&layout.tags(image)) {
        let Some(tag) = entry.file_name().to_str().and_then(|name| name.parse::<Tag>().ok()) else { continue };
        let Ok(Some((record, _))) = files::read_record::<TagRecord>(&entry.path(), Unreadable::Missing) else {
            continue;
        };
        if record.target.digest == *digest {
            if let Some(tree) = tree {
                tree.forget_tag(image, &tag);
            }
            let _ = files::remove_if_there(&entry.path());
        }
    }
}

/// The entries of a folder that can be read; none when it is missing.
fn entries(folder: &Path) -> Vec<DirEntry> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(error) => {
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                tracing::warn!(path = %folder.display(), %error, "failed to read a folder of the store");
            }
            Vec::new()
        }
    }
}

fn walk(folder: &Path, visit: &mut impl FnMut(&DirEntry)) {
    for entry in entries(folder) {
        if entry.path().is_dir() {
            walk(&entry.path(), visit);
        } else {
            visit(&entry);
        }
    }
}

/// Visits `<alg>/<2>/<hex>`.
fn walk_digests(folder: &Path, visit: &mut impl FnMut(Digest, &DirEntry)) {
    for algorithm in entries(folder) {
        for fan in entries(&algorithm.path()) {
            for entry in entries(&fan.path()) {
                if let Some(digest) = digest_of(&algorithm, &entry) {
                    visit(digest, &entry);
                }
            }
        }
    }
}

fn digest_of(algorithm: &DirEntry, entry: &DirEntry) -> Option<Digest> {
    format!("{}:{}", algorithm.file_name().to_str()?, entry.file_name().to_str()?).parse().ok()
}

fn partial_digest(entry: &DirEntry) -> Option<Digest> {
    entry.file_name().to_str()?.replacen('-', ":", 1).parse().ok()
}

fn older_than(entry: &DirEntry, now: SystemTime, age: Duration) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|since| since >= age))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::{
        oci::Algorithm,
        store::{
            Observer,
            growing::{Growing, Phase},
        },
    };

    struct Nobody;

    impl Observer for Nobody {}

    #[tokio::test]
    async fn what_is_on_its_way_keeps_its_link_however_much_must_go() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path().to_owned(), Arc::new(Nobody)).unwrap();
        let tree = store.tree(&"hub".parse().unwrap(), "identity").unwrap();
        let digest = Digest::of(Algorithm::Sha256, b"blob");
        tree.add_link(&digest, Some(4)).await;
        let file = std::fs::File::open("/dev/null").unwrap();
        let growing = Arc::new(Growing::new(digest.clone(), file, Phase::Whole { total: 4 }));
        store.blobs.growing.insert(digest.clone(), Arc::clone(&growing));
        assert_eq!(store.sweep(1000).await, 0);
        assert!(tree.link(&digest).await.unwrap().is_some(), "it would stay, and nobody would know whose it is");

        let blob = store.layout.blob(&digest);
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(&blob, "blob").unwrap();
        store.let_go(&growing);
        assert_eq!(store.sweep(1000).await, 4);
        assert!(!blob.exists());
    }
}
