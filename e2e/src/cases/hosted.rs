//! Hosted repositories and groups: their ways in without a proxy, their order, and what no failure and no name may get
//! around.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::objects::{Objects, password, users};
use super::proxies::ensure_refused;
use super::registry::{Registry, put_upstream};
use crate::content::one_file::OneFile;
use crate::engine::{DockerClient, Registries};
use crate::lab::{CACHE, CacheServer, SPARE_UPSTREAMS};
use crate::suite::{Case, World};
use crate::upstream::blob::Blob;
use crate::upstream::client::{Ask, Ending};
use crate::upstream::sites::{BASIC, HUB, INDEX, spare};
use crate::upstream::users::{ALICE, BOB, CAROL};

/// The first of the port connectors.
const FIRST_PORT: u16 = 20_000;
/// How many repositories have one.
const PORTS: u16 = 100;
/// What the connectors may take beside what their repositories take.
const PORTS_BYTES: u64 = 2 << 20;
/// How long a changed configuration may take to be in force.
const TAKEN_UP: Duration = Duration::from_secs(20);
/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// Who pushes.
const USER: &str = "alice";
/// Who may not.
const STRANGER: &str = "mallory";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("hosted: a hundred ports, each for a repository of its own", |world| Box::pin(hundred_ports(world))),
        Case::new(
            "hosted: a member that fails is never bypassed, a reserved name never asked for elsewhere",
            |world| Box::pin(never_bypassed(world)),
        ),
        Case::new("hosted: a registry is answered by those that stand for it", |world| Box::pin(named_registry(world))),
        Case::new(
            "hosted: docker pulls by nested groups in order, with logins and without, searches and deletes",
            |world| Box::pin(groups_with_docker(world)),
        ),
    ]
}

fn all_to(user: &str) -> Value {
    json!([{ "users": [user], "repositories": ["*"], "actions": ["Pull", "Push", "Delete"] }])
}

/// The registry of one repository of a server, by its path.
fn repository(server: &CacheServer, name: &str) -> Result<Registry> {
    Registry::at(&format!("{}/repository/{name}/", server.url()))
}

async fn hundred_ports(world: &World) -> Result<()> {
    let name = |number: u16| format!("hosted-{number}");
    let objects = |ports: std::ops::Range<u16>| -> Result<Objects> {
        let objects = Objects::new(&world.upstream).users(&users(&[USER]), all_to(USER))?;
        Ok((0..PORTS).fold(objects, |objects, number| {
            let port = FIRST_PORT + number;
            let connectors = if ports.contains(&number) { json!([{ "port": port }]) } else { json!([]) };
            objects.hosted(&name(number), json!({ "connectors": connectors }))
        }))
    };
    let mut server = CacheServer::start(&world.lab, objects(0..0)?.setup("ports")).await?;
    let before = server.rss_bytes()?;
    server.reconfigure(&objects(0..PORTS)?.yaml())?;
    let ports: Vec<u16> = (FIRST_PORT..FIRST_PORT + PORTS).collect();
    for port in &ports {
        until_listening(*port, true).await?;
    }
    let taken = server.rss_bytes()?.saturating_sub(before);
    println!("         {PORTS} ports take {} KiB", taken / 1024);
    ensure!(taken < PORTS_BYTES, "{PORTS} ports take {taken} bytes");

    let each = ports.iter().map(|port| async move {
        let registry = Registry::at(&format!("http://{CACHE}:{port}/"))?;
        let image = OneFile::new(format!("behind port {port}").as_bytes())?;
        registry.login(USER, &password(USER)).push("app", "1", &image).await?;
        registry.pull("app", "1", &image).await.with_context(|| format!("port {port}"))
    });
    stream::iter(each).buffer_unordered(AT_ONCE).try_collect::<()>().await?;

    // Half of them go while something is pulled through another.
    let blob = Blob::generated(8_086, 32 << 20);
    let port = FIRST_PORT;
    let pusher = Registry::at(&format!("http://{CACHE}:{port}/"))?.login(USER, &password(USER));
    pusher.put_blob("app", &whole(&blob)).await?.ensure(201)?;
    let path = format!("/v2/app/blobs/{}", blob.digest());
    let mut transfer = Ask::get(path).expecting(&blob, 0).open(SocketAddr::from((CACHE, port))).await?;
    transfer.read_to(1 << 20).await?;
    server.reconfigure(&objects(0..PORTS / 2)?.yaml())?;
    for (number, port) in (0..).zip(&ports) {
        until_listening(*port, number < PORTS / 2).await?;
    }
    let got = transfer.finish().await?;
    ensure!(got.ending == Ending::Complete && got.wrong_at.is_none(), "a running transfer: {}", got.summary());
    got.ensure_whole(&blob.digest())?;
    server.stop().await
}

/// All bytes of a blob.
fn whole(blob: &Blob) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < blob.length() {
        let piece = blob.read(all.len() as u64, u64::MAX);
        all.extend_from_slice(&piece);
    }
    all
}

async fn until_listening(port: u16, wanted: bool) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect((CACHE, port)).await.is_ok() != wanted {
        if begun.elapsed() > TAKEN_UP {
            bail!("port {port} is {} after {TAKEN_UP:?}", if wanted { "closed" } else { "open" });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The name that is here and at the upstream, with different content.
const CONFUSED: &str = "team/confused";
/// A name that belongs to the hosted repository and is not there.
const RESERVED: &str = "reserved/thing";

async fn never_bypassed(world: &World) -> Result<()> {
    let objects = |online: bool| -> Result<Objects> {
        let own = json!({ "reservedNames": ["reserved/**"], "online": online });
        Ok(Objects::new(&world.upstream)
            .users(&users(&[USER]), all_to(USER))?
            .hosted("own", own)
            .mirror("docker-hub", HUB, None, json!({}))
            .group("own-first", &["own", "docker-hub"], json!({}))
            .group("hub-first", &["docker-hub", "own"], json!({}))
            .group("nested", &["own-first"], json!({})))
    };
    let mut server = CacheServer::start(&world.lab, objects(true)?.setup("bypass")).await?;
    let own = repository(&server, "own")?.login(USER, &password(USER));
    let (ours, theirs) = (OneFile::new(b"ours")?, OneFile::new(b"somebody else's")?);
    for name in [CONFUSED, RESERVED] {
        put_upstream(world.upstream.content(), name, "1", &theirs);
    }
    own.push(CONFUSED, "1", &ours).await?;
    let hub = repository(&server, "docker-hub")?;
    hub.pull(CONFUSED, "1", &theirs).await.context("this case shows nothing unless the upstream has the name too")?;
    hub.pull(RESERVED, "1", &theirs).await.context("this case shows nothing unless the upstream has the name too")?;
    repository(&server, "own-first")?.pull(CONFUSED, "1", &ours).await?;
    world.upstream.reset_counts();

    for group in ["own-first", "hub-first", "nested"] {
        let group = repository(&server, group)?;
        for path in routes(RESERVED, &theirs) {
            let answer = group.get(&path).await?;
            ensure!(answer.status == 404 || is_empty_index(&answer.body), "a reserved name: {}", answer.said());
        }
    }
    own.push(RESERVED, "1", &ours).await?;
    repository(&server, "hub-first")?
        .pull(RESERVED, "1", &ours)
        .await
        .context("the owner of a reserved name comes last")?;
    ensure_not_asked(world, &[RESERVED])?;

    for failure in Failure::ALL {
        let undo = failure.begin(&server, CONFUSED)?;
        // What it still knows from before would be a right answer.
        server.restart().await?;
        for group in ["own-first", "nested"] {
            let group = repository(&server, group)?;
            for (method, path) in failure.asked(&ours) {
                let answer = group.ask(method, &path).await?;
                ensure!(answer.status >= 500, "{failure:?}: {}", answer.said());
            }
        }
        undo.end()?;
    }
    server.restart().await?;
    repository(&server, "own-first")?.pull(CONFUSED, "1", &ours).await.context("restored")?;
    server.reconfigure(&objects(false)?.yaml())?;
    let group = repository(&server, "own-first")?;
    let begun = Instant::now();
    while repository(&server, "own")?.get(&format!("v2/{CONFUSED}/manifests/1")).await?.status != 503 {
        ensure!(begun.elapsed() < TAKEN_UP, "`online: false` is not in force after {TAKEN_UP:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for path in routes(CONFUSED, &ours) {
        let answer = group.get(&path).await?;
        ensure!(answer.status == 503, "a member that is switched off: {}", answer.said());
    }
    ensure_not_asked(world, &[CONFUSED, RESERVED])?;
    server.stop().await
}

/// The ways to an image.
fn routes(name: &str, image: &OneFile) -> Vec<String> {
    vec![
        format!("v2/{name}/manifests/1"),
        format!("v2/{name}/manifests/{}", image.digest()),
        format!("v2/{name}/blobs/{}", image.layer_digest()),
        format!("v2/{name}/tags/list"),
        format!("v2/{name}/referrers/{}", image.digest()),
    ]
}

fn is_empty_index(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body["manifests"] == json!([]))
}

fn ensure_not_asked(world: &World, names: &[&str]) -> Result<()> {
    let counts = world.upstream.counts();
    let asked: Vec<_> =
        counts.all().iter().filter(|asked| names.iter().any(|name| asked.path.contains(name))).collect();
    ensure!(asked.is_empty(), "the upstream was asked for what belongs to a hosted repository: {asked:#?}");
    Ok(())
}

/// A way in which the files of a hosted repository fail.
#[derive(Debug, Clone, Copy)]
enum Failure {
    /// The image's folder is a file.
    NoFolder,
    /// The tag's record cannot be read.
    NoRecord,
    /// The tag's record holds something else.
    WrongRecord,
}

/// What takes a failure back.
struct Undo {
    kept: PathBuf,
    place: PathBuf,
}

impl Failure {
    const ALL: [Self; 3] = [Self::NoFolder, Self::NoRecord, Self::WrongRecord];

    fn begin(self, server: &CacheServer, image: &str) -> Result<Undo> {
        let folder = server.data().join("repositories/own").join(image);
        let place = match self {
            Self::NoFolder => folder,
            Self::NoRecord | Self::WrongRecord => file_below(&folder.join("_tags"))?,
        };
        let kept = server.data().join("kept");
        std::fs::rename(&place, &kept).with_context(|| format!("cannot move {}", place.display()))?;
        match self {
            Self::NoRecord => std::fs::create_dir(&place),
            Self::NoFolder | Self::WrongRecord => std::fs::write(&place, "not what it was"),
        }
        .with_context(|| format!("cannot spoil {}", place.display()))?;
        Ok(Undo { kept, place })
    }

    /// What fails then.
    fn asked(self, image: &OneFile) -> Vec<(Method, String)> {
        let by_tag = format!("v2/{CONFUSED}/manifests/1");
        let mut asked = vec![(Method::GET, by_tag.clone()), (Method::HEAD, by_tag)];
        if matches!(self, Self::NoFolder) {
            asked.extend(routes(CONFUSED, image).into_iter().map(|path| (Method::GET, path)));
        }
        asked
    }
}

impl Undo {
    fn end(&self) -> Result<()> {
        if self.place.is_dir() { std::fs::remove_dir(&self.place) } else { std::fs::remove_file(&self.place) }
            .and_then(|()| std::fs::rename(&self.kept, &self.place))
            .with_context(|| format!("cannot restore {}", self.place.display()))
    }
}

/// The only file below a folder.
fn file_below(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    match (paths.pop(), paths.pop()) {
        (Some(path), None) if path.is_dir() => file_below(&path),
        (Some(path), None) => Ok(path),
        _ => bail!("{} should hold one thing", folder.display()),
    }
}

/// A request that says which registry it means is answered by members that stand for it, and nobody else is asked.
async fn named_registry(world: &World) -> Result<()> {
    const OTHER: &str = "other.example.net";
    let other = spare(SPARE_UPSTREAMS[5]);
    let objects = Objects::new(&world.upstream)
        .users(&users(&[USER]), all_to(USER))?
        .hosted("own", json!({}))
        .hosted("stand-in", json!({ "servesFor": ["docker.io"] }))
        .mirror("other", &other, None, json!({ "upstream": { "registry": OTHER } }))
        .mirror("docker-hub", HUB, None, json!({}))
        .group("all", &["own", "other", "docker-hub"], json!({}))
        .group("with-stand-in", &["own", "stand-in", "docker-hub"], json!({}));
    let mut server = CacheServer::start(&world.lab, objects.setup("registries")).await?;
    let image = |text: &str| OneFile::new(text.as_bytes());
    let (ours, pushed, of_hub) = (image("pushed here")?, image("stands in")?, image("of the hub")?);
    let content = world.upstream.content();
    put_upstream(content, "named/by-hub", "1", &of_hub);
    for name in ["named/by-hub", "named/ours"] {
        repository(&server, "own")?.login(USER, &password(USER)).push(name, "1", &ours).await?;
    }
    repository(&server, "stand-in")?.login(USER, &password(USER)).push("named/by-hub", "1", &pushed).await?;
    world.upstream.reset_counts();

    let (all, stand_in) = (repository(&server, "all")?, repository(&server, "with-stand-in")?);
    let expect = async |registry: &Registry, path: &str, expected: Option<&OneFile>| {
        let answer = registry.get(path).await?;
        match expected {
            Some(image) => ensure!(answer.status == 200 && answer.body == image.manifest, "{}", answer.said()),
            None => answer.ensure(404)?,
        }
        Ok(())
    };
    expect(&all, "v2/named/by-hub/manifests/1?ns=docker.io", Some(&of_hub)).await?;
    expect(&all, "v2/named/ours/manifests/1?ns=docker.io", None).await?;
    expect(&all, "v2/named/by-hub/manifests/1", Some(&ours)).await?;
    expect(&stand_in, "v2/named/by-hub/manifests/1?ns=docker.io", Some(&pushed)).await?;
    let asked = world.upstream.counts();
    ensure!(asked.at(&other).next().is_none(), "docker.io/… was asked for at {OTHER}");
    let hub_before = asked.at(HUB).count();

    expect(&all, &format!("v2/named/by-hub/manifests/1?ns={OTHER}"), Some(&of_hub))
        .await
        .context("its own upstream")?;
    for path in
        ["v2/named/by-hub/manifests/1?ns=unknown.example.net", "v2/named/ours/manifests/1?ns=unknown.example.net"]
    {
        expect(&all, path, None).await?;
    }
    let main = Registry::at(&format!("{}/", server.url()))?;
    for path in ["v2/named/ours/manifests/1?ns=unknown.example.net", "v2/unknown.example.net/named/ours/manifests/1"] {
        expect(&main, path, None).await?;
    }
    let asked = world.upstream.counts();
    ensure!(asked.at(HUB).count() == hub_before, "{OTHER}/… or an unknown registry was asked for at Docker Hub");
    server.stop().await
}

/// The ports of the mirrors that are searched, of Docker Hub's index, of another one and of a catalog, and of a group of them.
const SEARCHED: [u16; 4] = [21_001, 21_002, 21_003, 21_004];

/// `mysql` by a nested group's third member, private images of two accounts at one host side by side, anonymous pulls on and
/// off, searches, a push and a deletion.
async fn groups_with_docker(world: &World) -> Result<()> {
    let mirror = |registry: &str| json!({ "anonymousPull": true, "upstream": { "registry": registry } });
    let index = format!("https://{}", spare(SPARE_UPSTREAMS[6]));
    let searched = |number: usize, upstream: Value| {
        let connectors = json!([{ "port": SEARCHED[number] }]);
        json!({ "anonymousPull": true, "v1Search": true, "upstream": upstream, "connectors": connectors })
    };
    let custom = json!({ "registry": "alice.example.net", "index": { "type": "Custom", "url": index } });
    let objects = Objects::new(&world.upstream)
        .users(&users(&[USER, STRANGER]), all_to(USER))?
        .hosted("own", json!({}))
        .mirror("of-alice", HUB, Some(ALICE), searched(1, custom))
        .mirror("of-bob", HUB, Some(BOB), mirror("bob.example.net"))
        .mirror("docker-hub", HUB, None, searched(0, json!({ "index": { "type": "DockerHub" } })))
        .mirror("docker-registry", BASIC, Some(CAROL), searched(2, json!({ "index": { "type": "Registry" } })))
        .group(
            "searched",
            &["docker-registry", "of-alice", "docker-hub"],
            json!({ "v1Search": true, "connectors": [{ "port": SEARCHED[3] }] }),
        )
        .group("inner", &["of-alice", "of-bob"], json!({}))
        .group("open", &["own", "inner", "docker-hub"], json!({}))
        .group("closed", &["own", "inner", "docker-hub"], json!({ "anonymousPull": false }));
    let mut server = CacheServer::start(&world.lab, objects.setup("groups")).await?;
    let address = server.listen().to_string();
    let registries = Registries { insecure: &[&format!("{CACHE}/32")], ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-groups").await?;
    let private = ["private/alice/tool", "private/bob/tool"];
    let of_nobody = "private/nobody/tool";
    for name in private.into_iter().chain([of_nobody]) {
        put_upstream(world.upstream.content(), name, "latest", &OneFile::new(name.as_bytes())?);
    }

    let folder = world.lab.dir("clients/groups")?;
    let client = |name: &str| DockerClient::new(&docker, &folder, name);
    let (alice, mallory, nobody) = (client(USER)?, client(STRANGER)?, client("nobody")?);
    let image = |repository: &str, name: &str| format!("{address}/{repository}/{name}");
    world.upstream.reset_counts();
    for name in private.into_iter().chain(["library/sixty"]) {
        nobody.pull_anew(&image("open", name)).await?;
        ensure_refused(&nobody, &["pull", "--quiet", &image("closed", name)]).await?;
    }
    let said = ensure_refused(&nobody, &["pull", "--quiet", &image("open", of_nobody)]).await?;
    ensure!(said.contains(&format!("{of_nobody}:latest is not known to open")), "docker pull {of_nobody}: {said}");
    for (name, account) in [(private[0], Some(ALICE.name)), (private[1], Some(BOB.name)), (of_nobody, None)] {
        ensure_fetched_by(world, name, account)?;
    }
    // Its own credentials, and no one else's.
    ensure_refused(&nobody, &["pull", "--quiet", &image("of-alice", private[1])]).await?;
    ensure_refused(&nobody, &["pull", "--quiet", &image("docker-hub", private[0])]).await?;
    alice.login(&address, USER, &password(USER)).await?;
    mallory.login(&address, STRANGER, &password(STRANGER)).await?;
    ensure_refused(&mallory, &["pull", "--quiet", &image("closed", private[0])]).await?;
    alice.pull_anew(&image("closed", private[0])).await?;

    alice.tag(&image("closed", private[0]), &image("own", "app:1")).await?;
    ensure_refused(&nobody, &["push", "--quiet", &image("own", "app:1")]).await?;
    alice.push(&image("own", "app:1")).await?;
    nobody.pull_anew(&image("open", "app:1")).await?;
    let own = repository(&server, "own")?.login(USER, &password(USER));
    let pushed = own.head("v2/app/manifests/1").await?;
    let manifest = format!("v2/app/manifests/{}", pushed.header("docker-content-digest")?);
    repository(&server, "own")?.ask(Method::DELETE, &manifest).await?.ensure(401)?;
    own.ask(Method::DELETE, &manifest).await?.ensure(202)?;
    nobody.remove(&image("open", "app:1")).await?;
    ensure_refused(&nobody, &["pull", "--quiet", &image("open", "app:1")]).await?;
    ensure_searched(world, &nobody).await?;
    docker.stop().await?;
    ensure_tokens_stay(&server).await?;
    server.stop().await
}

/// Docker Hub gave the image to this account alone, all of it, and saw passwords nowhere but at its token server.
fn ensure_fetched_by(world: &World, image: &str, account: Option<&str>) -> Result<()> {
    let counts = world.upstream.counts();
    let asked: Vec<_> = counts.at(HUB).filter(|asked| asked.path.starts_with(&format!("/v2/{image}/"))).collect();
    ensure!(asked.iter().all(|asked| asked.password_of.is_none()), "{image}: a password: {asked:#?}");
    let given: Vec<_> = asked.into_iter().filter(|asked| asked.status == 200).collect();
    ensure!(given.iter().all(|asked| asked.token_of == account), "{image} was given to others: {given:#?}");
    for part in ["/manifests/", "/blobs/"] {
        let has_part = given.iter().any(|asked| asked.path.contains(part));
        ensure!(has_part == account.is_some(), "of {image}, {account:?} was given {given:#?}");
    }
    Ok(())
}

/// Each mirror asks the index that it names, and shows no other one its credentials; a group has what all of them found.
async fn ensure_searched(world: &World, nobody: &DockerClient<'_>) -> Result<()> {
    world.images.sixty.push(&world.upstream.basic_push_endpoint()?)?;
    for name in ["library/sixty-of-hub", "private/alice/sixty"] {
        put_upstream(world.upstream.content(), name, "latest", &OneFile::new(name.as_bytes())?);
    }
    let custom = spare(SPARE_UPSTREAMS[6]);
    let each = [
        ("sixty-of-hub", (INDEX, "/v1/search", None)),
        ("private/alice/sixty", (custom.as_str(), "/v1/search", None)),
        ("library/sixty", (BASIC, "/v2/_catalog", Some(CAROL.name))),
    ];
    for (number, port) in SEARCHED.into_iter().enumerate() {
        let expected = each.get(number..=number).unwrap_or(&each);
        world.upstream.reset_counts();
        let term = format!("{CACHE}:{port}/sixty");
        let found = nobody.run(&["search", "--format", "{{.Name}}", &term]).await?;
        let found: BTreeSet<&str> = found.lines().collect();
        ensure!(found == expected.iter().map(|(name, _)| *name).collect(), "docker search {term}: {found:?}");
        let counts = world.upstream.counts();
        let told = counts.all().iter().filter(|asked| asked.status == 200);
        let told: BTreeSet<_> =
            told.map(|asked| (asked.host.as_str(), asked.path.as_str(), asked.password_of)).collect();
        ensure!(told == expected.iter().map(|(_, told)| *told).collect(), "docker search {term}: {told:?}");
    }
    Ok(())
}

/// A token of one repository opens no other.
async fn ensure_tokens_stay(server: &CacheServer) -> Result<()> {
    let closed = repository(server, "closed")?;
    let path = "v2/library/sixty/manifests/latest";
    let refused = closed.get(path).await?;
    refused.ensure(401)?;
    let token = closed.login(USER, &password(USER)).token(refused.header("www-authenticate")?).await?;
    let with = |registry: &Registry, method: Method, path: &str| {
        registry.request(method, path).map(|request| request.bearer_auth(&token))
    };
    closed.send(with(&closed, Method::GET, path)?).await?.ensure(200)?;
    let own = repository(server, "own")?;
    let push = with(&own, Method::POST, "v2/library/sixty/blobs/uploads/")?.header("content-length", 0);
    own.send(push).await?.ensure(401).context("a token to pull from a group, to push to a member")?;
    let other = with(&closed, Method::GET, "v2/library/other/manifests/latest")?;
    closed.send(other).await?.ensure(401).context("a token for one image, for another")
}
