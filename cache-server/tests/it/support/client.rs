//! A client that asks one thing per connection and tells exactly what came.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::PATIENCE;

/// Asks one server.
#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    headers: Vec<(&'static str, String)>,
}

/// An answer, as far as it came.
#[derive(Clone)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Whether the body came to its announced end.
    pub complete: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(300)]);
        write!(
            formatter,
            "{} {:?}, {} bytes, complete: {}, {text:?}",
            self.status,
            self.headers,
            self.body.len(),
            self.complete
        )
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| unreachable!("{error}: {self:?}"))
    }

    /// The code of an error as the spec describes it.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether it is a whole answer with exactly these bytes.
    #[track_caller]
    pub(crate) fn assert_is(&self, status: u16, body: &[u8]) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.complete, "the body ended early: {self:?}");
        assert!(self.body == body, "other bytes than the {} expected: {self:?}", body.len());
    }
}

/// An answer that has begun.
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    read: Vec<u8>,
}

impl Reply {
    /// Reads until at least so many bytes are there.
    pub(crate) async fn read(&mut self, least: usize) {
        while self.read.len() < least {
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("bytes should come");
            let frame = frame.expect("more bytes should come").expect("the body should go on");
            self.read.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    pub(crate) fn received(&self) -> &[u8] {
        &self.read
    }

    /// Reads to the end.
    pub(crate) async fn rest(mut self) -> Answer {
        let complete = loop {
            match timeout(PATIENCE, self.body.frame()).await.expect("the body should end") {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => self.read.extend_from_slice(&frame.into_data().unwrap()),
            }
        };
        Answer { status: self.status.as_u16(), headers: self.headers, body: self.read, complete }
    }
}

impl Client {
    pub(crate) const fn to(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new() }
    }

    /// The same with one more header.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name, value.to_owned()));
        Self { headers, ..self.clone() }
    }

    pub(crate) async fn open(&self, method: &str, path: &str) -> Reply {
        let opened = timeout(PATIENCE, self.send(method, path)).await;
        opened.unwrap_or_else(|_| unreachable!("{method} {path} should be answered"))
    }

    async fn send(&self, method: &str, path: &str) -> Reply {
        self.try_send(method, path).await.unwrap()
    }

    async fn try_send(&self, method: &str, path: &str) -> hyper::Result<Reply> {
        self.try_send_with(method, path, Bytes::new()).await
    }

    async fn try_send_with(&self, method: &str, path: &str, body: Bytes) -> hyper::Result<Reply> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !self.headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let response = sender.send_request(request.body(Full::new(body)).unwrap()).await?;
        let (head, body) = response.into_parts();
        Ok(Reply { status: head.status, headers: head.headers, body, read: Vec::new() })
    }

    /// GET; an answer of which not even the header came has status 0.
    pub(crate) async fn try_get(&self, path: &str) -> Answer {
        match timeout(PATIENCE, self.try_send("GET", path)).await.expect("an answer or an end should come") {
            Ok(reply) => reply.rest().await,
            Err(_) => Answer { status: 0, headers: HeaderMap::new(), body: Vec::new(), complete: false },
        }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str) -> Answer {
        self.open(method, path).await.rest().await
    }

    /// POST of a form.
    pub(crate) async fn post_form(&self, path: &str, form: &str) -> Answer {
        let client = self.with("content-type", "application/x-www-form-urlencoded");
        let sent = timeout(PATIENCE, client.try_send_with("POST", path, Bytes::copy_from_slice(form.as_bytes()))).await;
        sent.expect("a form should be answered").unwrap().rest().await
    }

    /// A request with a body.
    pub(crate) async fn send_body(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let sent = timeout(PATIENCE, self.try_send_with(method, path, Bytes::copy_from_slice(body))).await;
        sent.unwrap_or_else(|_| unreachable!("{method} {path} should be answered")).unwrap().rest().await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path).await
    }

    /// GET with a range.
    pub(crate) async fn range(&self, path: &str, range: &str) -> Answer {
        self.with("range", &format!("bytes={range}")).get(path).await
    }
}
