//! Requests that were answered a moment ago, byte for byte the same: they are answered below HTTP.
//!
//! Every node of a cluster asks for an image with the same bytes. To parse, route and judge them anew can only come to the same
//! answer, as long as [`Answer::recall`] says that it holds. Everything else goes on to HTTP as it came.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connection::Connection, listener::Answer};

/// Requests longer than this are not recalled.
const LONGEST: usize = 4096;
/// As many as HTTP takes at most.
const HEADERS: usize = 100;

/// An answer on its way to a client again. Whatever became of it is known when it is dropped.
pub trait Recalled: Send + Unpin {
    /// Status line and headers, as they go over the wire.
    fn head(&self) -> &[u8];

    /// What follows them.
    fn body(&self) -> &[u8];

    /// So many bytes more of both have left.
    fn sent(&mut self, bytes: usize);
}

/// A stream for HTTP, which sees those requests only that were not answered here.
pub(super) struct Recalling<S, A: Answer> {
    stream: S,
    connection: Arc<Connection>,
    answer: A,
    place: Place,
    sending: Option<Sending<A::Recalled>>,
}

/// Where in the exchange of requests and answers HTTP is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Every answer has left: what comes next is the beginning of a request.
    Between,
    /// It was handed a whole request, and nothing since.
    Answering,
    /// It was handed something else, as a request with a body, in pieces, or before the answer to the last: from now on only it
    /// can know.
    Unknown,
}

struct Sending<R> {
    recalled: R,
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answer> Recalling<S, A> {
    pub(super) const fn new(stream: S, connection: Arc<Connection>, answer: A) -> Self {
        Self { stream, connection, answer, place: Place::Between, sending: None }
    }

    /// Sends what is left of an answer.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        loop {
            let (head, body) = (sending.recalled.head(), sending.recalled.body());
            let (head_left, body_left) = match sending.sent.checked_sub(head.len()) {
                None => (&head[sending.sent..], body),
                Some(sent) => (&[][..], &body[sent..]),
            };
            if head_left.is_empty() && body_left.is_empty() {
                break;
            }
            let slices = [IoSlice::new(head_left), IoSlice::new(body_left)];
            // A stream that cannot take several takes the first that is not empty.
            let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            sending.sent += bytes;
            sending.recalled.sent(bytes);
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.sending = None;
        self.connection.wait_for_next();
        Poll::Ready(Ok(()))
    }

    /// HTTP is handed these bytes.
    fn hand_on(&mut self, arrived: &[u8]) {
        self.connection.begin_request();
        self.place = if self.place == Place::Between && is_whole(arrived) {
            self.connection.set_request(Some(Bytes::copy_from_slice(arrived)));
            Place::Answering
        } else {
            self.connection.set_request(None);
            Place::Unknown
        };
    }
}

/// Whether these bytes are a GET or HEAD and nothing else.
fn is_whole(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = if bytes.len() <= LONGEST { request.parse(bytes) } else { Ok(httparse::Status::Partial) };
    parsed == Ok(httparse::Status::Complete(bytes.len())) && matches!(request.method, Some("GET" | "HEAD"))
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answer> AsyncRead for Recalling<S, A> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            ready!(this.poll_send(cx))?;
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let arrived = &buffer.filled()[before..];
            if arrived.is_empty() || this.place == Place::Unknown {
                return Poll::Ready(Ok(()));
            }
            let recalled = match this.place {
                Place::Between if arrived.len() <= LONGEST => this.answer.recall(&this.connection, arrived),
                _ => None,
            };
            let Some(recalled) = recalled else {
                this.hand_on(arrived);
                return Poll::Ready(Ok(()));
            };
            buffer.set_filled(before);
            this.sending = Some(Sending { recalled, sent: 0 });
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answer> AsyncWrite for Recalling<S, A> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    /// HTTP flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if self.place == Place::Answering && self.connection.is_answered() {
            self.place = if self.connection.had_body() { Place::Unknown } else { Place::Between };
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::error::Error;

    use http::{Request, Response};
    use http_body_util::{BodyExt, Full, combinators::BoxBody};
    use hyper::body::Incoming;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        task::JoinHandle,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::connector::{connection::Serving, listener};

    const KNOWN: &str = "GET /known HTTP/1.1\r\nhost: a\r\n\r\n";
    const OTHER: &str = "GET /other HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Recalls `KNOWN`; everything else, HTTP answers.
    #[derive(Clone)]
    struct Known {
        body: Bytes,
        reads_bodies: bool,
    }

    struct Again(Vec<u8>, Bytes);

    impl Recalled for Again {
        fn head(&self) -> &[u8] {
            &self.0
        }

        fn body(&self) -> &[u8] {
            &self.1
        }

        fn sent(&mut self, _: usize) {}
    }

    impl Answer for Known {
        type Body = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;
        type Recalled = Again;

        async fn answer(&self, _: Arc<Connection>, _: Serving, request: Request<Incoming>) -> Response<Self::Body> {
            let path = request.uri().path().to_owned();
            if self.reads_bodies {
                request.into_body().collect().await.unwrap();
            }
            Response::new(Full::from(format!("http{path};")).map_err(Into::into).boxed())
        }

        fn recall(&self, _: &Connection, request: &[u8]) -> Option<Again> {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", self.body.len());
            (request == KNOWN.as_bytes()).then(|| Again(head.into_bytes(), self.body.clone()))
        }
    }

    struct Client {
        stream: DuplexStream,
        serving: JoinHandle<()>,
        stop: CancellationToken,
    }

    impl Client {
        fn of(body: &'static [u8], reads_bodies: bool, room: usize) -> Self {
            let (stream, server) = tokio::io::duplex(room);
            let connection = Connection::new(([192, 0, 2, 1], 1).into(), false);
            let answer = Known { body: Bytes::from_static(body), reads_bodies };
            let stop = CancellationToken::new();
            let serving = tokio::spawn(listener::serve_http(server, connection, stop.clone(), answer));
            Self { stream, serving, stop }
        }

        /// Sends these bytes, and lets the server see them before it sees what comes next.
        async fn send(&mut self, text: &str) {
            self.stream.write_all(text.as_bytes()).await.unwrap();
            for _ in 0..16 {
                tokio::task::yield_now().await;
            }
        }

        /// The bodies that came until the connection ended.
        async fn bodies(mut self) -> String {
            self.stop.cancel();
            let mut text = Vec::new();
            self.stream.read_to_end(&mut text).await.unwrap();
            self.serving.await.unwrap();
            let text = String::from_utf8(text).unwrap();
            let bodies = text.split("HTTP/1.1 ").skip(1).map(|answer| answer.split_once("\r\n\r\n").unwrap().1);
            bodies.collect()
        }
    }

    #[tokio::test]
    async fn a_request_is_recalled_only_where_nothing_else_is_under_way() {
        let (first, rest) = KNOWN.split_at(9);
        let unread = format!("POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", KNOWN.len());
        let bare = "GET /bare HTTP/1.1\nhost: a\n\n";
        for (sent, expected) in [
            (&[KNOWN, KNOWN][..], "recalled;recalled;"),
            (&[OTHER, KNOWN, OTHER, KNOWN], "http/other;recalled;http/other;recalled;"),
            // In pieces, and from then on.
            (&[first, rest, KNOWN], "http/known;http/known;"),
            (&["GET /x HTTP/1.1\r\nhost: a\r\nx: ", KNOWN, KNOWN], "http/x;http/known;"),
            // Several at once.
            (&[&KNOWN.repeat(2), KNOWN], "http/known;http/known;http/known;"),
            (&[&format!("{bare}{KNOWN}"), KNOWN], "http/bare;http/known;http/known;"),
            // What stands in a body is no request.
            (&[&unread, KNOWN, KNOWN], "http/unread;http/known;"),
        ] {
            let mut client = Client::of(b"recalled;", true, 1 << 20);
            for text in sent {
                client.send(text).await;
            }
            assert_eq!(client.bodies().await, expected, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn what_stands_in_a_body_that_nobody_reads_is_no_request() {
        let unread = format!("POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", KNOWN.len());
        let mut client = Client::of(b"recalled;", false, 1 << 20);
        client.send(&unread).await;
        // HTTP may have closed the connection.
        let _ = client.stream.write_all(KNOWN.as_bytes()).await;
        assert_eq!(client.bodies().await, "http/unread;");
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_of_it_even_while_the_server_ends() {
        let body: &[u8] = vec![b'x'; 100_000].leak();
        let mut client = Client::of(body, true, 4096);
        client.send(KNOWN).await;
        assert_eq!(client.bodies().await.len(), body.len());
    }
}
