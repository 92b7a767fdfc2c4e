//! What is served while the upstream fails, denies or changes its mind.

use std::time::{Duration, Instant};

use crate::support::{
    self, Answer, Cache, Client, OCI_MANIFEST, Play, Registry, Setup, bytes, manifest_of, mirror, until, until_answer,
};

const TAG: &str = "/v2/team/app/manifests/latest";
const NS: &str = "?ns=docker.io";

struct Case {
    registry: Registry,
    setup: Setup,
    cache: Cache,
    body: Vec<u8>,
}

impl Case {
    /// With a warm tag that is never fresh.
    async fn stale() -> Self {
        Self::with("freshness: {tags: 0s}").await
    }

    async fn with(fields: &str) -> Self {
        let case = Self::cold(fields).await;
        case.client().get(TAG).await.assert_is(200, &case.body);
        case
    }

    async fn cold(fields: &str) -> Self {
        let registry = Registry::start().await;
        let setup = Setup::new(
            &mirror("hub", "docker.io", &registry.url(), fields)
                .replace("limits: {}", "limits: {header: 1s, headerWithCopy: 300ms}"),
        );
        let cache = setup.start().await;
        let body = manifest_of(&[b"config"]);
        registry.manifest("team/app", "latest", OCI_MANIFEST, &body);
        Self { registry, setup, cache, body }
    }

    fn client(&self) -> Client {
        self.cache.client()
    }

    fn break_with(&self, status: u16) {
        self.registry.play_all(Play::Status(status, vec![]));
    }
}

fn assert_stale(answer: &Answer, body: &[u8]) {
    answer.assert_is(200, body);
    assert!(answer.header("warning").starts_with("110 "), "{answer:?}");
}

#[tokio::test]
async fn a_cached_tag_is_served_whatever_the_outage() {
    for play in [
        Play::Status(500, vec![]),
        Play::Status(502, vec![]),
        Play::Status(503, vec![]),
        Play::Status(429, vec![("retry-after", "60")]),
        Play::Status(418, vec![]),
        Play::Other(b"<html>a captive portal</html>".to_vec()),
        Play::Hang,
    ] {
        let case = Case::stale().await;
        case.registry.play_all(play.clone());
        let started = Instant::now();
        for path in [TAG.to_owned(), format!("{TAG}{NS}")] {
            let answer = case.client().get(&path).await;
            answer.assert_is(200, &case.body);
            case.client().head(&path).await.assert_is(200, b"");
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{play:?}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_stale_answer_says_so() {
    let case = Case::stale().await;
    case.break_with(503);
    assert_stale(&case.client().get(TAG).await, &case.body);
    case.registry.play_all(Play::Good);
    let answer = case.client().get(TAG).await;
    assert_eq!(answer.header("warning"), "");
}

#[tokio::test]
async fn without_a_copy_an_outage_is_503_and_a_rate_limit_stays_429_for_direct_clients_only() {
    let case = Case::cold("").await;
    let blob = case.registry.blob("team/app", &bytes(1, 1000));
    let blob = format!("/v2/team/app/blobs/{blob}");
    let docker = case.client().with("user-agent", "docker/28.0.0 go/go1.24");
    for status in [500, 503] {
        case.break_with(status);
        for path in [TAG, &blob, "/v2/team/app/tags/list"] {
            for answer in
                [case.client().get(path).await, case.client().get(&format!("{path}{NS}")).await, docker.get(path).await]
            {
                assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{path}: {answer:?}");
                assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            }
        }
    }
    case.registry.play_all(Play::Status(429, vec![("retry-after", "7")]));
    for path in [TAG, &blob] {
        let direct = case.client().get(path).await;
        assert_eq!((direct.status, direct.code().as_str()), (429, "TOOMANYREQUESTS"), "{direct:?}");
        assert!((1..=7).contains(&direct.header("retry-after").parse::<u64>().unwrap()), "{direct:?}");
        for mirror_client in [case.client().get(&format!("{path}{NS}")).await, docker.get(path).await] {
            assert_eq!(mirror_client.status, 503, "{mirror_client:?}");
            assert!(mirror_client.header("retry-after").parse::<u64>().unwrap() >= 1);
        }
    }
}

#[tokio::test]
async fn nothing_but_404_is_remembered_as_absent() {
    let case = Case::cold("").await;
    case.break_with(503);
    assert_eq!(case.client().get(TAG).await.status, 503);
    case.registry.play_all(Play::Good);
    case.client().get(TAG).await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_404_is_remembered_for_its_time() {
    let case = Case::cold("freshness: {notFound: 700ms}").await;
    let blob = bytes(1, 1000);
    let paths = ["/v2/team/app/manifests/new".to_owned(), format!("/v2/team/app/blobs/{}", support::digest(&blob))];
    for path in &paths {
        case.registry.forget();
        for _ in 0..3 {
            assert_eq!(case.client().get(path).await.status, 404);
            assert_eq!(case.client().head(path).await.status, 404);
        }
        assert_eq!(case.registry.seen().len(), 1, "{path}");
    }
    case.registry.manifest("team/app", "new", OCI_MANIFEST, &case.body);
    case.registry.blob("team/app", &blob);
    let client = case.client();
    for path in &paths {
        until_answer("the 404 is forgotten", || client.get(path), |answer| answer.status == 200).await;
    }
}

#[tokio::test]
async fn a_tag_that_the_upstream_deleted_is_404_and_stays_so_in_an_outage() {
    let case = Case::stale().await;
    case.registry.remove("/v2/team/app/manifests/latest");
    assert_eq!(case.client().get(TAG).await.status, 404);
    case.break_with(503);
    assert_ne!(case.client().get(TAG).await.status, 200);
}

#[tokio::test]
async fn what_the_upstream_denies_is_404_and_its_cached_copy_is_not_served() {
    for status in [401, 403] {
        let case = Case::stale().await;
        let digest = support::digest(&case.body);
        case.break_with(status);
        let answer = case.client().get(TAG).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "MANIFEST_UNKNOWN"), "{answer:?}");
        assert!(answer.text().contains("denies"), "{answer:?}");
        case.registry.forget();
        for path in [TAG.to_owned(), format!("/v2/team/app/manifests/{digest}")] {
            assert_eq!(case.client().get(&path).await.status, 404, "{path}");
            assert_eq!(case.client().head(&path).await.status, 404, "{path}");
        }
        case.break_with(503);
        assert_eq!(case.client().get(&format!("/v2/team/app/manifests/{digest}")).await.status, 404);
    }
}

#[tokio::test]
async fn a_denial_is_remembered_for_its_time_and_then_only_a_yes_ends_it() {
    let case = Case::with("freshness: {tags: 0s, denied: 500ms}").await;
    let digest = format!("/v2/team/app/manifests/{}", support::digest(&case.body));
    case.break_with(401);
    assert_eq!(case.client().get(TAG).await.status, 404);
    case.registry.forget();
    assert_eq!(case.client().get(&digest).await.status, 404);
    assert_eq!(case.registry.seen().len(), 0, "remembered");
    case.break_with(503);
    let client = case.client();
    let asked = until_answer("it is asked again", || client.get(&digest), |answer| answer.status != 404).await;
    assert_eq!(asked.status, 503, "the last word was no");
    case.registry.play_all(Play::Good);
    client.get(&digest).await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_denied_copy_is_served_if_the_administrator_says_so() {
    let case = Case::with("freshness: {tags: 0s, onDenied: ServeCached}").await;
    case.break_with(401);
    for _ in 0..2 {
        case.client().get(TAG).await.assert_is(200, &case.body);
        let digest = format!("/v2/team/app/manifests/{}", support::digest(&case.body));
        case.client().get(&digest).await.assert_is(200, &case.body);
    }
}

#[tokio::test]
async fn a_moved_tag_is_seen_once_it_is_no_longer_fresh() {
    let case = Case::with("freshness: {tags: 1s}").await;
    let moved = manifest_of(&[b"moved"]);
    case.registry.manifest("team/app", "latest", OCI_MANIFEST, &moved);
    case.client().get(TAG).await.assert_is(200, &case.body);
    let client = case.client();
    let seen = until_answer("the move is seen", || client.get(TAG), |answer| answer.body != case.body).await;
    seen.assert_is(200, &moved);
    assert_eq!(case.registry.count("GET", "/manifests/latest"), 1, "Docker Hub counts GETs");
    // By its digest the old one is there for ever.
    let old = format!("/v2/team/app/manifests/{}", support::digest(&case.body));
    case.client().get(&old).await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_fresh_tag_is_served_without_a_question_and_a_stale_one_with_one_shared_head() {
    let case = Case::with("freshness: {tags: 1h}").await;
    case.registry.forget();
    case.client().get(TAG).await.assert_is(200, &case.body);
    assert_eq!(case.registry.seen().len(), 0);

    let case = Case::stale().await;
    case.registry.forget();
    let client = case.client();
    case.registry.play_all(Play::Hang);
    let asked = tokio::spawn({
        let client = client.clone();
        async move { futures_util::future::join_all((0..20).map(|_| client.get(TAG))).await }
    });
    until("the upstream is asked", || !case.registry.seen().is_empty()).await;
    for answer in asked.await.unwrap() {
        assert_stale(&answer, &case.body);
    }
    assert_eq!(case.registry.seen().len(), 1, "{:?}", case.registry.seen());
    assert_eq!(case.registry.seen()[0].method, "HEAD");
}

#[tokio::test]
async fn the_previous_copy_is_served_when_the_new_manifest_cannot_be_fetched() {
    let case = Case::stale().await;
    case.registry.manifest("team/app", "latest", OCI_MANIFEST, &manifest_of(&[b"moved"]));
    case.registry.play(|seen| if seen.method == "GET" { Play::Status(503, vec![]) } else { Play::Good });
    for _ in 0..3 {
        assert_stale(&case.client().get(TAG).await, &case.body);
    }
    case.registry.play_all(Play::Good);
    case.client().get(TAG).await.assert_is(200, &manifest_of(&[b"moved"]));
}

#[tokio::test]
async fn a_manifest_that_is_not_what_the_digest_says_is_never_served() {
    let case = Case::cold("").await;
    let digest = support::digest(&case.body);
    let path = format!("/v2/team/app/manifests/{digest}");
    for wrong in [manifest_of(&[b"swapped"]), b"<html>".to_vec(), b"{}".to_vec(), Vec::new()] {
        case.registry.play_all(Play::Other(wrong));
        let answer = case.client().get(&path).await;
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    }
    case.registry.play_all(Play::Good);
    case.client().get(&path).await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_copy_that_is_older_than_stale_if_error_allows_is_not_served() {
    let case = Case::with("freshness: {tags: 0s, staleIfError: 1s}").await;
    case.break_with(503);
    case.client().get(TAG).await.assert_is(200, &case.body);
    let client = case.client();
    until_answer("the copy is too old", || client.get(TAG), |answer| answer.status == 503).await;
    let digest = format!("/v2/team/app/manifests/{}", support::digest(&case.body));
    client.get(&digest).await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_stale_tag_may_be_served_while_the_upstream_is_asked() {
    let case = Case::with("freshness: {tags: 0s, staleWhileRevalidate: 1h}").await;
    let moved = manifest_of(&[b"moved"]);
    case.registry.manifest("team/app", "latest", OCI_MANIFEST, &moved);
    case.client().get(TAG).await.assert_is(200, &case.body);
    let client = case.client();
    until_answer("the move is seen", || client.get(TAG), |answer| answer.body == moved).await;
}

#[tokio::test]
async fn it_starts_with_the_upstream_down_and_serves_what_it_has() {
    let case = Case::stale().await;
    let layer = bytes(2, 300_000);
    let digest = case.registry.blob("team/app", &layer);
    let blob = format!("/v2/team/app/blobs/{digest}");
    case.client().get(&blob).await.assert_is(200, &layer);
    let Case { registry, setup, cache, body } = case;
    until("the blob is stored", || support::blob_path(&setup.data(), &digest).exists()).await;
    cache.kill().await;
    registry.play_all(Play::Hang);
    registry.forget();
    let cache = setup.start().await;
    for page in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(cache.client().get(page).await.status, 200, "{page}");
    }
    assert_eq!(registry.seen().len(), 0, "a start asks nobody");
    cache.client().get(&blob).await.assert_is(200, &layer);
    cache.client().head(&blob).await.assert_is(200, b"");
    assert_stale(&cache.client().get(TAG).await, &body);
    let by_digest = format!("/v2/team/app/manifests/{}", support::digest(&body));
    cache.client().get(&by_digest).await.assert_is(200, &body);
}

#[tokio::test]
async fn lists_are_served_as_last_heard_in_an_outage() {
    let case = Case::stale().await;
    case.registry.page("/v2/team/app/tags/list", r#"{"name":"team/app","tags":["a","latest"]}"#);
    let tags = "/v2/team/app/tags/list";
    let referrers = format!("/v2/team/app/referrers/{}", support::digest(&case.body));
    let (tags_before, referrers_before) = (case.client().get(tags).await, case.client().get(&referrers).await);
    assert_eq!((tags_before.status, referrers_before.status), (200, 200));
    case.break_with(503);
    case.client().get(tags).await.assert_is(200, &tags_before.body);
    case.client().get(&referrers).await.assert_is(200, &referrers_before.body);
    let Case { setup, cache, .. } = case;
    cache.kill().await;
    let cache = setup.start().await;
    let here = cache.client().get(tags).await;
    assert_eq!((here.status, here.json()["tags"].clone()), (200, serde_json::json!(["latest"])));
    cache.client().get(&referrers).await.assert_is(200, &referrers_before.body);
}

#[tokio::test]
async fn a_warm_tag_is_served_at_once_while_the_breaker_is_open() {
    let registry = Registry::start().await;
    let config = mirror("hub", "docker.io", &registry.url(), "freshness: {tags: 0s}")
        .replace("limits: {}", "limits: {headerWithCopy: 300ms}")
        .replace("breaker: {failures: 1000}", "breaker: {failures: 2}");
    let setup = Setup::new(&config);
    let cache = setup.start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "latest", OCI_MANIFEST, &body);
    cache.client().get(TAG).await.assert_is(200, &body);
    registry.play_all(Play::Hang);
    registry.forget();
    for _ in 0..2 {
        assert_stale(&cache.client().get(TAG).await, &body);
    }
    let asked = registry.seen().len();
    for _ in 0..20 {
        assert_stale(&cache.client().get(TAG).await, &body);
    }
    assert_eq!(registry.seen().len(), asked, "an open breaker asks nobody");
    assert_eq!(cache.client().get(&format!("/v2/team/app/manifests/cold{NS}")).await.status, 503);
}
