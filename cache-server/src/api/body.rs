//! Answers' bodies. Each knows its length where it can, and reports when it has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::{Frame, SizeHint};

use super::report::Report;
use crate::{connector::Serving, store::growing::Failure};

/// The body of an answer.
pub struct Body {
    content: Content,
    report: Option<(Report, Serving)>,
}

enum Content {
    None,
    Bytes(Option<Bytes>),
    Stream {
        stream: BoxStream<'static, Result<Bytes, Failure>>,
        left: Option<u64>,
    },
    /// A stream that failed, before hyper is told.
    Failed(Option<BodyError>),
    Page(axum::body::Body),
}

/// Why a body ended early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body {
    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self { content: Content::None, report: None }
    }

    /// These bytes.
    #[must_use]
    pub const fn bytes(bytes: Bytes) -> Self {
        Self { content: Content::Bytes(Some(bytes)), report: None }
    }

    /// A stream of `length` bytes, if that is known.
    #[must_use]
    pub const fn stream(stream: BoxStream<'static, Result<Bytes, Failure>>, length: Option<u64>) -> Self {
        Self { content: Content::Stream { stream, left: length }, report: None }
    }

    /// The body of a page.
    #[must_use]
    pub const fn page(body: axum::body::Body) -> Self {
        Self { content: Content::Page(body), report: None }
    }

    /// All of it, if it is in memory.
    pub(super) fn in_memory(&self) -> Option<Bytes> {
        match &self.content {
            Content::None | Content::Bytes(None) => Some(Bytes::new()),
            Content::Bytes(Some(bytes)) => Some(bytes.clone()),
            Content::Stream { .. } | Content::Failed(_) | Content::Page(_) => None,
        }
    }

    pub(super) fn finish_with(&mut self, report: Report, serving: Serving) {
        self.report = Some((report, serving));
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = match &mut self.content {
            Content::None => None,
            Content::Bytes(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()).map(Ok),
            Content::Stream { stream, left } => {
                let next = ready!(stream.as_mut().poll_next(cx));
                if let (Some(left), Some(Ok(bytes))) = (left, &next) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                match next {
                    Some(Err(failure)) => {
                        // hyper drops what it has not written yet when a body fails. It writes first when the body is
                        // not ready, so that the client gets the header and every byte that was there.
                        self.content = Content::Failed(Some(failure.into()));
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    next => next.map(|result| result.map_err(BodyError::from)),
                }
            }
            Content::Failed(error) => error.take().map(Err),
            Content::Page(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().ok().map(Ok),
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            },
        };
        if let Some((report, _)) = &mut self.report {
            match &next {
                Some(Ok(bytes)) => report.sent(bytes.len()),
                Some(Err(error)) => report.broke_off(error.as_ref()),
                None => {}
            }
        }
        Poll::Ready(next.map(|result| result.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::None | Content::Bytes(None) => SizeHint::with_exact(0),
            Content::Bytes(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Content::Stream { left: None, .. } | Content::Failed(_) => SizeHint::default(),
            Content::Page(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::None | Content::Bytes(None))
    }
}
