//! Groups: who is asked, in which order, and what an error of a member means.

use std::{path::PathBuf, time::SystemTime};

use crate::support::{
    self, Answer, Cache, OCI_MANIFEST, Play, Registry, Seen, Setup, bytes, manifest_of, mirror, until_answer,
};
use cache_server::{
    repository::{Leaf, Repository},
    store::record::{ManifestRecord, TagRecord, TagTarget, millis},
};

fn object(kind: &str, name: &str, fields: &str) -> String {
    format!(
        "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{fields}}}}}\n"
    )
}

fn hosted(name: &str, fields: &str) -> String {
    object("HostedRepository", name, fields)
}

fn group(name: &str, members: &str) -> String {
    object("RepositoryGroup", name, &format!("members: [{members}]"))
}

/// Mirrors `one`, `two` and `three` of a registry each, which stand for `one.example.com` and so on.
async fn three() -> ([Registry; 3], String) {
    let registries = [Registry::start().await, Registry::start().await, Registry::start().await];
    let names = ["one", "two", "three"].iter().zip(&registries);
    let config = names.map(|(name, registry)| mirror(name, &format!("{name}.example.com"), &registry.url(), ""));
    let config = config.collect();
    (registries, config)
}

async fn start(config: &str) -> (Setup, Cache) {
    let setup = Setup::new(config);
    let cache = setup.start().await;
    (setup, cache)
}

/// Puts a manifest into a hosted repository, below the API: this is not about pushes.
async fn put(cache: &Cache, repository: &str, image: &str, tag: &str, body: &[u8]) -> String {
    let name = repository.parse().unwrap();
    let current = cache.server().current();
    let Some(Repository::Leaf(Leaf::Hosted(hosted))) = current.repository(&name) else {
        unreachable!("no {repository}")
    };
    let tree = cache.server().store.tree(&name, &hosted.settings().identity()).unwrap();
    let (image, digest) = (image.parse().unwrap(), support::digest(body).parse().unwrap());
    let (media_type, size) = (OCI_MANIFEST.parse::<cache_server::oci::MediaType>().unwrap(), body.len() as u64);
    let record = ManifestRecord { media_type: media_type.clone(), size, references: Vec::new(), subject: None };
    tree.add_manifest(&image, &digest, record, bytes::Bytes::copy_from_slice(body)).await;
    let target = TagTarget { digest: digest.clone(), media_type, size };
    let record = TagRecord { target, checked: millis(SystemTime::now()), previous: None };
    tree.set_tag(&image, &tag.parse().unwrap(), record).await;
    digest.to_string()
}

/// Makes a tag of a hosted repository unreadable, as a broken volume does.
fn spoil(setup: &Setup, repository: &str, image: &str, tag: &str) {
    let tags: PathBuf = setup.data().join("repositories").join(repository).join(image).join("_tags");
    std::fs::create_dir_all(tags.join(tag)).unwrap();
}

fn manifest(image: &str) -> Vec<u8> {
    manifest_of(&[image.as_bytes(), b"layer"])
}

fn asked(registries: &[Registry]) -> Vec<usize> {
    registries.iter().map(|registry| registry.seen().iter().filter(|seen| seen.path != "/v2/").count()).collect()
}

fn tags(answer: &Answer) -> String {
    let json = answer.json();
    let tags = json["tags"].as_array().unwrap_or_else(|| unreachable!("{answer:?}"));
    tags.iter().map(|tag| tag.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn members_are_asked_in_order_until_one_has_it() {
    let (registries, config) = three().await;
    let (_setup, cache) = start(&(config + &group("all", "two, three, one"))).await;
    let body = manifest("app");
    registries[0].manifest("team/app", "1", OCI_MANIFEST, &body);
    for path in ["/repository/all/v2/team/app/manifests/1", "/v2/all/team/app/manifests/1"] {
        cache.client().get(path).await.assert_is(200, &body);
        assert_eq!(asked(&registries), [1, 1, 1], "the others' no is remembered, and the one's answer stored");
    }
    let head = cache.client().head("/v2/all/team/app/manifests/1").await;
    head.assert_is(200, b"");
    assert_eq!(head.header("docker-content-digest"), support::digest(&body));
    // Of two that have it, the first in the group's order counts.
    registries[1].manifest("team/both", "1", OCI_MANIFEST, &manifest("two"));
    registries[2].manifest("team/both", "1", OCI_MANIFEST, &manifest("three"));
    cache.client().get("/v2/all/team/both/manifests/1").await.assert_is(200, &manifest("two"));
    assert_eq!(asked(&registries), [1, 2, 1]);
    let nobody = cache.client().get("/v2/all/team/nothing/manifests/1").await;
    assert_eq!((nobody.status, nobody.code().as_str()), (404, "MANIFEST_UNKNOWN"));
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_and_its_error_is_the_answer_if_nobody_has_it() {
    let (registries, config) = three().await;
    let (_setup, cache) = start(&(config + &group("all", "one, two, three"))).await;
    for play in [Play::Status(500, vec![]), Play::Status(429, vec![("retry-after", "7")]), Play::Cut(0)] {
        registries[0].play_all(play.clone());
        let image = format!("team/app{}", registries[0].seen().len());
        registries[2].manifest(&image, "1", OCI_MANIFEST, &manifest(&image));
        let found = cache.client().get(&format!("/repository/all/v2/{image}/manifests/1")).await;
        found.assert_is(200, &manifest(&image));
        let absent = cache.client().get("/repository/all/v2/team/nothing/manifests/1?ns=one.example.com").await;
        assert_eq!(absent.status, 503, "{play:?}: {absent:?}");
        let absent = cache.client().get("/repository/all/v2/team/nothing/manifests/1").await;
        assert!([503, 429].contains(&absent.status), "{play:?}: {absent:?}");
        assert!(!absent.header("retry-after").is_empty(), "{absent:?}");
        let blob = format!("/repository/all/v2/team/nothing/blobs/{}", support::digest(b"nothing"));
        assert_ne!(cache.client().get(&blob).await.status, 404, "{play:?}");
    }
}

#[tokio::test]
async fn a_member_that_denies_is_passed_over() {
    let (registries, config) = three().await;
    let (_setup, cache) = start(&(config + &group("all", "one, two"))).await;
    registries[0].play_all(Play::Status(403, vec![]));
    registries[1].manifest("team/app", "1", OCI_MANIFEST, &manifest("app"));
    cache.client().get("/v2/all/team/app/manifests/1").await.assert_is(200, &manifest("app"));
    assert_eq!(cache.client().get("/v2/all/team/other/manifests/1").await.status, 404);
}

#[tokio::test]
async fn nobody_answers_in_the_place_of_a_hosted_member_that_fails() {
    let (registries, config) = three().await;
    let config = config + &hosted("own", "") + &group("all", "own, one") + &group("last", "one, own");
    let (setup, cache) = start(&config).await;
    spoil(&setup, "own", "team/app", "1");
    registries[0].manifest("team/app", "1", OCI_MANIFEST, &manifest("public"));
    let refused = cache.client().get("/v2/all/team/app/manifests/1").await;
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(asked(&registries[..1]), [0]);
    // So is a folder that is a file, and a record that is none.
    let own = setup.data().join("repositories/own/team");
    std::fs::write(own.join("file"), "not what it was").unwrap();
    std::fs::create_dir_all(own.join("record/_tags")).unwrap();
    std::fs::write(own.join("record/_tags/1"), "not what it was").unwrap();
    for image in ["team/file", "team/record"] {
        registries[0].manifest(image, "1", OCI_MANIFEST, &manifest("public"));
        let refused = cache.client().get(&format!("/v2/all/{image}/manifests/1")).await;
        assert_eq!(refused.status, 500, "{refused:?}");
    }
    assert_eq!(asked(&registries[..1]), [0]);
    // Who stands in front of it may answer.
    cache.client().get("/v2/last/team/app/manifests/1").await.assert_is(200, &manifest("public"));
    registries[0].play_all(Play::Status(404, vec![]));
    assert_eq!(cache.client().get("/v2/last/team/app/manifests/2").await.status, 404);
}

#[tokio::test]
async fn a_reserved_name_is_never_asked_of_an_upstream() {
    let (registries, config) = three().await;
    let config = config
        + &hosted("own", "reservedNames: [team1/**, base]")
        + &hosted("other", "")
        + &group("all", "one, other, own, two")
        + &group("outer", "three, all");
    let (_setup, cache) = start(&config).await;
    for registry in &registries {
        registry.manifest("team1/app", "1", OCI_MANIFEST, &manifest("evil"));
        registry.page("/v2/team1/app/tags/list", r#"{"tags": ["1"]}"#);
    }
    let digest = support::digest(&manifest("evil"));
    put(&cache, "other", "team1/app", "1", &manifest("other")).await;
    let endpoints =
        ["manifests/1".to_owned(), format!("manifests/{digest}"), format!("blobs/{digest}"), "tags/list".to_owned()];
    for group in ["all", "outer"] {
        for image in ["team1/app", "team1/a/b/c", "base"] {
            for endpoint in &endpoints {
                let answer = cache.client().get(&format!("/v2/{group}/{image}/{endpoint}")).await;
                assert_eq!(answer.status, 404, "{group} {image} {endpoint}: {answer:?}");
            }
            cache.client().get(&format!("/v2/{group}/{image}/referrers/{digest}")).await;
            cache.client().get(&format!("/repository/{group}/v2/{image}/manifests/1?ns=one.example.com")).await;
        }
    }
    put(&cache, "own", "team1/app", "1", &manifest("mine")).await;
    cache.client().get("/v2/outer/team1/app/manifests/1").await.assert_is(200, &manifest("mine"));
    assert_eq!(asked(&registries), [0, 0, 0]);
    registries[2].manifest("team10/app", "1", OCI_MANIFEST, &manifest("free"));
    cache.client().get("/v2/outer/team10/app/manifests/1").await.assert_is(200, &manifest("free"));
}

#[tokio::test]
async fn a_request_that_names_a_registry_is_answered_by_those_who_stand_for_it() {
    let (registries, config) = three().await;
    let config = config
        + &hosted("own", "")
        + &hosted("for-two", "servesFor: [two.example.com]")
        + &group("all", "own, one, for-two, two");
    let (_setup, cache) = start(&config).await;
    for registry in &registries {
        registry.manifest("app", "1", OCI_MANIFEST, &manifest("app"));
    }
    put(&cache, "own", "app", "1", &manifest("own")).await;
    let get = |path: &str| {
        let (client, path) = (cache.client(), format!("/repository/all/v2/{path}"));
        async move { client.get(&path).await }
    };
    get("app/manifests/1?ns=two.example.com").await.assert_is(200, &manifest("app"));
    assert_eq!(asked(&registries), [0, 1, 0]);
    put(&cache, "for-two", "app", "1", &manifest("for-two")).await;
    get("app/manifests/1?ns=two.example.com").await.assert_is(200, &manifest("for-two"));
    get("app/manifests/1?ns=one.example.com").await.assert_is(200, &manifest("app"));
    get("app/manifests/1").await.assert_is(200, &manifest("own"));
    assert_eq!(asked(&registries), [1, 1, 0]);
    for ns in ["three.example.com", "docker.io", "http%3A%2F%2F169.254.169.254%2F", "a_b"] {
        let answer = get(&format!("app/manifests/1?ns={ns}")).await;
        assert_eq!(answer.status, 404, "{ns}: {answer:?}");
    }
    assert_eq!(asked(&registries), [1, 1, 0]);
}

/// Images whose name has `private` in it are for `reader` alone.
fn private(seen: &Seen) -> Play {
    let login = seen.headers.get("authorization").map(|value| value.to_str().unwrap());
    // reader:secret
    match login {
        Some("Basic cmVhZGVyOnNlY3JldA==") => Play::Good,
        _ if seen.path.contains("private") => Play::Status(401, vec![("www-authenticate", "Basic realm=\"registry\"")]),
        _ => Play::Good,
    }
}

#[tokio::test]
async fn two_mirrors_of_one_host_with_different_credentials_stand_side_by_side() {
    let registry = Registry::start().await;
    registry.play(private);
    for (image, tag) in [("library/public", "1"), ("team/private", "1")] {
        registry.manifest(image, tag, OCI_MANIFEST, &manifest(image));
    }
    let login = format!(
        "anonymousPull: true, upstream: {{url: '{}', registry: reader.docker.io, credentialsSecretRef: {{name: login}}}}",
        registry.url()
    );
    let reader = object("RegistryMirror", "reader", &login);
    let config = mirror("hub", "docker.io", &registry.url(), "") + &reader + &group("all", "hub, reader");
    let setup = Setup::new(&config);
    setup.secret("login", "username", "reader");
    setup.secret("login", "password", "secret");
    let cache = setup.start().await;
    for query in ["", "?ns=docker.io", "?ns=reader.docker.io"] {
        let path = format!("/repository/all/v2/team/private/manifests/1{query}");
        cache.client().get(&path).await.assert_is(200, &manifest("team/private"));
    }
    cache.client().get("/repository/all/v2/public/manifests/1").await.assert_is(200, &manifest("library/public"));
    // Alone, the anonymous one does not have it.
    assert_eq!(cache.client().get("/repository/hub/v2/team/private/manifests/1").await.status, 404);
    let logins = |name: &str| {
        let of = |seen: &&Seen| seen.path.contains(name) && seen.headers.contains_key("authorization");
        registry.seen().iter().filter(of).count()
    };
    assert_eq!(logins("library/public"), 0, "the first member has it");
}

#[tokio::test]
async fn the_member_that_had_the_manifest_is_asked_first_for_its_blobs() {
    let (registries, config) = three().await;
    let (_setup, cache) = start(&(config + &group("all", "one, two, three"))).await;
    let body = bytes(3, 200_000);
    registries[2].manifest("team/app", "1", OCI_MANIFEST, &manifest("app"));
    let child = registries[2].manifest("team/app", "2", OCI_MANIFEST, &manifest("child"));
    let blob = registries[2].blob("team/app", &body);
    cache.client().get("/v2/all/team/app/manifests/1").await.assert_is(200, &manifest("app"));
    assert_eq!(asked(&registries), [1, 1, 1]);
    for _ in 0..2 {
        cache.client().get(&format!("/v2/all/team/app/blobs/{blob}")).await.assert_is(200, &body);
        cache.client().get(&format!("/v2/all/team/app/manifests/{child}")).await.assert_is(200, &manifest("child"));
    }
    assert_eq!(asked(&registries), [1, 1, 3]);
    // A blob that only another one has is still found.
    let elsewhere = registries[0].blob("team/app", b"elsewhere");
    cache.client().get(&format!("/v2/all/team/app/blobs/{elsewhere}")).await.assert_is(200, b"elsewhere");
    assert_eq!(asked(&registries), [2, 1, 4]);
}

#[tokio::test]
async fn a_group_over_a_dead_member_serves_what_the_others_have() {
    let registry = Registry::start().await;
    let config = mirror("dead", "dead.example.com", &Registry::absent_url(), "")
        + &mirror("hub", "docker.io", &registry.url(), "")
        + &group("all", "dead, hub, gone");
    let (_setup, cache) = start(&config).await;
    registry.manifest("library/nginx", "1", OCI_MANIFEST, &manifest("nginx"));
    let layer = registry.blob("library/nginx", &bytes(9, 100_000));
    registry.page("/v2/library/nginx/tags/list", r#"{"tags": ["1"]}"#);
    let client = cache.client();
    client.get("/v2/all/nginx/manifests/1").await.assert_is(200, &manifest("nginx"));
    client.get(&format!("/v2/all/nginx/blobs/{layer}")).await.assert_is(200, &bytes(9, 100_000));
    assert_eq!(tags(&client.get("/v2/all/nginx/tags/list").await), "1");
    let absent = client.get("/v2/all/nothing/manifests/1").await;
    assert_eq!(absent.status, 503, "nobody knows whether the dead member has it: {absent:?}");
    assert!(!absent.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_member_that_is_switched_off_is_an_error_of_it() {
    let (registries, config) = three().await;
    let offline = |name: &str, registry: &Registry| mirror(name, "off.example.com", &registry.url(), "online: false");
    let config = config
        + &offline("dark-mirror", &registries[0])
        + &hosted("closed", "online: false")
        + &group("all", "dark-mirror, two")
        + &group("with-closed", "closed, two")
        + &object("RepositoryGroup", "dark", "members: [two], online: false");
    let (_setup, cache) = start(&config).await;
    registries[1].manifest("app", "1", OCI_MANIFEST, &manifest("app"));
    cache.client().get("/v2/all/app/manifests/1").await.assert_is(200, &manifest("app"));
    assert_eq!(cache.client().get("/v2/all/nothing/manifests/1").await.status, 503);
    assert_eq!(cache.client().get("/v2/with-closed/app/manifests/1").await.status, 503);
    for path in ["app/manifests/1", "app/tags/list", ""] {
        let answer = cache.client().get(&format!("/repository/dark/v2/{path}")).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
    }
    assert_eq!(asked(&registries), [0, 2, 0]);
}

#[tokio::test]
async fn groups_of_groups_missing_members_and_rings_are_served_and_told() {
    let (registries, config) = three().await;
    let groups = group("outer", "inner, three") + &group("inner", "one, outer, later") + &hosted("own", "");
    let bad = object("RepositoryGroup", "push", "members: [one], pushTo: own");
    let setup = Setup::new(&(config.clone() + &groups + &bad));
    let cache = setup.start().await;
    registries[2].manifest("app", "1", OCI_MANIFEST, &manifest("app"));
    cache.client().get("/v2/outer/app/manifests/1").await.assert_is(200, &manifest("app"));
    assert_eq!(cache.client().get("/v2/inner/app/manifests/1").await.status, 200, "the ring leads to three");
    assert_eq!(asked(&registries), [1, 0, 1]);
    let problems = cache.status().await["problems"].clone();
    let told = |name: &str, words: &str| {
        let problems = problems.as_array().unwrap().iter();
        let of = problems.filter(|problem| problem["kind"] == "RepositoryGroup" && problem["name"] == name);
        of.into_iter().any(|problem| problem["problem"].as_str().unwrap().contains(words))
    };
    assert!(told("outer", "ring") && told("inner", "ring"), "{problems}");
    assert!(told("inner", "later") && told("outer", "later of the group inner"), "{problems}");
    assert!(told("push", "pushTo names own"), "{problems}");

    // The member appears, and the ring goes.
    let later = Registry::start().await;
    later.manifest("late", "1", OCI_MANIFEST, &manifest("late"));
    let healed = config
        + &group("outer", "inner, three")
        + &group("inner", "one, later")
        + &mirror("later", "later.example.com", &later.url(), "");
    setup.configure(&healed);
    let found = until_answer(
        "the member counts",
        || async {
            cache.reload();
            cache.client().get("/v2/outer/late/manifests/1").await
        },
        |answer| answer.status == 200,
    );
    found.await.assert_is(200, &manifest("late"));
    assert_eq!(cache.status().await["problems"], serde_json::json!([]));
}

#[tokio::test]
async fn a_hosted_member_with_a_mistake_is_not_answered_for() {
    let (registries, config) = three().await;
    let config = config + &hosted("own", "oops: 1") + &group("all", "own, one") + &group("other", "one");
    let setup = Setup::new(&config).keep_going();
    let cache = setup.start().await;
    registries[0].manifest("app", "1", OCI_MANIFEST, &manifest("app"));
    let refused = cache.client().get("/v2/all/app/manifests/1").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.text().contains("own"), "{refused:?}");
    assert_eq!(asked(&registries), [0, 0, 0]);
    cache.client().get("/v2/other/app/manifests/1").await.assert_is(200, &manifest("app"));
}

#[tokio::test]
async fn tags_are_those_of_all_members() {
    let (registries, config) = three().await;
    let config = config + &hosted("own", "") + &group("all", "two, own, one, three") + &group("two-only", "two, one");
    let (setup, cache) = start(&config).await;
    registries[0].page("/v2/app/tags/list", r#"{"tags": ["c", "a"]}"#);
    registries[1].page("/v2/app/tags/list", r#"{"tags": ["b", "c"]}"#);
    put(&cache, "own", "app", "own", &manifest("own")).await;
    assert_eq!(tags(&cache.client().get("/v2/all/app/tags/list").await), "a b c own");
    let page = cache.client().get("/v2/all/app/tags/list?n=2&last=a").await;
    assert_eq!(tags(&page), "b c");
    assert!(page.header("link").contains("last=c"), "{page:?}");
    assert_eq!(cache.client().get("/v2/all/nothing/tags/list").await.status, 404);

    // One that cannot be asked leaves those of the others.
    registries[0].page("/v2/other/tags/list", r#"{"tags": ["a"]}"#);
    registries[1].play_all(Play::Status(500, vec![]));
    assert_eq!(tags(&cache.client().get("/v2/all/other/tags/list").await), "a");
    assert_eq!(cache.client().get("/v2/two-only/nothing/tags/list").await.status, 503);

    // Not so a hosted one.
    let folder = setup.data().join("repositories/own/other");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("_tags"), "no folder").unwrap();
    let before = asked(&registries);
    assert_eq!(cache.client().get("/v2/all/other/tags/list").await.status, 500);
    assert_eq!(asked(&registries), before);
}

#[tokio::test]
async fn referrers_are_those_of_all_members() {
    let (registries, config) = three().await;
    let (_setup, cache) = start(&(config + &group("all", "one, two"))).await;
    let subject = support::digest(b"subject");
    let index = |name: &str| {
        let entry =
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": support::digest(name.as_bytes()), "size": 1});
        serde_json::json!({"schemaVersion": 2, "mediaType": support::OCI_INDEX, "manifests": [entry]}).to_string()
    };
    let path = |image: &str| format!("/v2/{image}/referrers/{subject}");
    registries[0].index(&path("app"), &index("one"));
    registries[1].index(&path("app"), &index("two"));
    let count = |answer: &Answer| answer.json()["manifests"].as_array().unwrap().len();
    let both = cache.client().get(&format!("/v2/all/app/referrers/{subject}")).await;
    assert_eq!((both.status, count(&both)), (200, 2), "{both:?}");

    registries[1].play_all(Play::Status(500, vec![]));
    registries[0].index(&path("other"), &index("one"));
    let one = cache.client().get(&format!("/v2/all/other/referrers/{subject}")).await;
    assert_eq!((one.status, count(&one)), (200, 1), "{one:?}");
    let none = cache.client().get(&format!("/v2/all/nothing/referrers/{subject}")).await;
    assert_eq!(none.status, 503, "that there is none is not known: {none:?}");
}
