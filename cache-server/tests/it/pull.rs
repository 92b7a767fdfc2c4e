//! What clients may ask for, and what they get.

use crate::support::{
    self, Answer, Cache, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Registry, Setup, bytes, digest, manifest_of, mirror,
};

async fn hub() -> (Registry, Setup, Cache) {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    (registry, setup, cache)
}

fn same_but_body(head: &Answer, get: &Answer) {
    assert_eq!(head.status, get.status);
    assert!(head.body.is_empty());
    for name in ["content-length", "content-type", "docker-content-digest", "etag"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
}

#[tokio::test]
async fn a_manifest_comes_byte_for_byte_with_its_media_type() {
    let (registry, _setup, cache) = hub().await;
    let client = cache.client();
    let bodies = [
        (OCI_MANIFEST, manifest_of(&[b"config", b"layer"])),
        (DOCKER_MANIFEST, manifest_of(&[b"other", b"layer"])),
        (OCI_INDEX, br#"{"manifests":[] , "schemaVersion":2}"#.to_vec()),
    ];
    for (number, (media_type, body)) in bodies.iter().enumerate() {
        let tag = format!("t{number}");
        let digest = registry.manifest("team/app", &tag, media_type, body);
        for (round, reference) in [&tag, &digest, &tag, &digest].into_iter().enumerate() {
            let path = format!("/v2/team/app/manifests/{reference}");
            let get = client.get(&path).await;
            get.assert_is(200, body);
            assert_eq!(get.header("content-type"), *media_type, "round {round}");
            assert_eq!(get.header("docker-content-digest"), digest);
            assert_eq!(get.header("content-length"), body.len().to_string());
            same_but_body(&client.head(&path).await, &get);
        }
        assert_eq!(registry.count("GET", &tag) + registry.count("GET", &digest), 1, "fetched once by whatever name");
    }
}

#[tokio::test]
async fn a_head_that_misses_tells_digest_and_length_without_a_fetch() {
    let (registry, _setup, cache) = hub().await;
    let body = manifest_of(&[b"config"]);
    let digest = registry.manifest("team/app", "v1", OCI_MANIFEST, &body);
    let blob = registry.blob("team/app", &bytes(1, 100_000));
    for path in [format!("manifests/{digest}"), "manifests/v1".to_owned()] {
        let head = cache.client().head(&format!("/v2/team/app/{path}")).await;
        head.assert_is(200, b"");
        assert_eq!(head.header("docker-content-digest"), digest, "{path}");
        assert_eq!(head.header("content-length"), body.len().to_string(), "{path}");
        assert_eq!(head.header("content-type"), OCI_MANIFEST, "{path}");
    }
    let head = cache.client().head(&format!("/v2/team/app/blobs/{blob}")).await;
    head.assert_is(200, b"");
    assert_eq!((head.header("content-length"), head.header("docker-content-digest")), ("100000", blob.as_str()));
    assert_eq!(registry.count("GET", "/team/app/"), 0);
}

#[tokio::test]
async fn the_metrics_tell_what_was_sent_from_what_was_received() {
    let (registry, _setup, cache) = hub().await;
    let body = bytes(7, 300_000);
    let digest = registry.blob("team/app", &body);
    for _ in 0..3 {
        cache.client().get(&format!("/v2/team/app/blobs/{digest}")).await.assert_is(200, &body);
    }
    let received = cache.metric("entrepot_upstream_received_bytes_total{repository=\"hub\"}").await;
    assert!((received - 300_000.0).abs() < 0.5, "{received}");
}

#[tokio::test]
async fn a_blob_of_any_size_comes_whole_and_is_asked_for_once() {
    let (registry, _setup, cache) = hub().await;
    for length in [1, 100, 64 * 1024, 64 * 1024 + 1, 128 * 1024, 128 * 1024 + 1, 3_000_000] {
        let body = bytes(length as u64, length);
        let digest = registry.blob("team/app", &body);
        let path = format!("/v2/team/app/blobs/{digest}");
        for _ in 0..3 {
            let get = cache.client().get(&path).await;
            get.assert_is(200, &body);
            assert_eq!(get.header("content-length"), length.to_string());
            assert_eq!(get.header("docker-content-digest"), digest);
            assert_eq!(get.header("accept-ranges"), "bytes");
            same_but_body(&cache.client().head(&path).await, &get);
        }
        assert_eq!(registry.count("GET", &digest), 1, "{length} bytes");
    }
}

#[tokio::test]
async fn an_empty_blob_is_served() {
    let (registry, _setup, cache) = hub().await;
    let digest = registry.blob("team/app", b"");
    for _ in 0..2 {
        let get = cache.client().get(&format!("/v2/team/app/blobs/{digest}")).await;
        get.assert_is(200, b"");
        assert_eq!(get.header("content-length"), "0");
    }
}

#[tokio::test]
async fn a_sha512_digest_works_as_sha256_does() {
    let (registry, _setup, cache) = hub().await;
    let body = bytes(5, 200_000);
    let digest = cache_server::oci::Digest::of(cache_server::oci::Algorithm::Sha512, &body).to_string();
    let path = format!("/v2/team/app/blobs/{digest}");
    registry.raw(&path, b"wrong");
    assert_eq!(cache.client().get(&path).await.status, 502);
    registry.raw(&path, &body);
    for _ in 0..2 {
        cache.client().get(&path).await.assert_is(200, &body);
    }
}

#[tokio::test]
async fn images_of_docker_hub_without_a_slash_are_those_below_library() {
    let registry = Registry::start().await;
    let other = Registry::start().await;
    let config = mirror("hub", "docker.io", &registry.url(), "") + &mirror("quay", "quay.io", &other.url(), "");
    let setup = Setup::new(&config);
    let cache = setup.start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("library/nginx", "1", OCI_MANIFEST, &body);
    other.manifest("nginx", "1", OCI_MANIFEST, &body);
    for path in [
        "/repository/hub/v2/nginx/manifests/1",
        "/repository/hub/v2/library/nginx/manifests/1",
        "/v2/nginx/manifests/1?ns=docker.io",
        "/v2/docker.io/nginx/manifests/1",
        "/v2/hub/nginx/manifests/1",
    ] {
        cache.client().get(path).await.assert_is(200, &body);
    }
    assert!(registry.seen().iter().all(|seen| seen.path.starts_with("/v2/library/nginx/")));
    assert!(other.seen().is_empty());
    cache.client().get("/v2/nginx/manifests/1?ns=quay.io").await.assert_is(200, &body);
    assert!(other.seen().iter().all(|seen| seen.path.starts_with("/v2/nginx/")));
}

#[tokio::test]
async fn every_way_in_leads_to_its_repository() {
    let (registry, _setup, cache) = hub().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "1", OCI_MANIFEST, &body);
    let client = cache.client();
    for path in [
        "/v2/team/app/manifests/1",
        "/v2/team/app/manifests/1?ns=docker.io",
        "/repository/hub/v2/team/app/manifests/1",
        "/repository//hub//v2//team/app/manifests/1",
        "/repository/hub/v2/team/app/manifests/1?ns=docker.io",
        "/v2/hub/team/app/manifests/1",
        "/v2/docker.io/team/app/manifests/1",
    ] {
        client.get(path).await.assert_is(200, &body);
    }
    for path in ["/v2/", "/v2", "/repository/hub/v2/", "/repository/hub/v2"] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.header("docker-distribution-api-version")), (200, "registry/2.0"), "{path}");
    }
}

#[tokio::test]
async fn a_namespace_that_nobody_stands_for_is_404_and_nobody_is_asked() {
    let (registry, _setup, cache) = hub().await;
    let digest = registry.blob("team/app", b"blob");
    for path in [
        "/v2/team/app/manifests/1?ns=ghcr.io".to_owned(),
        "/v2/team/app/manifests/1?ns=169.254.169.254".to_owned(),
        format!("/v2/team/app/manifests/1?ns=127.0.0.1:{}", registry.port),
        format!("/v2/team/app/blobs/{digest}?ns=ghcr.io"),
        "/v2/ghcr.io/team/app/manifests/1".to_owned(),
        "/repository/nobody/v2/team/app/manifests/1".to_owned(),
    ] {
        let answer = cache.client().get(&path).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "NAME_UNKNOWN"), "{path}");
    }
    assert_eq!(registry.accepted(), 0);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let (registry, _setup, cache) = hub().await;
    registry.page("/v2/team/app/tags/list", r#"{"name":"team/app","tags":["c","a","10","b","9"]}"#);
    let ask = async |query: &str| {
        let answer = cache.client().get(&format!("/repository/hub/v2/team/app/tags/list{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        assert_eq!(answer.json()["name"], "team/app");
        let tags =
            answer.json()["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect();
        let tags: Vec<String> = tags;
        (tags.join(" "), answer.header("link").to_owned())
    };
    assert_eq!(ask("").await, ("10 9 a b c".to_owned(), String::new()));
    let base = format!("http://{}/repository/hub/v2", cache.address);
    let link = |last: &str| format!("<{base}/team/app/tags/list?n=2&last={last}>; rel=\"next\"");
    assert_eq!(ask("?n=2").await, ("10 9".to_owned(), link("9")));
    assert_eq!(ask("?n=2&last=9").await, ("a b".to_owned(), link("b")));
    assert_eq!(ask("?n=2&last=b").await, ("c".to_owned(), String::new()));
    assert_eq!(ask("?n=0").await, (String::new(), String::new()));
    assert_eq!(ask("?n=5").await.1, "");
    assert_eq!(ask("?last=aa").await.0, "b c");
    assert_eq!(cache.client().get("/v2/team/app/tags/list?n=x").await.code(), "PAGINATION_NUMBER_INVALID");
    assert_eq!(registry.count("GET", "/tags/list"), 1, "pages come from one answer");
}

#[tokio::test]
async fn the_link_to_the_next_page_leads_through_the_way_in_that_was_used() {
    let (registry, _setup, cache) = hub().await;
    registry.page("/v2/team/app/tags/list", r#"{"name":"team/app","tags":["a","b","c"]}"#);
    for path in [
        "/v2/hub/team/app/tags/list?n=1",
        "/v2/team/app/tags/list?n=1&ns=docker.io",
        "/v2/docker.io/team/app/tags/list?n=1",
    ] {
        let mut next = path.to_owned();
        for expected in ["a", "b", "c"] {
            let answer = cache.client().get(&next).await;
            assert_eq!(answer.json()["tags"], serde_json::json!([expected]), "{next}");
            let link = answer.header("link").to_owned();
            next = link.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            assert_eq!(next.contains("ns="), path.contains("ns=") && !next.is_empty(), "{next}");
        }
        assert_eq!(next, "", "{path}");
    }
}

#[tokio::test]
async fn referrers_of_the_api_and_of_the_tag_are_merged_and_filtered() {
    let (registry, _setup, cache) = hub().await;
    let subject = digest(b"subject");
    let entry = |name: &str, artifact_type: &str| {
        serde_json::json!({
            "mediaType": OCI_MANIFEST, "digest": digest(name.as_bytes()), "size": 7, "artifactType": artifact_type,
            "annotations": {"name": name},
        })
    };
    let index = |entries: &[serde_json::Value]| {
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string()
    };
    registry.index(
        &format!("/v2/team/app/referrers/{subject}"),
        &index(&[entry("one", "example/signature"), entry("two", "example/sbom")]),
    );
    let tag = subject.replace(':', "-");
    registry.manifest(
        "team/app",
        &tag,
        OCI_INDEX,
        index(&[entry("two", "example/sbom"), entry("three", "example/signature")]).as_bytes(),
    );
    let path = format!("/v2/team/app/referrers/{subject}");
    let names = |answer: &Answer| {
        assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{answer:?}");
        let list = answer.json()["manifests"].as_array().unwrap().clone();
        let mut names: Vec<_> =
            list.iter().map(|entry| entry["annotations"]["name"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names
    };
    let all = cache.client().get(&path).await;
    assert_eq!(names(&all), ["one", "three", "two"]);
    assert_eq!(all.header("oci-filters-applied"), "");
    let signatures = cache.client().get(&format!("{path}?artifactType=example/signature")).await;
    assert_eq!(names(&signatures), ["one", "three"]);
    assert_eq!(signatures.header("oci-filters-applied"), "artifactType");
    assert!(signatures.json()["manifests"][0]["artifactType"] == "example/signature");
    let none = cache.client().get(&format!("/v2/team/app/referrers/{}", digest(b"nobody"))).await;
    assert_eq!(names(&none), Vec::<String>::new());
}

#[tokio::test]
async fn pushes_are_refused_and_nobody_is_asked() {
    let (registry, _setup, cache) = hub().await;
    for (method, path) in [
        ("POST", "/v2/team/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/team/app/blobs/uploads/1".to_owned()),
        ("GET", "/v2/team/app/blobs/uploads/1".to_owned()),
        ("PUT", "/v2/team/app/manifests/1".to_owned()),
        ("DELETE", "/v2/team/app/manifests/1".to_owned()),
        ("DELETE", format!("/v2/team/app/blobs/{}", digest(b"blob"))),
    ] {
        let answer = cache.client().ask(method, &path).await;
        assert_eq!((answer.status, answer.code().as_str()), (405, "UNSUPPORTED"), "{method} {path}");
        assert!(answer.text().contains("hub is a mirror"), "{method} {path}: {answer:?}");
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
    assert_eq!(registry.accepted(), 0);
}

#[tokio::test]
async fn names_and_digests_that_are_none_are_refused_and_nobody_is_asked() {
    let (registry, _setup, cache) = hub().await;
    let hex = "a".repeat(64);
    for (path, status, code) in [
        ("/v2/team/app/blobs/sha256:abc".to_owned(), 400, "DIGEST_INVALID"),
        (format!("/v2/team/app/blobs/sha256:{}", "A".repeat(64)), 400, "DIGEST_INVALID"),
        (format!("/v2/team/app/blobs/md5:{hex}"), 400, "DIGEST_INVALID"),
        ("/v2/team/app/blobs/latest".to_owned(), 400, "DIGEST_INVALID"),
        (format!("/v2/Team/app/blobs/sha256:{hex}"), 400, "NAME_INVALID"),
        (format!("/v2/team/../app/blobs/sha256:{hex}"), 400, "NAME_INVALID"),
        (format!("/v2/team/%2e%2e/app/blobs/sha256:{hex}"), 400, "NAME_INVALID"),
        (format!("/v2/team%2fapp/blobs/sha256:{hex}"), 400, "NAME_INVALID"),
        ("/v2/team/app/manifests/-no".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/app/manifests/sha256:abc".to_owned(), 400, "DIGEST_INVALID"),
    ] {
        let answer = cache.client().get(&path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}: {answer:?}");
    }
    assert_eq!(registry.accepted(), 0);
}

#[tokio::test]
async fn a_connectors_port_takes_the_whole_path_as_the_image() {
    let (one, two) = (Registry::start().await, Registry::start().await);
    let port = support::free_port();
    let setup = Setup::new(
        &(mirror("hub", "docker.io", &one.url(), "")
            + &mirror(
                "quay",
                "quay.io",
                &two.url(),
                &format!("connectors: [{{port: {port}}}, {{host: quay.example.com}}]"),
            )),
    );
    let cache = setup.start().await;
    let body = manifest_of(&[b"config"]);
    two.manifest("hub/app", "1", OCI_MANIFEST, &body);
    let connector = support::Client::to(([127, 0, 0, 1], port).into());
    connector.get("/v2/hub/app/manifests/1").await.assert_is(200, &body);
    assert_eq!(connector.get("/v2/").await.status, 200);
    cache.client().with("host", "quay.example.com").get("/v2/hub/app/manifests/1").await.assert_is(200, &body);
    assert_eq!(one.accepted(), 0);
}

#[tokio::test]
async fn ranges_of_a_stored_blob_are_right_to_the_byte() {
    let (registry, _setup, cache) = hub().await;
    for length in [1000_usize, 300_000] {
        let body = bytes(9, length);
        let digest = registry.blob("team/app", &body);
        let path = format!("/v2/team/app/blobs/{digest}");
        cache.client().get(&path).await.assert_is(200, &body);
        for (range, expected) in [
            ("0-0", 0..1),
            ("10-19", 10..20),
            ("500-", 500..length),
            ("-7", length - 7..length),
            ("0-99999999", 0..length),
            ("999-999", 999..1000),
        ] {
            let answer = cache.client().range(&path, range).await;
            answer.assert_is(206, &body[expected.clone()]);
            let described = format!("bytes {}-{}/{length}", expected.start, expected.end - 1);
            assert_eq!(answer.header("content-range"), described, "{range}");
        }
        for none in [format!("{length}-"), "5-1".to_owned()] {
            let beyond = cache.client().range(&path, &none).await;
            assert_eq!((beyond.status, beyond.header("content-range").to_owned()), (416, format!("bytes */{length}")));
        }
        for many in ["0-1,3-4", "x"] {
            cache.client().range(&path, many).await.assert_is(200, &body);
        }
        let tag = format!("\"{digest}\"");
        cache.client().with("if-range", &tag).range(&path, "1-2").await.assert_is(206, &body[1..3]);
        cache.client().with("if-range", "\"other\"").range(&path, "1-2").await.assert_is(200, &body);
        assert_eq!(registry.count("GET", &digest), 1);
    }
}
