//! What is kept, for whom, and how damage is found.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::support::{
    self, Cache, Gate, OCI_MANIFEST, Play, Registry, Setup, blob_path, bytes, files, manifest_of, mirror, until,
};

const MIB: usize = 1024 * 1024;

/// A blob that is stored, and the server that has it.
struct Case {
    registry: Registry,
    setup: Setup,
    cache: Cache,
    body: Vec<u8>,
    digest: String,
    path: String,
    file: PathBuf,
}

impl Case {
    async fn stored(length: usize) -> Self {
        let registry = Registry::start().await;
        let setup = Setup::mirroring(&registry);
        let cache = setup.start().await;
        let body = bytes(length as u64, length);
        let digest = registry.blob("team/app", &body);
        let path = format!("/v2/team/app/blobs/{digest}");
        cache.client().get(&path).await.assert_is(200, &body);
        let file = blob_path(&setup.data(), &digest);
        let client = cache.client();
        support::until_answer(
            "the fill has ended",
            || client.get("/metrics"),
            |metrics| metrics.text().contains("entrepot_fills_running 0\n"),
        )
        .await;
        assert!(file.exists());
        Self { registry, setup, cache, body, digest, path, file }
    }

    async fn restarted(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { registry, setup, cache, body, digest, path, file } = self;
        cache.kill().await;
        meanwhile(&file);
        let cache = setup.start().await;
        Self { registry, setup, cache, body, digest, path, file }
    }

    /// Whether the next complete answer is right and the blob is stored right again; how often the upstream was asked.
    async fn assert_repaired(&self, name: &str) {
        let first = self.cache.client().try_get(&self.path).await;
        if first.status == 200 && first.complete {
            assert!(first.body == self.body, "{name}: damaged bytes were served");
        } else {
            assert!(self.body.len() > 64 * 1024 && first.body.len() < self.body.len(), "{name}: {first:?}");
        }
        self.cache.client().get(&self.path).await.assert_is(200, &self.body);
        assert_eq!(self.registry.ranges(&self.digest).len(), 2, "{name}: fetched again, once");
        until("it is stored again", || std::fs::read(&self.file).is_ok_and(|bytes| bytes == self.body)).await;
    }
}

fn flip(file: &Path) {
    let length = file.metadata().unwrap().len();
    let byte = std::fs::read(file).unwrap()[usize::try_from(length / 2).unwrap()];
    let mut open = File::options().write(true).open(file).unwrap();
    open.seek(SeekFrom::Start(length / 2)).unwrap();
    open.write_all(&[byte ^ 0x10]).unwrap();
}

fn truncate(file: &Path) {
    let open = File::options().write(true).open(file).unwrap();
    open.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

fn lengthen(file: &Path) {
    File::options().append(true).open(file).unwrap().write_all(b"more").unwrap();
}

fn replace(file: &Path) {
    let other = file.with_extension("new");
    std::fs::write(&other, vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()]).unwrap();
    std::fs::rename(other, file).unwrap();
}

fn remove(file: &Path) {
    std::fs::remove_file(file).unwrap();
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 5] = [
    ("bit flip", flip),
    ("truncation", truncate),
    ("appendix", lengthen),
    ("replacement", replace),
    ("removal", remove),
];

#[tokio::test]
async fn damage_done_while_the_server_is_stopped_is_found_and_repaired() {
    for length in [1000, 100_000, 2 * MIB] {
        for (name, damage) in DAMAGES {
            Case::stored(length).await.restarted(damage).await.assert_repaired(&format!("{name} of {length}")).await;
        }
    }
}

#[tokio::test]
async fn damage_done_while_the_server_runs_is_found_and_repaired() {
    // Smaller ones are served from memory, which is right all the same.
    for (name, damage) in DAMAGES {
        let case = Case::stored(2 * MIB).await;
        damage(&case.file);
        case.assert_repaired(name).await;
    }
}

#[tokio::test]
async fn a_damaged_blob_is_put_aside_and_counted() {
    let case = Case::stored(2 * MIB).await.restarted(flip).await;
    case.assert_repaired("bit flip").await;
    assert!((case.cache.metric("entrepot_store_quarantined_blobs_total").await - 1.0).abs() < 0.1);
    let trash = files(&case.setup.data().join("trash"));
    assert!(trash.iter().any(|name| name.starts_with("damaged-sha256-")), "{trash:?}");
}

#[tokio::test]
async fn a_range_of_a_damaged_blob_is_never_served_whole() {
    let case = Case::stored(2 * MIB).await.restarted(flip).await;
    // The tail is read only after all has been hashed.
    let answer = case.cache.client().with("range", "bytes=2000000-").try_get(&case.path).await;
    assert!(!answer.complete || answer.body == case.body[2_000_000..], "{answer:?}");
    case.cache.client().range(&case.path, "1000000-").await.assert_is(206, &case.body[1_000_000..]);
}

#[tokio::test]
async fn a_damaged_manifest_is_found_and_fetched_again() {
    for (name, damage) in DAMAGES {
        let registry = Registry::start().await;
        let setup = Setup::mirroring(&registry);
        let cache = setup.start().await;
        let body = manifest_of(&[b"config"]);
        let digest = registry.manifest("team/app", "1", OCI_MANIFEST, &body);
        cache.client().get("/v2/team/app/manifests/1").await.assert_is(200, &body);
        cache.kill().await;
        let file = blob_path(&setup.data(), &digest);
        damage(&file);
        let cache = setup.start().await;
        for reference in [&digest, "1"] {
            let answer = cache.client().get(&format!("/v2/team/app/manifests/{reference}")).await;
            answer.assert_is(200, &body);
            assert_eq!(answer.header("content-type"), OCI_MANIFEST, "{name}");
        }
        assert_eq!(registry.count("GET", "/manifests/"), 2, "{name}");
        assert!(std::fs::read(&file).unwrap() == body, "{name}");
    }
}

#[tokio::test]
async fn records_that_are_damaged_count_as_missing() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let (layer, body) = (bytes(1, 200_000), manifest_of(&[b"config"]));
    let digest = registry.blob("team/app", &layer);
    registry.manifest("team/app", "1", OCI_MANIFEST, &body);
    let paths = ["/v2/team/app/manifests/1".to_owned(), format!("/v2/team/app/blobs/{digest}")];
    cache.client().get(&paths[0]).await.assert_is(200, &body);
    cache.client().get(&paths[1]).await.assert_is(200, &layer);
    until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
    cache.kill().await;
    let mut spoiled = 0;
    for_each_file(&setup.data().join("repositories/hub"), &mut |file| {
        if file.file_name().unwrap() != "_identity" {
            std::fs::write(file, if spoiled % 2 == 0 { "" } else { "{\"size\":" }).unwrap();
            spoiled += 1;
        }
    });
    assert_eq!(spoiled, 3, "a tag, a manifest and a link");
    let cache = setup.start().await;
    cache.client().get(&paths[0]).await.assert_is(200, &body);
    cache.client().get(&paths[1]).await.assert_is(200, &layer);
}

fn for_each_file(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { for_each_file(&path, visit) } else { visit(&path) }
    }
}

#[tokio::test]
async fn another_upstream_or_user_begins_with_nothing() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let setup = Setup::mirroring(&one);
    let cache = setup.start().await;
    let body = manifest_of(&[b"config"]);
    let layer = bytes(1, 100_000);
    one.manifest("team/app", "1", OCI_MANIFEST, &body);
    let blob = format!("/v2/team/app/blobs/{}", one.blob("team/app", &layer));
    cache.client().get("/v2/team/app/manifests/1").await.assert_is(200, &body);
    cache.client().get(&blob).await.assert_is(200, &layer);
    cache.kill().await;
    setup.configure(&mirror("hub", "docker.io", &two.url(), ""));
    let cache = setup.start().await;
    let by_digest = format!("/v2/team/app/manifests/{}", support::digest(&body));
    for path in ["/v2/team/app/manifests/1", &by_digest, &blob] {
        assert_eq!(cache.client().get(path).await.status, 404, "{path}");
        assert_eq!(cache.client().head(path).await.status, 404, "{path}");
    }
    let old = setup.data().join("trash");
    until("the old tree is removed", || !files(&old).iter().any(|name| name.starts_with("repository-"))).await;

    // The same while the server runs, with another user.
    cache.kill().await;
    setup.configure(&mirror("hub", "docker.io", &one.url(), ""));
    let mut cache = setup.start().await;
    cache.client().get(&blob).await.assert_is(200, &layer);
    setup.secret("login", "username", "somebody");
    setup.secret("login", "password", "secret");
    let denies = |seen: &support::Seen| {
        if seen.headers.contains_key("authorization") {
            Play::Good
        } else {
            Play::Status(401, vec![("www-authenticate", "Basic realm=\"r\"")])
        }
    };
    one.play(denies);
    one.remove(&blob);
    let with_user = mirror("hub", "docker.io", &one.url(), "anonymousPull: true")
        .replace("    limits: {}", "    credentialsSecretRef: {name: login}\n    limits: {}");
    setup.configure(&with_user);
    cache.reload();
    let client = cache.client();
    support::until_answer("the other user has nothing", || client.get(&blob), |answer| answer.status == 404).await;
    cache.begin_stop();
    cache.drained().await;
}

#[tokio::test]
async fn a_new_password_of_the_same_user_keeps_what_is_there() {
    let registry = Registry::start().await;
    let setup = Setup::new(
        &mirror("hub", "docker.io", &registry.url(), "anonymousPull: true")
            .replace("    limits: {}", "    credentialsSecretRef: {name: login}\n    limits: {}"),
    );
    setup.secret("login", "username", "somebody");
    setup.secret("login", "password", "old");
    let cache = setup.start().await;
    let layer = bytes(1, 100_000);
    let digest = registry.blob("team/app", &layer);
    let blob = format!("/v2/team/app/blobs/{digest}");
    cache.client().get(&blob).await.assert_is(200, &layer);
    setup.secret("login", "password", "new");
    cache.reload();
    let accepted = "entrepot_config_reloads_total{result=\"ok\"}";
    support::until_answer(
        "the reload is done",
        || async { cache.client().get("/metrics").await },
        |metrics| metrics.text().contains(&format!("{accepted} 1")),
    )
    .await;
    cache.client().get(&blob).await.assert_is(200, &layer);
    assert_eq!(registry.ranges(&digest).len(), 1);
}

/// Two mirrors over one store: `open`'s upstream has the blob, `closed`'s denies everything with `status`.
async fn two_mirrors(status: u16) -> (Registry, Registry, Setup, Cache) {
    let (open, closed) = (Registry::start().await, Registry::start().await);
    let setup = Setup::new(
        &(mirror("open", "open.example", &open.url(), "") + &mirror("closed", "closed.example", &closed.url(), "")),
    );
    closed.play_all(Play::Status(status, vec![]));
    let cache = setup.start().await;
    (open, closed, setup, cache)
}

#[tokio::test]
async fn a_blob_of_one_mirror_is_not_served_by_another_whose_upstream_denies_it() {
    for status in [401, 403, 404, 503] {
        for length in [100, 100_000, 300_000] {
            let (open, closed, setup, cache) = two_mirrors(status).await;
            let client = cache.client();
            let body = bytes(length as u64, length);
            let digest = open.blob("team/app", &body);
            client.get(&format!("/repository/open/v2/team/app/blobs/{digest}")).await.assert_is(200, &body);
            until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
            let foreign = format!("/repository/closed/v2/team/app/blobs/{digest}");
            let expected = if status == 503 { 503 } else { 404 };
            for _ in 0..2 {
                let head = client.head(&foreign).await;
                assert_eq!(head.status, expected, "{status}: {head:?}");
                assert_eq!(head.header("docker-content-digest"), "", "says nothing about it");
                for answer in [client.get(&foreign).await, client.range(&foreign, "0-9").await] {
                    assert_eq!(answer.status, expected, "{status}: {answer:?}");
                }
            }
            // Its own yes opens it, and then without a byte from there.
            closed.blob("team/app", &body);
            closed.play_all(Play::Good);
            let other_image = format!("/repository/closed/v2/team/other/blobs/{digest}");
            assert_eq!(client.get(&other_image).await.status, 404);
        }
    }
}

#[tokio::test]
async fn a_blob_that_its_own_upstream_has_too_is_shared_after_one_question() {
    let (open, closed, setup, cache) = two_mirrors(404).await;
    let body = bytes(1, 300_000);
    let digest = open.blob("team/app", &body);
    closed.blob("team/app", &body);
    closed.play_all(Play::Good);
    let client = cache.client();
    client.get(&format!("/repository/open/v2/team/app/blobs/{digest}")).await.assert_is(200, &body);
    until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
    for _ in 0..3 {
        client.get(&format!("/repository/closed/v2/team/app/blobs/{digest}")).await.assert_is(200, &body);
    }
    assert_eq!((closed.count("HEAD", &digest), closed.count("GET", &digest)), (1, 0));
}

#[tokio::test]
async fn a_running_fill_of_one_mirror_is_not_shared_with_another_whose_upstream_denies_it() {
    for status in [401, 404] {
        let (open, _closed, _setup, cache) = two_mirrors(status).await;
        let client = cache.client();
        let body = bytes(1, MIB);
        let digest = open.blob("team/app", &body);
        let gate = Gate::closed();
        open.play_blob_gets(vec![Play::Hold(500_000, gate.clone())]);
        let mut running = client.open("GET", &format!("/repository/open/v2/team/app/blobs/{digest}")).await;
        running.read(1000).await;
        let foreign = format!("/repository/closed/v2/team/app/blobs/{digest}");
        for answer in [client.get(&foreign).await, client.head(&foreign).await, client.range(&foreign, "10-19").await] {
            assert_eq!(answer.status, 404, "{answer:?}");
        }
        gate.open();
        running.rest().await.assert_is(200, &body);
        assert_eq!(client.get(&foreign).await.status, 404);
    }
}

#[tokio::test]
async fn a_fill_that_is_not_answered_yet_is_not_shared_with_another_whose_upstream_denies_it() {
    let (open, _closed, _setup, cache) = two_mirrors(401).await;
    let client = cache.client();
    let body = bytes(1, MIB);
    let digest = open.blob("team/app", &body);
    let gate = Gate::closed();
    open.play_blob_gets(vec![Play::Hold(0, gate.clone())]);
    let (own, foreign) = (
        format!("/repository/open/v2/team/app/blobs/{digest}"),
        format!("/repository/closed/v2/team/app/blobs/{digest}"),
    );
    let asks = async {
        until("the fill has begun", || open.count("GET", &digest) == 1).await;
        let waits = client.get(&foreign);
        let (denied, ()) = tokio::join!(waits, async {
            tokio::task::yield_now().await;
            gate.open();
        });
        denied
    };
    let (served, denied) = tokio::join!(client.get(&own), asks);
    served.assert_is(200, &body);
    assert_eq!(denied.status, 404);
}

#[tokio::test]
async fn a_fill_that_another_mirror_was_denied_fails_nobody_else() {
    for status in [401, 404, 503] {
        let (open, closed, _setup, cache) = two_mirrors(status).await;
        let client = cache.client();
        let body = bytes(1, 300_000);
        let digest = open.blob("team/app", &body);
        let gate = Gate::closed();
        closed.play_all(Play::HoldThenStatus(gate.clone(), status));
        let (own, foreign) = (
            format!("/repository/open/v2/team/app/blobs/{digest}"),
            format!("/repository/closed/v2/team/app/blobs/{digest}"),
        );
        let asks = async {
            until("the other mirror's fill has begun", || closed.count("GET", &digest) == 1).await;
            let several = futures_util::future::join_all((0..5).map(|_| client.get(&own)));
            let (served, ()) = tokio::join!(several, async {
                until("all wait", || cache.server().connections.len() >= 6).await;
                // Nothing tells that the last of them has joined; a moment is enough, and less would test less.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                gate.open();
            });
            served
        };
        let (denied, served) = tokio::join!(client.get(&foreign), asks);
        assert_eq!(denied.status, if status == 503 { 503 } else { 404 }, "{denied:?}");
        for answer in served {
            answer.assert_is(200, &body);
        }
        assert_eq!(open.count("GET", &digest), 1);
    }
}

#[tokio::test]
async fn a_manifest_of_one_mirror_is_not_served_by_another() {
    let (open, closed, _setup, cache) = two_mirrors(404).await;
    let body = manifest_of(&[b"config"]);
    let digest = open.manifest("team/app", "1", OCI_MANIFEST, &body);
    let client = cache.client();
    client.get("/repository/open/v2/team/app/manifests/1").await.assert_is(200, &body);
    for reference in ["1", &digest] {
        let path = format!("/repository/closed/v2/team/app/manifests/{reference}");
        assert_eq!(client.get(&path).await.status, 404);
        assert_eq!(client.head(&path).await.status, 404);
    }
    // Nor as a blob, nor under another name.
    assert_eq!(client.get(&format!("/repository/open/v2/team/app/blobs/{digest}")).await.status, 404);
    assert_eq!(client.get(&format!("/repository/open/v2/team/other/manifests/{digest}")).await.status, 404);
    assert!(closed.count("HEAD", "") + closed.count("GET", "") >= 2);
}

#[tokio::test]
async fn a_store_that_gets_full_lets_go_what_was_used_least_recently() {
    let registry = Registry::start().await;
    let server =
        "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\nspec: {maxSize: 8Mi}\n";
    let setup = Setup::new(&(mirror("hub", "docker.io", &registry.url(), "") + server));
    let cache = setup.start().await;
    let client = cache.client();
    let bodies: Vec<Vec<u8>> = (0..16).map(|number| bytes(number, MIB)).collect();
    let digests: Vec<String> = bodies.iter().map(|body| registry.blob("team/app", body)).collect();
    let folder = setup.data();
    let stored = || digests.iter().filter(|digest| blob_path(&folder, digest).exists()).count();
    for (body, digest) in bodies.iter().zip(&digests) {
        client.get(&format!("/v2/team/app/blobs/{digest}")).await.assert_is(200, body);
        assert!(stored() <= 8, "{} MiB are stored", stored());
        until("the blob is stored", || blob_path(&folder, digest).exists()).await;
    }
    until("it is cleaned", || stored() <= 6).await;
    assert!(blob_path(&folder, &digests[15]).exists(), "the newest stays");
    assert!(!blob_path(&folder, &digests[0]).exists(), "the oldest goes");
    let used = cache.metric("entrepot_store_used_bytes").await;
    assert!((used - f64::from(u32::try_from(stored() * MIB).unwrap())).abs() < 1.0, "{used}");
    // What went comes again.
    client.get(&format!("/v2/team/app/blobs/{}", digests[0])).await.assert_is(200, &bodies[0]);
    assert_eq!(registry.ranges(&digests[0]).len(), 2);
}

#[tokio::test]
async fn a_blob_larger_than_the_store_is_handed_on_and_not_kept() {
    let registry = Registry::start().await;
    let server =
        "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\nspec: {maxSize: 1Mi}\n";
    let setup = Setup::new(&(mirror("hub", "docker.io", &registry.url(), "") + server));
    let cache = setup.start().await;
    let body = bytes(1, 3 * MIB);
    let digest = registry.blob("team/app", &body);
    for _ in 0..2 {
        cache.client().get(&format!("/v2/team/app/blobs/{digest}")).await.assert_is(200, &body);
        until("nothing is left of it", || files(&setup.data().join("partial")).is_empty()).await;
        assert!(!blob_path(&setup.data(), &digest).exists());
    }
    assert!(cache.metric("entrepot_store_used_bytes").await.abs() < 1.0);
}
