//! `RegistryMirror`: a repository that proxies one upstream. May import `names`, `nodes`, `repository` and `conditions`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    conditions::conditions_schema,
    names::{REGISTRY_PATTERN, SecretRef, Span},
    nodes::{NodeCounts, NodesSpec},
    repository::{Connector, Retention, default_server, yes},
};

/// A repository that proxies one upstream registry: each image is fetched once, kept, and handed on.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "RegistryMirror",
    plural = "registrymirrors",
    singular = "registrymirror",
    shortname = "rmir",
    category = "entrepot",
    doc = "A repository that proxies one upstream registry: each image is fetched once, kept, and handed on.",
    status = "RegistryMirrorStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the cache server serves this mirror as it is written here"
    ),
    printcolumn(name = "Registry", type_ = "string", json_path = ".status.registry", description = "What it stands for"),
    printcolumn(
        name = "Upstream",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"UpstreamReachable\")].status",
        description = "Whether the upstream answers"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes.summary",
        description = "Nodes that were seen to pull through it, of those that are meant"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Server", type_ = "string", priority = 1, json_path = ".spec.server"),
    printcolumn(name = "Endpoint", type_ = "string", priority = 1, json_path = ".status.endpoint"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    cel,
    validation = Rule::new("!self.metadata.name.contains('.') && self.metadata.name.size() <= 63")
        .message("a repository name must be 1 to 63 of a-z, 0-9 and '-': it stands in paths, where a dot marks a registry"),
    validation = Rule::new("!(self.metadata.name in ['library', 'token', 'v1', 'v2', 'api', 'repository', 'probe'])")
        .message("a repository must not be named library, token, v1, v2, api, repository or probe: that path means something else; choose another name"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.upstream.credentialsSecretRef) || has(self.anonymousPull)")
        .message("anonymousPull must be set when credentialsSecretRef is: what the credentials may read becomes readable by everyone who reaches the mirror"),
)]
pub struct RegistryMirrorSpec {
    /// Name of the `CacheServer` that serves this mirror.
    #[serde(default = "default_server")]
    #[schemars(length(min = 1, max = 63))]
    pub server: String,

    /// Whether the mirror serves at all. When false every request is answered 503 with a message that says so.
    #[serde(default = "yes")]
    pub online: bool,

    /// The registry that is proxied.
    pub upstream: UpstreamSpec,

    /// Whether everyone who reaches the mirror may pull from it; when false only who is logged in and has the permission (`auth` of the `CacheServer`). Unset: true. Must be stated when the upstream has credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anonymous_pull: Option<bool>,

    /// Whether `docker search` works through this mirror (`/v1/search`). It asks `upstream.index`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub v1_search: bool,

    /// For how long answers are believed, and what happens when the upstream cannot be asked.
    #[serde(default)]
    pub freshness: Freshness,

    /// What is kept, and for how long.
    #[serde(default)]
    pub retention: Retention,

    /// Further ways in to this mirror, beside `/repository/<name>/v2/`, the `ns` parameter and `/v2/<name>/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub connectors: Vec<Connector>,

    /// Which nodes of the cluster pull through this mirror. Unset: none; an empty object: all. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesSpec>,
}

/// How a mirror is, as the operator sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistryMirrorStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The registry that the mirror stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Where the mirror is served inside the cluster, as node files name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How many nodes pull through it. Unset without `spec.nodes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,
    /// Ready, Progressing, `UpstreamReachable`, `NodesConfigured`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The registry that a mirror proxies, and how it is reached.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.url.startsWith('https://') || self.url.startsWith('http://')")
        .message("url must start with https:// or http://"),
    validation = Rule::new("!self.url.contains('@')")
        .message("url must not contain credentials; put them into a Secret and name it in credentialsSecretRef"),
    validation = Rule::new("!has(self.insecureSkipVerify) || !self.insecureSkipVerify || !has(self.caBundle)")
        .message("insecureSkipVerify must not be set together with caBundle: with it no certificate is checked"),
    validation = Rule::new("!has(self.insecureSkipVerify) || !self.insecureSkipVerify || self.url.startsWith('https://')")
        .message("insecureSkipVerify must only be set with an https:// url"),
    validation = Rule::new("!has(self.caBundle) || self.caBundle.startsWith('-----BEGIN') || self.caBundle.contains('\\n-----BEGIN')")
        .message("caBundle must be certificates in PEM (-----BEGIN CERTIFICATE-----), not base64 of them"),
    validation = Rule::new("!has(self.proxyURL) || self.proxyURL.startsWith('http://') || self.proxyURL.startsWith('https://')")
        .message("proxyURL must start with http:// or https://"),
    validation = Rule::new("!has(self.proxyURL) || !self.proxyURL.contains('@')")
        .message("proxyURL must not contain credentials: this version does not log in to proxies"),
    validation = Rule::new("!has(self.limits) || [self.limits.connect, self.limits.header, self.limits.headerWithCopy].all(limit, duration(limit) > duration('0s'))")
        .message("limits.connect, limits.header and limits.headerWithCopy must be longer than 0s"),
    validation = Rule::new("!has(self.limits) || duration(self.limits.stall.window) >= duration('1s')")
        .message("limits.stall.window must be at least 1s"),
    validation = Rule::new("!has(self.breaker) || duration(self.breaker.minOpen) > duration('0s')")
        .message("breaker.minOpen must be longer than 0s"),
    validation = Rule::new("!has(self.breaker) || duration(self.breaker.minOpen) <= duration(self.breaker.maxOpen)")
        .message("breaker.minOpen must not be longer than breaker.maxOpen"),
)]
pub struct UpstreamSpec {
    /// The registry that this mirror stands for, as images name it (`docker.io`, `ghcr.io`, `registry.example.com:5000`).
    /// Default: the host of `url`; `docker.io` for `registry-1.docker.io`. No two mirrors of a server have the same; in a group,
    /// mirrors of one `url` answer for each other's registries.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 260), regex(pattern = REGISTRY_PATTERN))]
    pub registry: Option<String>,

    /// Where the registry is: scheme, host, optional port, optional path in front of `/v2/`. Example: `https://registry-1.docker.io`.
    #[schemars(length(min = 8, max = 2048))]
    pub url: String,

    /// Secret with the credentials for the upstream: `kubernetes.io/dockerconfigjson`, `kubernetes.io/basic-auth`, or
    /// keys `username` and `password`. Without it the upstream is asked anonymously.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,

    /// Certificates (PEM) that are trusted for this upstream, its token server and its redirects, beside the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub ca_bundle: Option<String>,

    /// Secret with `tls.crt` and `tls.key`: the certificate that is shown to the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretRef>,

    /// Whether the upstream's certificate goes unchecked. Anyone on the way can then read credentials and answer in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,

    /// HTTP proxy through which the upstream, its token server and its redirects are reached. Example: `http://proxy.example.com:3128`.
    #[serde(rename = "proxyURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    pub proxy_url: Option<String>,

    /// Further hosts (`auth.example.com`, or with a port) that may be given the credentials when the upstream names them as its
    /// token server. Always allowed: the upstream's own host and hosts of its registrable domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 260)))]
    pub token_hosts: Vec<String>,

    /// Hosts to which redirects may lead although they are at private addresses, for instance an object store on premises.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 260)))]
    pub redirect_hosts: Vec<String>,

    /// Where `v1Search` looks for images. Unset: Docker Hub's index for a mirror of Docker Hub, else the upstream itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexSpec>,

    /// Time limits and bounds towards the upstream.
    #[serde(default)]
    pub limits: UpstreamLimits,

    /// When a failing upstream is left alone.
    #[serde(default)]
    pub breaker: BreakerSpec,
}

/// Where images are looked for. It is asked like the upstream, and never given the upstream's credentials unless it is at the
/// same origin.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(self.type == 'Custom') == has(self.url)")
        .message("index.url must be set when index.type is Custom, and only then"),
    validation = Rule::new("!has(self.url) || self.url.startsWith('https://') || self.url.startsWith('http://')")
        .message("index.url must start with https:// or http://"),
    validation = Rule::new("!has(self.url) || !self.url.contains('@')").message("index.url must not contain credentials"),
    validation = Rule::new("!has(self.url) || !self.url.contains('/v1')")
        .message("index.url must be what stands in front of /v1/search; remove /v1 and what follows"),
)]
pub struct IndexSpec {
    /// Which index.
    #[serde(rename = "type")]
    pub type_: IndexType,
    /// What stands in front of `/v1/search`, for `Custom`. Example: `https://index.example.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    pub url: Option<String>,
}

/// Which index.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexType {
    /// Docker Hub's.
    DockerHub,
    /// The upstream: its own `/v1/search`, or if it has none the names in its catalog (`/v2/_catalog`).
    Registry,
    /// Another one, at `url`.
    Custom,
}

/// Time limits and bounds towards an upstream. There is never a total limit on a body.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UpstreamLimits {
    /// For a connection to be made, TLS included.
    pub connect: Span,
    /// For an answer's header when nothing cached could be served instead.
    pub header: Span,
    /// For an answer's header when a cached copy could be served instead.
    pub header_with_copy: Span,
    /// When a body that hardly flows is given up and resumed on a new connection.
    pub stall: StallLimit,
    /// How often in a row a broken transfer is resumed without progress before it has failed for good.
    #[schemars(range(min = 0, max = 100))]
    pub resumes: u32,
    /// How many redirects are followed before the answer is 502.
    #[schemars(range(min = 0, max = 20))]
    pub redirects: u32,
    /// How many requests are under way at the upstream at once; more wait.
    #[schemars(range(min = 1, max = 4096))]
    pub concurrency: u32,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self {
            connect: Span::secs(5),
            header: Span::secs(10),
            header_with_copy: Span::secs(2),
            stall: StallLimit::default(),
            resumes: 3,
            redirects: 5,
            concurrency: 64,
        }
    }
}

/// A body stalls when fewer than `bytesPerSecond` arrive on average over `window`.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StallLimit {
    /// The time over which the rate is taken.
    pub window: Span,
    /// The least rate, in bytes per second.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub bytes_per_second: u64,
}

impl Default for StallLimit {
    fn default() -> Self {
        Self { window: Span::secs(30), bytes_per_second: 1024 }
    }
}

/// When a failing upstream is left alone. It decides only whether to ask, never whether to serve.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BreakerSpec {
    /// How many failures in a row open it.
    #[schemars(range(min = 1, max = 1000))]
    pub failures: u32,
    /// For how long it stays open the first time.
    pub min_open: Span,
    /// For how long it stays open at most; each failed probe doubles the time.
    pub max_open: Span,
}

impl Default for BreakerSpec {
    fn default() -> Self {
        Self { failures: 3, min_open: Span::secs(10), max_open: Span::secs(300) }
    }
}

/// For how long answers are believed, and what happens when the upstream cannot be asked.
/// A digest is never revalidated.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Freshness {
    /// For how long a tag is served without asking the upstream whether it moved.
    pub tags: Span,
    /// For how long the upstream's 404 is remembered.
    pub not_found: Span,
    /// For how long the upstream's 401 or 403 is remembered.
    pub denied: Span,
    /// How old a cached tag may be, since it was last confirmed, to be served while the upstream fails. Unset: any age.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Span>,
    /// For how long after `tags` a tag is served at once while the upstream is asked in the background. Zero: the upstream is asked first.
    pub stale_while_revalidate: Span,
    /// What happens to cached content when the upstream says that these credentials may not read it (any more).
    pub on_denied: OnDenied,
    /// For how long a mirror client that comes back for the rest of a blob whose transfer broke off for good is sent on to its next host.
    pub broken_blob: Span,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            tags: Span::secs(300),
            not_found: Span::secs(60),
            denied: Span::secs(60),
            stale_if_error: None,
            stale_while_revalidate: Span::secs(0),
            on_denied: OnDenied::Refuse,
            broken_blob: Span::secs(30),
        }
    }
}

/// What happens to cached content when the upstream denies it.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDenied {
    /// It is not served.
    Refuse,
    /// It is served all the same.
    ServeCached,
}
