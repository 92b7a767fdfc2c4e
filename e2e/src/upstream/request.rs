//! An HTTP/1.1 request as an upstream sees it, read by hand: a fault may need to spoil any byte of the exchange.

use anyhow::{Context as _, Result, bail, ensure};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// The longest head, and the longest body, that is read.
const LONGEST: u64 = 64 * 1024;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The host name of the site that it reached.
    pub host: String,
    /// The method.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The query, empty where there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body (token requests have one).
    pub body: Vec<u8>,
}

impl Request {
    /// Reads the next request of a connection; `None` when the client has closed it.
    pub async fn read(host: &str, connection: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Self>> {
        let Some(head) = read_head(connection).await? else {
            return Ok(None);
        };
        let mut lines = head.lines();
        let start = lines.next().context("a request without a first line")?;
        let mut words = start.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            bail!("not a request line: {start:?}");
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            host: host.to_owned(),
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: parse_headers(lines)?,
            body: Vec::new(),
        };
        request.read_body(connection).await?;
        Ok(Some(request))
    }

    /// A header's value as text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `Authorization` header.
    #[must_use]
    pub fn authorization(&self) -> Option<&str> {
        self.header(&AUTHORIZATION)
    }

    async fn read_body(&mut self, connection: &mut (impl AsyncBufRead + Unpin)) -> Result<()> {
        let Some(length) = self.header(&CONTENT_LENGTH) else {
            return Ok(());
        };
        let length: u64 = length.parse().context("failed to read a request's Content-Length")?;
        ensure!(length <= LONGEST, "a request body of {length} bytes");
        connection.take(length).read_to_end(&mut self.body).await.context("failed to read a request's body")?;
        Ok(())
    }
}

/// Reads up to and with the empty line that ends a head; `None` at a clean end before the first byte.
pub async fn read_head(connection: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>> {
    let mut head = Vec::new();
    let mut limited = connection.take(LONGEST);
    loop {
        let line = limited.read_until(b'\n', &mut head).await.context("failed to read a head")?;
        if line == 0 {
            ensure!(head.is_empty(), "a head broken off after {} bytes", head.len());
            return Ok(None);
        }
        if head.ends_with(b"\r\n\r\n") {
            return String::from_utf8(head).context("a head that is not text").map(Some);
        }
    }
}

/// Reads header lines up to the empty one.
pub fn parse_headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        let name = HeaderName::from_bytes(name.as_bytes()).context("a bad header name")?;
        let value = HeaderValue::from_str(value.trim()).context("a bad header value")?;
        headers.append(name, value);
    }
    Ok(headers)
}
