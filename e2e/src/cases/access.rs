//! Who may fetch what, and whom the cache talks to: two identities at one upstream, and upstreams that want to steal
//! credentials or to be led to addresses inside.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::run,
    lab::{CacheServer, SPARE_UPSTREAMS},
    suite::{Case, World},
    upstream::{
        Upstream,
        blob::Blob,
        client::{Ask, Got},
        content::Made,
        fault::{Fault, Target},
        mirror::{Configuration, Mirror},
        sites::{AUTH, BASIC, HUB, spare},
        trap::Trap,
        users::{ALICE, BOB, CAROL, User},
    },
};

/// Addresses that no upstream may lead the cache to.
const INSIDE: [Ipv4Addr; 4] = [
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 9, 8, 7),
    Ipv4Addr::new(192, 168, 77, 1),
];
/// A name that resolves to one of them.
const NAME_INSIDE: &str = "inside.example.net";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("access: each mirror fetches only what its credentials may", |world| Box::pin(own_only(world))),
        Case::new("access: an upstream with basic authentication", |world| Box::pin(basic(world))),
        Case::new("access: credentials reach no other realm and no other host", |world| {
            Box::pin(credentials_stay(world))
        }),
        Case::new("access: no connection to an address inside", |world| Box::pin(no_way_inside(world))),
    ]
}

async fn own_only(world: &World) -> Result<()> {
    let cold_first = Tenants::new(world, "tenants-cold").await?;
    cold_first.ensure_foreign_refused("cold").await?;
    cold_first.ensure_own_served("cold").await?;
    cold_first.ensure_foreign_refused("after a refusal, warm").await?;
    let warm_first = Tenants::new(world, "tenants-warm").await?;
    warm_first.ensure_own_served("warm").await?;
    warm_first.ensure_foreign_refused("warm").await?;
    warm_first.ensure_own_served("from the store").await?;
    warm_first.ensure_shared_layer_is_asked_for(world)
}

/// A server with a mirror for each of two users, and an image of each.
struct Tenants {
    server: CacheServer,
    images: [(User, Made); 2],
    shared: String,
}

impl Tenants {
    async fn new(world: &World, name: &str) -> Result<Self> {
        let content = world.upstream.content();
        let shared = Blob::generated(4_000, 100_000);
        let image = |user: User, seed| {
            let layers = vec![Blob::generated(seed, 300_000), shared.clone()];
            content.put_image(&format!("private/{}/{name}", user.name), "latest", layers)
        };
        let images = [(ALICE, image(ALICE, 4_001)?), (BOB, image(BOB, 4_002)?)];
        let configuration = [ALICE, BOB].iter().fold(Configuration::quick(&world.upstream), |configuration, user| {
            let mirror = Mirror::of(user.name, HUB).registry(&format!("{}.example.net", user.name));
            configuration.mirror(mirror.with_credentials_of(*user))
        });
        Ok(Self {
            server: CacheServer::start(&world.lab, configuration.setup(name)).await?,
            images,
            shared: shared.digest(),
        })
    }

    async fn ensure_own_served(&self, when: &str) -> Result<()> {
        for (user, made) in &self.images {
            for (path, digest) in routes(made) {
                let got = self.get(*user, &path).await?;
                got.ensure_whole(&digest).with_context(|| format!("{when}: {} asks for {path}", user.name))?;
            }
        }
        Ok(())
    }

    async fn ensure_foreign_refused(&self, when: &str) -> Result<()> {
        let [(alice, of_alice), (bob, of_bob)] = &self.images;
        for (user, made) in [(alice, of_bob), (bob, of_alice)] {
            for (path, _) in routes(made) {
                self.ensure_refused(*user, &path)
                    .await
                    .with_context(|| format!("{when}: {} asks for {path}", user.name))?;
            }
            // The digest of another's layer under a name of one's own.
            let (_, own) = self.images.iter().find(|(other, _)| other.name == user.name).context("no image")?;
            let smuggled = format!("/v2/{}/blobs/{}", own.name, made.layers[0].0);
            self.ensure_refused(*user, &smuggled)
                .await
                .with_context(|| format!("{when}: {} asks for {smuggled}", user.name))?;
        }
        Ok(())
    }

    async fn ensure_refused(&self, user: User, path: &str) -> Result<()> {
        let got = self.get(user, path).await?;
        got.ensure_status(404)?;
        let head = Ask::head(within(user, path)).run(self.server.listen()).await?;
        head.ensure_status(404).context("HEAD")
    }

    /// A layer that is stored for one mirror is served by the other only after its own upstream has been asked.
    fn ensure_shared_layer_is_asked_for(&self, world: &World) -> Result<()> {
        let counts = world.upstream.counts();
        for (user, made) in &self.images {
            let path = format!("/v2/{}/blobs/{}", made.name, self.shared);
            let asked = counts.at(HUB).filter(|asked| asked.path == path && asked.status == 200);
            ensure!(asked.count() > 0, "the upstream was never asked whether {} may have the shared layer", user.name);
        }
        Ok(())
    }

    async fn get(&self, user: User, path: &str) -> Result<Got> {
        Ask::get(within(user, path)).run(self.server.listen()).await
    }
}

fn within(user: User, path: &str) -> String {
    format!("/repository/{}{path}", user.name)
}

/// The ways to an image's content, each with its digest.
fn routes(made: &Made) -> Vec<(String, String)> {
    let name = &made.name;
    let manifests =
        ["latest", &made.digest].map(|reference| (format!("/v2/{name}/manifests/{reference}"), made.digest.clone()));
    let layers = made.layers.iter().map(|(digest, _)| (format!("/v2/{name}/blobs/{digest}"), digest.clone()));
    manifests.into_iter().chain(layers).collect()
}

/// Debian's registry with an htpasswd file lets in who knows the password, and nobody else.
async fn basic(world: &World) -> Result<()> {
    let image = &world.images.sixty;
    image.push(&world.upstream.basic_push_endpoint()?)?;
    let configuration = Configuration::quick(&world.upstream)
        .mirror(Mirror::of("knows", BASIC).registry("knows.example.net").with_credentials_of(CAROL))
        .mirror(Mirror::of("guesses", BASIC).registry("guesses.example.net"));
    let server = CacheServer::start(&world.lab, configuration.setup("basic")).await?;
    let tag = format!("/v2/{}/manifests/latest", image.name);
    Ask::manifest(format!("/repository/guesses{tag}")).run(server.listen()).await?.ensure_status(404)?;
    let got = Ask::manifest(format!("/repository/knows{tag}")).run(server.listen()).await?;
    let digest = got.header("docker-content-digest").context("no digest")?;
    got.ensure_whole(digest)?;
    for (digest, _) in image.blobs()? {
        let path = format!("/v2/{}/blobs/{digest}", image.name);
        Ask::get(format!("/repository/knows{path}")).run(server.listen()).await?.ensure_whole(&digest)?;
        Ask::get(format!("/repository/guesses{path}")).run(server.listen()).await?.ensure_status(404)?;
    }
    Ok(())
}

/// A hostile upstream, and a server that has credentials for it.
struct Hostile<'w> {
    upstream: &'w Upstream,
    server: CacheServer,
    host: String,
    image: String,
}

impl<'w> Hostile<'w> {
    /// The upstream at a spare address (0 to 7), with a server of its own.
    async fn new(world: &'w World, name: &str, spare_upstream: usize) -> Result<Self> {
        let host = spare(SPARE_UPSTREAMS[spare_upstream]);
        let mirror = Mirror::of("hostile", &host).with_credentials_of(ALICE).breaker(1000);
        let configuration = Configuration::quick(&world.upstream).mirror(mirror);
        Ok(Self {
            upstream: &world.upstream,
            server: CacheServer::start(&world.lab, configuration.setup(name)).await?,
            host,
            image: format!("library/{name}"),
        })
    }

    /// Has the upstream do this to a request for a new image, asks for it, and fails unless the upstream was reached.
    async fn provoke(&self, number: usize, fault: Fault) -> Result<Got> {
        let image = format!("{}-{number}", self.image);
        self.upstream.content().put_image(&image, "latest", Vec::new())?;
        let path = format!("/v2/{image}/manifests/latest");
        self.upstream.faults().set(Target::path(&path).at(&self.host), fault);
        let got = Ask::manifest(&path).run(self.server.listen()).await;
        self.upstream.faults().clear_path(&path);
        let counts = self.upstream.counts();
        let reached = counts.at(&self.host).any(|asked| asked.path == path);
        ensure!(reached, "the hostile upstream was not even asked");
        got
    }
}

async fn credentials_stay(world: &World) -> Result<()> {
    let host = spare(SPARE_UPSTREAMS[1]);
    world.upstream.reset_counts();
    let other = spare(SPARE_UPSTREAMS[2]);
    let plain = Trap::set(SocketAddr::from((SPARE_UPSTREAMS[2], 80))).await?;
    let challenges = [
        format!("Bearer realm=\"https://{AUTH}/token\",service=\"registry.docker.io\",scope=\"repository:x:pull\""),
        format!("Bearer realm=\"http://{other}/token\",service=\"x\",scope=\"repository:x:pull\""),
        format!("Bearer realm=\"https://{host}@{AUTH}/token\",service=\"x\""),
        format!("Bearer realm=\"https://{AUTH}:443/token?x=https://{host}\",service=\"x\""),
    ];
    for (number, challenge) in challenges.into_iter().enumerate() {
        // A server of its own for each: one that has met a bad challenge does not ask again for a while.
        let hostile = Hostile::new(world, &format!("thief-{number}"), 1).await?;
        let got = hostile.provoke(number, Fault::Challenge(challenge.clone())).await?;
        ensure!(got.status != 200, "{challenge} was answered by a 200");
    }
    ensure!(plain.sprung() == 0, "a token was asked for over plain HTTP");

    // A redirect away, after the upstream was shown credentials.
    let hostile = Hostile::new(world, "thief", 1).await?;
    hostile
        .provoke(10, Fault::Challenge("Basic realm=\"mine\"".to_owned()))
        .await
        .context("Basic to the upstream itself")?;
    let elsewhere = format!("https://{AUTH}/v2/library/elsewhere/manifests/latest");
    hostile.provoke(11, Fault::Redirect(elsewhere)).await?;

    let counts = world.upstream.counts();
    for asked in counts.all().iter().filter(|asked| asked.host != hostile.host) {
        ensure!(asked.password_of.is_none(), "a password reached {} ({} {})", asked.host, asked.method, asked.path);
        ensure!(asked.authorization.is_none(), "credentials reached {} ({} {})", asked.host, asked.method, asked.path);
    }
    let shown = counts.at(&hostile.host).any(|asked| asked.password_of == Some(ALICE.name));
    ensure!(shown, "the credentials did not even reach their own upstream: this case shows nothing");
    let redirected = counts.at(AUTH).any(|asked| asked.path.contains("elsewhere"));
    ensure!(redirected, "the redirect was not followed: this case shows nothing");
    Ok(())
}

async fn no_way_inside(world: &World) -> Result<()> {
    let traps = set_traps().await?;
    let hostile = Hostile::new(world, "guide", 3).await?;
    for (number, host) in hosts_inside().into_iter().enumerate() {
        let realm = format!("Bearer realm=\"https://{host}/token\",service=\"x\"");
        let challenged = Hostile::new(world, &format!("guide-{number}"), 3).await?;
        let got = challenged.provoke(number, Fault::Challenge(realm)).await?;
        ensure!(got.status >= 400, "a realm at {host} was answered by {}", got.summary());
        for scheme in ["https", "http"] {
            let location = format!("{scheme}://{host}/blob");
            let number = 100 + 2 * number + usize::from(scheme == "http");
            let got = hostile.provoke(number, Fault::Redirect(location)).await?;
            ensure!(got.status >= 400, "a redirect to {scheme}://{host} was answered by {}", got.summary());
        }
    }
    world.upstream.reset_counts();
    ensure_unknown_registries_are_left_alone(world, &hostile.server).await?;
    for trap in &traps {
        ensure!(trap.sprung() == 0, "{} connections reached {}", trap.sprung(), trap.address());
    }
    Ok(())
}

/// A registry that no repository stands for is an unknown name, never an address.
async fn ensure_unknown_registries_are_left_alone(world: &World, server: &CacheServer) -> Result<()> {
    let unknown = spare(SPARE_UPSTREAMS[4]);
    let hosts = hosts_inside().into_iter().chain([unknown, SPARE_UPSTREAMS[4].to_string()]);
    for host in hosts {
        let encoded: String = url::form_urlencoded::byte_serialize(host.as_bytes()).collect();
        let ns = format!("/v2/library/x/manifests/latest?ns={encoded}");
        Ask::get(&ns).run(server.listen()).await?.ensure_status(404).with_context(|| ns.clone())?;
        // Without a dot it is the first part of an image name.
        if host.contains('.') && !host.contains('[') {
            let path = format!("/v2/{host}/library/x/manifests/latest");
            Ask::get(&path).run(server.listen()).await?.ensure_status(404).with_context(|| path.clone())?;
        }
    }
    let counts = world.upstream.counts();
    ensure!(counts.all().is_empty(), "an unknown registry was asked for: {:#?}", counts.all());
    Ok(())
}

fn hosts_inside() -> Vec<String> {
    let addresses = INSIDE.iter().map(ToString::to_string);
    let others = [NAME_INSIDE, "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433"].map(str::to_owned);
    addresses.chain(others).collect()
}

/// Makes the addresses exist, so that a connection to one of them would succeed, and counts.
async fn set_traps() -> Result<Vec<Trap>> {
    for address in INSIDE.iter().filter(|address| !address.is_loopback()) {
        run("ip", ["address", "replace", &format!("{address}/32"), "dev", "lo"])?;
    }
    name_inside()?;
    let addresses = INSIDE.map(IpAddr::V4).into_iter().chain([IpAddr::from([0_u16, 0, 0, 0, 0, 0, 0, 1])]);
    let mut traps = Vec::new();
    for address in addresses {
        for port in [80, 443] {
            traps.push(Trap::set(SocketAddr::new(address, port)).await?);
        }
    }
    Ok(traps)
}

/// Gives one of them a name in the laboratory's own hosts file.
fn name_inside() -> Result<()> {
    let path = "/etc/hosts";
    let mut hosts = std::fs::read_to_string(path).context("failed to read the laboratory's hosts file")?;
    if !hosts.contains(NAME_INSIDE) {
        let _ = writeln!(hosts, "{} {NAME_INSIDE}", INSIDE[2]);
        std::fs::write(path, hosts).context("failed to write the laboratory's hosts file")?;
    }
    Ok(())
}
