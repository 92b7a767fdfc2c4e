//! `HostedRepository`: a repository that takes pushes. May import `names`, `repository` and `conditions`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    conditions::conditions_schema,
    names::REGISTRY_PATTERN,
    repository::{Connector, IMAGE_GLOB_PATTERN, Retention, TAG_GLOB_PATTERN, default_server, yes},
};

/// A repository that takes pushes and serves them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "HostedRepository",
    plural = "hostedrepositories",
    singular = "hostedrepository",
    shortname = "hrepo",
    category = "entrepot",
    doc = "A repository that takes pushes and serves them.",
    status = "HostedRepositoryStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the cache server serves this repository as it is written here"
    ),
    printcolumn(name = "Writes", type_ = "string", json_path = ".spec.writePolicy", description = "What pushes may do"),
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
pub struct HostedRepositorySpec {
    /// Name of the `CacheServer` that serves this repository.
    #[serde(default = "default_server")]
    #[schemars(length(min = 1, max = 63))]
    pub server: String,

    /// Whether the repository serves at all. When false every request is answered 503 with a message that says so.
    #[serde(default = "yes")]
    pub online: bool,

    /// Whether everyone who reaches the repository may pull from it. Pushing and deleting always take a login with a
    /// permission in `CacheServer.spec.auth`.
    #[serde(default = "yes")]
    pub anonymous_pull: bool,

    /// What pushes may do.
    #[serde(default)]
    pub write_policy: WritePolicy,

    /// Tags that cannot be moved or deleted once they exist, as patterns in which `*` stands for any characters (`v*`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128), regex(pattern = TAG_GLOB_PATTERN)))]
    pub immutable_tags: Vec<String>,

    /// Whether an image may name blobs that were never pushed (to be pushed later, or kept elsewhere). When false such a
    /// manifest is refused with `MANIFEST_BLOB_UNKNOWN`, since nobody could pull it. An index may name manifests that are
    /// not here in any case: many hold a few platforms of an image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sparse_images: bool,

    /// Image names that belong here: no group that this repository is a member of asks another member for them, whether they
    /// are here or not. Patterns in which `*` stands for any characters but `/`, and `**` for any (`team1/**`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 255), regex(pattern = IMAGE_GLOB_PATTERN)))]
    pub reserved_names: Vec<String>,

    /// Registries that this repository may answer for within a group, when a request says which registry it means
    /// (`docker.io`). Unset: none, so that nothing pushed here is ever taken for an image of a registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 260), regex(pattern = REGISTRY_PATTERN)))]
    pub serves_for: Vec<String>,

    /// What is kept, and for how long. Without it everything is, until it is deleted.
    #[serde(default)]
    pub retention: Retention,

    /// Further ways in to this repository, beside `/repository/<name>/v2/` and `/v2/<name>/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub connectors: Vec<Connector>,
}

/// What pushes may do.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WritePolicy {
    /// Push and move tags.
    #[default]
    Allow,
    /// Push, but no tag that exists is moved.
    AllowOnce,
    /// Nothing is pushed or deleted.
    ReadOnly,
}

/// How a hosted repository is, as the operator sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostedRepositoryStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Where the repository is served inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// Ready, Progressing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
