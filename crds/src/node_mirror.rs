//! `NodeMirror`: what one node's agent shall write, and what it found. May import `names`, `nodes` and `conditions`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    conditions::conditions_schema,
    names::REGISTRY_PATTERN,
    nodes::{Fallback, Foreign, ProbeSpec},
};

/// The mirror configuration of one node: its name is the node's, its spec is written by the operator, its status by the
/// node's agent. While there is no such object the agent leaves a node's files as they are; `entries: []` restores them.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "entrepot.dev",
    version = "v1alpha1",
    kind = "NodeMirror",
    plural = "nodemirrors",
    singular = "nodemirror",
    shortname = "nmir",
    category = "entrepot",
    doc = "The mirror configuration of one node. Written by the operator; the status by the node's agent.",
    status = "NodeMirrorStatus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether everything that was asked for is in force"
    ),
    printcolumn(
        name = "Reads files",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"RuntimeReadsFiles\")].status",
        description = "Whether the runtime reads the files that are written"
    ),
    printcolumn(
        name = "Verified",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Verified\")].status",
        description = "Whether a pull of this node was seen at the cache"
    ),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtime.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    cel
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeMirrorSpec {
    /// What the node's files shall say, one entry per registry. Empty: restore what was there before us.
    #[schemars(length(max = 1024))]
    pub entries: Vec<NodeEntry>,

    /// The pull by which it is seen that the runtime reads the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// The files for one registry.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeEntry {
    /// The registry as images name it.
    #[schemars(length(min = 1, max = 260), regex(pattern = REGISTRY_PATTERN))]
    pub registry: String,
    /// Where the runtime asks first: the repository at the cache, without `/v2/`. The agent's probe asks the same URL.
    #[schemars(length(min = 8, max = 2048))]
    pub url: String,
    /// The repository behind `url`, which its answers name.
    #[schemars(length(min = 1, max = 63))]
    pub repository: String,
    /// Certificates (PEM) that sign the cache's. Unset with an `http://` URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// What the runtime asks last: the registry itself. Unset: what the runtime takes for the registry by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048))]
    pub server: Option<String>,
    /// Whether the runtime goes on to the registry itself.
    #[serde(default)]
    pub fallback: Fallback,
    /// What happens to configuration of someone else.
    #[serde(default)]
    pub foreign: Foreign,
    /// How often the URL is asked, and how often it must fail or succeed.
    #[serde(default)]
    pub probe: ProbeSpec,
}

/// The pull by which it is seen that a runtime reads its files: nobody but the cache answers for this registry.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Canary {
    /// `probe.entrepot.invalid`.
    #[schemars(length(min = 1, max = 260), regex(pattern = REGISTRY_PATTERN))]
    pub registry: String,
    /// Where the runtime asks, as in an entry.
    #[schemars(length(min = 8, max = 2048))]
    pub url: String,
    /// Certificates (PEM) that sign the cache's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// The tag that is pulled: another one whenever the node must be verified anew.
    #[schemars(length(min = 1, max = 64))]
    pub nonce: String,
}

/// What a node's agent found and did.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeMirrorStatus {
    /// The generation of the spec that the agent has read and acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The runtime of the node, as far as its files tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeStatus>,
    /// One entry per registry of the spec, and those that are still being restored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["registry"]))]
    pub entries: Vec<NodeEntryStatus>,
    /// Written by the operator: the last canary of this node that reached the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// Of the agent: Ready, `RuntimeReadsFiles`. Of the operator: Verified.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// The runtime of a node, as far as its files tell.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeStatus {
    /// `containerd`.
    pub name: String,
    /// Its version, or its major version where only that is known (`2.1.9`, `1.x`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its `config_path`, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_path: Option<String>,
    /// Changes whenever the runtime's configuration does; a canary that went through says nothing beyond that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// What became of one entry.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEntryStatus {
    /// The registry as images name it.
    pub registry: String,
    /// What is in force.
    pub state: EntryState,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when the state is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The hash of the entry that is in force, as [`NodeEntry::hash`] gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

/// What is in force for a registry on a node.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryState {
    /// Nothing yet: the cache did not answer this node so far.
    Pending,
    /// The node's files name the cache.
    Configured,
    /// The cache stopped answering this node; its files are as if we were not there.
    Withdrawn,
    /// The files could not be written or restored.
    Failed,
    /// Files of someone else are in the way and stay as they are.
    Conflict,
}

/// A canary that reached the cache.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// [`Canary::nonce`].
    pub nonce: String,
    /// When the cache saw it.
    pub time: Time,
}

impl NodeEntry {
    /// A sign of everything in the entry that shows in a node's files; probes' times do not.
    #[must_use]
    pub fn hash(&self) -> String {
        use std::hash::Hasher;
        let shown =
            serde_json::json!([self.registry, self.url, self.ca_bundle, self.server, self.fallback, self.foreign,]);
        // FNV: the same on every machine and in every build; nobody gains from a collision.
        let mut hasher = fnv::FnvHasher::default();
        hasher.write(shown.to_string().as_bytes());
        format!("{:016x}", hasher.finish())
    }
}
