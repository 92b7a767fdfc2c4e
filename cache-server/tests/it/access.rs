//! Who may do what: logins, tokens, and the addresses that answers name, over real connections.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::support::{
    Answer, Cache, Client, OCI_MANIFEST, Play, Registry, Setup, bytes, digest, manifest_of, mirror, until_answer,
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

/// The users, whose password is their name and a 1.
const USERS: [&str; 3] = ["alice", "bob", "root"];

const PERMISSIONS: &str = "
    - {users: [alice], repositories: [closed, team, both], images: ['team/**'], actions: [Pull, Push]}
    - {users: ['system:serviceaccounts:team1'], repositories: [closed], actions: [Pull]}
    - {users: [root], repositories: ['*'], actions: [Pull, Push, Delete]}";

fn password(user: &str) -> String {
    format!("{user}1")
}

fn htpasswd(users: &[&str]) -> String {
    let line = |user: &&str| format!("{user}:{}\n", bcrypt::hash(password(user), 4).unwrap());
    users.iter().map(line).collect()
}

/// The server's object; `fields` are further lines of its spec.
fn server(fields: &str, permissions: &str) -> String {
    format!(
        "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {{name: default}}\nspec:\n  auth:\n    htpasswdSecretRef: {{name: users}}\n    permissions:{permissions}\n{fields}\n"
    )
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
}

/// Mirrors `open` and `closed` of one upstream, a hosted repository `team` that is closed, an open group `both` of `closed`
/// and `open`, and a closed group `shut` of `open` that takes pushes for `team`.
fn repositories(registry: &Registry) -> String {
    [
        mirror("open", "open.example.com", &registry.url(), "freshness: {tags: 1s}"),
        mirror("closed", "closed.example.com", &registry.url(), "anonymousPull: false\nfreshness: {tags: 1s}"),
        object("HostedRepository", "team", "anonymousPull: false"),
        object("RepositoryGroup", "both", "members: [closed, open]"),
        object("RepositoryGroup", "shut", "members: [open, team], pushTo: team, anonymousPull: false"),
    ]
    .concat()
}

struct World {
    registry: Registry,
    setup: Setup,
    cache: Cache,
    /// Of the image `team/app`.
    manifest: String,
    layer: String,
}

async fn world_with(fields: &str) -> World {
    let registry = Registry::start().await;
    let layer = registry.blob("team/app", &bytes(1, 200_000));
    registry.blob("team/app", b"config");
    let manifest = registry.manifest("team/app", "v1", OCI_MANIFEST, &manifest_of(&[b"config", &bytes(1, 200_000)]));
    registry.page("/v2/team/app/tags/list", r#"{"name": "team/app", "tags": ["v1", "v2", "v3"]}"#);
    registry.index(&format!("/v2/team/app/referrers/{manifest}"), r#"{"schemaVersion": 2, "manifests": []}"#);
    let setup = Setup::new(&(server(fields, PERMISSIONS) + &repositories(&registry)));
    setup.secret("users", "htpasswd", &htpasswd(&USERS));
    let cache = setup.start().await;
    World { registry, setup, cache, manifest, layer }
}

async fn world() -> World {
    world_with("").await
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

impl World {
    fn anonymous(&self) -> Client {
        self.cache.client()
    }

    fn user(&self, user: &str) -> Client {
        self.anonymous().with("authorization", &basic(user, &password(user)))
    }

    /// A client with a token for these scopes.
    async fn token(&self, user: Option<&str>, service: &str, scopes: &[&str]) -> Client {
        let client = user.map_or_else(|| self.anonymous(), |user| self.user(user));
        let token = token_of(&client.get(&token_path("/v2/token", service, scopes)).await);
        self.anonymous().with("authorization", &format!("Bearer {token}"))
    }

    /// Every way to read the image `team/app`: method and path behind the way in.
    fn reads(&self) -> Vec<(&'static str, String)> {
        let (manifest, layer) = (&self.manifest, &self.layer);
        vec![
            ("HEAD", "manifests/v1".to_owned()),
            ("GET", "manifests/v1".to_owned()),
            ("HEAD", format!("manifests/{manifest}")),
            ("GET", format!("manifests/{manifest}")),
            ("HEAD", format!("blobs/{layer}")),
            ("GET", format!("blobs/{layer}")),
            ("GET", "tags/list".to_owned()),
            ("GET", "tags/list?n=1".to_owned()),
            ("GET", format!("referrers/{manifest}")),
        ]
    }

    /// Every way to write to it.
    fn writes(&self) -> Vec<(&'static str, String)> {
        let (manifest, layer) = (&self.manifest, &self.layer);
        vec![
            ("POST", "blobs/uploads/".to_owned()),
            ("POST", format!("blobs/uploads/?mount={layer}&from=team/app")),
            ("PATCH", "blobs/uploads/1".to_owned()),
            ("PUT", format!("blobs/uploads/1?digest={layer}")),
            ("GET", "blobs/uploads/1".to_owned()),
            ("DELETE", "blobs/uploads/1".to_owned()),
            ("PUT", "manifests/v1".to_owned()),
            ("PUT", format!("manifests/{manifest}")),
        ]
    }

    fn deletions(&self) -> Vec<(&'static str, String)> {
        vec![
            ("DELETE", "manifests/v1".to_owned()),
            ("DELETE", format!("manifests/{}", self.manifest)),
            ("DELETE", format!("blobs/{}", self.layer)),
        ]
    }
}

fn token_path(path: &str, service: &str, scopes: &[&str]) -> String {
    let parameters: Vec<_> = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
    format!("{path}?service={service}{}", parameters.concat())
}

#[track_caller]
fn token_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().unwrap().to_owned()
}

/// What a token says.
fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

static ADDRESS: AtomicU32 = AtomicU32::new(0);

/// Asks everything as everyone, and says who got what: `+` let in, `?` log in, `-` denied.
async fn asked(client: &Client, way: &str, requests: &[(&'static str, String)]) -> String {
    let mut letters = String::new();
    for (method, path) in requests {
        let path = format!("{way}/team/app/{path}");
        // Each from an address of its own, since failed logins from one are limited.
        let number = ADDRESS.fetch_add(1, Ordering::Relaxed);
        let client = client.with("x-forwarded-for", &Ipv4Addr::from_bits(0xC633_0000 + number).to_string());
        let answer = client.ask(method, &path).await;
        letters.push(match answer.status {
            401 => '?',
            403 => '-',
            // Let in: whatever the repository says then.
            _ => '+',
        });
        if answer.status == 401 {
            let challenge = answer.header("www-authenticate");
            assert!(challenge.starts_with("Bearer realm=\"http://"), "{method} {path}: {challenge}");
        }
        if answer.status == 401 || answer.status == 403 {
            assert!(*method == "HEAD" || ["UNAUTHORIZED", "DENIED"].contains(&answer.code().as_str()), "{answer:?}");
            assert!(!answer.headers.contains_key("docker-content-digest"), "{answer:?}");
        }
    }
    letters
}

/// One letter where all are the same.
fn same(letters: &str) -> char {
    let first = letters.chars().next().unwrap();
    assert!(letters.chars().all(|letter| letter == first), "not the same for all routes: {letters}");
    first
}

#[tokio::test]
async fn every_caller_on_every_route_of_every_repository() {
    let world = world_with("  trustedProxies: [127.0.0.0/8]").await;
    let all = "repository:team/app:pull,push,delete";
    // One more caller is one more line here and one more letter below.
    let callers = [
        ("nobody", world.anonymous()),
        ("alice", world.user("alice")),
        ("bob", world.user("bob")),
        ("root", world.user("root")),
        ("a wrong password", world.anonymous().with("authorization", &basic("alice", "wrong"))),
        ("somebody of Docker Hub", world.anonymous().with("authorization", &basic("hub", "dckr_pat_x"))),
        ("a foreign token", world.anonymous().with("authorization", "Bearer djEuZm9yZWlnbg")),
        ("something broken", world.anonymous().with("authorization", "Basic !")),
        ("alice's token of closed", world.token(Some("alice"), "closed", &[all]).await),
        ("root's token of team", world.token(Some("root"), "team", &[all]).await),
        ("root's token of team for pulls", world.token(Some("root"), "team", &["repository:team/app:pull"]).await),
        (
            "root's token of team for another image",
            world.token(Some("root"), "team", &["repository:team/web:pull,push"]).await,
        ),
        ("nobody's token of closed", world.token(None, "closed", &[all]).await),
    ];
    // Reads, writes, deletions. Mirrors and groups that take no pushes say so to everyone, and that is no denial.
    let expected = [
        ("open", "+++++++++++++", "+++++++++++++", "+++++++++++++"),
        ("closed", "?+-+????+????", "+++++++++++++", "+++++++++++++"),
        ("team", "?+-+?????++??", "?+-+?????+???", "?--+?????+???"),
        ("both", "+++++++++++++", "+++++++++++++", "+++++++++++++"),
        ("shut", "?--+?????????", "?+-+?????????", "?--+?????????"),
    ];
    // Cold, warm, and with the upstream gone: it makes no difference who gets what.
    for round in ["cold", "warm", "down"] {
        if round == "down" {
            world.registry.play_all(Play::Status(500, Vec::new()));
        }
        for (repository, reads, writes, deletions) in expected {
            let way = format!("/repository/{repository}/v2");
            for (what, requests, letters) in [
                ("reads", world.reads(), reads),
                ("writes", world.writes(), writes),
                ("deletes", world.deletions(), deletions),
            ] {
                for ((caller, client), letter) in callers.iter().zip(letters.chars()) {
                    let before = world.registry.seen().len();
                    let found = same(&asked(client, &way, &requests).await);
                    assert_eq!(found, letter, "{caller} {what} {repository}, {round}");
                    let asked = world.registry.seen().len() - before;
                    assert!(found == '+' || asked == 0, "{caller} {what} {repository}: the upstream was asked");
                }
            }
        }
    }
    let sent = world.registry.seen().iter().filter(|seen| seen.headers.contains_key("authorization")).count();
    assert_eq!(sent, 0, "what clients send is not forwarded");
}

#[tokio::test]
async fn a_closed_mirror_serves_what_it_has_to_those_who_may() {
    let world = world().await;
    for (name, client) in [
        ("password", world.user("alice")),
        ("token", world.token(Some("alice"), "closed", &["repository:team/app:pull"]).await),
    ] {
        for (method, path) in world.reads() {
            let answer = client.ask(method, &format!("/repository/closed/v2/team/app/{path}")).await;
            assert_eq!(answer.status, 200, "{name}: {method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_token_is_fetched_by_get_and_by_form() {
    let world = world().await;
    let scope = "repository:team/app:pull";
    let path = token_path("/v2/token", "closed", &[scope]);
    let offline = format!("{path}&account=alice&client_id=docker&offline_token=true");
    let form =
        |more: &str| format!("service=closed&scope={scope}&client_id=containerd-client&access_type=offline&{more}");
    let alice = "grant_type=password&username=alice&password=alice1";
    let answers = [
        world.user("alice").get(&path).await,
        world.user("alice").get(&offline).await,
        world.user("alice").get(&token_path("/repository/closed/v2/token", "closed", &[scope])).await,
        world.user("alice").get(&format!("/repository/closed//v2/token?scope={scope}")).await,
        world.anonymous().post_form("/v2/token", &form(alice)).await,
        world.anonymous().post_form("/repository/closed/v2/token", &form(alice)).await,
        // What is foreign does not come in the way of a form.
        world.anonymous().with("authorization", "Bearer x").post_form("/v2/token", &form(alice)).await,
    ];
    for answer in answers {
        let body = answer.json();
        assert_eq!(body["token"], body["access_token"], "{answer:?}");
        assert_eq!(body["expires_in"], 300);
        assert!(body["refresh_token"].is_null());
        assert_eq!((answer.header("cache-control"), answer.header("content-type")), ("no-store", "application/json"));
        let said = claims(&token_of(&answer));
        let access = json!([{"type": "repository", "name": "team/app", "actions": ["pull"]}]);
        assert_eq!((&said["aud"], &said["sub"], &said["access"]), (&json!("closed"), &json!("alice"), &access));
        let client = world.anonymous().with("authorization", &format!("Bearer {}", token_of(&answer)));
        assert_eq!(client.get("/repository/closed/v2/team/app/manifests/v1").await.status, 200);
    }
}

#[tokio::test]
async fn scopes_that_are_not_permitted_are_left_out() {
    let world = world().await;
    for (user, service, scopes, expected) in [
        (None, "open", &["repository:team/app:pull,push"][..], json!([["team/app", "pull"]])),
        (None, "closed", &["repository:team/app:pull"], json!([])),
        (None, "team", &["repository:team/app:pull,push"], json!([])),
        (Some("bob"), "closed", &["repository:team/app:pull"], json!([])),
        (Some("bob"), "open", &["repository:a:pull", "repository:b:pull,push"], json!([["a", "pull"], ["b", "pull"]])),
        (Some("alice"), "team", &["repository:team/app:pull,push,delete"], json!([["team/app", "pull", "push"]])),
        (Some("alice"), "team", &["repository:other/app:pull"], json!([])),
        (Some("root"), "team", &["repository:x:*"], json!([["x", "pull", "push", "delete"]])),
        (Some("root"), "team", &["repository:x:pull%20repository:y:push"], json!([["x", "pull"], ["y", "push"]])),
        (Some("root"), "closed", &["repository:x:pull,push"], json!([["x", "pull"]])),
        (Some("alice"), "shut", &["repository:team/app:pull,push"], json!([["team/app", "push"]])),
        (Some("root"), "open", &["registry:catalog:*", "repository:UPPER:pull", "x"], json!([])),
        // Where the name says which repository is meant.
        (
            Some("root"),
            "entrepot.dev",
            &["repository:team/x:push", "repository:open/x:pull,push"],
            json!([["team/x", "push"], ["open/x", "pull"]]),
        ),
        (Some("root"), "entrepot.dev", &["repository:nowhere/x:pull"], json!([])),
        (
            None,
            "entrepot.dev",
            &["repository:open/x:pull", "repository:closed.example.com/x:pull"],
            json!([["open/x", "pull"]]),
        ),
        (
            Some("alice"),
            "entrepot.dev",
            &["repository:closed.example.com/team/x:pull"],
            json!([["closed.example.com/team/x", "pull"]]),
        ),
    ] {
        let client = user.map_or_else(|| world.anonymous(), |user| world.user(user));
        let said = claims(&token_of(&client.get(&token_path("/v2/token", service, scopes)).await));
        let access = said["access"].as_array().unwrap().iter().map(|granted| {
            let actions = granted["actions"].as_array().unwrap().iter().cloned();
            Value::Array(std::iter::once(granted["name"].clone()).chain(actions).collect())
        });
        assert_eq!(Value::Array(access.collect()), expected, "{user:?} {service} {scopes:?}");
        assert_eq!((said["aud"].as_str(), said["sub"].as_str()), (Some(service), Some(user.unwrap_or_default())));
    }
}

#[tokio::test]
async fn a_wrong_login_is_401_and_a_wrong_request_400() {
    let world = world().await;
    let wrong = world.anonymous().with("authorization", &basic("alice", "wrong"));
    let form = async |form: &str| world.anonymous().post_form("/v2/token", form).await;
    let token = world.token(Some("alice"), "closed", &[]).await;
    for answer in [
        wrong.get("/v2/token").await,
        // Not even for what everyone may pull: else a wrong password would look right.
        wrong.get(&token_path("/v2/token", "open", &["repository:team/app:pull"])).await,
        world.anonymous().with("authorization", &basic("nobody", "x")).get("/v2/token").await,
        world.anonymous().with("authorization", "Basic !").get("/v2/token").await,
        token.get("/v2/token").await,
        form("grant_type=password&username=alice&password=wrong").await,
        form("grant_type=refresh_token&refresh_token=x").await,
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (401, "UNAUTHORIZED"), "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"entrepot\"");
    }
    for (answer, status) in [
        (form("grant_type=password&username=alice").await, 400),
        (form("grant_type=refresh_token").await, 400),
        (form("grant_type=authorization_code&code=x").await, 400),
        (form("").await, 400),
        (form(&format!("grant_type=password&username=alice&password={}", "x".repeat(40_000))).await, 413),
        (world.anonymous().ask("POST", "/v2/token").await, 415),
        (world.anonymous().get("/v2/token?service=registry.docker.io").await, 400),
        (world.anonymous().ask("PUT", "/v2/token").await, 405),
    ] {
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!answer.text().contains("wrong"), "{answer:?}");
    }
    assert!(world.cache.metric("entrepot_failed_logins_total{reason=\"wrong\"}").await > 3.5);
}

#[tokio::test]
async fn a_challenge_says_where_to_get_a_token_for_what() {
    let world = world().await;
    let host = world.cache.address;
    let realm = format!("Bearer realm=\"http://{host}/v2/token\"");
    let other = world.token(Some("root"), "closed", &["repository:other:pull"]).await;
    for (answer, expected) in [
        (
            world.anonymous().get("/repository/closed/v2/team/app/manifests/v1").await,
            "service=\"closed\",scope=\"repository:team/app:pull\"",
        ),
        (
            world.anonymous().get("/v2/team/app/tags/list?ns=closed.example.com").await,
            "service=\"closed\",scope=\"repository:team/app:pull\"",
        ),
        (
            world.anonymous().ask("PUT", "/repository/team/v2/app/manifests/v1").await,
            "service=\"team\",scope=\"repository:app:pull,push\"",
        ),
        (
            world.anonymous().ask("DELETE", "/repository/team/v2/app/manifests/v1").await,
            "service=\"team\",scope=\"repository:app:pull,delete\"",
        ),
        (
            world.anonymous().get("/v2/closed/team/app/manifests/v1").await,
            "service=\"entrepot.dev\",scope=\"repository:closed/team/app:pull\"",
        ),
        (
            world.anonymous().get("/v2/closed.example.com/team/app/manifests/v1").await,
            "service=\"entrepot.dev\",scope=\"repository:closed.example.com/team/app:pull\"",
        ),
        (
            other.get("/repository/closed/v2/team/app/manifests/v1").await,
            "service=\"closed\",scope=\"repository:team/app:pull\",error=\"insufficient_scope\"",
        ),
        (
            world
                .anonymous()
                .with("authorization", "Bearer x")
                .get("/repository/closed/v2/team/app/manifests/v1")
                .await,
            "service=\"closed\",scope=\"repository:team/app:pull\",error=\"invalid_token\"",
        ),
        (world.anonymous().get("/repository/closed/v2/").await, "service=\"closed\""),
        (world.anonymous().get("/v2/").await, "service=\"entrepot.dev\""),
    ] {
        assert_eq!(answer.status, 401, "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), format!("{realm},{expected}"));
    }
}

#[tokio::test]
async fn an_engine_logs_in_at_the_main_port_and_works_by_names() {
    let world = world().await;
    assert_eq!(world.anonymous().get("/v2/").await.status, 401);
    // As docker does: what /v2/ said counts for every image, whatever repository it is of.
    let login = world.token(Some("alice"), "entrepot.dev", &[]).await;
    assert_eq!(login.get("/v2/").await.status, 200);
    assert_eq!(login.get("/v2/closed/team/app/manifests/v1").await.status, 401);
    let puller = world.token(Some("alice"), "entrepot.dev", &["repository:closed/team/app:pull"]).await;
    assert_eq!(puller.get("/v2/closed/team/app/manifests/v1").await.status, 200);
    assert_eq!(puller.get("/v2/closed.example.com/team/app/manifests/v1").await.status, 401, "it is called otherwise");
    assert_eq!(puller.get("/repository/closed/v2/team/app/manifests/v1").await.status, 401, "that is another service");
    let nobody = world.token(None, "entrepot.dev", &["repository:open/team/app:pull"]).await;
    assert_eq!(nobody.get("/v2/open/team/app/manifests/v1").await.status, 200);
    assert_eq!(nobody.get("/v2/closed/team/app/manifests/v1").await.status, 401);
}

#[tokio::test]
async fn who_asks_v2_learns_whether_to_log_in() {
    let world = world().await;
    let wrong = world.anonymous().with("authorization", &basic("alice", "wrong"));
    let foreign = world.anonymous().with("authorization", "Bearer x");
    for (path, nobody, wrong_password, foreign_token) in [
        ("/v2/", 401, 401, 401),
        ("/repository/open/v2/", 200, 200, 200),
        ("/repository/closed/v2/", 401, 401, 401),
        ("/repository/team/v2/", 401, 401, 401),
        // Engines that are told 200 here send no login for the closed member.
        ("/repository/both/v2/", 401, 401, 401),
        ("/repository/shut/v2/", 401, 401, 401),
    ] {
        assert_eq!(world.anonymous().get(path).await.status, nobody, "{path}");
        assert_eq!(world.anonymous().head(path).await.status, nobody, "{path}");
        assert_eq!(wrong.get(path).await.status, wrong_password, "{path}");
        assert_eq!(foreign.get(path).await.status, foreign_token, "{path}");
        // Who is right is let through, whatever may be done then.
        assert_eq!(world.user("bob").get(path).await.status, 200, "{path}");
        let service = path.split('/').nth(2).filter(|name| !name.is_empty()).unwrap_or("entrepot.dev");
        assert_eq!(world.token(Some("bob"), service, &[]).await.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn without_logins_nobody_is_asked_for_one() {
    let registry = Registry::start().await;
    registry.manifest("team/app", "v1", OCI_MANIFEST, &manifest_of(&[b"config"]));
    let setup = Setup::new(
        &[
            mirror("hub", "docker.io", &registry.url(), ""),
            mirror("shut", "shut.example.com", &registry.url(), "anonymousPull: false"),
            object("RepositoryGroup", "all", "members: [hub, shut]"),
        ]
        .concat(),
    );
    let cache = setup.start().await;
    for client in [cache.client(), cache.client().with("authorization", &basic("a", "b"))] {
        for path in ["/v2/", "/repository/hub/v2/", "/repository/all/v2/", "/v2/hub/team/app/manifests/v1"] {
            assert_eq!(client.get(path).await.status, 200, "{path}");
        }
        assert_eq!(client.get("/v2/all/team/nowhere/manifests/v1").await.status, 404, "no login would help");
    }
    let said = claims(&token_of(&cache.client().get("/v2/token?service=hub&scope=repository:team/app:pull").await));
    assert_eq!((&said["sub"], &said["access"][0]["actions"]), (&json!(""), &json!(["pull"])));
    let refused = cache.client().with("authorization", &basic("a", "b")).get("/v2/token").await;
    assert_eq!(refused.status, 401);
    assert!(refused.text().contains("this server has no logins"), "{refused:?}");
}

#[tokio::test]
async fn with_open_mirrors_alone_v2_asks_for_a_login_only_who_comes_with_one() {
    let registry = Registry::start().await;
    let setup = Setup::new(&(server("", " []") + &mirror("open", "open.example.com", &registry.url(), "")));
    setup.secret("users", "htpasswd", &htpasswd(&USERS));
    let cache = setup.start().await;
    assert_eq!(cache.client().get("/v2/").await.status, 200);
    let with = |password| cache.client().with("authorization", &basic("alice", password));
    assert_eq!(with("alice1").get("/v2/").await.status, 200);
    assert_eq!(with("wrong").get("/v2/").await.status, 401);
}

#[tokio::test]
async fn a_group_shows_a_closed_member_to_those_alone_who_may_pull_from_it() {
    let world = world().await;
    // Only the closed member has it in its cache once the upstream is down.
    assert_eq!(world.user("alice").get("/repository/closed/v2/team/app/manifests/v1").await.status, 200);
    world.registry.play_all(Play::Status(500, Vec::new()));
    let path = format!("/repository/both/v2/team/app/manifests/{}", world.manifest);
    let scope = "repository:team/app:pull";
    for (who, client, status) in [
        ("alice", world.user("alice"), 200),
        ("alice's token", world.token(Some("alice"), "both", &[scope]).await, 200),
        // The open member cannot tell, and who logs in may have it from the other one.
        ("alice's token of the member", world.token(Some("alice"), "closed", &[scope]).await, 401),
        (
            "alice's token of another image",
            world.token(Some("alice"), "both", &["repository:team/web:pull"]).await,
            401,
        ),
        ("nobody", world.anonymous(), 401),
        ("bob", world.user("bob"), 503),
        ("a wrong password", world.anonymous().with("authorization", &basic("alice", "wrong")), 401),
        ("a foreign token", world.anonymous().with("authorization", "Bearer x"), 401),
    ] {
        assert_eq!(client.get(&path).await.status, status, "{who}");
    }
}

/// A server with groups: `mix` of the open mirror and `team`, which has `team/own` with a blob; and groups with groups in them.
async fn groups() -> World {
    let mut world = world().await;
    let permissions = "
    - {users: [alice], repositories: [closed, team, veiled], images: ['team/**'], actions: [Pull, Push]}
    - {users: [bob], repositories: [veil], actions: [Pull]}
    - {users: [root], repositories: ['*'], actions: [Pull, Push, Delete]}";
    let groups = [
        object("HostedRepository", "broken", ""),
        object("RepositoryGroup", "mix", "members: [open, team]"),
        object("RepositoryGroup", "early", "members: [team, broken]"),
        object("RepositoryGroup", "late", "members: [broken, team]"),
        object("RepositoryGroup", "veil", "members: [open], anonymousPull: false"),
        object("RepositoryGroup", "veiled", "members: [closed], anonymousPull: false"),
        object("RepositoryGroup", "over", "members: [veil]"),
        object("RepositoryGroup", "over-closed", "members: [veiled]"),
        object("RepositoryGroup", "far", "members: [over]"),
        object("RepositoryGroup", "beside", "members: [veil, open]"),
    ];
    let config = server("", permissions) + &repositories(&world.registry) + &groups.concat();
    world.setup.configure(&config);
    world.cache.kill().await;
    world.cache = world.setup.start().await;
    let root = world.user("root");
    let blob = "/repository/team/v2/team/own/blobs/uploads/?digest=";
    for content in [&b"config"[..], b"layer"] {
        let pushed = root.send_body("POST", &format!("{blob}{}", digest(content)), content).await;
        assert_eq!(pushed.status, 201, "{pushed:?}");
    }
    let client = root.with("content-type", OCI_MANIFEST);
    let manifest = manifest_of(&[b"config", b"layer"]);
    let pushed = client.send_body("PUT", "/repository/team/v2/team/own/manifests/v1", &manifest).await;
    assert_eq!(pushed.status, 201, "{pushed:?}");
    world
}

#[tokio::test]
async fn an_open_group_asks_for_a_login_where_only_a_closed_member_could_have_it() {
    let world = groups().await;
    let layer = digest(b"layer");
    let nobody = world.anonymous();
    // What the open member has is for everyone; `/v2/` asks, so that engines send the login that they have.
    assert_eq!(nobody.get("/repository/mix/v2/").await.status, 401);
    for (method, path) in world.reads() {
        assert_eq!(nobody.ask(method, &format!("/repository/mix/v2/team/app/{path}")).await.status, 200, "{path}");
    }
    // Of all else nobody learns more than that a login may help, whether it is there or not.
    let realm = format!("Bearer realm=\"http://{}/v2/token\"", world.cache.address);
    for what in ["manifests/v1", "tags/list", &format!("blobs/{layer}")] {
        let mut bodies = Vec::new();
        for image in ["team/own", "team/nowhere"] {
            let scope = format!("scope=\"repository:{image}:pull\"");
            let refused = nobody.get(&format!("/repository/mix/v2/{image}/{what}")).await;
            assert_eq!((refused.status, refused.code().as_str()), (401, "UNAUTHORIZED"), "{refused:?}");
            assert_eq!(refused.header("www-authenticate"), format!("{realm},service=\"mix\",{scope}"));
            let shared = nobody.get(&format!("/v2/mix/{image}/{what}")).await;
            let scope = format!("scope=\"repository:mix/{image}:pull\"");
            assert_eq!(shared.header("www-authenticate"), format!("{realm},service=\"entrepot.dev\",{scope}"));
            assert_eq!(nobody.head(&format!("/repository/mix/v2/{image}/{what}")).await.status, 401);
            bodies.push(refused.text());
        }
        assert_eq!(bodies[0], bodies[1], "{what}");
    }
    let scope = "repository:team/own:pull";
    let foreign = "repository:team/web:pull";
    let paths = ["own", "nowhere"].map(|image| format!("/repository/mix/v2/team/{image}/manifests/v1"));
    for (who, client, own, nowhere) in [
        ("alice", world.user("alice"), 200, 404),
        ("alice's token", world.token(Some("alice"), "mix", &[scope, "repository:team/nowhere:pull"]).await, 200, 404),
        ("alice's token of another image", world.token(Some("alice"), "mix", &[foreign]).await, 401, 401),
        ("alice's token of another service", world.token(Some("alice"), "team", &[scope]).await, 401, 401),
        ("nobody's token", world.token(None, "mix", &[scope]).await, 401, 401),
        ("a wrong password", world.anonymous().with("authorization", &basic("alice", "wrong")), 401, 401),
        ("a foreign token", world.anonymous().with("authorization", "Bearer x"), 401, 401),
        // For whom the member is not there, it is as if it were not.
        ("bob", world.user("bob"), 404, 404),
        ("bob's token", world.token(Some("bob"), "mix", &[scope, "repository:team/nowhere:pull"]).await, 404, 404),
    ] {
        let found = (client.get(&paths[0]).await.status, client.get(&paths[1]).await.status);
        assert_eq!(found, (own, nowhere), "{who}");
    }
    // That there are no referrers is what the open member says.
    let referrers = format!("/repository/mix/v2/team/own/referrers/{}", digest(&manifest_of(&[b"config", b"layer"])));
    assert_eq!(nobody.get(&referrers).await.status, 200);
    // An upstream that is down does not keep those who would log in from what the other member has.
    world.registry.play_all(Play::Status(500, Vec::new()));
    assert_eq!(nobody.get(&paths[0]).await.status, 401);
    assert_eq!(world.user("alice").get(&paths[0]).await.status, 200);
    // A hosted member that cannot tell stops everyone behind it.
    let tags = world.setup.data().join("repositories/broken/team/own/_tags");
    std::fs::create_dir_all(tags.join("v1")).unwrap();
    for (group, nobodys, alices) in [("late", 500, 500), ("early", 401, 200)] {
        let path = format!("/repository/{group}/v2/team/own/manifests/v1");
        assert_eq!((nobody.get(&path).await.status, world.user("alice").get(&path).await.status), (nobodys, alices));
    }
}

#[tokio::test]
async fn a_closed_group_in_an_open_one_needs_its_own_permission_and_those_of_its_members() {
    let world = groups().await;
    let clients = [world.anonymous(), world.user("alice"), world.user("bob"), world.user("root")];
    for (group, expected) in [
        // The member is open, and the group between is closed.
        ("over", [401, 404, 200, 200]),
        ("far", [401, 404, 200, 200]),
        // Another way leads to the same member.
        ("beside", [200, 200, 200, 200]),
        // Both are closed: alice may pull from both, bob from neither.
        ("over-closed", [401, 200, 404, 200]),
    ] {
        let mut found = Vec::new();
        for client in &clients {
            let answer = client.get(&format!("/repository/{group}/v2/team/app/manifests/v1")).await;
            found.push(answer.status);
        }
        assert_eq!(found, expected, "{group}");
    }
    // What may not be pulled is not shown.
    assert_eq!(world.anonymous().get("/repository/open/v2/team/app/manifests/v1").await.status, 200);
    for (client, path, images) in [(&clients[0], "over", 0), (&clients[2], "over", 1), (&clients[0], "beside", 1)] {
        let listed = client.get(&format!("/api/v1/repositories/{path}/images")).await;
        assert_eq!(listed.json()["images"].as_array().unwrap().len(), images, "{listed:?}");
    }
}

#[tokio::test]
async fn nobody_is_told_of_repositories_that_they_may_not_see() {
    let world = world().await;
    let wrong = world.anonymous().with("authorization", &basic("root", "wrong"));
    let all = ["both", "closed", "open", "shut", "team"];
    for (who, client, seen) in [
        ("nobody", world.anonymous(), &["both", "open"][..]),
        ("alice", world.user("alice"), &["both", "closed", "open", "team"]),
        ("root", world.user("root"), &all),
        ("a token", world.token(Some("root"), "entrepot.dev", &[]).await, &["both", "open"]),
        ("a wrong password", wrong.clone(), &["both", "open"]),
        ("the port of metrics", world.cache.operator(), &["both", "open"]),
    ] {
        let told = |text: &str, mark: &str| -> Vec<&str> {
            all.into_iter().filter(|name| text.contains(&format!("{name}{mark}"))).collect()
        };
        if who != "a wrong password" {
            let front = client.get("/").await;
            assert_eq!((front.status, front.header("content-type")), (200, "text/plain; charset=utf-8"), "{who}");
            assert_eq!(told(&front.text(), ": "), seen, "{who}: {front:?}");
        }
        if who == "the port of metrics" {
            continue;
        }
        for path in ["/v2/nowhere/x/manifests/1", "/repository/nope/v2/", "/v2/x/tags/list?ns=quay.io", "/v1/search"] {
            let refused = client.get(path).await;
            assert_eq!((refused.status, refused.code().as_str()), (404, "NAME_UNKNOWN"), "{who} {path}: {refused:?}");
            assert_eq!(told(&refused.text(), " by /repository/"), seen, "{who} {path}: {refused:?}");
        }
    }
    assert_eq!(wrong.get("/").await.status, 401, "nobody takes a shorter list for all there is");
    assert_eq!(world.anonymous().ask("POST", "/").await.status, 405);
}

#[tokio::test]
async fn a_mistake_elsewhere_in_the_server_takes_no_login_and_no_permission_away() {
    let mut world = world().await;
    world.cache.kill().await;
    world.setup = world.setup.keep_going();
    world.cache = world.setup.start().await;
    let path = "/repository/closed/v2/team/app/manifests/v1";
    let reloaded = async |world: &World, wrong: bool| {
        let ask = || async {
            world.cache.reload();
            world.cache.operator().get("/status").await
        };
        let is_so = |answer: &Answer| answer.json()["mistakes"].as_array().is_some_and(|it| it.is_empty() != wrong);
        until_answer("the change is loaded", ask, is_so).await;
    };
    let statuses = async |world: &World| {
        let mut found = Vec::new();
        for client in [world.anonymous(), world.user("alice"), world.user("bob")] {
            found.push(client.get(path).await.status);
        }
        found
    };
    assert_eq!(statuses(&world).await, [401, 200, 403]);
    // A value that is no good, a field that is none, a repository that is not there, and permissions on the way that are
    // not taken either, since they come with the mistake.
    let open = "
    - {users: ['*'], repositories: ['*'], actions: [Pull]}";
    for (fields, permissions) in [
        ("  maxSize: plenty", PERMISSIONS),
        ("  oops: 1", open),
        ("  defaultRepository: nobody", open),
        ("  trustedProxies: [nowhere]", " []"),
    ] {
        world.setup.configure(&(server(fields, permissions) + &repositories(&world.registry)));
        reloaded(&world, true).await;
        assert_eq!(statuses(&world).await, [401, 200, 403], "{fields}");
        world.setup.configure(&(server("", PERMISSIONS) + &repositories(&world.registry)));
        reloaded(&world, false).await;
    }
    // Users that cannot be read are those of before.
    world.setup.secret("users", "htpasswd", "nonsense");
    reloaded(&world, true).await;
    assert_eq!(statuses(&world).await, [401, 200, 403]);
    // Those that can be read count: who is taken away does not stay because of a mistake elsewhere.
    world.setup.secret("users", "htpasswd", &htpasswd(&["bob"]));
    world.setup.configure(&(server("  defaultRepository: nobody", PERMISSIONS) + &repositories(&world.registry)));
    let ask = || async {
        world.cache.reload();
        world.user("alice").get(path).await
    };
    until_answer("alice is gone", ask, |answer| answer.status == 401).await;
    assert_eq!(statuses(&world).await, [401, 401, 403]);
}

#[tokio::test]
async fn addresses_are_what_the_client_used() {
    let world = world().await;
    let forwarded = world
        .anonymous()
        .with("host", "10.0.0.7:5000")
        .with("x-forwarded-host", "r.example.com:8443, inner")
        .with("x-forwarded-proto", "https, http")
        .with("x-forwarded-for", "192.0.2.1");
    let realm = |answer: &Answer| answer.header("www-authenticate").split('"').nth(1).unwrap().to_owned();
    assert_eq!(realm(&forwarded.get("/repository/closed/v2/").await), "https://r.example.com:8443/v2/token");
    assert_eq!(
        realm(&world.anonymous().with("host", "cache.example.com").get("/v2/").await),
        "http://cache.example.com/v2/token"
    );
    let odd = world.anonymous().with("host", "a.example.com").with("x-forwarded-host", "x\",evil=\"y");
    assert_eq!(realm(&odd.get("/v2/").await), "http://a.example.com/v2/token");

    let link = async |client: &Client, path: &str| client.get(path).await.header("link").to_owned();
    let host = world.cache.address;
    let path = "/repository/open/v2/team/app/tags/list?n=1";
    assert_eq!(
        link(&world.anonymous(), path).await,
        format!("<http://{host}/repository/open/v2/team/app/tags/list?n=1&last=v1>; rel=\"next\"")
    );
    assert_eq!(
        link(&forwarded, path).await,
        "<https://r.example.com:8443/v2/team/app/tags/list?n=1&last=v1>; rel=\"next\""
    );
    assert_eq!(
        link(&forwarded.with("x-forwarded-prefix", "/registry"), path).await,
        "<https://r.example.com:8443/registry/repository/open/v2/team/app/tags/list?n=1&last=v1>; rel=\"next\""
    );
    assert_eq!(
        link(&forwarded, "/v2/open/team/app/tags/list?n=1").await,
        "<https://r.example.com:8443/v2/open/team/app/tags/list?n=1&last=v1>; rel=\"next\""
    );

    let world = world_with("  externalURL: https://registry.example.com").await;
    assert_eq!(realm(&world.anonymous().get("/v2/").await), "https://registry.example.com/v2/token");
}

#[tokio::test]
async fn guesses_from_one_address_come_to_an_end() {
    let world = world_with("  trustedProxies: [127.0.0.0/8]").await;
    let guess = |address: &str, password: &str| {
        let client = world.anonymous().with("x-forwarded-for", address);
        client.with("authorization", &basic("alice", password))
    };
    let good = guess("198.51.100.7", "alice1");
    assert_eq!(good.get("/v2/").await.status, 200);
    let answer = until_answer(
        "guesses are limited",
        || async { guess("198.51.100.7", "x").get("/v2/token").await },
        |answer| answer.status != 401,
    )
    .await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "TOOMANYREQUESTS"), "{answer:?}");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(guess("198.51.100.7", "x").get("/repository/closed/v2/team/app/tags/list").await.status, 429);
    assert!(world.cache.metric("entrepot_failed_logins_total{reason=\"limited\"}").await > 1.5);
    // Who was known before, who comes from elsewhere, and who needs no login is not held up.
    assert_eq!(good.get("/v2/").await.status, 200);
    assert_eq!(guess("198.51.100.8", "x").get("/v2/token").await.status, 401);
    assert_eq!(guess("198.51.100.7", "x").get("/repository/open/v2/team/app/tags/list").await.status, 200);
}

#[tokio::test]
async fn what_is_taken_away_is_gone_with_the_next_request() {
    let world = world().await;
    let path = "/repository/closed/v2/team/app/manifests/v1";
    let token = world.token(Some("alice"), "closed", &["repository:team/app:pull"]).await;
    assert_eq!((token.get(path).await.status, world.user("alice").get(path).await.status), (200, 200));
    let reloaded = async |status: u16| {
        let ask = || async {
            world.cache.reload();
            world.user("alice").get(path).await
        };
        until_answer("the change is loaded", ask, |answer| answer.status == status).await;
    };
    // The permission.
    world.setup.configure(&(server("", " []") + &repositories(&world.registry)));
    reloaded(403).await;
    assert_eq!(token.get(path).await.status, 403);
    world.setup.configure(&(server("", PERMISSIONS) + &repositories(&world.registry)));
    reloaded(200).await;
    assert_eq!(token.get(path).await.status, 200);
    // The password: a password that was right before is not remembered.
    world.setup.secret("users", "htpasswd", &htpasswd(&["bob"]).replace("bob", "alice"));
    reloaded(401).await;
    assert_eq!(world.anonymous().with("authorization", &basic("alice", "bob1")).get(path).await.status, 200);
    assert_eq!(token.get(path).await.status, 200, "a token lives on for its minutes");
    // The user.
    world.setup.secret("users", "htpasswd", &htpasswd(&["bob"]));
    let removed = || async {
        world.cache.reload();
        token.get(path).await
    };
    until_answer("alice is gone", removed, |answer| answer.status == 401).await;
}

#[tokio::test]
async fn tokens_outlive_the_process() {
    let world = world().await;
    let path = "/repository/closed/v2/team/app/manifests/v1";
    let token =
        token_of(&world.user("alice").get(&token_path("/v2/token", "closed", &["repository:team/app:pull"])).await);
    world.cache.kill().await;
    let cache = world.setup.start().await;
    let bearer = format!("Bearer {token}");
    assert_eq!(cache.client().with("authorization", &bearer).get(path).await.status, 200);
    cache.kill().await;
    // A damaged key is no reason not to start; tokens of the old one are then foreign.
    std::fs::write(world.setup.data().join("token-key"), b"damaged").unwrap();
    let cache = world.setup.start().await;
    assert_eq!(cache.client().with("authorization", &bearer).get(path).await.status, 401);
}

/// Signs tokens as a cluster does.
struct Cluster(EcdsaKeyPair);

impl Cluster {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn issuer(&self) -> String {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = self.0.public_key().as_ref();
        let key = json!({"kty": "EC", "kid": "1", "alg": "ES256", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])});
        json!({"issuer": "https://cluster", "jwks": {"keys": [key]}}).to_string()
    }

    fn token(&self, namespace: &str, audience: &str) -> String {
        let claims = json!({"iss": "https://cluster", "aud": [audience], "exp": 4_000_000_000_u64, "nbf": 1_700_000_000, "sub": format!("system:serviceaccount:{namespace}:ci")});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "1"})), part(&claims));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[tokio::test]
async fn a_service_account_logs_in_with_its_own_token() {
    let cluster = Cluster::new();
    let mut world = world().await;
    let folder = tempfile::tempdir().unwrap();
    let config = server("", PERMISSIONS).replace("  auth:\n", "  auth:\n    serviceAccounts: true\n");
    std::fs::write(folder.path().join("all.yaml"), config + &repositories(&world.registry)).unwrap();
    std::fs::write(folder.path().join("service-account-issuer.json"), cluster.issuer()).unwrap();
    let sources = cache_server::settings::Sources { config: Some(folder.path().to_owned()), ..world.setup.sources() };
    world.cache.kill().await;
    world.cache = world.setup.start_with(sources).await;

    let path = "/repository/closed/v2/team/app/manifests/v1";
    let token_path = token_path("/v2/token", "closed", &["repository:team/app:pull"]);
    let with = |authorization: &str| world.anonymous().with("authorization", authorization);
    let own = cluster.token("team1", "entrepot");
    for authorization in [format!("Bearer {own}"), basic("anything", &own), basic("alice", &own)] {
        assert_eq!(with(&authorization).get(path).await.status, 200, "{authorization}");
        assert_eq!(with(&authorization).get("/v2/").await.status, 200, "{authorization}");
    }
    let form = format!("service=closed&scope=repository:team/app:pull&refresh_token={own}&grant_type=refresh_token");
    let password =
        format!("service=closed&scope=repository:team/app:pull&username=x&password={own}&grant_type=password");
    for answer in [
        with(&basic("x", &own)).get(&token_path).await,
        world.anonymous().post_form("/v2/token", &form).await,
        world.anonymous().post_form("/v2/token", &password).await,
    ] {
        let token = token_of(&answer);
        assert_eq!(claims(&token)["sub"], "system:serviceaccount:team1:ci");
        assert_eq!(with(&format!("Bearer {token}")).get(path).await.status, 200);
    }
    for (what, token, status) in [
        ("another namespace", cluster.token("team2", "entrepot"), 403),
        ("the cluster's own audience", cluster.token("team1", "https://kubernetes.default.svc"), 401),
        ("another cluster", Cluster::new().token("team1", "entrepot"), 401),
    ] {
        assert_eq!(with(&format!("Bearer {token}")).get(path).await.status, status, "{what}");
        assert_eq!(with(&basic("x", &token)).get(path).await.status, status, "{what}");
    }
    assert_eq!(world.user("alice").get(path).await.status, 200, "users are there too");
}
