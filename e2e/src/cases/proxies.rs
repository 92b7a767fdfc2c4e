//! Reverse proxies before the cache server, configured as their guides say: by host names, by ports, by paths, hiding a
//! path, two in a row. Whatever the server names leads back through them.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use super::objects::{Objects, password, users};
use super::registry::{Answer, Registry, put_upstream};
use crate::command::run;
use crate::content::one_file::OneFile;
use crate::engine::{Docker, DockerClient, Registries};
use crate::lab::{CACHE, CacheServer};
use crate::proxy::{Certificate, Proxy};
use crate::suite::{Case, World};
use crate::upstream::sites::HUB;

/// The host name of the hosted repository: push here.
pub const PUSH_HOST: &str = "project-push.example.com";
/// The host name of the group: pull from here.
pub const PULL_HOST: &str = "project.example.com";
/// The host name that leads to repositories by path.
const PATHS_HOST: &str = "paths.example.com";
/// The host name of a proxy that hides a path.
const OUTER_HOST: &str = "outer.example.com";
/// Where nginx has the hosted repository in place of a path.
const PATHS_PUSH_PORT: u16 = 8444;
/// Where Apache listens: for pushes, and for pulls.
const APACHE_PORTS: [u16; 2] = [8086, 8087];
/// The port connectors behind Apache: of the hosted repository, and of the group.
const CONNECTOR_PORTS: [u16; 2] = [18086, 18087];
/// The ports that end TLS themselves: of the hosted repository, and of the group.
const TLS_PORTS: [u16; 2] = [9443, 9444];
/// The host names of the main port that have a certificate each, of an authority each.
const OWN_HOSTS: [&str; 2] = ["one.example.com", "two.example.com"];
/// Where the outer one of two proxies listens, and the inner one.
const CHAIN_PORTS: [u16; 2] = [8445, 8446];
/// The hosted repository.
pub const HOSTED: &str = "docker-hosted-project";
/// The group of it and Docker Hub.
pub const GROUP: &str = "docker-group-project";
/// May push to and pull from the project.
const MEMBER: &str = "alice";
/// May log in, and nothing else.
const STRANGER: &str = "mallory";

/// What every guide for nginx has in it.
const HEADERS: &str = "
    client_max_body_size 0;
    proxy_buffering off;
    proxy_request_buffering off;
    proxy_http_version 1.1;
    proxy_set_header Host $host:$server_port;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;";

/// The cases of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("proxies: nginx by host names: docker, skopeo and buildah log in, push and pull", |world| {
            Box::pin(nginx_by_host(world))
        }),
        Case::new("proxies: nginx by path, also with a doubled slash", |world| Box::pin(nginx_by_path(world))),
        Case::new("proxies: Apache httpd by ports: docker logs in, pushes and pulls", |world| {
            Box::pin(apache_by_port(world))
        }),
        Case::new("proxies: none, docker over HTTPS by ports and by host names", |world| Box::pin(no_proxy(world))),
        Case::new("proxies: a hidden path, and two proxies in a row", |world| Box::pin(hidden_path_and_chain(world))),
    ]
}

/// A server behind a proxy.
#[derive(Debug)]
pub struct Site {
    /// The certificate of the proxy.
    pub certificate: Certificate,
    server: CacheServer,
    proxies: Vec<Proxy>,
}

impl Site {
    /// Ends all of it.
    pub async fn stop(&mut self) -> Result<()> {
        for proxy in &mut self.proxies {
            proxy.stop()?;
        }
        self.server.stop().await
    }

    /// The registry at one of the proxy's names, over TLS.
    fn registry(&self, base: &str) -> Result<Registry> {
        let port = Url::parse(base)?.port_or_known_default().context("a base without a port")?;
        Registry::trusting(base, &self.certificate.ca, SocketAddr::from((CACHE, port)))
    }
}

/// The objects of a project: a hosted repository, Docker Hub, and the group of both; logins are asked for everywhere.
#[must_use]
pub fn project(objects: Objects) -> Objects {
    let [push, pull] = CONNECTOR_PORTS;
    project_at(
        objects,
        &json!([{ "host": PUSH_HOST }, { "port": push }]),
        &json!([{ "host": PULL_HOST }, { "port": pull }]),
    )
}

/// A [`project`] whose hosted repository and whose group have these connectors.
fn project_at(objects: Objects, push: &Value, pull: &Value) -> Objects {
    objects
        // The conformance suite pushes sparse images too.
        .hosted(HOSTED, json!({ "anonymousPull": false, "sparseImages": true, "connectors": push }))
        .mirror("docker-hub", HUB, None, json!({ "v1Search": true }))
        .group(GROUP, &[HOSTED, "docker-hub"], json!({ "anonymousPull": false, "v1Search": true, "connectors": pull }))
}

fn members_only() -> Value {
    json!([{ "users": [MEMBER], "repositories": ["docker-*-project"], "actions": ["Pull", "Push", "Delete"] }])
}

/// A project behind nginx, by host names.
pub async fn behind_nginx(world: &World, name: &str, known: &[(String, String)], permissions: Value) -> Result<Site> {
    let certificate = Certificate::wildcard()?;
    let server = start(world, name, known, permissions).await?;
    let listen = SocketAddr::from((CACHE, 443));
    let sites: String = [PUSH_HOST, PULL_HOST].map(|host| by_host(host, listen, server.listen())).concat();
    let proxy_name = format!("{name}-proxy");
    let proxy = Proxy::nginx(&world.lab, &world.programs, &proxy_name, (&sites, &certificate), &[listen]).await?;
    Ok(Site { proxies: vec![proxy], certificate, server })
}

async fn start(world: &World, name: &str, known: &[(String, String)], permissions: Value) -> Result<CacheServer> {
    let objects = project(Objects::new(&world.upstream).users(known, permissions)?);
    CacheServer::start(&world.lab, objects.setup(name)).await
}

fn by_host(host: &str, listen: SocketAddr, server: SocketAddr) -> String {
    format!(
        "  server {{
    listen {listen} ssl;
    server_name {host};
    ssl_certificate CERTIFICATE;
    ssl_certificate_key KEY;{HEADERS}
    location /v2 {{ proxy_pass http://{server}; }}
    location /v1 {{ proxy_pass http://{server}; }}
  }}
"
    )
}

async fn nginx_by_host(world: &World) -> Result<()> {
    let mut site = behind_nginx(world, "nginx-hosts", &users(&[MEMBER, STRANGER]), members_only()).await?;
    let ca = site.certificate.ca.clone();
    let trusted = [(PUSH_HOST, ca.as_str()), (PULL_HOST, ca.as_str())];
    let registries = Registries { trusted: &trusted, ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-nginx").await?;
    let stage = Stage::new(world, "nginx-hosts")?;
    stage.ensure_docker_works(&docker, PUSH_HOST, PULL_HOST).await?;
    docker.stop().await?;
    stage.ensure_skopeo_works(&ca)?;
    stage.ensure_buildah_works(&ca)?;
    let pushing = site.registry(&format!("https://{PUSH_HOST}/"))?;
    ensure_leads_back(&pushing, pushing.base(), "by-host").await?;
    site.stop().await
}

async fn nginx_by_path(world: &World) -> Result<()> {
    let certificate = Certificate::wildcard()?;
    let server = start(world, "nginx-paths", &users(&[MEMBER, STRANGER]), members_only()).await?;
    let listen = [443, PATHS_PUSH_PORT].map(|port| SocketAddr::from((CACHE, port)));
    let sites = [(listen[0], GROUP), (listen[1], HOSTED)].map(|(listen, repository)| {
        format!(
            "  server {{
    listen {listen} ssl;
    server_name {PATHS_HOST};
    ssl_certificate CERTIFICATE;
    ssl_certificate_key KEY;{HEADERS}
    location ~ ^/v[12]/ {{ proxy_pass http://{server}/repository/{repository}/$request_uri; }}
    location /repository/ {{{HEADERS}
      # Nothing of the path is hidden here.
      proxy_set_header X-Forwarded-Prefix /;
      proxy_pass http://{server};
    }}
  }}
",
            server = server.listen()
        )
    });
    let proxy =
        Proxy::nginx(&world.lab, &world.programs, "nginx-paths-proxy", (&sites.concat(), &certificate), &listen)
            .await?;
    let mut site = Site { certificate, server, proxies: vec![proxy] };

    let push = format!("{PATHS_HOST}:{PATHS_PUSH_PORT}");
    let ca = site.certificate.ca.clone();
    let trusted = [(push.as_str(), ca.as_str()), (PATHS_HOST, ca.as_str())];
    let registries = Registries { trusted: &trusted, ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-paths").await?;
    Stage::new(world, "nginx-paths")?.ensure_docker_works(&docker, &push, PATHS_HOST).await?;
    docker.stop().await?;
    let hidden = site.registry(&format!("https://{push}/"))?;
    ensure_leads_back(&hidden, hidden.base(), "by-path").await?;
    let written = site.registry(&format!("https://{push}/repository/{HOSTED}/"))?;
    ensure_leads_back(&written, hidden.base(), "by-written-path").await?;

    // The path as clients write it, with one slash and with two, through the proxy and past it.
    let image = OneFile::new(b"by path")?;
    hidden.login(MEMBER, &password(MEMBER)).push("written", "1", &image).await?;
    for slashes in ["/", "//"] {
        let path = format!("repository/{GROUP}{slashes}");
        for base in [format!("https://{PATHS_HOST}/{path}"), format!("{}/{path}", site.server.url())] {
            let registry = if base.starts_with("https") { site.registry(&base)? } else { Registry::at(&base)? };
            registry.get("v2/written/manifests/1").await?.ensure(401)?;
            registry.login(MEMBER, &password(MEMBER)).pull("written", "1", &image).await?;
        }
    }
    site.stop().await
}

async fn apache_by_port(world: &World) -> Result<()> {
    let certificate = Certificate::wildcard()?;
    let server = start(world, "apache-ports", &users(&[MEMBER, STRANGER]), members_only()).await?;
    let listen = APACHE_PORTS.map(|port| SocketAddr::from((CACHE, port)));
    let site = |(listen, connector): (SocketAddr, u16)| {
        let behind = format!("http://{CACHE}:{connector}/");
        format!(
            "<VirtualHost {listen}>
  ServerName {PULL_HOST}
  SSLEngine on
  SSLCertificateFile CERTIFICATE
  SSLCertificateKeyFile KEY
  AllowEncodedSlashes NoDecode
  ProxyRequests Off
  ProxyPreserveHost On
  RequestHeader set X-Forwarded-Proto \"https\"
  ProxyPass / {behind} nocanon
  ProxyPassReverse / {behind}
</VirtualHost>
"
        )
    };
    let sites: Vec<String> = listen.into_iter().zip(CONNECTOR_PORTS).map(site).collect();
    let sites = sites.concat();
    let proxy = Proxy::apache(&world.lab, &world.programs, "apache-proxy", (&sites, &certificate), &listen).await?;
    let mut site = Site { certificate, server, proxies: vec![proxy] };

    let [push, pull] = APACHE_PORTS.map(|port| format!("{PULL_HOST}:{port}"));
    let ca = site.certificate.ca.clone();
    let trusted = [(push.as_str(), ca.as_str()), (pull.as_str(), ca.as_str())];
    let registries = Registries { trusted: &trusted, ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-apache").await?;
    Stage::new(world, "apache-ports")?.ensure_docker_works(&docker, &push, &pull).await?;
    docker.stop().await?;
    let pushing = site.registry(&format!("https://{push}/"))?;
    ensure_leads_back(&pushing, pushing.base(), "by-port").await?;
    site.stop().await
}

/// The server ends TLS itself: on ports of their own, and on the main port for every host name that it is called by.
async fn no_proxy(world: &World) -> Result<()> {
    let certificate = Certificate::wildcard()?;
    let tls = json!({ "secretRef": { "name": "wildcard" } });
    let connectors = |host: &str, port: u16| json!([{ "host": host }, { "port": port, "tls": tls }]);
    let [push, pull] = TLS_PORTS;
    let objects = Objects::new(&world.upstream)
        .users(&users(&[MEMBER, STRANGER]), members_only())?
        .server("tls", json!({ "mode": "Secret", "secretRef": { "name": "wildcard" } }))
        .secret("wildcard_tls.crt", &certificate.chain)
        .secret("wildcard_tls.key", &certificate.key);
    let mut objects = project_at(objects, &connectors(PUSH_HOST, push), &connectors(PULL_HOST, pull));
    let mut own = Vec::new();
    for host in OWN_HOSTS {
        let certificate = Certificate::wildcard()?;
        let connector = json!([{ "host": host, "tlsSecretRef": { "name": host } }]);
        let name = format!("docker-{}-project", own.len());
        objects = objects
            .hosted(&name, json!({ "anonymousPull": false, "connectors": connector }))
            .secret(&format!("{host}_tls.crt"), &certificate.chain)
            .secret(&format!("{host}_tls.key"), &certificate.key);
        own.push((host, certificate));
    }
    let mut server = CacheServer::start(&world.lab, objects.setup("no-proxy")).await?;

    let main = server.listen().port();
    let pairs = [
        [(CACHE.to_string(), push), (CACHE.to_string(), pull)],
        [(PUSH_HOST.to_owned(), main), (PULL_HOST.to_owned(), main)],
    ];
    let pairs = pairs.map(|pair| pair.map(|(host, port)| format!("{host}:{port}")));
    let own: Vec<_> = own.into_iter().map(|(host, certificate)| (format!("{host}:{main}"), certificate.ca)).collect();
    let shared = pairs.as_flattened().iter().map(|name| (name.as_str(), certificate.ca.as_str()));
    let trusted: Vec<_> = shared.chain(own.iter().map(|(name, ca)| (name.as_str(), ca.as_str()))).collect();
    let registries = Registries { trusted: &trusted, ..Registries::default() };
    let mut docker = registries.docker(&world.lab, &world.programs, "docker-https").await?;
    let stage = Stage::new(world, "no-proxy")?;
    for [push, pull] in &pairs {
        stage.ensure_docker_works(&docker, push, pull).await.with_context(|| format!("{push}, {pull}"))?;
        stage.client(&docker, MEMBER)?.remove(&format!("{pull}/team/app:1")).await?;
    }
    for (registry, _) in &own {
        stage.ensure_docker_pushes(&docker, registry).await.with_context(|| registry.clone())?;
    }
    docker.stop().await?;
    ensure_own_certificates(&own, server.listen()).await?;
    let pushing = Registry::trusting(&format!("https://{}/", pairs[1][0]), &certificate.ca, server.listen())?;
    ensure_leads_back(&pushing, pushing.base(), "by-tls").await?;
    server.stop().await
}

/// Each of these registries shows a certificate of its own authority, and of no other one's.
async fn ensure_own_certificates(registries: &[(String, String)], address: SocketAddr) -> Result<()> {
    for (registry, own) in registries {
        for (_, ca) in registries {
            match Registry::trusting(&format!("https://{registry}/"), ca, address)?.get("v2/").await {
                Ok(answer) if ca == own => answer.ensure(401)?,
                Ok(_) => bail!("{registry} shows another one's certificate"),
                // The authorities have one name, so that it takes the signature to tell them apart.
                Err(error) => {
                    ensure!(ca != own && format!("{error:?}").contains("BadSignature"), "{registry}: {error:?}");
                }
            }
        }
    }
    Ok(())
}

/// nginx hides a path; another nginx has Apache behind it, which adds its own headers to those that are there.
async fn hidden_path_and_chain(world: &World) -> Result<()> {
    let certificate = Certificate::wildcard()?;
    let server = start(world, "nginx-prefix", &users(&[MEMBER, STRANGER]), members_only()).await?;
    let [outer, inner] = CHAIN_PORTS.map(|port| SocketAddr::from((CACHE, port)));
    let hiding = SocketAddr::from((CACHE, 443));
    let [connector, _] = CONNECTOR_PORTS;
    let sites = format!(
        "  server {{
    listen {hiding} ssl;
    server_name {OUTER_HOST};
    ssl_certificate CERTIFICATE;
    ssl_certificate_key KEY;
    location /images/ {{{HEADERS}
      proxy_set_header X-Forwarded-Prefix /images;
      proxy_pass http://{CACHE}:{connector}/;
    }}
  }}
  server {{
    listen {outer} ssl;
    server_name {OUTER_HOST};
    ssl_certificate CERTIFICATE;
    ssl_certificate_key KEY;{HEADERS}
    proxy_set_header X-Forwarded-Host $http_host;
    location / {{ proxy_pass http://{inner}; }}
  }}
"
    );
    let chained = format!(
        "<VirtualHost {inner}>
  AllowEncodedSlashes NoDecode
  ProxyRequests Off
  ProxyPass / http://{CACHE}:{connector}/ nocanon
</VirtualHost>
"
    );
    let World { lab, programs, .. } = world;
    let proxies = vec![
        Proxy::apache(lab, programs, "chain-inner", (&chained, &certificate), &[inner]).await?,
        Proxy::nginx(lab, programs, "chain-outer", (&sites, &certificate), &[hiding, outer]).await?,
    ];
    let mut site = Site { certificate, server, proxies };
    let bases = [format!("https://{OUTER_HOST}/images/"), format!("https://{OUTER_HOST}:{}/", outer.port())];
    for (base, image) in bases.iter().zip(["hidden", "chained"]) {
        let registry = site.registry(base)?;
        ensure_leads_back(&registry, registry.base(), image).await.with_context(|| base.clone())?;
    }
    site.stop().await
}

/// `Location` and `Link` of the hosted repository behind `registry` lead back to where the client asked, and the realm to
/// the same server, whose paths begin at `root`.
async fn ensure_leads_back(registry: &Registry, root: &Url, image: &str) -> Result<()> {
    let refused = registry.get(&format!("v2/{image}/manifests/1")).await?;
    refused.ensure(401)?;
    let challenge = refused.header("www-authenticate")?;
    let realm = format!("realm=\"{}\"", root.join("v2/token")?);
    ensure!(challenge.contains(&realm), "expected {realm} in {challenge}");

    let pusher = registry.login(MEMBER, &password(MEMBER));
    let token = pusher.token(challenge).await?;
    let with_token = registry.request(Method::GET, &format!("v2/{image}/manifests/1"))?.bearer_auth(token);
    registry.send(with_token).await?.ensure(404).context("with a token, nothing was pushed yet")?;

    let content = OneFile::new(image.as_bytes())?;
    let begun = pusher.post_upload(image, "").await?;
    begun.ensure(202)?;
    ensure_below(registry, &begun, "location", begun.header("location")?)?;
    for tag in ["1", "2"] {
        pusher.push(image, tag, &content).await?;
    }
    let put = pusher.put_blob(image, b"one more").await?;
    put.ensure(201)?;
    ensure_below(registry, &put, "location", put.header("location")?)?;

    let page = pusher.get(&format!("v2/{image}/tags/list?n=1")).await?;
    page.ensure(200)?;
    let link = page.header("link")?;
    let target = link.trim_start_matches('<').split('>').next().unwrap_or_default();
    let next = ensure_below(registry, &page, "link", target)?;
    let next = pusher.get(next.as_str()).await?;
    next.ensure(200)?;
    ensure!(next.json()?["tags"] == json!(["2"]), "the second page: {}", next.said());
    pusher.pull(image, "2", &content).await
}

/// The URL that a header of an answer names, if it lies below the registry's base.
fn ensure_below(registry: &Registry, answer: &Answer, header: &str, named: &str) -> Result<Url> {
    let target = answer.url.join(named)?;
    let base = format!("{}v2/", registry.base());
    ensure!(target.as_str().starts_with(&base), "{header} {named:?} leads to {target}, not below {base}");
    Ok(target)
}

/// What the clients of one case push and pull.
struct Stage {
    folder: PathBuf,
    name: &'static str,
    tar: PathBuf,
}

impl Stage {
    fn new(world: &World, name: &'static str) -> Result<Self> {
        let folder = world.lab.dir(&format!("clients/{name}"))?;
        let tar = folder.join("image.tar");
        // Large enough to be sent in many pieces.
        let noise: Vec<u8> =
            (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(&tar, OneFile::new(&noise)?.tar).context("cannot write an image to import")?;
        let upstream = OneFile::new(name.as_bytes())?;
        put_upstream(world.upstream.content(), &format!("library/{name}"), "latest", &upstream);
        Ok(Self { folder, name, tar })
    }

    fn client<'d>(&self, docker: &'d Docker, user: &str) -> Result<DockerClient<'d>> {
        DockerClient::new(docker, &self.folder.join("docker"), user)
    }

    /// Logs in at both, pushes to the hosted repository, pulls that and an image of Docker Hub from the group and finds
    /// both by a search; a stranger and someone with a wrong password do not.
    async fn ensure_docker_works(&self, docker: &Docker, push: &str, pull: &str) -> Result<()> {
        let alice = self.client(docker, MEMBER)?;
        let (mallory, nobody) = (self.client(docker, STRANGER)?, self.client(docker, "nobody")?);
        let (pushed, seen) = (format!("{push}/team/app:1"), format!("{pull}/team/app:1"));
        let of_hub = format!("{pull}/library/{}:latest", self.name);
        alice.import(&self.tar, &pushed).await?;
        ensure_refused(&nobody, &["push", "--quiet", &pushed]).await?;
        ensure_refused(&nobody, &["login", "--username", MEMBER, "--password", "wrong", push]).await?;
        for registry in [push, pull] {
            alice.login(registry, MEMBER, &password(MEMBER)).await?;
            mallory.login(registry, STRANGER, &password(STRANGER)).await?;
        }
        ensure_refused(&mallory, &["push", "--quiet", &pushed]).await?;
        alice.push(&pushed).await?;
        // Its layers go with its last name, so that they are fetched.
        alice.remove(&pushed).await?;
        for image in [&seen, &of_hub, &pushed] {
            ensure_refused(&nobody, &["pull", "--quiet", image]).await?;
            ensure_refused(&mallory, &["pull", "--quiet", image]).await?;
            alice.pull_anew(image).await?;
            alice.remove(image).await?;
        }
        for image in ["team/app", self.name] {
            let term = format!("{pull}/{image}");
            let search = ["search", "--format", "{{.Name}}", &term];
            let found = alice.run(&search).await?;
            ensure!(found.lines().any(|line| line.ends_with(image)), "docker search {term} found {found:?}");
            ensure_refused(&nobody, &search).await?;
        }
        alice.import(&self.tar, &seen).await?;
        let said = ensure_refused(&alice, &["push", "--quiet", &seen]).await?;
        ensure!(said.contains("is a group without pushto: it takes no pushes"), "docker push {seen}: {said}");
        Ok(())
    }

    /// Logs in, pushes, and pulls what was pushed.
    async fn ensure_docker_pushes(&self, docker: &Docker, registry: &str) -> Result<()> {
        let alice = self.client(docker, MEMBER)?;
        let image = format!("{registry}/team/own:1");
        alice.login(registry, MEMBER, &password(MEMBER)).await?;
        alice.import(&self.tar, &image).await?;
        alice.push(&image).await?;
        alice.pull_anew(&image).await?;
        alice.remove(&image).await
    }

    /// From the group to a second name in the hosted repository, and from there to a folder.
    fn ensure_skopeo_works(&self, ca: &str) -> Result<()> {
        let certificates = self.certificates(ca)?;
        let login = format!("{MEMBER}:{}", password(MEMBER));
        let copied = format!("docker://{PUSH_HOST}/team/copied:1");
        let folder = format!("dir:{}", self.folder.join("skopeo").display());
        for (from, to) in [
            (format!("docker://{PULL_HOST}/library/{}:latest", self.name), copied.clone()),
            (format!("docker://{PULL_HOST}/team/app:1"), format!("docker://{PUSH_HOST}/team/again:1")),
            (copied, folder),
        ] {
            let mut words = vec!["--insecure-policy", "copy", "--quiet", "--src-cert-dir", &certificates];
            words.extend(["--src-creds", &login, "--dest-cert-dir", &certificates]);
            if to.starts_with("docker:") {
                words.extend(["--dest-creds", &login]);
            }
            run("skopeo", words.into_iter().chain([from.as_str(), to.as_str()]))?;
        }
        Ok(())
    }

    /// Pulls from the group and pushes under another name to the hosted repository.
    fn ensure_buildah_works(&self, ca: &str) -> Result<()> {
        let certificates = self.certificates(ca)?;
        let login = format!("{MEMBER}:{}", password(MEMBER));
        let (root, state) = (self.folder.join("buildah/root"), self.folder.join("buildah/run"));
        let (root, state) = (root.display().to_string(), state.display().to_string());
        let buildah = |words: &[&str]| {
            let first = ["--storage-driver", "vfs", "--root", &root, "--runroot", &state];
            run("buildah", first.iter().chain(words))
        };
        let image = format!("{PULL_HOST}/team/app:1");
        buildah(&["pull", "--quiet", "--cert-dir", &certificates, "--creds", &login, &image])?;
        let target = format!("docker://{PUSH_HOST}/team/built:1");
        buildah(&["push", "--quiet", "--cert-dir", &certificates, "--creds", &login, &image, &target])
    }

    fn certificates(&self, ca: &str) -> Result<String> {
        let folder = self.folder.join("certificates");
        std::fs::create_dir_all(&folder).context("cannot make a folder")?;
        std::fs::write(folder.join("ca.crt"), ca).context("cannot write an authority")?;
        Ok(folder.display().to_string())
    }
}

/// A `docker` command must fail because the registry says no, not for another reason; what it printed, in lower case.
pub async fn ensure_refused(client: &DockerClient<'_>, words: &[&str]) -> Result<String> {
    let Err(error) = client.run(words).await else {
        bail!("`docker {}` was not refused", words.join(" "));
    };
    let said = error.to_string().to_lowercase();
    let refusals = [
        "denied",
        "unauthorized",
        "authentication required",
        "not found",
        "no basic auth",
        "unsupported",
        "401",
        "405",
    ];
    ensure!(refusals.iter().any(|word| said.contains(word)), "`docker {}` failed otherwise: {said}", words.join(" "));
    Ok(said)
}
