//! An upstream registry on loopback: content in memory, a script of faults, and a record of what it was asked.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch};

use super::digest;

type Body = BoxBody<Bytes, io::Error>;

/// Bytes sent at once.
const PIECE: usize = 16 * 1024;

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// How many of the same method and path came before it.
    pub nth: usize,
}

impl Seen {
    pub(crate) fn is_blob_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }

    pub(crate) fn range(&self) -> Option<&str> {
        self.headers.get(header::RANGE)?.to_str().ok()
    }
}

/// Something that waits until it is opened.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        let mut opened = self.0.subscribe();
        opened.wait_for(|open| *open).await.expect("the gate should outlive its waiters");
    }
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Play {
    /// As a good registry does.
    Good,
    /// Good, but the connection breaks after so many bytes of this answer.
    Cut(usize),
    /// Good, but after so many bytes of this answer the rest waits.
    Hold(usize, Gate),
    /// Good, but ranges are ignored.
    NoRange,
    /// Good, but without a length.
    Unsized,
    /// Good, but compressed on the way.
    Gzip,
    /// 200 with other bytes.
    Other(Vec<u8>),
    /// A status with headers.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// A status, once the gate opens.
    HoldThenStatus(Gate, u16),
    /// No answer.
    Hang,
}

type Script = Arc<dyn Fn(&Seen) -> Play + Send + Sync>;

struct Item {
    media_type: String,
    bytes: Bytes,
    digest: Option<String>,
}

struct State {
    items: Mutex<HashMap<String, Arc<Item>>>,
    seen: Mutex<Vec<Seen>>,
    script: Mutex<Script>,
    sent: AtomicU64,
    accepted: AtomicUsize,
}

/// A registry that runs as long as the test does.
#[derive(Clone)]
pub(crate) struct Registry {
    pub port: u16,
    state: Arc<State>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            items: Mutex::default(),
            seen: Mutex::default(),
            script: Mutex::new(Arc::new(|_: &Seen| Play::Good)),
            sent: AtomicU64::new(0),
            accepted: AtomicUsize::new(0),
        });
        let registry = Self { port, state: Arc::clone(&state) };
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                state.accepted.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&state);
                let service = service_fn(move |request| {
                    let state = Arc::clone(&state);
                    async move { Ok::<_, io::Error>(state.answer(&request).await) }
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        registry
    }

    /// Where nobody listens.
    pub(crate) fn absent_url() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on requests are answered as `script` says.
    pub(crate) fn play(&self, script: impl Fn(&Seen) -> Play + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    /// From now on everything is answered alike.
    pub(crate) fn play_all(&self, play: Play) {
        self.play(move |_| play.clone());
    }

    /// From now on blob GETs are answered by these in turn, then by good ones; all else is good.
    pub(crate) fn play_blob_gets(&self, plays: Vec<Play>) {
        let plays = Mutex::new(std::collections::VecDeque::from(plays));
        self.play(move |seen| {
            if seen.is_blob_get() { plays.lock().unwrap().pop_front().unwrap_or(Play::Good) } else { Play::Good }
        });
    }

    fn put(&self, path: String, media_type: &str, bytes: &[u8], digest: Option<String>) {
        let item = Item { media_type: media_type.to_owned(), bytes: Bytes::copy_from_slice(bytes), digest };
        self.state.items.lock().unwrap().insert(path, Arc::new(item));
    }

    /// Puts a blob, and returns its digest.
    pub(crate) fn blob(&self, image: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        self.put(format!("/v2/{image}/blobs/{digest}"), "application/octet-stream", bytes, Some(digest.clone()));
        digest
    }

    /// Puts a manifest under a tag and its digest, and returns the digest.
    pub(crate) fn manifest(&self, image: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        for reference in [tag, &digest] {
            self.put(format!("/v2/{image}/manifests/{reference}"), media_type, bytes, Some(digest.clone()));
        }
        digest
    }

    /// Puts bytes at a path, whatever it says.
    pub(crate) fn raw(&self, path: &str, bytes: &[u8]) {
        self.put(path.to_owned(), "application/octet-stream", bytes, None);
    }

    pub(crate) fn page(&self, path: &str, body: &str) {
        self.put(path.to_owned(), "application/json", body.as_bytes(), None);
    }

    pub(crate) fn index(&self, path: &str, body: &str) {
        self.put(path.to_owned(), super::OCI_INDEX, body.as_bytes(), None);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.items.lock().unwrap().remove(path);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }

    /// How many requests of a method had this in their path.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }

    /// The `Range` headers of the GETs of a blob.
    pub(crate) fn ranges(&self, digest: &str) -> Vec<Option<String>> {
        let seen = self.seen();
        let gets = seen.iter().filter(|seen| seen.is_blob_get() && seen.path.contains(digest));
        gets.map(|seen| seen.range().map(str::to_owned)).collect()
    }

    /// Bytes of bodies that left.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Response<Body> {
        let seen = self.note(request);
        let script = Arc::clone(&self.script.lock().unwrap());
        let play = script(&seen);
        match &play {
            Play::Hang => std::future::pending().await,
            Play::HoldThenStatus(gate, status) => {
                gate.pass().await;
                let mut response = Response::new(whole(Bytes::from_static(b"a fault")));
                *response.status_mut() = StatusCode::from_u16(*status).unwrap();
                return response;
            }
            Play::Status(status, headers) => {
                let mut response = Response::new(whole(Bytes::from_static(b"a fault")));
                *response.status_mut() = StatusCode::from_u16(*status).unwrap();
                for (name, value) in headers {
                    response.headers_mut().insert(*name, value.parse().unwrap());
                }
                return response;
            }
            _ => {}
        }
        if seen.path == "/v2/" {
            return Response::new(whole(Bytes::from_static(b"{}")));
        }
        let item = self.items.lock().unwrap().get(&seen.path).cloned();
        let Some(item) = item else {
            let mut response = Response::new(whole(Bytes::from_static(b"{}")));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        self.good(&item, &seen, play, request.method())
    }

    fn note(&self, request: &Request<Incoming>) -> Seen {
        let mut all = self.seen.lock().unwrap();
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let seen = Seen {
            nth: all.iter().filter(|seen| seen.method == method && seen.path == path).count(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            method,
            path,
        };
        all.push(seen.clone());
        seen
    }

    fn good(self: Arc<Self>, item: &Item, seen: &Seen, play: Play, method: &Method) -> Response<Body> {
        let mut response = Response::builder().header(header::CONTENT_TYPE, &item.media_type);
        if let Some(digest) = &item.digest {
            response = response.header("docker-content-digest", digest);
        }
        let offset = match play {
            Play::NoRange | Play::Unsized | Play::Gzip | Play::Other(_) => None,
            _ => seen.range().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()),
        };
        let mut bytes = item.bytes.clone();
        if let Some(offset) = offset {
            if offset >= bytes.len() {
                return response.status(416).body(whole(Bytes::new())).unwrap();
            }
            let range = format!("bytes {offset}-{}/{}", bytes.len() - 1, bytes.len());
            response = response.status(206).header(header::CONTENT_RANGE, range);
            bytes = bytes.slice(offset..);
        }
        match &play {
            Play::Other(other) => bytes = Bytes::copy_from_slice(other),
            Play::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&bytes).unwrap();
                bytes = encoder.finish().unwrap().into();
                response = response.header(header::CONTENT_ENCODING, "gzip");
            }
            _ => {}
        }
        if !matches!(play, Play::Unsized) {
            response = response.header(header::CONTENT_LENGTH, bytes.len());
        }
        if method == Method::HEAD {
            return response.body(whole(Bytes::new())).unwrap();
        }
        response.body(self.stream(&bytes, play)).unwrap()
    }

    fn stream(self: Arc<Self>, bytes: &Bytes, play: Play) -> Body {
        let stop = match &play {
            Play::Cut(after) | Play::Hold(after, _) => (*after).min(bytes.len()),
            _ => bytes.len(),
        };
        let first = pieces(&bytes.slice(..stop));
        let rest = match &play {
            Play::Cut(_) => Vec::new(),
            _ => pieces(&bytes.slice(stop..)),
        };
        let cuts = matches!(play, Play::Cut(_));
        let gate = match play {
            Play::Hold(_, gate) => Some(gate),
            _ => None,
        };
        let wait = async move {
            match gate {
                Some(gate) => gate.pass().await,
                // Lets what was given so far leave before the connection breaks.
                None if cuts => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                None => {}
            }
            if cuts { Some(Err(io::Error::from(io::ErrorKind::ConnectionReset))) } else { None }
        };
        let waited = futures_util::stream::once(wait).filter_map(std::future::ready);
        let good = |piece| Ok::<Bytes, io::Error>(piece);
        let all = futures_util::stream::iter(first.into_iter().map(good))
            .chain(waited)
            .chain(futures_util::stream::iter(rest.into_iter().map(good)));
        let counted = all.map(move |piece| {
            piece.map(|piece| {
                self.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                Frame::data(piece)
            })
        });
        BodyExt::boxed(StreamBody::new(sync(counted)))
    }
}

/// A stream that is only ever polled by one, as something that may be shared.
fn sync<S: futures_util::Stream + Send + 'static>(
    stream: S,
) -> impl futures_util::Stream<Item = S::Item> + Send + Sync + 'static {
    let stream = Mutex::new(Box::pin(stream));
    futures_util::stream::poll_fn(move |cx| stream.lock().unwrap().as_mut().poll_next(cx))
}

fn pieces(bytes: &Bytes) -> Vec<Bytes> {
    (0..bytes.len()).step_by(PIECE).map(|start| bytes.slice(start..bytes.len().min(start + PIECE))).collect()
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
