//! What a cluster needs of the server: going on in spite of mistakes, its status, checks of upstreams, the canary.

use std::{os::unix::fs::symlink, path::Path};

use crate::support::{
    self, Cache, Client, OCI_INDEX, OCI_MANIFEST, Play, Registry, Seen, Setup, certificate, digest, manifest_of,
    mirror, until, until_answer,
};
use cache_server::settings::Sources;
use serde_json::{Value, json};

const TAG: &str = "/v2/team/app/manifests/latest";

/// A mirror `hub` of a registry, with more lines of its upstream.
fn hub(url: &str, upstream: &str) -> String {
    let fields = if upstream.contains("credentialsSecretRef") { "anonymousPull: true" } else { "" };
    mirror("hub", "docker.io", url, fields).replace("    limits: {}", &format!("    limits: {{}}\n{upstream}"))
}

fn with_generation(yaml: &str, generation: u32) -> String {
    yaml.replace("metadata: {name: hub}", &format!("metadata: {{name: hub, generation: {generation}}}"))
}

/// `POST /check/hub`: the state, and the message.
async fn check(cache: &Cache) -> (String, String) {
    let answer = cache.operator().ask("POST", "/check/hub").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let upstream = answer.json();
    let of_status = cache.status().await["upstreams"][0].clone();
    assert_eq!(upstream, of_status, "the check answers what the status says");
    let text = |field: &str| upstream[field].as_str().unwrap().to_owned();
    (text("state"), text("message"))
}

async fn checked(yaml: &str, secrets: &[(&str, &str)]) -> (String, String) {
    let setup = Setup::new(yaml);
    for (key, value) in secrets {
        setup.secret("login", key, value);
    }
    let cache = setup.start().await;
    check(&cache).await
}

#[tokio::test]
async fn the_status_tells_what_is_loaded_and_asks_nobody() {
    let registry = Registry::start().await;
    let setup = Setup::new(&(with_generation(&hub(&registry.url(), ""), 3) + "---\nkind: Pod\nmetadata: {name: x}\n"));
    let setup = setup.keep_going();
    let cache = setup.start().await;
    let status = cache.status().await;
    assert_eq!(status["objects"], json!([{"kind": "RegistryMirror", "name": "hub", "generation": 3}]));
    let mistake = &status["mistakes"][0];
    assert_eq!(
        (&mistake["kind"], &mistake["name"], &mistake["field"]),
        (&json!("Pod"), &json!("x"), &json!("apiVersion"))
    );
    assert_eq!(status["certificate"], Value::Null);
    assert_eq!(status["upstreams"][0]["state"], "Unknown");
    assert_eq!(status["store"]["problem"], Value::Null);
    assert!(status["store"]["limitBytes"].as_u64().unwrap() > 0 && status["store"]["usedBytes"] == 0);
    assert_eq!(status["probes"], json!({}));
    assert_eq!(registry.seen().len(), 0);
    for (method, path) in [("GET", "/status"), ("POST", "/check/hub")] {
        assert_eq!(cache.client().ask(method, path).await.status, 404, "{path} is not for clients");
    }
    assert_eq!(cache.operator().ask("POST", "/check/nobody").await.status, 404);
}

#[tokio::test]
async fn a_mistake_leaves_the_rest_running_and_is_told() {
    let registry = Registry::start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "latest", OCI_MANIFEST, &body);
    let setup = Setup::new("kind: [").keep_going();
    let cache = setup.start().await;
    assert_eq!(cache.client().get(TAG).await.status, 404, "nothing is there yet");
    assert_eq!(cache.operator().get("/readyz").await.status, 200);

    let objects = async |wanted: Value| {
        let client = cache.operator();
        let asked = until_answer("it is loaded", || client.get("/status"), |status| status.json()["objects"] == wanted);
        asked.await.json()
    };
    let hub_of = |generation: i64| json!([{"kind": "RegistryMirror", "name": "hub", "generation": generation}]);
    setup.configure(&with_generation(&hub(&registry.url(), ""), 1));
    cache.reload();
    objects(hub_of(1)).await;
    cache.client().get(TAG).await.assert_is(200, &body);

    setup.configure(
        &(with_generation(&hub(&registry.url(), "    oops: 1"), 2) + &mirror("quay", "quay.io", "https://quay.io", "")),
    );
    cache.reload();
    let status = objects(
        json!([{"kind": "RegistryMirror", "name": "quay"}, {"kind": "RegistryMirror", "name": "hub", "generation": 1}]),
    )
    .await;
    assert_eq!(
        (&status["mistakes"][0]["generation"], &status["mistakes"][0]["field"]),
        (&json!(2), &json!("spec.upstream.oops"))
    );
    cache.client().get(&format!("{TAG}?ns=docker.io")).await.assert_is(200, &body);
    assert_eq!(cache.client().get("/repository/quay/v2/").await.status, 200);
}

#[tokio::test]
async fn a_mirror_that_the_store_cannot_hold_leaves_the_others_running() {
    let hub = hub("https://registry-1.docker.io", "");
    let setup = Setup::new(&hub).keep_going();
    let cache = setup.start().await;
    let folders = setup.data().join("repositories");
    std::fs::rename(&folders, setup.data().join("aside")).unwrap();
    // No folder can be made below a file.
    std::fs::write(&folders, "").unwrap();
    setup.configure(&(hub + &mirror("quay", "quay.io", "https://quay.io", "")));
    cache.reload();
    let client = cache.operator();
    let wrong = |answer: &support::Answer| answer.json()["mistakes"][0]["name"] == "quay";
    let status = until_answer("the mistake is told", || client.get("/status"), wrong).await.json();
    assert_eq!(status["objects"], json!([{"kind": "RegistryMirror", "name": "hub"}]));
    assert_eq!(cache.client().get("/repository/hub/v2/").await.status, 200);
    assert_eq!(cache.client().get("/repository/quay/v2/").await.status, 404);
}

#[tokio::test]
async fn without_its_certificate_the_main_port_stays_closed_until_it_comes() {
    let server = "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\nspec: {tls: {mode: Secret, secretRef: {name: managed-tls}}}\n";
    let setup = Setup::new(server).keep_going();
    let cache = setup.start().await;
    assert_eq!(cache.operator().get("/readyz").await.status, 503);
    assert_eq!(cache.status().await["mistakes"][0]["field"], "spec.tls.secretRef");
    let der = certificate(&setup, "managed-tls");
    cache.reload();
    let client = cache.operator();
    until_answer("it is ready", || client.get("/readyz"), |answer| answer.status == 200).await;
    let shown = cache.status().await["certificate"].as_str().unwrap().to_owned();
    assert_eq!(format!("sha256:{shown}"), digest(&der));
}

#[tokio::test]
async fn a_check_says_what_is_wrong_and_what_to_do() {
    let registry = Registry::start().await;
    for (play, state, words) in [
        (Play::Good, "Reachable", "127.0.0.1 answers"),
        (Play::Status(503, vec![]), "Unreachable", "127.0.0.1 answered 503"),
        (Play::Status(404, vec![]), "Unreachable", "correct spec.upstream.url"),
        (Play::Status(403, vec![]), "Reachable", "needs a Secret in spec.upstream.credentialsSecretRef"),
        (Play::Status(401, vec![("www-authenticate", "Basic realm=\"r\"")]), "Reachable", "needs a Secret"),
        (Play::Status(429, vec![("retry-after", "60")]), "Reachable", "answers"),
    ] {
        registry.play_all(play.clone());
        let (got, message) = checked(&hub(&registry.url(), ""), &[]).await;
        assert!(got == state && message.contains(words), "{play:?}: {got}, {message}");
    }
    let (state, message) = checked(&hub(&Registry::absent_url(), ""), &[]).await;
    assert!(state == "Unreachable" && message.contains("refuses connections"), "{message}");
    let (state, message) = checked(&hub("https://nobody.invalid", ""), &[]).await;
    assert!(state == "Unreachable" && message.contains("nobody.invalid"), "{message}");
    // Plain HTTP where TLS is spoken.
    let (state, message) = checked(&hub(&registry.url().replace("http:", "https:"), ""), &[]).await;
    assert!(state == "Unreachable" && message.contains("TLS with 127.0.0.1 fails"), "{message}");
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_named() {
    let upstream = Setup::new(&server_with_tls());
    certificate(&upstream, "cert");
    let registry = upstream.start().await;
    let (state, message) = checked(&hub(&format!("https://localhost:{}", registry.address.port()), ""), &[]).await;
    assert!(
        state == "Unreachable" && message.contains("put the authority's certificate into spec.upstream.caBundle"),
        "{message}"
    );
}

fn server_with_tls() -> String {
    "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\nspec: {tls: {mode: Secret, secretRef: {name: cert}}}\n".to_owned()
}

#[tokio::test]
async fn a_check_uses_the_credentials_and_shows_none() {
    let registry = Registry::start().await;
    registry.play(|seen: &Seen| match seen.headers.get("authorization") {
        // reader:right
        Some(value) if value == "Basic cmVhZGVyOnJpZ2h0" => Play::Good,
        _ => Play::Status(401, vec![("www-authenticate", "Basic realm=\"r\"")]),
    });
    let yaml = hub(&registry.url(), "    credentialsSecretRef: {name: login}");
    let (state, _) = checked(&yaml, &[("username", "reader"), ("password", "right")]).await;
    assert_eq!(state, "Reachable");
    let (state, message) = checked(&yaml, &[("username", "reader"), ("password", "hunter2")]).await;
    assert!(state == "Denied" && message.contains("correct the Secret"), "{message}");
    assert!(!message.contains("hunter2") && !message.contains("a fault"), "{message}");
}

#[tokio::test]
async fn an_anonymous_token_is_a_good_answer_and_a_refused_one_is_not() {
    let registry = Registry::start().await;
    let realm: &'static str = format!("Bearer realm=\"{}/token\",service=\"s\"", registry.url()).leak();
    registry.page("/token", "{\"token\": \"t\"}");
    // As some registries do, it takes an anonymous token for images alone.
    registry.play(move |seen: &Seen| match seen.path.as_str() {
        "/v2/" => Play::Status(401, vec![("www-authenticate", realm)]),
        _ => Play::Good,
    });
    let (state, message) = checked(&hub(&registry.url(), ""), &[]).await;
    assert_eq!(state, "Reachable", "{message}");
    let asked = registry.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert_eq!(asked.query, "service=s");

    registry.play(move |seen: &Seen| match seen.path.as_str() {
        "/v2/" => Play::Status(401, vec![("www-authenticate", realm)]),
        _ => Play::Status(403, vec![]),
    });
    let yaml = hub(&registry.url(), "    credentialsSecretRef: {name: login}");
    let (state, _) = checked(&yaml, &[("username", "reader"), ("password", "wrong")]).await;
    assert_eq!(state, "Denied");
}

#[tokio::test]
async fn checks_are_made_once_for_all_who_ask_and_not_too_often() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let client = cache.operator();
    let answers = futures_util::future::join_all((0..20).map(|_| client.ask("POST", "/check/hub"))).await;
    assert!(answers.iter().all(|answer| answer.json()["state"] == "Reachable"));
    assert_eq!(registry.seen().len(), 1);
}

#[tokio::test]
async fn pulls_keep_the_state_of_an_upstream() {
    let registry = Registry::start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "latest", OCI_MANIFEST, &body);
    let setup = Setup::mirroring_with(&registry, "freshness: {tags: 0s}");
    let cache = setup.start().await;
    let state = async || cache.status().await["upstreams"][0].clone();
    cache.client().get(TAG).await.assert_is(200, &body);
    let good = state().await;
    assert_eq!(good["state"], "Reachable");
    registry.play_all(Play::Status(502, vec![]));
    cache.client().get(TAG).await.assert_is(200, &body);
    let bad = state().await;
    assert_eq!(bad["state"], "Unreachable");
    assert!(bad["message"].as_str().unwrap().contains("answered 502"), "{bad}");
    registry.play_all(Play::Good);
    cache.client().get(TAG).await.assert_is(200, &body);
    assert_eq!(state().await["state"], "Reachable");
}

#[tokio::test]
async fn every_answer_below_a_repositorys_path_names_it() {
    let registry = Registry::start().await;
    registry.manifest("team/app", "latest", OCI_MANIFEST, &manifest_of(&[b"config"]));
    let setup =
        Setup::new(&(hub(&registry.url(), "") + &mirror("closed", "quay.io", "https://quay.io", "online: false")));
    let cache = setup.start().await;
    let client = cache.client();
    for (method, path, status, name) in [
        ("GET", "/repository/hub/v2/", 200, "hub"),
        ("HEAD", "/repository/hub/v2/", 200, "hub"),
        ("GET", "/repository/hub/v2/team/app/manifests/latest", 200, "hub"),
        ("GET", "/repository/hub/v2/team/app/manifests/none", 404, "hub"),
        ("GET", "/repository/hub/v2/team/app/nonsense", 404, "hub"),
        ("GET", "/repository/hub/v2/team/app/blobs/nonsense", 400, "hub"),
        ("POST", "/repository/hub/v2/team/app/blobs/uploads/", 405, "hub"),
        ("GET", "/repository/closed/v2/", 503, "closed"),
        ("GET", "/repository/closed/v2/team/app/manifests/latest", 503, "closed"),
        ("GET", "/repository/probe/v2/", 200, "probe"),
        ("GET", "/repository/nobody/v2/", 404, ""),
        ("GET", "/v2/", 200, ""),
        ("GET", "/v2/team/app/manifests/latest?ns=docker.io", 200, ""),
    ] {
        let answer = client.ask(method, path).await;
        assert_eq!(
            (answer.status, answer.header("entrepot-repository")),
            (status, name),
            "{method} {path}: {answer:?}"
        );
    }
}

/// Pulls the canary as a runtime does, and returns what it found.
async fn pull(client: &Client, prefix: &str, query: &str, nonce: &str) -> Vec<String> {
    let mut pulled = Vec::new();
    let mut get = async |path: String, wanted: &str| -> Vec<u8> {
        let (head, answer) = (client.head(&path).await, client.get(&path).await);
        assert_eq!((head.status, answer.status), (200, 200), "{path}: {answer:?}");
        let found = digest(&answer.body);
        assert_eq!((answer.header("docker-content-digest"), head.header("docker-content-digest")), (&*found, &*found));
        assert_eq!(head.header("content-length"), answer.body.len().to_string());
        assert!(wanted.is_empty() || wanted == found, "{path}");
        pulled.push(answer.header("content-type").to_owned());
        answer.body
    };
    let index = get(format!("{prefix}/v2/canary/manifests/{nonce}{query}"), "").await;
    let index: Value = serde_json::from_slice(&index).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        let wanted = entry["digest"].as_str().unwrap();
        let manifest = get(format!("{prefix}/v2/canary/manifests/{wanted}{query}"), wanted).await;
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        for blob in [&manifest["config"], &manifest["layers"][0]] {
            let wanted = blob["digest"].as_str().unwrap();
            get(format!("{prefix}/v2/canary/blobs/{wanted}{query}"), wanted).await;
        }
    }
    pulled
}

#[tokio::test]
async fn the_canary_is_pulled_by_both_ways_and_its_nonce_is_kept() {
    // Without any mirror: a cluster begins so.
    let setup = Setup::new("---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {name: default}\n");
    let cache = setup.start().await;
    let client = cache.client();
    for (prefix, query, nonce) in [
        ("/repository/probe", "", "one1"),
        ("/repository/probe", "?ns=probe.entrepot.invalid", "two2"),
        ("", "?ns=probe.entrepot.invalid", "three3"),
    ] {
        let pulled = pull(&client, prefix, query, nonce).await;
        assert_eq!(pulled.len(), 7);
        assert_eq!((pulled[0].as_str(), pulled[1].as_str()), (OCI_INDEX, OCI_MANIFEST));
    }
    client.head("/repository/probe/v2/canary/manifests/four4").await.assert_is(200, b"");
    let absent = format!("sha256:{}", "0".repeat(64));
    for path in [
        "canary/manifests/Not-A-Nonce".to_owned(),
        format!("canary/manifests/{absent}"),
        format!("canary/blobs/{absent}"),
        "canary/tags/list".to_owned(),
        "library/canary/manifests/five5".to_owned(),
    ] {
        assert_eq!(client.get(&format!("/repository/probe/v2/{path}")).await.status, 404, "{path}");
    }
    assert_eq!(client.ask("POST", "/repository/probe/v2/canary/blobs/uploads/").await.status, 404);
    let status = cache.status().await;
    let mut nonces: Vec<&String> = status["probes"].as_object().unwrap().keys().collect();
    nonces.sort();
    assert_eq!(nonces, ["four4", "one1", "three3", "two2"]);
    assert!(status["probes"]["one1"].as_str().unwrap().ends_with('Z'), "{status}");
}

/// Writes a version of a mounted volume and swaps the link to it, as the kubelet does.
fn mount(folder: &Path, version: &str, files: &[(&str, String)]) {
    let data = folder.join(version);
    std::fs::create_dir_all(&data).unwrap();
    for (name, text) in files {
        std::fs::write(data.join(name), text).unwrap();
        let link = folder.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn mounted_folders_are_followed_when_the_kubelet_swaps_them() {
    let registry = Registry::start().await;
    registry.play(|seen: &Seen| match seen.headers.get("authorization") {
        // reader:new
        Some(value) if value == "Basic cmVhZGVyOm5ldw==" => Play::Good,
        _ => Play::Status(401, vec![("www-authenticate", "Basic realm=\"r\"")]),
    });
    let root = tempfile::tempdir().unwrap();
    let (config, secrets) = (root.path().join("config"), root.path().join("secrets"));
    let yaml = hub(&registry.url(), "    credentialsSecretRef: {name: team}");
    let login =
        |password: &str| json!({"auths": {"docker.io": {"username": "reader", "password": password}}}).to_string();
    mount(&config, "..1", &[("entrepot.yaml", with_generation(&yaml, 1))]);
    mount(&secrets, "..1", &[("team_.dockerconfigjson", login("old"))]);
    let sources = Sources { config: Some(config.clone()), secrets: Some(secrets.clone()), main_port: None };
    let setup = Setup::new("").keep_going();
    let cache = setup.start_with(sources).await;
    assert_eq!(check(&cache).await.0, "Denied");

    mount(&secrets, "..2", &[("team_.dockerconfigjson", login("new"))]);
    mount(&config, "..2", &[("entrepot.yaml", with_generation(&yaml, 2))]);
    cache.reload();
    let server = cache.server();
    until("the new generation is loaded", || server.current().settings.objects[0].generation == Some(2)).await;
    assert_eq!(check(&cache).await.0, "Reachable");
}
