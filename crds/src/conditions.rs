//! Types of conditions, the same word in every kind. May import nothing of ours.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Everything that was asked for is in force.
pub const READY: &str = "Ready";
/// The operator, or what it started, is still on the way to what was asked for.
pub const PROGRESSING: &str = "Progressing";
/// The upstream answers the cache server, with the mirror's credentials.
pub const UPSTREAM_REACHABLE: &str = "UpstreamReachable";
/// The cache server can keep what it fetches.
pub const STORAGE_HEALTHY: &str = "StorageHealthy";
/// Every node that is meant pulls through the repository, and was seen to.
pub const NODES_CONFIGURED: &str = "NodesConfigured";
/// Of a `NodeMirror`: the runtime reads the files that the agent writes.
pub const RUNTIME_READS_FILES: &str = "RuntimeReadsFiles";
/// Of a `NodeMirror`: a pull of this node was seen at the cache.
pub const VERIFIED: &str = "Verified";

/// The schema of a list of conditions, merged by type.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What is the case, since when, why, and what to do.",
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "What is spoken of."},
                "status": {
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                    "description": "Whether it is the case.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "The generation of the spec that this is said of.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "Since when the status is what it is.",
                },
                "reason": {"type": "string", "maxLength": 1024, "description": "Why, in one word."},
                "message": {"type": "string", "maxLength": 32768, "description": "Why, and what to do."},
            },
        },
    })
}
