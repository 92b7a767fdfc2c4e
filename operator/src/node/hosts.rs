//! The text of hosts.toml: our host before everything that was there. Pure. May import `names`.

use crds::{node_mirror::NodeEntry, nodes::Fallback};
use toml_edit::{Array, DocumentMut, Item, Table, Value, value};

use super::names;

/// What the lines below our mark begin with.
const NOTE: &str =
    "# Written by Entrepot. Do not edit: change the RegistryMirror. What was here before comes back when it goes.\n";

/// What the runtime would read for a registry without us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Below {
    /// The text of hosts.toml.
    pub text: Option<String>,
    /// Names of the certificate files beside it, which the runtime reads while there is no hosts.toml (or an empty one).
    pub certificates: Vec<String>,
    /// How its directory is reached from the one that is written: empty, or `../_default/`.
    pub path: String,
}

/// Why nothing can be put before what is there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no TOML.
    #[error("it is not valid TOML: {0}")]
    Toml(String),
    /// It is written in a way that leaves no room before its first host, or it names our host itself.
    #[error("its [host] tables cannot be put behind another one: {0}")]
    Tables(&'static str),
}

/// The body of hosts.toml for an entry, without our mark: valid TOML with our host first.
///
/// With [`Fallback::Never`] nothing of `below` is in it, since each of its hosts could be the registry itself.
///
/// # Errors
/// When `below` cannot be read, or has no place for our host.
pub fn body(entry: &NodeEntry, below: &Below) -> Result<String, Error> {
    let nothing = Below::default();
    let below = if entry.fallback == Fallback::Never { &nothing } else { below };
    let text = below.text.as_deref().unwrap_or_default();
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        Error::Toml(error.message().lines().next().unwrap_or_default().to_owned())
    })?;
    move_paths(document.as_table_mut(), &below.path);
    if let Some(hosts) = document.get_mut("host").and_then(Item::as_table_mut) {
        for (_, host) in hosts.iter_mut() {
            if let Some(host) = host.as_table_mut() {
                move_paths(host, &below.path);
            }
        }
    }
    if text.trim().is_empty() {
        carry_certificates(document.as_table_mut(), below);
        name_server(document.as_table_mut(), entry);
    }
    insert_host(&mut document, entry)?;
    let body = format!("{NOTE}{document}");
    check(&body, entry)?;
    Ok(body)
}

/// The root keys of a file of our own: what is asked last.
fn name_server(root: &mut Table, entry: &NodeEntry) {
    let server = match entry.fallback {
        Fallback::Never => Some(&entry.url),
        Fallback::Allow => entry.server.as_ref(),
    };
    let Some(server) = server else { return };
    root.insert("server", value(server));
    if *server == entry.url {
        describe(root, entry);
    }
}

/// The keys of our host. `dial_timeout` is ignored before containerd 2.0.7.
fn describe(table: &mut Table, entry: &NodeEntry) {
    table.insert("capabilities", value(Array::from_iter(["pull", "resolve"])));
    table.insert("dial_timeout", value("1s"));
    if let Some(content) = &entry.ca_bundle {
        table.insert("ca", value(Array::from_iter([names::authority(content)])));
    }
}

fn insert_host(document: &mut DocumentMut, entry: &NodeEntry) -> Result<(), Error> {
    let hosts = document.entry("host").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let hosts = hosts.as_table_mut().ok_or(Error::Tables("they are written inline"))?;
    if hosts.contains_key(&entry.url) {
        return Err(Error::Tables("the cache is among them already"));
    }
    let mut ours = Table::new();
    describe(&mut ours, entry);
    // Tables are written by position, the root before all: before the first host, but behind a bare [host].
    let bare = if hosts.is_implicit() { 0 } else { hosts.position().unwrap_or(0) };
    let is_first = hosts.iter().all(|(_, host)| host.as_table().and_then(Table::position) > Some(bare));
    ours.set_position(Some(if is_first { bare } else { 0 }));
    ours.decor_mut().set_prefix("\n");
    hosts.insert(&entry.url, Item::Table(ours));
    Ok(())
}

/// What the runtime would take from certificate files that it no longer reads beside a hosts.toml.
fn carry_certificates(root: &mut Table, below: &Below) {
    let at = |name: &str| format!("{}{name}", below.path);
    let of = |suffix: &str| {
        below.certificates.iter().filter(move |name| name.ends_with(suffix)).cloned().collect::<Vec<_>>()
    };
    let authorities: Array = of(".crt").iter().map(|name| at(name)).collect();
    if !authorities.is_empty() {
        root.insert("ca", value(authorities));
    }
    let pairs: Array = of(".cert")
        .iter()
        .map(|name| (name, format!("{}.key", name.trim_end_matches(".cert"))))
        .filter(|(_, key)| below.certificates.contains(key))
        .map(|(name, key)| Value::Array(Array::from_iter([at(name), at(&key)])))
        .collect();
    if !pairs.is_empty() {
        root.insert("client", value(pairs));
    }
}

/// Paths in `ca` and `client` are relative to the file's directory, which is another one now.
fn move_paths(table: &mut Table, path: &str) {
    if path.is_empty() {
        return;
    }
    for key in ["ca", "client"] {
        if let Some(found) = table.get_mut(key).and_then(Item::as_value_mut) {
            move_path(found, path);
        }
    }
}

fn move_path(found: &mut Value, path: &str) {
    match found {
        Value::String(text) if !text.value().starts_with('/') && !text.value().is_empty() => {
            *found = format!("{path}{}", text.value()).into();
        }
        Value::Array(array) => array.iter_mut().for_each(|inner| move_path(inner, path)),
        _ => {}
    }
}

/// Reads back what was composed: our host must be the first of the file, and whole.
fn check(body: &str, entry: &NodeEntry) -> Result<(), Error> {
    let document: DocumentMut = body.parse().map_err(|_| Error::Tables("the result is not valid TOML"))?;
    let hosts = document.get("host").and_then(Item::as_table).ok_or(Error::Tables("there is no [host]"))?;
    let position = |table: &Table| table.position().unwrap_or(isize::MAX);
    let first = hosts
        .iter()
        .filter_map(|(url, item)| Some((position(item.as_table()?), url)))
        .min()
        .ok_or(Error::Tables("there is no host"))?;
    if first.1 == entry.url { Ok(()) } else { Err(Error::Tables("another one stays first")) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::node::fixtures::entry;

    fn over(text: &str) -> Result<String, Error> {
        body(&entry("docker.io"), &Below { text: Some(text.to_owned()), ..Below::default() })
    }

    #[test]
    fn a_file_of_our_own_has_one_host_and_leaves_the_registry_to_the_runtime() {
        let mut entry = entry("docker.io");
        let text = body(&entry, &Below::default()).unwrap();
        let ca = names::authority(entry.ca_bundle.as_ref().unwrap());
        assert_eq!(
            text,
            format!(
                "{NOTE}\n[host.\"https://10.96.0.7:5000/repository/hub\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"1s\"\nca = [\"{ca}\"]\n"
            )
        );
        entry.server = Some("https://mirror.test".to_owned());
        assert!(body(&entry, &Below::default()).unwrap().contains("\nserver = \"https://mirror.test\"\n\n[host"));
    }

    #[test]
    fn without_fallback_the_mirror_is_also_what_is_asked_last_and_nothing_else_is_left() {
        let mut entry = entry("docker.io");
        entry.fallback = Fallback::Never;
        let below = Below {
            text: Some("server = \"https://x.test\"\n[host.\"https://y.test\"]\n".to_owned()),
            ..Below::default()
        };
        let text = body(&entry, &below).unwrap();
        assert!(text.contains("server = \"https://10.96.0.7:5000/repository/hub\"\ncapabilities"), "{text}");
        assert_eq!(text.matches("ca = [\"entrepot-").count(), 2, "{text}");
        assert!(!text.contains(".test"), "{text}");
    }

    #[test]
    fn what_was_there_stays_behind_our_host_with_comments_and_unknown_keys() {
        let before = "# mine\nserver = \"https://registry-1.docker.io\" # last\nskip_verify = true\n\n# first\n[host.\"https://a.test\"]\n  capabilities = [\"pull\"]\n  [host.\"https://a.test\".rewrite]\n    \"^x\" = \"y\"\n\n[host.\"https://b.test\"]\n";
        let text = over(before).unwrap();
        let (head, tail) = before.split_once("\n# first").unwrap();
        assert!(text.contains(head), "{text}");
        assert!(text.ends_with(&format!("# first{tail}")), "{text}");
        let at = |word: &str| text.find(word).unwrap();
        assert!(
            at("skip_verify") < at("10.96.0.7") && at("10.96.0.7") < at("a.test") && at("a.test") < at("b.test"),
            "{text}"
        );
    }

    #[test]
    fn the_bare_host_table_that_k3s_writes_is_kept() {
        let text = over("server = \"https://registry-1.docker.io/v2\"\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n\n[host]\n[host.\"https://m.test/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n").unwrap();
        let at = |word: &str| text.find(word).unwrap();
        assert!(at("\n[host]\n") < at("10.96.0.7") && at("10.96.0.7") < at("m.test"), "{text}");
    }

    #[test]
    fn what_leaves_no_room_is_refused() {
        assert!(matches!(over("server = "), Err(Error::Toml(_))));
        assert!(matches!(over("host = { \"https://a.test\" = {} }\n"), Err(Error::Tables(_))));
        assert!(matches!(over("[host.\"https://10.96.0.7:5000/repository/hub\"]\n"), Err(Error::Tables(_))));
        assert!(matches!(over("[[host]]\n"), Err(Error::Tables(_))));
    }

    #[test]
    fn certificate_files_become_keys_of_the_registry_itself() {
        let certificates = ["ca.crt", "me.cert", "me.key", "odd.cert"].map(str::to_owned).to_vec();
        let below = Below { certificates, path: "../_default/".to_owned(), text: None };
        let text = body(&entry("docker.io"), &below).unwrap();
        assert!(
            text.contains(
                "\nca = [\"../_default/ca.crt\"]\nclient = [[\"../_default/me.cert\", \"../_default/me.key\"]]\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn paths_of_an_inherited_file_are_found_from_the_new_directory() {
        let text =
            "ca = \"a.pem\"\n[host.\"https://a.test\"]\nca = [\"b.pem\", \"/abs/c.pem\"]\nclient = [[\"d\", \"e\"]]\n";
        let below = Below { text: Some(text.to_owned()), path: "../_default/".to_owned(), certificates: vec![] };
        let text = body(&entry("docker.io"), &below).unwrap();
        for part in [
            "\"../_default/a.pem\"",
            "\"../_default/b.pem\"",
            "\"/abs/c.pem\"",
            "[\"../_default/d\", \"../_default/e\"]",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
