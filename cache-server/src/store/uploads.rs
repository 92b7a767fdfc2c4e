//! Blobs on their way in: sessions that outlive a broken connection and a restart. May import `oci`.
//!
//! A session is a folder `uploads/<id>` with what it is for (`state`) and the bytes so far (`data`), whose length says how far it
//! has come. One request at a time writes; what was received is kept when the request breaks off.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::names::RepositoryName;
use dashmap::{DashMap, Entry};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::OwnedMutexGuard,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Store,
    blobs::Stamp,
    blocking,
    files::{self, Unreadable},
    growing::{Growing, Phase},
    trouble::is_full,
};
use crate::oci::{Algorithm, ChunkRange, Digest, Hasher, ImageName};

/// Bytes that wait for the disk at most, per upload.
const BACKLOG: usize = 1024 * 1024;

/// Bytes read at once when data is hashed again.
const REHASH: usize = 1024 * 1024;

/// Sessions in use at most.
const MAX_SESSIONS: usize = 10_000;

/// The sessions that were used in this process.
#[derive(Default)]
pub(super) struct Uploads {
    pub(super) sessions: DashMap<UploadId, Arc<Upload>>,
}

/// The name of a session: 32 hexadecimal digits that nobody can guess.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("there is no randomness"))?;
        Ok(Self(hex::encode(bytes)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let good = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

/// What a session is for, as it stands in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    repository: String,
    image: ImageName,
    algorithm: String,
}

/// Why bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The session ended: it was finished, cancelled, or failed before.
    #[error("there is no such upload: it was finished, cancelled or left alone for too long; begin a new one")]
    Unknown,
    /// Another request writes to it.
    #[error("another request writes to this upload; wait until it has ended, then ask how far it has come")]
    Busy,
    /// The chunk does not begin where the last one ended.
    #[error("the next chunk of this upload must begin at byte {0}")]
    OutOfOrder(u64),
    /// More bytes than the chunk was said to have, or fewer.
    #[error("the chunk must have the {said} bytes that its Content-Range says, got {got}")]
    Length {
        /// What was said.
        said: u64,
        /// What came.
        got: u64,
    },
    /// The client's body broke off. What came is kept.
    #[error("the request's body broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client sent nothing for too long. What came is kept.
    #[error("no byte came for {} s; the upload can go on from where it is", .0.as_secs())]
    Stalled(Duration),
    /// The bytes do not hash to the digest. The session is gone.
    #[error("the {size} bytes received hash to {actual}, not to {expected}; begin a new upload")]
    Mismatch {
        /// What was announced.
        expected: Digest,
        /// What came.
        actual: Digest,
        /// How many bytes came.
        size: u64,
    },
    /// There is no space. The session is gone, so that it takes none.
    #[error("there is no space: {0}; the upload was dropped")]
    NoSpace(&'static str),
    /// Too many sessions.
    #[error("{MAX_SESSIONS} uploads are under way; finish or cancel some, or try again later")]
    TooMany,
    /// The volume failed.
    #[error("the store failed")]
    Io(#[from] io::Error),
}

/// One session.
pub struct Upload {
    id: UploadId,
    state: State,
    algorithm: Algorithm,
    progress: Mutex<Progress>,
    busy: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Progress {
    offset: u64,
    /// Nothing when an earlier process received the bytes.
    hasher: Option<Hasher>,
    gone: bool,
}

impl Store {
    fn upload_folder(&self, id: &UploadId) -> PathBuf {
        self.layout.uploads().join(id.as_str())
    }

    /// Begins a session for a blob of an image.
    pub async fn begin_upload(
        self: &Arc<Self>,
        repository: &RepositoryName,
        image: &ImageName,
        algorithm: Algorithm,
    ) -> Result<Arc<Upload>, UploadError> {
        if self.uploads.sessions.len() >= MAX_SESSIONS {
            return Err(UploadError::TooMany);
        }
        let id = UploadId::random()?;
        let state = State {
            repository: repository.to_string(),
            image: image.clone(),
            algorithm: algorithm.as_str().to_owned(),
        };
        let upload = Arc::new(Upload {
            id: id.clone(),
            state,
            algorithm,
            progress: Mutex::new(Progress { offset: 0, hasher: Some(Hasher::new(algorithm)), gone: false }),
            busy: Arc::default(),
        });
        let (store, begun) = (Arc::clone(self), Arc::clone(&upload));
        let made = blocking(move || {
            let folder = store.upload_folder(&begun.id);
            std::fs::create_dir(&folder)?;
            files::write_record(&folder.join("state"), &begun.state)?;
            File::create_new(folder.join("data")).map(drop)
        })
        .await;
        match made {
            Ok(()) => {
                self.uploads.sessions.insert(id, Arc::clone(&upload));
                Ok(upload)
            }
            Err(error) => {
                let folder = self.upload_folder(&id);
                // The first error says more.
                let _ = blocking(move || std::fs::remove_dir_all(folder)).await;
                Err(self.failed(error))
            }
        }
    }

    /// The session of that name, if it is one for this image of this repository.
    pub async fn upload(
        self: &Arc<Self>,
        repository: &RepositoryName,
        image: &ImageName,
        id: &UploadId,
    ) -> Result<Arc<Upload>, UploadError> {
        let found = self.uploads.sessions.get(id).map(|upload| Arc::clone(&upload));
        let found = if found.is_some() {
            found
        } else {
            let (store, id) = (Arc::clone(self), id.clone());
            blocking(move || store.load_upload(&id)).await?
        };
        let upload = found.filter(|upload| {
            upload.state.repository == repository.as_str() && upload.state.image == *image && !upload.progress().gone
        });
        upload.ok_or(UploadError::Unknown)
    }

    /// A session that an earlier process began.
    fn load_upload(&self, id: &UploadId) -> io::Result<Option<Arc<Upload>>> {
        // Under the entry's lock, so that the sweep does not remove it meanwhile.
        match self.uploads.sessions.entry(id.clone()) {
            Entry::Occupied(upload) => Ok(Some(Arc::clone(upload.get()))),
            Entry::Vacant(place) => {
                let folder = self.upload_folder(id);
                let Some((state, _)) = files::read_record::<State>(&folder.join("state"), Unreadable::Missing)? else {
                    return Ok(None);
                };
                let Some(algorithm) = Algorithm::ALL.into_iter().find(|it| it.as_str() == state.algorithm) else {
                    return Ok(None);
                };
                let offset = match folder.join("data").metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    other => other?.len(),
                };
                let progress = Mutex::new(Progress { offset, hasher: None, gone: false });
                let upload = Arc::new(Upload { id: id.clone(), state, algorithm, progress, busy: Arc::default() });
                place.insert(Arc::clone(&upload));
                Ok(Some(upload))
            }
        }
    }

    /// Appends a body to a session, and returns how many bytes it has then. `chunk` is where the client says that the body
    /// lies; `length` how long, where it says that in another way; `stall` how long it may send nothing.
    pub async fn append<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        self: &Arc<Self>,
        upload: &Arc<Upload>,
        chunk: Option<ChunkRange>,
        length: Option<u64>,
        stall: Duration,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<u64, UploadError> {
        let only = upload.take()?;
        let start = upload.offset();
        if let Some(chunk) = chunk {
            if chunk.start != start {
                return Err(UploadError::OutOfOrder(start));
            }
            if let Some(length) = length.filter(|length| *length != chunk.length) {
                return Err(UploadError::Length { said: chunk.length, got: length });
            }
        }
        let only = Arc::new(only);
        if let Err(error) = self.make_room_for(length.unwrap_or_default()).await {
            self.drop_upload(upload, &only).await;
            return Err(error);
        }
        let (store, again) = (Arc::clone(self), Arc::clone(upload));
        let held = Arc::clone(&only);
        let file = blocking(move || {
            let _held = held;
            store.open_data(&again)
        })
        .await?;
        let written = Writing { store: Arc::clone(self), upload: Arc::clone(upload), file: Arc::new(file), only };
        let most = chunk.map(|chunk| chunk.length);
        let result = written.copy(body, most, stall).await;
        if matches!(result, Err(UploadError::NoSpace(_))) {
            self.drop_upload(upload, &written.only).await;
        }
        result.map(|()| upload.offset())
    }

    /// Opens the data for a writer; what an earlier process received is hashed.
    fn open_data(&self, upload: &Upload) -> io::Result<File> {
        let path = self.upload_folder(&upload.id).join("data");
        let file = File::options().read(true).write(true).open(path)?;
        let known = upload.progress().hasher.is_some();
        if !known {
            let offset = upload.offset();
            let hasher = hash(&file, upload.algorithm, offset)?;
            upload.progress().hasher = Some(hasher);
        }
        Ok(file)
    }

    /// Ends a session: its bytes become the stored blob `digest`, on the disk, if they are it. Says their number.
    /// The one who links the blob does so at once.
    pub async fn finish_upload(self: &Arc<Self>, upload: &Arc<Upload>, digest: &Digest) -> Result<u64, UploadError> {
        let only = upload.take()?;
        let (store, upload, digest) = (Arc::clone(self), Arc::clone(upload), digest.clone());
        blocking(move || {
            let _only = only;
            store.finish_now(&upload, &digest)
        })
        .await
    }

    fn finish_now(&self, upload: &Arc<Upload>, digest: &Digest) -> Result<u64, UploadError> {
        let file = self.open_data(upload)?;
        let progress = upload.progress().clone();
        let size = progress.offset;
        let hasher = match progress.hasher.filter(|_| upload.algorithm == digest.algorithm()) {
            Some(hasher) => hasher,
            None => hash(&file, digest.algorithm(), size)?,
        };
        let actual = hasher.finish();
        if actual != *digest {
            self.forget_upload(upload);
            return Err(UploadError::Mismatch { expected: digest.clone(), actual, size });
        }
        match self.store_upload(upload, digest, file, size) {
            Ok(()) => Ok(size),
            Err(error) if is_full(&error) => {
                self.trouble.note(&error);
                self.forget_upload(upload);
                Err(UploadError::NoSpace("the volume is full"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn store_upload(&self, upload: &Arc<Upload>, digest: &Digest, file: File, size: u64) -> io::Result<()> {
        let blob = self.layout.blob(digest);
        let folder = blob.parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        let written = Stamp::of(&file.metadata()?);
        file.sync_data()?;
        files::create_durably(&folder)?;
        self.pin(digest);
        let replaced = {
            let _locked = self.blobs.growing.entry(digest.clone());
            let replaced = blob.metadata().map_or(0, |metadata| metadata.len());
            std::fs::rename(self.upload_folder(&upload.id).join("data"), &blob)?;
            replaced
        };
        // From here on the bytes are the blob's, whatever fails.
        self.usage.removed(replaced);
        upload.progress().offset = 0;
        self.forget_upload(upload);
        files::sync_folder(&folder)?;
        let stamp = Stamp::of(&file.metadata()?);
        if stamp.same_content(written) {
            let whole = Arc::new(Growing::new(digest.clone(), file, Phase::Whole { total: size }));
            self.remember_verified(&whole, stamp);
        }
        Ok(())
    }

    /// Ends a session for which nobody wants the bytes.
    pub async fn cancel_upload(self: &Arc<Self>, upload: &Arc<Upload>) -> Result<(), UploadError> {
        let only = Arc::new(upload.take()?);
        self.drop_upload(upload, &only).await;
        Ok(())
    }

    async fn drop_upload(self: &Arc<Self>, upload: &Arc<Upload>, only: &Arc<OwnedMutexGuard<()>>) {
        let (store, upload, only) = (Arc::clone(self), Arc::clone(upload), Arc::clone(only));
        blocking(move || {
            let _only = only;
            store.forget_upload(&upload);
        })
        .await;
    }

    fn forget_upload(&self, upload: &Upload) {
        let bytes = {
            let mut progress = upload.progress();
            progress.gone = true;
            std::mem::take(&mut progress.offset)
        };
        self.uploads.sessions.remove(&upload.id);
        self.remove_upload_folder(&upload.id, bytes);
    }

    fn remove_upload_folder(&self, id: &UploadId, bytes: u64) {
        let folder = self.upload_folder(id);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %folder.display(), %error, "failed to remove an upload");
            }
            _ => self.usage.removed(bytes),
        }
    }

    /// Removes a session that nobody uses; called by the sweep for those that are old. The bytes that became free.
    pub(super) fn remove_idle_upload(&self, id: &UploadId) -> u64 {
        let locked = self.uploads.sessions.entry(id.clone());
        let data = self.upload_folder(id).join("data");
        let bytes = data.metadata().map_or(0, |metadata| metadata.len());
        match locked {
            Entry::Occupied(upload) => {
                let Ok(_only) = upload.get().take() else { return 0 };
                upload.get().progress().gone = true;
                upload.remove();
                self.remove_upload_folder(id, bytes);
            }
            Entry::Vacant(_locked) => self.remove_upload_folder(id, bytes),
        }
        bytes
    }

    /// Whether so many bytes more fit under the limit, after others have gone where they must.
    async fn make_room_for(self: &Arc<Self>, bytes: u64) -> Result<(), UploadError> {
        let fits = |store: &Self| store.usage.used().saturating_add(bytes) <= store.usage.limit();
        if fits(self) {
            return Ok(());
        }
        let surplus = self.usage.surplus().saturating_add(bytes);
        self.make_free(surplus).await;
        if fits(self) { Ok(()) } else { Err(UploadError::NoSpace("the server may not keep more (maxSize)")) }
    }

    fn failed(&self, error: io::Error) -> UploadError {
        self.trouble.note(&error);
        if is_full(&error) { UploadError::NoSpace("the volume is full") } else { UploadError::Io(error) }
    }
}

fn hash(file: &File, algorithm: Algorithm, length: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0_u8; REHASH];
    while hasher.len() < length {
        let wanted = usize::try_from(length - hasher.len()).unwrap_or(REHASH).min(REHASH);
        file.read_exact_at(&mut buffer[..wanted], hasher.len())?;
        hasher.update(&buffer[..wanted]);
    }
    Ok(hasher)
}

impl Upload {
    /// Its name.
    #[must_use]
    pub const fn id(&self) -> &UploadId {
        &self.id
    }

    /// How many bytes it has.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.progress().offset
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write, if nobody has it.
    fn take(&self) -> Result<OwnedMutexGuard<()>, UploadError> {
        let only = Arc::clone(&self.busy).try_lock_owned().map_err(|_| UploadError::Busy)?;
        if self.progress().gone { Err(UploadError::Unknown) } else { Ok(only) }
    }
}

/// The end of a write; never comes when there is none.
async fn wait_for(writing: &mut Option<JoinHandle<Written>>) -> Result<Written, tokio::task::JoinError> {
    match writing {
        Some(write) => write.await,
        None => std::future::pending().await,
    }
}

/// A body that is being appended. The right to write is held until the last write has ended, even if nobody waits for it.
struct Writing {
    store: Arc<Store>,
    upload: Arc<Upload>,
    file: Arc<File>,
    only: Arc<OwnedMutexGuard<()>>,
}

/// A write that failed, with what it was to write.
type Written = Result<(), (Vec<Bytes>, io::Error)>;

impl Writing {
    /// Copies to the file, one write at a time, while the next bytes arrive.
    async fn copy<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>>,
        most: Option<u64>,
        stall: Duration,
    ) -> Result<(), UploadError> {
        let mut body = std::pin::pin!(body);
        let mut received = 0_u64;
        let mut backlog: Vec<Bytes> = Vec::new();
        let mut backlog_bytes = 0;
        let mut writing: Option<JoinHandle<Written>> = None;
        let mut ended: Option<Result<(), UploadError>> = None;
        let mut retried = false;
        let mut deadline = Instant::now() + stall;
        loop {
            if writing.is_none() && !backlog.is_empty() {
                self.store.make_room_for(backlog_bytes as u64).await?;
                backlog_bytes = 0;
                writing = Some(self.write(std::mem::take(&mut backlog)));
            }
            if writing.is_none() && ended.is_some() {
                break;
            }
            tokio::select! {
                written = wait_for(&mut writing), if writing.is_some() => {
                    writing = None;
                    match written.map_err(io::Error::other)? {
                        Ok(()) => {}
                        Err((chunks, error)) if is_full(&error) && !retried => {
                            retried = true;
                            let bytes: usize = chunks.iter().map(Bytes::len).sum();
                            self.store.trouble.note(&error);
                            if !self.store.make_free(bytes as u64).await {
                                return Err(self.store.failed(error));
                            }
                            writing = Some(self.write(chunks));
                        }
                        Err((_, error)) => return Err(self.store.failed(error)),
                    }
                }
                next = timeout_at(deadline, body.next()), if ended.is_none() && backlog_bytes < BACKLOG => {
                    match next {
                        Err(_) => ended = Some(Err(UploadError::Stalled(stall))),
                        Ok(None) => ended = Some(Ok(())),
                        Ok(Some(Err(error))) => ended = Some(Err(UploadError::Body(error.into()))),
                        Ok(Some(Ok(bytes))) => {
                            deadline = Instant::now() + stall;
                            received += bytes.len() as u64;
                            if let Some(said) = most.filter(|most| received > *most) {
                                ended = Some(Err(UploadError::Length { said, got: received }));
                            } else {
                                backlog_bytes += bytes.len();
                                backlog.push(bytes);
                            }
                        }
                    }
                }
            }
        }
        match (ended.unwrap_or(Ok(())), most) {
            (Ok(()), Some(said)) if received < said => Err(UploadError::Length { said, got: received }),
            (ended, _) => ended,
        }
    }

    fn write(&self, chunks: Vec<Bytes>) -> JoinHandle<Written> {
        let (store, upload) = (Arc::clone(&self.store), Arc::clone(&self.upload));
        let (file, only) = (Arc::clone(&self.file), Arc::clone(&self.only));
        tokio::task::spawn_blocking(move || {
            let _only = only;
            let before = upload.progress().clone();
            let mut hasher = before.hasher;
            let mut offset = before.offset;
            for chunk in &chunks {
                if let Err(error) = file.write_all_at(chunk, offset) {
                    // The length says how far the upload has come, also to the next process.
                    let cut = file.set_len(before.offset);
                    return Err((chunks, cut.err().unwrap_or(error)));
                }
                if let Some(hasher) = &mut hasher {
                    hasher.update(chunk);
                }
                offset += chunk.len() as u64;
            }
            store.usage.added(offset - before.offset);
            let mut progress = upload.progress();
            progress.hasher = hasher;
            progress.offset = offset;
            Ok(())
        })
    }
}
