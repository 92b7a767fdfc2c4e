//! A proxy in front of the apiserver that ends its client at a chosen moment: the k-th write is carried out, its answer is
//! lost, and the client is killed before it can do anything else. Plain HTTP comes in, TLS with a token goes out; watches
//! are passed on as they come.
//!
//! Counted are requests that changed something, except of Leases and events: those change with the clock.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Cluster, bearer};

/// Why a request was not answered; the connection then just closes.
#[derive(Debug)]
enum Broken {
    /// The client's side broke off.
    Request(hyper::Error),
    /// The apiserver's side did.
    Answer(reqwest::Error),
    /// No response can be made of the answer.
    Response(http::Error),
    /// The answer is to be lost.
    Lost,
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => error.fmt(formatter),
            Self::Answer(error) => error.fmt(formatter),
            Self::Response(error) => error.fmt(formatter),
            Self::Lost => formatter.write_str("this answer is lost"),
        }
    }
}

impl Error for Broken {}

/// The proxy; dropping it closes its port.
#[derive(Debug)]
pub struct CrashProxy {
    address: SocketAddr,
    way: Arc<Way>,
    accepting: JoinHandle<Infallible>,
}

/// The way to the apiserver, and what went along it.
#[derive(Debug)]
struct Way {
    client: reqwest::Client,
    token: String,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    victim: Option<Pid>,
    /// How many writes are left until the kill.
    left: Option<usize>,
    killed: bool,
    last_write: Instant,
}

impl CrashProxy {
    /// Listens on a port of loopback; whoever comes is, to the apiserver, the owner of this token.
    pub async fn start(cluster: &Cluster, token: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on loopback")?;
        let address = listener.local_addr().context("the proxy has no address")?;
        let books = Books { victim: None, left: None, killed: false, last_write: Instant::now() };
        let way = Arc::new(Way { client: bearer::client(cluster)?, token, books: Mutex::new(books) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&way)));
        Ok(Self { address, way, accepting })
    }

    /// Where it listens: `http://127.0.0.1:…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Names the process that [`Self::arm`] is about.
    pub fn watch_over(&self, process: u32) {
        let mut books = self.way.books();
        books.victim = i32::try_from(process).ok().and_then(Pid::from_raw);
        books.killed = false;
    }

    /// Kills the process after its `count`-th write from now, once. Nothing: lets it live.
    pub fn arm(&self, count: Option<usize>) {
        self.way.books().left = count;
    }

    /// Whether the process that is watched over has been killed.
    #[must_use]
    pub fn has_killed(&self) -> bool {
        self.way.books().killed
    }

    /// For how long nothing was written.
    #[must_use]
    pub fn quiet_for(&self) -> Duration {
        self.way.books().last_write.elapsed()
    }
}

impl Drop for CrashProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, way: Arc<Way>) -> Infallible {
    loop {
        // Refused connections are the client's to notice.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&way)));
        }
    }
}

async fn serve(stream: TcpStream, way: Arc<Way>) {
    let service = service_fn(move |request| {
        let way = Arc::clone(&way);
        async move { way.pass(request).await }
    });
    // A client that was killed, and an answer that we withhold, both end a connection early.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Way {
    /// Passes one request on. An error closes the connection without an answer.
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Broken>>, Broken> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let counts = is_counted(&head.method, head.uri.path());
        let answer = self
            .client
            .request(head.method, bearer::url(path))
            .headers(passed_on(head.headers))
            .bearer_auth(&self.token)
            .body(body.collect().await.map_err(Broken::Request)?.to_bytes())
            .send()
            .await
            .map_err(Broken::Answer)?;
        if counts && answer.status().is_success() && self.books().wrote() {
            // What is lost is only the answer: the write has been carried out when its head is here.
            return Err(Broken::Lost);
        }
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = passed_on(answer.headers().clone());
        }
        let pieces = answer.bytes_stream().map_ok(Frame::data).map_err(Broken::Answer);
        response.body(BodyExt::boxed_unsync(StreamBody::new(pieces))).map_err(Broken::Response)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Enters a write; true if the process has been killed for it.
    fn wrote(&mut self) -> bool {
        self.last_write = Instant::now();
        self.left = self.left.map(|left| left.saturating_sub(1));
        if self.left != Some(0) {
            return false;
        }
        self.left = None;
        let Some(victim) = self.victim else { return false };
        self.killed = kill_process(victim, Signal::KILL).is_ok();
        self.killed
    }
}

fn is_counted(method: &Method, path: &str) -> bool {
    let changes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    changes && !path.contains("/leases") && !path.contains("/events")
}

/// The headers without those of the connection they came by.
fn passed_on(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, AUTHORIZATION] {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_and_events_do_not_count() {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/entrepot-system/leases/entrepot-operator";
        assert!(!is_counted(&Method::PUT, lease));
        assert!(!is_counted(&Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events"));
        assert!(!is_counted(&Method::GET, "/api/v1/namespaces/entrepot-system/secrets"));
        assert!(is_counted(&Method::PATCH, "/api/v1/namespaces/entrepot-system/secrets/cache-default"));
    }
}
