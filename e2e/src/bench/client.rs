//! The clients of a benchmark. They cost as little as they can, since they share the machine with what they measure: bytes of
//! large answers are never copied out of the kernel, and one thread drives all connections for small ones.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::epoll,
    net::{RecvFlags, recv},
};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};

/// A client that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_mins(1);
/// Answers' heads are shorter.
const HEAD: usize = 16 * 1024;
/// Bytes that are thrown away at once.
const PIECE: usize = 1024 * 1024;

/// A request as it goes over the wire.
#[must_use]
pub fn get(path: &str) -> Vec<u8> {
    let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
    format!("GET {path} HTTP/1.1\r\nHost: cache.example.com\r\nAccept: {accept}\r\nUser-Agent: bench\r\n\r\n")
        .into_bytes()
}

/// How one transfer went.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Bytes of the body.
    pub bytes: u64,
    /// When its first byte was there.
    pub first_byte: Instant,
    /// When its last one was.
    pub ended: Instant,
}

/// A connection on which requests go one after another.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// For what is thrown away.
    scratch: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    /// Connects; with TLS, if a configuration is given.
    pub fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let tcp = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some(config) => {
                let name = ServerName::IpAddress(address.ip().into());
                let session = ClientConnection::new(Arc::clone(config), name).context("cannot begin TLS")?;
                Stream::Tls(Box::new(StreamOwned::new(session, tcp)))
            }
        };
        Ok(Self { stream, scratch: Vec::new() })
    }

    /// Sends a request and throws the answer's body away; it must be a 200 or a 206.
    pub fn fetch(&mut self, request: &[u8]) -> Result<Transfer> {
        let (length, mut bytes) = self.begin(request)?;
        let first_byte = Instant::now();
        while bytes < length {
            let read = self.discard(length - bytes)?;
            ensure!(read > 0, "the answer broke off after {bytes} of {length} bytes");
            bytes += read;
        }
        Ok(Transfer { bytes, first_byte, ended: Instant::now() })
    }

    /// Sends the connection's last request and reads its answer to the end: head and body as they come, perhaps in chunks.
    pub fn last(mut self, request: &[u8]) -> Result<String> {
        self.stream.write_all(&[&request[..request.len() - 2], b"Connection: close\r\n\r\n"].concat())?;
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).context("no answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "answered {}", answer.lines().next().unwrap_or_default());
        Ok(answer)
    }

    /// Sends a request and reads its head; gives the body's length and how much of it came along.
    pub fn begin(&mut self, request: &[u8]) -> Result<(u64, u64)> {
        self.stream.write_all(request).context("cannot send a request")?;
        let mut buffer = [0; HEAD];
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut buffer[filled..]).context("no answer")?;
            ensure!(read > 0, "the connection was closed instead of an answer");
            filled += read;
            if let Some(head) = Head::parse(&buffer[..filled])? {
                return Ok((head.body, (filled - head.length) as u64));
            }
        }
    }

    fn discard(&mut self, most: u64) -> io::Result<u64> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(PIECE);
        match &mut self.stream {
            // The kernel throws them away itself.
            Stream::Plain(tcp) => {
                self.scratch.clear();
                self.scratch.reserve_exact(most);
                let spare = &mut self.scratch.spare_capacity_mut()[..most];
                let (_, read) = recv(&*tcp, spare, RecvFlags::TRUNC)?;
                Ok(read as u64)
            }
            Stream::Tls(tls) => {
                self.scratch.resize(PIECE, 0);
                Ok(tls.read(&mut self.scratch[..most])? as u64)
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buffer),
            Self::Tls(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

/// An answer's head.
struct Head {
    length: usize,
    body: u64,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = response.parse(bytes).context("this is no HTTP")? else {
            return Ok(None);
        };
        let status = response.code.unwrap_or_default();
        ensure!(matches!(status, 200 | 206), "answered {status}: {}", String::from_utf8_lossy(bytes));
        let body = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body = body.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
        Ok(Some(Self { length, body: body.context("an answer without a length")? }))
    }
}

/// `connections` at once, each of which fetches the same `times` times.
pub fn fetch_at_once(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    request: &[u8],
    (connections, times): (usize, usize),
) -> Result<Vec<Transfer>> {
    let gate = std::sync::Barrier::new(connections);
    thread::scope(|scope| {
        let one = || -> Result<Vec<Transfer>> {
            let connection = Connection::open(address, tls);
            gate.wait();
            let mut connection = connection?;
            (0..times).map(|_| connection.fetch(request)).collect()
        };
        let running: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        let ended = running.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a client died")));
        Ok(ended.collect::<Result<Vec<_>>>()?.concat())
    })
}

/// All of `requests` over so many connections, each of which takes the next one when it has ended one.
pub fn fetch_in_turn(address: SocketAddr, requests: &[Vec<u8>], connections: usize) -> Result<Small> {
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let times: Result<Vec<_>> = thread::scope(|scope| {
        let one = || -> Result<Vec<f64>> {
            let mut connection = Connection::open(address, None)?;
            let mut times = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                connection.fetch(request)?;
                times.push(begun.elapsed().as_secs_f64());
            }
            Ok(times)
        };
        let running: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        let ended = running.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a client died")));
        ended.collect()
    });
    let (wall, mut times) = (begun.elapsed(), times?.concat());
    times.sort_by(f64::total_cmp);
    Ok(Small { times, wall })
}

/// Transfers that go on in the background, as long as this is held.
#[derive(Debug)]
pub struct Background {
    over: Arc<AtomicBool>,
    running: Vec<thread::JoinHandle<Result<()>>>,
}

impl Background {
    /// Begins `connections` that fetch the same again and again.
    pub fn begin(address: SocketAddr, request: &[u8], connections: usize) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let begin = |_| -> Result<thread::JoinHandle<Result<()>>> {
            let (over, request) = (Arc::clone(&over), request.to_vec());
            let mut connection = Connection::open(address, None)?;
            Ok(thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let (length, mut bytes) = connection.begin(&request)?;
                    while bytes < length && !over.load(Ordering::Relaxed) {
                        let read = connection.discard(length - bytes)?;
                        ensure!(read > 0, "a large transfer broke off");
                        bytes += read;
                    }
                }
                Ok(())
            }))
        };
        let running = (0..connections).map(begin).collect::<Result<Vec<_>>>()?;
        Ok(Self { over, running })
    }

    /// Ends them; an error if one broke off.
    pub fn end(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.running.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a client died")));
        ended.collect()
    }
}

/// How small requests went.
#[derive(Debug, Clone)]
pub struct Small {
    /// Each answer's time in seconds, ascending.
    times: Vec<f64>,
    /// For how long requests were sent.
    pub wall: Duration,
}

impl Small {
    /// How many were answered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// The time, in seconds, within which `share` (0 to 1) of them were answered.
    #[must_use]
    pub fn within(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a list that fits into memory"
        )]
        let index = (self.times.len() as f64 * share) as usize;
        self.times.get(index.min(self.times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

struct Busy {
    stream: TcpStream,
    sent: Instant,
    /// Of the answer's head so far, and of the body once that is known.
    head: Vec<u8>,
    left: Option<u64>,
}

/// For `length`, `connections` that ask the same again as soon as they are answered.
pub fn ask_busily(address: SocketAddr, request: &[u8], connections: usize, length: Duration) -> Result<Small> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).context("cannot make an epoll")?;
    let mut busy = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        stream.set_nonblocking(true)?;
        epoll::add(&poll, &stream, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
        busy.push(Busy { stream, sent: Instant::now(), head: Vec::new(), left: None });
    }
    let (begun, mut times) = (Instant::now(), Vec::new());
    let mut events = Vec::with_capacity(connections);
    let mut buffer = vec![0; 256 * 1024];
    let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
    while begun.elapsed() < length {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&limit))?;
        ensure!(!events.is_empty(), "no answer within {} s", limit.tv_sec);
        for event in &events {
            let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if let Some(one) = busy.get_mut(number)
                && one.is_answered(&mut buffer)?
            {
                let now = Instant::now();
                times.push((now - one.sent).as_secs_f64());
                one.sent = now;
                one.stream.write_all(request)?;
            }
        }
    }
    let wall = begun.elapsed();
    times.sort_by(f64::total_cmp);
    Ok(Small { times, wall })
}

impl Busy {
    /// Reads what is there; whether the answer is whole.
    fn is_answered(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let read = match self.stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            read => read.context("no answer")?,
        };
        ensure!(read > 0, "the connection was closed instead of an answer");
        let left = if let Some(left) = self.left {
            left.saturating_sub(read as u64)
        } else {
            self.head.extend_from_slice(&buffer[..read]);
            let Some(head) = Head::parse(&self.head)? else { return Ok(false) };
            let body = (self.head.len() - head.length) as u64;
            self.head.clear();
            head.body.saturating_sub(body)
        };
        self.left = (left > 0).then_some(left);
        Ok(left == 0)
    }
}

/// Clients that trust this authority, in PEM.
pub fn trusting(ca: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("a certificate that is none")?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
