//! One fill, any number of readers, and an upstream that breaks in every way.

use std::time::{Duration, Instant};

use crate::support::{
    self, Cache, Gate, OCI_MANIFEST, Play, Registry, Setup, blob_path, bytes, files, manifest_of, mirror, partial_path,
    until,
};
use futures_util::future::join_all;

const MIB: usize = 1024 * 1024;

struct Case {
    registry: Registry,
    setup: Setup,
    cache: Cache,
    body: Vec<u8>,
    digest: String,
    path: String,
}

impl Case {
    async fn of(length: usize) -> Self {
        Self::with(length, "").await
    }

    async fn with(length: usize, fields: &str) -> Self {
        let registry = Registry::start().await;
        let setup = Setup::mirroring_with(&registry, fields);
        let cache = setup.start().await;
        let body = bytes(length as u64, length);
        let digest = registry.blob("team/app", &body);
        let path = format!("/v2/team/app/blobs/{digest}");
        Self { registry, setup, cache, body, digest, path }
    }

    fn stored(&self) -> bool {
        blob_path(&self.setup.data(), &self.digest).exists()
    }

    async fn assert_stored_whole(&self) {
        until("the blob is stored", || self.stored()).await;
        assert!(std::fs::read(blob_path(&self.setup.data(), &self.digest)).unwrap() == self.body);
        assert_eq!(files(&self.setup.data().join("partial")), Vec::<String>::new());
    }
}

#[tokio::test]
async fn fifty_cold_readers_cost_one_request_and_all_get_bytes_before_it_ends() {
    let case = Case::of(4 * MIB).await;
    let gate = Gate::closed();
    case.registry.play_blob_gets(vec![Play::Hold(MIB, gate.clone())]);
    let client = case.cache.client();
    let mut replies = join_all((0..50).map(|_| client.open("GET", &case.path))).await;
    join_all(replies.iter_mut().map(|reply| reply.read(MIB))).await;
    assert!(replies.iter().all(|reply| reply.headers["content-length"] == (4 * MIB).to_string().as_str()));
    // Half of them leave.
    replies.truncate(25);
    let mut late = client.with("range", "bytes=1000000-").open("GET", &case.path).await;
    assert_eq!(late.status, 206);
    late.read(MIB - 1_000_000).await;
    gate.open();
    for answer in join_all(replies.into_iter().map(support::Reply::rest)).await {
        answer.assert_is(200, &case.body);
    }
    late.rest().await.assert_is(206, &case.body[1_000_000..]);
    assert_eq!(case.registry.ranges(&case.digest), [None]);
    assert_eq!(case.registry.sent(), case.body.len() as u64);
    case.assert_stored_whole().await;
}

#[tokio::test]
async fn a_range_is_served_cold_running_and_warm() {
    let case = Case::of(2 * MIB).await;
    let gate = Gate::closed();
    case.registry.play_blob_gets(vec![Play::Hold(MIB, gate.clone())]);
    let client = case.cache.client();
    let cold = client.range(&case.path, "100-199").await;
    cold.assert_is(206, &case.body[100..200]);
    client.range(&case.path, "300000-300009").await.assert_is(206, &case.body[300_000..300_010]);
    let ahead = tokio::spawn({
        let (client, path) = (client.clone(), case.path.clone());
        async move { client.range(&path, "-500000").await }
    });
    gate.open();
    ahead.await.unwrap().assert_is(206, &case.body[2 * MIB - 500_000..]);
    case.assert_stored_whole().await;
    client.range(&case.path, "2097151-").await.assert_is(206, &case.body[2 * MIB - 1..]);
    assert_eq!(case.registry.ranges(&case.digest), [None], "the cold range began one whole fill");
}

#[tokio::test]
async fn a_fill_goes_on_when_all_its_readers_have_left() {
    let case = Case::of(2 * MIB).await;
    let gate = Gate::closed();
    case.registry.play_blob_gets(vec![Play::Hold(MIB, gate.clone())]);
    let mut reply = case.cache.client().open("GET", &case.path).await;
    reply.read(1000).await;
    drop(reply);
    gate.open();
    case.assert_stored_whole().await;
    case.cache.client().get(&case.path).await.assert_is(200, &case.body);
    assert_eq!(case.registry.ranges(&case.digest), [None]);
}

#[tokio::test]
async fn the_last_bytes_are_held_back_until_all_are_right() {
    let case = Case::of(MIB).await;
    let gate = Gate::closed();
    case.registry.play_blob_gets(vec![Play::Hold(MIB - 1, gate.clone())]);
    let mut reply = case.cache.client().open("GET", &case.path).await;
    reply.read(MIB - 64 * 1024).await;
    assert_eq!(reply.received().len(), MIB - 64 * 1024);
    let more = tokio::time::timeout(Duration::from_millis(200), reply.read(MIB - 64 * 1024 + 1)).await;
    assert!(more.is_err(), "a byte of the last 64 KiB came before the end was known");
    gate.open();
    reply.rest().await.assert_is(200, &case.body);
}

#[tokio::test]
async fn a_broken_transfer_is_resumed_and_clients_notice_nothing() {
    let case = Case::of(2 * MIB).await;
    case.registry.play_blob_gets(vec![Play::Cut(500_000), Play::Cut(700_000)]);
    case.cache.client().get(&case.path).await.assert_is(200, &case.body);
    let ranges = case.registry.ranges(&case.digest);
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(ranges[1].as_deref(), Some("bytes=500000-"));
    assert_eq!(ranges[2].as_deref(), Some("bytes=1200000-"));
    assert_eq!(case.registry.sent(), case.body.len() as u64, "no byte was sent twice");
    case.assert_stored_whole().await;
    assert!((case.cache.metric("entrepot_fills_resumed_total").await - 2.0).abs() < 0.1);
}

#[tokio::test]
async fn a_resume_that_is_answered_from_the_start_is_right_all_the_same() {
    let case = Case::of(2 * MIB).await;
    case.registry.play_blob_gets(vec![Play::Cut(500_000), Play::NoRange]);
    case.cache.client().get(&case.path).await.assert_is(200, &case.body);
    assert_eq!(case.registry.ranges(&case.digest).len(), 2);
    case.assert_stored_whole().await;
}

#[tokio::test]
async fn a_transfer_that_breaks_for_good_ends_short_with_nothing_appended() {
    let case = Case::of(2 * MIB).await;
    case.registry.play(|seen| match (seen.is_blob_get(), seen.nth) {
        (true, 0) => Play::Cut(500_000),
        (true, _) => Play::Status(503, vec![]),
        _ => Play::Good,
    });
    let client = case.cache.client();
    let answer = client.get(&case.path).await;
    assert_eq!((answer.status, answer.complete), (200, false));
    assert!(case.body.starts_with(&answer.body) && answer.body.len() == 500_000, "{} bytes", answer.body.len());
    assert!(!case.stored());

    // A runtime that comes back for the rest is sent on to its next host; one that begins anew is not.
    let ns = format!("{}?ns=docker.io", case.path);
    let sent_on = client.range(&ns, "500000-").await;
    assert_eq!(sent_on.status, 503);
    let wait: u64 = sent_on.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");

    case.registry.play_all(Play::Good);
    assert_eq!(client.range(&ns, "500000-").await.status, 503, "until it is complete");
    client.get(&case.path).await.assert_is(200, &case.body);
    assert_eq!(case.registry.ranges(&case.digest).last().unwrap().as_deref(), Some("bytes=500000-"), "went on");
    client.range(&ns, "500000-").await.assert_is(206, &case.body[500_000..]);
    case.assert_stored_whole().await;
}

#[tokio::test]
async fn wrong_bytes_never_complete_are_never_kept_and_never_remembered() {
    for length in [64 * 1024 + 1, 100_000, 2 * MIB] {
        let case = Case::of(length).await;
        let mut wrong = case.body.clone();
        wrong[length / 2] ^= 1;
        case.registry.play_blob_gets(vec![Play::Other(wrong.clone()), Play::Other(wrong.clone())]);
        let client = case.cache.client();
        let answers = join_all((0..5).map(|_| client.try_get(&case.path))).await;
        for answer in answers {
            // One that came late may have begun the fill that is right.
            let right = answer.complete && answer.body == case.body;
            assert!(right || (!answer.complete && answer.body.len() < length), "{answer:?}");
        }
        case.registry.play_blob_gets(vec![Play::Other(wrong)]);
        let again = client.try_get(&case.path).await;
        assert!(!again.complete || again.body == case.body, "{again:?}");
        until("no fill runs", || files(&case.setup.data().join("partial")).is_empty()).await;
        case.registry.play_all(Play::Good);
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
    }
}

#[tokio::test]
async fn wrong_bytes_of_a_small_blob_are_502() {
    for length in [1, 1000, 64 * 1024] {
        let case = Case::of(length).await;
        case.registry.play_blob_gets(vec![Play::Other(vec![b'x'; length])]);
        let answer = case.cache.client().get(&case.path).await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "UNKNOWN"), "{length}: {answer:?}");
        assert!(!case.stored());
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
    }
}

#[tokio::test]
async fn a_short_blob_with_a_matching_length_is_not_taken_for_the_whole() {
    for length in [1000, 200_000] {
        let case = Case::of(length).await;
        case.registry.play_blob_gets(vec![Play::Other(case.body[..length - 1].to_vec())]);
        let answer = case.cache.client().get(&case.path).await;
        assert!(answer.status == 502 || !answer.complete, "{answer:?}");
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
    }
}

#[tokio::test]
async fn a_blob_without_a_length_comes_right() {
    for length in [1000, 64 * 1024, 100_000, 2 * MIB] {
        let case = Case::of(length).await;
        case.registry.play_blob_gets(vec![Play::Unsized]);
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
        let warm = case.cache.client().get(&case.path).await;
        warm.assert_is(200, &case.body);
        assert_eq!(warm.header("content-length"), length.to_string());
        assert_eq!(case.registry.ranges(&case.digest).len(), 1);
    }
}

#[tokio::test]
async fn a_blob_that_comes_compressed_is_kept_as_its_digest_says() {
    for length in [1000, 100_000, 2 * MIB] {
        let case = Case::of(length).await;
        // Its HEAD tells the compressed length, too.
        case.registry.play_all(Play::Gzip);
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        assert_eq!(case.registry.ranges(&case.digest).len(), 1);
    }
}

#[tokio::test]
async fn a_head_with_a_wrong_length_does_not_spoil_what_is_stored() {
    for lie in [Play::Gzip, Play::Other(vec![0; 299_999])] {
        let case = Case::of(300_000).await;
        case.cache.client().get(&case.path).await.assert_is(200, &case.body);
        case.assert_stored_whole().await;
        let Case { registry, setup, cache, body, path, digest } = case;
        cache.kill().await;
        // Another mirror, whose upstream says yes with another length.
        registry.play(move |seen| if seen.method == "HEAD" { lie.clone() } else { Play::Good });
        setup.configure(
            &(mirror("hub", "docker.io", &registry.url(), "") + &mirror("other", "quay.io", &registry.url(), "")),
        );
        let cache = setup.start().await;
        cache.client().get(&format!("{path}?ns=quay.io")).await.assert_is(200, &body);
        cache.client().get(&format!("{path}?ns=docker.io")).await.assert_is(200, &body);
        let head = cache.client().head(&format!("{path}?ns=quay.io")).await;
        assert_eq!((head.status, head.header("content-length")), (200, "300000"));
        assert_eq!(registry.ranges(&digest).len(), 1, "the stored copy was good");
        cache.kill().await;
        let cache = setup.start().await;
        cache.client().get(&format!("{path}?ns=quay.io")).await.assert_is(200, &body);
        assert_eq!(registry.ranges(&digest).len(), 1, "the stored copy was good");
    }
}

#[tokio::test]
async fn a_fill_that_a_crash_cut_is_resumed_by_the_next_process() {
    let case = Case::of(2 * MIB).await;
    case.registry.play_blob_gets(vec![Play::Hold(MIB, Gate::closed())]);
    let mut reply = case.cache.client().open("GET", &case.path).await;
    reply.read(MIB).await;
    let Case { registry, setup, cache, body, digest, path } = case;
    cache.kill().await;
    assert!(!reply.rest().await.complete);
    assert_eq!(std::fs::metadata(partial_path(&setup.data(), &digest)).unwrap().len(), MIB as u64);

    let cache = setup.start().await;
    cache.client().get(&path).await.assert_is(200, &body);
    let ranges = registry.ranges(&digest);
    assert_eq!(ranges[1..], [Some(format!("bytes={MIB}-"))]);
    assert!((cache.metric("entrepot_fills_resumed_total").await - 1.0).abs() < 0.1);
    until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
    assert_eq!(files(&setup.data().join("partial")), Vec::<String>::new());
}

#[tokio::test]
async fn a_whole_blob_whose_name_a_power_cut_took_gets_it_back_without_the_upstream() {
    let case = Case::of(2 * MIB).await;
    case.cache.client().get(&case.path).await.assert_is(200, &case.body);
    case.assert_stored_whole().await;
    let Case { registry, setup, cache, body, digest, path } = case;
    cache.kill().await;
    std::fs::rename(blob_path(&setup.data(), &digest), partial_path(&setup.data(), &digest)).unwrap();

    let cache = setup.start().await;
    cache.client().get(&path).await.assert_is(200, &body);
    assert_eq!(registry.ranges(&digest).len(), 1, "it was all there");
    until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
    assert_eq!(files(&setup.data().join("partial")), Vec::<String>::new());
}

#[tokio::test]
async fn whatever_lies_in_a_partial_file_the_answer_is_right_or_cut() {
    let body = bytes(3, 400_000);
    let mut flipped = body[..200_000].to_vec();
    flipped[77] ^= 1;
    let too_long = bytes(4, 500_000);
    let whole_but_wrong = bytes(4, 400_000);
    for (name, left) in
        [("flipped", flipped), ("too long", too_long), ("whole", body.clone()), ("whole but wrong", whole_but_wrong)]
    {
        let registry = Registry::start().await;
        let setup = Setup::mirroring(&registry);
        let digest = registry.blob("team/app", &body);
        let partial = partial_path(&setup.data(), &digest);
        std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
        std::fs::write(&partial, left).unwrap();
        let cache = setup.start().await;
        let path = format!("/v2/team/app/blobs/{digest}");
        let first = cache.client().get(&path).await;
        if first.status == 200 && first.complete {
            assert!(first.body == body, "{name}: wrong bytes");
        }
        let second = cache.client().get(&path).await;
        assert!(second.body == body && second.complete, "{name}: not repaired at once: {second:?} after {first:?}");
        until("the blob is stored", || blob_path(&setup.data(), &digest).exists()).await;
        assert_eq!(files(&setup.data().join("partial")), Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn a_transfer_that_hardly_flows_is_resumed_on_a_new_connection() {
    let registry = Registry::start().await;
    let config = mirror("hub", "docker.io", &registry.url(), "").replace("limits: {}", "limits: {stall: {window: 1s}}");
    let setup = Setup::new(&config);
    let cache = setup.start().await;
    let body = bytes(8, MIB);
    let digest = registry.blob("team/app", &body);
    registry.play_blob_gets(vec![Play::Hold(400_000, Gate::closed())]);
    let answer = cache.client().get(&format!("/v2/team/app/blobs/{digest}")).await;
    answer.assert_is(200, &body);
    assert_eq!(registry.ranges(&digest)[1..], [Some("bytes=400000-".to_owned())]);
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_at_the_header_limit_and_usable_at_once_when_repaired() {
    let registry = Registry::start().await;
    let config = mirror("hub", "docker.io", &registry.url(), "").replace("limits: {}", "limits: {header: 500ms}");
    let setup = Setup::new(&config);
    let cache = setup.start().await;
    let (blob, manifest) = (bytes(8, 100_000), manifest_of(&[b"config"]));
    let digest = registry.blob("team/app", &blob);
    registry.manifest("team/app", "1", OCI_MANIFEST, &manifest);
    registry.play_all(Play::Hang);
    let paths = [format!("/v2/team/app/blobs/{digest}"), "/v2/team/app/manifests/1".to_owned()];
    let client = cache.client();
    let started = Instant::now();
    for answer in join_all(paths.iter().map(|path| client.get(path))).await {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_ne!(answer.header("retry-after"), "");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    registry.play_all(Play::Good);
    client.get(&paths[0]).await.assert_is(200, &blob);
    client.get(&paths[1]).await.assert_is(200, &manifest);
}

#[tokio::test]
async fn many_blobs_with_many_readers_each_are_fetched_once() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let bodies: Vec<Vec<u8>> =
        (0..20).map(|number| bytes(number, 1000 + 37_000 * usize::try_from(number).unwrap())).collect();
    let digests: Vec<String> = bodies.iter().map(|body| registry.blob("team/app", body)).collect();
    registry.play(|seen| if seen.is_blob_get() && seen.nth == 0 { Play::Cut(9000) } else { Play::Good });
    let client = cache.client();
    let asks = (0..200).map(|number| {
        let (client, path) = (client.clone(), format!("/v2/team/app/blobs/{}", digests[number % 20]));
        async move { client.get(&path).await }
    });
    for (number, answer) in join_all(asks).await.into_iter().enumerate() {
        answer.assert_is(200, &bodies[number % 20]);
    }
    let total: usize = bodies.iter().map(Vec::len).sum();
    assert_eq!(registry.sent(), total as u64);
}

#[tokio::test]
async fn a_second_server_is_refused_the_same_data() {
    let case = Case::of(1).await;
    let loaded = cache_server::settings::Settings::load(&case.setup.sources()).unwrap();
    let options = case.setup.options();
    let refused = cache_server::run::Running::start(options, loaded).await.err().unwrap();
    assert!(format!("{refused:#}").contains("in use by another cache server"), "{refused:#}");
}

#[tokio::test]
async fn a_server_that_keeps_going_waits_for_the_former_one() {
    let Case { cache, setup, .. } = Case::of(1).await;
    let loaded = cache_server::settings::Settings::load(&setup.sources()).unwrap();
    let options = cache_server::run::Options { keep_going: true, ..setup.options() };
    let started = tokio::spawn(cache_server::run::Running::start(options, loaded));
    // On one thread it now meets the lock.
    tokio::task::yield_now().await;
    assert!(!started.is_finished());
    cache.kill().await;
    assert!(started.await.unwrap().is_ok());
}
