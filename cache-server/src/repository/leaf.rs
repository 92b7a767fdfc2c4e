//! A repository that holds content itself: a mirror or a hosted repository. The one place where those two are told apart to be
//! asked; everyone else asks a [`Leaf`]. May import `store`, `search`, `oci`.

use std::{io, sync::Arc};

use bytes::Bytes;
use crds::names::RepositoryName;

use super::{BlobAnswer, BlobRequest, Hosted, ManifestAnswer, Mirror, Outcome, Want, error::Error};
use crate::{
    oci::{Digest, ImageName, Reference, Tag},
    search::Found,
    store::tree::Tree,
};

/// A repository that holds content itself.
#[derive(Clone)]
pub enum Leaf {
    /// A mirror.
    Mirror(Arc<Mirror>),
    /// A hosted repository.
    Hosted(Arc<Hosted>),
}

impl Leaf {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RepositoryName {
        match self {
            Self::Mirror(mirror) => &mirror.settings().name,
            Self::Hosted(hosted) => &hosted.settings().name,
        }
    }

    /// The image as its origin knows it.
    #[must_use]
    pub fn named(&self, image: &ImageName) -> ImageName {
        match self {
            Self::Mirror(mirror) => mirror.named(image),
            Self::Hosted(_) => image.clone(),
        }
    }

    /// Its part of the store.
    #[must_use]
    pub fn tree(&self) -> &Arc<Tree> {
        match self {
            Self::Mirror(mirror) => &mirror.tree,
            Self::Hosted(hosted) => &hosted.tree,
        }
    }

    /// Images of it that may have a blob, found without asking anybody and without looking at all images; for one who wants to
    /// be called `like`. A mirror hands out its blobs under every name.
    pub async fn holders_of(&self, digest: &Digest, like: &ImageName) -> io::Result<Vec<ImageName>> {
        match self {
            Self::Mirror(mirror) => Ok(mirror.tree.link(digest).await?.map(|_| like.clone()).into_iter().collect()),
            Self::Hosted(hosted) => Ok(hosted.tree.holders(digest).to_vec()),
        }
    }

    /// Refuses when the repository is switched off.
    pub fn check_online(&self) -> Result<(), Error> {
        match self {
            Self::Mirror(mirror) => mirror.check_online(),
            Self::Hosted(hosted) => hosted.check_online(),
        }
    }

    /// A manifest of an image, byte for byte as its origin has it.
    pub async fn manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        match self {
            Self::Mirror(mirror) => mirror.manifest(&mirror.named(image), reference, want).await,
            Self::Hosted(hosted) => hosted.manifest(image, reference).await,
        }
    }

    /// A blob of an image.
    pub async fn blob(&self, image: &ImageName, digest: &Digest, request: BlobRequest) -> Result<BlobAnswer, Error> {
        match self {
            Self::Mirror(mirror) => mirror.blob(&mirror.named(image), digest, request).await,
            Self::Hosted(hosted) => hosted.blob(image, digest, request.want).await,
        }
    }

    /// All tags of an image, sorted.
    pub async fn tags(&self, image: &ImageName) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        match self {
            Self::Mirror(mirror) => mirror.tags(&mirror.named(image)).await,
            Self::Hosted(hosted) => hosted.tags(image).await,
        }
    }

    /// Whether it can be searched by itself.
    #[must_use]
    pub fn searches(&self) -> bool {
        match self {
            Self::Mirror(mirror) => mirror.settings().index.is_some(),
            Self::Hosted(_) => false,
        }
    }

    /// The first `need` images that have a text in their name or description, at least.
    pub async fn search(&self, text: &str, need: usize) -> Result<Found, Error> {
        match self {
            Self::Mirror(mirror) => mirror.search(text, need).await,
            Self::Hosted(hosted) => hosted.search(text).await,
        }
    }

    /// The referrers of a digest as an image index. Never absent, only empty.
    pub async fn referrers(&self, image: &ImageName, digest: &Digest) -> Result<(Bytes, Outcome), Error> {
        match self {
            Self::Mirror(mirror) => mirror.referrers(&mirror.named(image), digest).await,
            Self::Hosted(hosted) => hosted.referrers(image, digest).await,
        }
    }
}
