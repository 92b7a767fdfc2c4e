//! Where each thing lies on the volume. Pure: builds paths, touches nothing. May import `oci`.
//!
//! No text from outside becomes a path unless it is a parsed digest, tag, image name or repository name; none of
//! those can hold `/..`, start with `_` or a dot.

use std::path::{Path, PathBuf};

use crds::names::RepositoryName;

use crate::oci::{Digest, ImageName, Tag};

/// The paths below one root.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    #[must_use]
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folders that must exist before anything else.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        vec![self.blobs(), self.repositories(), self.partials(), self.uploads(), self.trash()]
    }

    /// The file whose lock says that a process has the store.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// All blobs.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// All repositories.
    #[must_use]
    pub fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    /// Running and resumable fills.
    #[must_use]
    pub fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Uploads that are under way.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// What is on its way out.
    #[must_use]
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// A blob.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(fanned(digest))
    }

    /// The file of a fill.
    #[must_use]
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// A repository.
    #[must_use]
    pub fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.repositories().join(name.as_str())
    }
}

/// `<alg>/<2>/<hex>`.
#[must_use]
pub fn fanned(digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    Path::new(&digest.algorithm().to_string()).join(&hex[..2]).join(hex)
}

/// The paths below one repository.
#[derive(Clone, Debug)]
pub struct TreeLayout {
    root: PathBuf,
}

impl TreeLayout {
    /// The layout of the repository at `root`.
    #[must_use]
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The repository's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that says whose content this is.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.root.join("_identity")
    }

    /// The file that says that the content was pushed: nothing of it goes but by its own retention.
    #[must_use]
    pub fn pushed(&self) -> PathBuf {
        self.root.join("_pushed")
    }

    /// All blob links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("_links")
    }

    /// The link to a blob.
    #[must_use]
    pub fn link(&self, digest: &Digest) -> PathBuf {
        self.links().join(fanned(digest))
    }

    /// The links to the blobs of an image.
    #[must_use]
    pub fn image_blobs(&self, image: &ImageName) -> PathBuf {
        self.root.join(image.as_str()).join("_blobs")
    }

    /// The link to a blob of an image.
    #[must_use]
    pub fn image_blob(&self, image: &ImageName, digest: &Digest) -> PathBuf {
        self.image_blobs(image).join(fanned(digest))
    }

    /// The manifests of an image.
    #[must_use]
    pub fn manifests(&self, image: &ImageName) -> PathBuf {
        self.root.join(image.as_str()).join("_links")
    }

    /// A manifest of an image.
    #[must_use]
    pub fn manifest(&self, image: &ImageName, digest: &Digest) -> PathBuf {
        self.manifests(image).join(digest.algorithm().to_string()).join(digest.hex())
    }

    /// The tags of an image.
    #[must_use]
    pub fn tags(&self, image: &ImageName) -> PathBuf {
        self.root.join(image.as_str()).join("_tags")
    }

    /// A tag of an image.
    #[must_use]
    pub fn tag(&self, image: &ImageName, tag: &Tag) -> PathBuf {
        self.tags(image).join(tag.as_str())
    }

    /// The referrers of a digest, as last heard.
    #[must_use]
    pub fn referrers(&self, image: &ImageName, digest: &Digest) -> PathBuf {
        self.root.join(image.as_str()).join("_referrers").join(digest.algorithm().to_string()).join(digest.hex())
    }
}
