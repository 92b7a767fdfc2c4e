//! Which repository a request is for: a pure table. May import `settings`, `canary` and `oci`.
//!
//! In this order: (1) a connector's port or host; (2) `/repository/<name>/v2/…`; (3) the parameter `ns`; (4) a registry as
//! first path segment; (5) a repository's name as first path segment; (6) the default repository; (7) nothing, with a list of
//! the ways in. Whatever names a registry or a repository that is not there ends in (7): it never falls through to a later rule,
//! since that would answer with another registry's image. The canary is reached by (2) and (3) alone.

use std::collections::{BTreeMap, HashMap};

use crds::names::RepositoryName;

use crate::{
    canary,
    oci::ErrorCode,
    settings::{ConnectorSettings, RegistryName, RepositoryFacts, Settings},
};

/// Where tokens are fetched, behind `/v2/`: no repository can be called so.
pub const TOKEN: &str = "token";

/// How many repositories a refusal lists at most.
const MAX_LISTED: usize = 20;

/// What of a request says where it goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The connector's port through which it came; `None`: the main port.
    pub connector: Option<u16>,
    /// The `Host` header (or `:authority`), with or without a port.
    pub host: Option<&'a str>,
    /// The path as it came, not decoded.
    pub path: &'a str,
    /// The parameter `ns`, decoded.
    pub ns: Option<&'a str>,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// `/v2/` of the main port, which belongs to no repository: the server answers it itself.
    ServerBase,
    /// `/v2/token` of the main port: tokens for all repositories.
    ServerToken,
    /// To a repository.
    To(Route),
    /// To the search of a repository: `rest` is what follows `/v1/`.
    Search(Route),
    /// To the canary image.
    Canary {
        /// What of the path is for it: input of `Endpoint::parse`.
        rest: String,
        /// Whether its path said so, not `ns`.
        by_path: bool,
    },
}

/// A way to a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The repository.
    pub repository: RepositoryName,
    /// What of the path is for the repository, not decoded, without leading slash: input of `Endpoint::parse`.
    pub rest: String,
    /// The path in front of `rest`, ending in a slash: links that we send begin with it.
    pub prefix: String,
    /// Whether the request says which registry it means (`ns`, or a registry as first segment).
    pub registry_named: bool,
    /// That registry, where it is one that a repository could stand for.
    pub registry: Option<RegistryName>,
    /// Whether everything behind `/v2/` is `rest`: false where the first segment said which repository.
    pub whole_path: bool,
    /// Whether it came in by the way that all repositories share (rules 4 to 6), where the image's name says which is meant.
    pub shared: bool,
}

impl Route {
    /// Whether the way is `/repository/<name>/`.
    #[must_use]
    pub fn by_path(&self) -> bool {
        self.prefix.trim_start_matches('/').starts_with("repository/")
    }
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrouted {
    /// The path is none of a registry: neither `/v2/…` nor `/repository/<name>/v2/…`.
    #[error("a path must begin with /v2/ or /repository/<name>/v2/")]
    NoRegistryPath,
    /// A registry that no repository stands for.
    #[error("no repository here stands for the registry {registry:?}")]
    UnknownRegistry {
        /// As the request names it.
        registry: String,
    },
    /// A repository that does not exist.
    #[error("there is no repository {name:?} here")]
    UnknownRepository {
        /// As the request names it.
        name: String,
    },
    /// Nothing in the request names a repository, and there is no default.
    #[error("the request does not say which repository it is for, and there is no default")]
    NoDefault,
}

impl Unrouted {
    /// The code of the answer, 404.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::NameUnknown
    }

    /// Whether to know the ways in would help.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        match self {
            Self::NoRegistryPath => false,
            Self::UnknownRegistry { .. } | Self::UnknownRepository { .. } | Self::NoDefault => true,
        }
    }
}

/// The table. Built anew when settings change.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    /// With their ways in, as text.
    repositories: BTreeMap<RepositoryName, String>,
    ports: HashMap<u16, RepositoryName>,
    hosts: HashMap<String, RepositoryName>,
    registries: HashMap<RegistryName, RepositoryName>,
    default: Option<RepositoryName>,
}

/// What rules (2) to (6) decide on.
struct Found<'a> {
    repository: &'a RepositoryName,
    rest: &'a str,
    /// What the request calls the registry that it means.
    registry: Option<&'a str>,
    whole_path: bool,
    shared: bool,
}

impl Routing {
    /// The table for these settings. Without a default repository, the only one is it.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let mut table = Self::default();
        for mirror in &settings.mirrors {
            table.registries.insert(mirror.registry.clone(), mirror.name.clone());
        }
        for repository in settings.repositories() {
            let mirror = settings.mirrors.iter().find(|mirror| mirror.name == *repository.name);
            let registry = mirror.map(|mirror| &mirror.registry);
            table.repositories.insert(repository.name.clone(), way_in(&repository, registry));
            for connector in repository.connectors {
                match connector {
                    ConnectorSettings::Port { port, .. } => drop(table.ports.insert(*port, repository.name.clone())),
                    ConnectorSettings::Host { host, .. } => {
                        drop(table.hosts.insert(host.clone(), repository.name.clone()));
                    }
                }
            }
        }
        let mut names = table.repositories.keys();
        let only = names.next().filter(|_| names.next().is_none()).cloned();
        table.default = settings.server.default_repository.clone().or(only);
        table
    }

    /// Where a request goes. Costs a few look-ups, whatever the number of repositories.
    pub fn resolve(&self, request: &Request<'_>) -> Result<Resolved, Unrouted> {
        if let Some(found) = self.search(request) {
            return Ok(Resolved::Search(Self::route(request.path, &found?)));
        }
        let ns = request.ns.filter(|ns| !ns.is_empty());
        if let Some(repository) = self.of_connector(request) {
            let rest = behind_v2(request.path).ok_or(Unrouted::NoRegistryPath)?;
            let found = Found { repository, rest, registry: ns, whole_path: true, shared: false };
            return Ok(Resolved::To(Self::route(request.path, &found)));
        }
        if let Some((name, rest)) = split_repository_path(request.path) {
            if name == canary::REPOSITORY {
                return Ok(Resolved::Canary { rest: rest.to_owned(), by_path: true });
            }
            let (repository, _) = self.repositories.get_key_value(name).ok_or_else(|| unknown_repository(name))?;
            let found = Found { repository, rest, registry: ns, whole_path: true, shared: false };
            return Ok(Resolved::To(Self::route(request.path, &found)));
        }
        let rest = behind_v2(request.path).ok_or(Unrouted::NoRegistryPath)?;
        if rest == TOKEN {
            return Ok(Resolved::ServerToken);
        }
        if let Some(ns) = ns {
            if ns.eq_ignore_ascii_case(canary::REGISTRY) {
                return Ok(Resolved::Canary { rest: rest.to_owned(), by_path: false });
            }
            let repository = self.of_registry(ns)?;
            let found = Found { repository, rest, registry: Some(ns), whole_path: true, shared: false };
            return Ok(Resolved::To(Self::route(request.path, &found)));
        }
        if rest.is_empty() {
            return Ok(Resolved::ServerBase);
        }
        if let Some((first, behind)) = rest.split_once('/') {
            let first = first.replace("%3A", ":").replace("%3a", ":");
            if first.contains(['.', ':']) {
                let repository = self.of_registry(&first)?;
                let found = Found { repository, rest: behind, registry: Some(&first), whole_path: false, shared: true };
                return Ok(Resolved::To(Self::route(request.path, &found)));
            }
            if let Some((repository, _)) = self.repositories.get_key_value(first.as_str()) {
                let found = Found { repository, rest: behind, registry: None, whole_path: false, shared: true };
                return Ok(Resolved::To(Self::route(request.path, &found)));
            }
        }
        let repository = self.default.as_ref().ok_or(Unrouted::NoDefault)?;
        let found = Found { repository, rest, registry: None, whole_path: true, shared: true };
        Ok(Resolved::To(Self::route(request.path, &found)))
    }

    /// Rules (1), (2) and (6) for version 1 of the API, whose paths name no images; nothing for other paths.
    fn search<'a>(&'a self, request: &Request<'a>) -> Option<Result<Found<'a>, Unrouted>> {
        let (first, rest) = first_segment(request.path)?;
        let connector = self.of_connector(request);
        let (repository, rest) = match first {
            "v1" => {
                let repository = connector.or(self.default.as_ref());
                (repository.ok_or(Unrouted::NoDefault), rest)
            }
            "repository" if connector.is_none() => {
                let (name, rest) = first_segment_of(rest)?;
                let (version, rest) = first_segment_of(rest)?;
                let known = self.repositories.get_key_value(name).map(|(repository, _)| repository);
                (known.ok_or_else(|| unknown_repository(name)), (version == "v1").then_some(rest)?)
            }
            _ => return None,
        };
        let found = |repository| Found { repository, rest, registry: None, whole_path: true, shared: false };
        Some(repository.map(found))
    }

    fn of_connector(&self, request: &Request<'_>) -> Option<&RepositoryName> {
        match request.connector {
            Some(port) => self.ports.get(&port),
            None => self.hosts.get(&bare_host(request.host?)),
        }
    }

    fn of_registry(&self, text: &str) -> Result<&RepositoryName, Unrouted> {
        let known = text.parse::<RegistryName>().ok().and_then(|registry| self.registries.get(&registry));
        known.ok_or_else(|| Unrouted::UnknownRegistry { registry: text.to_owned() })
    }

    fn route(path: &str, found: &Found<'_>) -> Route {
        let mut prefix = path[..path.len() - found.rest.len()].to_owned();
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Route {
            repository: found.repository.clone(),
            // More slashes than one say nothing.
            rest: found.rest.trim_start_matches('/').to_owned(),
            prefix,
            registry_named: found.registry.is_some(),
            registry: found.registry.and_then(|text| text.parse().ok()),
            whole_path: found.whole_path,
            shared: found.shared,
        }
    }

    /// The ways in to those repositories that one may see, one text each.
    pub fn ways(&self, may_see: impl Fn(&RepositoryName) -> bool) -> Vec<String> {
        let mut seen = self.repositories.iter().filter(|(name, _)| may_see(name)).map(|(_, way)| way.clone());
        let mut ways: Vec<String> = seen.by_ref().take(MAX_LISTED).collect();
        match seen.count() {
            0 => {}
            more => ways.push(format!("and {more} more repositories")),
        }
        ways
    }
}

fn unknown_repository(name: &str) -> Unrouted {
    Unrouted::UnknownRepository { name: name.to_owned() }
}

/// The ways in to one repository, as text.
fn way_in(repository: &RepositoryFacts<'_>, registry: Option<&RegistryName>) -> String {
    let name = repository.name;
    let of_registry = registry.map_or_else(String::new, |registry| format!(", /v2/{registry}/<image>, ns={registry}"));
    let connectors = repository.connectors.iter().map(|connector| match connector {
        ConnectorSettings::Port { port, .. } => format!(", port {port}"),
        ConnectorSettings::Host { host, .. } => format!(", host {host}"),
    });
    format!(
        "{name} by /repository/{name}/v2/<image>, /v2/{name}/<image>{of_registry}{}",
        connectors.collect::<String>()
    )
}

/// A host header in lower case, without port and final dot.
fn bare_host(header: &str) -> String {
    let host = match header.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => header,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// What follows `/v2/`, without leading slashes; `None` if the path does not begin with it.
fn behind_v2(path: &str) -> Option<&str> {
    let (first, rest) = first_segment(path)?;
    (first == "v2").then_some(rest)
}

/// Name and rest of `/repository/<name>/v2/<rest>`, with any number of slashes in between.
fn split_repository_path(path: &str) -> Option<(&str, &str)> {
    let (first, rest) = first_segment(path)?;
    let (name, rest) = first_segment_of(rest)?;
    (first == "repository").then_some((name, behind_v2_of(rest)?))
}

fn behind_v2_of(rest: &str) -> Option<&str> {
    let (segment, rest) = first_segment_of(rest)?;
    (segment == "v2").then_some(rest)
}

/// The first segment of an absolute path, and what follows its slashes.
fn first_segment(path: &str) -> Option<(&str, &str)> {
    path.starts_with('/').then(|| first_segment_of(path.trim_start_matches('/')))?
}

fn first_segment_of(path: &str) -> Option<(&str, &str)> {
    let (segment, rest) = path.split_once('/').unwrap_or((path, ""));
    (!segment.is_empty()).then(|| (segment, rest.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::settings::Sources;

    fn routing(server: &str, mirrors: &[&str]) -> Routing {
        let object = |kind: &str, name: &str, spec: &str| {
            format!(
                "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
            )
        };
        let mut text = object("CacheServer", "default", server);
        for mirror in mirrors {
            let (name, spec) = mirror.split_once(' ').unwrap();
            text.push_str(&object("RegistryMirror", name, spec));
        }
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, text).unwrap();
        Routing::new(&Settings::load(&Sources { config: Some(config), ..Sources::default() }).unwrap().settings)
    }

    const HUB: &str =
        "hub upstream: {url: 'https://registry-1.docker.io'}, connectors: [{port: 5001}, {host: hub.example.com}]";
    const GHCR: &str = "ghcr upstream: {url: 'https://ghcr.io'}";
    const LOCAL: &str = "local upstream: {url: 'http://registry.example.com:5000'}";

    /// `repository rest prefix named/- whole/-`, or `base`, or the refusal's first words.
    fn text(routing: &Routing, request: &Request<'_>) -> String {
        match routing.resolve(request) {
            Ok(Resolved::ServerBase) => "base".to_owned(),
            Ok(Resolved::ServerToken) => "token".to_owned(),
            Ok(Resolved::Canary { rest, by_path }) => {
                format!("canary {rest} {}", if by_path { "by path" } else { "-" })
            }
            Ok(Resolved::To(route)) => format!(
                "{} {} {} {} {}",
                route.repository,
                route.rest,
                route.prefix,
                if route.registry_named { "named" } else { "-" },
                if route.whole_path { "whole" } else { "-" }
            ),
            Ok(Resolved::Search(route)) => format!("search {} {}", route.repository, route.rest),
            Err(Unrouted::NoRegistryPath) => "no path".to_owned(),
            Err(Unrouted::UnknownRegistry { registry }) => format!("no registry {registry}"),
            Err(Unrouted::UnknownRepository { name }) => format!("no repository {name}"),
            Err(Unrouted::NoDefault) => "no default".to_owned(),
        }
    }

    fn path(path: &str) -> Request<'_> {
        Request { path, ..Request::default() }
    }

    #[test]
    fn the_seven_rules_in_their_order() {
        let table = routing("defaultRepository: hub", &[HUB, GHCR, LOCAL]);
        for (request, expected) in [
            // (1)
            (
                Request { connector: Some(5001), ..path("/v2/ghcr.io/x/manifests/1") },
                "hub ghcr.io/x/manifests/1 /v2/ - whole",
            ),
            (
                Request { connector: Some(5001), ns: Some("ghcr.io"), ..path("/v2/x/tags/list") },
                "hub x/tags/list /v2/ named whole",
            ),
            (Request { connector: Some(5001), ..path("/v2/") }, "hub  /v2/ - whole"),
            (Request { connector: Some(5001), ..path("/v2") }, "hub  /v2/ - whole"),
            (Request { connector: Some(5001), ..path("/repository/ghcr/v2/x") }, "no path"),
            (Request { host: Some("HUB.example.com:443"), ..path("/v2/ghcr/x") }, "hub ghcr/x /v2/ - whole"),
            (Request { host: Some("hub.example.com."), ..path("/v2/") }, "hub  /v2/ - whole"),
            (Request { host: Some("other.example.com"), ..path("/v2/") }, "base"),
            (Request { connector: Some(5001), host: Some("x"), ..path("/livez") }, "no path"),
            // (2)
            (path("/repository/ghcr/v2/a/b/manifests/1"), "ghcr a/b/manifests/1 /repository/ghcr/v2/ - whole"),
            (path("/repository/ghcr//v2/a/manifests/1"), "ghcr a/manifests/1 /repository/ghcr//v2/ - whole"),
            (path("//repository//ghcr///v2//a/manifests/1"), "ghcr a/manifests/1 //repository//ghcr///v2// - whole"),
            (path("/repository/ghcr/v2/"), "ghcr  /repository/ghcr/v2/ - whole"),
            (path("/repository/ghcr/v2"), "ghcr  /repository/ghcr/v2/ - whole"),
            (path("/repository/ghcr/v2/token"), "ghcr token /repository/ghcr/v2/ - whole"),
            (
                Request { ns: Some("docker.io"), ..path("/repository/ghcr/v2/a") },
                "ghcr a /repository/ghcr/v2/ named whole",
            ),
            (path("/repository/nope/v2/a"), "no repository nope"),
            (path("/repository/probe/v2/"), "canary  by path"),
            (
                Request { ns: Some("docker.io"), ..path("/repository/probe/v2/canary/manifests/1") },
                "canary canary/manifests/1 by path",
            ),
            (path("/repository/ghcr/v1/a"), "search ghcr a"),
            (path("/repository/ghcr"), "no path"),
            // (3)
            (
                Request { ns: Some("docker.io"), ..path("/v2/library/x/manifests/1") },
                "hub library/x/manifests/1 /v2/ named whole",
            ),
            (Request { ns: Some("Registry-1.Docker.IO"), ..path("/v2/x") }, "hub x /v2/ named whole"),
            (Request { ns: Some("index.docker.io"), ..path("/v2/x") }, "hub x /v2/ named whole"),
            (Request { ns: Some("GHCR.IO"), ..path("/v2/hub/x") }, "ghcr hub/x /v2/ named whole"),
            (Request { ns: Some("registry.example.com:5000"), ..path("/v2/x") }, "local x /v2/ named whole"),
            (Request { ns: Some("registry.example.com"), ..path("/v2/x") }, "no registry registry.example.com"),
            (Request { ns: Some("quay.io"), ..path("/v2/x") }, "no registry quay.io"),
            (Request { ns: Some("quay.io"), ..path("/v2/") }, "no registry quay.io"),
            (Request { ns: Some("http://169.254.169.254/"), ..path("/v2/x") }, "no registry http://169.254.169.254/"),
            (
                Request { ns: Some("Probe.entrepot.invalid"), ..path("/v2/canary/manifests/1") },
                "canary canary/manifests/1 -",
            ),
            (
                Request { connector: Some(5001), ns: Some("probe.entrepot.invalid"), ..path("/v2/x") },
                "hub x /v2/ named whole",
            ),
            (path("/v2/probe.entrepot.invalid/canary/manifests/1"), "no registry probe.entrepot.invalid"),
            (path("/v2/probe/canary/manifests/1"), "hub probe/canary/manifests/1 /v2/ - whole"),
            (Request { ns: Some(""), ..path("/v2/x/tags/list") }, "hub x/tags/list /v2/ - whole"),
            // (4)
            (path("/v2/docker.io/nginx/manifests/1"), "hub nginx/manifests/1 /v2/docker.io/ named -"),
            (path("/v2/GHCR.io/a/b/tags/list"), "ghcr a/b/tags/list /v2/GHCR.io/ named -"),
            (path("/v2/registry.example.com:5000/a/b"), "local a/b /v2/registry.example.com:5000/ named -"),
            (path("/v2/registry.example.com%3A5000/a/b"), "local a/b /v2/registry.example.com%3A5000/ named -"),
            (path("/v2/quay.io/a/manifests/1"), "no registry quay.io"),
            (path("/v2/../a/manifests/1"), "no registry .."),
            // (5)
            (path("/v2/ghcr/a/manifests/1"), "ghcr a/manifests/1 /v2/ghcr/ - -"),
            // (6)
            (path("/v2/library/x/manifests/1"), "hub library/x/manifests/1 /v2/ - whole"),
            (path("//v2//library/x/manifests/1"), "hub library/x/manifests/1 //v2// - whole"),
            (path("/v2/_catalog"), "hub _catalog /v2/ - whole"),
            (path("/v2/"), "base"),
            (path("/v2/token"), "token"),
            (path("//v2//token"), "token"),
            (Request { connector: Some(5001), ..path("/v2/token") }, "hub token /v2/ - whole"),
            (path("/v2/token/tags/list"), "hub token/tags/list /v2/ - whole"),
            (path("/v2"), "base"),
            (path("//v2//"), "base"),
            // None of them
            (path("/"), "no path"),
            (path(""), "no path"),
            (path("v2/x"), "no path"),
            (path("/v22/x"), "no path"),
            // Version 1
            (path("/v1/_ping"), "search hub _ping"),
            (path("//v1//search"), "search hub search"),
            (path("/repository/ghcr//v1/search"), "search ghcr search"),
            (path("/repository/nope/v1/search"), "no repository nope"),
            (Request { connector: Some(5001), ..path("/v1/search") }, "search hub search"),
            (Request { connector: Some(5001), ..path("/repository/ghcr/v1/search") }, "no path"),
            (Request { host: Some("hub.example.com"), ..path("/v1/search") }, "search hub search"),
            (Request { ns: Some("ghcr.io"), ..path("/v1/search") }, "search hub search"),
            (path("/v11/x"), "no path"),
        ] {
            assert_eq!(text(&table, &request), expected, "{request:?}");
        }
    }

    #[test]
    fn the_shared_way_is_the_one_where_the_name_says_which() {
        let table = routing("defaultRepository: hub", &[HUB, GHCR]);
        for (request, shared) in [
            (path("/v2/library/x/manifests/1"), true),
            (path("/v2/ghcr/x/manifests/1"), true),
            (path("/v2/ghcr.io/x/manifests/1"), true),
            (Request { ns: Some("ghcr.io"), ..path("/v2/x/manifests/1") }, false),
            (path("/repository/ghcr/v2/x/manifests/1"), false),
            (Request { connector: Some(5001), ..path("/v2/x/manifests/1") }, false),
        ] {
            let Ok(Resolved::To(route)) = table.resolve(&request) else { unreachable!("{request:?}") };
            assert_eq!(route.shared, shared, "{request:?}");
        }
    }

    #[test]
    fn without_a_default_the_only_repository_is_it() {
        assert_eq!(text(&routing("", &[GHCR]), &path("/v2/a/b")), "ghcr a/b /v2/ - whole");
        assert_eq!(text(&routing("", &[GHCR, HUB]), &path("/v2/a/b")), "no default");
        assert_eq!(text(&routing("", &[GHCR, HUB]), &path("/v1/_ping")), "no default");
        assert_eq!(text(&routing("", &[]), &path("/v2/a/b")), "no default");
        assert_eq!(text(&routing("", &[]), &path("/v2/")), "base");
    }

    #[test]
    fn the_ways_in_are_those_that_one_may_see() {
        let table = routing("", &[HUB, GHCR]);
        let refused = table.resolve(&path("/v2/a/b")).unwrap_err();
        assert!(refused.is_lost() && !table.resolve(&path("/")).unwrap_err().is_lost());
        assert_eq!(
            table.ways(|_| true),
            [
                "ghcr by /repository/ghcr/v2/<image>, /v2/ghcr/<image>, /v2/ghcr.io/<image>, ns=ghcr.io",
                "hub by /repository/hub/v2/<image>, /v2/hub/<image>, /v2/docker.io/<image>, ns=docker.io, port 5001, host hub.example.com",
            ]
        );
        let ways = table.ways(|name| name.as_str() == "hub");
        assert!(ways.len() == 1 && ways[0].starts_with("hub by"), "{ways:?}");
        assert_eq!(table.ways(|_| false), Vec::<String>::new());
        assert_eq!(refused.code().status(), 404);
        let many: Vec<String> =
            (10..40).map(|number| format!("m{number} upstream: {{url: 'https://r{number}.example.com'}}")).collect();
        let table = routing("", &many.iter().map(String::as_str).collect::<Vec<_>>());
        let ways = table.ways(|name| name.as_str() != "m10");
        assert_eq!((ways.len(), ways[20].as_str()), (21, "and 9 more repositories"));
    }

    proptest! {
        #[test]
        fn no_request_panics_and_prefix_and_rest_make_the_path(path in "(/{0,2}(v2|repository|hub|ghcr.io|[a-z%.:é]{0,4})){0,5}/{0,2}", ns: Option<String>, host: Option<String>) {
            static TABLE: LazyLock<Routing> = LazyLock::new(|| routing("defaultRepository: hub", &[HUB, GHCR]));
            let request = Request { connector: None, host: host.as_deref(), path: &path, ns: ns.as_deref() };
            if let Ok(Resolved::To(route)) = TABLE.resolve(&request) {
                let whole = format!("{}{}", route.prefix, route.rest);
                prop_assert_eq!(whole.replace('/', ""), path.replace('/', ""));
            }
        }
    }
}
