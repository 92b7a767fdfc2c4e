//! A download that goes on where it broke off. May import nothing of ours.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream::BoxStream};

/// Where a blob's bytes come from.
pub trait Source: Send + Sync + 'static {
    /// Asks for the bytes from `offset` on. The answer may begin at 0 instead.
    fn open(&self, offset: u64) -> Pin<Box<dyn Future<Output = Result<Opened, SourceError>> + Send + '_>>;

    /// How often in a row a transfer is resumed without progress.
    fn resumes(&self) -> u32;
}

/// An answer that has begun.
pub struct Opened {
    /// The offset of the first byte of `body`: the one asked for, or 0.
    pub start: u64,
    /// The size of the whole blob, if known.
    pub total: Option<u64>,
    /// The bytes.
    pub body: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// A source failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the download failed")]
pub struct SourceError {
    /// What went wrong.
    #[source]
    pub cause: Arc<dyn std::error::Error + Send + Sync>,
    /// What may help.
    pub again: Again,
}

/// What may help after a [`SourceError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Nothing: asking again would give the same.
    Never,
    /// Asking for the rest.
    Resume,
    /// Asking for the whole.
    FromStart,
}

/// The source contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum Inconsistent {
    /// Two answers named different sizes.
    #[error("the upstream first announced {first:?} bytes and then {then:?}")]
    SizeChanged {
        /// The first.
        first: Option<u64>,
        /// The other.
        then: Option<u64>,
    },
    /// More bytes came than announced.
    #[error("the upstream sent more than the announced {total} bytes")]
    TooLong {
        /// The announced size.
        total: u64,
    },
    /// Fewer bytes came than announced.
    #[error("the upstream ended after {received} of {total} bytes")]
    TooShort {
        /// The announced size.
        total: u64,
        /// What came.
        received: u64,
    },
}

impl From<Inconsistent> for SourceError {
    fn from(cause: Inconsistent) -> Self {
        let again = if matches!(cause, Inconsistent::TooShort { .. }) { Again::Resume } else { Again::Never };
        Self { cause: Arc::new(cause), again }
    }
}

/// How many bytes count as progress between two breaks.
const PROGRESS: u64 = 64 * 1024;

/// A running download: its next byte is the one at `position`.
pub struct Download {
    source: Arc<dyn Source>,
    position: u64,
    total: Option<u64>,
    body: BoxStream<'static, Result<Bytes, SourceError>>,
    skip: u64,
    resumed: u32,
    since_resume: u64,
    on_resume: Box<dyn Fn() + Send>,
}

impl Download {
    /// Asks the source for the bytes from `position` on. One failure is final here: the caller still has a status to
    /// answer with. `on_resume` is called each time that the transfer goes on after a break.
    pub async fn begin(
        source: Arc<dyn Source>,
        position: u64,
        on_resume: Box<dyn Fn() + Send>,
    ) -> Result<Self, SourceError> {
        let opened = source.open(position).await?;
        Ok(Self {
            position,
            total: opened.total,
            skip: position.saturating_sub(opened.start),
            body: opened.body,
            source,
            resumed: 0,
            since_resume: 0,
            on_resume,
        })
    }

    /// The size of the whole, if known.
    #[must_use]
    pub const fn total(&self) -> Option<u64> {
        self.total
    }

    /// The rest as a stream, which may be polled and left at any time.
    #[must_use]
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, SourceError>> {
        futures_util::stream::try_unfold(self, |mut download| async move {
            let chunk = download.next().await?;
            Ok(chunk.map(|chunk| (chunk, download)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let error = match self.body.next().await {
                Some(Ok(chunk)) => match self.take(chunk)? {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => continue,
                },
                Some(Err(error)) => error,
                None => match self.total {
                    Some(total) if self.position < total => {
                        Inconsistent::TooShort { total, received: self.position }.into()
                    }
                    _ => return Ok(None),
                },
            };
            self.resume(error).await?;
        }
    }

    /// Counts a chunk; nothing when it lies before the position.
    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, SourceError> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        chunk.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
        if chunk.is_empty() {
            return Ok(None);
        }
        self.position += chunk.len() as u64;
        if let Some(total) = self.total.filter(|total| self.position > *total) {
            return Err(Inconsistent::TooLong { total }.into());
        }
        self.since_resume += chunk.len() as u64;
        if self.since_resume >= PROGRESS {
            self.resumed = 0;
        }
        Ok(Some(chunk))
    }

    async fn resume(&mut self, mut error: SourceError) -> Result<(), SourceError> {
        loop {
            if error.again == Again::Never || self.resumed >= self.source.resumes() {
                return Err(error);
            }
            tokio::time::sleep(pause_before(self.resumed)).await;
            self.resumed += 1;
            self.since_resume = 0;
            let offset = if error.again == Again::FromStart { 0 } else { self.position };
            match self.source.open(offset).await {
                Ok(opened) => return self.go_on_with(opened),
                Err(next) => error = next,
            }
        }
    }

    fn go_on_with(&mut self, opened: Opened) -> Result<(), SourceError> {
        if let (Some(first), Some(then)) = (self.total, opened.total)
            && first != then
        {
            return Err(Inconsistent::SizeChanged { first: Some(first), then: Some(then) }.into());
        }
        self.skip = self.position.saturating_sub(opened.start);
        self.body = opened.body;
        (self.on_resume)();
        Ok(())
    }
}

/// The first resume comes at once: most breaks are one lost connection.
fn pause_before(resumed: u32) -> Duration {
    match resumed {
        0 => Duration::ZERO,
        more => Duration::from_millis(100 << more.min(6)),
    }
}
