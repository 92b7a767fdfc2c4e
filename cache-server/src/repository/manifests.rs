//! Manifests of a mirror, by tag and by digest.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;

use super::{
    Mirror, Outcome, Want,
    error::{Error, WrongContent},
    freshness::{self, Judgement},
};
use crate::{
    oci::{Digest, ImageName, Manifest, MediaType, Reference, Tag},
    store::record::{ManifestRecord, TagRecord, TagTarget, millis},
    upstream::{FetchedManifest, Patience},
};

/// A manifest, or what is known of it.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, as it came.
    pub media_type: MediaType,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, as they came; may be missing when only what is known was asked for.
    pub bytes: Option<Bytes>,
    /// Where the answer came from.
    pub outcome: Outcome,
}

/// A manifest that came from the upstream and is stored.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    digest: Digest,
    media_type: MediaType,
    bytes: Bytes,
}

impl Fetched {
    fn answer(self, outcome: Outcome) -> ManifestAnswer {
        ManifestAnswer {
            digest: self.digest,
            media_type: self.media_type,
            size: self.bytes.len() as u64,
            bytes: Some(self.bytes),
            outcome,
        }
    }

    fn target(&self) -> TagTarget {
        TagTarget { digest: self.digest.clone(), media_type: self.media_type.clone(), size: self.bytes.len() as u64 }
    }
}

impl Mirror {
    /// A manifest of an image, byte for byte as the upstream has it.
    pub async fn manifest(
        self: &Arc<Self>,
        image: &ImageName,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        self.check_online()?;
        match reference {
            Reference::Digest(digest) => {
                self.check_denied(image, reference, false).await?;
                self.by_digest(image, digest, want).await
            }
            Reference::Tag(tag) => self.by_tag(image, tag, want).await,
        }
    }

    async fn by_digest(
        self: &Arc<Self>,
        image: &ImageName,
        digest: &Digest,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        if let Some(answer) = self.stored_manifest(image, digest).await? {
            return Ok(answer);
        }
        self.check_absent(image, digest.as_str())?;
        match want {
            Want::Head => self.head_of_digest(image, digest).await,
            Want::Content => Ok(self.fetch_by_digest(image, digest).await?.answer(Outcome::Miss)),
        }
    }

    async fn head_of_digest(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<ManifestAnswer, Error> {
        let reference = Reference::Digest(digest.clone());
        let head = self.upstream.head_manifest(image, &reference, Patience::Long).await;
        let head = head.map_err(|error| self.refused(image, digest.as_str(), error))?;
        match (head.size, head.media_type) {
            (Some(size), Some(media_type)) => {
                Ok(ManifestAnswer { digest: digest.clone(), media_type, size, bytes: None, outcome: Outcome::Miss })
            }
            _ => Ok(self.fetch_by_digest(image, digest).await?.answer(Outcome::Miss)),
        }
    }

    /// A manifest that this mirror has; damaged ones do not count.
    async fn stored_manifest(&self, image: &ImageName, digest: &Digest) -> Result<Option<ManifestAnswer>, Error> {
        let Some(known) = self.tree.manifest(image, digest).await? else { return Ok(None) };
        let Some(bytes) = self.store.read_small(digest).await? else { return Ok(None) };
        Ok(Some(ManifestAnswer {
            digest: digest.clone(),
            media_type: known.record.media_type.clone(),
            size: bytes.len() as u64,
            bytes: Some(bytes),
            outcome: Outcome::Hit,
        }))
    }

    async fn by_tag(self: &Arc<Self>, image: &ImageName, tag: &Tag, want: Want) -> Result<ManifestAnswer, Error> {
        self.check_denied(image, &Reference::Tag(tag.clone()), false).await?;
        let known = self.tree.tag(image, tag).await?;
        let Some(known) = known.map(|known| known.record.clone()) else {
            self.check_absent(image, tag.as_str())?;
            let record = self.ask_for_tag(image, tag, want, None).await?;
            return self.tag_answer(image, &record, want, Outcome::Miss).await;
        };
        let age = known.age(SystemTime::now());
        match freshness::judge(age, self.freshness()) {
            Judgement::Fresh => self.tag_answer(image, &known, want, Outcome::Hit).await,
            Judgement::ServeAndAsk => {
                let (mirror, image_, tag_, known_) = (Arc::clone(self), image.clone(), tag.clone(), known.clone());
                tokio::spawn(async move { mirror.ask_for_tag(&image_, &tag_, want, Some(known_)).await });
                self.tag_answer(image, &known, want, Outcome::Stale).await
            }
            Judgement::Ask => match self.ask_for_tag(image, tag, want, Some(known.clone())).await {
                Ok(record) => self.tag_answer(image, &record, want, Outcome::Revalidated).await,
                Err(error) => self.stale_tag(image, &known, error).await,
            },
        }
    }

    /// The answer for a tag whose target is known.
    async fn tag_answer(
        self: &Arc<Self>,
        image: &ImageName,
        record: &TagRecord,
        want: Want,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, Error> {
        let target = &record.target;
        if let Some(stored) = self.stored_manifest(image, &target.digest).await? {
            return Ok(ManifestAnswer { outcome, ..stored });
        }
        if want == Want::Head {
            return Ok(ManifestAnswer {
                digest: target.digest.clone(),
                media_type: target.media_type.clone(),
                size: target.size,
                bytes: None,
                outcome,
            });
        }
        match self.fetch_by_digest(image, &target.digest).await {
            Ok(fetched) => Ok(fetched.answer(Outcome::Miss)),
            Err(error) => self.stale_tag(image, record, error).await,
        }
    }

    /// The newest copy that is here, when the upstream cannot be asked; else the error that it gave.
    async fn stale_tag(&self, image: &ImageName, record: &TagRecord, error: Error) -> Result<ManifestAnswer, Error> {
        let denied_but_served = matches!(error, Error::Denied { .. }) && self.serves_denied();
        let age = record.age(SystemTime::now());
        let outlasts = error.is_outage() && freshness::may_be_stale(age, self.freshness());
        if !(denied_but_served || outlasts) {
            return Err(error);
        }
        for target in [Some(&record.target), record.previous.as_ref()].into_iter().flatten() {
            if let Some(stored) = self.stored_manifest(image, &target.digest).await? {
                return Ok(ManifestAnswer { outcome: Outcome::Stale, ..stored });
            }
        }
        Err(error)
    }

    /// Asks the upstream what a tag points to; one question at a time per tag.
    async fn ask_for_tag(
        self: &Arc<Self>,
        image: &ImageName,
        tag: &Tag,
        want: Want,
        known: Option<TagRecord>,
    ) -> Result<TagRecord, Error> {
        // With a copy at hand, GET and HEAD ask the same question.
        let want = if known.is_some() { Want::Head } else { want };
        let (mirror, image_, tag_) = (Arc::clone(self), image.clone(), tag.clone());
        let question = || async move { mirror.question_tag(&image_, &tag_, want, known).await };
        self.tags_asked.join((image.clone(), tag.clone(), want), question).await
    }

    async fn question_tag(
        self: Arc<Self>,
        image: &ImageName,
        tag: &Tag,
        want: Want,
        known: Option<TagRecord>,
    ) -> Result<TagRecord, Error> {
        let patience = if known.is_some() { Patience::Short } else { Patience::Long };
        match self.target_of(image, tag, want, patience).await {
            Ok(target) => {
                self.forget_denial(image);
                let previous = match known {
                    Some(known) => self.stored_target(image, known).await?,
                    None => None,
                };
                let previous = previous.filter(|previous| previous.digest != target.digest);
                let record = TagRecord { target, checked: millis(SystemTime::now()), previous };
                self.tree.set_tag(image, tag, record.clone()).await;
                Ok(record)
            }
            Err(error) => {
                if matches!(error, Error::NotFound { .. }) && known.is_some() {
                    self.tree.remove_tag(image, tag).await?;
                }
                Err(error)
            }
        }
    }

    /// The copy to fall back on until the new target is stored.
    async fn stored_target(&self, image: &ImageName, known: TagRecord) -> Result<Option<TagTarget>, Error> {
        if self.tree.manifest(image, &known.target.digest).await?.is_some() {
            return Ok(Some(known.target));
        }
        Ok(known.previous)
    }

    /// What the upstream says that a tag points to. By HEAD where that is enough: Docker Hub counts only GETs.
    async fn target_of(
        self: &Arc<Self>,
        image: &ImageName,
        tag: &Tag,
        want: Want,
        patience: Patience,
    ) -> Result<TagTarget, Error> {
        let reference = Reference::Tag(tag.clone());
        if want == Want::Head {
            let head = self.upstream.head_manifest(image, &reference, patience).await;
            let head = head.map_err(|error| self.refused(image, tag.as_str(), error))?;
            if let (Some(digest), Some(media_type), Some(size)) = (head.digest, head.media_type, head.size) {
                return Ok(TagTarget { digest, media_type, size });
            }
        }
        let fetched = self.upstream.get_manifest(image, &reference, patience).await;
        let fetched = fetched.map_err(|error| self.refused(image, tag.as_str(), error))?;
        Ok(self.keep(image, tag.as_str(), fetched).await?.target())
    }

    async fn fetch_by_digest(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<Fetched, Error> {
        let (mirror, image_, digest_) = (Arc::clone(self), image.clone(), digest.clone());
        let question = || async move {
            let reference = Reference::Digest(digest_.clone());
            let fetched = mirror.upstream.get_manifest(&image_, &reference, Patience::Long).await;
            let fetched = fetched.map_err(|error| mirror.refused(&image_, digest_.as_str(), error))?;
            mirror.forget_denial(&image_);
            mirror.keep(&image_, digest_.as_str(), fetched).await
        };
        self.manifests_asked.join((image.clone(), digest.clone()), question).await
    }

    /// Checks and stores a manifest.
    async fn keep(&self, image: &ImageName, reference: &str, fetched: FetchedManifest) -> Result<Fetched, Error> {
        self.received.inc_by(fetched.bytes.len() as u64);
        let manifest = Manifest::parse(&fetched.bytes).map_err(|source| {
            let (what, registry) = self.naming(image, reference);
            Error::WrongContent { what, registry, source: WrongContent::Manifest(Arc::new(source)) }
        })?;
        let record = ManifestRecord {
            subject: None,
            media_type: fetched.media_type.clone(),
            size: fetched.bytes.len() as u64,
            references: manifest.descriptors().iter().map(|descriptor| descriptor.digest.clone()).collect(),
        };
        self.tree.add_manifest(image, &fetched.digest, record, fetched.bytes.clone()).await;
        self.forget_absence(image, fetched.digest.as_str());
        Ok(Fetched { digest: fetched.digest, media_type: fetched.media_type, bytes: fetched.bytes })
    }
}
