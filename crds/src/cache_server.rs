//! `CacheServer`: the process that serves repositories. May import `names`, `repository` and `conditions`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    conditions::conditions_schema,
    names::{ByteSize, REPOSITORY_GLOB_PATTERN, SecretRef, Span},
    repository::IMAGE_GLOB_PATTERN,
};

/// The process that serves repositories: one store, one main port, and what holds for all of its repositories.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "CacheServer",
    plural = "cacheservers",
    singular = "cacheserver",
    shortname = "cserver",
    category = "entrepot",
    doc = "The process that serves repositories.",
    status = "CacheServerStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it runs and serves what is written here"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Where it serves"),
    printcolumn(
        name = "Storage",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"StorageHealthy\")].status",
        description = "Whether it can keep what it fetches"
    ),
    printcolumn(
        name = "Repositories",
        type_ = "integer",
        json_path = ".status.repositoryCount",
        description = "How many repositories it serves"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    cel,
    validation = Rule::new("!self.metadata.name.contains('.') && self.metadata.name.size() <= 50")
        .message("the name of a CacheServer must be 1 to 50 of a-z, 0-9 and '-': its Deployment and Service are named after it"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.limits) || [self.limits.requestHeader, self.limits.idle, self.limits.writeStall].all(limit, duration(limit) > duration('0s'))")
        .message("limits.requestHeader, limits.idle and limits.writeStall must be longer than 0s"),
    validation = Rule::new("!has(self.storage) || has(self.storage.volume) != has(self.storage.emptyDir)")
        .message("storage must have either volume or emptyDir"),
    validation = Rule::new("!has(oldSelf.storage) || !has(self.storage) || has(oldSelf.storage.volume) == has(self.storage.volume)")
        .message("storage must not change between volume and emptyDir: create another CacheServer and move the mirrors to it"),
    validation = Rule::new("!has(self.service) || !has(self.service.nodePort) || (has(self.service.type) && self.service.type != 'ClusterIP')")
        .message("service.nodePort must only be set with type NodePort or LoadBalancer"),
    validation = Rule::new("!has(self.externalURL) || self.externalURL.matches('^https?://[^/?#@]+/?$')")
        .message("externalURL must be http:// or https://, a host and at most a port: clients of the registry API begin at /v2/ of a host"),
)]
pub struct CacheServerSpec {
    /// The most that all stored content may take. Cleaning begins at 85 % of it and ends at 75 %. Unset: 80 % of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,

    /// The certificate of the main port.
    #[serde(default)]
    pub tls: ServerTls,

    /// The repository that answers `/v2/<name>/` when nothing else in the request says which. Unset: the only one, if there is one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub default_repository: Option<String>,

    /// Time limits towards clients.
    #[serde(default)]
    pub limits: ClientLimits,

    /// Who may log in, and what they may do. Unset: nobody, so that only anonymous pulls are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,

    /// Where clients reach the server, for the addresses that answers name: `https://registry.example.com`. Unset: what each request says of itself (`X-Forwarded-Proto`, `X-Forwarded-Host`, `Host`).
    #[serde(rename = "externalURL", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 300))]
    pub external_url: Option<String>,

    /// Networks of reverse proxies (`10.0.0.0/8`) whose `X-Forwarded-For` is believed: client addresses in the log and the limit of failed logins are then the clients' own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 50)))]
    pub trusted_proxies: Vec<String>,

    /// The image of the cache server. Default: the one that the operator was installed with. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,

    /// Where content is kept. Default: a volume of 50Gi of the cluster's default storage class. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageSpec>,

    /// How the server is reached. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSpec>,

    /// The container's requests and limits. Default: requests of 100m and 128Mi, a memory limit of 1Gi. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "as_in_a_pod")]
    pub resources: Option<ResourceRequirements>,

    /// Labels of the nodes that the pod may run on. Only in a cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the pod tolerates. Only in a cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_as_in_a_pod")]
    pub tolerations: Vec<Toleration>,

    /// Where the pod runs, as in a pod. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "as_in_a_pod")]
    pub affinity: Option<Affinity>,

    /// How pods are spread, as in a pod. Only in a cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list_as_in_a_pod")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,

    /// The pod's priority class. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,

    /// What the pod carries beside. Only in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

impl CacheServerSpec {
    /// The fields that describe a Deployment, as they are written: they only work in a cluster.
    pub const WORKLOAD_FIELDS: [&str; 10] = [
        "image",
        "storage",
        "service",
        "resources",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
        "podTemplate",
    ];
}

/// Who may log in, and what they may do.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthSpec {
    /// Secret with users and their passwords: the key `htpasswd` (or `auth`), a line `user:hash` each, bcrypt only (`htpasswd -B`). Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub htpasswd_secret_ref: Option<SecretRef>,
    /// Whether tokens of Kubernetes service accounts with the audience `entrepot` are logins, as `system:serviceaccount:<namespace>:<name>`. Only in a cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service_accounts: bool,
    /// Who may do what. Pulls that are anonymous need none; nobody pushes or deletes who is not named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub permissions: Vec<PermissionSpec>,
}

/// Some users, and what they may do with some images of some repositories.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.users.size() > 0 && self.repositories.size() > 0 && self.images.size() > 0 && self.actions.size() > 0")
        .message("users, repositories, images and actions must each name something, or the permission means nothing"),
)]
pub struct PermissionSpec {
    /// User names, `system:serviceaccount:<namespace>:<name>`, groups as `system:serviceaccounts:<namespace>`, or `*` for everyone who is logged in.
    #[schemars(length(max = 64), inner(length(min = 1, max = 320)))]
    pub users: Vec<String>,
    /// Names of repositories; `*` stands for any characters.
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = REPOSITORY_GLOB_PATTERN)))]
    pub repositories: Vec<String>,
    /// Names of images in them; `*` stands for any characters but `/`, `**` for any at all.
    #[serde(default = "all_images")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255), regex(pattern = IMAGE_GLOB_PATTERN)))]
    pub images: Vec<String>,
    /// What they may do.
    #[schemars(length(max = 3))]
    pub actions: Vec<PermittedAction>,
}

/// What a permission allows.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermittedAction {
    /// Reading manifests, blobs, tags and referrers where anonymous pulls are off.
    Pull,
    /// Writing them. Engines read while they push: give `Pull` too where anonymous pulls are off.
    Push,
    /// Deleting them.
    Delete,
}

fn all_images() -> Vec<String> {
    vec!["**".to_owned()]
}

/// Where content is kept: exactly one of the two.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StorageSpec {
    /// A volume that outlives pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSpec>,
    /// The node's disk, emptied with each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirSpec>,
}

/// A volume that outlives pods, and by default the release.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.existingClaim) || (!has(self.size) && !has(self.storageClassName) && (!has(self.onDelete) || self.onDelete == 'Retain'))")
        .message("size, storageClassName and onDelete: Delete must not be set together with existingClaim, which is not ours to make or delete"),
)]
pub struct VolumeSpec {
    /// Its size. Default: 50Gi. It may grow where the storage class allows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Its storage class. Unset: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
    /// A claim in the release namespace that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub existing_claim: Option<String>,
    /// What happens to the claim when the `CacheServer` is deleted.
    #[serde(default)]
    pub on_delete: OnDelete,
}

/// What happens to a claim when its `CacheServer` is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDelete {
    /// It stays, and a `CacheServer` of the same name finds it again.
    #[default]
    Retain,
    /// It goes, with all content.
    Delete,
}

/// The node's disk.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDirSpec {
    /// The most it may take; beyond that the kubelet ends the pod. Set `maxSize` to less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<ByteSize>,
}

/// How the server is reached. The Service is changed in place and never made anew, because nodes know its address.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its type. Nodes use its cluster IP whatever the type.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// The port that every node opens. Unset: one of Kubernetes' choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<u16>,
    /// Annotations of the Service, which load balancers read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A type of Service.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Inside the cluster only.
    #[default]
    ClusterIP,
    /// A port of every node too.
    NodePort,
    /// A load balancer too.
    LoadBalancer,
}

/// What a pod carries beside what it needs.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodTemplate {
    /// Labels of the pod, beside ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod, beside ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How a cache server is, as the operator sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CacheServerStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it serves inside the cluster: `https://10.96.0.7:5000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// How many repositories it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_count: Option<u32>,
    /// The repositories that it serves, of all kinds. Who is written here keeps its name when another kind claims it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub repositories: Vec<ServedRepository>,
    /// Which repository a registry leads to. Who is written here keeps it when another one claims it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["registry"]))]
    pub registries: Vec<RegistryHolder>,
    /// Ready, Progressing, `StorageHealthy`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// A repository that is served.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedRepository {
    /// The repository's name.
    pub name: String,
    /// The kind of its object.
    pub kind: String,
    /// The `metadata.uid` of its object.
    pub uid: String,
}

/// Which repository a registry leads to.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryHolder {
    /// The registry, as images name it.
    pub registry: String,
    /// The repository's name.
    pub repository: String,
    /// The `metadata.uid` of the repository's object.
    pub uid: String,
}

/// Kubernetes' own type; the apiserver checks it when the Deployment is applied.
fn as_in_a_pod(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A list of them.
fn list_as_in_a_pod(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": as_in_a_pod(generator), "maxItems": 32})
}

/// The certificate of the main port.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(has(self.mode) && self.mode == 'Secret') == has(self.secretRef)")
        .message("secretRef must be set when mode is Secret, and only then"),
)]
pub struct ServerTls {
    /// Where the certificate comes from. Unset: `Managed` in a cluster, `Disabled` elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// With mode `Secret`: the Secret with `tls.crt` and `tls.key`. Read again when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// Where a certificate comes from.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// From the operator's own authority, renewed by itself. Only in a cluster.
    Managed,
    /// From a Secret.
    Secret,
    /// Nowhere: plain HTTP.
    Disabled,
}

/// Time limits towards clients. There is never a total limit on a body.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientLimits {
    /// For a request's header to arrive whole, from its first byte.
    pub request_header: Span,
    /// For how long a connection without a request is kept.
    pub idle: Span,
    /// A client that takes nothing of its answer for this long is dropped.
    pub write_stall: Span,
    /// For how long running transfers may go on after SIGTERM.
    pub drain: Span,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            request_header: Span::secs(10),
            idle: Span::secs(120),
            write_stall: Span::secs(60),
            drain: Span::secs(30),
        }
    }
}
