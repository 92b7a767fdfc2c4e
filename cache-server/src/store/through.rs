//! Handing a blob on without storing it, when the volume is full. May import `oci`.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream::BoxStream};

use super::{
    HELD_BACK, Store,
    download::{Download, Source, SourceError},
    growing::{Failure, Growing, Rest},
};
use crate::oci::{Digest, Hasher};

/// The rest of a blob whose file could not grow further: one reader's own download. As with a fill, the last bytes are
/// held back until the whole has proved right.
pub struct Through {
    digest: Digest,
    chunks: BoxStream<'static, Result<Bytes, SourceError>>,
    hasher: Option<Hasher>,
    held: VecDeque<Bytes>,
    held_bytes: u64,
    skip: u64,
}

impl Through {
    /// Goes on at `position` with a download of its own, after the file of `growing` ended at `rest`.
    pub async fn begin(
        store: &Arc<Store>,
        source: Arc<dyn Source>,
        growing: &Arc<Growing>,
        rest: &Rest,
        position: u64,
    ) -> Result<Self, Failure> {
        let observer = Arc::clone(&store.observer);
        let download = Download::begin(source, rest.offset, Box::new(move || observer.resumed())).await;
        let download = download.map_err(|error| Failure::Source(error.cause))?;
        let mut through = Self {
            digest: growing.digest().clone(),
            chunks: download.into_stream(),
            hasher: Some(rest.hasher.clone()),
            held: VecDeque::new(),
            held_bytes: 0,
            skip: position.saturating_sub(rest.offset),
        };
        if position < rest.offset {
            let read = growing.read(position, rest.offset).await;
            through.hold(read.map_err(|source| Failure::Io { action: "read", source: Arc::new(source) })?);
        }
        Ok(through)
    }

    /// The next bytes; nothing at the end of a blob that proved right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(front) = self.held.front()
                && (self.hasher.is_none() || self.held_bytes - front.len() as u64 >= HELD_BACK)
            {
                self.held_bytes -= front.len() as u64;
                return Ok(self.held.pop_front());
            }
            let Some(hasher) = &mut self.hasher else { return Ok(None) };
            match self.chunks.next().await {
                Some(Ok(chunk)) => {
                    hasher.update(&chunk);
                    self.hold(chunk);
                }
                Some(Err(error)) => return Err(Failure::Source(error.cause)),
                None => self.prove()?,
            }
        }
    }

    fn hold(&mut self, mut chunk: Bytes) {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        chunk.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
        if !chunk.is_empty() {
            self.held_bytes += chunk.len() as u64;
            self.held.push_back(chunk);
        }
    }

    fn prove(&mut self) -> Result<(), Failure> {
        match self.hasher.take().map(Hasher::finish) {
            Some(actual) if actual != self.digest => Err(Failure::Mismatch { expected: self.digest.clone(), actual }),
            _ => Ok(()),
        }
    }
}
