//! From objects to settings: what takes more than one object, or a Secret, to judge. Pure.
//! May import the other files of `settings` but `sources`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crds::{
    HostedRepositorySpec, RegistryMirrorSpec, RepositoryGroupSpec,
    cache_server::{AuthSpec, ClientLimits, TlsMode},
    names::{RepositoryName, SecretRef},
    registry_mirror::IndexType,
    repository::Connector,
};
use ipnet::IpNet;
use url::Url;

use super::{
    AllowedHost, CertifiedKeyPem, ConnectorSettings, GroupSettings, HostedSettings, IndexSettings, MainPort,
    MirrorSettings, RegistryName, ServerSettings, Settings, UpstreamSettings, UrlError,
    hosts::{external_url, proxy_url, upstream_url},
    mistake::{Mistakes, Place},
    objects::{ISSUER, Object, Objects, REPOSITORIES, SERVER},
    secrets::{Secrets, authorities_of},
};
use crate::access::{Auth, Permissions, service_accounts::Issuer};

/// Where Docker Hub is searched.
const DOCKER_HUB_INDEX: &str = "https://index.docker.io";

/// The settings that the objects without a mistake describe, and the mistakes of all.
pub(super) fn settings(
    objects: &Objects,
    secrets: &Secrets,
    main_port: Option<u16>,
    mut mistakes: Mistakes,
) -> Settings {
    only_one_server(objects, &mut mistakes);
    names_occur_once(objects, &mut mistakes);
    servers_agree(objects, &mut mistakes);
    connectors_occur_once(objects, main_port, &mut mistakes);

    let server = server(objects, secrets, &mut mistakes);
    connectors_fit_the_server(objects, &server.main_port, &mut mistakes);
    let mut made = Vec::new();
    let mut claims = BTreeMap::new();
    for object in &objects.mirrors {
        if let Some(mirror) = mirror(object, secrets, &mut mistakes) {
            claim(&mut claims, object, &mirror.registry, &mut mistakes);
            made.push((&object.place, mirror));
        }
    }
    let hosted: Vec<_> = each(&objects.hosted, |object| hosted(object, secrets, &mut mistakes));
    let groups: Vec<_> = each(&objects.groups, |object| group(object, secrets, &mut mistakes));
    let mirrors = good(made, &mistakes);
    let (hosted, groups) = (good(hosted, &mistakes), good(groups, &mistakes));
    let servers = objects.servers.iter().map(|server| &server.place).filter(|place| !mistakes.concern(place));
    let places = mirrors.iter().map(|(place, _)| *place);
    let places = places.chain(hosted.iter().map(|(place, _)| *place)).chain(groups.iter().map(|(place, _)| *place));
    let loaded = servers.chain(places).filter_map(|place| place.object.clone()).collect();
    let mut settings = Settings {
        server,
        mirrors: without_places(mirrors),
        hosted: without_places(hosted),
        groups: without_places(groups),
        objects: loaded,
        mistakes,
    };
    settings.sort();
    settings
}

fn each<'a, S, T>(objects: &'a [Object<S>], mut make: impl FnMut(&'a Object<S>) -> Option<T>) -> Vec<(&'a Place, T)> {
    objects.iter().filter_map(|object| Some((&object.place, make(object)?))).collect()
}

/// Without those in which a mistake was found since they were made.
fn good<'a, T>(mut made: Vec<(&'a Place, T)>, mistakes: &Mistakes) -> Vec<(&'a Place, T)> {
    made.retain(|(place, _)| !mistakes.concern(place));
    made
}

fn without_places<T>(made: Vec<(&Place, T)>) -> Vec<T> {
    made.into_iter().map(|(_, made)| made).collect()
}

fn only_one_server(objects: &Objects, mistakes: &mut Mistakes) {
    for extra in objects.servers.iter().skip(1) {
        mistakes.note(&extra.place, "", "there must be at most one CacheServer in a configuration; remove all but one");
    }
}

fn names_occur_once(objects: &Objects, mistakes: &mut Mistakes) {
    let mut seen: BTreeMap<&str, &Place> = BTreeMap::new();
    for repository in objects.repositories() {
        if let Some(first) = seen.get(repository.name) {
            let message = format!(
                "the name {} is taken ({}, document {}); choose another one",
                repository.name,
                first.file,
                first.document.unwrap_or_default()
            );
            mistakes.note(repository.place, "metadata.name", message);
        } else {
            seen.insert(repository.name, repository.place);
        }
    }
}

/// A repository that names its server must mean the one of this configuration.
fn servers_agree(objects: &Objects, mistakes: &mut Mistakes) {
    let Some(server) = objects.servers.first() else { return };
    for repository in objects.repositories() {
        let Some(named) = repository.server.filter(|named| *named != server.name) else { continue };
        let message = format!(
            "must be {}, the CacheServer of this configuration, got {named:?}; correct or remove it",
            server.name
        );
        mistakes.note(repository.place, "spec.server", message);
    }
}

fn connectors_occur_once(objects: &Objects, main_port: Option<u16>, mistakes: &mut Mistakes) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for repository in objects.repositories() {
        for (index, connector) in repository.connectors.iter().enumerate() {
            let field = format!("spec.connectors[{index}]");
            if connector.port.is_some() && connector.port == main_port {
                mistakes.note(
                    repository.place,
                    &format!("{field}.port"),
                    "must not be the port of --listen; choose another one",
                );
            }
            let Some(key) = connector_key(connector) else { continue };
            if let Some(holder) = seen.get(&key) {
                let message = format!("{key} is taken by {holder}; choose another one");
                mistakes.note(repository.place, &field, message);
            } else {
                seen.insert(key, format!("the {} {}", repository.kind, repository.name));
            }
        }
    }
}

/// A certificate of a host name is shown in a TLS handshake of the main port, so there must be one.
fn connectors_fit_the_server(objects: &Objects, main_port: &MainPort, mistakes: &mut Mistakes) {
    for repository in objects.repositories() {
        for (index, connector) in repository.connectors.iter().enumerate() {
            if connector.tls_secret_ref.is_some() && *main_port == MainPort::Plain {
                let field = format!("spec.connectors[{index}].tlsSecretRef");
                let message = "must not be set while the main port is plain HTTP, which shows no certificates; set spec.tls of the CacheServer, or remove it";
                mistakes.note(repository.place, &field, message);
            }
            if connector.node_port.is_some() {
                let field = format!("spec.connectors[{index}].nodePort");
                let message = "only works in a cluster, where the operator runs the Service; remove it";
                mistakes.note(repository.place, &field, message);
            }
        }
    }
}

fn connector_key(connector: &Connector) -> Option<String> {
    let port = connector.port.map(|port| format!("port {port}"));
    port.or_else(|| Some(format!("host {}", connector.host.as_ref()?)))
}

fn claim(
    claims: &mut BTreeMap<RegistryName, String>,
    object: &Object<RegistryMirrorSpec>,
    registry: &RegistryName,
    mistakes: &mut Mistakes,
) {
    let Some(holder) = claims.get(registry) else {
        claims.insert(registry.clone(), object.name.clone());
        return;
    };
    let message = format!(
        "{registry} is already what the mirror {holder} stands for; set upstream.registry to another name on one of them"
    );
    mistakes.note(&object.place, "spec.upstream.registry", message);
}

/// What of the server is right; where its object has a mistake, the rest is as if nothing had been said, but TLS is never left
/// off by mistake.
fn server(objects: &Objects, secrets: &Secrets, mistakes: &mut Mistakes) -> ServerSettings {
    let Some(Object { place, name, spec, .. }) = objects.servers.first() else {
        let unreadable = objects.named.iter().find(|object| object.kind == SERVER);
        return ServerSettings {
            name: unreadable.map_or_else(|| "default".to_owned(), |object| object.name.clone()),
            max_size: None,
            default_repository: None,
            limits: ClientLimits::default(),
            auth: Arc::default(),
            external_url: None,
            trusted_proxies: Vec::new(),
            main_port: if unreadable.is_some() { MainPort::Closed } else { MainPort::Plain },
        };
    };
    let default_repository = spec.default_repository.as_ref().and_then(|text| {
        let parsed: RepositoryName = mistakes.keep(place, "spec.defaultRepository", text.parse())?;
        // A repository with a mistake of its own is there all the same.
        let known: Vec<&str> = objects
            .named
            .iter()
            .filter(|object| REPOSITORIES.contains(&object.kind.as_str()))
            .map(|object| object.name.as_str())
            .collect();
        if !known.contains(&parsed.as_str()) {
            let message =
                format!("must be the name of a repository of this configuration ({}), got {text:?}", known.join(", "));
            mistakes.note(place, "spec.defaultRepository", message);
        }
        Some(parsed)
    });
    let secret = spec.tls.secret_ref.as_ref().filter(|_| spec.tls.mode == Some(TlsMode::Secret));
    ServerSettings {
        name: name.clone(),
        max_size: spec.max_size.map(crds::names::ByteSize::as_u64),
        default_repository,
        limits: spec.limits.clone(),
        auth: Arc::new(auth(spec.auth.as_ref(), place, objects, secrets, mistakes)),
        external_url: spec
            .external_url
            .as_ref()
            .and_then(|text| mistakes.keep(place, "spec.externalURL", external_url(text))),
        trusted_proxies: trusted_proxies(&spec.trusted_proxies, place, mistakes),
        main_port: match certificate(secret, place, "spec.tls.secretRef", secrets, mistakes) {
            Some(Some(certificate)) => MainPort::Tls(certificate),
            Some(None) => MainPort::Plain,
            None => MainPort::Closed,
        },
    }
}

/// What of it is right. With a mistake there are fewer who can log in, never more.
fn auth(spec: Option<&AuthSpec>, place: &Place, objects: &Objects, secrets: &Secrets, mistakes: &mut Mistakes) -> Auth {
    let Some(spec) = spec else { return Auth::default() };
    let users = spec
        .htpasswd_secret_ref
        .as_ref()
        .and_then(|secret| mistakes.keep(place, "spec.auth.htpasswdSecretRef", secrets.users(&secret.name)));
    let issuer = spec.service_accounts.then(|| issuer(place, objects, mistakes)).flatten();
    Auth { users, issuer, permissions: Permissions::new(&spec.permissions) }
}

fn issuer(place: &Place, objects: &Objects, mistakes: &mut Mistakes) -> Option<Issuer> {
    let field = "spec.auth.serviceAccounts";
    if let Some(text) = &objects.issuer {
        return mistakes.keep(place, field, Issuer::parse(text));
    }
    let message = format!(
        "only works in a cluster, where the operator writes {ISSUER} into the folder of the configuration; remove it"
    );
    mistakes.note(place, field, message);
    None
}

fn trusted_proxies(texts: &[String], place: &Place, mistakes: &mut Mistakes) -> Vec<IpNet> {
    let read = |text: &str| text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let mut networks = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match read(text) {
            Some(network) => networks.push(network),
            None => mistakes.note(
                place,
                &format!("spec.trustedProxies[{index}]"),
                format!("must be a network as 10.0.0.0/8, or an address, got {text:?}"),
            ),
        }
    }
    networks
}

/// Checks everything before it gives up, so that each mistake of the object is noted.
fn mirror(object: &Object<RegistryMirrorSpec>, secrets: &Secrets, mistakes: &mut Mistakes) -> Option<MirrorSettings> {
    let Object { place, name, spec, .. } = object;
    let name = mistakes.keep(place, "metadata.name", name.parse());
    let connectors = connectors(place, &spec.connectors, secrets, mistakes);
    let upstream = upstream(object, secrets, mistakes);
    let custom = spec.upstream.index.as_ref().and_then(|index| index.url.as_ref());
    let custom = optional(custom, |text| mistakes.keep(place, "spec.upstream.index.url", upstream_url(text)));
    let (registry, upstream) = upstream?;
    let mut mirror = MirrorSettings {
        name: name?,
        online: spec.online,
        registry,
        upstream,
        anonymous_pull: spec.anonymous_pull.unwrap_or(true),
        freshness: spec.freshness.clone(),
        retention: spec.retention.clone(),
        index: None,
        connectors: connectors?,
    };
    let custom = custom?;
    if spec.v1_search {
        let index = index(&mirror, spec.upstream.index.as_ref().map(|index| index.type_), custom);
        mirror.index = Some(mistakes.keep(place, "spec.upstream.index", index)?);
    }
    Some(mirror)
}

fn index(mirror: &MirrorSettings, of: Option<IndexType>, custom: Option<Url>) -> Result<IndexSettings, UrlError> {
    let default = if mirror.is_docker_hub() { IndexType::DockerHub } else { IndexType::Registry };
    match (of.unwrap_or(default), custom) {
        (_, Some(url)) => Ok(IndexSettings { url, has_catalog: false }),
        (IndexType::DockerHub, None) => Ok(IndexSettings { url: upstream_url(DOCKER_HUB_INDEX)?, has_catalog: false }),
        // CEL refused one without a URL before.
        (IndexType::Registry | IndexType::Custom, None) => {
            Ok(IndexSettings { url: mirror.upstream.url.clone(), has_catalog: true })
        }
    }
}

fn hosted(object: &Object<HostedRepositorySpec>, secrets: &Secrets, mistakes: &mut Mistakes) -> Option<HostedSettings> {
    let Object { place, name, spec, .. } = object;
    let name = mistakes.keep(place, "metadata.name", name.parse());
    let connectors = connectors(place, &spec.connectors, secrets, mistakes);
    let serves_for: Vec<Option<RegistryName>> = spec
        .serves_for
        .iter()
        .enumerate()
        .map(|(index, text)| mistakes.keep(place, &format!("spec.servesFor[{index}]"), text.parse()))
        .collect();
    Some(HostedSettings {
        name: name?,
        online: spec.online,
        anonymous_pull: spec.anonymous_pull,
        write_policy: spec.write_policy,
        immutable_tags: spec.immutable_tags.clone(),
        sparse_images: spec.sparse_images,
        reserved_names: spec.reserved_names.clone(),
        serves_for: serves_for.into_iter().collect::<Option<_>>()?,
        retention: spec.retention.clone(),
        connectors: connectors?,
    })
}

/// Members that are not there are no mistake of the group: it serves what the others have.
fn group(object: &Object<RepositoryGroupSpec>, secrets: &Secrets, mistakes: &mut Mistakes) -> Option<GroupSettings> {
    let Object { place, name, spec, .. } = object;
    let name = mistakes.keep(place, "metadata.name", name.parse());
    let connectors = connectors(place, &spec.connectors, secrets, mistakes);
    let members: Vec<Option<RepositoryName>> = spec
        .members
        .iter()
        .enumerate()
        .map(|(index, text)| mistakes.keep(place, &format!("spec.members[{index}]"), text.parse()))
        .collect();
    let push_to = optional(spec.push_to.as_ref(), |text| mistakes.keep(place, "spec.pushTo", text.parse()));
    Some(GroupSettings {
        name: name?,
        online: spec.online,
        anonymous_pull: spec.anonymous_pull,
        members: members.into_iter().collect::<Option<_>>()?,
        v1_search: spec.v1_search,
        push_to: push_to?,
        connectors: connectors?,
    })
}

fn upstream(
    object: &Object<RegistryMirrorSpec>,
    secrets: &Secrets,
    mistakes: &mut Mistakes,
) -> Option<(RegistryName, UpstreamSettings)> {
    let (place, spec) = (&object.place, &object.spec.upstream);
    let url = mistakes.keep(place, "spec.upstream.url", upstream_url(&spec.url));
    let host = url.as_ref().and_then(|url| mistakes.keep(place, "spec.upstream.url", RegistryName::of_url(url)));
    let registry = match &spec.registry {
        Some(text) => mistakes.keep(place, "spec.upstream.registry", text.parse()),
        None => host.clone(),
    };
    let proxy =
        optional(spec.proxy_url.as_ref(), |text| mistakes.keep(place, "spec.upstream.proxyURL", proxy_url(text)));
    let trusted_pem = optional(spec.ca_bundle.as_ref(), |pem| {
        mistakes.keep(place, "spec.upstream.caBundle", authorities_of(pem.as_bytes()))
    });
    let hosts: Vec<RegistryName> = registry.iter().chain(&host).cloned().collect();
    let credentials = optional(spec.credentials_secret_ref.as_ref(), |secret| {
        mistakes.keep(place, "spec.upstream.credentialsSecretRef", secrets.credentials(&secret.name, &hosts))
    });
    let client_identity = certificate(
        spec.client_certificate_secret_ref.as_ref(),
        place,
        "spec.upstream.clientCertificateSecretRef",
        secrets,
        mistakes,
    );
    let token_hosts = allowed_hosts(&spec.token_hosts, place, "spec.upstream.tokenHosts", mistakes);
    let redirect_hosts = allowed_hosts(&spec.redirect_hosts, place, "spec.upstream.redirectHosts", mistakes);
    let upstream = UpstreamSettings {
        url: url?,
        credentials: credentials?,
        trusted_pem: trusted_pem?,
        client_identity: client_identity?,
        skip_verify: spec.insecure_skip_verify,
        proxy: proxy?,
        token_hosts: token_hosts?,
        redirect_hosts: redirect_hosts?,
        limits: spec.limits.clone(),
        breaker: spec.breaker.clone(),
    };
    Some((registry?, upstream))
}

/// `Some(None)` where nothing was asked for, `None` where what was asked for is wrong.
#[expect(clippy::option_option, reason = "absent and wrong are two things here")]
fn optional<T, U>(given: Option<&T>, check: impl FnOnce(&T) -> Option<U>) -> Option<Option<U>> {
    match given {
        Some(value) => check(value).map(Some),
        None => Some(None),
    }
}

#[expect(clippy::option_option, reason = "absent and wrong are two things here")]
fn certificate(
    secret: Option<&SecretRef>,
    place: &Place,
    field: &str,
    secrets: &Secrets,
    mistakes: &mut Mistakes,
) -> Option<Option<CertifiedKeyPem>> {
    optional(secret, |secret| mistakes.keep(place, field, secrets.certified_key(&secret.name)))
}

fn allowed_hosts(texts: &[String], place: &Place, field: &str, mistakes: &mut Mistakes) -> Option<Vec<AllowedHost>> {
    let parsed: Vec<Option<AllowedHost>> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| mistakes.keep(place, &format!("{field}[{index}]"), text.parse()))
        .collect();
    parsed.into_iter().collect()
}

fn connectors(
    place: &Place,
    connectors: &[Connector],
    secrets: &Secrets,
    mistakes: &mut Mistakes,
) -> Option<Vec<ConnectorSettings>> {
    let checked: Vec<Option<ConnectorSettings>> = connectors
        .iter()
        .enumerate()
        .map(|(index, connector)| match (connector.port, &connector.host) {
            (Some(port), _) => {
                let secret = connector.tls.as_ref().map(|tls| &tls.secret_ref);
                let field = format!("spec.connectors[{index}].tls.secretRef");
                let tls = certificate(secret, place, &field, secrets, mistakes)?;
                Some(ConnectorSettings::Port { port, tls })
            }
            (None, Some(host)) => {
                let field = format!("spec.connectors[{index}].tlsSecretRef");
                let tls = certificate(connector.tls_secret_ref.as_ref(), place, &field, secrets, mistakes)?;
                Some(ConnectorSettings::Host { host: host.clone(), tls })
            }
            // CEL refused it before.
            (None, None) => None,
        })
        .collect();
    checked.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;
    use crate::settings::secrets::SecretBytes;

    #[expect(clippy::needless_pass_by_value, reason = "callers write the value in place")]
    fn object(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
    }

    fn mirror(name: &str) -> Value {
        object("RegistryMirror", name, json!({"upstream": {"url": format!("https://{name}.example.com")}}))
    }

    fn with(mut mirror: Value, pointer: &str, value: Value) -> Value {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        mirror.pointer_mut(parent).unwrap()[key] = value;
        mirror
    }

    fn load_with(objects: &[Value], files: &[(&str, String)]) -> Result<Settings, String> {
        let mut mistakes = Mistakes::default();
        let mut read = Objects::default();
        let text: Vec<String> = objects.iter().map(ToString::to_string).collect();
        read.read("test.yaml", text.join("\n---\n").as_bytes(), &mut mistakes);
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), SecretBytes(text.clone().into_bytes())));
        let made = settings(&read, &Secrets(Some(files.collect())), Some(5000), mistakes);
        if made.mistakes.as_slice().is_empty() { Ok(made) } else { Err(made.mistakes.to_string()) }
    }

    fn load(objects: &[Value]) -> Result<Settings, String> {
        load_with(objects, &[])
    }

    #[test]
    fn official_images_of_docker_hub_live_under_library() {
        let hub = || object("RegistryMirror", "hub", json!({"upstream": {"url": "https://registry-1.docker.io"}}));
        let other = with(hub(), "/spec/upstream/registry", json!("other.docker.io"));
        let image =
            |mirror: Value, name: &str| load(&[mirror]).unwrap().mirrors[0].image(&name.parse().unwrap()).to_string();
        assert_eq!(image(hub(), "nginx"), "library/nginx");
        assert_eq!(image(other, "nginx"), "library/nginx");
        assert_eq!(image(hub(), "library/nginx"), "library/nginx");
        assert_eq!(image(hub(), "me/nginx"), "me/nginx");
        assert_eq!(image(mirror("ghcr"), "nginx"), "nginx");
        let long = "a".repeat(250);
        assert_eq!(image(hub(), &long), long);
    }

    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuM6pLkUz4oLKq2AGVhoDbWBKKDdDKSC2";

    fn server(spec: Value) -> Value {
        object("CacheServer", "default", spec)
    }

    #[test]
    fn users_and_their_permissions_are_read() {
        let permission = json!({"users": ["alice"], "repositories": ["quay"], "actions": ["Pull"]});
        let spec = json!({
            "auth": {"htpasswdSecretRef": {"name": "users"}, "permissions": [permission]},
            "externalURL": "https://Registry.example.com:443/",
            "trustedProxies": ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"],
        });
        for key in ["users_htpasswd", "users_auth"] {
            let files = [(key, format!("alice:{HASH}\n"))];
            let settings = load_with(&[server(spec.clone()), mirror("quay")], &files).unwrap().server;
            assert!(settings.auth.has_logins() && settings.auth.users.as_ref().unwrap().contains("alice"), "{key}");
            let origin = settings.external_url.unwrap().ascii_serialization();
            assert_eq!(origin, "https://registry.example.com");
            assert_eq!(settings.trusted_proxies.len(), 3);
        }
        let silent = load(&[server(json!({})), mirror("quay")]).unwrap();
        assert!(!silent.server.auth.has_logins() && silent.mirrors[0].anonymous_pull);
        let closed = load(&[with(mirror("quay"), "/spec/anonymousPull", json!(false))]).unwrap();
        assert!(!closed.mirrors[0].anonymous_pull);
    }

    #[test]
    fn mistakes_of_logins_are_said_without_what_is_secret() {
        let users = || json!({"auth": {"htpasswdSecretRef": {"name": "users"}}});
        for (spec, files, words) in [
            (users(), &[][..], "users_htpasswd or users_auth"),
            (users(), &[("users_htpasswd", "alice:hunter2".to_owned())], "line 1 must have a bcrypt hash"),
            (users(), &[("users_htpasswd", "\n".to_owned())], "users_htpasswd must not be empty"),
            (json!({"auth": {"serviceAccounts": true}}), &[], "spec.auth.serviceAccounts: only works in a cluster"),
            (json!({"trustedProxies": ["10.0.0.0/33"]}), &[], "spec.trustedProxies[0]: must be a network"),
            (json!({"externalURL": "https://a b/"}), &[], "spec.externalURL: must be a URL"),
        ] {
            let message = load_with(&[server(spec), mirror("quay")], files).unwrap_err();
            assert!(message.contains(words) && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = load(&[mirror("quay")]).unwrap();
        assert_eq!(settings.server.main_port, MainPort::Plain);
        let quay = &settings.mirrors[0];
        assert_eq!(quay.registry.as_str(), "quay.example.com");
        assert!(quay.online && quay.upstream.credentials.is_none() && quay.connectors.is_empty());
        assert_eq!(quay.freshness.tags.to_string(), "5m");
        assert_eq!(quay.upstream.limits.header.to_string(), "10s");
        assert_eq!(settings.server.name, "default");
        assert_eq!(settings.server.limits, ClientLimits::default());
    }

    #[test]
    fn two_mirrors_of_one_host_may_have_different_credentials() {
        let url = json!("https://registry-1.docker.io");
        let team = |name: &str| {
            let spoiled = with(mirror(name), "/spec/upstream/url", url.clone());
            let spoiled = with(spoiled, "/spec/upstream/credentialsSecretRef", json!({"name": name}));
            with(spoiled, "/spec/anonymousPull", json!(true))
        };
        let files: Vec<(&str, String)> =
            [("a_username", "a"), ("a_password", "x"), ("b_username", "b"), ("b_password", "x")]
                .map(|(name, text)| (name, text.to_owned()))
                .into();
        let refused = load_with(&[team("a"), team("b")], &files).unwrap_err();
        assert!(
            refused
                .contains("docker.io is already what the mirror a stands for; set upstream.registry to another name"),
            "{refused}"
        );

        let b = with(team("b"), "/spec/upstream/registry", json!("b.docker.io"));
        let settings = load_with(&[team("a"), b], &files).unwrap();
        assert_ne!(settings.mirrors[0].identity(), settings.mirrors[1].identity());
    }

    #[test]
    fn an_identity_changes_with_the_user_and_not_with_the_password() {
        let spec = with(
            with(mirror("a"), "/spec/upstream/credentialsSecretRef", json!({"name": "s"})),
            "/spec/anonymousPull",
            json!(true),
        );
        let identity = |user: &str, password: &str| {
            let files = [("s_username", user.to_owned()), ("s_password", password.to_owned())];
            load_with(std::slice::from_ref(&spec), &files).unwrap().mirrors[0].identity()
        };
        let anonymous = load(&[mirror("a")]).unwrap().mirrors[0].identity();
        assert_eq!(identity("me", "old"), identity("me", "new"));
        assert_ne!(identity("me", "old"), identity("you", "old"));
        assert_ne!(identity("anonymous", "x"), anonymous);
        assert_eq!(anonymous.len(), 32);
        // The store has it on disk, so it must never change by itself.
        assert_eq!(anonymous, "edd033cf29a94b151ed49d7a0c6e634f");
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table: one entry per mistake")]
    fn each_mistake_is_named_with_its_place() {
        let secret = json!({"name": "s"});
        for (objects, expected) in [
            (vec![json!([1])], "test.yaml, document 1: must be an object"),
            (
                vec![object("Registry", "a", json!({}))],
                "Registry a, kind: must be RegistryMirror, HostedRepository, RepositoryGroup or CacheServer",
            ),
            (
                vec![with(mirror("a"), "/apiVersion", json!("v1"))],
                "RegistryMirror a, apiVersion: must be entrepot.dev/v1alpha1, got \"v1\"",
            ),
            (vec![with(mirror("a"), "/metadata/name", json!(""))], "metadata.name: must be set"),
            (vec![with(mirror("a"), "/metadata/name", json!("A.b"))], "RegistryMirror A.b: a repository name must be"),
            (vec![with(mirror("a"), "/metadata/name", json!("A"))], "metadata.name: a repository name must be"),
            (vec![with(mirror("a"), "/metadata/name", json!("library"))], "choose another name"),
            (vec![with(mirror("a"), "/extra", json!(1))], "RegistryMirror a, extra: unknown field"),
            (vec![with(mirror("a"), "/spec", json!({}))], "spec.upstream: must be set"),
            (
                vec![with(mirror("a"), "/spec/upstream/uri", json!(1))],
                "spec.upstream.uri: unknown field; known here are",
            ),
            (
                vec![with(mirror("a"), "/spec/freshness", json!({"tags": "5 min"}))],
                "spec.freshness.tags: a length of time must be",
            ),
            (
                vec![with(mirror("a"), "/spec/retention", json!({"maxSize": 5}))],
                "spec.retention.maxSize: must be of type string, got 5; put it in quotes",
            ),
            (
                vec![with(mirror("a"), "/spec/upstream/url", json!("ftp://a.example.com"))],
                "spec.upstream: url must start with https:// or http://",
            ),
            (
                vec![with(mirror("a"), "/spec/upstream/url", json!("https://169.254.169.254"))],
                "spec.upstream.url: must not be a link-local address",
            ),
            (vec![with(mirror("a"), "/spec/upstream/url", json!("https://a.example.com/v2/"))], "remove /v2"),
            (
                vec![with(mirror("a"), "/spec/upstream/proxyURL", json!("http://p/x"))],
                "spec.upstream.proxyURL: must be scheme, host and port only",
            ),
            (
                vec![with(mirror("a"), "/spec/upstream/tokenHosts", json!(["ok", "*.x"]))],
                "spec.upstream.tokenHosts[1]: must be a host name",
            ),
            (
                vec![with(mirror("a"), "/spec/upstream/caBundle", json!("no pem"))],
                "spec.upstream: caBundle must be certificates in PEM",
            ),
            (vec![with(mirror("a"), "/spec/upstream/caBundle", json!("-----BEGIN RSA"))], "spec.upstream.caBundle: "),
            (
                vec![with(mirror("a"), "/spec/upstream/clientCertificateSecretRef", secret.clone())],
                "add s_tls.crt and s_tls.key",
            ),
            (
                vec![with(mirror("a"), "/spec/upstream/credentialsSecretRef", secret.clone())],
                "spec: anonymousPull must be set",
            ),
            (
                vec![with(
                    with(mirror("a"), "/spec/anonymousPull", json!(true)),
                    "/spec/upstream/credentialsSecretRef",
                    secret.clone(),
                )],
                "add s_username and s_password",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{}]))],
                "spec.connectors[0]: a connector must have either port or host",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{"port": 5000}]))],
                "spec.connectors[0].port: must not be the port of --listen",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{"port": 5001}, {"port": 5001}]))],
                "spec.connectors[1]: port 5001 is taken by the RegistryMirror a",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{"port": 5001, "tls": {"secretRef": secret}}]))],
                "spec.connectors[0].tls.secretRef: the Secret",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{"host": "x", "tlsSecretRef": secret}]))],
                "spec.connectors[0].tlsSecretRef: must not be set while the main port is plain HTTP",
            ),
            (
                vec![with(mirror("a"), "/spec/connectors", json!([{"port": 5001, "nodePort": 30501}]))],
                "spec.connectors[0].nodePort: only works in a cluster",
            ),
            (
                vec![
                    with(mirror("a"), "/spec/connectors", json!([{"host": "x"}])),
                    with(mirror("b"), "/spec/connectors", json!([{"host": "x"}])),
                ],
                "document 2, RegistryMirror b, spec.connectors[0]: host x is taken by the RegistryMirror a",
            ),
            (vec![mirror("a"), mirror("a")], "metadata.name: the name a is taken (test.yaml, document 1)"),
            (
                vec![object("CacheServer", "x", json!({})), object("CacheServer", "y", json!({}))],
                "at most one CacheServer",
            ),
            (
                vec![object("CacheServer", "x", json!({"image": "i"}))],
                "spec.image: field image only works in a cluster, where the operator runs the Deployment; remove it",
            ),
            (
                vec![object("CacheServer", "x", json!({"podTemplate": {"no": "matter"}}))],
                "spec.podTemplate: field podTemplate only works in a cluster",
            ),
            (
                vec![object("CacheServer", "x", json!({"tls": {"mode": "Managed"}}))],
                "spec.tls.mode: Managed only works in a cluster, where the operator has an authority of its own; use Secret",
            ),
            (
                vec![with(mirror("a"), "/spec/nodes", json!({}))],
                "spec.nodes: field nodes only works in a cluster, where the operator writes the files of the nodes; remove it",
            ),
            (vec![object("CacheServer", "x", json!({"replicas": 2}))], "spec.replicas: unknown field"),
            (
                vec![object("CacheServer", "x", json!({"defaultRepository": "y"})), mirror("a")],
                "must be the name of a repository of this configuration (a), got \"y\"",
            ),
            (
                vec![object("CacheServer", "x", json!({"tls": {"mode": "Secret"}}))],
                "secretRef must be set when mode is Secret",
            ),
            (
                vec![object("CacheServer", "x", json!({})), with(mirror("a"), "/spec/server", json!("y"))],
                "spec.server: must be x",
            ),
        ] {
            let refused = load(&objects).expect_err(expected);
            assert!(refused.contains(expected), "wanted {expected:?} in\n{refused}");
            assert!(refused.starts_with("test.yaml, document "), "{refused}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let a = with(
            with(mirror("a"), "/spec/upstream/caBundle", json!("x")),
            "/spec/upstream/proxyURL",
            json!("nonsense"),
        );
        let b = with(mirror("b"), "/spec/oops", json!(1));
        let refused = load(&[a, b, object("CacheServer", "x", json!({"image": "y", "service": {}}))]).unwrap_err();
        assert_eq!(refused.lines().count(), 5, "{refused}");
    }

    #[test]
    fn a_server_without_mirrors_is_legal() {
        let settings = load(&[object("CacheServer", "x", json!({"tls": {"mode": "Disabled"}}))]).unwrap();
        assert!(settings.mirrors.is_empty() && settings.server.default_repository.is_none());
    }

    #[test]
    fn generations_are_kept_beside_the_settings() {
        let old = load(&[with(mirror("a"), "/metadata/generation", json!(3)), object("CacheServer", "x", json!({}))]);
        let new = load(&[with(mirror("a"), "/metadata/generation", json!(4))]).unwrap();
        let old = old.unwrap();
        let generations = |settings: &Settings| {
            settings.objects.iter().map(|object| (object.to_string(), object.generation)).collect::<Vec<_>>()
        };
        assert_eq!(generations(&old), [("CacheServer x".to_owned(), None), ("RegistryMirror a".to_owned(), Some(3))]);
        assert_eq!(generations(&new), [("RegistryMirror a".to_owned(), Some(4))]);
        assert_eq!(old.mirrors, new.mirrors, "else a mirror would forget its tokens");
    }

    #[test]
    fn status_and_further_metadata_are_passed_over() {
        let object =
            with(with(mirror("a"), "/status", json!({"conditions": []})), "/metadata/labels", json!({"x": "y"}));
        assert!(load(&[object]).is_ok());
    }

    #[test]
    fn settings_are_equal_when_nothing_changed() {
        let of = |objects: &[Value]| load(objects).unwrap().mirrors;
        assert_eq!(of(&[mirror("a"), mirror("b")]), of(&[mirror("b"), mirror("a")]));
    }
}
