//! A Docker host outside a cluster, with no route but to the cache: `operator node apply` switches its dockerd over while
//! it runs, and `operator node restore` puts it back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::engines::start_cache;
use crate::{
    command,
    engine::Docker,
    install::Engines,
    lab::{CACHE, CacheServer, DOCKER1, NODES, Process},
    package::beside_this_program,
    suite::{Case, World},
    upstream::{
        mirror::{Configuration, Mirror},
        sites::HUB,
    },
};

/// Where these cases' caches listen first; further ones ten ports on.
const PORT: u16 = 5300;
/// The port connector that the host is pointed at.
const CONNECTOR: u16 = 8181;
/// A mirror of someone else, where nobody listens.
const FOREIGN: &str = "http://198.51.100.1:9/";
/// Until a dead cache is out of the engine's lists: three failed probes, and a reload on a busy machine.
const WITHDRAWN_LIMIT: Duration = Duration::from_secs(20);
/// Until it is back.
const BACK_LIMIT: Duration = Duration::from_secs(25);
/// Between two looks at an engine.
const POLL: Duration = Duration::from_millis(200);

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("docker host: switched over and put back without a restart", |world| Box::pin(there_and_back(world))),
        Case::new("docker host: what dockerd would not load is refused, or taken back", |world| {
            Box::pin(refusals(world))
        }),
        Case::new("docker host: --watch takes a dead cache out and brings it back", |world| Box::pin(watch(world))),
        Case::new("docker host: a cache with a certificate of one's own", |world| Box::pin(certificate(world))),
        Case::new("docker host: other registries through hosts.toml, where it is read", |world| {
            Box::pin(other_registries(world))
        }),
    ]
}

/// A dockerd, and the program that switches it over.
struct Host {
    docker: Docker,
    operator: PathBuf,
    state: PathBuf,
    started: String,
}

impl Host {
    /// Starts a dockerd with this daemon.json.
    async fn start(world: &World, name: &str, daemon_json: &str, flags: &[&str]) -> Result<Self> {
        let docker = Docker::start_with(&world.lab, &world.programs, daemon_json, flags).await?;
        let started = start_time(docker.pid())?;
        let state = world.lab.dir("docker-hosts")?.join(name);
        Ok(Self { docker, operator: beside_this_program("operator")?, state, started })
    }

    fn command(&self, words: &[&str]) -> Result<std::process::Command> {
        let mut command = self.docker.on_node(&self.operator)?;
        command.args(["node"]).args(words).args(["--runtime", "docker", "--state-dir"]).arg(&self.state);
        Ok(command)
    }

    async fn operator(&self, words: &[&str]) -> Result<Output> {
        let output =
            tokio::process::Command::from(self.command(words)?).output().await.context("cannot run operator")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            println!("         {line}");
        }
        Ok(output)
    }

    /// Runs it to a good end, and gives what it printed.
    async fn does(&self, words: &[&str]) -> Result<String> {
        let output = self.operator(words).await?;
        ensure!(output.status.success(), "operator node {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to a bad end, and gives why.
    async fn refuses(&self, words: &[&str]) -> Result<String> {
        let output = self.operator(words).await?;
        ensure!(!output.status.success(), "operator node {words:?} ended well");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("         {}", why.lines().next().unwrap_or_default());
        Ok(why)
    }

    fn daemon_json(&self) -> PathBuf {
        self.docker.etc().join("daemon.json")
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(self.daemon_json()).context("cannot read daemon.json")
    }

    /// What `docker info` lists: mirrors, and registries asked over plain HTTP.
    async fn lists(&self) -> Result<(Vec<String>, Vec<String>)> {
        let info = self.docker.info().await?;
        let registries = &info["RegistryConfig"];
        let mirrors = texts(&registries["Mirrors"]);
        let hosts = registries["IndexConfigs"].as_object().into_iter().flatten();
        let insecure = hosts.filter(|(_, index)| index["Secure"] == false).map(|(name, _)| name.clone());
        Ok((mirrors, insecure.chain(texts(&registries["InsecureRegistryCIDRs"])).collect()))
    }

    /// Waits until the engine lists this mirror first, or does not list it.
    async fn until_listed(&self, mirror: &str, wanted: bool, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        while self.lists().await?.0.iter().any(|listed| listed.trim_end_matches('/') == mirror) != wanted {
            if begun.elapsed() > limit {
                bail!("{mirror} is {}listed after {limit:?}", if wanted { "not " } else { "" });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    /// The engine is the process that was started, since then.
    fn was_not_restarted(&self) -> Result<()> {
        ensure!(start_time(self.docker.pid())? == self.started, "dockerd is another process");
        let pid = fs::read_to_string(Path::new("/run").join(DOCKER1.name).join("docker.pid"))?;
        ensure!(pid.trim() == self.docker.pid().to_string(), "dockerd was restarted");
        Ok(())
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}

/// When a process started, in clock ticks since the machine did.
fn start_time(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("dockerd does not run")?;
    let (_, rest) = stat.rsplit_once(')').context("an odd line")?;
    rest.split_whitespace().nth(19).map(str::to_owned).context("a short line")
}

/// A daemon.json as people write it: keys of their own in an order and a style of their own.
fn daemon_json(world: &World, root: &str, more: &str) -> Result<String> {
    let keys = Docker::keys(&world.lab, root)?;
    let keys = keys.as_object().into_iter().flatten().map(|(key, value)| format!("    \"{key}\": {value}"));
    Ok(format!(
        "{{\n{},\n    \"labels\": [ \"rack=7\" ],{more}\n    \"max-concurrent-downloads\" : 2 }}",
        keys.collect::<Vec<_>>().join(",\n")
    ))
}

fn mirror_url(port: u16) -> String {
    format!("http://{CACHE}:{port}")
}

async fn cache(world: &World, name: &str, number: u16) -> Result<(CacheServer, String)> {
    let connector = CONNECTOR + number;
    let more = format!("  connectors:\n    - port: {connector}\n");
    Ok((start_cache(world, name, PORT + 10 * number, &more).await?, mirror_url(connector)))
}

async fn there_and_back(world: &World) -> Result<()> {
    let routes = command::output("ip", ["-n", DOCKER1.name, "route"])?;
    ensure!(routes.lines().count() == 1 && routes.contains("198.51.100.0/24"), "the host has other routes: {routes}");
    let (mut cache, url) = cache(world, "docker-host", 0).await?;
    let insecure = url.trim_start_matches("http://").to_owned();
    let foreign = format!("\n    \"registry-mirrors\": [\"{FOREIGN}\"], \"insecure-registries\": [\"192.0.2.0/24\"],");
    for (name, more, theirs) in [("lists", foreign.as_str(), vec![FOREIGN.to_owned()]), ("none", "", vec![])] {
        let before = daemon_json(world, &format!("host-{name}"), more)?;
        let mut host = Host::start(world, name, &before, &[]).await?;
        fs::set_permissions(host.daemon_json(), fs::Permissions::from_mode(0o640))?;
        ensure!(host.lists().await?.0 == theirs, "its mirrors before: {:?}", host.lists().await?);
        let image = world.images.mysql.reference();
        ensure!(host.docker.pull(&image).await.is_err(), "mysql was pulled without a route and without the cache");

        let mirror = format!("docker.io={url}");
        host.does(&["apply", "--mirror", &mirror]).await?;
        let (mirrors, insecure_now) = host.lists().await?;
        let expected: Vec<_> = [format!("{url}/")].into_iter().chain(theirs.clone()).collect();
        ensure!(mirrors == expected, "docker info lists the mirrors {mirrors:?}");
        ensure!(insecure_now.contains(&insecure), "docker info lists as insecure {insecure_now:?}");
        ensure!(more.is_empty() || insecure_now.iter().any(|one| one == "192.0.2.0/24"), "{insecure_now:?}");
        let applied = host.text()?;

        world.upstream.reset_counts();
        host.docker.pull(&image).await?;
        pulled_through_the_cache(world, name == "lists")?;
        ensure!(host.docker.info().await?["Labels"] == json!(["rack=7"]), "its label is not in force any more");
        ensure!(applied.contains("\"max-concurrent-downloads\" : 2"), "its style was changed: {applied}");

        let again = host.does(&["apply", "--mirror", &mirror]).await?;
        ensure!(again.contains("nothing was changed") && host.text()? == applied, "the second run changed something");

        host.does(&["restore"]).await?;
        ensure!(host.lists().await?.0 == theirs, "docker info lists {:?}", host.lists().await?);
        ensure!(!host.lists().await?.1.contains(&insecure), "docker info lists {:?}", host.lists().await?);
        ensure!(host.text()? == before, "daemon.json is not what it was: {}", host.text()?);
        let mode = fs::metadata(host.daemon_json())?.permissions().mode() & 0o7777;
        ensure!(mode == 0o640, "daemon.json has the mode {mode:o}");
        ensure!(!host.state.exists(), "something is left in the state folder");
        host.was_not_restarted()?;
        host.docker.remove_all(std::slice::from_ref(&image)).await?;
        ensure!(host.docker.pull(&image).await.is_err(), "mysql was pulled without a route and without the cache");
        host.does(&["restore"]).await?;
        host.docker.stop().await?;
    }
    cache.stop().await
}

/// mysql came, each byte at most once from the upstream, and nobody but the cache asked there.
fn pulled_through_the_cache(world: &World, is_cold: bool) -> Result<()> {
    let counts = world.upstream.counts();
    for (digest, size) in world.images.mysql.blobs()? {
        let (gets, bytes) = (counts.gets(&digest), counts.bytes(&digest));
        let expected = if is_cold { (1, size) } else { (0, 0) };
        ensure!((gets, bytes) == expected, "the upstream sent {digest} ({size} bytes) {gets} times, {bytes} bytes");
    }
    let is_node = |client| NODES.iter().any(|node| client == node.address);
    ensure!(!counts.all().iter().any(|asked| is_node(asked.client)), "a node reached the upstream");
    println!("         mysql came through the cache; the upstream was asked {} times", counts.all().len());
    Ok(())
}

async fn refusals(world: &World) -> Result<()> {
    let (mut cache, url) = cache(world, "docker-refusals", 1).await?;
    let apply = ["apply", "--mirror", &format!("docker.io={url}")];
    let before = daemon_json(world, "host-refusals", "")?;
    let mut host = Host::start(world, "refusals", &before, &[]).await?;
    let path = host.daemon_json();

    let commented = before.replacen('\n', "\n    // mine\n", 1);
    fs::write(&path, &commented)?;
    let why = host.refuses(&apply).await?;
    ensure!(why.contains("daemon.json, line 2, column 5: JSON has no comments"), "{why}");
    ensure!(host.text()? == commented, "a file that cannot be read was changed");

    let unknown = before.replace("\"labels\"", "\"nobody-knows-this\": 1, \"labels\"");
    fs::write(&path, &unknown)?;
    let why = host.refuses(&apply).await?;
    ensure!(why.contains("did not take"), "{why}");
    ensure!(host.text()? == unknown, "daemon.json was not taken back");
    ensure!(host.lists().await?.0.is_empty(), "docker info lists {:?}", host.lists().await?);

    fs::write(&path, &before)?;
    let nobody = host.refuses(&["apply", "--mirror", "docker.io=http://198.51.100.1:9"]).await?;
    ensure!(nobody.contains("does not answer this host") && host.text()? == before, "{nobody}");
    let other = host.refuses(&["apply", "--mirror", &format!("ghcr.io={}/repository/x", cache.url())]).await?;
    ensure!(other.contains("containerd image store") && host.text()? == before, "{other}");

    host.does(&apply).await?;
    fs::write(&path, host.text()?.replace("rack=7", "rack=8"))?;
    let said = host.does(&["restore"]).await?;
    ensure!(said.contains("was changed by someone since"), "{said}");
    ensure!(host.text()? == before.replace("rack=7", "rack=8"), "{}", host.text()?);
    ensure!(host.lists().await?.0.is_empty(), "docker info lists {:?}", host.lists().await?);

    fs::write(&path, &before)?;
    host.does(&apply).await?;
    fs::write(&path, host.text()?.replace("\"labels\"", "\"nobody-knows-this\": 1, \"labels\""))?;
    let why = host.refuses(&["restore"]).await?;
    ensure!(why.contains("still lists") && host.text()? == unknown, "{why}");
    fs::write(&path, &before)?;
    host.does(&["restore"]).await?;
    ensure!(host.lists().await?.0.is_empty() && host.text()? == before, "it was not put back");
    host.was_not_restarted()?;
    host.docker.stop().await?;

    let mut host = Host::start(world, "flags", &before, &[&format!("--registry-mirror={FOREIGN}")]).await?;
    let why = host.refuses(&apply).await?;
    ensure!(why.contains("started with --registry-mirror") && host.text()? == before, "{why}");
    host.docker.stop().await?;
    cache.stop().await
}

async fn watch(world: &World) -> Result<()> {
    let (mut cache, url) = cache(world, "docker-watch", 2).await?;
    let before = daemon_json(world, "host-watch", "")?;
    let mut host = Host::start(world, "watch", &before, &[]).await?;
    let words = ["apply", "--watch", "--mirror", &format!("docker.io={url}")];
    let begin = || -> Result<Process> { world.lab.spawn("docker-watcher", host.command(&words)?) };

    let mut watcher = begin()?;
    host.until_listed(&url, true, BACK_LIMIT).await?;
    let busy = host.refuses(&["restore"]).await?;
    ensure!(busy.contains("is at work"), "{busy}");

    cache.kill()?;
    let out = host.until_listed(&url, false, WITHDRAWN_LIMIT).await?;
    let deadline = Instant::now() + POLL * 10;
    while host.text()? != before && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
    ensure!(host.text()? == before, "daemon.json is not what it was: {}", host.text()?);
    cache.restart().await?;
    let back = host.until_listed(&url, true, BACK_LIMIT).await?;
    println!(
        "         out {:.1} s after the cache was killed, back {:.1} s after",
        out.as_secs_f64(),
        back.as_secs_f64()
    );

    // A watcher that crashes leaves all as it is, and the next one goes on: here with a cache that died in between.
    watcher.kill()?;
    cache.kill()?;
    ensure!(host.lists().await?.0.len() == 1, "a watcher that was killed changed something");
    watcher = begin()?;
    host.until_listed(&url, false, WITHDRAWN_LIMIT).await?;
    cache.restart().await?;
    host.until_listed(&url, true, BACK_LIMIT).await?;

    watcher.signal(Signal::TERM)?;
    let status = watcher.wait(WITHDRAWN_LIMIT).await?.context("--watch does not end")?;
    ensure!(status.success(), "--watch ended with {status}");
    ensure!(host.lists().await?.0.len() == 1, "a watcher that ended changed something");
    host.does(&["restore"]).await?;
    ensure!(host.text()? == before && host.lists().await?.0.is_empty(), "it was not put back");
    host.was_not_restarted()?;
    host.docker.stop().await?;
    cache.stop().await
}

async fn certificate(world: &World) -> Result<()> {
    let key = KeyPair::generate().context("cannot make a key")?;
    let names = CertificateParams::new(vec![CACHE.to_string()]).context("cannot name the cache")?;
    let own = names.self_signed(&key).context("cannot sign")?;
    let port = CONNECTOR + 3;
    let tls = format!("  connectors:\n    - port: {port}\n      tls:\n        secretRef:\n          name: own\n");
    let configuration = Configuration::quick(&world.upstream).mirror(Mirror::hub());
    let mut setup = configuration
        .setup("docker-certificate")
        .secret("own_tls.crt", &own.pem())
        .secret("own_tls.key", &key.serialize_pem());
    setup.objects.push_str(&tls);
    let mut cache = CacheServer::start(&world.lab, setup).await?;
    let ca = world.lab.dir("docker-hosts")?.join("own.pem");
    fs::write(&ca, own.pem())?;

    let before = daemon_json(world, "host-certificate", "")?;
    let mut host = Host::start(world, "certificate", &before, &[]).await?;
    let mirror = format!("docker.io=https://{CACHE}:{port}");
    let why = host.refuses(&["apply", "--mirror", &mirror]).await?;
    ensure!(why.contains("ertificate"), "{why}");
    host.does(&["apply", "--mirror", &mirror, "--ca", &ca.display().to_string()]).await?;
    ensure!(!host.lists().await?.1.iter().any(|one| one.contains(":8")), "an https mirror is listed as insecure");
    let trusted = host.docker.etc().join(format!("certs.d/{CACHE}:{port}/ca.crt"));
    ensure!(fs::read_to_string(&trusted)? == own.pem(), "dockerd has other certificates");
    host.docker.pull(&world.images.nginx.reference()).await?;
    host.does(&["restore"]).await?;
    ensure!(host.text()? == before && !trusted.exists(), "it was not put back");
    host.docker.stop().await?;
    cache.stop().await
}

/// A folder and everything in it; nothing if it is not there.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let below = entries.filter_map(Result::ok).flat_map(|entry| {
        let path = entry.path();
        if path.is_dir() { walk(&path) } else { vec![path] }
    });
    std::iter::once(folder.to_owned()).chain(below).collect()
}

async fn other_registries(world: &World) -> Result<()> {
    let other = "other.example.net";
    let configuration =
        Configuration::quick(&world.upstream).mirror(Mirror::hub()).mirror(Mirror::of("other", HUB).registry(other));
    let mut cache = CacheServer::start(&world.lab, configuration.setup("docker-other")).await?;
    let mut keys = Docker::keys(&world.lab, "host-other")?;
    keys["features"] = json!({"containerd-snapshotter": true});
    keys.as_object_mut().context("no object")?.remove("storage-driver");
    let before = keys.to_string();
    let mut host = Host::start(world, "other", &before, &[]).await?;
    let image = format!("{other}/library/nginx:latest");
    ensure!(host.docker.pull(&image).await.is_err(), "a registry that is nowhere answered");
    let mirrors = [format!("docker.io={}", cache.url()), format!("{other}={}/repository/other", cache.url())];
    if world.programs.engines() != Engines::default() {
        let why = host.refuses(&["apply", "--mirror", &mirrors[0], "--mirror", &mirrors[1]]).await?;
        ensure!(why.contains("has mirrors for docker.io only") && why.contains(other), "said: {why}");
        ensure!(host.text()? == before, "daemon.json was changed by what was refused");
        host.docker.stop().await?;
        return cache.stop().await;
    }
    host.does(&["apply", "--mirror", &mirrors[0], "--mirror", &mirrors[1]]).await?;
    host.docker.pull(&image).await?;
    host.docker.pull(&world.images.sixty.reference()).await?;
    // What is not named any more goes.
    host.does(&["apply", "--mirror", &mirrors[0]]).await?;
    ensure!(!host.docker.etc().join("certs.d").join(other).exists(), "its hosts.toml is still there");
    host.does(&["apply", "--mirror", &mirrors[0], "--mirror", &mirrors[1]]).await?;
    host.does(&["restore"]).await?;
    ensure!(host.text()? == before, "daemon.json was not put back");
    let left = walk(&host.docker.etc().join("certs.d"));
    ensure!(left.is_empty(), "left: {left:?}");
    host.was_not_restarted()?;
    host.docker.stop().await?;
    cache.stop().await
}
