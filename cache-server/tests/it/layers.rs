//! The arrows of ARCHITECTURE.md, read off the sources: a module imports only what its line here names.

use std::{collections::BTreeSet, fs, path::Path};

/// Each module with those of this crate that it may name, from the ground up.
const ARROWS: [(&str, &[&str]); 20] = [
    ("causes", &[]),
    ("credentials", &[]),
    ("globs", &[]),
    ("telemetry", &[]),
    ("oci", &[]),
    ("access", &["credentials", "globs", "oci"]),
    ("settings", &["access", "causes", "credentials", "oci"]),
    ("canary", &["oci"]),
    ("routing", &["canary", "oci", "settings"]),
    ("upstream", &["credentials", "oci"]),
    ("search", &["upstream"]),
    ("store", &["oci"]),
    ("repository", &["globs", "oci", "search", "settings", "store", "upstream"]),
    // A connection sends the store's files below HTTP.
    ("connector", &["store"]),
    ("metrics", &["store"]),
    ("server", &["access", "canary", "metrics", "oci", "repository", "routing", "settings", "store", "upstream"]),
    ("browse", &["oci", "repository", "server", "settings", "store"]),
    (
        "api",
        &[
            "access",
            "browse",
            "canary",
            "causes",
            "connector",
            "credentials",
            "metrics",
            "oci",
            "repository",
            "routing",
            "search",
            "server",
            "store",
            "upstream",
        ],
    ),
    ("ports", &["api", "connector", "server", "settings"]),
    ("run", &["access", "api", "metrics", "ports", "server", "settings", "store"]),
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
    assert_eq!(declared, ARROWS.iter().map(|(module, _)| *module).collect());
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
