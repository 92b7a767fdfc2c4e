//! Blobs of a mirror.

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use crds::names::RepositoryName;
use futures_util::{StreamExt, TryStreamExt};

use super::{Mirror, Outcome, Want, error::Error};
use crate::{
    oci::{Digest, ImageName, Reference},
    store::{
        SMALL,
        download::{Again, Opened, Source, SourceError},
        growing::{Failure, Growing, Phase},
        record::LinkRecord,
    },
    upstream::{self, Patience},
};

/// How often in a row a request begins anew after a fill failed that was not its own.
const OTHERS: usize = 3;

/// A blob, or what is known of it.
pub struct BlobAnswer {
    /// Its size in bytes, if known yet.
    pub size: Option<u64>,
    /// The bytes.
    pub content: BlobContent,
    /// Where the answer came from.
    pub outcome: Outcome,
}

/// The bytes of a blob.
pub enum BlobContent {
    /// Not asked for.
    None,
    /// All of them.
    Memory(Bytes),
    /// A file that may still be growing.
    File {
        /// The file.
        growing: Arc<Growing>,
        /// Where the rest comes from if the volume gets full; nothing for a file that is whole already.
        source: Option<Arc<dyn Source>>,
    },
}

/// How a request asks for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRequest {
    /// Content, or what is known of it.
    pub want: Want,
    /// Whether a runtime that has a next host to ask comes back for the rest of a broken transfer.
    pub may_go_elsewhere: bool,
}

impl Mirror {
    /// A blob of an image. It is served only if this mirror's own upstream, with its own credentials, has said that it
    /// has it: that another repository stored it does not count.
    pub async fn blob(
        self: &Arc<Self>,
        image: &ImageName,
        digest: &Digest,
        request: BlobRequest,
    ) -> Result<BlobAnswer, Error> {
        self.check_online()?;
        self.check_denied(image, &Reference::Digest(digest.clone()), true).await?;
        if request.may_go_elsewhere {
            self.check_broken(digest)?;
        }
        let link = self.tree.link(digest).await?;
        match (&link, request.want) {
            (Some(_), Want::Head) => self.known_blob(image, digest).await,
            (None, Want::Head) => self.head_blob(image, digest).await,
            (linked, Want::Content) => self.blob_content(image, digest, linked.as_ref().map(|link| &link.record)).await,
        }
    }

    fn check_broken(&self, digest: &Digest) -> Result<(), Error> {
        let wait = self.broken_blob();
        match self.store.broke_off(digest) {
            Some(ago) if ago < wait => {
                Err(Error::BrokeOff { digest: digest.clone(), ago, wait: wait.saturating_sub(ago) })
            }
            _ => Ok(()),
        }
    }

    async fn known_blob(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<BlobAnswer, Error> {
        if let Some(bytes) = self.store.small(digest) {
            return Ok(BlobAnswer {
                size: Some(bytes.len() as u64),
                content: BlobContent::None,
                outcome: Outcome::Hit,
            });
        }
        let expected = self.tree.link(digest).await?.and_then(|link| link.record.size);
        if let Some(growing) = self.store.stored(digest, expected).await? {
            let size = match growing.phase() {
                Phase::Running { total, .. } => total,
                Phase::Whole { total } => Some(total),
                Phase::Opening | Phase::Failed(_) => None,
            };
            if size.is_some() {
                return Ok(BlobAnswer { size, content: BlobContent::None, outcome: Outcome::Hit });
            }
        }
        self.head_blob(image, digest).await
    }

    async fn head_blob(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<BlobAnswer, Error> {
        let size = self.ask_for_blob(image, digest).await?;
        Ok(BlobAnswer { size, content: BlobContent::None, outcome: Outcome::Miss })
    }

    /// Asks the upstream whether it has a blob; its yes is remembered as a link.
    async fn ask_for_blob(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<Option<u64>, Error> {
        self.check_absent(image, digest.as_str())?;
        let (mirror, image_, digest_) = (Arc::clone(self), image.clone(), digest.clone());
        let question = || async move {
            let asked = mirror.upstream.head_blob(&image_, &digest_, Patience::Long).await;
            let size = asked.map_err(|error| mirror.refused(&image_, digest_.as_str(), error))?;
            mirror.forget_denial(&image_);
            mirror.tree.add_link(&digest_, size).await;
            Ok(size)
        };
        self.blobs_asked.join((image.clone(), digest.clone()), question).await
    }

    async fn blob_content(
        self: &Arc<Self>,
        image: &ImageName,
        digest: &Digest,
        linked: Option<&LinkRecord>,
    ) -> Result<BlobAnswer, Error> {
        let mut expected = linked.and_then(|link| link.size);
        if linked.is_none() {
            self.check_absent(image, digest.as_str())?;
            let stored = self.store.small(digest).is_some() || self.store.stored(digest, None).await?.is_some();
            if stored {
                expected = self.ask_for_blob(image, digest).await?;
            }
        }
        if (linked.is_some() || self.tree.link(digest).await?.is_some())
            && let Some(bytes) = self.store.small(digest)
        {
            let size = Some(bytes.len() as u64);
            return Ok(BlobAnswer { size, content: BlobContent::Memory(bytes), outcome: Outcome::Hit });
        }
        let mut opened = self.open_blob(image, digest, expected).await;
        for _ in 0..OTHERS {
            match &opened {
                // The stored copy was damaged and is gone; now it is fetched again.
                Err(Failure::Damaged(_)) => {}
                // What another repository's upstream answered, or this one's for another image, says nothing here.
                Err(failure) if asked_for_another(failure, self, image) => {}
                _ => break,
            }
            opened = self.open_blob(image, digest, expected).await;
        }
        let opened = opened.map_err(|failure| self.blob_failed(image, digest, failure))??;
        opened.allowed(self, image).await
    }

    async fn open_blob(
        self: &Arc<Self>,
        image: &ImageName,
        digest: &Digest,
        expected: Option<u64>,
    ) -> Result<std::io::Result<OpenedBlob>, Failure> {
        let source: Arc<dyn Source> =
            Arc::new(BlobSource { mirror: Arc::clone(self), image: image.clone(), digest: digest.clone() });
        let joined = self.store.running(digest).is_some();
        let growing = match self.store.blob(digest, expected, Arc::clone(&source)).await {
            Ok(growing) => growing,
            Err(error) => return Ok(Err(error)),
        };
        let stored = matches!(growing.phase(), Phase::Whole { .. });
        let size = growing.opened().await?;
        let outcome = match (stored, joined) {
            (true, _) => Outcome::Hit,
            (false, true) => Outcome::Joined,
            (false, false) => Outcome::Miss,
        };
        Ok(Ok(OpenedBlob { growing, source, size, outcome }))
    }

    fn blob_failed(&self, image: &ImageName, digest: &Digest, failure: Failure) -> Error {
        if let Failure::Source(cause) = &failure
            && let Some(asked) = cause.downcast_ref::<Asked>()
        {
            if asked_for_another(&failure, self, image) {
                let (what, registry) = self.naming(image, digest.as_str());
                return Error::Upstream { what, registry, source: upstream::Error::Broken };
            }
            return self.refused(image, digest.as_str(), asked.error.clone());
        }
        Error::of_blob(failure, || self.naming(image, digest.as_str()))
    }
}

struct OpenedBlob {
    growing: Arc<Growing>,
    source: Arc<dyn Source>,
    size: Option<u64>,
    outcome: Outcome,
}

impl OpenedBlob {
    /// The answer, if this mirror's own upstream has said that it has the blob. A fill that another mirror began has
    /// asked another upstream, or with other credentials.
    async fn allowed(self, mirror: &Arc<Mirror>, image: &ImageName) -> Result<BlobAnswer, Error> {
        let digest = self.growing.digest().clone();
        if mirror.tree.link(&digest).await?.is_none() {
            mirror.ask_for_blob(image, &digest).await?;
        }
        if let Phase::Whole { total } = self.growing.phase()
            && total <= SMALL
        {
            let bytes = self.growing.read(0, total).await?;
            mirror.store.keep_small(&digest, bytes.clone());
            return Ok(BlobAnswer { size: Some(total), content: BlobContent::Memory(bytes), outcome: self.outcome });
        }
        let content = BlobContent::File { growing: self.growing, source: Some(self.source) };
        Ok(BlobAnswer { size: self.size, content, outcome: self.outcome })
    }
}

/// A blob at the upstream.
struct BlobSource {
    mirror: Arc<Mirror>,
    image: ImageName,
    digest: Digest,
}

impl BlobSource {
    async fn ask(&self, offset: u64) -> Result<Opened, SourceError> {
        let asked = self.mirror.upstream.get_blob(&self.image, &self.digest, offset, Patience::Long).await;
        let body = asked.map_err(|error| self.failed(error))?;
        self.mirror.forget_denial(&self.image);
        self.mirror.forget_absence(&self.image, self.digest.as_str());
        // The upstream has it, and gives it to these credentials.
        self.mirror.tree.add_link_soon(&self.digest, body.total);
        let source = Self { mirror: Arc::clone(&self.mirror), image: self.image.clone(), digest: self.digest.clone() };
        let chunks = body.body.map(move |chunk| chunk.map_err(|error| source.failed(error)));
        let received = self.mirror.received.clone();
        let counted = chunks.inspect_ok(move |chunk| {
            received.inc_by(chunk.len() as u64);
        });
        Ok(Opened { start: body.start, total: body.total, body: counted.boxed() })
    }

    fn failed(&self, error: upstream::Error) -> SourceError {
        let again = if error.restart() {
            Again::FromStart
        } else if error.may_retry() {
            Again::Resume
        } else {
            Again::Never
        };
        let asked = Asked { repository: self.mirror.settings.name.clone(), image: self.image.clone(), error };
        SourceError { cause: Arc::new(asked), again }
    }
}

/// How an upstream failed, and on whose behalf it was asked: a fill may have readers from other repositories.
#[derive(Debug, thiserror::Error)]
#[error("the upstream of {repository} failed for {image}")]
struct Asked {
    repository: RepositoryName,
    image: ImageName,
    #[source]
    error: upstream::Error,
}

/// Whether a fill failed that had asked on behalf of another repository or image.
fn asked_for_another(failure: &Failure, mirror: &Mirror, image: &ImageName) -> bool {
    let Failure::Source(cause) = failure else { return false };
    let asked = cause.downcast_ref::<Asked>();
    asked.is_some_and(|asked| asked.repository != mirror.settings.name || asked.image != *image)
}

impl Source for BlobSource {
    fn open(&self, offset: u64) -> Pin<Box<dyn Future<Output = Result<Opened, SourceError>> + Send + '_>> {
        Box::pin(self.ask(offset))
    }

    fn resumes(&self) -> u32 {
        self.mirror.settings.upstream.limits.resumes
    }
}
