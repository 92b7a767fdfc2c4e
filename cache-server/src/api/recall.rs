//! Answers from memory that were given a moment ago, under the bytes of their requests.
//!
//! An answer is given again only to what can be told from nothing but those bytes, the port, and what all clients share: not to
//! who logs in, and not to who comes through a proxy that speaks for others. It holds as long as neither the configuration nor
//! anything that was pushed has changed, and never for longer than [`HOLDS`], so that every time limit is kept to within that.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, Version, header};
use quick_cache::{Weighter, sync::Cache};

use super::{
    body::Body,
    origin,
    report::{Address, Report, Said},
};
use crate::{
    connector::{Connection, recall},
    metrics::Counters,
    server::{Current, Server},
};

/// For how long an answer is given again. A busy request is thus answered anew ten times in a second.
const HOLDS: Duration = Duration::from_millis(100);
/// How many answers are remembered, about.
const ANSWERS: usize = 1024;
/// Memory for them, in bytes.
const MEMORY: u64 = 16 * 1024 * 1024;

/// A request with one of these says more than what it asks for, or comes to an answer that another must not have.
const UNLIKE: [HeaderName; 7] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::EXPECT,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The answers of one port.
#[derive(Clone)]
pub(super) struct Answers(Arc<Cache<Box<[u8]>, Arc<Remembered>, BySize>>);

/// What an answer depends on besides its request, as it was before the request was looked at.
pub(super) struct Basis {
    configuration: Weak<Current>,
    changes: u64,
    peer: SocketAddr,
}

/// An answer.
struct Remembered {
    given: Instant,
    basis: Basis,
    head: Vec<u8>,
    body: Bytes,
    said: Said,
    counters: Counters,
}

#[derive(Clone)]
struct BySize;

impl Weighter<Box<[u8]>, Arc<Remembered>> for BySize {
    fn weight(&self, request: &Box<[u8]>, answer: &Arc<Remembered>) -> u64 {
        (request.len() + size_of::<Remembered>() + answer.head.len() + answer.body.len()) as u64
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Cache::with_weighter(ANSWERS, MEMORY, BySize)))
    }
}

impl Basis {
    /// What holds now.
    pub(super) fn now(server: &Server, current: &Arc<Current>, peer: SocketAddr) -> Self {
        Self { configuration: Arc::downgrade(current), changes: server.changes(), peer }
    }

    /// Whether it is still the same, for a client at `peer`.
    fn holds(&self, server: &Server, peer: SocketAddr) -> bool {
        let current = server.current_guard();
        std::ptr::eq(self.configuration.as_ptr(), Arc::as_ptr(&current))
            && self.changes == server.changes()
            && !origin::is_trusted(peer, &current.settings.server.trusted_proxies)
    }
}

impl Answers {
    /// Remembers an answer, if another client that sends the same may have it as it is.
    pub(super) fn remember(
        &self,
        (server, connection): (&Server, &Connection),
        basis: Basis,
        asked: &Request<()>,
        report: &Report,
        response: &Response<Body>,
    ) {
        if !report.said().is_hit()
            || asked.version() != Version::HTTP_11
            || UNLIKE.iter().any(|name| asked.headers().contains_key(name))
        {
            return;
        }
        let (Some(body), Some(request)) = (response.body().in_memory(), connection.take_request()) else { return };
        if !basis.holds(server, basis.peer) {
            return;
        }
        let is_head = *asked.method() == Method::HEAD;
        let Some(head) = head(response.headers(), (!is_head).then_some(body.len())) else { return };
        let said = report.said().clone();
        let counters = server.metrics.counters(&said.labels());
        let answer = Remembered { given: Instant::now(), basis, head, body, said, counters };
        self.0.insert(request.as_ref().into(), Arc::new(answer));
    }

    /// The answer to a request, if it holds.
    pub(super) fn recall(&self, server: &Arc<Server>, peer: SocketAddr, request: &[u8]) -> Option<Recalled> {
        let answer = self.0.get(request)?;
        let started = Instant::now();
        let holds = started.duration_since(answer.given) < HOLDS && answer.basis.holds(server, peer);
        let client = (peer.ip().to_canonical(), Some(peer.port()));
        holds.then(|| Recalled { server: Arc::clone(server), answer, client, started, sent: 0 })
    }
}

/// Status line and headers as they go over the wire. Nothing if they do not fit a body of `length` bytes.
fn head(headers: &HeaderMap, length: Option<usize>) -> Option<Vec<u8>> {
    let told = headers.get(header::CONTENT_LENGTH).map(|told| told.to_str().ok()?.parse::<usize>().ok());
    let is_told = match (told, length) {
        (Some(told), Some(length)) if told != Some(length) => return None,
        (None, None) => return None,
        (told, _) => told.is_some(),
    };
    let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let mut line = |name: &str, value: &[u8]| {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    for (name, value) in headers {
        line(name.as_str(), value.as_bytes());
    }
    if let (false, Some(length)) = (is_told, length) {
        line(header::CONTENT_LENGTH.as_str(), length.to_string().as_bytes());
    }
    line(header::DATE.as_str(), httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    head.extend_from_slice(b"\r\n");
    Some(head)
}

/// An answer that is given again; it is logged and counted when this is dropped.
pub struct Recalled {
    server: Arc<Server>,
    answer: Arc<Remembered>,
    client: Address,
    started: Instant,
    /// Bytes of head and body that have left.
    sent: usize,
}

impl recall::Recalled for Recalled {
    fn head(&self) -> &[u8] {
        &self.answer.head
    }

    fn body(&self) -> &[u8] {
        &self.answer.body
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }
}

impl Drop for Recalled {
    fn drop(&mut self) {
        let Remembered { head, body, said, counters, .. } = &*self.answer;
        let sent = self.sent.saturating_sub(head.len());
        if sent == body.len() {
            counters.count(sent as u64);
            said.log(self.client, None, sent as u64, self.started);
        } else {
            let said = said.broken_off();
            self.server.metrics.answered(&said.labels(), sent as u64);
            said.log(self.client, Some("the connection ended before the answer did"), sent as u64, self.started);
        }
    }
}
