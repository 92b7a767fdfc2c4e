//! What a repository wants of nodes: which of them pull through it, for which registries, and how carefully they are
//! switched over. May import `names`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::names::{REGISTRY_PATTERN, Span};

/// Which nodes pull through a repository, and how. An empty object means every node, with the defaults.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.fallback) || self.fallback == 'Allow' || (has(self.acknowledgeBootstrapRisk) && self.acknowledgeBootstrapRisk)")
        .message("acknowledgeBootstrapRisk must be true when fallback is Never: nodes then pull nothing of these registries while the cache is down, the cache's and the network plugin's own images included"),
    validation = Rule::new("!has(self.probe) || [self.probe.interval, self.probe.timeout].all(limit, duration(limit) > duration('0s'))")
        .message("probe.interval and probe.timeout must be longer than 0s"),
)]
pub struct NodesSpec {
    /// The registries whose images nodes pull through this repository (`docker.io`). Default: the one that the mirror stands for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 260), regex(pattern = REGISTRY_PATTERN)))]
    pub registries: Vec<String>,

    /// Labels of the nodes that are meant. Unset: every Linux node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label_selector")]
    pub selector: Option<LabelSelector>,

    /// Whether a node goes on to the registry itself when the cache fails.
    #[serde(default)]
    pub fallback: Fallback,

    /// Must be true with `fallback: Never`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acknowledge_bootstrap_risk: bool,

    /// What happens to mirror configuration of someone else that a node has for the same registry.
    #[serde(default)]
    pub foreign: Foreign,

    /// How the agent finds out whether a node may pull through the cache.
    #[serde(default)]
    pub probe: ProbeSpec,

    /// How fast a change reaches the nodes.
    #[serde(default)]
    pub rollout: RolloutSpec,
}

/// Nodes, counted by what is in force on them.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// `<verified> of <desired>`.
    pub summary: String,
    /// Nodes that are meant.
    pub desired: u32,
    /// Of them, those whose files name the cache.
    pub configured: u32,
    /// Of them, those that were seen to pull through it.
    pub verified: u32,
    /// Nodes that left it out because it did not answer them.
    pub withdrawn: u32,
    /// Nodes whose files could not be written, or are someone else's.
    pub failed: u32,
}

/// Whether a node goes on to the registry itself when the cache fails.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fallback {
    /// It does. A cache that is down never stops a cluster.
    #[default]
    Allow,
    /// It does not: what the cache cannot serve is not pulled.
    Never,
}

/// What happens to mirror configuration of someone else for the same registry. It is put back, byte for byte, when ours goes.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Foreign {
    /// The cache is asked first, then what was configured before.
    #[default]
    Prepend,
    /// Only the cache, and the registry itself, are asked.
    Replace,
    /// The node keeps what it has and does not pull through the cache.
    Skip,
}

/// How the agent finds out whether a node may pull through the cache: it asks the very URL that node files name.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProbeSpec {
    /// Time between two probes while nothing changes. After a first failure or success it is at most 1 s.
    pub interval: Span,
    /// For an answer to arrive.
    pub timeout: Span,
    /// How many failures in a row withdraw the cache from the node's files.
    #[schemars(range(min = 1, max = 100))]
    pub failures: u32,
    /// How many successes in a row bring it in, or back.
    #[schemars(range(min = 1, max = 100))]
    pub successes: u32,
}

impl Default for ProbeSpec {
    fn default() -> Self {
        Self { interval: Span::secs(5), timeout: Span::secs(1), failures: 3, successes: 3 }
    }
}

/// How fast a change reaches the nodes.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutSpec {
    /// How many per cent of the nodes (at least one node) may be changed and not yet verified at a time.
    #[schemars(range(min = 1, max = 100))]
    pub max_unavailable_percent: u32,
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self { max_unavailable_percent: 10 }
    }
}

/// The schema of a label selector, as everywhere in Kubernetes, with bounds.
fn label_selector(_: &mut SchemaGenerator) -> Schema {
    let label = || json_schema!({"type": "string", "maxLength": 63});
    let key = json_schema!({"type": "string", "maxLength": 317, "description": "The label's key."});
    json_schema!({
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": {
                "description": "Labels that a node must have, with these values.",
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": label(),
            },
            "matchExpressions": {
                "description": "Rules that a node's labels must keep, all of them.",
                "type": "array",
                "maxItems": 32,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": key,
                        "operator": {
                            "description": "How the label's value relates to the values.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "The values that are meant; none with Exists and DoesNotExist.",
                            "type": "array",
                            "maxItems": 64,
                            "items": label(),
                        },
                    },
                },
            },
        },
    })
}
