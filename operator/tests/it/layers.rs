//! The arrows of ARCHITECTURE.md, read off the sources: a module imports only what its line here names.

use std::{collections::BTreeSet, fs, path::Path};

/// Each module with those of this crate that it may name, from the ground up.
const ARROWS: [(&str, &[&str]); 22] = [
    ("settings", &[]),
    ("telemetry", &[]),
    ("metrics", &[]),
    ("sign", &[]),
    ("causes", &[]),
    ("repository", &[]),
    ("issuer", &["causes"]),
    ("requeue", &[]),
    ("leader", &[]),
    ("cluster", &["causes", "settings"]),
    ("desired", &["repository", "sign"]),
    ("gather", &["cluster", "desired", "repository"]),
    ("validate", &["desired", "gather", "repository"]),
    ("authority", &["desired", "sign"]),
    ("observe", &["causes", "cluster", "gather", "repository"]),
    ("apply", &["cluster", "metrics", "sign"]),
    ("status", &["desired", "gather", "observe", "repository", "validate"]),
    (
        "controllers",
        &[
            "apply",
            "authority",
            "causes",
            "cluster",
            "desired",
            "gather",
            "issuer",
            "metrics",
            "observe",
            "repository",
            "requeue",
            "settings",
            "sign",
            "status",
            "validate",
        ],
    ),
    (
        "run",
        &["apply", "causes", "cluster", "controllers", "issuer", "leader", "metrics", "observe", "settings", "sign"],
    ),
    ("release_nodes", &["apply", "desired", "leader", "settings"]),
    ("check", &["settings"]),
    ("docker", &["node"]),
];

#[test]
fn no_module_imports_what_its_arrows_do_not_lead_to() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, allowed) in ARROWS {
        let mut named = BTreeSet::new();
        collect(&source.join(module), &mut named);
        collect(&source.join(format!("{module}.rs")), &mut named);
        named.remove(module);
        let wrong: Vec<_> = named.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(
            wrong.is_empty(),
            "{module} imports {wrong:?}; move the code, or change the arrow here and in ARCHITECTURE.md"
        );
        let gone: Vec<_> = allowed.iter().filter(|name| !named.contains(**name)).collect();
        assert!(gone.is_empty(), "{module} does not import {gone:?} any more; remove the arrow here");
    }
}

#[test]
fn every_module_has_its_arrows() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    // The agent is a program of its own in this crate.
    let joined: BTreeSet<&str> = ARROWS.iter().map(|(module, _)| *module).chain(["node"]).collect();
    assert!(declared.is_subset(&joined), "{declared:?}");
    assert_eq!(joined.difference(&declared).filter(|module| **module != "node").count(), 0);
}

/// The modules of this crate that the files at `path` name, outside of tests.
fn collect(path: &Path, named: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), named);
        }
    } else if path.is_file() {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (place, _) in code.match_indices("crate::") {
            add(&code[place + "crate::".len()..], named);
        }
    }
}

/// Adds the first segments of `a::b`, or of each branch of `{a::b, c}`.
fn add(rest: &str, named: &mut BTreeSet<String>) {
    let Some(tree) = rest.strip_prefix('{') else {
        named.extend(identifier(rest));
        return;
    };
    let mut depth = 0;
    let mut at_start = true;
    for (place, character) in tree.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if at_start && !character.is_whitespace() => {
                named.extend(identifier(&tree[place..]));
                at_start = false;
            }
            _ => {}
        }
    }
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    let identifier = &text[..end];
    // Names that a macro or a doc comment puts behind `crate::` start a path like any other.
    (!identifier.is_empty()).then(|| identifier.to_owned())
}
