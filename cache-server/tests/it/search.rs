//! `docker search` through mirrors and groups, against indexes of the three types.

use crate::support::{self, Answer, Cache, Play, Registry, Setup};
use serde_json::{Value, json};

fn object(kind: &str, name: &str, fields: &str) -> String {
    format!(
        "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{fields}}}}}\n"
    )
}

/// A mirror that is searched; `index` is its field, or nothing.
fn mirror(name: &str, registry: &Registry, index: &str, fields: &str) -> String {
    let index = if index.is_empty() { String::new() } else { format!(", index: {index}") };
    let upstream = format!(
        "upstream: {{url: '{}', registry: {name}.example.com, breaker: {{failures: 1000}}{index}}}",
        registry.url()
    );
    object("RegistryMirror", name, &format!("v1Search: true, {upstream}{fields}"))
}

fn custom(registry: &Registry) -> String {
    format!("{{type: Custom, url: '{}/index'}}", registry.url())
}

/// An answer as Docker Hub gives it.
fn hits(names: &[&str], total: usize, pages: usize) -> String {
    let hit = |name: &&str| json!({"name": name, "description": format!("about {name}"), "star_count": 7, "is_official": false, "is_automated": false, "is_trusted": false});
    let results: Vec<Value> = names.iter().map(hit).collect();
    json!({"query": "x", "num_results": total, "num_pages": pages, "page": 1, "page_size": 25, "results": results})
        .to_string()
}

async fn start(config: &str) -> (Setup, Cache) {
    let setup = Setup::new(config);
    let cache = setup.start().await;
    (setup, cache)
}

fn names(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    let names = json["results"].as_array().unwrap().iter().map(|hit| hit["name"].as_str().unwrap().to_owned());
    names.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_custom_index_is_asked_on_every_way_in() {
    let (upstream, index) = (Registry::start().await, Registry::start().await);
    index.page("/index/v1/search", &hits(&["mysql", "team/mysql"], 2, 1));
    let port = support::free_port();
    let connectors = format!(", connectors: [{{port: {port}}}, {{host: search.example.com}}]");
    let (_setup, cache) = start(&mirror("hub", &upstream, &custom(&index), &connectors)).await;
    let connector = support::Client::to(([127, 0, 0, 1], port).into());
    for (client, path) in [
        (cache.client(), "/v1"),
        (cache.client(), "//v1"),
        (cache.client(), "/repository/hub/v1"),
        (cache.client(), "/repository/hub//v1"),
        (cache.client().with("host", "search.example.com"), "/v1"),
        (connector, "/v1"),
    ] {
        let ping = client.get(&format!("{path}/_ping")).await;
        ping.assert_is(200, b"true");
        assert_eq!(ping.header("x-docker-registry-standalone"), "true");
        let found = client.get(&format!("{path}/search?q=my%20sql&n=25")).await;
        assert_eq!(names(&found), "mysql team/mysql", "{path}");
        let hit = &found.json()["results"][0];
        assert_eq!((&hit["description"], &hit["star_count"]), (&json!("about mysql"), &json!(7)));
        assert_eq!(client.get(&format!("{path}/images/x")).await.status, 404);
        assert_eq!(client.get(&format!("{path}/search?q=a&n=x")).await.status, 400);
    }
    assert_eq!(upstream.seen().len(), 0);
    let asked = index.seen();
    assert!(asked.iter().all(|seen| seen.query == "q=my+sql&n=25&page=1"), "{asked:?}");
}

#[tokio::test]
async fn it_is_off_unless_it_is_switched_on() {
    let upstream = Registry::start().await;
    let off = object("RegistryMirror", "silent-mirror", &format!("upstream: {{url: '{}'}}", upstream.url()));
    let (_setup, cache) = start(&off).await;
    for path in ["/v1/_ping", "/v1/search?q=a", "/repository/silent-mirror/v1/search?q=a"] {
        let answer = cache.client().get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains("v1Search"), "{answer:?}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn pages_are_taken_from_the_index_as_far_as_they_are_needed() {
    let (upstream, index) = (Registry::start().await, Registry::start().await);
    let all: Vec<String> = (0..100).map(|number| format!("image{number:03}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    index.page("/index/v1/search", &hits(&all, 250, 3));
    let (_setup, cache) = start(&mirror("hub", &upstream, &custom(&index), "")).await;
    let page = cache.client().get("/v1/search?q=image&n=10&page=3").await;
    assert!(names(&page).starts_with("image020") && names(&page).ends_with("image029"), "{page:?}");
    let json = page.json();
    let numbers = ["num_results", "num_pages", "page", "page_size"].map(|key| json[key].as_u64().unwrap());
    assert_eq!(numbers, [250, 25, 3, 10]);
    assert_eq!(index.seen().len(), 1);
    // What lies behind the first hundred takes another page; nothing lies behind the first thousand.
    cache.client().get("/v1/search?q=image&n=100&page=2").await;
    assert_eq!(index.seen().iter().filter(|seen| seen.query.ends_with("&page=2")).count(), 1);
    let before = index.seen().len();
    assert_eq!(names(&cache.client().get("/v1/search?q=image&n=100&page=11").await), "");
    assert_eq!(index.seen().len(), before);
}

#[tokio::test]
async fn a_registry_is_searched_by_its_index_or_else_by_its_catalog() {
    let (old, new) = (Registry::start().await, Registry::start().await);
    old.page("/v1/search", &hits(&["old/app"], 1, 1));
    new.page("/v2/_catalog", r#"{"repositories": ["team/app", "team/web", "APP", "my-App2", "zapp"]}"#);
    let config = mirror("old", &old, "", "") + &mirror("new", &new, "{type: Registry}", "");
    let (_setup, cache) = start(&config).await;
    assert_eq!(names(&cache.client().get("/repository/old/v1/search?q=app").await), "old/app");
    assert_eq!(names(&cache.client().get("/repository/new/v1/search?q=App").await), "team/app zapp");
    let page = cache.client().get("/repository/new/v1/search?q=app&n=1&page=2").await;
    assert_eq!((names(&page).as_str(), &page.json()["num_results"]), ("zapp", &json!(2)));
    assert_eq!(old.count("GET", "_catalog"), 0);

    // An index that fails is an error, and takes nothing from pulls.
    new.play_all(Play::Status(500, vec![]));
    assert_eq!(cache.client().get("/repository/new/v1/search?q=app").await.status, 503);
}

#[tokio::test]
async fn credentials_are_for_the_upstreams_own_origin_alone() {
    let (upstream, index) = (Registry::start().await, Registry::start().await);
    let asks = Play::Status(401, vec![("www-authenticate", "Basic realm=\"x\"")]);
    index.play_all(asks.clone());
    upstream.play(move |seen| if seen.headers.contains_key("authorization") { Play::Good } else { asks.clone() });
    upstream.page("/v1/search", &hits(&["mine"], 1, 1));
    let login = |name: &str, index: &str| {
        let url = upstream.url();
        let upstream =
            format!("{{url: '{url}', registry: {name}.example.com, credentialsSecretRef: {{name: login}}{index}}}");
        object("RegistryMirror", name, &format!("v1Search: true, anonymousPull: true, upstream: {upstream}"))
    };
    let setup = Setup::new(&(login("own", "") + &login("foreign", &format!(", index: {}", custom(&index)))));
    setup.secret("login", "username", "me");
    setup.secret("login", "password", "secret");
    let cache = setup.start().await;
    assert_eq!(names(&cache.client().get("/repository/own/v1/search?q=mine").await), "mine");
    let refused = cache.client().get("/repository/foreign/v1/search?q=mine").await;
    assert_eq!(refused.status, 404, "{refused:?}");
    assert!(!index.seen().is_empty() && index.seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test]
async fn a_group_merges_what_its_members_find() {
    let indexes = [Registry::start().await, Registry::start().await, Registry::start().await];
    indexes[0].page("/index/v1/search", &hits(&["app", "one/app", "own/app"], 3, 1));
    indexes[1].page("/index/v1/search", &hits(&["two/app", "app"], 2, 1));
    indexes[2].page("/v1/search", &hits(&["secret"], 1, 1));
    let off = object(
        "RegistryMirror",
        "silent-mirror",
        &format!("upstream: {{url: '{}', registry: silent.example.com}}", indexes[2].url()),
    );
    let config = mirror("one", &indexes[0], &custom(&indexes[0]), "")
        + &mirror("two", &indexes[1], &custom(&indexes[1]), "")
        + &off
        + &object("HostedRepository", "own", "reservedNames: ['own/**']")
        + &object("RepositoryGroup", "all", "members: [two, own, silent-mirror, one], v1Search: true")
        + &object("RepositoryGroup", "silent", "members: [one]");
    let (setup, cache) = start(&config).await;
    let tags = setup.data().join("repositories/own/own/web-app/_tags");
    std::fs::create_dir_all(&tags).unwrap();
    std::fs::write(tags.join("1"), "{}").unwrap();
    let path = "/repository/all/v1/search?q=app";
    let found = cache.client().get(path).await;
    assert_eq!(names(&found), "two/app app own/web-app one/app", "the reserved own/app is nobody else's");
    assert_eq!(found.json()["num_results"], 4);
    let page = cache.client().get(&format!("{path}&n=2&page=2")).await;
    assert_eq!((names(&page).as_str(), &page.json()["num_pages"]), ("own/web-app one/app", &json!(2)));
    assert_eq!(indexes[2].seen().len(), 0, "its own switch is off");
    assert_eq!(cache.client().get("/repository/silent/v1/search?q=app").await.status, 404);

    indexes[1].play_all(Play::Status(500, vec![]));
    assert_eq!(names(&cache.client().get(path).await), "own/web-app app one/app");
    indexes[0].play_all(Play::Status(503, vec![]));
    assert_eq!(names(&cache.client().get(path).await), "own/web-app");
    assert_eq!(cache.client().get("/repository/all/v1/search?q=nothing").await.status, 503);
}
