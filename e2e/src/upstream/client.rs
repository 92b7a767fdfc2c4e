//! A client that says exactly how an answer ended: whole, closed early, reset, or not at all. It reads HTTP/1.1
//! by hand, so that no library retries, decodes or tidies up anything.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::HeaderMap;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{
    blob::{Blob, Hash},
    request::{parse_headers, read_head},
};

/// The most of a body that is kept as text.
const KEPT: usize = 64 * 1024;
/// What runtimes accept.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*";
/// How long a body may bring nothing before a client gives up.
const IDLE: Duration = Duration::from_secs(40);

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    expected: Option<(Blob, u64)>,
    patience: Duration,
}

impl Ask {
    /// GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET", path: path.into(), headers: Vec::new(), expected: None, patience: IDLE }
    }

    /// GET of a manifest, as a runtime asks: for every type that there is.
    pub fn manifest(path: impl Into<String>) -> Self {
        Self::get(path).with("Accept", MANIFESTS)
    }

    /// HEAD.
    pub fn head(path: impl Into<String>) -> Self {
        Self { method: "HEAD", ..Self::get(path) }
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Compares each byte, as it comes, with the blob from this offset on.
    #[must_use]
    pub fn expecting(mut self, blob: &Blob, offset: u64) -> Self {
        self.expected = Some((blob.clone(), offset));
        self
    }

    /// Gives up after this much silence.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends it and reads the head of the answer.
    pub async fn open(self, address: SocketAddr) -> Result<Transfer> {
        let began = Instant::now();
        let stream = TcpStream::connect(address).await.with_context(|| format!("failed to connect to {address}"))?;
        let mut stream = BufReader::with_capacity(128 * 1024, stream);
        stream.write_all(self.text(address).as_bytes()).await.context("failed to send a request")?;
        let head = timeout(self.patience, read_head(&mut stream))
            .await
            .with_context(|| format!("no answer within {:?}", self.patience))??
            .context("the connection closed without an answer")?;
        Transfer::new(self, stream, &head, began)
    }

    /// Sends it and reads the whole answer.
    pub async fn run(self, address: SocketAddr) -> Result<Got> {
        self.open(address).await?.finish().await
    }

    fn text(&self, address: SocketAddr) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        text
    }
}

/// An answer whose body is being read.
pub struct Transfer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    ask: Ask,
    stream: BufReader<TcpStream>,
    framing: Framing,
    began: Instant,
    head_after: Duration,
    received: u64,
    wrong_at: Option<u64>,
    hash: Hash,
    kept: Vec<u8>,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked { left: u64 },
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its last byte.
    Complete,
    /// Closed (FIN) before its last byte.
    Closed,
    /// Reset (RST).
    Reset,
    /// The client gave up.
    Silent,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Got {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// How it ended.
    pub ending: Ending,
    /// Body bytes.
    pub received: u64,
    /// Their digest.
    pub digest: String,
    /// The first byte that was not as expected.
    pub wrong_at: Option<u64>,
    /// The beginning of the body.
    pub body: Vec<u8>,
    /// From the request to the head.
    pub head_after: Duration,
    /// From the request to the end.
    pub took: Duration,
}

impl Transfer {
    fn new(mut ask: Ask, stream: BufReader<TcpStream>, head: &str, began: Instant) -> Result<Self> {
        let mut lines = head.lines();
        let start = lines.next().context("an answer without a first line")?;
        let status: u16 = start
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("not a status line: {start:?}"))?;
        let headers = parse_headers(lines)?;
        // A server may answer a Range by everything.
        if let Some((_, offset)) = ask.expected.as_mut().filter(|_| status == 200) {
            *offset = 0;
        }
        Ok(Self {
            framing: framing(&headers, ask.method == "HEAD" || status == 304)?,
            status,
            headers,
            ask,
            stream,
            began,
            head_after: began.elapsed(),
            received: 0,
            wrong_at: None,
            hash: Hash::new(),
            kept: Vec::new(),
            ending: None,
        })
    }

    /// Body bytes so far.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Reads until at least `total` body bytes have come, or the end.
    pub async fn read_to(&mut self, total: u64) -> Result<()> {
        while self.ending.is_none() && self.received < total {
            self.read_some().await?;
        }
        Ok(())
    }

    /// Reads to the end, and that the connection brings nothing after it.
    pub async fn finish(mut self) -> Result<Got> {
        self.read_to(u64::MAX).await?;
        let ending = self.ending.context("an answer without an end")?;
        Ok(Got {
            status: self.status,
            headers: self.headers,
            ending,
            received: self.received,
            digest: self.hash.finish(),
            wrong_at: self.wrong_at,
            body: self.kept,
            head_after: self.head_after,
            took: self.began.elapsed(),
        })
    }

    async fn read_some(&mut self) -> Result<()> {
        let left = match self.framing {
            Framing::Length(length) => length - self.received,
            Framing::Chunked { left: 0 } => return self.next_chunk().await,
            Framing::Chunked { left } => left,
        };
        if left == 0 {
            self.ending = Some(Ending::Complete);
            return Ok(());
        }
        let limit = usize::try_from(left).unwrap_or(usize::MAX);
        let early = match timeout(self.ask.patience, self.stream.fill_buf()).await {
            Err(_) => Some(Ending::Silent),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Some(Ending::Reset),
            Ok(Err(error)) => return Err(error).context("failed to read an answer"),
            Ok(Ok(piece)) => piece.is_empty().then_some(Ending::Closed),
        };
        if early.is_some() {
            self.ending = early;
            return Ok(());
        }
        let buffered = self.stream.buffer();
        let piece = &buffered[..buffered.len().min(limit)];
        if self.wrong_at.is_none() {
            self.wrong_at = mismatch(self.ask.expected.as_ref(), self.received, piece);
        }
        self.hash.update(piece);
        self.kept.extend_from_slice(&piece[..piece.len().min(KEPT - self.kept.len().min(KEPT))]);
        let length = piece.len();
        self.received += length as u64;
        if let Framing::Chunked { left } = &mut self.framing {
            *left -= length as u64;
        }
        self.stream.consume(length);
        Ok(())
    }

    async fn next_chunk(&mut self) -> Result<()> {
        let mut line = String::new();
        if self.received > 0 {
            self.stream.read_line(&mut line).await.context("failed to end a chunk")?;
            line.clear();
        }
        if self.stream.read_line(&mut line).await.context("failed to begin a chunk")? == 0 {
            self.ending = Some(Ending::Closed);
            return Ok(());
        }
        let left = u64::from_str_radix(line.trim(), 16).with_context(|| format!("not a chunk: {line:?}"))?;
        self.framing = Framing::Chunked { left };
        if left == 0 {
            self.ending = Some(Ending::Complete);
        }
        Ok(())
    }
}

fn framing(headers: &HeaderMap, is_empty: bool) -> Result<Framing> {
    if is_empty {
        return Ok(Framing::Length(0));
    }
    if headers.contains_key("transfer-encoding") {
        return Ok(Framing::Chunked { left: 0 });
    }
    let length = headers.get("content-length").context("an answer without a length")?;
    let length = length.to_str().ok().and_then(|length| length.parse().ok());
    Ok(Framing::Length(length.context("a bad Content-Length")?))
}

fn mismatch(expected: Option<&(Blob, u64)>, received: u64, piece: &[u8]) -> Option<u64> {
    let (blob, offset) = expected?;
    let mut compared = 0;
    while compared < piece.len() {
        let rest = &piece[compared..];
        let at = received + compared as u64;
        let right = blob.read(offset + at, rest.len() as u64);
        if right.is_empty() {
            return Some(at);
        }
        if right[..] != rest[..right.len()] {
            let first = right.iter().zip(rest).take_while(|(right, got)| right == got).count();
            return Some(at + first as u64);
        }
        compared += right.len();
    }
    None
}

impl Got {
    /// A header as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The beginning of the body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether this is a complete 200.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.status == 200 && self.ending == Ending::Complete
    }

    /// Fails unless this is a complete 200 of these very bytes.
    pub fn ensure_whole(&self, digest: &str) -> Result<()> {
        ensure!(self.is_complete(), "expected a complete 200, got {}", self.summary());
        ensure!(self.digest == digest, "expected {digest}, got {}", self.digest);
        Ok(())
    }

    /// Fails unless the status is this.
    pub fn ensure_status(&self, status: u16) -> Result<()> {
        ensure!(self.status == status, "expected {status}, got {}", self.summary());
        Ok(())
    }

    /// Status, ending and size in a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let ending = match self.ending {
            Ending::Complete => "complete",
            Ending::Closed => "closed early",
            Ending::Reset => "reset",
            Ending::Silent => "silent",
        };
        format!("{} {ending}, {} bytes in {:.1} s", self.status, self.received, self.took.as_secs_f64())
    }
}

/// Sends half a request head and waits until the server closes the connection; answers how long that took.
pub async fn half_a_head(address: SocketAddr, limit: Duration) -> Result<Duration> {
    let mut stream = TcpStream::connect(address).await.context("failed to connect")?;
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: ca").await.context("failed to send half a head")?;
    let began = Instant::now();
    let mut rest = Vec::new();
    match timeout(limit, stream.read_to_end(&mut rest)).await {
        Ok(_) => Ok(began.elapsed()),
        Err(_) => bail!("half a request head was still held open after {limit:?}"),
    }
}
