//! What an upstream sends back, and how: whole, paced, held at a gate, or cut.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_rustls::server::TlsStream;

use super::{
    blob::Blob,
    counts::{Counts, Entry},
};

/// One client's connection to an upstream.
pub type Connection = BufReader<TlsStream<TcpStream>>;

/// The largest piece that is written at once.
const PIECE: u64 = 64 * 1024;

/// An answer before it is sent.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers; `Content-Length` comes from the body.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
    /// How it is sent.
    pub delivery: Delivery,
}

/// The bytes of an answer.
#[derive(Debug)]
pub enum Body {
    /// A part of a blob.
    Part {
        /// The blob.
        blob: Blob,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// What a registry behind the front answers, passed on as it comes.
    Passed {
        /// The registry's answer.
        from: reqwest::Response,
        /// Its length.
        length: u64,
    },
}

/// How an answer is sent.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// Never send anything, not even a head.
    pub hang: bool,
    /// Send this much and no more.
    pub cut: Option<Cut>,
    /// Stop after some bytes until a test opens the gate.
    pub gate: Option<Gate>,
    /// Bytes per second.
    pub rate: Option<u64>,
}

/// How an answer ends before its end.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// The connection is closed (FIN) after so many body bytes.
    Close(u64),
    /// The connection is reset (RST) after so many body bytes.
    Reset(u64),
}

/// Lets so many body bytes pass, and the rest when it is opened.
#[derive(Clone, Debug)]
pub struct Gate {
    first: u64,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// A closed gate behind the first bytes.
    #[must_use]
    pub fn after(first: u64) -> Self {
        Self { first, open: Arc::new(watch::Sender::new(false)) }
    }

    /// Lets the rest pass, now and from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    async fn opened(&self) {
        // The sender lives as long as the gate.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next request may come.
    Open,
    /// It is to be closed.
    Close,
    /// It is to be reset.
    Reset,
}

impl Answer {
    /// An answer with a short text.
    pub fn text(status: u16, media_type: &str, text: impl Into<String>) -> Self {
        Self::blob(status, media_type, text.into().into_bytes().into())
    }

    /// An answer with a whole blob.
    pub fn blob(status: u16, media_type: &str, blob: Blob) -> Self {
        let length = blob.length();
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), media_type.to_owned())],
            body: Body::Part { blob, offset: 0, length },
            delivery: Delivery::default(),
        }
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Without a header.
    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// The number of body bytes that the head announces.
    pub fn length(&self) -> u64 {
        match &self.body {
            Body::Part { length, .. } | Body::Passed { length, .. } => *length,
        }
    }

    /// Replaces the body by bytes made from it.
    pub async fn map_body(&mut self, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<()> {
        let empty = Body::Part { blob: Vec::new().into(), offset: 0, length: 0 };
        let bytes = match std::mem::replace(&mut self.body, empty) {
            Body::Part { blob, offset, length } => collect(&blob, offset, length),
            Body::Passed { from, .. } => from.bytes().await.context("failed to read a registry's answer")?.into(),
        };
        let bytes = change(bytes);
        self.body = Body::Part { length: bytes.len() as u64, blob: bytes.into(), offset: 0 };
        Ok(())
    }

    /// Sends it. A client that leaves is not an error.
    pub async fn send(self, is_head: bool, connection: &mut Connection, counts: &Counts, entry: Entry) -> After {
        if self.delivery.hang {
            until_closed(connection).await;
            return After::Close;
        }
        counts.answered(entry, self.status);
        match self.try_send(is_head, connection, counts, entry).await {
            Ok(after) => after,
            Err(_) => After::Close,
        }
    }

    async fn try_send(
        self,
        is_head: bool,
        connection: &mut Connection,
        counts: &Counts,
        entry: Entry,
    ) -> Result<After> {
        connection.write_all(self.head().as_bytes()).await?;
        connection.flush().await?;
        if is_head || self.status == 304 {
            return Ok(After::Open);
        }
        let mut sending =
            Sending { connection, counts, entry, delivery: self.delivery, sent: 0, since: Instant::now() };
        match self.body {
            Body::Part { blob, offset, length } => sending.part(&blob, offset, length).await,
            Body::Passed { from, .. } => sending.passed(from).await,
        }
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", self.length());
        head
    }
}

/// A body on its way.
struct Sending<'a> {
    connection: &'a mut Connection,
    counts: &'a Counts,
    entry: Entry,
    delivery: Delivery,
    sent: u64,
    since: Instant,
}

impl Sending<'_> {
    async fn part(&mut self, blob: &Blob, offset: u64, length: u64) -> Result<After> {
        while self.sent < length {
            let piece = blob.read(offset + self.sent, PIECE.min(length - self.sent));
            if let Some(after) = self.write(piece).await? {
                return Ok(after);
            }
        }
        Ok(After::Open)
    }

    async fn passed(&mut self, from: reqwest::Response) -> Result<After> {
        let mut pieces = from.bytes_stream();
        while let Some(piece) = pieces.next().await {
            if let Some(after) = self.write(piece?).await? {
                return Ok(after);
            }
        }
        Ok(After::Open)
    }

    /// Writes a piece in steps; `Some` when the delivery ends early.
    async fn write(&mut self, mut piece: Bytes) -> Result<Option<After>> {
        while !piece.is_empty() {
            if let Some(after) = self.is_cut() {
                return Ok(Some(after));
            }
            self.pass_gate().await?;
            let step = self.step(piece.len() as u64);
            let step = piece.split_to(usize::try_from(step).unwrap_or(piece.len()));
            self.connection.write_all(&step).await?;
            self.connection.flush().await?;
            self.sent += step.len() as u64;
            self.counts.sent(self.entry, step.len() as u64);
            self.keep_rate().await?;
        }
        Ok(None)
    }

    fn is_cut(&self) -> Option<After> {
        match self.delivery.cut? {
            Cut::Close(after) if self.sent >= after => Some(After::Close),
            Cut::Reset(after) if self.sent >= after => Some(After::Reset),
            Cut::Close(_) | Cut::Reset(_) => None,
        }
    }

    /// How many of these bytes may go now without passing a cut, a gate or a twentieth of a second.
    fn step(&self, available: u64) -> u64 {
        let mut step = available;
        if let Some(Cut::Close(after) | Cut::Reset(after)) = self.delivery.cut {
            step = step.min(after - self.sent);
        }
        if let Some(gate) = self.delivery.gate.as_ref().filter(|gate| !gate.is_open()) {
            step = step.min(gate.first - self.sent);
        }
        if let Some(rate) = self.delivery.rate {
            step = step.min((rate / 20).max(1));
        }
        step
    }

    async fn pass_gate(&mut self) -> Result<()> {
        let Some(gate) = self.delivery.gate.clone() else {
            return Ok(());
        };
        if gate.is_open() || self.sent < gate.first {
            return Ok(());
        }
        tokio::select! {
            () = gate.opened() => {}
            () = until_closed(self.connection) => anyhow::bail!("the client left at the gate"),
        }
        self.since = Instant::now() - self.spent(self.sent);
        Ok(())
    }

    async fn keep_rate(&mut self) -> Result<()> {
        if self.delivery.rate.is_none() || self.delivery.gate.as_ref().is_some_and(|gate| !gate.is_open()) {
            return Ok(());
        }
        let due = self.since + self.spent(self.sent);
        tokio::select! {
            () = sleep_until(due) => Ok(()),
            () = until_closed(self.connection) => anyhow::bail!("the client left"),
        }
    }

    fn spent(&self, bytes: u64) -> Duration {
        let Some(rate) = self.delivery.rate else {
            return Duration::ZERO;
        };
        Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1))
    }
}

/// Waits until the client closes the connection; what it sends meanwhile is not expected and dropped.
async fn until_closed(connection: &mut Connection) {
    let mut ignored = [0; 1024];
    while !matches!(connection.read(&mut ignored).await, Ok(0) | Err(_)) {}
}

fn collect(blob: &Blob, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let read = bytes.len() as u64;
        bytes.extend_from_slice(&blob.read(offset + read, length - read));
    }
    bytes
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
