//! Which repositories of a server can be served as they are written. Pure, and the only step that judges: every failure that
//! takes more than one object to see lives here, one variant each. May import `gather`, `repository` and
//! `desired::{config_map, names}`.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    CacheServerSpec, RepositoryGroup,
    cache_server::{RegistryHolder, ServedRepository, ServiceType, TlsMode},
    names::SecretRef,
};
use k8s_openapi::ByteString;
use kube::ResourceExt;
use serde_json::Value;

use crate::{
    desired::{
        config_map::{documents, repository_document},
        names,
        service::{PORT, Port},
    },
    gather::Gathered,
    repository::{HOSTED, Holders, KINDS, Repository, registry, registry_from},
};

/// The port on which a cache server reports.
const STATUS_PORT: u16 = 9090;

/// What is wrong with an object, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The Secret is not there.
    #[error(
        "{field} names the Secret {secret:?}, which is not in the namespace {namespace}; create it there with {wanted}"
    )]
    SecretNotFound {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// Where it must be.
        namespace: String,
        /// The keys it must have.
        wanted: &'static str,
    },
    /// The Secret lacks a key.
    #[error(
        "{field} names the Secret {secret:?}, which has no key {missing:?}; it must have {wanted} (it has {found})"
    )]
    SecretKeyMissing {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// The key.
        missing: String,
        /// The keys it must have.
        wanted: &'static str,
        /// The keys it has.
        found: String,
    },
    /// A value of the Secret cannot be what its key says.
    #[error("{field} names the Secret {secret:?}, whose key {key:?} {must}")]
    SecretMalformed {
        /// Where the spec names it.
        field: String,
        /// The Secret.
        secret: String,
        /// The key.
        key: String,
        /// What it must be.
        must: &'static str,
    },
    /// A Secret has the name of ours.
    #[error(
        "{field} must not name a Secret {0:?}: the managed certificate stands there; rename the Secret",
        names::MANAGED_TLS
    )]
    SecretReserved {
        /// Where the spec names it.
        field: String,
    },
    /// The URL cannot be read.
    #[error("spec.upstream.url must be a URL with a host, got {url:?}")]
    UrlMalformed {
        /// What was written.
        url: String,
    },
    /// Two mirrors of one server stand for one registry.
    #[error(
        "{registry} is already what the mirror {holder} stands for on this cache server; set upstream.registry to another name, or delete one of the two"
    )]
    RegistryTaken {
        /// The registry.
        registry: String,
        /// Who has it.
        holder: String,
    },
    /// Another repository has the name.
    #[error(
        "the name {name} is that of the {holder} already, and names of repositories are one namespace over all kinds; make it anew under another name, or delete one of the two"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: String,
    },
    /// Two repositories of one server have one connector.
    #[error("spec.connectors[{index}]: {connector} is taken by {holder}; choose another one")]
    ConnectorTaken {
        /// Which connector.
        index: usize,
        /// The port or host.
        connector: String,
        /// Who has it.
        holder: String,
    },
    /// No node opens a port for the Service.
    #[error(
        "spec.connectors[{index}].nodePort takes a Service of type NodePort or LoadBalancer; set service.type of the CacheServer {server}, or remove nodePort"
    )]
    NoNodePorts {
        /// Which connector.
        index: usize,
        /// The server.
        server: String,
    },
    /// A member does not exist.
    #[error(
        "spec.members[{index}] names {member}, and there is no repository of that name; create it, or remove it from spec.members"
    )]
    MemberMissing {
        /// Which member.
        index: usize,
        /// Its name.
        member: String,
    },
    /// A member is served by another server.
    #[error(
        "spec.members[{index}] names the {member}, which the CacheServer {other} serves; set its spec.server to {server}, or remove it from spec.members"
    )]
    MemberOnOtherServer {
        /// Which member.
        index: usize,
        /// The member.
        member: String,
        /// Its server.
        other: String,
        /// The group's.
        server: String,
    },
    /// A member is not served itself.
    #[error("spec.members[{index}] names the {member}, which is not served itself; its condition Ready says why")]
    MemberNotServed {
        /// Which member.
        index: usize,
        /// The member.
        member: String,
    },
    /// A member leads back to the group.
    #[error("spec.members[{index}] leads back to this group ({ring}); remove one of these from the members of another")]
    MemberCycle {
        /// Which member.
        index: usize,
        /// The names on the way.
        ring: String,
    },
    /// Nobody there takes the group's pushes.
    #[error(
        "spec.pushTo must name a HostedRepository of the CacheServer {server}, got {got}; create it, or correct spec.pushTo"
    )]
    PushToUnfit {
        /// The group's server.
        server: String,
        /// What is named.
        got: String,
    },
    /// Nodes would be asked to log in.
    #[error(
        "spec.nodes is not put into force: nodes pull without logging in, and anonymousPull of the {who} is false; set it to true, or remove spec.nodes"
    )]
    LoginRequired {
        /// Who asks for a login.
        who: String,
    },
}

impl Problem {
    /// The reason in a condition.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::SecretNotFound { .. } => "SecretNotFound",
            Self::SecretKeyMissing { .. } => "SecretKeyMissing",
            Self::SecretMalformed { .. } => "SecretMalformed",
            Self::SecretReserved { .. } => "SecretReserved",
            Self::UrlMalformed { .. } => "UrlMalformed",
            Self::RegistryTaken { .. } => "RegistryTaken",
            Self::NameTaken { .. } => "NameTaken",
            Self::ConnectorTaken { .. } => "ConnectorTaken",
            Self::NoNodePorts { .. } => "NoNodePorts",
            Self::MemberMissing { .. } => "MemberMissing",
            Self::MemberOnOtherServer { .. } => "MemberOnOtherServer",
            Self::MemberNotServed { .. } => "MemberNotServed",
            Self::MemberCycle { .. } => "MemberCycle",
            Self::PushToUnfit { .. } => "PushToUnfit",
            Self::LoginRequired { .. } => "LoginRequired",
        }
    }
}

/// How a repository fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served as it is written.
    Good,
    /// It is, as far as that goes: not everything that it names is there. Never empty.
    Partly(Vec<Problem>),
    /// It is not, and its last good version is.
    Kept(Problem),
    /// It is not served at all.
    Refused(Problem),
}

/// What may be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Valid {
    /// The repositories that go into the configuration, by name.
    pub documents: Vec<Value>,
    /// The same, as a status records them.
    pub repositories: Vec<ServedRepository>,
    /// Which repository each registry leads to.
    pub holders: Vec<RegistryHolder>,
    /// Flat keys of the referenced Secrets.
    pub secrets: BTreeMap<String, ByteString>,
    /// Port connectors of the repositories, in order.
    pub ports: Vec<Port>,
    /// How each repository fared, by [`Repository::key`].
    pub verdicts: BTreeMap<String, Verdict>,
    /// What is wrong with the Secrets of the server itself.
    pub server: Verdict,
}

impl Valid {
    /// The names of the repositories that are served.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        self.repositories.iter().map(|served| served.name.clone()).collect()
    }
}

/// Judges each repository on its own: a bad one never disturbs another. `leaving` are the keys of those that are done with.
#[must_use]
pub fn validate(gathered: &Gathered, namespace: &str, leaving: &BTreeSet<String>) -> Valid {
    let recorded = recorded(gathered);
    let before = previous_documents(gathered);
    let mounted = gathered.mounted();
    let mut claims = Claims::default();
    let mut valid = Valid {
        documents: Vec::new(),
        repositories: Vec::new(),
        holders: Vec::new(),
        secrets: BTreeMap::new(),
        ports: Vec::new(),
        verdicts: BTreeMap::new(),
        server: Verdict::Good,
    };
    let judge = Judge { gathered, namespace };
    valid.server = judge.server(&mounted, &mut valid.secrets);
    for repository in in_order(gathered, &recorded, leaving) {
        let (document, secrets, verdict) = match judge.repository(repository, &claims) {
            Ok(secrets) => (Some(repository_document(repository)), secrets, judge.node_ports(repository)),
            Err(problem) => match last_good(repository, &problem, &before, &recorded, &claims) {
                Some(document) => {
                    let secrets = kept_secrets(document, &mounted);
                    (Some(document.clone()), secrets, Verdict::Kept(problem))
                }
                None => (None, BTreeMap::new(), Verdict::Refused(problem)),
            },
        };
        if let Some(document) = document {
            claims.take(&document, repository);
            let (name, uid) = (repository.name(), repository.uid());
            if let Some(registry) = registry_of_document(&document) {
                valid.holders.push(RegistryHolder { registry, repository: name.clone(), uid: uid.clone() });
            }
            valid.repositories.push(ServedRepository { name, kind: repository.kind().to_owned(), uid });
            valid.documents.push(document);
            valid.secrets.extend(secrets);
        }
        valid.verdicts.insert(repository.key(), verdict);
    }
    for repository in &gathered.repositories {
        let Repository::Group(group) = repository else { continue };
        // How members fared is known now.
        let problems = judge.members(repository, group, &valid.verdicts, leaving);
        if let Some(verdict) = valid.verdicts.get_mut(&repository.key()) {
            verdict.add(problems);
        }
    }
    valid.documents.sort_by_key(|document| document["metadata"]["name"].to_string());
    valid.repositories.sort_by(|one, other| one.name.cmp(&other.name));
    valid.holders.sort_by(|one, other| one.registry.cmp(&other.registry));
    valid.ports = claims.service_ports();
    valid
}

/// Why nodes do not pull through a repository that wants them to: they would be asked to log in.
#[must_use]
pub fn login_for_nodes(repository: &Repository, holders: &Holders) -> Option<Problem> {
    let registries = &repository.nodes()?.registries;
    let asked = |leaf: &Repository| registries.iter().any(|registry| leaf.stands_for(registry));
    let members = match repository {
        Repository::Group(_) => repository.leaves(holders),
        Repository::Mirror(_) | Repository::Hosted(_) => Vec::new(),
    };
    let mut who = std::iter::once(repository).chain(members.iter().filter(|leaf| asked(leaf)));
    let closed = who.find(|repository| !repository.is_anonymous()).cloned();
    let closed = closed.or_else(|| repository.hidden_by(holders, asked))?;
    Some(Problem::LoginRequired { who: closed.to_string() })
}

impl Verdict {
    /// What is wrong first of all.
    #[must_use]
    pub fn first_problem(&self) -> Option<&Problem> {
        match self {
            Self::Good => None,
            Self::Partly(problems) => problems.first(),
            Self::Kept(problem) | Self::Refused(problem) => Some(problem),
        }
    }

    /// Adds what keeps a repository from being served in full; what is worse already stays.
    fn add(&mut self, problems: Vec<Problem>) {
        match self {
            Self::Good if !problems.is_empty() => *self = Self::Partly(problems),
            Self::Partly(held) => held.extend(problems),
            Self::Good | Self::Kept(_) | Self::Refused(_) => {}
        }
    }
}

/// The uids of the repositories that the server's status says it serves.
fn recorded(gathered: &Gathered) -> BTreeSet<String> {
    let status = gathered.server.status.clone().unwrap_or_default();
    let served = status.repositories.into_iter().map(|served| served.uid);
    // A status of before there were several kinds has mirrors alone.
    served.chain(status.registries.into_iter().map(|holder| holder.uid)).collect()
}

/// Those that are served already first, then the older ones: who has something keeps it.
fn in_order<'a>(
    gathered: &'a Gathered,
    recorded: &BTreeSet<String>,
    leaving: &BTreeSet<String>,
) -> Vec<&'a Repository> {
    let mut repositories: Vec<&Repository> = gathered.repositories.iter().collect();
    repositories.retain(|repository| !leaving.contains(&repository.key()));
    repositories.sort_by_key(|repository| (!recorded.contains(&repository.uid()), repository.age()));
    repositories
}

/// By kind and name.
type Documents = BTreeMap<(String, String), Value>;

fn previous_documents(gathered: &Gathered) -> Documents {
    let data = gathered.config_map.as_ref().and_then(|config_map| config_map.data.as_ref());
    let text = data.and_then(|data| data.get(names::CONFIG_KEY)).map_or("", String::as_str);
    let key = |document: &Value| {
        let kind = document["kind"].as_str().filter(|kind| KINDS.contains(kind))?;
        Some((kind.to_owned(), document["metadata"]["name"].as_str()?.to_owned()))
    };
    documents(text).into_iter().filter_map(|document| Some((key(&document)?, document))).collect()
}

/// The version of a repository that is served so far, if that was this very object and nobody else has what it needs.
fn last_good<'a>(
    repository: &Repository,
    problem: &Problem,
    before: &'a Documents,
    recorded: &BTreeSet<String>,
    claims: &Claims,
) -> Option<&'a Value> {
    if matches!(problem, Problem::NameTaken { .. }) || !recorded.contains(&repository.uid()) {
        return None;
    }
    let document = before.get(&(repository.kind().to_owned(), repository.name()))?;
    claims.conflict(document).is_none().then_some(document)
}

fn kept_secrets(document: &Value, mounted: &BTreeMap<String, ByteString>) -> BTreeMap<String, ByteString> {
    let mut secrets = Vec::new();
    named_secrets(&document["spec"], &mut secrets);
    let is_of = |key: &str| secrets.iter().any(|secret| key.starts_with(&names::flat_key(secret, "")));
    mounted.iter().filter(|(key, _)| is_of(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The names of the Secrets that an object refers to, wherever in it.
fn named_secrets<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (field, inner) in fields {
                let is_reference = field == "secretRef" || field.ends_with("SecretRef");
                match inner["name"].as_str().filter(|_| is_reference) {
                    Some(name) => found.push(name),
                    None => named_secrets(inner, found),
                }
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| named_secrets(entry, found)),
        _ => {}
    }
}

fn registry_of_document(document: &Value) -> Option<String> {
    let upstream = &document["spec"]["upstream"];
    registry_from(upstream["registry"].as_str(), upstream["url"].as_str()?)
}

/// What there can be one of only, with who has it.
#[derive(Default)]
struct Claims {
    registries: BTreeMap<String, String>,
    ports: BTreeMap<u16, String>,
    hosts: BTreeMap<String, String>,
    /// By port.
    node_ports: BTreeMap<u16, u16>,
}

impl Claims {
    fn conflict(&self, document: &Value) -> Option<Problem> {
        if let Some(registry) = registry_of_document(document)
            && let Some(holder) = self.registries.get(&registry)
        {
            return Some(Problem::RegistryTaken { registry, holder: holder.clone() });
        }
        let mut own = BTreeSet::new();
        for (index, connector) in document["spec"]["connectors"].as_array().into_iter().flatten().enumerate() {
            let (text, holder) = match (port_of(connector), connector["host"].as_str()) {
                (Some(PORT), _) => (format!("port {PORT}"), Some("the main port of the cache server".to_owned())),
                (Some(STATUS_PORT), _) => {
                    (format!("port {STATUS_PORT}"), Some("the port on which the cache server reports".to_owned()))
                }
                (Some(port), _) => (format!("port {port}"), self.ports.get(&port).cloned()),
                (None, Some(host)) => (format!("host {host}"), self.hosts.get(host).cloned()),
                (None, None) => continue,
            };
            let twice = (!own.insert(text.clone())).then(|| "another connector of the same object".to_owned());
            if let Some(holder) = holder.or(twice) {
                return Some(Problem::ConnectorTaken { index, connector: text, holder });
            }
        }
        None
    }

    /// Ports of nodes, which are in no document: a cache server has none.
    fn node_port_conflict(&self, repository: &Repository, main: Option<u16>) -> Option<Problem> {
        let mut own = BTreeSet::new();
        for (index, connector) in repository.connectors().iter().enumerate() {
            let Some(node_port) = connector.node_port else { continue };
            let held = self.node_ports.iter().find(|(_, held)| **held == node_port).map(|(port, _)| *port);
            let holder = if main == Some(node_port) {
                Some("the main port of the cache server".to_owned())
            } else if !own.insert(node_port) {
                Some("another connector of the same object".to_owned())
            } else {
                held.and_then(|port| self.ports.get(&port).cloned())
            };
            if let Some(holder) = holder {
                return Some(Problem::ConnectorTaken { index, connector: format!("nodePort {node_port}"), holder });
            }
        }
        None
    }

    fn take(&mut self, document: &Value, repository: &Repository) {
        if let Some(registry) = registry_of_document(document) {
            self.registries.insert(registry, repository.name());
        }
        for connector in document["spec"]["connectors"].as_array().into_iter().flatten() {
            if let Some(port) = port_of(connector) {
                self.ports.insert(port, format!("the {repository}"));
            } else if let Some(host) = connector["host"].as_str() {
                self.hosts.insert(host.to_owned(), format!("the {repository}"));
            }
        }
        let node_ports = repository.connectors().iter().filter_map(|it| Some((it.port?, it.node_port?)));
        // Of a last good version the present nodePort is known only where the port is the same.
        self.node_ports.extend(node_ports.filter(|(port, _)| self.ports.contains_key(port)));
    }

    fn service_ports(&self) -> Vec<Port> {
        let node_port = |port: &u16| self.node_ports.get(port).copied();
        self.ports.keys().map(|port| Port { port: *port, node_port: node_port(port) }).collect()
    }
}

fn port_of(connector: &Value) -> Option<u16> {
    connector["port"].as_u64().and_then(|port| u16::try_from(port).ok())
}

struct Judge<'a> {
    gathered: &'a Gathered,
    namespace: &'a str,
}

/// What a Secret is named for.
#[derive(Clone, Copy)]
enum Purpose {
    Credentials,
    Certificate,
    Users,
}

/// A Secret that an object names.
struct Reference<'a> {
    field: String,
    secret: &'a SecretRef,
    purpose: Purpose,
}

impl<'a> Reference<'a> {
    fn new(field: impl Into<String>, secret: &'a SecretRef, purpose: Purpose) -> Self {
        Self { field: field.into(), secret, purpose }
    }

    /// Those of a server.
    fn of_server(spec: &'a CacheServerSpec) -> Vec<Self> {
        let certificate = spec.tls.secret_ref.as_ref().filter(|_| spec.tls.mode == Some(TlsMode::Secret));
        let users = spec.auth.as_ref().and_then(|auth| auth.htpasswd_secret_ref.as_ref());
        let certificate = certificate.map(|secret| Self::new("spec.tls.secretRef", secret, Purpose::Certificate));
        let users = users.map(|secret| Self::new("spec.auth.htpasswdSecretRef", secret, Purpose::Users));
        certificate.into_iter().chain(users).collect()
    }

    /// Those of a repository.
    fn of(repository: &'a Repository) -> Vec<Self> {
        let mut found = Vec::new();
        if let Repository::Mirror(mirror) = repository {
            let upstream = &mirror.spec.upstream;
            if let Some(secret) = &upstream.credentials_secret_ref {
                found.push(Self::new("spec.upstream.credentialsSecretRef", secret, Purpose::Credentials));
            }
            if let Some(secret) = &upstream.client_certificate_secret_ref {
                found.push(Self::new("spec.upstream.clientCertificateSecretRef", secret, Purpose::Certificate));
            }
        }
        for (index, connector) in repository.connectors().iter().enumerate() {
            if let Some(tls) = &connector.tls {
                let field = format!("spec.connectors[{index}].tls.secretRef");
                found.push(Self::new(field, &tls.secret_ref, Purpose::Certificate));
            }
            if let Some(secret) = &connector.tls_secret_ref {
                let field = format!("spec.connectors[{index}].tlsSecretRef");
                found.push(Self::new(field, secret, Purpose::Certificate));
            }
        }
        found
    }
}

const CREDENTIALS: &str = "username and password, or .dockerconfigjson";
const CERTIFICATE: &str = "tls.crt and tls.key";
const USERS: &str = "htpasswd";
/// The key that some charts call it by.
const AUTH: &str = "auth";

impl Judge<'_> {
    /// The Secrets of the server itself. What is missing is kept as it was mounted last. Without a certificate there is no
    /// main port; without users nobody can log in, and all else is served.
    fn server(&self, mounted: &BTreeMap<String, ByteString>, secrets: &mut BTreeMap<String, ByteString>) -> Verdict {
        let mut verdict = Verdict::Good;
        for reference in Reference::of_server(&self.gathered.server.spec) {
            let problem = match self.keys(&reference) {
                Ok(found) => {
                    secrets.extend(found);
                    continue;
                }
                Err(problem) => problem,
            };
            let (prefix, needed) = match reference.purpose {
                Purpose::Certificate => ("tls.", 2),
                Purpose::Credentials | Purpose::Users => ("", 1),
            };
            let prefix = names::flat_key(&reference.secret.name, prefix);
            let kept: Vec<_> = mounted.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
            if kept.len() >= needed {
                secrets.extend(kept.into_iter().map(|(key, value)| (key.clone(), value.clone())));
                verdict = Verdict::Kept(problem);
            } else if matches!(reference.purpose, Purpose::Certificate) {
                return Verdict::Refused(problem);
            } else {
                verdict.add(vec![problem]);
            }
        }
        verdict
    }

    fn repository(&self, repository: &Repository, claims: &Claims) -> Result<BTreeMap<String, ByteString>, Problem> {
        let name = repository.name();
        if let Some(holder) = self.gathered.holders.get(&name).filter(|holder| !holder.is_same(repository)) {
            return Err(Problem::NameTaken { name, holder: holder.to_string() });
        }
        if let Repository::Mirror(mirror) = repository
            && registry(mirror).is_none()
        {
            return Err(Problem::UrlMalformed { url: mirror.spec.upstream.url.clone() });
        }
        if let Some(problem) = claims.conflict(&repository_document(repository)) {
            return Err(problem);
        }
        let main = self.gathered.server.spec.service.as_ref().and_then(|service| service.node_port);
        if let Some(problem) = claims.node_port_conflict(repository, main) {
            return Err(problem);
        }
        let mut secrets = BTreeMap::new();
        for reference in Reference::of(repository) {
            secrets.extend(self.keys(&reference)?);
        }
        Ok(secrets)
    }

    /// Whether the Service has ports of nodes, where a repository that can be served asks for some.
    fn node_ports(&self, repository: &Repository) -> Verdict {
        let service = self.gathered.server.spec.service.clone().unwrap_or_default();
        let index = repository.connectors().iter().position(|connector| connector.node_port.is_some());
        match index.filter(|_| service.type_ == ServiceType::ClusterIP) {
            Some(index) => {
                Verdict::Partly(vec![Problem::NoNodePorts { index, server: self.gathered.server.name_any() }])
            }
            None => Verdict::Good,
        }
    }

    /// What keeps a group from having all of its members.
    fn members(
        &self,
        repository: &Repository,
        group: &RepositoryGroup,
        verdicts: &BTreeMap<String, Verdict>,
        leaving: &BTreeSet<String>,
    ) -> Vec<Problem> {
        let server = &group.spec.server;
        let there = |name: &String| self.gathered.holders.get(name).filter(|member| !leaving.contains(&member.key()));
        let mut problems = Vec::new();
        for (index, name) in group.spec.members.iter().enumerate() {
            let Some(member) = there(name) else {
                problems.push(Problem::MemberMissing { index, member: name.clone() });
                continue;
            };
            if member.server() != server {
                problems.push(Problem::MemberOnOtherServer {
                    index,
                    member: member.to_string(),
                    other: member.server().to_owned(),
                    server: server.clone(),
                });
            } else if matches!(verdicts.get(&member.key()), Some(Verdict::Refused(_)) | None) {
                problems.push(Problem::MemberNotServed { index, member: member.to_string() });
            } else if let Some(ring) = self.way_back(repository, member) {
                problems.push(Problem::MemberCycle { index, ring });
            }
        }
        if let Some(name) = &group.spec.push_to {
            let got = match there(name) {
                None => Some(format!("{name:?}, which does not exist")),
                Some(member) if member.kind() != HOSTED => Some(format!("the {member}")),
                Some(member) if member.server() != server => {
                    Some(format!("the {member} of the CacheServer {}", member.server()))
                }
                Some(_) => None,
            };
            problems.extend(got.map(|got| Problem::PushToUnfit { server: server.clone(), got }));
        }
        problems
    }

    /// The shortest way from a member back to the group, as messages show it.
    fn way_back(&self, group: &Repository, member: &Repository) -> Option<String> {
        let goal = group.name();
        let mut seen = BTreeSet::new();
        let mut ways = std::collections::VecDeque::from([vec![member.name()]]);
        while let Some(way) = ways.pop_front() {
            let here = way.last()?;
            if *here == goal {
                return Some(format!("{goal} → {}", way.join(" → ")));
            }
            let next = self.gathered.holders.get(here).filter(|next| next.server() == group.server());
            let Some(Repository::Group(next)) = next else { continue };
            for name in &next.spec.members {
                if seen.insert(name.clone()) {
                    ways.push_back(way.iter().chain([name]).cloned().collect());
                }
            }
        }
        None
    }

    /// The keys of a Secret that are needed, or what is wrong with it.
    fn keys(&self, reference: &Reference<'_>) -> Result<BTreeMap<String, ByteString>, Problem> {
        match reference.purpose {
            Purpose::Credentials => self.credentials(&reference.field, reference.secret),
            Purpose::Certificate => self.certificate(&reference.field, reference.secret),
            Purpose::Users => self.users(&reference.field, reference.secret),
        }
    }

    fn credentials(&self, field: &str, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>, Problem> {
        let data = self.data(field, reference, CREDENTIALS)?;
        if let Some(config) = data.get(".dockerconfigjson") {
            let parsed: Option<Value> = serde_json::from_slice(&config.0).ok();
            if !parsed.is_some_and(|config| config["auths"].is_object()) {
                return Err(Problem::SecretMalformed {
                    field: field.to_owned(),
                    secret: reference.name.clone(),
                    key: ".dockerconfigjson".to_owned(),
                    must: "must be JSON with `auths`, as `docker login` writes it",
                });
            }
            return Ok(flat(reference, &data, &[".dockerconfigjson"]));
        }
        Self::with_keys(field, reference, &data, &["username", "password"], CREDENTIALS)
    }

    fn certificate(&self, field: &str, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>, Problem> {
        let data = self.data(field, reference, CERTIFICATE)?;
        Self::with_keys(field, reference, &data, &["tls.crt", "tls.key"], CERTIFICATE)
    }

    /// Lines of users; the cache server says which of them are wrong.
    fn users(&self, field: &str, reference: &SecretRef) -> Result<BTreeMap<String, ByteString>, Problem> {
        let data = self.data(field, reference, USERS)?;
        let key = if data.contains_key(AUTH) && !data.contains_key(USERS) { AUTH } else { USERS };
        Self::with_keys(field, reference, &data, &[key], USERS)
    }

    fn data(
        &self,
        field: &str,
        reference: &SecretRef,
        wanted: &'static str,
    ) -> Result<BTreeMap<String, ByteString>, Problem> {
        if reference.name == names::MANAGED_TLS {
            return Err(Problem::SecretReserved { field: field.to_owned() });
        }
        let secret = self.gathered.secrets.get(&reference.name).ok_or_else(|| Problem::SecretNotFound {
            field: field.to_owned(),
            secret: reference.name.clone(),
            namespace: self.namespace.to_owned(),
            wanted,
        })?;
        Ok(secret.data.clone().unwrap_or_default())
    }

    fn with_keys(
        field: &str,
        reference: &SecretRef,
        data: &BTreeMap<String, ByteString>,
        keys: &[&str],
        wanted: &'static str,
    ) -> Result<BTreeMap<String, ByteString>, Problem> {
        if let Some(missing) = keys.iter().find(|key| !data.contains_key(**key)) {
            let found: Vec<&str> = data.keys().map(String::as_str).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(Problem::SecretKeyMissing {
                field: field.to_owned(),
                secret: reference.name.clone(),
                missing: (*missing).to_owned(),
                wanted,
                found,
            });
        }
        if let Some(empty) = keys.iter().find(|key| data.get(**key).is_some_and(|value| value.0.is_empty())) {
            return Err(Problem::SecretMalformed {
                field: field.to_owned(),
                secret: reference.name.clone(),
                key: (*empty).to_owned(),
                must: "must not be empty",
            });
        }
        Ok(flat(reference, data, keys))
    }
}

fn flat(reference: &SecretRef, data: &BTreeMap<String, ByteString>, keys: &[&str]) -> BTreeMap<String, ByteString> {
    let present = keys.iter().filter_map(|key| Some((names::flat_key(&reference.name, key), data.get(*key)?.clone())));
    present.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::CacheServer;
    use serde_json::json;

    use super::*;
    use crate::desired::config_map::config_map;

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("should be an object of its kind")
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers write the value in place")]
    fn object(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "entrepot.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 2}, "spec": spec})
    }

    fn mirror(name: &str, spec: Value) -> Repository {
        Repository::Mirror(Arc::new(read(object("RegistryMirror", name, spec))))
    }

    fn hosted(name: &str, spec: Value) -> Repository {
        Repository::Hosted(Arc::new(read(object("HostedRepository", name, spec))))
    }

    fn group(name: &str, members: &[&str]) -> Repository {
        group_with(name, json!({"members": members}))
    }

    fn group_with(name: &str, spec: Value) -> Repository {
        Repository::Group(Arc::new(read(object("RepositoryGroup", name, spec))))
    }

    fn plain(name: &str) -> Repository {
        mirror(name, json!({"upstream": {"url": format!("https://{name}.example.com")}}))
    }

    fn with_secret(name: &str) -> Repository {
        let upstream = json!({"url": format!("https://{name}.example.com"), "credentialsSecretRef": {"name": "s"}});
        mirror(name, json!({"upstream": upstream, "anonymousPull": true}))
    }

    fn gathered(all: &[Repository]) -> Gathered {
        Gathered {
            server: Arc::new(CacheServer::new("default", crds::CacheServerSpec::default())),
            repositories: all.iter().filter(|repository| repository.server() == "default").cloned().collect(),
            holders: crate::repository::holders(all, &BTreeSet::new()),
            secrets: BTreeMap::new(),
            config_map: None,
            deployment: None,
            service: None,
            claim: None,
            pods: Vec::new(),
            node_mirrors: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn secret(gathered: &mut Gathered, name: &str, keys: &[(&str, &str)]) {
        let data: BTreeMap<_, _> =
            keys.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
        let secret = k8s_openapi::api::core::v1::Secret { data: Some(data), ..Default::default() };
        gathered.secrets.insert(name.to_owned(), Arc::new(secret));
    }

    fn judged(gathered: &Gathered) -> Valid {
        validate(gathered, "entrepot-system", &BTreeSet::new())
    }

    #[test]
    fn a_bad_mirror_is_left_out_and_the_others_are_served() {
        let found = judged(&gathered(&[plain("a"), with_secret("b"), plain("c")]));
        assert_eq!(found.served(), ["a", "c"]);
        let Verdict::Refused(problem) = &found.verdicts["RegistryMirror/b"] else { unreachable!("should be refused") };
        assert_eq!(problem.reason(), "SecretNotFound");
        assert_eq!(
            problem.to_string(),
            "spec.upstream.credentialsSecretRef names the Secret \"s\", which is not in the namespace entrepot-system; create it there with username and password, or .dockerconfigjson"
        );
    }

    #[test]
    fn the_missing_key_of_a_secret_is_named() {
        for (keys, expected) in [
            (
                vec![("username", "u")],
                "has no key \"password\"; it must have username and password, or .dockerconfigjson (it has username)",
            ),
            (vec![("token", "u")], "has no key \"username\""),
            (vec![("username", "u"), ("password", "")], "whose key \"password\" must not be empty"),
            (vec![(".dockerconfigjson", "{}")], "must be JSON with `auths`"),
        ] {
            let mut gathered = gathered(&[with_secret("b")]);
            secret(&mut gathered, "s", &keys);
            let Verdict::Refused(problem) = judged(&gathered).verdicts["RegistryMirror/b"].clone() else {
                unreachable!("{expected}")
            };
            assert!(problem.to_string().contains(expected), "{problem}");
        }
    }

    #[test]
    fn referenced_keys_are_copied_flat_and_no_others() {
        let mut gathered = gathered(&[with_secret("b")]);
        secret(&mut gathered, "s", &[("username", "u"), ("password", "p"), ("other", "x")]);
        assert_eq!(judged(&gathered).secrets.keys().collect::<Vec<_>>(), ["s_password", "s_username"]);
    }

    #[test]
    fn a_server_without_its_users_serves_all_else() {
        let spec = json!({"auth": {"htpasswdSecretRef": {"name": "users"}}});
        for (key, expected) in [("htpasswd", "users_htpasswd"), ("auth", "users_auth")] {
            let mut gathered = gathered(&[plain("a")]);
            gathered.server = Arc::new(CacheServer::new("default", read(spec.clone())));
            let missing = judged(&gathered);
            assert_eq!(missing.server.first_problem().map(Problem::reason), Some("SecretNotFound"));
            assert!(matches!(missing.server, Verdict::Partly(_)) && missing.served() == ["a"]);
            secret(&mut gathered, "users", &[(key, "alice:$2y$"), ("other", "x")]);
            let found = judged(&gathered);
            assert_eq!(found.server, Verdict::Good);
            assert_eq!(found.secrets.keys().collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn the_recorded_holder_keeps_a_registry_against_an_older_mirror() {
        let same = |name: &str| mirror(name, json!({"upstream": {"url": "https://r.example.com"}}));
        let mut gathered = gathered(&[same("a"), same("b")]);
        let taken = |found: &Valid, name: &str| match &found.verdicts[&format!("RegistryMirror/{name}")] {
            Verdict::Refused(problem) => problem.to_string(),
            other => format!("{other:?}"),
        };
        assert!(taken(&judged(&gathered), "b").contains("already what the mirror a stands for"));
        let mut server = CacheServer::new("default", crds::CacheServerSpec::default());
        server.status =
            Some(read(json!({"registries": [{"registry": "r.example.com", "repository": "b", "uid": "uid-b"}]})));
        gathered.server = Arc::new(server);
        let found = judged(&gathered);
        assert!(taken(&found, "a").contains("already what the mirror b stands for"));
        assert_eq!(found.holders[0].repository, "b");
    }

    #[test]
    fn ports_and_hosts_belong_to_one_mirror() {
        for (connector, expected) in [
            (json!({"port": 5001}), "spec.connectors[0]: port 5001 is taken by the RegistryMirror a"),
            (json!({"host": "x.lan"}), "host x.lan is taken by the RegistryMirror a"),
            (json!({"port": 5000}), "port 5000 is taken by the main port"),
            (json!({"port": 9090}), "port 9090 is taken by the port on which"),
        ] {
            let spec = |name: &str, connector: &Value| {
                let url = format!("https://{name}.example.com");
                mirror(name, json!({"upstream": {"url": url}, "connectors": [connector]}))
            };
            let first =
                if connector["port"] == 5000 || connector["port"] == 9090 { plain("a") } else { spec("a", &connector) };
            let found = judged(&gathered(&[first, spec("b", &connector)]));
            let Verdict::Refused(problem) = &found.verdicts["RegistryMirror/b"] else { unreachable!("{expected}") };
            assert!(problem.to_string().contains(expected), "{problem}");
            assert_eq!(found.verdicts["RegistryMirror/a"], Verdict::Good);
        }
    }

    #[test]
    fn the_last_good_version_stays_with_its_secret() {
        let mut good = gathered(&[with_secret("b")]);
        secret(&mut good, "s", &[("username", "u"), ("password", "p")]);
        let first = judged(&good);
        let mut server = CacheServer::new("default", crds::CacheServerSpec::default());
        server.status = Some(read(json!({"registries": first.holders})));
        let mut bad = gathered(&[with_secret("b")]);
        bad.config_map = Some(Arc::new(read(config_map(&server, "entrepot-system", &first.documents, None))));
        bad.server = Arc::new(server);
        secret(&mut bad, "cache-default", &[("s_username", "u"), ("s_password", "p"), ("t_username", "x")]);
        let found = judged(&bad);
        assert!(matches!(&found.verdicts["RegistryMirror/b"], Verdict::Kept(Problem::SecretNotFound { .. })));
        assert_eq!((found.documents, found.secrets), (first.documents, first.secrets));
    }

    fn partly(found: &Valid, key: &str) -> Vec<(&'static str, String)> {
        match &found.verdicts[key] {
            Verdict::Partly(problems) => {
                problems.iter().map(|problem| (problem.reason(), problem.to_string())).collect()
            }
            other => unreachable!("{key}: {other:?}"),
        }
    }

    #[test]
    fn a_group_without_a_member_is_served_with_the_others_and_heals() {
        let found = judged(&gathered(&[group("all", &["hub", "team"]), plain("hub")]));
        assert_eq!(found.served(), ["all", "hub"]);
        assert_eq!(
            partly(&found, "RepositoryGroup/all"),
            [(
                "MemberMissing",
                "spec.members[1] names team, and there is no repository of that name; create it, or remove it from spec.members".to_owned()
            )]
        );
        let healed = judged(&gathered(&[group("all", &["hub", "team"]), plain("hub"), hosted("team", json!({}))]));
        assert_eq!(healed.verdicts["RepositoryGroup/all"], Verdict::Good);
        assert_eq!(healed.repositories.len(), 3);
    }

    #[test]
    fn members_of_other_servers_and_members_that_are_refused_are_named() {
        let elsewhere = mirror("far", json!({"server": "other", "upstream": {"url": "https://far.example.com"}}));
        let found = judged(&gathered(&[group("all", &["far", "b"]), elsewhere, with_secret("b")]));
        let [(first, far), (second, refused)] = &partly(&found, "RepositoryGroup/all")[..] else {
            unreachable!("should be two")
        };
        assert_eq!((*first, *second), ("MemberOnOtherServer", "MemberNotServed"));
        assert!(far.contains(
            "names the RegistryMirror far, which the CacheServer other serves; set its spec.server to default"
        ));
        assert!(refused.contains("spec.members[1] names the RegistryMirror b, which is not served itself"));
    }

    #[test]
    fn every_group_of_a_ring_says_so_and_one_beside_it_does_not() {
        let found =
            judged(&gathered(&[group("a", &["b"]), group("b", &["c"]), group("c", &["a"]), group("d", &["a"])]));
        for (name, ring) in [("a", "a → b → c → a"), ("b", "b → c → a → b"), ("c", "c → a → b → c")] {
            let problems = partly(&found, &format!("RepositoryGroup/{name}"));
            assert_eq!(problems[0].0, "MemberCycle");
            assert!(problems[0].1.contains(&format!("({ring})")), "{}", problems[0].1);
        }
        assert_eq!(found.verdicts["RepositoryGroup/d"], Verdict::Good);
        assert_eq!(found.served().len(), 4, "all are served with what they have");
    }

    #[test]
    fn pushes_need_a_hosted_repository() {
        for (push_to, expected) in
            [("team", None), ("hub", Some("the RegistryMirror hub")), ("gone", Some("\"gone\", which does not exist"))]
        {
            let all = group_with("all", json!({"members": ["hub", "team"], "pushTo": push_to}));
            let found = judged(&gathered(&[all, plain("hub"), hosted("team", json!({}))]));
            match expected {
                None => assert_eq!(found.verdicts["RepositoryGroup/all"], Verdict::Good),
                Some(words) => assert!(partly(&found, "RepositoryGroup/all")[0].1.contains(words), "{push_to}"),
            }
        }
    }

    #[test]
    fn one_name_belongs_to_one_repository_of_all_kinds_and_servers() {
        let elsewhere = group_with("a", json!({"server": "other", "members": ["x"]}));
        for all in [[hosted("a", json!({})), group("a", &["x"])], [hosted("a", json!({})), elsewhere]] {
            let found = judged(&gathered(&all));
            assert_eq!(found.served(), ["a"]);
            assert_eq!(found.verdicts["HostedRepository/a"], Verdict::Good);
        }
        let late = judged(&gathered(&[plain("a"), hosted("a", json!({}))]));
        let Verdict::Refused(problem) = &late.verdicts["RegistryMirror/a"] else { unreachable!("should be refused") };
        assert!(problem.to_string().starts_with("the name a is that of the HostedRepository a already"), "{problem}");
    }

    #[test]
    fn connectors_are_judged_across_kinds() {
        let connectors = json!([{"port": 8181}]);
        let all = group_with("all", json!({"members": ["hub"], "connectors": connectors}));
        let found = judged(&gathered(&[plain("hub"), hosted("team", json!({"connectors": connectors})), all]));
        let Verdict::Refused(problem) = &found.verdicts["HostedRepository/team"] else { unreachable!("{found:?}") };
        assert!(problem.to_string().contains("port 8181 is taken by the RepositoryGroup all"), "{problem}");
        assert_eq!(found.ports, [Port { port: 8181, node_port: None }]);
    }

    #[test]
    fn a_node_port_takes_a_service_that_has_some() {
        let with = |name: &str, port: u16, node_port: u16| {
            hosted(name, json!({"connectors": [{"port": port, "nodePort": node_port}]}))
        };
        let found = judged(&gathered(&[with("a", 8181, 30181)]));
        assert_eq!(partly(&found, "HostedRepository/a")[0].0, "NoNodePorts");
        let mut gathered = gathered(&[with("a", 8181, 30181), with("b", 8182, 30181), with("c", 8183, 30500)]);
        let spec = json!({"service": {"type": "NodePort", "nodePort": 30500}});
        gathered.server = Arc::new(CacheServer::new("default", read(spec)));
        let found = judged(&gathered);
        assert_eq!(found.ports, [Port { port: 8181, node_port: Some(30181) }]);
        for (name, holder) in [("b", "the HostedRepository a"), ("c", "the main port of the cache server")] {
            let Verdict::Refused(problem) = &found.verdicts[&format!("HostedRepository/{name}")] else {
                unreachable!("{found:?}")
            };
            assert!(problem.to_string().contains(&format!("is taken by {holder}")), "{problem}");
        }
    }

    #[test]
    fn nodes_are_not_sent_where_they_would_have_to_log_in() {
        let nodes = json!({"registries": ["docker.io"]});
        let hub = || mirror("hub", json!({"upstream": {"url": "https://registry-1.docker.io"}}));
        let closed = |registry: &str| hosted("team", json!({"anonymousPull": false, "servesFor": [registry]}));
        let all =
            |open: bool| group_with("all", json!({"members": ["team", "hub"], "nodes": nodes, "anonymousPull": open}));
        for (repositories, who) in [
            ([all(true), hub(), closed("quay.io")], None),
            ([all(true), hub(), closed("docker.io")], Some("HostedRepository team")),
            ([all(false), hub(), closed("quay.io")], Some("RepositoryGroup all")),
        ] {
            let holders = crate::repository::holders(&repositories, &BTreeSet::new());
            let who = who.map(|who| Problem::LoginRequired { who: who.to_owned() });
            assert_eq!(login_for_nodes(&repositories[0], &holders), who);
        }
        // A closed group in it hides an open member, unless another way leads to it.
        let veil = |members: &[&str]| group_with("veil", json!({"members": members, "anonymousPull": false}));
        let open = |members: &[&str]| group_with("all", json!({"members": members, "nodes": nodes}));
        for (repositories, who) in [
            ([open(&["veil"]), veil(&["hub"]), hub()], Some("RepositoryGroup veil")),
            ([open(&["veil", "hub"]), veil(&["hub"]), hub()], None),
            ([open(&["veil", "hub"]), veil(&["quay"]), hub()], None),
        ] {
            let holders = crate::repository::holders(&repositories, &BTreeSet::new());
            let who = who.map(|who| Problem::LoginRequired { who: who.to_owned() });
            assert_eq!(login_for_nodes(&repositories[0], &holders), who);
        }
    }
}
