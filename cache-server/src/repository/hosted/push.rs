//! Pushes to a hosted repository, and deletions from it. What is answered with success is on the disk.

use std::{
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::Stream;

use super::{Hosted, policy::Forbidden};
use crate::{
    oci::{
        ChunkRange, Descriptor, Digest, ImageName, ManifestQuery, PushQueryError, PushedManifest, PushedManifestError,
        Reference, Tag, UploadQuery,
    },
    repository::Error,
    store::{
        pushed::Change,
        record::{ManifestRecord, TagRecord, TagTarget, millis},
        uploads::{Upload, UploadError, UploadId},
    },
};

/// The largest manifest that is taken, in bytes.
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;

/// The most manifests that may say something about one; more could not be listed in one answer.
const MAX_REFERRERS: usize = crate::oci::manifest::MAX_DESCRIPTORS;

/// Why a push or a deletion is refused.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// As a pull would be.
    #[error(transparent)]
    Repository(#[from] Error),
    /// The repository's settings forbid it.
    #[error("{repository}: {why}")]
    Forbidden {
        /// The repository.
        repository: String,
        /// What forbids it.
        why: Forbidden,
    },
    /// The query is wrong.
    #[error(transparent)]
    Query(#[from] PushQueryError),
    /// The upload failed.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// A chunk's `Content-Range` is none.
    #[error("Content-Range must be <first byte>-<last byte>, got {0:?}")]
    ContentRange(String),
    /// An upload is ended without saying what it is.
    #[error("an upload is ended with the parameter digest")]
    NoDigest,
    /// The manifest is longer than [`MAX_MANIFEST`].
    #[error("a manifest may have at most {MAX_MANIFEST} bytes")]
    TooLarge,
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] PushedManifestError),
    /// The manifest does not hash to the digest it was pushed under.
    #[error("the manifest hashes to {actual}, not to {expected}")]
    Mismatch {
        /// What was said.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The manifest names blobs that the image does not have.
    #[error("{image} does not have {}: push or mount them first", list(.digests))]
    BlobsUnknown {
        /// The image.
        image: ImageName,
        /// The blobs.
        digests: Vec<Digest>,
    },
    /// The manifest says another size of a blob.
    #[error("the manifest says that {digest} has {said} bytes; it has {actual}")]
    Size {
        /// The blob.
        digest: Digest,
        /// What the manifest says.
        said: u64,
        /// What it has.
        actual: u64,
    },
    /// There is no space for what was pushed, and nothing of it counts.
    #[error("the volume is full; enlarge it, or remove something")]
    NoSpace,
    /// Too many manifests say something about one.
    #[error("{0} has {MAX_REFERRERS} referrers, which is the most; delete some first")]
    TooManyReferrers(Digest),
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::as_str).collect::<Vec<_>>().join(", ")
}

impl From<io::Error> for PushError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Repository(error.into()),
        }
    }
}

/// A manifest that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its digest.
    pub digest: Digest,
    /// Its subject's.
    pub subject: Option<Digest>,
    /// The tags that the query named.
    pub tags: Vec<Tag>,
}

/// How the bytes of an upload arrive.
pub struct Chunk<S> {
    /// The `Content-Range` header.
    pub range: Option<String>,
    /// The `Content-Length` header.
    pub length: Option<u64>,
    /// How long the client may send nothing.
    pub stall: Duration,
    /// The bytes.
    pub body: S,
}

impl Hosted {
    fn forbidden(&self, why: Forbidden) -> PushError {
        PushError::Forbidden { repository: self.settings.name.to_string(), why }
    }

    /// Refuses when nothing may be changed.
    pub fn check_writable(&self) -> Result<(), PushError> {
        self.check_online()?;
        self.policy.may_write().map_err(|why| self.forbidden(why))
    }

    /// Begins an upload.
    pub async fn begin_upload(&self, image: &ImageName, query: &UploadQuery) -> Result<Arc<Upload>, PushError> {
        self.check_writable()?;
        Ok(self.store.begin_upload(&self.settings.name, image, query.algorithm).await?)
    }

    /// An upload that is under way. It is known only to the image for which it was begun.
    pub async fn upload(&self, image: &ImageName, id: &str) -> Result<Arc<Upload>, PushError> {
        self.check_online()?;
        let id: UploadId = id.parse().map_err(|()| UploadError::Unknown)?;
        Ok(self.store.upload(&self.settings.name, image, &id).await?)
    }

    /// Appends to an upload.
    pub async fn append<E, S>(&self, upload: &Arc<Upload>, chunk: Chunk<S>) -> Result<u64, PushError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        S: Stream<Item = Result<Bytes, E>>,
    {
        self.check_writable()?;
        let range = match chunk.range {
            None => None,
            Some(text) => Some(ChunkRange::parse(&text).ok_or(PushError::ContentRange(text))?),
        };
        Ok(self.store.append(upload, range, chunk.length, chunk.stall, chunk.body).await?)
    }

    /// Ends an upload: its bytes are a blob of the image from now on, if they hash to `digest`.
    pub async fn finish_upload(
        &self,
        image: &ImageName,
        upload: &Arc<Upload>,
        digest: &Digest,
    ) -> Result<(), PushError> {
        self.check_writable()?;
        self.store.finish_upload(upload, digest).await?;
        if self.link(image, digest).await? {
            return Ok(());
        }
        Err(io::Error::other("the blob is gone that was stored a moment ago").into())
    }

    /// Ends an upload for which nobody wants the bytes.
    pub async fn cancel_upload(&self, upload: &Arc<Upload>) -> Result<(), PushError> {
        Ok(self.store.cancel_upload(upload).await?)
    }

    /// Makes a blob that the server has one of the image; says whether it has it. The caller has made sure that who asks may
    /// read it elsewhere.
    pub async fn link(&self, image: &ImageName, digest: &Digest) -> Result<bool, PushError> {
        self.check_writable()?;
        let digest = digest.clone();
        let linked = self.tree.change(image, move |change| change.link(&digest)).await;
        Ok(linked?.is_some())
    }

    /// Takes a manifest, byte for byte. When this returns, it and its tags are on the disk.
    pub async fn push_manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        query: ManifestQuery,
        content_type: Option<&crate::oci::MediaType>,
        bytes: Bytes,
    ) -> Result<Taken, PushError> {
        self.check_writable()?;
        let manifest = PushedManifest::parse(&bytes, content_type)?;
        let expected = reference.digest().or(query.digest.as_ref());
        let algorithm = expected.map_or(query.algorithm, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(PushError::Mismatch { expected: expected.clone(), actual: digest });
        }
        let taken = Taken {
            digest,
            subject: manifest.subject.as_ref().map(|subject| subject.digest.clone()),
            tags: query.tags,
        };
        let policy = self.policy.clone();
        let repository = self.settings.name.to_string();
        let push = Push {
            image: image.clone(),
            tags: reference.tag().into_iter().chain(&taken.tags).cloned().collect(),
            digest: taken.digest.clone(),
            manifest,
            bytes,
            sparse: self.settings.sparse_images,
        };
        self.tree
            .change(image, move |change| {
                for tag in &push.tags {
                    let now = change.tag(tag)?.map(|record| record.target.digest);
                    let allowed = policy.may_point(tag, now.as_ref(), &push.digest);
                    allowed.map_err(|why| PushError::Forbidden { repository: repository.clone(), why })?;
                }
                push.check(change)?;
                push.store(change)
            })
            .await?;
        Ok(taken)
    }

    /// Deletes a tag, or a manifest with its tags.
    pub async fn delete_manifest(&self, image: &ImageName, reference: &Reference) -> Result<(), PushError> {
        self.check_writable()?;
        let policy = self.policy.clone();
        let repository = self.settings.name.to_string();
        let forbidden = move |why| PushError::Forbidden { repository, why };
        let removed = match reference.clone() {
            Reference::Tag(tag) => {
                let remove = move |change: &Change<'_>| {
                    if change.tag(&tag)?.is_some() {
                        policy.may_delete(&tag).map_err(forbidden)?;
                    }
                    Ok::<_, PushError>(change.remove_tag(&tag)?)
                };
                self.tree.change(image, remove).await
            }
            Reference::Digest(digest) => {
                let remove = move |change: &Change<'_>| {
                    if let Some(tag) = leads_to(change, &policy)?.get(&digest) {
                        policy.may_delete(tag).map_err(forbidden)?;
                    }
                    Ok(change.remove_manifest(&digest)?)
                };
                self.tree.change(image, remove).await
            }
        };
        if removed? { Ok(()) } else { Err(self.not_found(image, &reference.to_string()).into()) }
    }

    /// Deletes a blob from an image. Other images keep it.
    pub async fn delete_blob(&self, image: &ImageName, digest: &Digest) -> Result<(), PushError> {
        self.check_writable()?;
        let policy = self.policy.clone();
        let repository = self.settings.name.to_string();
        let wanted = digest.clone();
        let remove = move |change: &Change<'_>| {
            if let Some(tag) = leads_to(change, &policy)?.get(&wanted) {
                policy.may_delete(tag).map_err(|why| PushError::Forbidden { repository, why })?;
            }
            Ok::<_, PushError>(change.unlink(&wanted)?)
        };
        let removed = self.tree.change(image, remove).await?;
        if removed { Ok(()) } else { Err(self.not_found(image, digest.as_str()).into()) }
    }
}

/// Everything that the immutable tags of an image lead to, with a tag that does.
fn leads_to(change: &Change<'_>, policy: &super::policy::Policy) -> io::Result<HashMap<Digest, Tag>> {
    let mut found: HashMap<Digest, Tag> = HashMap::new();
    if !policy.knows_immutable() {
        return Ok(found);
    }
    let mut pending: Vec<(Digest, Tag)> = change
        .tags()?
        .into_iter()
        .filter(|(tag, _)| policy.is_immutable(tag))
        .map(|(tag, record)| (record.target.digest, tag))
        .collect();
    while let Some((digest, tag)) = pending.pop() {
        if found.contains_key(&digest) {
            continue;
        }
        if let Some(record) = change.manifest(&digest)? {
            pending.extend(record.references.into_iter().map(|reference| (reference, tag.clone())));
        }
        found.insert(digest, tag);
    }
    Ok(found)
}

/// A manifest that is being taken.
struct Push {
    image: ImageName,
    digest: Digest,
    tags: Vec<Tag>,
    manifest: PushedManifest,
    bytes: Bytes,
    /// Whether blobs may be missing.
    sparse: bool,
}

impl Push {
    /// Refuses a manifest whose blobs are not there.
    fn check(&self, change: &Change<'_>) -> Result<(), PushError> {
        let mut absent = Vec::new();
        for blob in &self.manifest.required {
            match change.blob(&blob.digest)? {
                None => absent.push(blob.digest.clone()),
                Some(link) => match (blob.size, link.size) {
                    (Some(said), Some(actual)) if said != actual => {
                        return Err(PushError::Size { digest: blob.digest.clone(), said, actual });
                    }
                    _ => {}
                },
            }
        }
        absent.dedup();
        if absent.is_empty() || self.sparse {
            Ok(())
        } else {
            Err(PushError::BlobsUnknown { image: self.image.clone(), digests: absent })
        }
    }

    /// What it lists first, then the manifest, then what leads to it: whoever finds a record finds what it speaks of.
    fn store(&self, change: &Change<'_>) -> Result<(), PushError> {
        for reference in &self.manifest.references {
            change.keep(reference);
        }
        let subject = self.manifest.subject.as_ref().map(|subject| &subject.digest);
        let size = self.bytes.len() as u64;
        let record = ManifestRecord {
            media_type: self.manifest.media_type.clone(),
            size,
            references: self.manifest.references.clone(),
            subject: subject.cloned(),
        };
        let referrers = subject.map(|subject| self.referrers(change, subject)).transpose()?;
        change.put_manifest(&self.digest, record, &self.bytes)?;
        if let (Some(subject), Some(referrers)) = (subject, referrers) {
            change.put_referrers(subject, referrers)?;
        }
        for tag in &self.tags {
            let target = TagTarget { digest: self.digest.clone(), media_type: self.manifest.media_type.clone(), size };
            change.put_tag(tag, TagRecord { target, checked: millis(SystemTime::now()), previous: None })?;
        }
        Ok(())
    }

    /// The referrers of its subject, with it.
    fn referrers(&self, change: &Change<'_>, subject: &Digest) -> Result<Vec<Descriptor>, PushError> {
        let mut referrers = change.referrers(subject)?;
        referrers.retain(|referrer| referrer.digest != self.digest);
        if referrers.len() >= MAX_REFERRERS {
            return Err(PushError::TooManyReferrers(subject.clone()));
        }
        referrers.push(Descriptor {
            media_type: self.manifest.media_type.clone(),
            digest: self.digest.clone(),
            size: Some(self.bytes.len() as u64),
            artifact_type: self.manifest.artifact_type.clone(),
            annotations: self.manifest.annotations.clone(),
            is_manifest: true,
        });
        Ok(referrers)
    }
}
