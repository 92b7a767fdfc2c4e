//! Connections: many answers on one, TLS, time limits, draining, reloading.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{
    self, Client, Gate, OCI_MANIFEST, PATIENCE, Play, Registry, Setup, blob_path, bytes, certificate, manifest_of,
    mirror, until, until_answer,
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const MIB: usize = 1024 * 1024;

/// The YAML of the server itself.
fn server(fields: &str) -> String {
    format!(
        "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {{name: default}}\nspec: {{{fields}}}\n"
    )
}

async fn with_server(fields: &str) -> (Registry, Setup) {
    let registry = Registry::start().await;
    let setup = Setup::new(&(mirror("hub", "docker.io", &registry.url(), "") + &server(fields)));
    (registry, setup)
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// One connection, read by hand.
struct Line {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Line {
    async fn plain(address: SocketAddr) -> Self {
        Self { wire: Box::new(TcpStream::connect(address).await.unwrap()), buffer: Vec::new() }
    }

    async fn tls(address: SocketAddr, trusted: &[u8]) -> std::io::Result<Self> {
        Self::tls_to(address, trusted, "localhost").await
    }

    /// Asks for a certificate of this name.
    async fn tls_to(address: SocketAddr, trusted: &[u8], name: &str) -> std::io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(trusted.to_vec())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Self { wire: Box::new(stream), buffer: Vec::new() })
    }

    async fn send(&mut self, text: &str) {
        self.wire.write_all(text.as_bytes()).await.unwrap();
        self.wire.flush().await.unwrap();
    }

    async fn more(&mut self) -> usize {
        let read = timeout(PATIENCE, self.wire.read_buf(&mut self.buffer)).await.expect("bytes or an end should come");
        read.unwrap_or(0)
    }

    /// Reads one answer: its status, and its body by its `Content-Length`.
    async fn answer(&mut self) -> (u16, Vec<u8>) {
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let so_far = self.buffer.len();
            assert!(self.more().await > 0, "the connection ended after {so_far} bytes of a header");
        };
        let text = String::from_utf8(self.buffer.drain(..head).collect()).unwrap().to_lowercase();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap_or_else(|| unreachable!("an answer on a kept connection should have a length: {text}"));
        let length: usize = length.parse().unwrap();
        while self.buffer.len() < length {
            let so_far = self.buffer.len();
            assert!(self.more().await > 0, "the connection ended after {so_far} of {length} bytes");
        }
        (status, self.buffer.drain(..length).collect())
    }

    /// Waits until the server has closed it, and says what came before that.
    async fn closed(mut self) -> Vec<u8> {
        while self.more().await > 0 {}
        self.buffer
    }
}

/// Blobs of all sorts of sizes, and requests for them and for parts of them, with what must come.
fn mixed(registry: &Registry) -> Vec<(String, u16, Vec<u8>)> {
    let manifest = manifest_of(&[b"config", b"layer"]);
    registry.manifest("team/app", "1", OCI_MANIFEST, &manifest);
    let mut asks = vec![("/v2/team/app/manifests/1\r\n".to_owned(), 200, manifest)];
    for (number, length) in [10, 70_000, 128 * 1024, 200_000, 1_500_001].into_iter().enumerate() {
        let body = bytes(number as u64 + 100, length);
        let path = format!("/v2/team/app/blobs/{}", registry.blob("team/app", &body));
        asks.push((format!("{path}\r\n"), 200, body.clone()));
        let (first, last) = (length / 3, length - 2);
        asks.push((format!("{path}\r\nrange: bytes={first}-{last}\r\n"), 206, body[first..=last].to_vec()));
        asks.push((format!("{path}\r\nrange: bytes={}-\r\n", length - 1), 206, body[length - 1..].to_vec()));
    }
    asks
}

fn request(ask: &str) -> String {
    let (path, headers) = ask.split_once("\r\n").unwrap();
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
}

async fn compare(mut line: Line, asks: &[(String, u16, Vec<u8>)], pipelined: bool, name: &str) {
    // Cold, then warm, then in another order.
    for round in 0..3 {
        let order: Vec<usize> =
            (0..asks.len()).map(|index| index * (if round == 2 { 5 } else { 1 }) % asks.len()).collect();
        if pipelined {
            let all: String = order.iter().map(|index| request(&asks[*index].0)).collect();
            line.send(&all).await;
        }
        for index in order {
            let (ask, expected, body) = &asks[index];
            if !pipelined {
                line.send(&request(ask)).await;
            }
            let (status, got) = line.answer().await;
            assert_eq!(status, *expected, "{name}, round {round}: {ask}");
            assert!(got == *body, "{name}, round {round}: other bytes for {ask}");
        }
    }
}

#[tokio::test]
async fn many_answers_on_one_connection_are_right_to_the_byte() {
    let (registry, setup) = with_server("").await;
    let asks = mixed(&registry);
    assert_ne!(asks.len() % 5, 0, "else the third round would leave some out");
    for pipelined in [false, true] {
        let cache = setup.start().await;
        compare(Line::plain(cache.address).await, &asks, pipelined, "plain").await;
        // Several at once, warm.
        let lines = (0..3).map(|_| async {
            compare(Line::plain(cache.address).await, &asks, pipelined, "plain, one of three").await;
        });
        futures_util::future::join_all(lines).await;
        cache.kill().await;
    }
}

#[tokio::test]
async fn many_answers_on_one_tls_connection_are_right_to_the_byte() {
    let (registry, setup) = with_server("tls: {mode: Secret, secretRef: {name: cert}}").await;
    let trusted = certificate(&setup, "cert");
    let asks = mixed(&registry);
    let cache = setup.start().await;
    for pipelined in [false, true] {
        compare(Line::tls(cache.address, &trusted).await.unwrap(), &asks, pipelined, "TLS").await;
    }
}

#[tokio::test]
async fn a_head_among_gets_leaves_no_body_on_the_connection() {
    let (registry, setup) = with_server("").await;
    let cache = setup.start().await;
    let body = bytes(1, 300_000);
    let digest = registry.blob("team/app", &body);
    let mut line = Line::plain(cache.address).await;
    for _ in 0..3 {
        line.send(&format!("HEAD /v2/team/app/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        line.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        while !line.buffer.ends_with(b"ok\n") {
            assert!(line.more().await > 0);
        }
        let text = String::from_utf8(std::mem::take(&mut line.buffer)).unwrap();
        assert!(text.contains("content-length: 300000\r\n") && text.matches("HTTP/1.1 200").count() == 2, "{text}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_or_a_cut() {
    let (registry, setup) = with_server("tls: {mode: Secret, secretRef: {name: cert}}").await;
    let old = certificate(&setup, "cert");
    let cache = setup.start().await;
    let body = bytes(1, MIB);
    let digest = registry.blob("team/app", &body);
    let gate = Gate::closed();
    registry.play_blob_gets(vec![Play::Hold(500_000, gate.clone())]);
    let mut running = Line::tls(cache.address, &old).await.unwrap();
    running.send(&request(&format!("/v2/team/app/blobs/{digest}\r\n"))).await;
    while running.buffer.len() < 100_000 {
        assert!(running.more().await > 0);
    }
    let new = certificate(&setup, "cert");
    cache.reload();
    let deadline = Instant::now() + PATIENCE;
    while Line::tls(cache.address, &new).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(Line::tls(cache.address, &old).await.is_err(), "the old one is shown no more");
    gate.open();
    assert!(running.answer().await == (200, body));
}

#[tokio::test]
async fn hosts_show_their_own_certificates_and_may_share_one() {
    let hub = Registry::start().await;
    let team = Registry::start().await;
    let host = |name: &str, secret: &str| format!("{{host: {name}, tlsSecretRef: {{name: {secret}}}}}");
    let config = |secret: &str| {
        // Seeds: project-push.example.com and project.example.com with one wildcard certificate.
        let of_hub = format!("connectors: [{}, {{host: plain.example.org}}]", host("project.example.com", secret));
        let of_team = format!("connectors: [{}]", host("project-push.example.com", secret));
        mirror("hub", "docker.io", &hub.url(), &of_hub)
            + &mirror("team", "team.example.com", &team.url(), &of_team)
            + &server("tls: {mode: Secret, secretRef: {name: cert}}")
    };
    let setup = Setup::new(&config("wildcard"));
    let main = certificate(&setup, "cert");
    let wildcard = support::certificate_for(&setup, "wildcard", "*.example.com");
    let other = support::certificate_for(&setup, "other", "*.example.com");
    let cache = setup.start().await;
    let (hub_body, team_body) = (manifest_of(&[b"hub"]), manifest_of(&[b"team"]));
    hub.manifest("library/app", "1", OCI_MANIFEST, &hub_body);
    team.manifest("app", "1", OCI_MANIFEST, &team_body);
    let ask = |host: &str| format!("GET /v2/app/manifests/1 HTTP/1.1\r\nhost: {host}\r\n\r\n");
    for (host, body) in [("project.example.com", &hub_body), ("project-push.example.com", &team_body)] {
        for spelt in [host.to_owned(), host.to_uppercase()] {
            let mut line = Line::tls_to(cache.address, &wildcard, &spelt).await.unwrap();
            line.send(&ask(host)).await;
            assert!(line.answer().await == (200, body.clone()), "{host}");
        }
        assert!(Line::tls_to(cache.address, &main, host).await.is_err(), "{host} shows the main certificate");
    }
    // Every other name gets the main port's own.
    Line::tls(cache.address, &main).await.unwrap();
    assert!(Line::tls_to(cache.address, &wildcard, "other.example.com").await.is_err());

    // Another Secret is shown from then on, and a connection that is open goes on.
    let mut open = Line::tls_to(cache.address, &wildcard, "project.example.com").await.unwrap();
    setup.configure(&config("other"));
    cache.reload();
    let deadline = Instant::now() + PATIENCE;
    while Line::tls_to(cache.address, &other, "project.example.com").await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    open.send(&ask("project.example.com")).await;
    assert!(open.answer().await == (200, hub_body));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_leaves_the_old_one_in_force() {
    let (_registry, setup) = with_server("tls: {mode: Secret, secretRef: {name: cert}}").await;
    let old = certificate(&setup, "cert");
    let cache = setup.start().await;
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    // A key that does not belong to it.
    setup.secret("cert", "tls.crt", &other.cert.pem());
    cache.reload();
    let counted = async || {
        let mut line = Line::tls(cache.address, &old).await.unwrap();
        line.send("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        String::from_utf8(line.answer().await.1)
            .unwrap()
            .contains("entrepot_config_reloads_total{result=\"refused\"} 1")
    };
    let deadline = Instant::now() + PATIENCE;
    while !counted().await {
        assert!(Instant::now() < deadline, "the refused reload is not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_half_sent_header_is_closed_at_its_limit_however_slowly_it_goes_on() {
    let (_registry, setup) = with_server("limits: {requestHeader: 700ms, idle: 1h}").await;
    let cache = setup.start().await;
    let started = Instant::now();
    let silent = async {
        let mut line = Line::plain(cache.address).await;
        line.send("GET /v2/ HTTP/1.1\r\nho").await;
        line.closed().await
    };
    let trickling = async {
        let mut stream = TcpStream::connect(cache.address).await.unwrap();
        for byte in b"GET /v2/ HTTP/1.1\r\nx-header: ".iter().chain([b'a'; 10_000].iter()) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let second = async {
        let mut line = Line::plain(cache.address).await;
        line.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(line.answer().await.0, 200);
        line.send("GET /livez HT").await;
        line.closed().await
    };
    tokio::join!(silent, trickling, second);
    assert!(
        (Duration::from_millis(600)..Duration::from_secs(6)).contains(&started.elapsed()),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_half_done_tls_handshake_is_closed_at_the_header_limit() {
    let (_registry, setup) =
        with_server("limits: {requestHeader: 700ms, idle: 1h}, tls: {mode: Secret, secretRef: {name: cert}}").await;
    certificate(&setup, "cert");
    let cache = setup.start().await;
    let mut line = Line::plain(cache.address).await;
    line.send("\u{16}\u{3}\u{1}").await;
    line.closed().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_in_use_is_not() {
    let (registry, setup) = with_server("limits: {idle: 1s}").await;
    let cache = setup.start().await;
    registry.manifest("team/app", "1", OCI_MANIFEST, &manifest_of(&[b"config"]));
    let never_used = async {
        let started = Instant::now();
        Line::plain(cache.address).await.closed().await;
        started.elapsed()
    };
    let in_use = async {
        let mut line = Line::plain(cache.address).await;
        // Each pause is shorter than the limit, all together are longer.
        for _ in 0..6 {
            line.send(&request("/v2/team/app/manifests/1\r\n")).await;
            assert_eq!(line.answer().await.0, 200);
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let started = Instant::now();
        line.closed().await;
        started.elapsed()
    };
    let (never_used, after_use) = tokio::join!(never_used, in_use);
    assert!(never_used > Duration::from_millis(900), "{never_used:?}");
    assert!(after_use < Duration::from_secs(5), "{after_use:?}");
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_not_idle() {
    let (registry, setup) = with_server("limits: {idle: 300ms, requestHeader: 300ms, writeStall: 300ms}").await;
    let cache = setup.start().await;
    let body = bytes(1, MIB);
    let digest = registry.blob("team/app", &body);
    let gate = Gate::closed();
    registry.play_blob_gets(vec![Play::Hold(500_000, gate.clone())]);
    let mut line = Line::plain(cache.address).await;
    line.send(&request(&format!("/v2/team/app/blobs/{digest}\r\n"))).await;
    // The fill makes a pause that is longer than every limit towards the client.
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.open();
    assert!(line.answer().await == (200, body));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped_and_a_slow_one_is_not() {
    let (registry, setup) = with_server("limits: {writeStall: 1s}").await;
    let cache = setup.start().await;
    // More than the buffers of both sockets hold.
    let body = bytes(1, 24 * MIB);
    let path = format!("/v2/team/app/blobs/{}", registry.blob("team/app", &body));
    let ask = request(&format!("{path}\r\n"));
    let stalled = async {
        let mut line = Line::plain(cache.address).await;
        line.send(&ask).await;
        while line.buffer.is_empty() {
            line.more().await;
        }
        until("the stalled client is dropped", || cache.server().connections.len() <= 1).await;
        let got = line.closed().await;
        assert!(got.len() < body.len(), "all {} bytes came", got.len());
    };
    let slow = async {
        let mut line = Line::plain(cache.address).await;
        line.send(&ask).await;
        // Two pauses, each shorter than the limit and together longer, with some taken in between.
        for _ in 0..3 {
            let least = line.buffer.len() + 6 * MIB;
            while line.buffer.len() < least {
                assert!(line.more().await > 0);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let (status, got) = line.answer().await;
        assert!(status == 200 && got == body);
        // Held until the other has been dropped, so that the count above means something.
        line
    };
    tokio::join!(stalled, slow);
}

#[tokio::test]
async fn a_running_transfer_is_finished_before_the_server_ends() {
    let (registry, setup) = with_server("limits: {drain: 1h}").await;
    let mut cache = setup.start().await;
    let body = bytes(1, 2 * MIB);
    let path = format!("/v2/team/app/blobs/{}", registry.blob("team/app", &body));
    let gate = Gate::closed();
    registry.play_blob_gets(vec![Play::Hold(MIB, gate.clone())]);
    let client = cache.client();
    let mut running = client.open("GET", &path).await;
    running.read(500_000).await;
    let mut idle = Line::plain(cache.address).await;
    idle.send("GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(idle.answer().await.0, 200);
    cache.begin_stop();
    assert_eq!(idle.closed().await, b"", "an idle connection ends");
    assert!(!cache.server().is_ready());
    until("no connection is taken any more", || std::net::TcpStream::connect(cache.address).is_err()).await;
    gate.open();
    running.rest().await.assert_is(200, &body);
    cache.drained().await;
}

#[tokio::test]
async fn what_still_runs_at_the_end_of_the_grace_is_cut() {
    let (registry, setup) = with_server("limits: {drain: 500ms}").await;
    let mut cache = setup.start().await;
    let body = bytes(1, 2 * MIB);
    let path = format!("/v2/team/app/blobs/{}", registry.blob("team/app", &body));
    registry.play_blob_gets(vec![Play::Hold(MIB, Gate::closed())]);
    let mut running = cache.client().open("GET", &path).await;
    running.read(500_000).await;
    cache.begin_stop();
    cache.drained().await;
    cache.kill().await;
    assert!(!running.rest().await.complete);
}

#[tokio::test]
async fn a_port_that_another_program_has_is_tried_until_it_is_free() {
    let registry = Registry::start().await;
    let port = support::free_port();
    let other_program = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    setup.configure(&mirror("hub", "docker.io", &registry.url(), &format!("connectors: [{{port: {port}}}]")));
    let told = |result: &str| format!("config_reloads_total{{result=\"{result}\"}} 1\n");
    let client = cache.operator();
    until_answer("the reload is told", || client.get("/metrics"), |answer| answer.text().contains(&told("refused")))
        .await;
    drop(other_program);
    until("the port listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    until_answer("the cure is told", || client.get("/metrics"), |answer| answer.text().contains(&told("ok"))).await;
}

#[tokio::test]
async fn a_reload_adds_and_removes_ports_and_cuts_no_transfer() {
    let registry = Registry::start().await;
    let (first, second) = (support::free_port(), support::free_port());
    let with = |port: u16, extra: &str| {
        mirror("hub", "docker.io", &registry.url(), &format!("connectors: [{{port: {port}}}]")) + extra
    };
    let setup = Setup::new(&with(first, ""));
    let cache = setup.start().await;
    let body = bytes(1, 2 * MIB);
    let path = format!("/v2/team/app/blobs/{}", registry.blob("team/app", &body));
    let gate = Gate::closed();
    registry.play_blob_gets(vec![Play::Hold(MIB, gate.clone())]);
    let at = |port: u16| Client::to(([127, 0, 0, 1], port).into());
    let mut through_port = at(first).open("GET", &path).await;
    let mut through_main = cache.client().open("GET", &path).await;
    through_port.read(500_000).await;
    through_main.read(500_000).await;

    let other = Registry::start().await;
    setup.configure(&with(second, &mirror("quay", "quay.io", &other.url(), "")));
    cache.reload();
    until("the new port listens", || std::net::TcpStream::connect(("127.0.0.1", second)).is_ok()).await;
    until("the old port is closed", || std::net::TcpStream::connect(("127.0.0.1", first)).is_err()).await;
    assert_eq!(at(second).get("/v2/").await.status, 200);
    assert_eq!(cache.client().get("/repository/quay/v2/").await.status, 200);
    gate.open();
    through_port.rest().await.assert_is(200, &body);
    through_main.rest().await.assert_is(200, &body);
    assert_eq!(registry.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn a_reload_changes_credentials_and_cuts_no_transfer() {
    let registry = Registry::start().await;
    let fields = "anonymousPull: true";
    let with_user = mirror("hub", "docker.io", &registry.url(), fields)
        .replace("    limits: {}", "    credentialsSecretRef: {name: login}\n    limits: {}");
    let setup = Setup::new(&with_user);
    setup.secret("login", "username", "reader");
    setup.secret("login", "password", "old");
    let cache = setup.start().await;
    let body = bytes(1, 2 * MIB);
    let digest = registry.blob("team/app", &body);
    let path = format!("/v2/team/app/blobs/{digest}");
    let gate = Gate::closed();
    let passes = {
        let gate = gate.clone();
        move |expected: &'static str| {
            let gate = gate.clone();
            move |seen: &support::Seen| match seen.headers.get("authorization") {
                Some(value) if value == expected && seen.is_blob_get() => Play::Hold(MIB, gate.clone()),
                Some(value) if value == expected => Play::Good,
                _ => Play::Status(401, vec![("www-authenticate", "Basic realm=\"r\"")]),
            }
        }
    };
    registry.play(passes("Basic cmVhZGVyOm9sZA=="));
    let mut running = cache.client().open("GET", &path).await;
    running.read(500_000).await;
    registry.play(passes("Basic cmVhZGVyOm5ldw=="));
    setup.secret("login", "password", "new");
    cache.reload();
    let manifest = manifest_of(&[b"config"]);
    registry.manifest("team/other", "1", OCI_MANIFEST, &manifest);
    let client = cache.client();
    // The denial that the old password may have met meanwhile went with it.
    until_answer(
        "the new password is used",
        || client.get("/v2/team/other/manifests/1"),
        |answer| answer.body == manifest,
    )
    .await;
    gate.open();
    running.rest().await.assert_is(200, &body);
    until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
    cache.client().get(&path).await.assert_is(200, &body);
}

#[tokio::test]
async fn a_reload_with_a_mistake_leaves_the_last_good_configuration_in_force() {
    let (registry, setup) = with_server("").await;
    let cache = setup.start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "1", OCI_MANIFEST, &body);
    setup.configure("spec: [");
    cache.reload();
    let client = cache.client();
    until_answer(
        "the refusal is counted",
        || client.get("/metrics"),
        |metrics| metrics.text().contains("entrepot_config_reloads_total{result=\"refused\"} 1"),
    )
    .await;
    client.get("/v2/team/app/manifests/1").await.assert_is(200, &body);
}

#[test]
fn every_mistake_of_a_configuration_is_listed_at_once() {
    let setup = Setup::new(
        "---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {name: one}
spec:
  upstream: {url: 'ftp://registry.example', limits: {header: soon}}
  connectors: [{port: 70000}]
---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {name: two}
spec:
  upstream: {url: 'https://two.example', credentialsSecretRef: {name: absent}}
  anonymousPull: true
  unknown: 1
---
apiVersion: entrepot.dev/v1alpha1
kind: RegistryMirror
metadata: {name: three}
spec:
  upstream: {url: 'https://three.example', credentialsSecretRef: {name: absent}}
  anonymousPull: true
---
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {name: default}
spec: {defaultRepository: nobody, limits: {drain: -1s}}
---
kind: Pod
",
    );
    let text = cache_server::settings::Settings::load(&setup.sources()).unwrap_err().to_string();
    for expected in [
        "spec.upstream.limits.header",
        "spec.connectors[0].port",
        "unknown",
        "absent",
        "spec.limits.drain",
        "document 5",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(text.lines().count() >= 6, "{text}");
}
