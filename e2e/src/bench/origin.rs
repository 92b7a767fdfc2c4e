//! The upstream of a benchmark: a registry that answers one image from memory and files, as fast as it is told to, and counts
//! what it is asked. Its own cost is nobody's: it is no part of any figure.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{lab::CACHE, package::digest::sha256};

/// What is sent at once at most: a rate is kept to within the time of one of these.
const PIECE: u64 = 256 * 1024;

/// An answer that the upstream has.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its media type.
    pub content_type: &'static str,
    /// What it hashes to.
    pub digest: String,
    /// The file that has it.
    pub file: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

impl Entry {
    /// What a file has.
    pub fn of(file: PathBuf, digest: &str, content_type: &'static str) -> Result<Self> {
        let size = std::fs::metadata(&file).with_context(|| format!("cannot find {}", file.display()))?.len();
        Ok(Self { content_type, digest: digest.to_owned(), file, size })
    }

    /// Writes an answer's content into `folder`.
    pub fn write(folder: &Path, name: &str, content_type: &'static str, content: &[u8]) -> Result<Self> {
        let file = folder.join(name);
        std::fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { content_type, digest: format!("sha256:{}", sha256(content)), file, size: content.len() as u64 })
    }
}

/// What the upstream was asked for, since it was last forgotten.
#[derive(Debug, Default)]
struct Asked {
    /// GETs of blobs.
    blobs: AtomicU64,
    /// When the first byte of a blob was sent.
    first_byte: Mutex<Option<Instant>>,
}

/// Serves until the process ends.
#[derive(Debug, Clone)]
pub struct Origin {
    address: SocketAddr,
    asked: Arc<Asked>,
}

impl Origin {
    /// Begins to serve `entries` by path; each connection at `bytes_per_second`, if there is a limit.
    pub fn start(entries: BTreeMap<String, Entry>, bytes_per_second: Option<u64>) -> Result<Self> {
        let listener = TcpListener::bind((CACHE, 0)).context("cannot listen for the upstream")?;
        let origin = Self { address: listener.local_addr()?, asked: Arc::default() };
        let (asked, entries) = (Arc::clone(&origin.asked), Arc::new(entries));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, entries) = (Arc::clone(&asked), Arc::clone(&entries));
                // Whoever is cut off asks again or says so; there is nobody here to tell.
                thread::spawn(move || drop(serve(&stream, &entries, bytes_per_second, &asked)));
            }
        });
        Ok(origin)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address, as a client writes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Forgets what it was asked.
    pub fn forget(&self) {
        self.asked.blobs.store(0, Ordering::Relaxed);
        *self.asked.first_byte.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many GETs of blobs there were.
    #[must_use]
    pub fn blob_gets(&self) -> u64 {
        self.asked.blobs.load(Ordering::Relaxed)
    }

    /// When the first byte of a blob left.
    #[must_use]
    pub fn first_byte(&self) -> Option<Instant> {
        *self.asked.first_byte.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(stream: &TcpStream, entries: &BTreeMap<String, Entry>, rate: Option<u64>, asked: &Asked) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut header = String::from("\n");
        while !header.trim().is_empty() || header == "\n" {
            header.clear();
            if lines.read_line(&mut header)? == 0 {
                return Ok(());
            }
        }
        let mut words = request.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        answer(stream, method, path, entries.get(path), rate, asked)?;
    }
}

fn answer(
    mut stream: &TcpStream,
    method: &str,
    path: &str,
    entry: Option<&Entry>,
    rate: Option<u64>,
    asked: &Asked,
) -> io::Result<()> {
    let Some(entry) = entry else {
        let (status, body) = if path == "/v2/" { ("200 OK", "{}") } else { ("404 Not Found", "{\"errors\":[]}") };
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        let body = if method == "HEAD" { "" } else { body };
        return stream
            .write_all(format!("{head}docker-distribution-api-version: registry/2.0\r\n\r\n{body}").as_bytes());
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: {}\r\ndocker-content-digest: {}\r\netag: \"{}\"\r\n\r\n",
        entry.content_type, entry.size, entry.digest, entry.digest
    );
    stream.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    if path.contains("/blobs/") {
        asked.blobs.fetch_add(1, Ordering::Relaxed);
        asked.first_byte.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }
    let (file, begun) = (File::open(&entry.file)?, Instant::now());
    let mut offset = 0;
    while offset < entry.size {
        let length = (entry.size - offset).min(PIECE);
        let sent =
            rustix::fs::sendfile(stream, &file, Some(&mut offset), usize::try_from(length).unwrap_or(usize::MAX))?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(rate) = rate {
            #[expect(clippy::cast_precision_loss, reason = "far below the precision of a sleep")]
            let due = begun + Duration::from_secs_f64(offset as f64 / rate as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}
