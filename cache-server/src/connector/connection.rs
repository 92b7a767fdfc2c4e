//! What the two ends of one connection share: the byte stream below HTTP and the answering code above it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use bytes::Bytes;

use crate::store::growing::{Growing, Mapping};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
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
    stage: AtomicU8,
    files: Mutex<Vec<Region>>,
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
        Arc::new(Self { peer, encrypted, stage: AtomicU8::new(Stage::Idle as u8), files: Mutex::default() })
    }

    /// The other end.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether the kernel can send files on it: not when the bytes must be encrypted first.
    #[must_use]
    pub const fn sends_files(&self) -> bool {
        !self.encrypted
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Idle,
            1 => Stage::Header,
            _ => Stage::Serving,
        }
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
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
    }
}
