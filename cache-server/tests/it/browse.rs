//! What is shown of the repositories: the API and the pages.

use std::path::Path;

use crate::support::{
    Answer, Cache, Client, Gate, OCI_INDEX, OCI_MANIFEST, Play, Registry, Setup, bytes, digest, manifest_of, mirror,
    until_answer,
};
use serde_json::{Value, json};

/// The YAML of a group.
fn group(name: &str, members: &str, fields: &str) -> String {
    format!(
        "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: RepositoryGroup, metadata: {{name: {name}}}, spec: {{members: [{members}]{fields}}}}}\n"
    )
}

fn hosted(name: &str, fields: &str) -> String {
    format!(
        "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: HostedRepository, metadata: {{name: {name}}}, spec: {{{fields}}}}}\n"
    )
}

/// An image on the registry: its manifest, config and layer.
fn image(registry: &Registry, name: &str, tag: &str, seed: u64) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (config, layer) = (format!("{{\"seed\":{seed}}}").into_bytes(), bytes(seed, 300_000));
    registry.blob(name, &config);
    registry.blob(name, &layer);
    let manifest = manifest_of(&[&config, &layer]);
    registry.manifest(name, tag, OCI_MANIFEST, &manifest);
    (manifest, config, layer)
}

async fn pull(client: &Client, repository: &str, name: &str, tag: &str, blobs: &[&[u8]]) {
    assert_eq!(client.get(&format!("/v2/{repository}/{name}/manifests/{tag}")).await.status, 200);
    for blob in blobs {
        client.get(&format!("/v2/{repository}/{name}/blobs/{}", digest(blob))).await.assert_is(200, blob);
    }
    // A client has a blob a moment before the store has given it its name.
    until_answer("no fill runs", || client.get("/api/v1/fills"), |answer| answer.json()["fills"] == json!([])).await;
}

/// A mirror `hub` with `library/mysql:8`, pulled, and a group `all` over it and an empty mirror `other`.
async fn shop() -> (Registry, Setup, Cache, Vec<u8>, Vec<u8>, Vec<u8>) {
    let registry = Registry::start().await;
    let other = Registry::start().await;
    let setup = Setup::new(&format!(
        "{}{}{}",
        mirror("hub", "docker.io", &registry.url(), ""),
        mirror("other", "quay.io", &other.url(), ""),
        group("all", "other, hub", "")
    ));
    let cache = setup.start().await;
    let (manifest, config, layer) = image(&registry, "library/mysql", "8", 1);
    pull(&cache.client(), "hub", "library/mysql", "8", &[&config, &layer]).await;
    (registry, setup, cache, manifest, config, layer)
}

async fn api(client: &Client, path: &str) -> Value {
    let answer = client.get(&format!("/api/v1/{path}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{path}: {answer:?}");
    answer.json()
}

fn html(client: &Client) -> Client {
    client.with("accept", "text/html,application/xhtml+xml,*/*;q=0.8")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_api_shows_what_was_pulled() {
    let (registry, _setup, cache, manifest, config, layer) = shop().await;
    let client = cache.client();
    let asked = registry.seen().len();

    let repositories = api(&client, "repositories").await;
    assert_eq!(names(&repositories["repositories"]), ["hub", "other", "all"]);
    let hub = &repositories["repositories"][0];
    assert_eq!((&hub["kind"], &hub["online"]), (&json!("RegistryMirror"), &json!(true)));
    assert_eq!((&hub["registries"], &hub["upstream"]["state"]), (&json!(["docker.io"]), &json!("Reachable")));
    assert_eq!(hub["ways"]["paths"], json!(["/repository/hub/v2/", "/v2/hub/", "/v2/docker.io/"]));
    assert_eq!(repositories["repositories"][2]["members"], json!(["other", "hub"]));

    let images = api(&client, "repositories/hub/images").await;
    assert_eq!(images, json!({"images": [{"name": "library/mysql", "repositories": ["hub"]}]}));

    // The name that clients of Docker Hub use is the same image.
    for name in ["library/mysql", "mysql"] {
        let tags = api(&client, &format!("repositories/hub/tags?image={name}")).await;
        let tag = &tags["tags"][0];
        assert_eq!(
            (&tag["name"], &tag["digest"], &tag["cached"]),
            (&json!("8"), &json!(digest(&manifest)), &json!(true))
        );
        assert_eq!((&tag["mediaType"], &tag["size"]), (&json!(OCI_MANIFEST), &json!(manifest.len())));
        assert!(tag["confirmed"].as_str().unwrap().ends_with('Z'), "{tag}");
    }

    for reference in ["8", &digest(&manifest)] {
        let path = format!("repositories/hub/manifests?image=library%2Fmysql&reference={reference}");
        let shown = api(&client, &path).await;
        assert_eq!((&shown["digest"], &shown["repository"]), (&json!(digest(&manifest)), &json!("hub")));
        assert_eq!(shown["config"]["digest"], json!(digest(&config)));
        assert_eq!(
            shown["layers"],
            json!([{
                "digest": digest(&layer), "size": layer.len(), "cached": true,
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            }])
        );
        assert_eq!(shown["confirmed"].is_string(), reference == "8");
    }
    let manifests = api(&client, "repositories/hub/manifests?image=library/mysql").await;
    assert_eq!(manifests["manifests"][0]["digest"], json!(digest(&manifest)));
    assert_eq!(registry.seen().len(), asked, "looking must not ask the upstream");
}

#[tokio::test]
async fn a_group_shows_its_members_content_and_who_has_it() {
    let (_registry, _setup, cache, manifest, ..) = shop().await;
    let client = cache.client();
    assert_eq!(
        api(&client, "repositories/all/images").await,
        json!({"images": [{"name": "library/mysql", "repositories": ["hub"]}]})
    );
    let tags = api(&client, "repositories/all/tags?image=library/mysql").await;
    assert_eq!((&tags["tags"][0]["repository"], &tags["tags"][0]["name"]), (&json!("hub"), &json!("8")));
    let shown = api(&client, "repositories/all/manifests?image=library/mysql&reference=8").await;
    assert_eq!((&shown["repository"], &shown["digest"]), (&json!("hub"), &json!(digest(&manifest))));
    let page = html(&client).get("/browse/all?image=library%2Fmysql").await.text();
    assert!(page.contains("<td>hub</td>") && page.contains("2 of 2 parts cached"), "{page}");
}

#[tokio::test]
async fn what_is_not_here_is_told_from_what_is() {
    let (registry, _setup, cache, ..) = shop().await;
    let client = cache.client();
    let (manifest, config, _) = image(&registry, "library/mysql", "9", 2);
    pull(&client, "hub", "library/mysql", "9", &[&config]).await;
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": digest(&manifest), "size": manifest.len(),
            "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": OCI_MANIFEST, "digest": digest(b"arm"), "size": 3,
            "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
    ]}))
    .unwrap();
    registry.manifest("library/mysql", "lts", OCI_INDEX, &index);
    pull(&client, "hub", "library/mysql", "lts", &[]).await;

    let nine = api(&client, "repositories/hub/manifests?image=library/mysql&reference=9").await;
    assert_eq!((&nine["config"]["cached"], &nine["layers"][0]["cached"]), (&json!(true), &json!(false)));
    let index = api(&client, "repositories/hub/manifests?image=library/mysql&reference=lts").await;
    let platforms: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|part| (&part["platform"], &part["cached"])).collect();
    assert_eq!(platforms, [(&json!("linux/amd64"), &json!(true)), (&json!("linux/arm64/v8"), &json!(false))]);

    // Bytes that another repository has are none of this one's.
    let quay = image(&registry, "team/app", "1", 1);
    assert_eq!(quay.2, bytes(1, 300_000));
    pull(&client, "hub", "team/app", "1", &[]).await;
    let same = api(&client, "repositories/hub/manifests?image=team/app&reference=1").await;
    assert_eq!(same["layers"][0]["cached"], json!(true), "blobs are linked per repository");
}

#[tokio::test]
async fn a_running_fill_is_shown_with_its_repository() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let (manifest, _, layer) = image(&registry, "team/app", "1", 3);
    let gate = Gate::closed();
    registry.play_blob_gets(vec![Play::Hold(100_000, gate.clone())]);
    let client = cache.client();
    pull(&client, "hub", "team/app", "1", &[]).await;
    let reply = client.open("GET", &format!("/v2/hub/team/app/blobs/{}", digest(&layer))).await;
    let fills = until_answer(
        "the fill has come as far as the upstream let it",
        || client.get("/api/v1/fills"),
        |answer| answer.json()["fills"][0]["bytes"] == json!(100_000),
    )
    .await
    .json();
    let fill = &fills["fills"][0];
    assert_eq!((&fill["digest"], &fill["repositories"]), (&json!(digest(&layer)), &json!(["hub"])));
    assert_eq!(fill["total"], json!(layer.len()));
    let path = format!("repositories/hub/manifests?image=team/app&reference={}", digest(&manifest));
    let part = &api(&client, &path).await["layers"][0];
    assert_eq!((&part["cached"], &part["filling"]["bytes"]), (&json!(false), &json!(100_000)));
    gate.open();
    reply.rest().await.assert_is(200, &layer);
    until_answer("no fill runs", || client.get("/api/v1/fills"), |answer| answer.json()["fills"] == json!([])).await;
}

#[tokio::test]
async fn long_lists_come_in_pages_with_a_link_to_the_next() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let client = cache.client();
    for (number, name) in ["a/x", "a-b/x", "b/x/y", "b/x"].iter().enumerate() {
        image(&registry, name, "1", number as u64);
        pull(&client, "hub", name, "1", &[]).await;
    }
    for tag in ["1", "2", "3", "Z", "a"] {
        image(&registry, "d/tags", tag, 1);
        pull(&client, "hub", "d/tags", tag, &[]).await;
    }
    for (path, field, all) in [
        ("images?x=%26y", "images", vec!["a/x", "a-b/x", "b/x", "b/x/y", "d/tags"]),
        ("tags?image=d/tags", "tags", vec!["1", "2", "3", "Z", "a"]),
    ] {
        for n in 1..=6 {
            let (mut path, mut found) = (Some(format!("/api/v1/repositories/hub/{path}&n={n}")), Vec::new());
            while let Some(asked) = path {
                let answer = client.get(&asked).await;
                let page = answer.json();
                assert!(names(&page[field]).len() <= n, "{asked}: {answer:?}");
                found.extend(names(&page[field]).iter().map(ToString::to_string));
                path = next_of(&answer);
            }
            assert_eq!(found, all, "{n}");
        }
    }
}

fn next_of(answer: &Answer) -> Option<String> {
    answer.header("link").strip_prefix('<')?.strip_suffix(">; rel=\"next\"").map(str::to_owned)
}

#[tokio::test]
async fn mistakes_are_told_in_sentences() {
    let (_registry, _setup, cache, ..) = shop().await;
    for (method, path, status, code, words) in [
        ("GET", "/api", 404, "UNSUPPORTED", "is no path of this API"),
        ("GET", "/api/v1", 404, "UNSUPPORTED", "/api/v1/repositories"),
        ("GET", "/api/v2/repositories", 404, "UNSUPPORTED", "/api/v1/repositories"),
        ("GET", "/api/v1/repositories/", 404, "UNSUPPORTED", "/api/v1/repositories"),
        ("GET", "/api/v1/repositories/hub/blobs", 404, "UNSUPPORTED", "/api/v1/repositories"),
        ("GET", "/api/v1/repositories/nope/images", 404, "NAME_UNKNOWN", "there is no repository \"nope\" here"),
        ("GET", "/api/v1/repositories/%2e%2e/images", 404, "NAME_UNKNOWN", "there is no repository"),
        ("GET", "/api/v1/repositories/hub/tags", 400, "NAME_INVALID", "the parameter image"),
        ("GET", "/api/v1/repositories/hub/tags?image=..%2F..", 400, "NAME_INVALID", "component"),
        ("GET", "/api/v1/repositories/hub/tags?image=nope", 404, "NAME_UNKNOWN", "once they are pulled"),
        ("GET", "/api/v1/repositories/hub/images?n=-1", 400, "PAGINATION_NUMBER_INVALID", "n must be a number"),
        ("GET", "/api/v1/repositories/hub/images?last=..", 400, "NAME_INVALID", "component"),
        ("GET", "/api/v1/repositories/hub/manifests?image=mysql&reference=sha256:1", 400, "DIGEST_INVALID", "digest"),
        ("GET", "/api/v1/repositories/hub/manifests?image=mysql&reference=9", 404, "MANIFEST_UNKNOWN", "not in hub"),
        ("POST", "/api/v1/repositories", 405, "UNSUPPORTED", "POST is not offered"),
        ("DELETE", "/api/v1/repositories/hub/images", 405, "UNSUPPORTED", "GET and HEAD are"),
    ] {
        let answer = cache.client().ask(method, path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}: {answer:?}");
        let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(words), "{path}: {message}");
        assert_eq!(answer.header("allow"), if status == 405 { "GET, HEAD" } else { "" });
    }
}

#[tokio::test]
async fn browsers_get_pages_and_programs_text() {
    let (_registry, _setup, cache, manifest, config, layer) = shop().await;
    let client = cache.client();
    for plain in [client.clone(), client.with("accept", "*/*"), client.with("accept", "application/json")] {
        let text = plain.get("/").await;
        assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
        assert!(text.text().contains("hub: RegistryMirror at /repository/hub/v2/"));
    }
    let front = html(&client).get("/").await;
    assert_eq!((front.status, front.header("content-type")), (200, "text/html; charset=utf-8"));
    for words in ["<html lang=\"en\">", "<title>", "<main>", "href=\"/browse/hub\"", "upstream Reachable", "online"] {
        assert!(front.text().contains(words), "{words}: {}", front.text());
    }
    let images = html(&client).get("/browse/hub").await;
    assert!(images.text().contains("href=\"/browse/hub?image=library%2Fmysql\""), "{}", images.text());
    let page = html(&client).get("/browse/hub?image=library%2Fmysql").await;
    let pull = format!("docker pull 127.0.0.1:{}/hub/library/mysql:8", cache.address.port());
    let held = [digest(&manifest), digest(&config), digest(&layer), pull, "2 of 2 parts cached".to_owned()];
    for words in held {
        assert!(page.text().contains(&words), "{words}: {}", page.text());
    }
    for answer in [front, images, page] {
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert_eq!(
            (answer.header("x-content-type-options"), answer.header("referrer-policy")),
            ("nosniff", "no-referrer")
        );
        let text = answer.text();
        assert!(!text.contains("<script") && !text.contains(" style=") && !text.contains("src="), "{text}");
        let style = text.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = cache_server::oci::Digest::of(cache_server::oci::Algorithm::Sha256, style.as_bytes());
        let hash = base64(hash.hex());
        assert!(policy.contains(&format!("'sha256-{hash}'")), "{policy}: {hash}");
    }
    let only_head = html(&client).head("/browse/hub").await;
    assert_eq!((only_head.status, only_head.body.len()), (200, 0));
    let missing = html(&client).get("/browse/nope").await;
    assert_eq!((missing.status, missing.header("content-type")), (404, "text/html; charset=utf-8"));
    assert_eq!(html(&client).ask("POST", "/browse/hub").await.status, 405);
    // The port of --metrics shows no pages.
    let operator = html(&cache.operator());
    assert_eq!(operator.get("/").await.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!((operator.get("/browse/hub").await.status, operator.get("/api/v1/usage").await.status), (404, 404));
}

fn base64(hex: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(hex::decode(hex).unwrap())
}

#[tokio::test]
async fn what_came_from_outside_is_escaped() {
    let registry = Registry::start().await;
    let setup = Setup::mirroring(&registry);
    let cache = setup.start().await;
    let client = cache.client();
    // Media types may hold an ampersand and quotes, artifact types anything.
    let odd = "application/x&lt'quoted'";
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "<script>alert(1)</script>",
        "config": {"mediaType": odd, "digest": digest(b"config"), "size": 6},
    }))
    .unwrap();
    registry.manifest("team/app", "1", OCI_MANIFEST, &manifest);
    pull(&client, "hub", "team/app", "1", &[]).await;
    let page = html(&client).get("/browse/hub?image=team/app").await.text();
    assert!(page.contains("application/x&#38;lt&#39;quoted&#39;"), "{page}");
    assert!(!page.contains("<script"), "{page}");

    let script = "%3Cscript%3Ealert(1)%3C/script%3E";
    for path in [
        format!("/browse/{script}"),
        format!("/browse/hub?image={script}"),
        format!("/browse/hub?last={script}"),
        format!("/browse/hub?image=team/app&reference={script}"),
        format!("/browse/hub?image=team/app&last={script}&after={script}"),
    ] {
        let page = html(&client).with("host", "x\"><script>").get(&path).await;
        assert!(!page.text().contains("<script"), "{path}: {page:?}");
        assert!(!page.text().contains("x\">"), "{path}: {page:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_pulled_is_not_shown() {
    let setup = Setup::new(&format!(
        "{}{}{}{}",
        hosted("open", ""),
        hosted("secret", "anonymousPull: false"),
        group("all", "secret, open", ""),
        group("closed", "open", ", anonymousPull: false")
    ));
    let cache = setup.start().await;
    for repository in ["open", "secret"] {
        keep_tag(&setup.data(), repository, &format!("team/in-{repository}"), "1");
        keep_tag(&setup.data(), repository, "team/shared", "1");
    }
    let client = cache.client();
    let repositories = api(&client, "repositories").await;
    assert_eq!(names(&repositories["repositories"]), ["open", "all"]);
    assert_eq!(repositories["repositories"][1]["members"], json!(["open"]));
    for hidden in ["secret", "closed", "nope"] {
        for path in [
            format!("/api/v1/repositories/{hidden}/images"),
            format!("/api/v1/repositories/{hidden}/tags?image=team/shared"),
            format!("/api/v1/repositories/{hidden}/manifests?image=team/shared"),
        ] {
            let answer = client.get(&path).await;
            assert_eq!(answer.status, 404, "{path}: {answer:?}");
            let message = answer.json()["errors"][0]["message"].clone();
            assert_eq!(message, json!(format!("there is no repository {hidden:?} here")), "{path}");
        }
        assert_eq!(html(&client).get(&format!("/browse/{hidden}")).await.status, 404);
    }
    let images = api(&client, "repositories/all/images").await;
    assert_eq!(
        images["images"],
        json!([
            {"name": "team/in-open", "repositories": ["open"]},
            {"name": "team/shared", "repositories": ["open"]},
        ])
    );
    let tags = api(&client, "repositories/all/tags?image=team/shared").await;
    let holders: Vec<_> = tags["tags"].as_array().unwrap().iter().map(|tag| &tag["repository"]).collect();
    assert_eq!(holders, ["open"]);
    assert_eq!(client.get("/api/v1/repositories/all/tags?image=team/in-secret").await.status, 404);
    for page in ["/", "/browse/all", "/browse/all?image=team/shared"] {
        let text = html(&client).get(page).await.text();
        assert!(text.contains("open") && !text.contains("secret") && !text.contains("closed"), "{page}: {text}");
    }
}

/// Puts a tag into a repository's folder.
fn keep_tag(data: &Path, repository: &str, image: &str, tag: &str) {
    let folder = data.join("repositories").join(repository).join(image).join("_tags");
    std::fs::create_dir_all(&folder).unwrap();
    let target = json!({"digest": digest(image.as_bytes()), "mediaType": OCI_MANIFEST, "size": 1});
    std::fs::write(folder.join(tag), json!({"target": target, "checked": 1}).to_string()).unwrap();
}

#[tokio::test]
async fn usage_is_counted_by_the_sweep() {
    let (_registry, setup, cache, ..) = shop().await;
    cache.kill().await;
    let cache = setup.start().await;
    let client = cache.client();
    let usage = until_answer(
        "the sweep has counted",
        || client.get("/api/v1/usage"),
        |answer| answer.json()["counted"].is_string(),
    )
    .await
    .json();
    let hub = usage["repositories"].as_array().unwrap().iter().find(|of| of["name"] == "hub").unwrap();
    assert_eq!((&hub["manifests"], &hub["blobs"]), (&json!(1), &json!(2)));
    assert!(hub["bytes"].as_u64().unwrap() > 300_000 && usage["storedBytes"].as_u64().unwrap() > 300_000, "{usage}");
    assert!(usage["limitBytes"].as_u64().unwrap() > 0);
}

/// A closed hosted repository `team` in which alice may do anything, with the image `app/web:1` pushed, and an open group.
async fn pushed() -> (Setup, Cache, Vec<u8>) {
    let setup = Setup::new(&format!(
        "---\napiVersion: entrepot.dev/v1alpha1\nkind: CacheServer\nmetadata: {{name: default}}\nspec:\n  auth:\n    htpasswdSecretRef: {{name: users}}\n    permissions:\n    - {{users: [alice], repositories: [team], actions: [Pull, Push]}}\n{}{}",
        hosted("team", "anonymousPull: false"),
        group("all", "team", "")
    ));
    let users = format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap());
    setup.secret("users", "htpasswd", &users);
    let cache = setup.start().await;
    let alice = alice(&cache.client());
    let (config, layer) = (b"{}".to_vec(), bytes(9, 50_000));
    for blob in [&config, &layer] {
        let path = format!("/v2/team/app/web/blobs/uploads/?digest={}", digest(blob));
        assert_eq!(alice.send_body("POST", &path, blob).await.status, 201);
    }
    let manifest = manifest_of(&[&config, &layer]);
    let client = alice.with("content-type", OCI_MANIFEST);
    assert_eq!(client.send_body("PUT", "/v2/team/app/web/manifests/1", &manifest).await.status, 201);
    (setup, cache, manifest)
}

fn alice(client: &Client) -> Client {
    // alice:secret
    client.with("authorization", "Basic YWxpY2U6c2VjcmV0")
}

#[tokio::test]
async fn who_may_pull_after_a_login_may_look() {
    let (_setup, cache, manifest) = pushed().await;
    let (client, alice) = (cache.client(), alice(&cache.client()));
    assert_eq!(names(&api(&client, "repositories").await["repositories"]), ["all"]);
    assert_eq!(names(&api(&alice, "repositories").await["repositories"]), ["team", "all"]);
    for repository in ["team", "all"] {
        let path = format!("repositories/{repository}/manifests?image=app/web&reference=1");
        assert_eq!(client.get(&format!("/api/v1/{path}")).await.status, 404);
        let shown = api(&alice, &path).await;
        assert_eq!((&shown["digest"], &shown["repository"]), (&json!(digest(&manifest)), &json!("team")));
        assert_eq!((&shown["config"]["cached"], &shown["layers"][0]["cached"]), (&json!(true), &json!(true)));
    }
    assert_eq!(api(&client, "repositories/all/images").await, json!({"images": []}));

    // A wrong password is no anonymous look, and a browser is asked anew.
    for path in ["/api/v1/repositories", "/browse/all", "/browse"] {
        let wrong = client.with("authorization", "Basic YWxpY2U6d3Jvbmc=").get(path).await;
        assert_eq!((wrong.status, wrong.header("www-authenticate").starts_with("Basic realm=")), (401, true), "{path}");
    }
    // A token is for what it names, and names no looks.
    let token = alice.get("/v2/token?service=entrepot.dev&scope=repository:team/app/web:pull").await.json();
    let bearer = client.with("authorization", &format!("Bearer {}", token["token"].as_str().unwrap()));
    assert_eq!(names(&api(&bearer, "repositories").await["repositories"]), ["all"]);
}

#[tokio::test]
async fn a_browser_logs_in_by_a_link() {
    let (_setup, cache, _) = pushed().await;
    let browser = html(&cache.client());
    let front = browser.with("x-forwarded-prefix", "/registry").get("/").await;
    assert!(front.text().contains("href=\"/registry/browse?login=1\""), "{}", front.text());
    let asked = browser.get("/browse?login=1").await;
    assert_eq!((asked.status, asked.header("www-authenticate")), (401, "Basic realm=\"Entrepot\", charset=\"UTF-8\""));
    assert_eq!(asked.header("content-type"), "text/html; charset=utf-8");
    let page = alice(&browser).get("/browse?login=1").await;
    assert_eq!(page.status, 200);
    assert!(page.text().contains("You are alice.") && page.text().contains("href=\"/browse/team\""), "{}", page.text());
}
