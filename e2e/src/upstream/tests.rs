//! The front against clients that trust its CA: what is served, who gets in, how it fails.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use reqwest::{Certificate, Client, Response, header::RANGE};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Upstream,
    answer::Gate,
    blob::{Blob, Hash},
    client::{Ask, Ending},
    counts::authorization_hash,
    fault::{Encoding, Fault, Target},
    sites::{AUTH, BASIC, HUB, spare},
    trap::Trap,
    users::{ALICE, BOB, CAROL, User},
};
use crate::lab::SPARE_UPSTREAMS;

/// An upstream, its folder and a client of it.
struct Bench {
    upstream: Upstream,
    http: Client,
    _folder: TempDir,
}

impl Bench {
    async fn new() -> Result<Self> {
        let folder = TempDir::new()?;
        let upstream = Upstream::on_loopback(folder.path()).await?;
        let ca = Certificate::from_pem(upstream.ca_pem().as_bytes())?;
        let http =
            Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).tls_certs_only([ca]).build()?;
        Ok(Self { upstream, http, _folder: folder })
    }

    fn url(&self, host: &str, path: &str) -> Result<String> {
        let address = self.upstream.address(host).context("no such site")?;
        Ok(format!("https://{address}{path}"))
    }

    fn open_site() -> String {
        spare(SPARE_UPSTREAMS[0])
    }

    /// From the site that asks for nothing.
    async fn get(&self, path: &str) -> Result<Response> {
        Ok(self.http.get(self.url(&Self::open_site(), path)?).send().await?)
    }

    async fn token(&self, user: Option<User>, image: &str) -> Result<String> {
        let url = self.url(AUTH, &format!("/token?service=registry.docker.io&scope=repository:{image}:pull"))?;
        let mut asked = self.http.get(url);
        if let Some(user) = user {
            asked = asked.basic_auth(user.name, Some(user.password));
        }
        let answer: Value = serde_json::from_slice(&asked.send().await?.error_for_status()?.bytes().await?)?;
        Ok(answer["token"].as_str().context("no token")?.to_owned())
    }

    async fn status_as(&self, user: Option<User>, image: &str) -> Result<u16> {
        let token = self.token(user, image).await?;
        let url = self.url(HUB, &format!("/v2/{image}/manifests/latest"))?;
        Ok(self.http.get(url).bearer_auth(token).send().await?.status().as_u16())
    }
}

#[tokio::test]
async fn serves_images_and_counts_what_was_asked() -> Result<()> {
    let bench = Bench::new().await?;
    let layer = Blob::generated(1, 300_000);
    let made = bench.upstream.content().put_image("library/made", "latest", vec![layer.clone()])?;
    let (digest, _) = &made.layers[0];

    let manifest = bench.get("/v2/library/made/manifests/latest").await?;
    assert_eq!(manifest.headers()["docker-content-digest"], made.digest.as_str());
    assert_eq!(manifest.bytes().await?, made.manifest);
    let blob = bench.get(&format!("/v2/library/made/blobs/{digest}")).await?.bytes().await?;
    assert_eq!(Hash::of(&blob), *digest);
    let url = bench.url(&Bench::open_site(), &format!("/v2/library/made/blobs/{digest}"))?;
    let part = bench.http.get(url).header(RANGE, "bytes=299990-").send().await?;
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await?, blob.slice(299_990..));

    let counts = bench.upstream.counts();
    assert_eq!(counts.gets(digest), 2);
    assert_eq!(counts.bytes(digest), 300_010);
    let ranges: Vec<_> = counts.of(digest).map(|asked| asked.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=299990-")]);
    bench.upstream.reset_counts();
    assert!(bench.upstream.counts().all().is_empty());
    Ok(())
}

#[tokio::test]
async fn each_user_gets_only_what_is_theirs() -> Result<()> {
    let bench = Bench::new().await?;
    for image in ["library/open", "private/alice", "private/bob"] {
        bench.upstream.content().put_image(image, "latest", Vec::new())?;
    }
    assert_eq!(bench.status_as(None, "library/open").await?, 200);
    assert_eq!(bench.status_as(None, "private/alice").await?, 401);
    assert_eq!(bench.status_as(Some(ALICE), "private/alice").await?, 200);
    assert_eq!(bench.status_as(Some(ALICE), "private/bob").await?, 401);
    assert_eq!(bench.status_as(Some(BOB), "private/bob").await?, 200);
    let liar = User { name: ALICE.name, password: BOB.password };
    assert!(bench.token(Some(liar), "private/alice").await.is_err());
    Ok(())
}

#[tokio::test]
async fn a_stranger_meets_the_challenge_of_the_site() -> Result<()> {
    let bench = Bench::new().await?;
    bench.upstream.content().put_image("library/open", "latest", Vec::new())?;
    let path = "/v2/library/open/manifests/latest";
    let refused = bench.http.get(bench.url(HUB, path)?).send().await?;
    assert_eq!(refused.status(), 401);
    let challenge = refused.headers()["www-authenticate"].to_str()?;
    assert!(challenge.contains("scope=\"repository:library/open:pull\""), "{challenge}");

    let url = bench.url(BASIC, path)?;
    assert_eq!(bench.http.get(&url).send().await?.status(), 401);
    let admitted = bench.http.get(&url).basic_auth(CAROL.name, Some(CAROL.password)).send().await?;
    assert_eq!(admitted.status(), 200);
    let last = bench.upstream.counts();
    let last = last.all().last().context("nothing counted")?;
    assert_eq!(last.authorization, Some(authorization_hash("Basic Y2Fyb2w6Y2Fyb2wtc2VjcmV0")));
    Ok(())
}

#[tokio::test]
async fn bodies_are_spoilt_as_told_and_right_after_the_repair() -> Result<()> {
    let bench = Bench::new().await?;
    let blob = Blob::generated(2, 200_000);
    let digest = bench.upstream.content().put_blob("library/spoilt", blob.clone());
    let path = format!("/v2/library/spoilt/blobs/{digest}");
    let target = || Target::path(&digest).method("GET");
    let faults = bench.upstream.faults();

    faults.set(target(), Fault::WrongBytes);
    let wrong = bench.get(&path).await?.bytes().await?;
    assert_eq!(wrong.len(), 200_000);
    assert_ne!(Hash::of(&wrong), digest);
    faults.clear();

    faults.set(target(), Fault::Short(1000));
    assert_eq!(bench.get(&path).await?.bytes().await?.len(), 1000);
    faults.clear();

    faults.set(target(), Fault::Close(70_000));
    assert!(bench.get(&path).await?.bytes().await.is_err());
    faults.clear();

    faults.set(target(), Fault::Encoded(Encoding::Gzip));
    let packed = bench.get(&path).await?;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let packed = packed.bytes().await?;
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked)?;
    assert_eq!(Hash::of(&unpacked), digest);
    faults.clear();

    faults.set_times(1, target(), Fault::Status(503, Some(7)));
    let refused = bench.get(&path).await?;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"7".parse()?));
    assert_eq!(Hash::of(&bench.get(&path).await?.bytes().await?), digest);
    Ok(())
}

#[tokio::test]
async fn a_reset_comes_after_the_bytes_that_were_due() -> Result<()> {
    let bench = Bench::new().await?;
    let digest = bench.upstream.content().put_blob("library/reset", Blob::generated(3, 200_000));
    bench.upstream.faults().set(Target::path(&digest), Fault::Reset(50_000));
    let answer = bench.get(&format!("/v2/library/reset/blobs/{digest}")).await?;
    let mut received = 0;
    let mut failed = false;
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => received += piece.len(),
            Err(error) => failed = format!("{error:?}").contains("ConnectionReset"),
        }
    }
    assert!(failed, "no reset after {received} bytes");
    assert!(received <= 50_000, "{received}");
    Ok(())
}

#[tokio::test]
async fn a_gate_holds_the_rest_back_until_it_is_opened() -> Result<()> {
    let bench = Bench::new().await?;
    let digest = bench.upstream.content().put_blob("library/gate", Blob::generated(4, 200_000));
    let gate = Gate::after(100_000);
    bench.upstream.faults().set(Target::path(&digest), Fault::Gate(gate.clone()));
    let answer = bench.get(&format!("/v2/library/gate/blobs/{digest}")).await?;
    let sent = |bytes| move |counts: &super::Snapshot| counts.all().iter().any(|asked| asked.sent == bytes);
    let counters = bench.upstream.counters();
    counters.until("the first part is sent", Duration::from_secs(5), sent(100_000)).await?;
    gate.open();
    assert_eq!(Hash::of(&answer.bytes().await?), digest);
    counters.until("all is sent", Duration::from_secs(5), sent(200_000)).await
}

#[tokio::test]
async fn a_rate_is_kept() -> Result<()> {
    let bench = Bench::new().await?;
    let digest = bench.upstream.content().put_blob("library/slow", Blob::generated(5, 100_000));
    bench.upstream.faults().set(Target::path(&digest), Fault::Rate(400_000));
    let began = std::time::Instant::now();
    bench.get(&format!("/v2/library/slow/blobs/{digest}")).await?.bytes().await?;
    let took = began.elapsed();
    // Four fifths are sent when the last piece leaves: 80 kB at 400 kB/s.
    assert!(took >= Duration::from_millis(200), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn the_client_tells_how_an_answer_ends() -> Result<()> {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        for body in ["0123456789", "01234", "01x3456789"] {
            let (mut stream, _) = listener.accept().await?;
            let mut asked = [0; 512];
            ensure!(stream.read(&mut asked).await? > 0);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    });
    let blob = Blob::from(b"0123456789".to_vec());
    let ask = || Ask::get("/x").expecting(&blob, 0);
    let whole = ask().run(address).await?;
    assert_eq!((whole.ending, whole.wrong_at), (Ending::Complete, None));
    whole.ensure_whole(&blob.digest())?;
    let short = ask().run(address).await?;
    assert_eq!((short.ending, short.received, short.wrong_at), (Ending::Closed, 5, None));
    let wrong = ask().run(address).await?;
    assert_eq!((wrong.ending, wrong.wrong_at), (Ending::Complete, Some(2)));
    Ok(())
}

#[tokio::test]
async fn a_trap_counts_its_visitors() -> Result<()> {
    let trap = Trap::set("127.0.0.1:0".parse()?).await?;
    assert_eq!(trap.sprung(), 0);
    let mut visitor = tokio::net::TcpStream::connect(trap.address()).await?;
    // The trap hangs up only after it has counted.
    let mut nothing = [0];
    let _ = tokio::io::AsyncReadExt::read(&mut visitor, &mut nothing).await;
    assert_eq!(trap.sprung(), 1);
    Ok(())
}
