//! The byte stream below HTTP: sends files from the page cache, shares the processor fairly, and drops clients that
//! neither send nor take.
//!
//! A slice that stands for a file (see [`Connection::token`]) is recognised by its address and sent with sendfile(2).
//! Were it not recognised, the bytes would still be right, since the slice is the mapped file.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use crds::cache_server::ClientLimits;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::connection::{Connection, Part, Stage};

/// Bytes that one connection sends before others have their turn. With it, a request for a kilobyte among large
/// transfers waits 2 ms instead of 80 (measured, see ARCHITECTURE.md).
const TURN: usize = 512 * 1024;

/// A client's TCP connection.
pub(super) struct ClientStream {
    stream: TcpStream,
    connection: Arc<Connection>,
    limits: Limits,
    sent_in_turn: usize,
    corked: bool,
    reading: Timer,
    writing: Timer,
}

/// Time limits towards a client.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    header: Duration,
    idle: Duration,
    stall: Duration,
}

impl From<&ClientLimits> for Limits {
    fn from(limits: &ClientLimits) -> Self {
        Self { header: limits.request_header.get(), idle: limits.idle.get(), stall: limits.write_stall.get() }
    }
}

/// A limit that runs while a certain thing is waited for.
///
/// The runtime's timer is not touched when a wait ends or the next begins, which is every request: it goes off at an old time
/// now and then, and is set to the present one.
#[derive(Default)]
struct Timer {
    /// The wait that runs, and when it has taken too long.
    running: Option<(u64, Instant)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn stop(&mut self) {
        self.running = None;
    }

    /// Starts at the first call for a wait, and says when the time is over.
    fn poll(&mut self, wait: u64, limit: Duration, cx: &mut Context<'_>) -> Poll<io::Error> {
        let now = Instant::now();
        let end = match self.running {
            Some((running, end)) if running == wait => end,
            _ => now + limit,
        };
        self.running = Some((wait, end));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        if sleep.deadline() > end {
            sleep.as_mut().reset(end);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if now >= end {
                self.running = None;
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            sleep.as_mut().reset(end);
        }
        Poll::Pending
    }
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>, limits: Limits) -> Self {
        Self {
            stream,
            connection,
            limits,
            sent_in_turn: 0,
            corked: false,
            reading: Timer::default(),
            writing: Timer::default(),
        }
    }

    /// Ends this connection's turn when it has sent enough.
    fn take_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sent_in_turn < TURN {
            return Poll::Ready(());
        }
        self.sent_in_turn = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts what was sent; a client that takes nothing for too long is dropped.
    fn sent(&mut self, sent: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match sent {
            Poll::Ready(result) => {
                self.writing.stop();
                if let Ok(bytes) = &result {
                    self.sent_in_turn += bytes;
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                self.sent_in_turn = 0;
                self.writing.poll(0, self.limits.stall, cx).map(Err)
            }
        }
    }

    fn send_file(&self, part: &Part, length: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let mut offset = part.offset;
                let sent =
                    rustix::fs::sendfile(&self.stream, part.growing.file(), Some(&mut offset), length.min(TURN))?;
                Ok(sent)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The file is shorter than it was: end the connection, never spin.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                other => return Poll::Ready(other),
            }
        }
    }

    /// Holds packets back while headers and a file are put together, so that they leave in full segments.
    fn cork(&mut self, corked: bool) {
        if self.corked != corked {
            // Only a loss of speed if it fails.
            let _ = rustix::net::sockopt::set_tcp_cork(&self.stream, corked);
            self.corked = corked;
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let (stage, wait) = self.connection.stage();
        if read.is_ready() {
            if stage == Stage::Idle && buffer.filled().len() > before {
                self.connection.enter(Stage::Header);
            }
            return read;
        }
        let limit = match stage {
            Stage::Idle => self.limits.idle,
            Stage::Header => self.limits.header,
            Stage::Serving => {
                self.reading.stop();
                self.connection.wake_after_serving(cx.waker());
                // It may have ended just now.
                let (stage, wait) = self.connection.stage();
                if stage == Stage::Serving {
                    return Poll::Pending;
                }
                let limit = self.limits.idle;
                return self.reading.poll(wait, limit, cx).map(Err);
            }
        };
        self.reading.poll(wait, limit, cx).map(Err)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.take_turn(cx));
        let sent = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.sent(sent, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.take_turn(cx));
        let file = slices.iter().position(|slice| self.connection.file_behind(slice).is_some());
        let sent = match file {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
            Some(0) => match self.connection.file_behind(&slices[0]) {
                Some(part) => self.send_file(&part, slices[0].len(), cx),
                None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
            },
            Some(first) => {
                self.cork(true);
                Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..first])
            }
        };
        self.sent(sent, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork(false);
        self.connection.release_files();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
