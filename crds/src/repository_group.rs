//! `RepositoryGroup`: an ordered union of repositories behind one address. May import `names`, `repository`, `nodes` and
//! `conditions`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    conditions::conditions_schema,
    nodes::{NodeCounts, NodesSpec},
    repository::{Connector, default_server, yes},
};

/// An ordered union of repositories behind one address: the first member that has an image answers.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "RepositoryGroup",
    plural = "repositorygroups",
    singular = "repositorygroup",
    shortname = "rgroup",
    category = "entrepot",
    doc = "An ordered union of repositories behind one address: the first member that has an image answers.",
    status = "RepositoryGroupStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the cache server serves this group with all of its members"
    ),
    printcolumn(name = "Members", type_ = "string", json_path = ".spec.members", description = "In the order in which they are asked"),
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
    validation = Rule::new("!(self.metadata.name in self.spec.members)")
        .message("members must not contain the group itself"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.members.size() > 0").message("members must name at least one repository"),
    validation = Rule::new("self.members.all(member, self.members.exists_one(other, other == member))")
        .message("members must name each repository once"),
    validation = Rule::new("!has(self.nodes) || (has(self.nodes.registries) && self.nodes.registries.size() > 0)")
        .message("nodes.registries must name the registries that nodes pull through the group (docker.io): a group has none of its own"),
)]
pub struct RepositoryGroupSpec {
    /// Name of the `CacheServer` that serves this group and all of its members.
    #[serde(default = "default_server")]
    #[schemars(length(min = 1, max = 63))]
    pub server: String,

    /// Whether the group serves at all. When false every request is answered 503 with a message that says so.
    #[serde(default = "yes")]
    pub online: bool,

    /// Whether everyone who reaches the group may pull from it. A member that asks for a login asks for it here too.
    #[serde(default = "yes")]
    pub anonymous_pull: bool,

    /// Whether `docker search` works through this group (`/v1/search`): in the members that have it switched on, and in the
    /// hosted ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub v1_search: bool,

    /// Names of mirrors, hosted repositories and other groups, in the order in which they are asked.
    #[schemars(schema_with = "members_schema")]
    pub members: Vec<String>,

    /// The hosted member that takes what is pushed to the group. Unset: the group takes no pushes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub push_to: Option<String>,

    /// Further ways in to this group, beside `/repository/<name>/v2/` and `/v2/<name>/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub connectors: Vec<Connector>,

    /// Which nodes of the cluster pull through this group, and for which registries: those must be named. Unset: none. Only in
    /// a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesSpec>,
}

/// How a group is, as the operator sees it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositoryGroupStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Where the group is served inside the cluster, as node files name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// How many nodes pull through it. Unset without `spec.nodes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCounts>,

    /// Ready, Progressing, `NodesConfigured`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// A list whose order is kept, and which is replaced as a whole: merged by name, a member would come in somewhere.
fn members_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": {"type": "string", "minLength": 1, "maxLength": 63},
        "x-kubernetes-list-type": "atomic",
    })
}
