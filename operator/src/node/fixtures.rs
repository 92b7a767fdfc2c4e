//! Objects for the tests of this folder.

use crds::node_mirror::NodeEntry;

/// An entry for a registry, with every default.
pub(super) fn entry(registry: &str) -> NodeEntry {
    NodeEntry {
        registry: registry.to_owned(),
        url: "https://10.96.0.7:5000/repository/hub".to_owned(),
        repository: "hub".to_owned(),
        ca_bundle: Some("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n".to_owned()),
        server: None,
        fallback: crds::nodes::Fallback::Allow,
        foreign: crds::nodes::Foreign::Prepend,
        probe: crds::nodes::ProbeSpec::default(),
    }
}
