//! Thirty teams on one server, each with a hosted repository and a group: who may do what where.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Method;
use serde_json::{Value, json};

use super::objects::{Objects, password, users};
use super::proxies::ensure_refused;
use super::registry::{Registry, put_upstream};
use crate::content::one_file::{OneFile, digest};
use crate::engine::{DockerClient, Registries};
use crate::lab::{CacheServer, DOCKER_HUB, TOKEN_SERVER};
use crate::package::layout::MANIFEST;
use crate::suite::{Case, World};
use crate::upstream::sites::HUB;
use crate::upstream::users::ALICE;

/// How many teams there are.
const TEAMS: usize = 30;
/// The mirror with credentials. It is the third member of the groups of the first three teams.
const PRIVATE: &str = "docker-private";
/// Of these three, the first two may pull from the mirror itself.
const ALLOWED: usize = 2;
/// The groups that have the mirror.
const WITH_PRIVATE: usize = 3;
/// How many requests are under way at once.
const AT_ONCE: usize = 8;

/// How many wrong answers are shown.
const SHOWN: usize = 20;

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("teams: thirty of them, each with each other's repositories, by every route", |world| {
            Box::pin(matrix(world))
        }),
        Case::new("teams: a private image goes to those allowed, cold, warm and with the upstream down", |world| {
            Box::pin(private_image(world))
        }),
        Case::new(
            "teams: three with docker push to their own, directly and through their group, and pull from their group",
            |world| Box::pin(with_docker(world)),
        ),
    ]
}

fn team(number: usize) -> String {
    format!("team{number:02}")
}

fn hosted(number: usize) -> String {
    format!("docker-hosted-{}", team(number))
}

fn group(number: usize) -> String {
    format!("docker-group-{}", team(number))
}

fn objects(world: &World) -> Result<Objects> {
    let names: Vec<String> = (0..TEAMS).map(team).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let own = |number: usize| {
        json!({
            "users": [team(number)],
            "repositories": [format!("docker-*-{}", team(number))],
            "actions": ["Pull", "Push", "Delete"],
        })
    };
    let allowed: Vec<String> = (0..ALLOWED).map(team).collect();
    let private = json!({ "users": allowed, "repositories": [PRIVATE], "actions": ["Pull"] });
    let permissions: Vec<Value> = (0..TEAMS).map(own).chain([private]).collect();
    let objects = Objects::new(&world.upstream)
        .users(&users(&names), json!(permissions))?
        .mirror("docker-hub", HUB, None, json!({}))
        .mirror(
            PRIVATE,
            HUB,
            Some(ALICE),
            json!({ "anonymousPull": false, "upstream": { "registry": "private.example.net" } }),
        );
    Ok((0..TEAMS).fold(objects, |objects, number| {
        let hosted = hosted(number);
        let members = [hosted.as_str(), "docker-hub", PRIVATE];
        let members = if number < WITH_PRIVATE { &members[..] } else { &members[..2] };
        // Half of the groups take pushes, for the hosted member.
        let spec = match number % 2 {
            0 => json!({ "anonymousPull": false, "pushTo": hosted }),
            _ => json!({ "anonymousPull": false }),
        };
        objects.hosted(&hosted, json!({ "anonymousPull": false })).group(&group(number), members, spec)
    }))
}

async fn start(world: &World, name: &str) -> Result<CacheServer> {
    CacheServer::start(&world.lab, objects(world)?.setup(name)).await
}

/// The server as a team sees it; nobody in particular without a number.
fn as_team(server: &CacheServer, number: Option<usize>) -> Result<Registry> {
    let registry = Registry::at(&format!("{}/", server.url()))?;
    Ok(match number.map(team) {
        Some(team) => registry.login(&team, &password(&team)),
        None => registry,
    })
}

/// What a team has in its repository.
fn image_of(number: usize) -> Result<OneFile> {
    OneFile::new(team(number).as_bytes())
}

/// Something that one may try with another's repositories.
#[derive(Debug, Clone, Copy)]
enum Route {
    Ping,
    Tag,
    Digest,
    HeadByTag,
    Blob,
    HeadOfBlob,
    Tags,
    Referrers,
    GroupTag,
    GroupBlob,
    GroupTags,
    GroupReferrers,
    BeginUpload,
    PostBlob,
    PutManifest,
    PushThroughGroup,
    Mount,
    DeleteManifest,
    DeleteTag,
    DeleteBlob,
}

impl Route {
    const ALL: [Self; 20] = [
        Self::Ping,
        Self::Tag,
        Self::Digest,
        Self::HeadByTag,
        Self::Blob,
        Self::HeadOfBlob,
        Self::Tags,
        Self::Referrers,
        Self::GroupTag,
        Self::GroupBlob,
        Self::GroupTags,
        Self::GroupReferrers,
        Self::BeginUpload,
        Self::PostBlob,
        Self::PutManifest,
        Self::PushThroughGroup,
        Self::Mount,
        Self::DeleteManifest,
        Self::DeleteTag,
        Self::DeleteBlob,
    ];

    /// What the answer must be, from the rules alone: everything to the owner, nothing to others, a login asked of nobody.
    const fn expected(self, caller: Option<usize>, owner: usize) -> u16 {
        // A group without `pushTo` takes none, whoever asks.
        if matches!(self, Self::PushThroughGroup) && owner % 2 == 1 {
            return 405;
        }
        let Some(caller) = caller else { return 401 };
        let own = caller == owner;
        match self {
            // Everyone who logged in is let in at the door.
            Self::Ping => 200,
            Self::Mount => 202,
            _ if !own => 403,
            Self::BeginUpload | Self::PushThroughGroup | Self::DeleteManifest | Self::DeleteTag | Self::DeleteBlob => {
                202
            }
            Self::PostBlob | Self::PutManifest => 201,
            _ => 200,
        }
    }

    /// Tries it as `caller` with what belongs to `owner`.
    async fn ask(self, registry: &Registry, caller: Option<usize>, owner: usize) -> Result<u16> {
        let (hosted, group) = (hosted(owner), group(owner));
        let image = image_of(owner)?;
        let (manifest, layer) = (image.digest(), image.layer_digest());
        let get = |path: String| async move { registry.get(&path).await };
        let head = |path: String| async move { registry.head(&path).await };
        let delete = |path: String| async move { registry.ask(Method::DELETE, &path).await };
        // What one's own deletions and pushes are tried with differs from what the others look for.
        let mine = OneFile::new(format!("{caller:?} to {owner} by {self:?}").as_bytes())?;
        let answer = match self {
            Self::Ping => get(format!("repository/{hosted}/v2/")).await?,
            Self::Tag => get(format!("v2/{hosted}/app/manifests/1")).await?,
            Self::Digest => get(format!("v2/{hosted}/app/manifests/{manifest}")).await?,
            Self::HeadByTag => head(format!("v2/{hosted}/app/manifests/1")).await?,
            Self::Blob => get(format!("v2/{hosted}/app/blobs/{layer}")).await?,
            Self::HeadOfBlob => head(format!("v2/{hosted}/app/blobs/{layer}")).await?,
            Self::Tags => get(format!("v2/{hosted}/app/tags/list")).await?,
            Self::Referrers => get(format!("v2/{hosted}/app/referrers/{manifest}")).await?,
            Self::GroupTag => get(format!("v2/{group}/app/manifests/1")).await?,
            Self::GroupBlob => get(format!("v2/{group}/app/blobs/{layer}")).await?,
            Self::GroupTags => get(format!("v2/{group}/app/tags/list")).await?,
            Self::GroupReferrers => get(format!("v2/{group}/app/referrers/{manifest}")).await?,
            Self::BeginUpload => registry.post_upload(&format!("{hosted}/app"), "").await?,
            Self::PushThroughGroup => registry.post_upload(&format!("{group}/app"), "").await?,
            Self::PostBlob => {
                let path = format!("v2/{hosted}/app/blobs/uploads/?digest={}", mine.layer_digest());
                let post = registry.request(Method::POST, &path)?.header("content-type", "application/octet-stream");
                registry.send(post.body(mine.layer.clone())).await?
            }
            Self::PutManifest => {
                registry.put_manifest(&format!("{hosted}/app"), "again", MANIFEST, &image.manifest).await?
            }
            // From a third one's repository, whom neither may read from, into the own one.
            Self::Mount => {
                let other = if caller == Some(owner) { (owner + 1) % TEAMS } else { owner };
                let layer = image_of(other)?.layer_digest();
                let from = format!("?mount={layer}&from={}/app", self::hosted(other));
                registry.post_upload(&format!("{}/app", self::hosted(caller.unwrap_or(owner))), &from).await?
            }
            Self::DeleteManifest | Self::DeleteTag | Self::DeleteBlob => {
                let name = format!("{hosted}/deleted");
                if caller == Some(owner) {
                    registry.push(&name, "1", &mine).await?;
                }
                let target = match self {
                    Self::DeleteManifest => format!("manifests/{}", mine.digest()),
                    Self::DeleteTag => "manifests/1".to_owned(),
                    _ => format!("blobs/{}", mine.layer_digest()),
                };
                delete(format!("v2/{name}/{target}")).await?
            }
        };
        if let (Self::Mount | Self::BeginUpload | Self::PushThroughGroup, 202) = (self, answer.status) {
            let location = answer.header("location")?.to_owned();
            registry.ask(Method::DELETE, answer.url.join(&location)?.as_str()).await?.ensure(204)?;
        }
        Ok(answer.status)
    }
}

async fn matrix(world: &World) -> Result<()> {
    let mut server = start(world, "teams").await?;
    for number in 0..TEAMS {
        let own = as_team(&server, Some(number))?;
        own.push(&format!("{}/app", hosted(number)), "1", &image_of(number)?).await?;
    }
    let callers: Vec<Option<usize>> = (0..TEAMS).map(Some).chain([None]).collect();
    let rows = callers.iter().map(|caller| ask_all(&server, *caller));
    let wrong: Vec<String> = stream::iter(rows).buffer_unordered(AT_ONCE).try_concat().await?;
    let asked = callers.len() * TEAMS * Route::ALL.len();
    println!("         {asked} requests of {} callers", callers.len());
    let shown = &wrong[..wrong.len().min(SHOWN)];
    ensure!(wrong.is_empty(), "{} of {asked} were answered otherwise: {shown:#?}", wrong.len());
    // Nothing was mounted into anyone's repository, and nobody's image changed.
    for number in 0..TEAMS {
        let own = as_team(&server, Some(number))?;
        let other = image_of((number + 1) % TEAMS)?.layer_digest();
        own.head(&format!("v2/{}/app/blobs/{other}", hosted(number))).await?.ensure(404)?;
        own.pull(&format!("{}/app", group(number)), "1", &image_of(number)?).await?;
    }
    server.stop().await
}

/// Everything that one caller may try; what was answered otherwise than it should.
async fn ask_all(server: &CacheServer, caller: Option<usize>) -> Result<Vec<String>> {
    let registry = as_team(server, caller)?;
    let mut wrong = Vec::new();
    for owner in 0..TEAMS {
        for route in Route::ALL {
            let expected = route.expected(caller, owner);
            let status = route.ask(&registry, caller, owner).await?;
            if status != expected {
                wrong.push(format!("{caller:?} by {route:?} to {owner}: {status}, not {expected}"));
            }
        }
    }
    Ok(wrong)
}

/// A way in which one may try to get at an image that is not one's own.
fn ways(image: &str, content: &OneFile) -> Vec<(Method, String)> {
    let paths = [
        format!("{image}/manifests/latest"),
        format!("{image}/manifests/{}", content.digest()),
        format!("{image}/blobs/{}", content.layer_digest()),
        format!("{image}/tags/list"),
        format!("{image}/referrers/{}", content.digest()),
    ];
    paths
        .into_iter()
        .flat_map(|path| [Method::HEAD, Method::GET].map(|method| (method, format!("v2/{path}"))))
        .collect()
}

async fn private_image(world: &World) -> Result<()> {
    const NAME: &str = "private/alice/teams";
    let content = OneFile::new(b"private to the upstream's alice")?;
    put_upstream(world.upstream.content(), NAME, "latest", &content);
    let mut server = start(world, "teams-private").await?;
    let allowed: Vec<usize> = (0..ALLOWED).collect();
    let others: Vec<Option<usize>> = [ALLOWED, WITH_PRIVATE].map(Some).into_iter().chain([None]).collect();

    ensure_kept_from(&server, &others, NAME, &content).await.context("cold")?;
    for number in &allowed {
        let registry = as_team(&server, Some(*number))?;
        registry.pull(&format!("{}/{NAME}", group(*number)), "latest", &content).await?;
        registry.pull(&format!("{PRIVATE}/{NAME}"), "latest", &content).await?;
    }
    ensure_kept_from(&server, &others, NAME, &content).await.context("warm")?;
    for address in [DOCKER_HUB, TOKEN_SERVER] {
        world.lab.refuse(address)?;
    }
    let down = async {
        ensure_kept_from(&server, &others, NAME, &content).await?;
        let registry = as_team(&server, Some(0))?;
        registry.pull(&format!("{}/{NAME}", group(0)), "latest", &content).await
    };
    let down = down.await.context("with the upstream down");
    for address in [DOCKER_HUB, TOKEN_SERVER] {
        world.lab.reopen(address)?;
    }
    down?;
    server.stop().await
}

/// Nobody of these gets a byte of the image, by any way and any repository.
async fn ensure_kept_from(server: &CacheServer, others: &[Option<usize>], name: &str, content: &OneFile) -> Result<()> {
    for caller in others {
        let registry = as_team(server, *caller)?;
        let own = caller.map(group);
        let first = group(0);
        let repositories = own.as_deref().into_iter().chain([first.as_str(), PRIVATE, "docker-hub"]);
        for repository in repositories {
            for (method, path) in ways(&format!("{repository}/{name}"), content) {
                let answer = registry.ask(method, &path).await?;
                let nothing = answer.status >= 400 || answer.json().is_ok_and(|body| body["manifests"] == json!([]));
                // A HEAD of referrers has no body to look into.
                let blind = answer.body.is_empty() && path.contains("/referrers/");
                ensure!(nothing || blind, "{caller:?}: {}", answer.said());
            }
        }
        let Some(number) = caller else { continue };
        let target = format!("{}/mounted", hosted(*number));
        for from in [format!("{PRIVATE}/{name}"), format!("{}/{name}", group(0)), format!("{}/{name}", group(*number))]
        {
            let query = format!("?mount={}&from={from}", content.layer_digest());
            registry.post_upload(&target, &query).await?.ensure(202).with_context(|| format!("{caller:?} mounts"))?;
        }
        registry.head(&format!("v2/{target}/blobs/{}", digest(&content.layer))).await?.ensure(404)?;
    }
    Ok(())
}

async fn with_docker(world: &World) -> Result<()> {
    const NAME: &str = "private/alice/docker-teams";
    put_upstream(world.upstream.content(), NAME, "latest", &OneFile::new(NAME.as_bytes())?);
    let mut server = start(world, "teams-docker").await?;
    let address = server.listen().to_string();
    let registries = Registries { insecure: &[&address], ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-teams").await?;
    let folder = world.lab.dir("clients/teams")?;
    let client = |number: usize| DockerClient::new(&docker, &folder, &team(number));
    let clients = (0..WITH_PRIVATE).map(client).collect::<Result<Vec<_>>>()?;
    let own = |number: usize| format!("{address}/{}/app:1", hosted(number));
    let seen = |number: usize| format!("{address}/{}/app:1", group(number));
    let private = |number: usize| format!("{address}/{}/{NAME}:latest", group(number));
    for (number, client) in clients.iter().enumerate() {
        client.login(&address, &team(number), &password(&team(number))).await?;
        let tar = folder.join(format!("{number}.tar"));
        std::fs::write(&tar, image_of(number)?.tar).context("cannot write an image to import")?;
        client.import(&tar, &own(number)).await?;
    }
    for (number, client) in clients.iter().enumerate() {
        let next = (number + 1) % WITH_PRIVATE;
        client.push(&own(number)).await?;
        // dockerd keeps images for everyone who asks it, so names are tried that it does not have.
        client.pull_anew(&seen(number)).await?;
        client.remove(&seen(number)).await?;
        client.tag(&own(number), &format!("{address}/{}/foreign:1", hosted(next))).await?;
        ensure_refused(client, &["push", "--quiet", &format!("{address}/{}/foreign:1", hosted(next))]).await?;
        ensure_refused(client, &["pull", "--quiet", &seen(next)]).await?;
        client.pull_anew(&format!("{address}/{}/library/sixty", group(number))).await?;
    }
    for (number, client) in clients.iter().enumerate() {
        if number < ALLOWED {
            client.pull_anew(&private(number)).await?;
        } else {
            ensure_refused(client, &["pull", "--quiet", &private(number)]).await?;
            ensure_refused(client, &["pull", "--quiet", &private(0)]).await?;
        }
    }
    ensure_pushed_through_group(&clients, &address, &folder).await?;
    docker.stop().await?;
    server.stop().await
}

/// The first team's group takes pushes, for the team's hosted repository and from nobody else; the second's takes none.
async fn ensure_pushed_through_group(clients: &[DockerClient<'_>], address: &str, folder: &Path) -> Result<()> {
    let [owner, other, ..] = clients else { bail!("there are two teams at least") };
    let tar = folder.join("through.tar");
    std::fs::write(&tar, OneFile::new(b"pushed through a group")?.tar).context("cannot write an image to import")?;
    let of_hub = |number: usize| format!("{address}/{}/library/sixty:latest", group(number));
    // One whose layers the hosted repository does not have, and one whose layers are Docker Hub's.
    let [new, based] = ["new", "based"].map(|name| [group(0), hosted(0)].map(|of| format!("{address}/{of}/{name}:1")));
    owner.import(&tar, &new[0]).await?;
    owner.tag(&of_hub(0), &based[0]).await?;
    for [through, _] in [&new, &based] {
        owner.push(through).await?;
        owner.remove(through).await?;
    }
    for number in 0..clients.len() {
        owner.remove(&of_hub(number)).await?;
    }
    for image in new.iter().chain(&based) {
        // Nothing of it is here, so that all of it is fetched.
        owner.pull_anew(image).await?;
        owner.remove(image).await?;
    }

    for (number, sentence) in [(0, "denied"), (1, "is a group without pushto: it takes no pushes")] {
        let image = format!("{address}/{}/foreign:1", group(number));
        other.import(&tar, &image).await?;
        let said = ensure_refused(other, &["push", "--quiet", &image]).await?;
        ensure!(said.contains(sentence), "docker push {image}: {said}");
    }
    ensure_refused(owner, &["pull", "--quiet", &format!("{address}/{}/foreign:1", hosted(0))]).await.map(drop)
}
