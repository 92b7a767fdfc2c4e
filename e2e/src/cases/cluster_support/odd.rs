//! Configuration of someone else, as nodes have it: for each registry of its own a folder that is odd in its own way.

use anyhow::Result;
use serde_json::{Value, json};

use super::node_files::{self, Tree};
use super::product::REGISTRY;
use crate::cluster::Node;

/// The registry of the pull by which nodes are verified.
const CANARY: &str = "probe.entrepot.invalid";
/// The folder for every registry that has none.
pub const DEFAULT: &str = "_default";
/// What [`DEFAULT`] names.
pub const DEFAULT_HOST: &str = "[host.\"https://upstream19.registry.test\"]";

/// What stands in the way, or is to be carried along, and what is expected of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `hosts.toml` with a host of its own: ours comes first, all of it stays.
    Hosts,
    /// Certificates alone: they are carried over.
    Certificates,
    /// Nothing; [`DEFAULT`] would have been heeded: its hosts come behind ours.
    Default,
    /// A `hosts.toml` that nobody can read: it stays, and is reported.
    Broken,
}

/// A registry with odd configuration on every node, and the mirror that is made for it.
#[derive(Debug, Clone, Copy)]
pub struct Odd {
    /// The name of the mirror.
    pub mirror: &'static str,
    /// The registry as images name it.
    pub registry: &'static str,
    /// Its folder; where there is none yet, the one that is expected.
    pub folder: &'static str,
    /// What is there.
    pub kind: Kind,
}

/// Every registry. The last one cannot be configured.
pub const ODD: [Odd; 6] = [
    Odd {
        mirror: "odd-foreign",
        registry: "upstream13.registry.test",
        folder: "upstream13.registry.test",
        kind: Kind::Hosts,
    },
    Odd {
        mirror: "odd-certificates",
        registry: "upstream14.registry.test",
        folder: "upstream14.registry.test",
        kind: Kind::Certificates,
    },
    Odd {
        mirror: "odd-colon",
        registry: "upstream15.registry.test:443",
        folder: "upstream15.registry.test:443",
        kind: Kind::Hosts,
    },
    Odd {
        mirror: "odd-underscore",
        registry: "upstream16.registry.test:443",
        folder: "upstream16.registry.test_443_",
        kind: Kind::Hosts,
    },
    Odd {
        mirror: "odd-default",
        registry: "upstream18.registry.test",
        folder: "upstream18.registry.test",
        kind: Kind::Default,
    },
    Odd {
        mirror: "odd-broken",
        registry: "upstream17.registry.test",
        folder: "upstream17.registry.test",
        kind: Kind::Broken,
    },
];

/// Comments, keys that no runtime knows, a table that only a fork of containerd knows.
const FOREIGN: &str = r#"# Asked for by team Blue in 2023; talk to them first.
server = "https://upstream13.registry.test"
surprise = "kept" # nobody knows why

[host."https://upstream20.registry.test"]
  capabilities = ["pull", "resolve"]
  x-team = ["blue", 'and "green"']
  [host."https://upstream20.registry.test".rewrite]
    "^blue/(.*)" = "green/$1"
"#;
const COLON: &str = r#"server = "https://upstream15.registry.test:443"

[host."https://upstream19.registry.test"]
capabilities=["pull"]"#;
const UNDERSCORE: &str = r#"[host."https://upstream16.registry.test:443"]
  capabilities = ["pull", "resolve"]
  ca = "ca.crt"
"#;
const FOR_ALL: &str = r#"# For whatever has no folder.
[host."https://upstream19.registry.test"]
  capabilities = ["pull", "resolve"]
"#;
const BROKEN: &str =
    "server = \"https://upstream17.registry.test\"\n[host.\"https://upstream20\ncapabilities = [\"pull\"\n";

impl Odd {
    /// What was there for it under this name on every node, to be found again in what the agent makes of it.
    #[must_use]
    pub fn kept_lines(&self) -> Vec<&'static str> {
        let text = match self.mirror {
            "odd-foreign" => FOREIGN,
            "odd-colon" => COLON,
            "odd-underscore" => UNDERSCORE,
            _ => return Vec::new(),
        };
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }

    /// The mirror for it.
    #[must_use]
    pub fn object(&self, ca_pem: &str) -> Value {
        json!({
            "apiVersion": "entrepot.dev/v1alpha1",
            "kind": "RegistryMirror",
            "metadata": { "name": self.mirror },
            "spec": {
                "upstream": {
                    "registry": self.registry,
                    "url": format!("https://{}", self.registry),
                    "caBundle": ca_pem,
                },
                "nodes": {},
            },
        })
    }
}

/// Puts all of it on a node.
pub fn seed(node: &Node, ca_pem: &str) -> Result<()> {
    let files = [
        ("upstream13.registry.test/hosts.toml", FOREIGN, 0o640),
        ("upstream14.registry.test/ca.crt", ca_pem, 0o444),
        ("upstream15.registry.test:443/hosts.toml", COLON, 0o644),
        ("upstream16.registry.test_443_/hosts.toml", UNDERSCORE, 0o600),
        ("upstream16.registry.test_443_/ca.crt", ca_pem, 0o644),
        ("upstream17.registry.test/hosts.toml", BROKEN, 0o664),
        ("_default/hosts.toml", FOR_ALL, 0o644),
    ];
    files.into_iter().try_for_each(|(path, content, mode)| node_files::seed(node, path, content, mode))
}

/// Takes all of it away again.
pub fn remove(node: &Node) -> Result<()> {
    let folders = ODD.iter().map(|odd| odd.folder).chain([DEFAULT]);
    folders.into_iter().try_for_each(|folder| node_files::remove(node, folder))
}

/// All files of a node but those that are ours alone.
pub fn foreign_files(node: &Node) -> Result<Tree> {
    Tree::of(node, &[REGISTRY, CANARY])
}

/// All files of a node.
pub fn all_files(node: &Node) -> Result<Tree> {
    Tree::of(node, &[])
}
