//! What a repository does: joins an upstream with the store. Read in this order: [`error`], [`freshness`],
//! [`flights`], [`mirror`], [`manifests`], [`blobs`], [`lists`]; then [`hosted`], [`leaf`], which is one of those two, [`group`], and
//! [`Repository`], which is a leaf or a group. May import `upstream`, `store`, `oci`, `settings`.

mod blobs;
pub mod error;
mod flights;
pub mod freshness;
pub mod group;
pub mod hosted;
pub mod leaf;
mod lists;
mod manifests;
pub mod mirror;

pub use blobs::{BlobAnswer, BlobContent, BlobRequest};
pub use error::Error;
pub use group::Group;
pub use hosted::{Hosted, push::PushError};
pub use leaf::Leaf;
pub use manifests::ManifestAnswer;
pub use mirror::Mirror;

use std::{io, sync::Arc};

use bytes::Bytes;
use crds::names::RepositoryName;

use crate::{
    oci::{Digest, ImageName, Reference, Tag},
    search::Found,
    settings::RegistryName,
    store::tree::Tree,
};

/// A repository of any kind.
#[derive(Clone)]
pub enum Repository {
    /// One that holds content itself.
    Leaf(Leaf),
    /// A group.
    Group(Arc<Group>),
}

/// What of a request matters beside what it asks for. Groups choose their members by it.
#[derive(Clone, Copy)]
pub struct Asking<'a> {
    /// The registry that the request says it means.
    pub meant: Meant<'a>,
    /// Whether the one who asks may pull an image from a repository of that name.
    pub may_pull: &'a (dyn Fn(&RepositoryName, &ImageName) -> MayPull + Send + Sync),
}

/// Whether someone may pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MayPull {
    /// They may not.
    No,
    /// Nobody in particular may not; who they are is not known.
    AfterLogin,
    /// They may.
    Yes,
}

/// Which registry's image a request means.
#[derive(Clone, Copy, Debug)]
pub enum Meant<'a> {
    /// It does not say.
    Unsaid,
    /// This one.
    Registry(&'a RegistryName),
    /// One that cannot be: no repository stands for it.
    Unheard,
}

impl From<Leaf> for Repository {
    fn from(leaf: Leaf) -> Self {
        Self::Leaf(leaf)
    }
}

impl Repository {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RepositoryName {
        match self {
            Self::Leaf(leaf) => leaf.name(),
            Self::Group(group) => &group.settings().name,
        }
    }

    /// The image as its origin knows it, where it has one origin.
    #[must_use]
    pub fn named(&self, image: &ImageName) -> ImageName {
        match self {
            Self::Leaf(leaf) => leaf.named(image),
            Self::Group(_) => image.clone(),
        }
    }

    /// The repositories that hold its content, in the order in which they are asked: itself, or a group's members, as far as no
    /// group between hides them from one who may see this.
    #[must_use]
    pub fn holders(&self, may_see: &dyn Fn(&RepositoryName) -> bool) -> Vec<Self> {
        match self {
            Self::Leaf(_) => vec![self.clone()],
            Self::Group(group) => group.leaves_for(may_see).cloned().map(Self::from).collect(),
        }
    }

    /// Its part of the store; a group has none of its own.
    #[must_use]
    pub fn tree(&self) -> Option<&Arc<Tree>> {
        match self {
            Self::Leaf(leaf) => Some(leaf.tree()),
            Self::Group(_) => None,
        }
    }

    /// Images of it that may have a blob, found without asking anybody and without looking at all images; for one who wants to
    /// be called `like`. A mirror hands out its blobs under every name. A group has none of its own.
    pub async fn holders_of(&self, digest: &Digest, like: &ImageName) -> io::Result<Vec<ImageName>> {
        match self {
            Self::Leaf(leaf) => leaf.holders_of(digest, like).await,
            Self::Group(_) => Ok(Vec::new()),
        }
    }

    /// Refuses when the repository is switched off.
    pub fn check_online(&self) -> Result<(), Error> {
        match self {
            Self::Leaf(leaf) => leaf.check_online(),
            Self::Group(group) => group.check_online(),
        }
    }

    /// A manifest of an image, byte for byte as its origin has it.
    pub async fn manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        want: Want,
        asking: &Asking<'_>,
    ) -> Result<ManifestAnswer, Error> {
        match self {
            Self::Leaf(leaf) => leaf.manifest(image, reference, want).await,
            Self::Group(group) => group.manifest(image, reference, want, asking).await,
        }
    }

    /// A blob of an image.
    pub async fn blob(
        &self,
        image: &ImageName,
        digest: &Digest,
        request: BlobRequest,
        asking: &Asking<'_>,
    ) -> Result<BlobAnswer, Error> {
        match self {
            Self::Leaf(leaf) => leaf.blob(image, digest, request).await,
            Self::Group(group) => group.blob(image, digest, request, asking).await,
        }
    }

    /// All tags of an image, sorted.
    pub async fn tags(&self, image: &ImageName, asking: &Asking<'_>) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        match self {
            Self::Leaf(leaf) => leaf.tags(image).await,
            Self::Group(group) => group.tags(image, asking).await,
        }
    }

    /// Whether it can be searched.
    #[must_use]
    pub fn searches(&self) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.searches(),
            Self::Group(group) => group.settings().v1_search,
        }
    }

    /// The first `need` images that have a text in their name or description, at least.
    pub async fn search(&self, text: &str, need: usize, asking: &Asking<'_>) -> Result<Found, Error> {
        match self {
            Self::Leaf(leaf) => leaf.search(text, need).await,
            Self::Group(group) => group.search(text, need, asking).await,
        }
    }

    /// The referrers of a digest as an image index. Never absent, only empty.
    pub async fn referrers(
        &self,
        image: &ImageName,
        digest: &Digest,
        asking: &Asking<'_>,
    ) -> Result<(Bytes, Outcome), Error> {
        match self {
            Self::Leaf(leaf) => leaf.referrers(image, digest).await,
            Self::Group(group) => group.referrers(image, digest, asking).await,
        }
    }
}

/// Where an answer came from. The words of the request log and of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the store, without asking anybody.
    Hit,
    /// From the upstream; stored on the way.
    Miss,
    /// From a fill that ran already.
    Joined,
    /// From the store, after the upstream confirmed it.
    Revalidated,
    /// From the store, because the upstream could not be asked.
    Stale,
}

impl Outcome {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
        }
    }
}

/// Whether a request wants the content or only what is said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// HEAD.
    Head,
    /// GET.
    Content,
}
