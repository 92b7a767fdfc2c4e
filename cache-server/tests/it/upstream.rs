//! The upstream client against real listeners on loopback that play registries, token servers and storages.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_server::{
    credentials::{Credentials, Secret},
    oci::{Algorithm, Digest, ImageName, MediaType, Reference},
    upstream::{Availability, Error, Misfit, Patience, RealmRefusal, Slow, Upstream, UpstreamConfig, Violation},
};
use crds::{names::Span, registry_mirror::StallLimit};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpListener};

type Body = BoxBody<Bytes, Infallible>;
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// A request as a listener saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    uri: String,
    headers: HeaderMap,
    /// How many came before it.
    number: usize,
}

impl Seen {
    fn authorization(&self) -> Option<&str> {
        self.headers.get(AUTHORIZATION).map(|value| value.to_str().expect("text"))
    }
}

/// A listener that answers as its script says, and keeps what it saw.
struct Listener {
    port: u16,
    accepted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Listener {
    async fn start<F, A>(script: F) -> Self
    where
        F: Fn(Seen) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(None, Arc::new(move |seen| Box::pin(script(seen)) as Answering)).await
    }

    async fn serve(
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: Arc<dyn Fn(Seen) -> Answering + Send + Sync>,
    ) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let (accepted, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let listener = Self { port, accepted: Arc::clone(&accepted), seen: Arc::clone(&seen) };
        tokio::spawn(async move {
            loop {
                let (connection, _) = socket.accept().await.expect("a connection");
                accepted.fetch_add(1, Ordering::SeqCst);
                let (script, seen, tls) = (Arc::clone(&script), Arc::clone(&seen), tls.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let mut all = seen.lock().expect("no panic elsewhere");
                    let one = Seen {
                        method: request.method().to_string(),
                        uri: request.uri().to_string(),
                        headers: request.headers().clone(),
                        number: all.len(),
                    };
                    all.push(one.clone());
                    let answering = script(one);
                    async move { Ok::<_, Infallible>(answering.await) }
                });
                tokio::spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(server.serve_connection(TokioIo::new(connection), service).await),
                        Some(tls) => {
                            if let Ok(connection) = tls.accept(connection).await {
                                drop(server.serve_connection(TokioIo::new(connection), service).await);
                            }
                        }
                    }
                });
            }
        });
        listener
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic elsewhere").clone()
    }

    fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.uri.contains(part)).count()
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn upstream(&self) -> Upstream {
        self.upstream_with(|_| {})
    }

    fn upstream_with(&self, change: impl FnOnce(&mut UpstreamConfig)) -> Upstream {
        let mut config = UpstreamConfig::anonymous(self.url().parse().expect("a URL"));
        change(&mut config);
        Upstream::new(config).expect("an upstream")
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into()).boxed()).expect("a response")
}

fn streamed(headers: &[(&str, &str)], pieces: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Response<Body> {
    answer(200, headers, "").map(|_| BodyExt::boxed(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))))))
}

fn challenge(realm: &str) -> Response<Body> {
    answer(401, &[("www-authenticate", &format!(r#"Bearer realm="{realm}",service="here",scope="none""#))], "denied")
}

fn image() -> ImageName {
    "library/nginx".parse().expect("a name")
}

fn tag() -> Reference {
    "latest".parse().expect("a tag")
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, CONTENT)
}

fn credentials() -> Credentials {
    Credentials { username: "reader".into(), password: Secret::new("hunter2") }
}

const CONTENT: &[u8] = b"what a blob may contain";

async fn read(upstream: &Upstream, offset: u64) -> Result<(u64, Option<u64>, Vec<u8>), Error> {
    let blob = upstream.get_blob(&image(), &digest(), offset, Patience::Long).await?;
    let (mut body, mut all) = (blob.body, Vec::new());
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok((blob.start, blob.total, all))
}

async fn head(upstream: &Upstream) -> Result<(), Error> {
    upstream.head_manifest(&image(), &tag(), Patience::Long).await.map(drop)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A registry whose token server is at its own host; it takes only the tokens with a number of at least `oldest`.
async fn with_tokens(life: u64, oldest: Arc<AtomicUsize>) -> Listener {
    let made = Arc::new(AtomicUsize::new(0));
    Listener::start(move |seen| {
        let (oldest, made) = (Arc::clone(&oldest), Arc::clone(&made));
        async move {
            if seen.uri.starts_with("/token") {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let number = made.fetch_add(1, Ordering::SeqCst) + 1;
                return answer(200, &[], format!(r#"{{"token":"{number}","expires_in":{life}}}"#));
            }
            let number = seen.authorization().and_then(|text| text.strip_prefix("Bearer ")?.parse().ok()).unwrap_or(0);
            if number >= oldest.load(Ordering::SeqCst) {
                return answer(200, &[("content-type", MediaType::OCI_INDEX.as_str())], "{}");
            }
            let host = seen.headers["host"].to_str().expect("text");
            challenge(&format!("http://{host}/token"))
        }
    })
    .await
}

#[tokio::test]
async fn one_token_serves_all_who_ask_at_once() {
    let registry = with_tokens(300, Arc::new(AtomicUsize::new(1))).await;
    let upstream = registry.upstream_with(|config| config.credentials = Some(credentials()));
    for outcome in join_all((0..20).map(|_| head(&upstream))).await {
        outcome.expect("an answer");
    }
    assert_eq!(registry.count("/token"), 1);
    let seen = registry.seen();
    let token = seen.iter().find(|seen| seen.uri.starts_with("/token")).expect("a token request");
    assert_eq!(token.uri, "/token?service=here&scope=repository%3Alibrary%2Fnginx%3Apull");
    assert_eq!(token.authorization(), Some("Basic cmVhZGVyOmh1bnRlcjI="));
    assert!(seen.iter().all(|seen| seen.headers["accept-encoding"] == "identity"));

    let before = registry.seen().len();
    head(&upstream).await.expect("an answer");
    assert_eq!(registry.seen().len(), before + 1, "a known token is sent at once");
    assert!(!format!("{upstream:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_failed_token_request_is_shared_by_those_who_waited() {
    let registry = Listener::start(|seen| async move {
        if seen.uri.starts_with("/token") {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return answer(403, &[], "");
        }
        challenge(&format!("http://{}/token", seen.headers["host"].to_str().expect("text")))
    })
    .await;
    let upstream = registry.upstream();
    for outcome in join_all((0..10).map(|_| head(&upstream))).await {
        assert!(matches!(outcome, Err(Error::Denied)), "{outcome:?}");
    }
    assert_eq!(registry.count("/token"), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let registry = with_tokens(3, Arc::new(AtomicUsize::new(1))).await;
    let upstream = registry.upstream();
    head(&upstream).await.expect("an answer");
    tokio::time::sleep(Duration::from_millis(2420)).await;
    head(&upstream).await.expect("an answer");
    until("the token is renewed", || registry.count("/token") == 2).await;
    assert_eq!(registry.seen().iter().filter(|seen| seen.authorization() == Some("Bearer 1")).count(), 2);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let oldest = Arc::new(AtomicUsize::new(1));
    let registry = with_tokens(300, Arc::clone(&oldest)).await;
    let upstream = registry.upstream();
    head(&upstream).await.expect("an answer");
    oldest.store(2, Ordering::SeqCst);
    head(&upstream).await.expect("an answer with the second token");
    assert_eq!(registry.count("/token"), 2);
    oldest.store(100, Ordering::SeqCst);
    let denied = head(&upstream).await;
    assert!(matches!(denied, Err(Error::Denied)), "{denied:?}");
    assert_eq!(registry.count("/token"), 3);
    assert_eq!(upstream.availability(), Availability::Available);
}

#[tokio::test]
async fn a_basic_challenge_is_answered_by_the_password() {
    let registry = Listener::start(|seen| async move {
        match seen.authorization() {
            Some("Basic cmVhZGVyOmh1bnRlcjI=") => answer(200, &[], "{}"),
            _ => answer(401, &[("www-authenticate", r#"Basic realm="r""#)], ""),
        }
    })
    .await;
    head(&registry.upstream_with(|config| config.credentials = Some(credentials()))).await.expect("an answer");
    assert!(matches!(head(&registry.upstream()).await, Err(Error::Denied)));
}

#[tokio::test]
async fn a_foreign_realm_gets_neither_credentials_nor_a_connection_inside() {
    let victim = Listener::start(|_| async { answer(200, &[], r#"{"token":"t"}"#) }).await;
    let port = victim.port;
    for realm in [
        format!("https://127.0.0.2:{port}/token"),
        format!("http://127.0.0.2:{port}/token"),
        format!("https://localhost:{port}/token"),
        format!("http://localhost:{port}/token"),
        format!("https://[::1]:{port}/token"),
        format!("https://[::ffff:127.0.0.1]:{port}/token"),
        "https://169.254.169.254/token".to_owned(),
        "https://auth.evil.example/token".to_owned(),
    ] {
        let named = realm.clone();
        let registry = Listener::start(move |_| std::future::ready(challenge(&named))).await;
        let outcome = head(&registry.upstream_with(|config| config.credentials = Some(credentials()))).await;
        assert!(matches!(outcome, Err(Error::ForbiddenRealm { .. })), "{realm}: {outcome:?}");
        if !realm.contains("evil") {
            let outcome = head(&registry.upstream()).await;
            assert!(
                matches!(outcome, Err(Error::ForbiddenRealm { .. } | Error::ForbiddenAddress { .. })),
                "{realm}: {outcome:?}"
            );
        }
    }
    assert_eq!(victim.accepted(), 0);
}

#[tokio::test]
async fn a_foreign_realm_is_named_in_the_refusal() {
    let registry = Listener::start(|_| async { challenge("https://auth.evil.example/token?secret=1") }).await;
    let outcome = head(&registry.upstream_with(|config| config.credentials = Some(credentials()))).await;
    match outcome {
        Err(Error::ForbiddenRealm { host, why }) => {
            assert_eq!((host.as_str(), why), ("auth.evil.example", RealmRefusal::Foreign));
        }
        other => unreachable!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_realm_is_not_remembered() {
    let registry = Listener::start(|seen| async move {
        let home = format!("http://{}/token", seen.headers["host"].to_str().expect("text"));
        match (seen.number, seen.authorization()) {
            (0, _) => challenge("https://auth.evil.example/token"),
            _ if seen.uri.starts_with("/token") => answer(200, &[], r#"{"token":"t"}"#),
            (_, Some("Bearer t")) => answer(200, &[], "{}"),
            _ => challenge(&home),
        }
    })
    .await;
    let upstream = registry.upstream_with(|config| config.credentials = Some(credentials()));
    assert!(matches!(head(&upstream).await, Err(Error::ForbiddenRealm { .. })));
    head(&upstream).await.expect("an answer");
}

#[tokio::test]
async fn a_redirect_drops_the_authorization() {
    let storage = Listener::start(|_| async { answer(200, &[], CONTENT) }).await;
    let target = format!("{}/blob?signature=secret", storage.url());
    let registry = Listener::start(move |seen| {
        let home = format!("http://{}/token", seen.headers["host"].to_str().expect("text"));
        std::future::ready(match seen.authorization() {
            _ if seen.uri.starts_with("/token") => answer(200, &[], r#"{"token":"t"}"#),
            None => challenge(&home),
            Some(_) if seen.uri.ends_with("/moved") => answer(302, &[("location", &target)], ""),
            Some(_) => answer(307, &[("location", "/moved")], ""),
        })
    })
    .await;
    let (_, total, bytes) =
        read(&registry.upstream_with(|config| config.credentials = Some(credentials())), 0).await.expect("a blob");
    assert_eq!((total, bytes.as_slice()), (Some(CONTENT.len() as u64), CONTENT));
    assert!(registry.seen().iter().any(|seen| seen.uri == "/moved" && seen.authorization().is_some()));
    assert_eq!(storage.seen().len(), 1);
    assert_eq!(storage.seen()[0].authorization(), None);
}

#[tokio::test]
async fn a_redirect_inside_needs_the_administrators_word() {
    let storage = Listener::start(|_| async { answer(200, &[], CONTENT) }).await;
    for host in ["localhost", "127.0.0.2", "[::ffff:127.0.0.1]"] {
        let target = format!("http://{host}:{}/", storage.port);
        let registry = Listener::start(move |_| std::future::ready(answer(307, &[("location", &target)], ""))).await;
        let refused = read(&registry.upstream(), 0).await;
        assert!(matches!(refused, Err(Error::ForbiddenAddress { .. })), "{host}: {refused:?}");
        assert_eq!(storage.accepted(), 0, "{host}");
        if host == "localhost" {
            let wrong_port = registry.upstream_with(|config| config.redirect_hosts = vec!["localhost:1".into()]);
            assert!(matches!(read(&wrong_port, 0).await, Err(Error::ForbiddenAddress { .. })));
            assert_eq!(storage.accepted(), 0);
        }
    }
    let target = format!("http://localhost:{}/", storage.port);
    let registry = Listener::start(move |_| std::future::ready(answer(307, &[("location", &target)], ""))).await;
    let listed = registry.upstream_with(|config| config.redirect_hosts = vec!["localhost".into()]);
    assert_eq!(read(&listed, 0).await.expect("a blob").2, CONTENT);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let registry = Listener::start(|_| async { answer(307, &[("location", "/again")], "") }).await;
    let outcome = read(&registry.upstream(), 0).await;
    assert!(matches!(outcome, Err(Error::TooManyRedirects { limit: 5 })), "{outcome:?}");
    assert_eq!(registry.seen().len(), 6);
}

#[tokio::test]
async fn a_body_that_stops_is_given_up_but_a_slow_reader_is_not() {
    let registry = Listener::start(|seen| async move {
        let first = stream::iter([Bytes::from_static(b"0123456789")]);
        match seen.number {
            0 => streamed(&[("content-length", "20")], first.chain(stream::pending())),
            _ => streamed(&[("content-length", "20")], first.clone().chain(first)),
        }
    })
    .await;
    let upstream = registry.upstream_with(|config| {
        config.limits.stall = StallLimit { window: Span::millis(200), bytes_per_second: 1024 };
    });
    let began = Instant::now();
    let outcome = read(&upstream, 0).await;
    assert!(matches!(outcome, Err(Error::Stalled)), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5));

    let mut blob = upstream.get_blob(&image(), &digest(), 0, Patience::Long).await.expect("a blob");
    let mut got = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        match blob.body.next().await {
            Some(piece) => got += piece.expect("bytes").len(),
            None => break,
        }
    }
    assert_eq!(got, 20);
}

#[tokio::test]
async fn a_header_has_its_time_and_less_with_a_copy() {
    let registry = Listener::start(|_| std::future::pending()).await;
    let upstream = registry.upstream_with(|config| {
        config.limits.header = Span::millis(1200);
        config.limits.header_with_copy = Span::millis(100);
    });
    for (patience, least, most) in [(Patience::Short, 100, 1100), (Patience::Long, 1200, 9000)] {
        let began = Instant::now();
        let outcome = upstream.head_manifest(&image(), &tag(), patience).await;
        assert!(matches!(outcome, Err(Error::TimedOut { what: Slow::Header })), "{outcome:?}");
        let millis = began.elapsed().as_millis();
        assert!((least..most).contains(&millis), "{patience:?}: {millis}");
    }
}

#[tokio::test]
async fn encodings_nobody_asked_for_are_undone() {
    let content: Bytes = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut gzip = async_compression::tokio::write::GzipEncoder::new(Vec::new());
    let mut zstd = async_compression::tokio::write::ZstdEncoder::new(Vec::new());
    let mut bare = async_compression::tokio::write::DeflateEncoder::new(Vec::new());
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zlib, &content).expect("memory");
    for writer in [&mut gzip as &mut (dyn tokio::io::AsyncWrite + Unpin), &mut zstd, &mut bare] {
        writer.write_all(&content).await.expect("memory");
        writer.shutdown().await.expect("memory");
    }
    for (name, encoded) in [
        ("gzip", gzip.into_inner()),
        ("zstd", zstd.into_inner()),
        ("deflate", bare.into_inner()),
        ("deflate", zlib.finish().expect("memory")),
    ] {
        let registry = Listener::start(move |seen| {
            let encoded = if seen.number == 1 { encoded[..encoded.len() / 2].to_vec() } else { encoded.clone() };
            std::future::ready(answer(200, &[("content-encoding", name)], encoded))
        })
        .await;
        let upstream = registry.upstream();
        let (start, total, bytes) = read(&upstream, 0).await.expect("a blob");
        assert_eq!((start, total), (0, None), "{name}");
        assert!(bytes == content, "{name}");
        assert!(read(&upstream, 0).await.is_err(), "{name}, half of it");
        assert_eq!(upstream.head_blob(&image(), &digest(), Patience::Long).await.expect("a size"), None, "{name}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_broken() {
    let registry = Listener::start(|_| async {
        // The pause lets the first half go out before the listener notices that it has no second one.
        let pause = stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Bytes::new()
        });
        streamed(&[("content-length", "20")], stream::iter([Bytes::from_static(b"0123456789")]).chain(pause))
    })
    .await;
    let upstream = registry.upstream();
    let mut body = upstream.get_blob(&image(), &digest(), 0, Patience::Long).await.expect("a blob").body;
    let mut pieces = Vec::new();
    while let Some(piece) = body.next().await {
        pieces.push(piece);
    }
    assert!(matches!(pieces.pop(), Some(Err(Error::Broken))));
    assert!(pieces.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_range_is_what_was_asked_for_or_a_new_beginning() {
    let registry = Listener::start(|seen| async move {
        let part = Bytes::from_static(&CONTENT[5..]);
        let range = format!("bytes 5-{}/{}", CONTENT.len() - 1, CONTENT.len());
        match (seen.number, seen.headers.get("range").map(|value| value.to_str().expect("text").to_owned())) {
            (0, Some(asked)) if asked == "bytes=5-" => answer(206, &[("content-range", &range)], part),
            (1, _) => answer(200, &[], CONTENT),
            (2, _) => answer(206, &[("content-range", "bytes 4-9/23")], part),
            (3, _) => answer(416, &[], ""),
            _ => answer(400, &[], ""),
        }
    })
    .await;
    let upstream = registry.upstream();
    let size = CONTENT.len() as u64;
    assert_eq!(read(&upstream, 5).await.expect("a part"), (5, Some(size), CONTENT[5..].to_vec()));
    assert_eq!(read(&upstream, 5).await.expect("all"), (0, Some(size), CONTENT.to_vec()));
    for _ in 0..2 {
        assert!(read(&upstream, 5).await.expect_err("no part").restart());
    }
}

#[tokio::test]
async fn answers_have_one_meaning_each() {
    type Row = (u16, &'static [(&'static str, &'static str)], fn(&Error) -> bool);
    let table: [Row; 10] = [
        (404, &[], |error| matches!(error, Error::NotFound)),
        (403, &[], |error| matches!(error, Error::Denied)),
        (401, &[], |error| matches!(error, Error::Denied)),
        (429, &[], |error| matches!(error, Error::RateLimited { retry_after: None })),
        (503, &[("retry-after", "7")], |error| {
            error.retry_after() == Some(Duration::from_secs(7)) && error.counts_for_breaker()
        }),
        (400, &[], |error| matches!(error, Error::Protocol(Violation::Status(400)))),
        (302, &[], |error| matches!(error, Error::Protocol(Violation::Location))),
        (200, &[("content-type", "text/html; charset=utf-8")], |error| {
            matches!(error, Error::WrongContent(Misfit::Html))
        }),
        (200, &[("content-encoding", "br")], |error| matches!(error, Error::Protocol(Violation::Encoding))),
        (
            200,
            &[("docker-content-digest", "sha256:0000000000000000000000000000000000000000000000000000000000000000")],
            |error| matches!(error, Error::WrongContent(Misfit::Digest { .. })),
        ),
    ];
    for (status, headers, expected) in table {
        let registry = Listener::start(move |_| std::future::ready(answer(status, headers, "an answer"))).await;
        let error = registry.upstream().get_manifest(&image(), &tag(), Patience::Long).await.expect_err("an error");
        assert!(expected(&error), "{status} {headers:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_registry_without_head_is_asked_by_get() {
    let registry = Listener::start(|seen| async move {
        match seen.method.as_str() {
            "HEAD" => answer(405, &[], ""),
            _ => answer(200, &[("content-type", MediaType::OCI_INDEX.as_str())], CONTENT),
        }
    })
    .await;
    let upstream = registry.upstream();
    let manifest = upstream.head_manifest(&image(), &tag(), Patience::Long).await.expect("a manifest");
    assert_eq!(manifest.digest, Some(digest()));
    assert_eq!(
        upstream.head_blob(&image(), &digest(), Patience::Long).await.expect("a blob"),
        Some(CONTENT.len() as u64)
    );
}

#[tokio::test]
async fn a_manifest_has_a_largest_size() {
    let registry = Listener::start(|_| async { answer(200, &[], vec![b' '; 8 * 1024 * 1024 + 1]) }).await;
    let outcome = registry.upstream().get_manifest(&image(), &tag(), Patience::Long).await;
    assert!(matches!(outcome, Err(Error::WrongContent(Misfit::TooLarge { .. }))), "{outcome:?}");
}

#[tokio::test]
async fn a_failing_upstream_is_left_alone_until_a_probe_finds_it_back() {
    let registry =
        Listener::start(|seen| async move { answer(if seen.number < 3 { 503 } else { 404 }, &[], "") }).await;
    let upstream = registry.upstream_with(|config| {
        config.breaker.failures = 2;
        config.breaker.min_open = Span::millis(500);
        config.breaker.max_open = Span::millis(600);
    });
    for _ in 0..2 {
        assert!(matches!(head(&upstream).await, Err(Error::Unavailable { status: 503, .. })));
    }
    for _ in 0..10 {
        let outcome = head(&upstream).await;
        assert!(matches!(outcome, Err(Error::CircuitOpen { .. })), "{outcome:?}");
    }
    assert_eq!(registry.seen().len(), 2);
    assert!(matches!(upstream.availability(), Availability::Down { last_error, .. } if last_error.contains("503")));
    // The first probe fails, the second finds it back.
    until("the breaker closes", || upstream.availability() == Availability::Available).await;
    assert_eq!(registry.count("/v2/"), 4);
    assert!(registry.seen()[2..].iter().all(|seen| seen.uri == "/v2/"));
    assert!(matches!(head(&upstream).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn a_refused_connection_says_so_and_counts() {
    let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
    let upstream = Upstream::new(UpstreamConfig::anonymous(format!("http://127.0.0.1:{port}").parse().expect("a URL")))
        .expect("an upstream");
    let error = head(&upstream).await.expect_err("nobody there");
    assert!(matches!(&error, Error::Unreachable { host, .. } if host == "127.0.0.1"), "{error:?}");
    assert!(error.counts_for_breaker());
    assert!(!format!("{error:?}").contains("manifests"), "{error:?}");
}

#[tokio::test]
async fn a_rate_limit_is_kept_and_its_pause_respected() {
    let registry = Listener::start(|seen| async move {
        let status = if seen.number == 0 { 200 } else { 429 };
        answer(
            status,
            &[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "7;w=21600"), ("retry-after", "30")],
            "Too Many Requests\n",
        )
    })
    .await;
    let upstream = registry.upstream();
    assert_eq!(upstream.rate_limit(), None);
    head(&upstream).await.expect("an answer");
    let limit = upstream.rate_limit().expect("a limit");
    assert_eq!((limit.limit, limit.remaining, limit.window), (Some(100), Some(7), Some(Duration::from_hours(6))));
    for _ in 0..3 {
        let outcome = head(&upstream).await;
        assert!(
            matches!(outcome, Err(Error::RateLimited { retry_after: Some(wait) }) if wait > Duration::from_secs(25)),
            "{outcome:?}"
        );
    }
    assert_eq!(registry.seen().len(), 2);
    assert_eq!(upstream.availability(), Availability::Available);
}

#[tokio::test]
async fn a_list_of_tags_is_read_to_its_end() {
    let registry = Listener::start(|seen| async move {
        if seen.uri.contains("last=b") {
            return answer(200, &[], r#"{"name":"library/nginx","tags":["c"]}"#);
        }
        let next = r#"</v2/library/nginx/tags/list?n=2&last=b>; rel="next""#;
        answer(200, &[("link", next)], r#"{"name":"library/nginx","tags":["a","no tag!","b"]}"#)
    })
    .await;
    let tags = registry.upstream().tags(&image(), Patience::Long).await.expect("tags");
    assert_eq!(tags.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b", "c"]);

    let endless = Listener::start(|seen| async move {
        let next = format!("</v2/library/nginx/tags/list?last={}>; rel=next", seen.number);
        answer(200, &[("link", &next)], r#"{"tags":null}"#)
    })
    .await;
    let outcome = endless.upstream().tags(&image(), Patience::Long).await;
    assert!(matches!(outcome, Err(Error::Protocol(Violation::Pages))), "{outcome:?}");
    assert_eq!(endless.seen().len(), 200);
}

#[tokio::test]
async fn referrers_are_merged_or_known_to_be_unsupported() {
    let registry = Listener::start(|seen| async move {
        if seen.uri.contains("page=2") {
            return answer(200, &[], r#"{"schemaVersion":2,"manifests":[{"n":2}]}"#);
        }
        answer(200, &[("link", "<?page=2>; rel=\"next\"")], r#"{"schemaVersion":2,"manifests":[{"n":1}]}"#)
    })
    .await;
    let index =
        registry.upstream().referrers(&image(), &digest(), Patience::Long).await.expect("an answer").expect("an index");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index, serde_json::json!({"schemaVersion": 2, "manifests": [{"n": 1}, {"n": 2}]}));
    for status in [404, 405, 400, 501] {
        let registry = Listener::start(move |_| std::future::ready(answer(status, &[], ""))).await;
        let outcome = registry.upstream().referrers(&image(), &digest(), Patience::Long).await;
        assert!(matches!(outcome, Ok(None)), "{status}: {outcome:?}");
    }
    let registry = Listener::start(|_| std::future::ready(answer(503, &[], ""))).await;
    assert!(registry.upstream().referrers(&image(), &digest(), Patience::Long).await.is_err());
}

#[tokio::test]
async fn a_body_holds_its_place() {
    let registry = Listener::start(|_| async { streamed(&[], stream::pending()) }).await;
    let upstream = registry.upstream_with(|config| {
        config.limits.concurrency = 1;
        config.limits.header = Span::secs(1);
    });
    let body = upstream.get_blob(&image(), &digest(), 0, Patience::Long).await.expect("a blob");
    let outcome = upstream.head_blob(&image(), &digest(), Patience::Long).await;
    assert!(matches!(outcome, Err(Error::TimedOut { what: Slow::Turn })), "{outcome:?}");
    drop(body);
    upstream.head_blob(&image(), &digest(), Patience::Long).await.expect("a place");
    assert_eq!(upstream.availability(), Availability::Available);
}

#[tokio::test]
async fn a_connection_that_closed_while_idle_costs_nothing() {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", socket.local_addr().expect("an address"));
    tokio::spawn(async move {
        for number in 0.. {
            let (mut connection, _) = socket.accept().await.expect("a connection");
            let mut buffer = [0; 4096];
            tokio::io::AsyncReadExt::read(&mut connection, &mut buffer).await.expect("a request");
            if number > 0 {
                connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
            }
        }
    });
    let upstream = Upstream::new(UpstreamConfig::anonymous(url.parse().expect("a URL"))).expect("an upstream");
    let outcome = head(&upstream).await;
    assert!(matches!(outcome, Err(Error::NotFound)), "{outcome:?}");
}

#[tokio::test]
async fn a_proxy_is_asked_instead() {
    let proxy = Listener::start(|_| async { answer(200, &[], CONTENT) }).await;
    let config = |url: &str| {
        let mut config = UpstreamConfig::anonymous(url.parse().expect("a URL"));
        config.proxy = Some(proxy.url().parse().expect("a URL"));
        Upstream::new(config).expect("an upstream")
    };
    read(&config("http://registry.example.invalid"), 0).await.expect("a blob");
    assert_eq!(proxy.seen()[0].uri, format!("http://registry.example.invalid/v2/library/nginx/blobs/{}", digest()));
}

#[tokio::test]
async fn certificates_are_checked_unless_the_administrator_says_otherwise() {
    let issued =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("a certificate");
    let certificate = issued.cert.der().clone();
    let key = rustls_pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("a server");
    let script = |seen: Seen| -> Answering {
        let host = seen.headers["host"].to_str().expect("text").replace("127.0.0.1", "localhost");
        Box::pin(std::future::ready(match seen.uri.as_str() {
            "/there" => answer(200, &[], CONTENT),
            _ => answer(307, &[("location", &format!("https://{host}/there"))], ""),
        }))
    };
    let registry = Listener::serve(Some(Arc::new(server).into()), Arc::new(script)).await;
    let ask = async |change: fn(&mut UpstreamConfig), trusted: bool| {
        let mut config =
            UpstreamConfig::anonymous(format!("https://127.0.0.1:{}", registry.port).parse().expect("a URL"));
        config.redirect_hosts = vec!["localhost".into()];
        config.trusted = if trusted { vec![certificate.clone()] } else { Vec::new() };
        change(&mut config);
        read(&Upstream::new(config).expect("an upstream"), 0).await
    };
    assert!(matches!(ask(|_| {}, false).await, Err(Error::Unreachable { .. })));
    assert_eq!(ask(|_| {}, true).await.expect("a blob").2, CONTENT);
    assert_eq!(ask(|config| config.skip_verify = true, false).await.expect("a blob").2, CONTENT);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let make = |url: &str, change: fn(&mut UpstreamConfig)| {
        let mut config = UpstreamConfig::anonymous(url.parse().expect("a URL"));
        change(&mut config);
        Upstream::new(config).map(drop).map_err(|error| error.to_string())
    };
    assert!(make("ftp://registry.example.com", |_| {}).is_err());
    assert!(make("http://169.254.169.254", |_| {}).is_err());
    assert!(make("http://[fe80::1]", |_| {}).is_err());
    assert!(make("http://10.0.0.1", |_| {}).is_ok());
    assert!(make("http://10.0.0.1", |config| config.proxy = "socks5://10.0.0.2".parse().ok()).is_err());
    assert!(make("https://registry.example.com", |config| config.token_hosts = vec!["a/b".into()]).is_err());
    assert!(make("https://registry.example.com", |config| config.trusted = vec![vec![1, 2, 3].into()]).is_err());
}
