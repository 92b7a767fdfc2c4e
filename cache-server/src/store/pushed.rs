//! What was pushed to a repository: records that are on the disk before anyone is told of them. May import `oci`.
//!
//! An upstream could say a mirror's records again; nobody says these again. So a record that cannot be written is an error, and
//! one image is changed by one at a time.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use bytes::Bytes;
use crds::names::RepositoryName;

use super::{
    Store, blocking,
    files::{self, Unreadable},
    record::{LinkRecord, ManifestRecord, TagRecord},
    tree::{IMAGE_LOCKS, Tree},
};
use crate::oci::{Descriptor, Digest, ImageName, Manifest, Tag, manifest};

impl Store {
    /// The tree of a hosted repository. What is in it stays, also while no repository has it open, until its own retention
    /// or a client lets it go, or a repository of another kind takes the name.
    pub fn pushed_tree(self: &Arc<Self>, repository: &RepositoryName, identity: &str) -> io::Result<Arc<Tree>> {
        let tree = Tree::open(self, repository, identity)?;
        if !tree.layout.pushed().exists() {
            files::write_durably(&tree.layout.pushed(), b"")?;
        }
        Ok(tree)
    }
}

impl Tree {
    /// Changes an image: `work` runs off the event loop, to its end even if nobody waits for it any more, and nobody else
    /// changes the image meanwhile.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        image: &ImageName,
        work: impl FnOnce(&Change<'_>) -> T + Send + 'static,
    ) -> T {
        let (tree, image) = (Arc::clone(self), image.clone());
        blocking(move || tree.change_now(&image, work)).await
    }

    pub(super) fn change_now<T>(&self, image: &ImageName, work: impl FnOnce(&Change<'_>) -> T) -> T {
        let mut hasher = DefaultHasher::new();
        image.hash(&mut hasher);
        let lock = &self.images[usize::try_from(hasher.finish() % IMAGE_LOCKS as u64).unwrap_or_default()];
        let _only = lock.lock().unwrap_or_else(PoisonError::into_inner);
        work(&Change { tree: self, image })
    }
}

/// An image that nobody else changes.
pub struct Change<'a> {
    tree: &'a Tree,
    image: &'a ImageName,
}

impl Change<'_> {
    /// The blob's link, if the image has one and the blob is there.
    pub fn blob(&self, digest: &Digest) -> io::Result<Option<LinkRecord>> {
        if !self.tree.store.layout.blob(digest).try_exists()? {
            return Ok(None);
        }
        Self::read(&self.tree.layout.image_blob(self.image, digest))
    }

    /// Links a blob that is stored, and says its size; nothing when it is not stored.
    pub fn link(&self, digest: &Digest) -> io::Result<Option<u64>> {
        self.check_in_force()?;
        let Some(size) = self.tree.store.hold(digest)? else { return Ok(None) };
        let record = LinkRecord { size: Some(size) };
        self.write(&self.tree.layout.image_blob(self.image, digest), &record)?;
        self.tree.publish(&self.tree.store.trees.image_blobs, self.key(digest), Some(record));
        self.tree.note_holder(self.image, digest);
        Ok(Some(size))
    }

    /// Records that a linked blob is about to be pointed to, so that a sweep that looked before leaves the link alone.
    pub fn keep(&self, digest: &Digest) {
        files::touch(&self.tree.layout.image_blob(self.image, digest), SystemTime::now());
    }

    /// Removes a link; says whether there was one.
    pub fn unlink(&self, digest: &Digest) -> io::Result<bool> {
        let removed = files::remove_durably(&self.tree.layout.image_blob(self.image, digest))?;
        self.tree.forget_holder(self.image, digest);
        self.tree.publish(&self.tree.store.trees.image_blobs, self.key(digest), None);
        Ok(removed)
    }

    /// A manifest.
    pub fn manifest(&self, digest: &Digest) -> io::Result<Option<ManifestRecord>> {
        Self::read(&self.tree.layout.manifest(self.image, digest))
    }

    /// Stores a manifest. The bytes must hash to `digest`.
    pub fn put_manifest(&self, digest: &Digest, record: ManifestRecord, bytes: &Bytes) -> io::Result<()> {
        self.check_in_force()?;
        self.tree.store.put_durably(digest, bytes)?;
        self.write(&self.tree.layout.manifest(self.image, digest), &record)?;
        self.tree.publish(&self.tree.store.trees.manifests, self.key(digest), Some(record));
        Ok(())
    }

    /// Removes a manifest with the tags that point to it and with its place among the referrers of its subject; says whether it
    /// was there.
    pub fn remove_manifest(&self, digest: &Digest) -> io::Result<bool> {
        let Some(record) = self.manifest(digest)? else { return Ok(false) };
        for (tag, target) in self.tags()? {
            if target.target.digest == *digest {
                self.remove_tag(&tag)?;
            }
        }
        if let Some(subject) = &record.subject {
            let mut referrers = self.referrers(subject)?;
            referrers.retain(|referrer| referrer.digest != *digest);
            self.put_referrers(subject, referrers)?;
        }
        let removed = files::remove_durably(&self.tree.layout.manifest(self.image, digest))?;
        self.tree.publish(&self.tree.store.trees.manifests, self.key(digest), None);
        Ok(removed)
    }

    /// A tag.
    pub fn tag(&self, tag: &Tag) -> io::Result<Option<TagRecord>> {
        Self::read(&self.tree.layout.tag(self.image, tag))
    }

    /// All tags.
    pub fn tags(&self) -> io::Result<Vec<(Tag, TagRecord)>> {
        let mut tags = Vec::new();
        for tag in self.tree.tags_now(self.image)? {
            if let Some(record) = self.tag(&tag)? {
                tags.push((tag, record));
            }
        }
        Ok(tags)
    }

    /// Points a tag at a manifest.
    pub fn put_tag(&self, tag: &Tag, record: TagRecord) -> io::Result<()> {
        self.check_in_force()?;
        self.write(&self.tree.layout.tag(self.image, tag), &record)?;
        let key = (self.tree.key, self.image.clone(), tag.clone());
        self.tree.publish(&self.tree.store.trees.tags, key, Some(record));
        Ok(())
    }

    /// Removes a tag; says whether it was there.
    pub fn remove_tag(&self, tag: &Tag) -> io::Result<bool> {
        let removed = files::remove_durably(&self.tree.layout.tag(self.image, tag))?;
        let key = (self.tree.key, self.image.clone(), tag.clone());
        self.tree.publish(&self.tree.store.trees.tags, key, None);
        Ok(removed)
    }

    /// The referrers of a digest.
    pub fn referrers(&self, subject: &Digest) -> io::Result<Vec<Descriptor>> {
        let index = match std::fs::read(self.tree.layout.referrers(self.image, subject)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let index = Manifest::parse(&index).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(index.descriptors().to_vec())
    }

    /// Records the referrers of a digest.
    pub fn put_referrers(&self, subject: &Digest, referrers: Vec<Descriptor>) -> io::Result<()> {
        self.check_in_force()?;
        let path = self.tree.layout.referrers(self.image, subject);
        if referrers.is_empty() {
            return files::remove_durably(&path).map(drop);
        }
        self.noted(files::write_durably(&path, &manifest::index_of(referrers)))
    }

    fn key(&self, digest: &Digest) -> (u64, ImageName, Digest) {
        (self.tree.key, self.image.clone(), digest.clone())
    }

    fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> io::Result<Option<T>> {
        // Whoever pushes again what cannot be read mends it.
        Ok(files::read_record(path, Unreadable::Missing)?.map(|(record, _)| record))
    }

    fn write(&self, path: &std::path::Path, record: &impl serde::Serialize) -> io::Result<()> {
        self.noted(
            serde_json::to_vec(record).map_err(io::Error::from).and_then(|json| files::write_durably(path, &json)),
        )
    }

    fn noted(&self, written: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &written {
            self.tree.store.trouble.note(error);
        }
        written
    }

    /// Another identity may have taken the folder; nothing is written there for the old one.
    fn check_in_force(&self) -> io::Result<()> {
        if self.tree.retired.load(Ordering::SeqCst) {
            return Err(io::Error::other("the repository was replaced by one of another kind meanwhile"));
        }
        Ok(())
    }
}
