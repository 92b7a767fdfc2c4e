//! A blob on its way to one client.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};

use crate::{
    connector::Connection,
    store::{
        Store,
        download::Source,
        growing::{Failure, Growing, WINDOW, unheld},
        through::Through,
    },
};

/// Bytes copied at once where the kernel cannot send the file itself.
const COPIED: u64 = 256 * 1024;

/// The bytes `position..end` of a blob's file, as they become readable.
pub struct BlobStream {
    /// For bytes that do not fit into it.
    pub store: Arc<Store>,
    /// The client's.
    pub connection: Arc<Connection>,
    /// The file.
    pub growing: Arc<Growing>,
    /// Where the rest comes from if the volume gets full; nothing for a file that is whole already.
    pub source: Option<Arc<dyn Source>>,
    /// The next byte.
    pub position: u64,
    /// The byte behind the last; unknown only while the size is.
    pub end: Option<u64>,
    /// The blob's size, if known.
    pub total: Option<u64>,
}

enum State {
    File(BlobStream),
    Through { through: Box<Through>, left: Option<u64> },
}

impl BlobStream {
    /// The bytes. Ends early with an error, and then the connection must end too, when the blob does not become whole.
    #[must_use]
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, Failure>> {
        futures_util::stream::try_unfold(State::File(self), State::next).boxed()
    }

    fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.position >= end)
    }

    async fn window(&mut self, limit: u64) -> Result<Bytes, Failure> {
        let end = limit.min(self.end.unwrap_or(limit)).min(self.position + WINDOW);
        let token = match self.total {
            Some(total) if self.connection.sends_files() => {
                self.connection.token(&self.growing, self.position, end, total)
            }
            _ => None,
        };
        let bytes = if let Some(token) = token {
            if !self.growing.resident(self.position, end) {
                self.growing.fetch_into_memory(self.position, end).await;
            }
            token
        } else {
            let end = end.min(self.position + COPIED);
            let read = self.growing.read(self.position, end).await;
            read.map_err(|source| Failure::Io { action: "read", source: Arc::new(source) })?
        };
        self.position += bytes.len() as u64;
        Ok(bytes)
    }
}

impl State {
    async fn next(self) -> Result<Option<(Bytes, Self)>, Failure> {
        match self {
            Self::File(mut stream) => {
                if stream.is_done() {
                    return Ok(None);
                }
                match stream.growing.readable(stream.position).await {
                    Ok(limit) if limit <= stream.position => Ok(None),
                    Ok(limit) => Ok(Some((stream.window(limit).await?, Self::File(stream)))),
                    Err(Failure::NoSpace(rest)) => {
                        let limit = unheld(rest.total, rest.offset);
                        if limit > stream.position {
                            return Ok(Some((stream.window(limit).await?, Self::File(stream))));
                        }
                        let BlobStream { store, growing, source, position, end, .. } = stream;
                        let Some(source) = source else { return Err(Failure::NoSpace(rest)) };
                        let through = Through::begin(&store, source, &growing, &rest, position).await?;
                        let left = end.map(|end| end - position);
                        Self::next_through(Box::new(through), left).await
                    }
                    Err(failure) => Err(failure),
                }
            }
            Self::Through { through, left } => Self::next_through(through, left).await,
        }
    }

    async fn next_through(mut through: Box<Through>, left: Option<u64>) -> Result<Option<(Bytes, Self)>, Failure> {
        if left == Some(0) {
            return Ok(None);
        }
        let Some(mut bytes) = through.next().await? else { return Ok(None) };
        if let Some(left) = left {
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
        }
        let left = left.map(|left| left - bytes.len() as u64);
        Ok(Some((bytes, Self::Through { through, left })))
    }
}
