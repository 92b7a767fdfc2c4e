//! Bodies: paced by the stall limit, counted against their length, decoded if the upstream encoded them unasked.
//! May import `error`.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_compression::tokio::bufread::{DeflateDecoder, GzipDecoder, ZstdDecoder};
use bytes::{Bytes, BytesMut};
use crds::registry_mirror::StallLimit;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE},
};
use reqwest::Response;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tokio_util::io::{ReaderStream, StreamReader};

use super::error::{Error, Misfit, Violation};

/// How large the pieces of a decoded body are.
const PIECE: usize = 64 * 1024;
/// How long the header of zlib data is.
const ZLIB_HEADER: usize = 2;
/// A wait this much longer than the stall limit was the reader's, who did not come back when he was woken.
const GRACE: Duration = Duration::from_secs(1);

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// The bytes of an answer as they arrive. It ends with an error (once, then with nothing) unless it is complete.
///
/// It holds a place among the requests that may be under way at once; dropping it frees the place and closes the
/// connection. Time during which nobody polls it does not count as stalling.
pub struct Body {
    pieces: Pieces,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Body(…)")
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(context)
    }
}

impl Body {
    /// The body of an answer.
    pub(super) fn of(response: Response, stall: &StallLimit, place: OwnedSemaphorePermit) -> Result<Self, Error> {
        let encoding = Encoding::of(response.headers())?;
        let length = content_length(response.headers());
        let raw = response.bytes_stream().map_err(|_| Error::Broken);
        let paced = Paced::new(raw, stall, length);
        let pieces: Pieces = match encoding {
            Encoding::Identity => Box::pin(paced),
            encoding => decode(paced, encoding),
        };
        Ok(Self { pieces, _place: place })
    }

    /// All of it, if it is not more than `limit` bytes.
    pub(super) async fn collect(mut self, limit: usize) -> Result<Bytes, Error> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if all.len() + piece.len() > limit {
                return Err(Error::WrongContent(Misfit::TooLarge { limit: limit as u64 }));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

/// How a body is encoded although it was asked for as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    Identity,
    /// gzip.
    Gzip,
    /// deflate, within zlib or bare.
    Deflate,
    /// zstd.
    Zstd,
}

impl Encoding {
    /// The encoding that an answer tells.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut encoding = Self::Identity;
        for value in headers.get_all(CONTENT_ENCODING) {
            let text = value.to_str().map_err(|_| Error::Protocol(Violation::Encoding))?;
            for name in text.split(',').map(|name| name.trim().to_ascii_lowercase()) {
                let next = match name.as_str() {
                    // aws-chunked says how an object was uploaded; S3 sends it along by mistake.
                    "" | "identity" | "aws-chunked" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "deflate" => Self::Deflate,
                    "zstd" => Self::Zstd,
                    _ => return Err(Error::Protocol(Violation::Encoding)),
                };
                if encoding != Self::Identity {
                    return Err(Error::Protocol(Violation::Encoding));
                }
                encoding = next;
            }
        }
        Ok(encoding)
    }
}

fn decode(paced: impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static, encoding: Encoding) -> Pieces {
    let mut reader = StreamReader::new(paced.map_err(io::Error::other));
    let decoded = async move {
        let decoded: Pin<Box<dyn AsyncRead + Send>> = match encoding {
            Encoding::Identity => Box::pin(reader),
            Encoding::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Encoding::Deflate => {
                if is_zlib(reader.fill_buf().await?) {
                    reader.consume(ZLIB_HEADER);
                }
                Box::pin(DeflateDecoder::new(reader))
            }
            Encoding::Zstd => {
                let mut decoder = ZstdDecoder::new(reader);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
        };
        Ok::<_, io::Error>(ReaderStream::with_capacity(decoded, PIECE))
    };
    Box::pin(stream::once(decoded).try_flatten().map_err(decoding_error))
}

/// Whether deflated data is wrapped as zlib (RFC 1950). It should be (RFC 9110, "Deflate Coding"), but some servers send it
/// bare. The check sum behind it stays unread: the digest decides.
fn is_zlib(head: &[u8]) -> bool {
    matches!(head, [method, flags, ..] if method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0)
}

/// Our own error if it came through the decoder; else the encoding itself was broken.
fn decoding_error(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Error::Broken,
        Err(_) => Error::Protocol(Violation::Encoding),
    }
}

/// `Content-Length`, if there is one.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Whether an answer is a web page.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let bare = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    [&b"text/html"[..], b"application/xhtml+xml"].iter().any(|html| bare.eq_ignore_ascii_case(html))
}

/// First byte and whole size (if told) of `Content-Range: bytes 5-9/10`.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// Measures reading time against the stall limit: every `need` bytes must arrive within one window of it.
#[derive(Debug)]
struct Meter {
    window: Duration,
    need: u64,
    got: u64,
    spent: Duration,
    waiting_since: Option<Instant>,
}

impl Meter {
    fn new(stall: &StallLimit) -> Self {
        let window = stall.window.get().max(Duration::from_millis(1));
        #[expect(clippy::cast_possible_truncation, reason = "a window of more than 2^64 seconds is none")]
        let need = (u128::from(stall.bytes_per_second) * window.as_millis() / 1000).clamp(1, u128::from(u64::MAX)) as u64;
        Self { window, need, got: 0, spent: Duration::ZERO, waiting_since: None }
    }

    fn begin_anew(&mut self) {
        (self.got, self.spent) = (0, Duration::ZERO);
    }

    fn arrived(&mut self, now: Instant, bytes: u64) {
        if let Some(since) = self.waiting_since.take() {
            self.spent += now.saturating_duration_since(since);
            if self.spent > self.window + GRACE {
                self.begin_anew();
            }
        }
        self.got = self.got.saturating_add(bytes);
        if self.got >= self.need {
            self.begin_anew();
        }
    }

    /// Nothing is there; returns when the body has stalled if nothing comes.
    fn wait(&mut self, now: Instant) -> Instant {
        let since = *self.waiting_since.get_or_insert(now);
        since + self.window.saturating_sub(self.spent)
    }
}

/// A stream that fails when it stalls or ends early, and then is over.
struct Paced<S> {
    inner: Option<Pin<Box<S>>>,
    meter: Meter,
    timer: Pin<Box<Sleep>>,
    left: Option<u64>,
}

impl<S> Paced<S> {
    fn new(inner: S, stall: &StallLimit, length: Option<u64>) -> Self {
        let meter = Meter::new(stall);
        let timer = Box::pin(tokio::time::sleep(meter.window));
        Self { inner: Some(Box::pin(inner)), meter, timer, left: length }
    }

    /// The outcome of a poll that found something.
    fn judge(&mut self, item: Option<Result<Bytes, Error>>) -> Option<Result<Bytes, Error>> {
        match item {
            Some(Ok(bytes)) => {
                self.meter.arrived(Instant::now(), bytes.len() as u64);
                self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                Some(Ok(bytes))
            }
            Some(Err(error)) => self.fail(error),
            None if self.left.is_some_and(|left| left > 0) => self.fail(Error::Broken),
            None => {
                self.inner = None;
                None
            }
        }
    }

    fn fail(&mut self, error: Error) -> Option<Result<Bytes, Error>> {
        self.inner = None;
        Some(Err(error))
    }
}

impl<S: Stream<Item = Result<Bytes, Error>>> Stream for Paced<S> {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(inner) = this.inner.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(item) = inner.as_mut().poll_next(context) {
            return Poll::Ready(this.judge(item));
        }
        let stalled_at = this.meter.wait(Instant::now());
        if this.timer.deadline() != stalled_at {
            this.timer.as_mut().reset(stalled_at);
        }
        ready!(this.timer.as_mut().poll(context));
        Poll::Ready(this.fail(Error::Stalled))
    }
}

#[cfg(test)]
mod tests {
    use crds::names::Span;
    use http::HeaderName;

    use super::*;

    fn header(name: HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().expect("a value"))].into_iter().collect()
    }

    #[test]
    fn content_ranges_are_read() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes 0-0/1", Some((0, Some(1)))),
            ("bytes 9-5/10", None),
            ("bytes 5-10/10", None),
            ("bytes */10", None),
            ("pages 5-9/10", None),
        ] {
            assert_eq!(content_range(&header(CONTENT_RANGE, text)), expected, "{text}");
        }
    }

    #[test]
    fn encodings_are_read() {
        for (text, expected) in [
            ("identity", Some(Encoding::Identity)),
            ("", Some(Encoding::Identity)),
            ("aws-chunked", Some(Encoding::Identity)),
            ("GZip", Some(Encoding::Gzip)),
            ("aws-chunked, gzip", Some(Encoding::Gzip)),
            ("deflate", Some(Encoding::Deflate)),
            ("zstd", Some(Encoding::Zstd)),
            ("br", None),
            ("gzip, gzip", None),
        ] {
            assert_eq!(Encoding::of(&header(CONTENT_ENCODING, text)).ok(), expected, "{text}");
        }
    }

    #[test]
    fn web_pages_are_recognised() {
        for (text, expected) in [("text/html", true), ("Text/HTML; charset=utf-8", true), ("application/octet-stream", false), ("text/plain", false)] {
            assert_eq!(is_html(&header(CONTENT_TYPE, text)), expected, "{text}");
        }
    }

    #[test]
    fn only_reading_time_counts_as_stalling() {
        let stall = StallLimit { window: Span::secs(10), bytes_per_second: 10 };
        let second = Duration::from_secs(1);
        let start = Instant::now();

        let mut trickle = Meter::new(&stall);
        for number in 0..9 {
            assert_eq!(trickle.wait(start + second * number), start + second * 10, "{number}");
            trickle.arrived(start + second * (number + 1), 1);
        }

        let mut enough = Meter::new(&stall);
        enough.wait(start);
        enough.arrived(start + second * 9, 100);
        assert_eq!(enough.wait(start + second * 9), start + second * 19);

        let mut slow_reader = Meter::new(&stall);
        slow_reader.wait(start);
        slow_reader.arrived(start + second * 2, 1);
        // A minute passes without a poll.
        assert_eq!(slow_reader.wait(start + second * 62), start + second * 70);

        let mut absent_reader = Meter::new(&stall);
        absent_reader.wait(start);
        absent_reader.arrived(start + second * 60, 1);
        assert_eq!(absent_reader.wait(start + second * 60), start + second * 70);
    }
}
