//! Pushes: every way in, what is refused, and that what was acknowledged is there, whatever happens next.

use std::time::{Duration, SystemTime};

use crate::support::{
    self, Answer, Cache, Client, OCI_INDEX, OCI_MANIFEST, Registry, Setup, bytes, digest, files, manifest_of, mirror,
    until,
};
use base64::Engine;
use cache_server::oci::{Algorithm, Digest};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The way to the image that most tests push.
const APP: &str = "/repository/team/v2/app";

/// `hosted` are lines of the spec of `team`, `more` are further objects.
fn config(hosted: &str, server: &str, more: &str) -> String {
    format!(
        "---
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {{name: default}}
spec:
  auth:
    htpasswdSecretRef: {{name: users}}
    permissions:
    - {{users: [alice], repositories: ['*'], actions: [Pull, Push, Delete]}}
    - {{users: [bob], repositories: [team], images: ['app', 'public'], actions: [Pull, Push]}}
{server}
---
apiVersion: entrepot.dev/v1alpha1
kind: HostedRepository
metadata: {{name: team}}
spec: {{anonymousPull: false, {hosted}}}
---
apiVersion: entrepot.dev/v1alpha1
kind: HostedRepository
metadata: {{name: other}}
spec: {{anonymousPull: false}}
{more}"
    )
}

struct Team {
    setup: Setup,
    cache: Cache,
}

impl Team {
    async fn start(hosted: &str) -> Self {
        Self::with(&config(hosted, "", "")).await
    }

    async fn with(config: &str) -> Self {
        let setup = Setup::new(config);
        let line = |user: &str| format!("{user}:{}\n", bcrypt::hash(format!("{user}'s"), 4).unwrap());
        setup.secret("users", "htpasswd", &(line("alice") + &line("bob")));
        let cache = setup.start().await;
        Self { setup, cache }
    }

    /// Ends the server as a crash does, and starts it again.
    async fn crash(self) -> Self {
        self.cache.kill().await;
        let cache = self.setup.start().await;
        Self { setup: self.setup, cache }
    }

    fn user(&self, name: &str) -> Client {
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{name}'s"));
        self.cache.client().with("authorization", &format!("Basic {secret}"))
    }

    fn alice(&self) -> Client {
        self.user("alice")
    }

    /// The path of a new upload.
    async fn begin(&self, image: &str) -> String {
        let begun = self.alice().ask("POST", &format!("{image}/blobs/uploads/")).await;
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"), "{begun:?}");
        assert!(begun.header("location").ends_with(begun.header("docker-upload-uuid")), "{begun:?}");
        path(begun.header("location"))
    }

    async fn push_blob(&self, image: &str, body: &[u8]) -> String {
        let digest = digest(body);
        let pushed = self.alice().send_body("POST", &format!("{image}/blobs/uploads/?digest={digest}"), body).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
        digest
    }

    async fn push_manifest(&self, image: &str, reference: &str, media_type: &str, body: &[u8]) -> Answer {
        let client = self.alice().with("content-type", media_type);
        client.send_body("PUT", &format!("{image}/manifests/{reference}"), body).await
    }

    /// An image of a config and a layer under a tag; its manifest.
    async fn push_image(&self, image: &str, tag: &str, seed: u64) -> Vec<u8> {
        let (config, layer) = (format!("{{\"seed\":{seed}}}").into_bytes(), bytes(seed, 10_000));
        self.push_blob(image, &config).await;
        self.push_blob(image, &layer).await;
        let manifest = manifest_of(&[&config, &layer]);
        let pushed = self.push_manifest(image, tag, OCI_MANIFEST, &manifest).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
        manifest
    }

    fn uploads(&self) -> usize {
        files(&self.setup.data().join("uploads")).len()
    }
}

/// The path and query of a URL.
fn path(url: &str) -> String {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    rest[rest.find('/').unwrap()..].to_owned()
}

fn refused(answer: &Answer, status: u16, code: &str, says: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{answer:?}");
    assert!(answer.text().contains(says), "{answer:?}");
}

#[tokio::test]
async fn a_blob_comes_in_every_way_and_is_there() {
    let team = Team::start("").await;
    let alice = team.alice();
    let body = bytes(1, 3_000_000);
    let digest = digest(&body);
    let uploads = format!("{APP}/blobs/uploads/");
    let blob = format!("{APP}/blobs/{digest}");
    for way in ["at once", "put", "streamed", "in chunks", "last chunk in put"] {
        assert_eq!(alice.head(&blob).await.status, 404, "{way}");
        let created = match way {
            "at once" => alice.send_body("POST", &format!("{uploads}?digest={digest}"), &body).await,
            "put" => {
                let upload = team.begin(APP).await;
                alice.send_body("PUT", &format!("{upload}?digest={digest}"), &body).await
            }
            "streamed" => {
                let upload = team.begin(APP).await;
                let patched = alice.send_body("PATCH", &upload, &body).await;
                assert_eq!((patched.status, patched.header("range")), (202, "0-2999999"), "{patched:?}");
                alice.ask("PUT", &format!("{upload}?digest={digest}")).await
            }
            _ => {
                let mut upload = team.begin(APP).await;
                let last = if way == "in chunks" { 3_000_000 } else { 2_000_000 };
                for start in (0..last).step_by(1_000_000) {
                    let chunk = alice.with("content-range", &format!("{start}-{}", start + 999_999));
                    let patched = chunk.send_body("PATCH", &upload, &body[start..start + 1_000_000]).await;
                    assert_eq!(patched.status, 202, "{patched:?}");
                    let status = alice.get(&upload).await;
                    let range = format!("0-{}", start + 999_999);
                    assert_eq!((status.status, status.header("range")), (204, range.as_str()), "{status:?}");
                    upload = path(status.header("location"));
                }
                alice.send_body("PUT", &format!("{upload}?digest={digest}"), &body[last..]).await
            }
        };
        assert_eq!((created.status, created.header("docker-content-digest")), (201, digest.as_str()), "{way}");
        assert_eq!(path(created.header("location")), blob, "{way}");
        alice.get(&blob).await.assert_is(200, &body);
        assert_eq!(alice.ask("DELETE", &blob).await.status, 202);
    }
    assert_eq!(alice.ask("DELETE", &blob).await.status, 404);
    assert_eq!(team.uploads(), 0);
}

#[tokio::test]
async fn an_empty_blob_and_one_of_sha512_are_blobs() {
    let team = Team::start("").await;
    let alice = team.alice();
    for (body, algorithm) in [(&b""[..], Algorithm::Sha256), (b"", Algorithm::Sha512), (b"content", Algorithm::Sha512)]
    {
        let digest = Digest::of(algorithm, body);
        for query in ["", "?digest-algorithm=sha512"] {
            let begun = alice.ask("POST", &format!("{APP}/blobs/uploads/{query}")).await;
            let upload = path(begun.header("location"));
            let created = alice.send_body("PUT", &format!("{upload}?digest={digest}"), body).await;
            assert_eq!(created.status, 201, "{created:?}");
            alice.get(&format!("{APP}/blobs/{digest}")).await.assert_is(200, body);
        }
    }
    let begun = alice.ask("POST", &format!("{APP}/blobs/uploads/?digest-algorithm=md5")).await;
    refused(&begun, 400, "DIGEST_INVALID", "sha256 or sha512");
}

#[tokio::test]
async fn what_is_wrong_with_an_upload_is_said_and_nothing_is_kept() {
    let team = Team::start("").await;
    let alice = team.alice();
    let body = bytes(1, 100_000);
    let digest = digest(&body);

    let upload = team.begin(APP).await;
    refused(&alice.send_body("PUT", &upload, &body).await, 400, "DIGEST_INVALID", "parameter digest");
    refused(&alice.send_body("PUT", &format!("{upload}?digest=x"), &body).await, 400, "DIGEST_INVALID", "colon");
    // Out of order: at the beginning, in between, and nonsense.
    for (range, start) in [("10-99", 10), ("nonsense", 0)] {
        let chunk = alice.with("content-range", range).send_body("PATCH", &upload, &body[start..100]).await;
        assert_eq!((chunk.status, chunk.header("range")), (416, "0-0"), "{chunk:?}");
        assert_eq!(path(chunk.header("location")), upload);
    }
    let chunk = alice.with("content-range", "0-49999").send_body("PATCH", &upload, &body[..50_000]).await;
    assert_eq!(chunk.status, 202, "{chunk:?}");
    for range in ["0-49999", "50001-99999"] {
        let start = range.split_once('-').unwrap().0.parse::<usize>().unwrap();
        let again = alice.with("content-range", range).send_body("PATCH", &upload, &body[start..]).await;
        assert_eq!((again.status, again.header("range")), (416, "0-49999"), "{again:?}");
    }
    let longer = alice.with("content-range", "50000-50009").send_body("PATCH", &upload, &body[50_000..]).await;
    refused(&longer, 400, "SIZE_INVALID", "Content-Range");

    // Other content than announced ends the upload.
    let wrong = alice.send_body("PUT", &format!("{upload}?digest={digest}"), b"other").await;
    refused(&wrong, 400, "DIGEST_INVALID", "hash to");
    assert_eq!(alice.get(&upload).await.status, 404);
    let wrong = alice.send_body("POST", &format!("{APP}/blobs/uploads/?digest={digest}"), b"other").await;
    refused(&wrong, 400, "DIGEST_INVALID", "hash to");
    assert_eq!(alice.head(&format!("{APP}/blobs/{digest}")).await.status, 404);

    // A cancelled one is gone, and so is one that never was.
    let upload = team.begin(APP).await;
    assert_eq!(alice.ask("DELETE", &upload).await.status, 204);
    refused(&alice.get(&upload).await, 404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
    for id in ["x", &"0".repeat(32), "..%2f..", "%2e%2e"] {
        assert!([400, 404].contains(&alice.get(&format!("{APP}/blobs/uploads/{id}")).await.status), "{id}");
    }
    until("nothing is left", || team.uploads() == 0).await;
}

#[tokio::test]
async fn an_upload_belongs_to_its_image_and_its_repository() {
    let team = Team::start("").await;
    let upload = team.begin(APP).await;
    let id = upload.rsplit('/').next().unwrap().to_owned();
    for image in ["/repository/team/v2/public", "/repository/other/v2/app"] {
        for method in ["GET", "PATCH", "DELETE"] {
            let answer = team.alice().ask(method, &format!("{image}/blobs/uploads/{id}")).await;
            refused(&answer, 404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        }
    }
    assert_eq!(team.alice().get(&upload).await.status, 204);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_crash_and_one_request_at_a_time_writes() {
    let team = Team::start("").await;
    let body = bytes(7, 2_500_000);
    let upload = team.begin(APP).await;
    let secret = base64::engine::general_purpose::STANDARD.encode("alice:alice's");
    let mut stream = TcpStream::connect(team.cache.address).await.unwrap();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {secret}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body[..1_500_000]).await.unwrap();
    let data = team.setup.data().join("uploads").join(upload.rsplit('/').next().unwrap()).join("data");
    until("the bytes are written", || data.metadata().is_ok_and(|data| data.len() == 1_500_000)).await;

    let second = team.alice().send_body("PATCH", &upload, b"x").await;
    refused(&second, 409, "BLOB_UPLOAD_INVALID", "another request writes");
    assert_eq!(team.alice().get(&upload).await.header("range"), "0-1499999");

    let team = team.crash().await;
    drop(stream);
    let status = team.alice().get(&upload).await;
    assert_eq!((status.status, status.header("range")), (204, "0-1499999"), "{status:?}");
    let rest = team.alice().with("content-range", "1500000-2499999");
    let digest = digest(&body);
    let created = rest.send_body("PUT", &format!("{upload}?digest={digest}"), &body[1_500_000..]).await;
    assert_eq!(created.status, 201, "{created:?}");
    team.alice().get(&format!("{APP}/blobs/{digest}")).await.assert_is(200, &body);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_what_came() {
    let team = Team::start("").await;
    let upload = team.begin(APP).await;
    let secret = base64::engine::general_purpose::STANDARD.encode("alice:alice's");
    let mut stream = TcpStream::connect(team.cache.address).await.unwrap();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {secret}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"5\r\nhello\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    let client = team.alice();
    let status = support::until_answer("it has ended", || client.get(&upload), |it| it.header("range") == "0-4").await;
    assert_eq!(status.status, 204);
    let digest = digest(b"hello world");
    let created = client.send_body("PUT", &format!("{upload}?digest={digest}"), b" world").await;
    assert_eq!(created.status, 201, "{created:?}");
}

#[tokio::test]
async fn many_uploads_of_one_blob_at_once_are_all_right() {
    let team = Team::start("").await;
    let body = bytes(3, 400_000);
    let digest = digest(&body);
    let push = |number: usize| {
        let (alice, body, digest) = (team.alice(), body.clone(), digest.clone());
        async move {
            let image = format!("/repository/team/v2/image{}", number % 4);
            alice.send_body("POST", &format!("{image}/blobs/uploads/?digest={digest}"), &body).await.status
        }
    };
    let all = futures_util::future::join_all((0..20).map(push)).await;
    assert_eq!(all, [201; 20]);
    for number in 0..4 {
        let blob = format!("/repository/team/v2/image{number}/blobs/{digest}");
        team.alice().get(&blob).await.assert_is(200, &body);
    }
    assert_eq!(team.uploads(), 0);
    let used = team.cache.metric("entrepot_store_used_bytes").await;
    assert!((used - 400_000.0).abs() < 1.0, "one blob is stored once: {used}");
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let mut team = Team::start("").await;
    for round in 0..3 {
        let manifest = team.push_image(APP, &format!("v{round}"), round).await;
        team = team.crash().await;
        let client = team.alice();
        for earlier in 0..=round {
            assert_eq!(client.get(&format!("{APP}/manifests/v{earlier}")).await.status, 200, "{earlier}");
        }
        client.get(&format!("{APP}/manifests/v{round}")).await.assert_is(200, &manifest);
        client
            .get(&format!("{APP}/blobs/{}", digest(&bytes(round, 10_000))))
            .await
            .assert_is(200, &bytes(round, 10_000));
    }
}

#[tokio::test]
async fn a_blob_is_of_the_image_it_was_pushed_to_and_is_mounted_by_those_who_may_read_it() {
    let team = Team::with(&config("", "", "")).await;
    let alice = team.alice();
    let body = bytes(1, 1000);
    let digest = team.push_blob("/repository/team/v2/secret", &body).await;
    let public = "/repository/team/v2/public";
    for elsewhere in [public, APP, "/repository/other/v2/secret"] {
        assert_eq!(alice.get(&format!("{elsewhere}/blobs/{digest}")).await.status, 404, "{elsewhere}");
    }
    let mount = |from: &str| format!("{public}/blobs/uploads/?mount={digest}&from={from}");
    // Bob may not read it, and learns nothing: he gets an upload, as for a blob that is nowhere.
    let bob = team.user("bob");
    for from in ["secret", "team/secret", "nowhere", "", "..", "public"] {
        assert_eq!(bob.ask("POST", &mount(from)).await.status, 202, "{from}");
    }
    assert_eq!(bob.get(&format!("{public}/blobs/{digest}")).await.status, 404);
    assert_eq!(alice.ask("POST", &mount("app")).await.status, 202);
    let mounted = alice.ask("POST", &mount("secret")).await;
    assert_eq!((mounted.status, mounted.header("docker-content-digest")), (201, digest.as_str()), "{mounted:?}");
    bob.get(&format!("{public}/blobs/{digest}")).await.assert_is(200, &body);
    // From another repository, by its name in front.
    let mount = format!("/repository/other/v2/mine/blobs/uploads/?mount={digest}&from=team%2Fpublic");
    assert_eq!(alice.ask("POST", &mount).await.status, 201);
    // To delete it from one image leaves it with the others.
    assert_eq!(alice.ask("DELETE", &format!("{public}/blobs/{digest}")).await.status, 202);
    assert_eq!(alice.get(&format!("{public}/blobs/{digest}")).await.status, 404);
    alice.get(&format!("/repository/other/v2/mine/blobs/{digest}")).await.assert_is(200, &body);
}

#[tokio::test]
async fn a_mount_without_a_source_finds_what_the_client_may_pull() {
    let registry = Registry::start().await;
    let base = bytes(2, 200_000);
    let mirrored = registry.blob("library/base", &base);
    let mirrors = mirror("hub", "docker.io", &registry.url(), "")
        + &mirror("shut", "shut.example.com", &registry.url(), "anonymousPull: false");
    let team = Team::with(&config("", "", &mirrors)).await;
    let (alice, bob) = (team.alice(), team.user("bob"));
    let body = bytes(1, 1000);
    let digest = team.push_blob("/repository/team/v2/secret", &body).await;
    let mount = |image: &str, digest: &str| format!("{image}/blobs/uploads/?mount={digest}");
    let public = "/repository/team/v2/public";
    // Bob may not pull the one image that has it, and gets what he would get for a blob that is nowhere.
    for digest in [&digest, &support::digest(b"nowhere")] {
        let begun = bob.ask("POST", &mount(public, digest)).await;
        assert_eq!(begun.status, 202, "{begun:?}");
        assert!(begun.header("location").ends_with(begun.header("docker-upload-uuid")), "{begun:?}");
    }
    assert_eq!(bob.get(&format!("{public}/blobs/{digest}")).await.status, 404);
    // Alice may, in the same repository and from another one; what is mounted is there to be mounted.
    for image in ["/repository/other/v2/mine", APP] {
        let mounted = alice.ask("POST", &mount(image, &digest)).await;
        assert_eq!((mounted.status, mounted.header("docker-content-digest")), (201, digest.as_str()), "{mounted:?}");
        assert_eq!(path(mounted.header("location")), format!("{image}/blobs/{digest}"));
        alice.get(&format!("{image}/blobs/{digest}")).await.assert_is(200, &body);
    }
    assert_eq!(bob.ask("POST", &mount(public, &digest)).await.status, 201, "app has it, which bob may pull");
    // What an image has already is mounted where it is.
    assert_eq!(bob.ask("POST", &mount(public, &digest)).await.status, 201);

    // A mirror's blob, if everyone may pull it, or this client.
    let seen = registry.seen().len();
    assert_eq!(bob.ask("POST", &mount(public, &mirrored)).await.status, 202);
    assert_eq!(registry.seen().len(), seen, "nobody outside is asked");
    alice.get(&format!("/repository/shut/v2/library/base/blobs/{mirrored}")).await.assert_is(200, &base);
    let of_mirror = mount("/repository/other/v2/mine", &mirrored);
    let ask = || alice.ask("POST", &of_mirror);
    support::until_answer("it is stored", ask, |answer| answer.status == 201).await;
    assert_eq!(bob.ask("POST", &mount(public, &mirrored)).await.status, 202, "only closed repositories have it");
    bob.get(&format!("/repository/hub/v2/library/base/blobs/{mirrored}")).await.assert_is(200, &base);
    assert_eq!(bob.ask("POST", &mount(public, &mirrored)).await.status, 201);
    // Who may pull from here only with a token of the image that has it needs that token.
    let token = async |scopes: &str| {
        let answer = alice.get(&format!("/v2/token?service=team{scopes}")).await;
        let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
        team.cache.client().with("authorization", &bearer)
    };
    let own = support::digest(&bytes(3, 1000));
    team.push_blob("/repository/team/v2/secret", &bytes(3, 1000)).await;
    let target = "&scope=repository:new:pull,push";
    assert_eq!(token(target).await.ask("POST", &mount("/repository/team/v2/new", &own)).await.status, 202);
    let both = token(&format!("{target}&scope=repository:secret:pull")).await;
    assert_eq!(both.ask("POST", &mount("/repository/team/v2/new", &own)).await.status, 201);
    // Who is gone has it no more.
    for image in ["secret", "new"] {
        assert_eq!(alice.ask("DELETE", &format!("/repository/team/v2/{image}/blobs/{own}")).await.status, 202);
    }
    assert_eq!(alice.ask("POST", &mount("/repository/team/v2/again", &own)).await.status, 202);

    // A new process learns from the files who has what.
    let team = team.crash().await;
    let alice = team.alice();
    let again = "/repository/team/v2/again";
    let mount = mount(again, &digest);
    let ask = || alice.ask("POST", &mount);
    support::until_answer("the files have been looked through", ask, |answer| answer.status == 201).await;
    alice.get(&format!("{again}/blobs/{digest}")).await.assert_is(200, &body);
}

#[tokio::test]
async fn a_challenge_for_a_mount_names_both_images() {
    let team = Team::start("").await;
    let body = bytes(1, 1000);
    let digest = team.push_blob("/repository/team/v2/base", &body).await;
    team.push_blob("/repository/other/v2/base", &body).await;
    let ask = |way: &str, from: &str| {
        let (client, path) = (team.cache.client(), format!("{way}/new/blobs/uploads/?mount={digest}&from={from}"));
        async move { client.ask("POST", &path).await }
    };
    let (by_path, shared) = ("/repository/team/v2", "/v2/team");
    for (way, from, scope) in [
        (by_path, "base", "repository:new:pull,push repository:base:pull"),
        (by_path, "other%2Fbase", "repository:new:pull,push repository:other/base:pull"),
        (shared, "other/base", "repository:team/new:pull,push repository:other/base:pull"),
        (shared, "r.example.com:5000/a", "repository:team/new:pull,push repository:r.example.com:5000/a:pull"),
        // Whether it is there is not told.
        (by_path, "nowhere", "repository:new:pull,push repository:nowhere:pull"),
        // What is no name is not repeated.
        (by_path, "new", "repository:new:pull,push"),
        (by_path, "", "repository:new:pull,push"),
        (by_path, "a%22,error=%22x", "repository:new:pull,push"),
        (by_path, "a%20repository:b:push", "repository:new:pull,push"),
        (by_path, "a:pull,push", "repository:new:pull,push"),
        (by_path, &"a".repeat(600), "repository:new:pull,push"),
    ] {
        let refused = ask(way, from).await;
        let service = if way == shared { "entrepot.dev" } else { "team" };
        let realm = format!("http://{}/v2/token", team.cache.address);
        let challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\",scope=\"{scope}\"");
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, challenge.as_str()), "{from}");
    }
    // Only a mount reads another image.
    let refused = team.cache.client().ask("POST", &format!("{by_path}/new/blobs/uploads/?from=base")).await;
    assert!(refused.header("www-authenticate").ends_with("scope=\"repository:new:pull,push\""), "{refused:?}");

    // A client that fetches a token for what the challenge names mounts; one for the target alone is told to get that, and only
    // who could not have it sends the blob.
    let token_of = async |user: &str, service: &str, scopes: &[&str]| {
        let scopes: Vec<String> = scopes.iter().map(|scope| format!("&scope={}", scope.replace(' ', "%20"))).collect();
        let answer = team.user(user).get(&format!("/v2/token?service={service}{}", scopes.concat())).await;
        let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
        team.cache.client().with("authorization", &bearer)
    };
    let token = async |service: &str, scopes: &[&str]| token_of("alice", service, scopes).await;
    for (way, service, target, from, number) in [
        (by_path, "team", "new", "base", 1),
        (by_path, "team", "new", "other/base", 2),
        (shared, "entrepot.dev", "team/new", "other/base", 3),
    ] {
        let path = |which: &str| format!("{way}/new{number}{which}/blobs/uploads/?mount={digest}&from={from}");
        let (own, source) =
            (|which: &str| format!("repository:{target}{number}{which}:pull,push"), format!("repository:{from}:pull"));
        let alone = token(service, &[&own("")]).await.ask("POST", &path("")).await;
        let challenge = format!("scope=\"{} {source}\",error=\"insufficient_scope\"", own(""));
        assert_eq!(alone.status, 401, "{way} {from}: {alone:?}");
        assert!(alone.header("www-authenticate").ends_with(&challenge), "{way} {from}: {alone:?}");
        let one = token(service, &[&format!("{} {source}", own(""))]).await.ask("POST", &path("")).await;
        assert_eq!(one.status, 201, "{way} {from}: {one:?}");
        let repeated = token(service, &[&own("b"), &source]).await.ask("POST", &path("b")).await;
        assert_eq!(repeated.status, 201, "{way} {from}: {repeated:?}");
    }
    let mount = format!("{by_path}/app/blobs/uploads/?mount={digest}&from=base");
    let bob = token_of("bob", "team", &["repository:app:pull,push", "repository:base:pull"]).await;
    assert_eq!(bob.ask("POST", &mount).await.status, 202, "bob may not read that image");
}

#[tokio::test]
async fn a_blob_of_a_mirror_is_mounted_and_stays_when_the_mirror_lets_it_go() {
    let registry = Registry::start().await;
    let body = bytes(1, 200_000);
    let digest = registry.blob("library/base", &body);
    let mirrored = mirror("hub", "docker.io", &registry.url(), "");
    let team = Team::with(&config("", "", &mirrored)).await;
    let alice = team.alice();
    alice.get(&format!("/repository/hub/v2/library/base/blobs/{digest}")).await.assert_is(200, &body);
    let mount = format!("{APP}/blobs/uploads/?mount={digest}&from=hub%2Flibrary%2Fbase");
    let mounted = support::until_answer("it is stored", || alice.ask("POST", &mount), |it| it.status == 201).await;
    assert_eq!(mounted.status, 201, "{mounted:?}");
    // The mirror goes from the configuration, and nothing else keeps the blob.
    std::fs::remove_dir_all(team.setup.data().join("repositories/hub")).unwrap();
    let team = team.crash().await;
    team.alice().get(&format!("{APP}/blobs/{digest}")).await.assert_is(200, &body);
}

#[tokio::test]
async fn a_push_through_a_group_goes_to_its_member_with_the_blobs_of_the_others() {
    let registry = Registry::start().await;
    let (config_of, layer, own) = (b"{\"a\":1}".to_vec(), bytes(1, 200_000), bytes(2, 1000));
    for blob in [&config_of, &layer] {
        registry.blob("app", blob);
    }
    let mirrored = mirror("hub", "hub.example.com", &registry.url(), "");
    let group = |name: &str, push_to: &str| {
        format!(
            "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: RepositoryGroup, metadata: {{name: {name}}}, spec: {{members: [team, hub]{push_to}}}}}\n"
        )
    };
    let groups = group("all", ", pushTo: team") + &group("closed", "") + &group("wrong", ", pushTo: hub");
    let team = Team::with(&config("", "", &(mirrored + &groups))).await;
    let through = |name: &str| format!("/repository/{name}/v2/app");
    let alice = team.alice();
    // As docker does it: what is there already is not sent.
    let head = alice.head(&format!("{}/blobs/{}", through("all"), digest(&layer))).await;
    assert_eq!(head.status, 200, "{head:?}");
    team.push_blob(&through("all"), &own).await;
    let manifest = manifest_of(&[&config_of, &layer, &own]);
    let pushed = team.push_manifest(&through("all"), "1", OCI_MANIFEST, &manifest).await;
    assert_eq!(pushed.status, 201, "{pushed:?}");
    alice.get(&format!("{APP}/manifests/1")).await.assert_is(200, &manifest);
    for blob in [&config_of, &layer, &own] {
        alice.get(&format!("{APP}/blobs/{}", digest(blob))).await.assert_is(200, blob);
    }
    assert_eq!(
        team.cache.client().send_body("PUT", &format!("{}/manifests/2", through("all")), &manifest).await.status,
        401
    );
    let closed = team.push_manifest(&through("closed"), "1", OCI_MANIFEST, &manifest).await;
    refused(&closed, 405, "UNSUPPORTED", "closed is a group without pushTo");
    let wrong = team.push_manifest(&through("wrong"), "1", OCI_MANIFEST, &manifest).await;
    assert_eq!(wrong.status, 503, "{wrong:?}");
}

#[tokio::test]
async fn a_manifest_is_kept_byte_for_byte_under_its_digest_and_its_tags() {
    let team = Team::start("").await;
    let alice = team.alice();
    let manifest = team.push_image(APP, "latest", 1).await;
    let own = digest(&manifest);
    let pushed = team.push_manifest(APP, &format!("{own}?tag=a&tag=b"), OCI_MANIFEST, &manifest).await;
    assert_eq!(pushed.status, 201, "{pushed:?}");
    assert_eq!(pushed.headers.get_all("oci-tag").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(path(pushed.header("location")), format!("{APP}/manifests/{own}"));
    for reference in ["latest", "a", "b", &own] {
        let found = alice.get(&format!("{APP}/manifests/{reference}")).await;
        found.assert_is(200, &manifest);
        assert_eq!((found.header("content-type"), found.header("docker-content-digest")), (OCI_MANIFEST, own.as_str()));
        let head = alice.head(&format!("{APP}/manifests/{reference}")).await;
        assert_eq!(head.header("content-length"), manifest.len().to_string());
    }
    let sha512 = Digest::of(Algorithm::Sha512, &manifest).to_string();
    let pushed = team.push_manifest(APP, "long?digest-algorithm=sha512", OCI_MANIFEST, &manifest).await;
    assert_eq!(pushed.header("docker-content-digest"), sha512, "{pushed:?}");
    alice.get(&format!("{APP}/manifests/{sha512}")).await.assert_is(200, &manifest);
    let tags = alice.get(&format!("{APP}/tags/list?n=2")).await;
    assert_eq!(tags.json(), json!({"name": "app", "tags": ["a", "b"]}));
    let next = path(tags.header("link").trim_start_matches('<').split('>').next().unwrap());
    assert_eq!(alice.get(&next).await.json()["tags"], json!(["latest", "long"]));

    // A tag goes alone; a manifest goes with its tags.
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/a")).await.status, 202);
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/a")).await.status, 404);
    assert_eq!(alice.get(&format!("{APP}/manifests/{own}")).await.status, 200);
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/{own}")).await.status, 202);
    for reference in ["latest", "b", &own] {
        assert_eq!(alice.get(&format!("{APP}/manifests/{reference}")).await.status, 404, "{reference}");
    }
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/{own}")).await.status, 404);
    let team = team.crash().await;
    assert_eq!(team.alice().get(&format!("{APP}/tags/list")).await.json()["tags"], json!(["long"]));
}

#[tokio::test]
async fn an_image_may_be_sparse_only_where_that_is_allowed() {
    let team = Team::start("sparseImages: true").await;
    let (config, layer) = (b"{}".to_vec(), b"layer".to_vec());
    let manifest = manifest_of(&[&config, &layer]);
    assert_eq!(team.push_manifest(APP, "1", OCI_MANIFEST, &manifest).await.status, 201);
    team.alice().get(&format!("{APP}/manifests/1")).await.assert_is(200, &manifest);
    assert_eq!(team.alice().get(&format!("{APP}/blobs/{}", digest(&layer))).await.status, 404);
    team.push_blob(APP, &layer).await;
    team.alice().get(&format!("{APP}/blobs/{}", digest(&layer))).await.assert_is(200, &layer);

    // `other` does not allow it.
    let elsewhere = team.push_manifest("/repository/other/v2/app", "1", OCI_MANIFEST, &manifest).await;
    refused(&elsewhere, 400, "MANIFEST_BLOB_UNKNOWN", &digest(&layer));
}

#[tokio::test]
async fn a_manifest_that_is_wrong_is_refused_with_what_is_wrong() {
    let team = Team::start("").await;
    let (config, layer) = (b"{}".to_vec(), b"layer".to_vec());
    let manifest = manifest_of(&[&config, &layer]);
    let config_digest = team.push_blob(APP, &config).await;
    let missing = team.push_manifest(APP, "1", OCI_MANIFEST, &manifest).await;
    refused(&missing, 400, "MANIFEST_BLOB_UNKNOWN", &digest(&layer));
    assert!(!missing.text().contains(&config_digest));
    assert_eq!(missing.json()["errors"][0]["detail"]["digests"], json!([digest(&layer)]));
    // A blob of another image is none of this one.
    team.push_blob("/repository/team/v2/public", &layer).await;
    assert_eq!(team.push_manifest(APP, "1", OCI_MANIFEST, &manifest).await.status, 400);
    team.push_blob(APP, &layer).await;

    let other = team.push_manifest(APP, &digest(b"other"), OCI_MANIFEST, &manifest).await;
    refused(&other, 400, "DIGEST_INVALID", "hashes to");
    refused(&team.push_manifest(APP, "1", OCI_INDEX, &manifest).await, 400, "MANIFEST_INVALID", "must be the same");
    refused(&team.push_manifest(APP, "1", OCI_MANIFEST, b"nonsense").await, 400, "MANIFEST_INVALID", "JSON");
    let schema1 = br#"{"schemaVersion":1,"name":"x","tag":"1","fsLayers":[],"history":[]}"#;
    let old = team.push_manifest(APP, "1", "application/vnd.docker.distribution.manifest.v1+prettyjws", schema1).await;
    refused(&old, 400, "MANIFEST_INVALID", "schema 1");
    let text = String::from_utf8(manifest.clone()).unwrap();
    let resized = text.replace("\"size\": 5", "\"size\": 6");
    assert_ne!(resized, text);
    refused(&team.push_manifest(APP, "1", OCI_MANIFEST, resized.as_bytes()).await, 400, "SIZE_INVALID", "has 5");
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    refused(&team.push_manifest(APP, "1", OCI_MANIFEST, &large).await, 413, "SIZE_INVALID", "at most");
    assert_eq!(team.alice().get(&format!("{APP}/tags/list")).await.status, 404);
    assert_eq!(team.push_manifest(APP, "1", OCI_MANIFEST, &manifest).await.status, 201);
}

#[tokio::test]
async fn an_index_may_be_sparse_and_referrers_follow_what_is_pushed_and_deleted() {
    let team = Team::start("").await;
    let alice = team.alice();
    let image = team.push_image(APP, "image", 1).await;
    let descriptor = json!({"mediaType": OCI_MANIFEST, "digest": digest(&image), "size": image.len()});
    let absent = json!({"mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6});
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor, absent],
        "subject": absent, "artifactType": "example/list", "annotations": {"a": "b"},
    });
    let index = index.to_string().into_bytes();
    let pushed = team.push_manifest(APP, "index", OCI_INDEX, &index).await;
    assert_eq!((pushed.status, pushed.header("oci-subject")), (201, digest(b"absent").as_str()), "{pushed:?}");

    let referrers = |subject: String, query: &'static str| {
        let alice = alice.clone();
        async move {
            let answer = alice.get(&format!("{APP}/referrers/{subject}{query}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()["manifests"].clone()
        }
    };
    let mut signature: serde_json::Value = serde_json::from_slice(&image).unwrap();
    signature["subject"] = absent.clone();
    let signature = signature.to_string().into_bytes();
    assert_eq!(team.push_manifest(APP, &digest(&signature), OCI_MANIFEST, &signature).await.status, 201);
    // Pushed again, it stands there once.
    assert_eq!(team.push_manifest(APP, "signature", OCI_MANIFEST, &signature).await.status, 201);
    let entry = |media_type: &str, artifact_type: &str, body: &[u8]| json!({"mediaType": media_type, "digest": digest(body), "size": body.len(), "artifactType": artifact_type});
    let mut listed = entry(OCI_INDEX, "example/list", &index);
    listed["annotations"] = json!({"a": "b"});
    let signed = entry(OCI_MANIFEST, "application/vnd.oci.image.config.v1+json", &signature);
    assert_eq!(referrers(digest(b"absent"), "").await, json!([listed, signed]));
    assert_eq!(referrers(digest(b"absent"), "?artifactType=example/list").await, json!([listed]));
    assert_eq!(referrers(digest(b"nothing"), "").await, json!([]));
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/{}", digest(&index))).await.status, 202);
    assert_eq!(referrers(digest(b"absent"), "").await, json!([signed]));
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/{}", digest(&signature))).await.status, 202);
    assert_eq!(referrers(digest(b"absent"), "").await, json!([]));
}

#[tokio::test]
async fn immutable_tags_and_what_they_lead_to_stay() {
    let team = Team::start("immutableTags: ['v*']").await;
    let alice = team.alice();
    let one = team.push_image(APP, "v1", 1).await;
    let two = team.push_image(APP, "latest", 2).await;
    let child = json!({"mediaType": OCI_MANIFEST, "digest": digest(&two), "size": two.len()});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).to_string().into_bytes();
    assert_eq!(team.push_manifest(APP, "v2", OCI_INDEX, &index).await.status, 201);

    refused(&team.push_manifest(APP, "v1", OCI_MANIFEST, &two).await, 403, "DENIED", "immutable");
    let by_query = team.push_manifest(APP, &format!("{}?tag=new&tag=v1", digest(&two)), OCI_MANIFEST, &two).await;
    refused(&by_query, 403, "DENIED", "immutable");
    assert_eq!(alice.get(&format!("{APP}/manifests/new")).await.status, 404, "all of a push counts, or nothing");
    assert_eq!(team.push_manifest(APP, "v1", OCI_MANIFEST, &one).await.status, 201, "the same again is fine");
    assert_eq!(team.push_manifest(APP, "latest", OCI_MANIFEST, &one).await.status, 201);
    let layer = digest(&bytes(2, 10_000));
    for path in [
        "manifests/v1".to_owned(),
        format!("manifests/{}", digest(&one)),
        format!("manifests/{}", digest(&two)),
        format!("blobs/{layer}"),
    ] {
        refused(&alice.ask("DELETE", &format!("{APP}/{path}")).await, 405, "DENIED", "immutable");
    }
    alice.get(&format!("{APP}/manifests/v1")).await.assert_is(200, &one);
    assert_eq!(alice.ask("DELETE", &format!("{APP}/manifests/latest")).await.status, 202);
}

#[tokio::test]
async fn a_write_policy_holds_for_every_way_in() {
    let team = Team::start("writePolicy: AllowOnce").await;
    let one = team.push_image(APP, "1", 1).await;
    let two = team.push_image(APP, "2", 2).await;
    refused(&team.push_manifest(APP, "1", OCI_MANIFEST, &two).await, 403, "DENIED", "AllowOnce");
    assert_eq!(team.push_manifest(APP, "1", OCI_MANIFEST, &one).await.status, 201);
    let upload = team.begin(APP).await;

    team.setup.configure(&config("writePolicy: ReadOnly", "", ""));
    team.cache.reload();
    let alice = team.alice();
    let begin = format!("{APP}/blobs/uploads/");
    support::until_answer("it is read-only", || alice.ask("POST", &begin), |answer| answer.status == 405).await;
    let blob = digest(&bytes(1, 10_000));
    let put = format!("{upload}?digest={blob}");
    let (by_digest, mount) = (format!("{APP}/manifests/{}", digest(&one)), format!("{begin}?mount={blob}&from=app"));
    let (single, of_blob) = (format!("{begin}?digest={blob}"), format!("{APP}/blobs/{blob}"));
    let (by_tag, query) = (format!("{APP}/manifests/1"), format!("{by_digest}?tag=3"));
    for (method, path) in [
        ("POST", &begin),
        ("POST", &mount),
        ("POST", &single),
        ("PATCH", &upload),
        ("PUT", &put),
        ("PUT", &by_tag),
        ("PUT", &query),
        ("DELETE", &by_tag),
        ("DELETE", &by_digest),
        ("DELETE", &of_blob),
    ] {
        let answer = alice.with("content-type", OCI_MANIFEST).send_body(method, path, &one).await;
        refused(&answer, 405, "UNSUPPORTED", "ReadOnly");
    }
    alice.get(&by_tag).await.assert_is(200, &one);
}

#[tokio::test]
async fn nobody_pushes_or_deletes_without_a_permission() {
    let team = Team::with(&config("anonymousPull: true", "", "").replacen("anonymousPull: false, ", "", 1)).await;
    let manifest = team.push_image("/repository/team/v2/secret", "1", 1).await;
    let nobody = team.cache.client();
    nobody.get("/repository/team/v2/secret/manifests/1").await.assert_is(200, &manifest);
    let upload = team.begin("/repository/team/v2/secret").await;
    let base = "/repository/team/v2/secret";
    let blob = digest(b"x");
    for (client, status) in [(nobody, 401), (team.user("bob"), 403)] {
        for (method, path) in [
            ("POST", format!("{base}/blobs/uploads/")),
            ("POST", format!("{base}/blobs/uploads/?digest={blob}")),
            ("POST", format!("{base}/blobs/uploads/?mount={blob}&from=app")),
            ("GET", upload.clone()),
            ("PATCH", upload.clone()),
            ("PUT", format!("{upload}?digest={blob}")),
            ("DELETE", upload.clone()),
            ("PUT", format!("{base}/manifests/1")),
            ("DELETE", format!("{base}/manifests/1")),
            ("DELETE", format!("{base}/blobs/{blob}")),
        ] {
            assert_eq!(client.send_body(method, &path, b"x").await.status, status, "{method} {path}");
        }
    }
    // Bob may push to this image, and not delete from it.
    let pusher = team.user("bob");
    assert_eq!(pusher.ask("POST", &format!("{APP}/blobs/uploads/")).await.status, 202);
    assert_eq!(pusher.ask("DELETE", &format!("{APP}/manifests/1")).await.status, 403);
}

#[tokio::test]
async fn a_full_store_takes_nothing_and_says_so() {
    let team = Team::with(&config("", "  maxSize: 1Mi\n", "")).await;
    let alice = team.alice();
    let kept = team.push_image(APP, "1", 1).await;
    let body = bytes(9, 2 * 1024 * 1024);
    let single = format!("{APP}/blobs/uploads/?digest={}", digest(&body));
    refused(&alice.send_body("POST", &single, &body).await, 507, "INSUFFICIENT_STORAGE", "maxSize");
    let upload = team.begin(APP).await;
    refused(&alice.send_body("PATCH", &upload, &body).await, 507, "INSUFFICIENT_STORAGE", "maxSize");
    assert_eq!(alice.get(&upload).await.status, 404);
    // Without a length it shows on the way.
    let upload = team.begin(APP).await;
    let secret = base64::engine::general_purpose::STANDARD.encode("alice:alice's");
    let mut stream = TcpStream::connect(team.cache.address).await.unwrap();
    let head = format!(
        "PATCH {upload} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {secret}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.write_all(b"\r\n0\r\n\r\n").await.unwrap();
    let mut answer = [0_u8; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 507");
    until("nothing is left", || team.uploads() == 0).await;
    // What was pushed before is not taken away for it.
    alice.get(&format!("{APP}/manifests/1")).await.assert_is(200, &kept);
    alice.get(&format!("{APP}/blobs/{}", digest(&bytes(1, 10_000)))).await.assert_is(200, &bytes(1, 10_000));
    team.push_blob(APP, b"small").await;
}

/// Has everything in a folder look as if it had been touched last so long ago.
fn age(folder: &std::path::Path, by: Duration) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            age(&entry.path(), by);
        } else {
            std::fs::File::open(entry.path()).unwrap().set_modified(SystemTime::now() - by).unwrap();
        }
    }
}

#[tokio::test]
async fn a_sweep_takes_old_uploads_and_forgotten_blobs_and_no_image() {
    let team = Team::start("").await;
    let manifest = team.push_image(APP, "1", 1).await;
    let forgotten = team.push_blob(APP, b"forgotten").await;
    let kept = team.push_image("/repository/other/v2/app", "1", 2).await;
    let upload = team.begin(APP).await;
    team.alice().send_body("PATCH", &upload, b"begun").await;
    let Team { setup, cache } = team;
    cache.kill().await;
    age(&setup.data(), Duration::from_hours(25));
    // `other` goes from the configuration; it may come back.
    let with_other = config("", "", "");
    setup.configure(&with_other[..with_other.rfind("---").unwrap()]);
    let cache = setup.start().await;
    until("the sweep has been there", || files(&setup.data().join("uploads")).is_empty()).await;
    let forgotten_file = support::blob_path(&setup.data(), &forgotten);
    until("the forgotten blob is gone", || !forgotten_file.exists()).await;
    setup.configure(&with_other);
    cache.reload();
    let team = Team { setup, cache };
    let alice = team.alice();
    alice.get(&format!("{APP}/manifests/1")).await.assert_is(200, &manifest);
    alice.get(&format!("{APP}/blobs/{}", digest(&bytes(1, 10_000)))).await.assert_is(200, &bytes(1, 10_000));
    assert_eq!(alice.get(&format!("{APP}/blobs/{forgotten}")).await.status, 404);
    let other = "/repository/other/v2/app";
    let manifests = format!("{other}/manifests/1");
    let back = support::until_answer("it is back", || alice.get(&manifests), |it| it.status == 200).await;
    back.assert_is(200, &kept);
    alice.get(&format!("{other}/blobs/{}", digest(&bytes(2, 10_000)))).await.assert_is(200, &bytes(2, 10_000));
}

#[tokio::test]
async fn a_sweep_that_cannot_read_a_record_takes_nothing() {
    let team = Team::start("retention: {unusedFor: 1h}").await;
    team.push_image(APP, "1", 1).await;
    let Team { setup, cache } = team;
    cache.kill().await;
    age(&setup.data(), Duration::from_hours(25));
    let links = setup.data().join("repositories/team/app/_links/sha256");
    let record = links.join(&files(&links)[0]);
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, b"{").unwrap();
    // An upload that is as old shows that the sweep was there.
    let old = setup.data().join("uploads").join("0".repeat(32));
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("data"), b"").unwrap();
    age(&old, Duration::from_hours(25));
    let cache = setup.start().await;
    until("the sweep has been there", || !old.exists()).await;
    cache.kill().await;
    assert!(support::blob_path(&setup.data(), &digest(&bytes(1, 10_000))).exists());
    std::fs::write(&record, whole).unwrap();
    std::fs::File::open(&record).unwrap().set_modified(SystemTime::now() - Duration::from_hours(25)).unwrap();
    let _cache = setup.start().await;
    until("its retention takes the image", || files(&links).is_empty()).await;
    until("and its tag", || files(&setup.data().join("repositories/team/app/_tags")).is_empty()).await;
}
