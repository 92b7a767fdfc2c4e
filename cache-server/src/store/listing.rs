//! Looking at what trees hold, for people: read-only, one folder at a time, and never a use. May import `oci`.
//!
//! What a request costs is bounded by what it asks for and by the largest folder that it meets; only [`Survey`] tells
//! of whole repositories, and that is what the sweep last found.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    Store, blocking,
    files::{self, Unreadable},
    growing::{Growing, Phase},
    record::{ManifestRecord, TagRecord},
    tree::Tree,
};
use crate::oci::{Digest, ImageName, Tag};

/// Folders that one question for images reads at most.
const FOLDERS: usize = 2_000;

/// Images of a tree, in the order of their components.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// Their names.
    pub names: Vec<ImageName>,
    /// Behind which name to go on; nothing when that was all.
    pub next: Option<ImageName>,
}

/// A record, and when it was last used, to the hour.
#[derive(Clone, Debug)]
pub struct Seen<K, T> {
    /// What it is about.
    pub key: K,
    /// The record.
    pub record: T,
    /// When it was last used.
    pub used: SystemTime,
}

/// How much of something a repository has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing that it may hand out.
    No,
    /// It is on its way.
    Filling {
        /// Bytes that are there.
        available: u64,
        /// Bytes that it will have, if known.
        total: Option<u64>,
    },
    /// All of it.
    Whole,
}

/// A fill that runs.
#[derive(Clone, Debug)]
pub struct RunningFill {
    /// The blob.
    pub digest: Digest,
    /// Bytes that are there.
    pub available: u64,
    /// Bytes that it will have, if known.
    pub total: Option<u64>,
    /// When it began in this process.
    pub began: SystemTime,
}

/// What the sweep found that each repository holds.
#[derive(Clone, Debug)]
pub struct Survey {
    /// When.
    pub taken: SystemTime,
    /// By the repositories' names.
    pub repositories: BTreeMap<String, Held>,
}

/// How much a repository holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Manifests of all its images.
    pub manifests: u64,
    /// Blobs that it may hand out.
    pub blobs: u64,
    /// Their sizes, those too that other repositories share.
    pub bytes: u64,
}

impl Held {
    pub(super) const fn add(&mut self, manifest: bool, size: u64) {
        let count = if manifest { &mut self.manifests } else { &mut self.blobs };
        *count += 1;
        self.bytes = self.bytes.saturating_add(size);
    }

    pub(super) const fn remove(&mut self, manifest: bool, size: u64) {
        let count = if manifest { &mut self.manifests } else { &mut self.blobs };
        *count = count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

impl Store {
    /// At most `limit` images of a tree, behind `last`.
    pub async fn images(&self, tree: &Tree, last: Option<ImageName>, limit: usize) -> io::Result<Images> {
        let root = tree.layout().root().to_owned();
        blocking(move || {
            let mut walk = Walk { found: Images::default(), limit, folders: FOLDERS, stopped: false };
            let last: Option<Vec<&str>> = last.as_ref().map(|name| name.components().collect());
            walk.visit(&root, None, last.as_deref())?;
            Ok(walk.found)
        })
        .await
    }

    /// Whether a tree has a tag or a manifest of an image.
    pub async fn has_image(&self, tree: &Tree, image: &ImageName) -> bool {
        let folder = tree.layout().root().join(image.as_str());
        blocking(move || is_image(&folder)).await
    }

    /// The digests of an image's manifests, sorted.
    pub async fn manifests(&self, tree: &Tree, image: &ImageName) -> io::Result<Vec<Digest>> {
        let folder = tree.layout().manifests(image);
        blocking(move || {
            let mut digests = Vec::new();
            for algorithm in names_in(&folder)? {
                let names = names_in(&folder.join(&algorithm))?;
                digests.extend(names.iter().filter_map(|hex| format!("{algorithm}:{hex}").parse::<Digest>().ok()));
            }
            digests.sort_unstable();
            Ok(digests)
        })
        .await
    }

    /// The records of those of these tags that are there.
    pub async fn see_tags(
        &self,
        tree: &Tree,
        image: &ImageName,
        tags: Vec<Tag>,
    ) -> io::Result<Vec<Seen<Tag, TagRecord>>> {
        let paths = tags.into_iter().map(|tag| (tree.layout().tag(image, &tag), tag)).collect();
        blocking(move || see(paths)).await
    }

    /// The records of those of these manifests that are there.
    pub async fn see_manifests(
        &self,
        tree: &Tree,
        image: &ImageName,
        digests: Vec<Digest>,
    ) -> io::Result<Vec<Seen<Digest, ManifestRecord>>> {
        let paths = digests.into_iter().map(|digest| (tree.layout().manifest(image, &digest), digest)).collect();
        blocking(move || see(paths)).await
    }

    /// How much a tree has of each of these: blobs, or manifests of `image` (`true`), in the order of the question. What
    /// the tree may not hand out counts as not there, whoever else has it.
    pub async fn kept(self: &Arc<Self>, tree: &Tree, image: &ImageName, parts: Vec<(Digest, bool)>) -> Vec<Kept> {
        let place = |(digest, is_manifest): (Digest, bool)| {
            let layout = tree.layout();
            // Mirrors link blobs for all of their images, hosted repositories for each.
            let links = if is_manifest {
                vec![layout.manifest(image, &digest)]
            } else {
                vec![layout.link(&digest), layout.image_blob(image, &digest)]
            };
            (links, digest)
        };
        let parts: Vec<(Vec<PathBuf>, Digest)> = parts.into_iter().map(place).collect();
        let store = Arc::clone(self);
        blocking(move || parts.iter().map(|(links, digest)| store.kept_now(links, digest)).collect()).await
    }

    fn kept_now(&self, links: &[PathBuf], digest: &Digest) -> Kept {
        if !links.iter().any(|link| link.exists()) {
            return Kept::No;
        }
        if self.layout.blob(digest).exists() {
            return Kept::Whole;
        }
        self.running(digest).and_then(|growing| progress(&growing)).unwrap_or(Kept::No)
    }

    /// The fills that run, sorted by digest.
    pub async fn fills(self: &Arc<Self>) -> Vec<RunningFill> {
        let store = Arc::clone(self);
        blocking(move || {
            let running: Vec<Arc<Growing>> =
                store.blobs.growing.iter().map(|entry| Arc::clone(entry.value())).collect();
            // What has its name already is only being checked.
            let filling = running.iter().filter(|growing| !store.layout.blob(growing.digest()).exists());
            let mut fills: Vec<RunningFill> = filling.filter_map(running_fill).collect();
            fills.sort_unstable_by(|one, other| one.digest.cmp(&other.digest));
            fills
        })
        .await
    }

    /// Whether a tree may hand out each of these blobs, in the order of the question.
    pub async fn links(&self, tree: &Tree, digests: Vec<Digest>) -> Vec<bool> {
        let paths: Vec<PathBuf> = digests.iter().map(|digest| tree.layout().link(digest)).collect();
        blocking(move || paths.iter().map(|path| path.exists()).collect()).await
    }

    /// What the sweep last found; nothing before the first one has ended.
    #[must_use]
    pub fn survey(&self) -> Option<Arc<Survey>> {
        self.survey.load_full()
    }
}

fn running_fill(growing: &Arc<Growing>) -> Option<RunningFill> {
    let Kept::Filling { available, total } = progress(growing)? else { return None };
    Some(RunningFill { digest: growing.digest().clone(), available, total, began: growing.began() })
}

fn progress(growing: &Growing) -> Option<Kept> {
    match growing.phase() {
        Phase::Opening => Some(Kept::Filling { available: 0, total: None }),
        Phase::Running { total, available } => Some(Kept::Filling { available, total }),
        // It is about to have its name.
        Phase::Whole { total } => Some(Kept::Filling { available: total, total: Some(total) }),
        Phase::Failed(_) => None,
    }
}

fn see<K, T: serde::de::DeserializeOwned>(paths: Vec<(PathBuf, K)>) -> io::Result<Vec<Seen<K, T>>> {
    let mut seen = Vec::with_capacity(paths.len());
    for (path, key) in paths {
        if let Some((record, used)) = files::read_record(&path, Unreadable::Missing)? {
            seen.push(Seen { key, record, used });
        }
    }
    Ok(seen)
}

/// A way through a tree's folders.
struct Walk {
    found: Images,
    limit: usize,
    folders: usize,
    stopped: bool,
}

impl Walk {
    /// Visits a folder, which is that of `name` (the root has none), then those in it. With `behind`, only what lies behind
    /// that name in the folder; an empty one is the folder itself.
    fn visit(&mut self, folder: &Path, name: Option<&ImageName>, behind: Option<&[&str]>) -> io::Result<()> {
        if behind.is_none()
            && let Some(name) = name
            && is_image(folder)
        {
            if self.found.names.len() == self.limit {
                self.stop(self.found.names.last().cloned());
                return Ok(());
            }
            self.found.names.push(name.clone());
        }
        // The way to where it goes on is free, or a deep one would never get further.
        if behind.is_none() {
            if self.folders == 0 {
                self.stop(name.cloned());
                return Ok(());
            }
            self.folders -= 1;
        }
        let mut children: Vec<String> = names_in(folder)?;
        children.retain(|child| !child.starts_with('_'));
        children.sort_unstable();
        for child in children {
            let behind = match behind.and_then(<[_]>::split_first) {
                Some((first, _)) if child.as_str() < *first => continue,
                Some((first, rest)) if child == *first => Some(rest),
                _ => None,
            };
            let whole = name.map_or_else(|| child.clone(), |name| format!("{name}/{child}"));
            let Ok(below) = whole.parse::<ImageName>() else { continue };
            self.visit(&folder.join(&child), Some(&below), behind)?;
            if self.stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    fn stop(&mut self, next: Option<ImageName>) {
        self.stopped = true;
        self.found.next = next;
    }
}

/// Whether a folder has a tag or a manifest.
fn is_image(folder: &Path) -> bool {
    let holds_any = |folder: &Path| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    holds_any(&folder.join("_tags"))
        || std::fs::read_dir(folder.join("_links"))
            .is_ok_and(|algorithms| algorithms.flatten().any(|algorithm| holds_any(&algorithm.path())))
}

/// The names in a folder, those that a write just makes left out; none if it is not there or is a file.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// A folder with an image for each name.
    fn tree(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            let tags = root.path().join(name).join("_tags");
            std::fs::create_dir_all(&tags).unwrap();
            std::fs::write(tags.join("latest"), "").unwrap();
        }
        root
    }

    fn walk(root: &Path, last: Option<&str>, limit: usize, folders: usize) -> (Vec<String>, Option<String>) {
        let mut walk = Walk { found: Images::default(), limit, folders, stopped: false };
        let last: Option<Vec<&str>> = last.map(|last| last.split('/').collect());
        walk.visit(root, None, last.as_deref()).unwrap();
        let Images { names, next } = walk.found;
        (names.iter().map(ToString::to_string).collect(), next.map(|next| next.to_string()))
    }

    const NAMES: [&str; 6] = ["a", "a/b", "a/b/c", "a-b", "b/x", "b/y"];

    #[test]
    fn images_come_in_order_of_their_components() {
        let root = tree(&["b/y", "a-b", "a", "a/b/c", "b/x", "a/b"]);
        assert_eq!(walk(root.path(), None, 100, 100), (NAMES.map(str::to_owned).to_vec(), None));
    }

    #[test]
    fn pages_of_any_size_meet_without_gap_or_overlap() {
        let root = tree(&NAMES);
        for limit in 1..=NAMES.len() {
            for folders in [1, 2, 3, 100] {
                let (mut all, mut last) = (Vec::new(), None::<String>);
                // A page may be empty, when many folders hold nothing; it leads on all the same.
                for _ in 0..50 {
                    let (names, next) = walk(root.path(), last.as_deref(), limit, folders);
                    assert!(names.len() <= limit);
                    all.extend(names);
                    last = next;
                    if last.is_none() {
                        break;
                    }
                }
                assert_eq!((all, last), (NAMES.map(str::to_owned).to_vec(), None), "{limit} {folders}");
            }
        }
    }

    #[test]
    fn what_is_no_image_is_passed_over() {
        let root = tree(&["a", "_links/sha256", "UPPER", "c/..d"]);
        std::fs::create_dir_all(root.path().join("empty/_tags")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(walk(root.path(), None, 100, 100), (vec!["a".to_owned()], None));
    }

    #[test]
    fn a_name_that_is_gone_still_tells_where_to_go_on() {
        let root = tree(&["a", "c"]);
        assert_eq!(walk(root.path(), Some("b/never"), 10, 100).0, ["c"]);
        assert_eq!(walk(root.path(), Some("a/zzz"), 10, 100).0, ["c"]);
        assert_eq!(walk(root.path(), Some("c"), 10, 100).0, [""; 0]);
    }
}
