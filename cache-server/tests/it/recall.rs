//! The same request again and again: it is answered as it would be anew, counted, and never for longer than that is right.

use cache_server::settings::Settings;

use crate::support::{Cache, Client, OCI_MANIFEST, Registry, Setup, bytes, manifest_of, mirror};

const HOSTED: &str = "---
apiVersion: entrepot.dev/v1alpha1
kind: CacheServer
metadata: {name: default}
spec:
  auth:
    htpasswdSecretRef: {name: users}
    permissions:
    - {users: [alice], repositories: [team], actions: [Pull, Push, Delete]}
---
apiVersion: entrepot.dev/v1alpha1
kind: HostedRepository
metadata: {name: team}
spec: {anonymousPull: true}
---
apiVersion: entrepot.dev/v1alpha1
kind: RepositoryGroup
metadata: {name: all}
spec: {members: [team], anonymousPull: true}
";

async fn hosted() -> (Setup, Cache, Client) {
    let setup = Setup::new(HOSTED);
    setup.secret("users", "htpasswd", &format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap()));
    let cache = setup.start().await;
    // alice:secret
    let alice = cache.client().with("authorization", "Basic YWxpY2U6c2VjcmV0").with("content-type", OCI_MANIFEST);
    (setup, cache, alice)
}

fn settings(setup: &Setup) -> Settings {
    setup.options().load().unwrap().settings
}

#[tokio::test]
async fn what_is_pushed_or_deleted_is_seen_by_the_next_request() {
    let (_setup, cache, alice) = hosted().await;
    let everyone = cache.client();
    let empty = alice.send_body("POST", "/repository/team/v2/app/blobs/uploads/?digest=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", b"").await;
    assert_eq!(empty.status, 201, "{empty:?}");
    for number in 0..5 {
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}},"layers":[],"annotations":{{"n":"{number}"}}}}"#
        );
        let pushed = alice.send_body("PUT", "/repository/team/v2/app/manifests/latest", manifest.as_bytes()).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
        for repository in ["team", "all"] {
            let path = format!("/repository/{repository}/v2/app/manifests/latest");
            for _ in 0..3 {
                everyone.get(&path).await.assert_is(200, manifest.as_bytes());
            }
        }
    }
    let path = "/repository/team/v2/app/manifests/latest";
    assert_eq!(alice.ask("DELETE", path).await.status, 202);
    for path in [path, "/repository/all/v2/app/manifests/latest"] {
        assert_eq!(everyone.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_repository_that_is_closed_or_taken_away_is_so_for_the_next_request() {
    let registry = Registry::start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "v1", OCI_MANIFEST, &body);
    let setup = Setup::new(&mirror("hub", "docker.io", &registry.url(), "anonymousPull: true"));
    let cache = setup.start().await;
    let path = "/repository/hub/v2/team/app/manifests/v1";
    let open = settings(&setup);
    setup.configure(&mirror("hub", "docker.io", &registry.url(), "anonymousPull: false"));
    let closed = settings(&setup);
    setup.configure(&mirror("other", "docker.io", &registry.url(), "anonymousPull: true"));
    let renamed = settings(&setup);
    for _ in 0..3 {
        for (settings, expected) in [(&open, 200), (&closed, 401), (&open, 200), (&renamed, 404), (&open, 200)] {
            cache.server().apply(settings.clone()).unwrap();
            for _ in 0..3 {
                assert_eq!(cache.client().get(path).await.status, expected);
            }
        }
    }
}

#[tokio::test]
async fn every_answer_is_counted_and_like_the_first() {
    let registry = Registry::start().await;
    let (body, blob) = (manifest_of(&[b"config"]), bytes(3, 10_000));
    registry.manifest("team/app", "v1", OCI_MANIFEST, &body);
    let digest = registry.blob("team/app", &blob);
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let counted = async |kind: &str| {
        let labels = format!("repository=\"hub\",kind=\"{kind}\",outcome=\"hit\",status=\"200\"");
        let requests = cache.metric(&format!("entrepot_requests_total{{{labels}}}")).await;
        let bytes = cache.metric("entrepot_sent_bytes_total{repository=\"hub\"}").await;
        (requests, bytes)
    };
    for (path, kind, body) in [
        ("/v2/team/app/manifests/v1".to_owned(), "manifest", &body),
        (format!("/v2/team/app/blobs/{digest}"), "blob", &blob),
    ] {
        let client = cache.client();
        client.get(&path).await.assert_is(200, body);
        let first = client.get(&path).await;
        let (before, sent_before) = counted(kind).await;
        for _ in 0..10 {
            let again = client.get(&path).await;
            again.assert_is(200, body);
            let without_date = |answer: &crate::support::Answer| {
                let mut headers = answer.headers.clone();
                headers.remove("date").map(|_| headers)
            };
            assert_eq!(without_date(&again), without_date(&first));
            let head = client.head(&path).await;
            head.assert_is(200, b"");
            assert_eq!(without_date(&head), without_date(&first));
        }
        let (requests, bytes) = counted(kind).await;
        let bytes_of_one = f64::from(u32::try_from(body.len()).unwrap());
        assert!((requests - before - 20.0).abs() < 0.5, "{kind}: {before}, {requests}");
        assert!((bytes - sent_before - 10.0 * bytes_of_one).abs() < 0.5, "{kind}: {sent_before}, {bytes}");
    }
}

#[tokio::test]
async fn who_logs_in_lends_nothing_to_others() {
    let registry = Registry::start().await;
    let body = manifest_of(&[b"config"]);
    registry.manifest("team/app", "v1", OCI_MANIFEST, &body);
    let closed = mirror("team", "docker.io", &registry.url(), "anonymousPull: false");
    let (server, _) = HOSTED.split_once("---\napiVersion: entrepot.dev/v1alpha1\nkind: HostedRepository").unwrap();
    let setup = Setup::new(&format!("{server}{closed}"));
    setup.secret("users", "htpasswd", &format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap()));
    let cache = setup.start().await;
    let path = "/repository/team/v2/team/app/manifests/v1";
    for _ in 0..5 {
        cache.client().with("authorization", "Basic YWxpY2U6c2VjcmV0").get(path).await.assert_is(200, &body);
        assert_eq!(cache.client().get(path).await.status, 401);
        assert_eq!(cache.client().with("authorization", "Basic YWxpY2U6d3Jvbmc=").get(path).await.status, 401);
    }
}
