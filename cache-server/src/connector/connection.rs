//! What the two ends of one connection share: the byte stream below HTTP and the answering code above it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use crate::store::growing::{Growing, Mapping};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Stage {
    /// The next request.
    Idle = 0,
    /// The rest of a request's header.
    Header = 1,
    /// Its answer.
    Serving = 2,
}

/// One client's connection.
pub struct Connection {
    peer: SocketAddr,
    encrypted: bool,
    /// The stage, and in the higher bits the number of the wait: each has its own time.
    stage: AtomicU64,
    /// Whoever reads, to be told when the wait for the next request begins.
    reader: AtomicWaker,
    files: Mutex<Vec<Region>>,
    /// The request that is being answered, as it came over the wire; nothing if that is not known.
    request: Mutex<Option<Bytes>>,
    had_body: AtomicBool,
}

/// Addresses that stand for a file.
struct Region {
    mapping: Arc<Mapping>,
    growing: Arc<Growing>,
}

/// Bytes of a file for the kernel to send.
pub(super) struct Part {
    pub(super) growing: Arc<Growing>,
    pub(super) offset: u64,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, encrypted: bool) -> Arc<Self> {
        Arc::new(Self {
            peer,
            encrypted,
            stage: AtomicU64::new(Stage::Idle as u64),
            reader: AtomicWaker::new(),
            files: Mutex::default(),
            request: Mutex::default(),
            had_body: AtomicBool::new(false),
        })
    }

    /// The other end.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether it is TLS.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// Whether the kernel can send files on it: not when the bytes must be encrypted first.
    #[must_use]
    pub const fn sends_files(&self) -> bool {
        !self.encrypted
    }

    /// What is waited for, and the number of the wait.
    pub(super) fn stage(&self) -> (Stage, u64) {
        let stage = self.stage.load(Ordering::Acquire);
        match stage % 4 {
            0 => (Stage::Idle, stage),
            1 => (Stage::Header, stage),
            _ => (Stage::Serving, stage),
        }
    }

    pub(super) fn enter(&self, stage: Stage) {
        let next = |before: u64| Some((before / 4 + 1) * 4 + stage as u64);
        // Never fails, since `next` never refuses.
        let _ = self.stage.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }

    /// The next request may come, and the time for it runs.
    pub(super) fn wait_for_next(&self) {
        self.enter(Stage::Idle);
    }

    /// The first bytes of a request are there. TLS may have had them already when others came.
    pub(super) fn begin_request(&self) {
        if self.is_answered() {
            self.enter(Stage::Header);
        }
    }

    /// Whether no request is under way.
    pub(super) fn is_answered(&self) -> bool {
        self.stage().0 == Stage::Idle
    }

    pub(super) fn set_request(&self, request: Option<Bytes>) {
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = request;
    }

    /// The request that is being answered, as it came over the wire, once; nothing if it had a body or did not come alone.
    #[must_use]
    pub fn take_request(&self) -> Option<Bytes> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| !self.had_body())
    }

    /// A request has a body.
    pub(super) fn set_had_body(&self) {
        self.had_body.store(true, Ordering::Relaxed);
    }

    /// Whether any request had a body.
    pub(super) fn had_body(&self) -> bool {
        self.had_body.load(Ordering::Relaxed)
    }

    /// Has the reader woken when the answer has ended: HTTP would not ask for the next request by itself, and then no
    /// time would run for it.
    pub(super) fn wake_after_serving(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    /// Bytes `start..end` of a blob of `total` bytes as a token that this connection recognises; nothing when the file
    /// cannot be mapped.
    pub fn token(&self, growing: &Arc<Growing>, start: u64, end: u64, total: u64) -> Option<Bytes> {
        let (mapping, token) = growing.token(start, end, total)?;
        let mut files = self.regions();
        if !files.iter().any(|region| Arc::ptr_eq(&region.mapping, &mapping)) {
            files.push(Region { mapping, growing: Arc::clone(growing) });
        }
        Some(token)
    }

    /// The file for which a slice of memory stands.
    pub(super) fn file_behind(&self, slice: &[u8]) -> Option<Part> {
        let address = slice.as_ptr() as usize;
        let files = self.regions();
        let region = files.iter().find(|region| region.mapping.addresses().contains(&address))?;
        let offset = (address - region.mapping.addresses().start) as u64;
        Some(Part { growing: Arc::clone(&region.growing), offset })
    }

    /// Lets go of all files: nothing of them waits to be sent.
    pub(super) fn release_files(&self) {
        self.regions().clear();
    }

    fn regions(&self) -> std::sync::MutexGuard<'_, Vec<Region>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request is being answered; when this is dropped, the connection waits for the next.
pub struct Serving(Arc<Connection>);

impl Serving {
    pub(super) fn begin(connection: &Arc<Connection>) -> Self {
        connection.enter(Stage::Serving);
        Self(Arc::clone(connection))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.enter(Stage::Idle);
        self.0.reader.wake();
    }
}
