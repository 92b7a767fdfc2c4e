//! A hosted repository: a tree of the store that clients fill. Here is what is pulled from it; [`policy`] says what may be
//! changed, [`push`] changes it. May import `store`, `search`, `oci`, `settings`.

pub mod policy;
pub mod push;

use std::{io, sync::Arc};

use bytes::Bytes;
use crds::names::{ByteSize, RepositoryName, Span};

use policy::Policy;

use super::{
    BlobAnswer, BlobContent, ManifestAnswer, Outcome, Want,
    error::{Error, WrongContent},
};
use crate::{
    oci::{Digest, ImageName, Reference, Tag, manifest},
    search::Found,
    settings::HostedSettings,
    store::{
        SMALL, Store,
        growing::Phase,
        tree::{Retention, Tree},
    },
};

/// The most images that a search looks through.
const MOST_SEARCHED: usize = 20_000;

/// A repository that takes pushes.
pub struct Hosted {
    settings: HostedSettings,
    policy: Policy,
    store: Arc<Store>,
    pub(super) tree: Arc<Tree>,
}

/// Why a hosted repository cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
#[error("HostedRepository {name}: its folder in the store cannot be used")]
pub struct BuildError {
    /// The repository.
    pub name: RepositoryName,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Hosted {
    /// A hosted repository over `store`.
    pub fn new(settings: HostedSettings, store: Arc<Store>) -> Result<Arc<Self>, BuildError> {
        let tree = store
            .pushed_tree(&settings.name, &settings.identity())
            .map_err(|source| BuildError { name: settings.name.clone(), source })?;
        tree.set_retention(Retention {
            max_size: settings.retention.max_size.map(ByteSize::as_u64),
            unused_for: settings.retention.unused_for.map(Span::get),
        });
        tree.hold_the_only_copy();
        let policy = Policy::new(settings.write_policy, &settings.immutable_tags);
        Ok(Arc::new(Self { settings, policy, store, tree }))
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &HostedSettings {
        &self.settings
    }

    /// Refuses when the repository is switched off.
    pub fn check_online(&self) -> Result<(), Error> {
        if self.settings.online { Ok(()) } else { Err(Error::Offline(self.settings.name.to_string())) }
    }

    fn not_found(&self, image: &ImageName, reference: &str) -> Error {
        let separator = if reference.contains(':') { '@' } else { ':' };
        Error::NotFound { what: format!("{image}{separator}{reference}"), registry: self.settings.name.to_string() }
    }

    /// A manifest, byte for byte as it was pushed.
    pub async fn manifest(&self, image: &ImageName, reference: &Reference) -> Result<ManifestAnswer, Error> {
        self.check_online()?;
        let absent = || self.not_found(image, &reference.to_string());
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => self.tree.tag(image, tag).await?.ok_or_else(absent)?.record.target.digest.clone(),
        };
        let known = self.tree.manifest(image, &digest).await?.ok_or_else(absent)?;
        let bytes = self.store.read_small(&digest).await?.ok_or_else(absent)?;
        Ok(ManifestAnswer {
            digest,
            media_type: known.record.media_type.clone(),
            size: bytes.len() as u64,
            bytes: Some(bytes),
            outcome: Outcome::Hit,
        })
    }

    /// A blob that was pushed to this image.
    pub async fn blob(&self, image: &ImageName, digest: &Digest, want: Want) -> Result<BlobAnswer, Error> {
        self.check_online()?;
        let absent = || self.not_found(image, digest.as_str());
        let link = self.tree.image_blob(image, digest).await?.ok_or_else(absent)?;
        let answer = |size, content| BlobAnswer { size: Some(size), content, outcome: Outcome::Hit };
        if let Some(bytes) = self.store.small(digest) {
            let size = bytes.len() as u64;
            return Ok(answer(size, if want == Want::Head { BlobContent::None } else { BlobContent::Memory(bytes) }));
        }
        let growing = self.store.stored(digest, link.record.size).await?.ok_or_else(absent)?;
        let damaged = |failure| Error::WrongContent {
            what: digest.to_string(),
            registry: self.settings.name.to_string(),
            source: WrongContent::Blob(failure),
        };
        let Some(size) = growing.opened().await.map_err(damaged)? else { return Err(absent()) };
        if want == Want::Head {
            return Ok(answer(size, BlobContent::None));
        }
        if let Phase::Whole { total } = growing.phase()
            && total <= SMALL
        {
            let bytes = growing.read(0, total).await?;
            self.store.keep_small(digest, bytes.clone());
            return Ok(answer(total, BlobContent::Memory(bytes)));
        }
        Ok(answer(size, BlobContent::File { growing, source: None }))
    }

    /// All tags of an image, sorted.
    pub async fn tags(&self, image: &ImageName) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        self.check_online()?;
        let tags = self.tree.tags(image).await?;
        if tags.is_empty() {
            return Err(self.not_found(image, "tags"));
        }
        Ok((tags, Outcome::Hit))
    }

    /// The images that have a text in their name.
    pub async fn search(&self, text: &str) -> Result<Found, Error> {
        self.check_online()?;
        let text = text.to_ascii_lowercase();
        let (mut names, mut last) = (Vec::new(), None);
        loop {
            let images = self.store.images(&self.tree, last, MOST_SEARCHED).await?;
            names.extend(images.names);
            last = images.next;
            if last.is_none() || names.len() >= MOST_SEARCHED {
                break;
            }
        }
        let names = names.into_iter().map(|name| name.to_string());
        Ok(Found::all(names.filter(|name| name.contains(&text))))
    }

    /// The referrers of a digest as an image index. Never absent, only empty.
    pub async fn referrers(&self, image: &ImageName, digest: &Digest) -> Result<(Bytes, Outcome), Error> {
        self.check_online()?;
        let index = self.tree.referrers(image, digest).await?;
        Ok((index.unwrap_or_else(|| manifest::index_of(Vec::new())).into(), Outcome::Hit))
    }
}
