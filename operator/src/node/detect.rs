//! Whether containerd reads the files that the agent writes, as far as its configuration tells. Pure.

use toml_edit::{DocumentMut, Item, Table};

/// What containerd 2.2 and later take for `config_path` if nothing is said.
const DEFAULT_LIST: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// Where the three formats of config.toml have what concerns images; the fourth is as the third.
const FIRST: &str = "cri";
const SECOND: &str = "\"io.containerd.grpc.v1.cri\"";
const THIRD: &str = "\"io.containerd.cri.v1.images\"";

/// A version of containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Reads `containerd://2.1.9` as a Node's status has it, or the bare number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_start_matches("containerd://").trim_start_matches('v');
        let mut numbers = text.split(['.', '-', '+', '~']).map_while(|part| part.parse().ok());
        Some(Self(numbers.next()?, numbers.next()?))
    }
}

/// The texts that configure containerd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// config.toml, if there is one.
    pub main: Option<String>,
    /// Files that it imports, in order.
    pub imports: Vec<String>,
    /// An import that the agent cannot see.
    pub unseen: Option<String>,
}

/// What containerd makes of its `config_path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// `config_path` as written, or the default of the version.
    pub config_path: Option<String>,
    /// Whether the files are read.
    pub reads: Reads,
}

/// Whether containerd reads the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// It does, from this folder of the host.
    From(String),
    /// It does not, or that cannot be said.
    Not(Deaf),
}

/// Why containerd does not read the files, with the cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deaf {
    /// `config_path` is not set.
    #[error(
        "containerd reads no hosts.toml, since config_path is not set; set config_path = \"{certs}\" in [plugins.{table}.registry] of {config} and restart containerd"
    )]
    NoConfigPath {
        /// Where the files are.
        certs: String,
        /// The table of this version.
        table: &'static str,
        /// The file to change.
        config: String,
    },
    /// A list, which containerd 2.1 and later take for one path.
    #[error(
        "containerd {version} takes config_path = \"{list}\" for a single folder and reads no hosts.toml; set config_path = \"{certs}\" in [plugins.{table}.registry] of {config} and restart containerd"
    )]
    ColonConfigPath {
        /// Its version.
        version: String,
        /// What is set.
        list: String,
        /// Where the files are.
        certs: String,
        /// The table of this version.
        table: &'static str,
        /// The file to change.
        config: String,
    },
    /// Mirrors in config.toml, which exclude hosts.toml.
    #[error(
        "registry.mirrors in {config} keeps containerd from reading hosts.toml; remove registry.mirrors, set config_path = \"{certs}\" in [plugins.{table}.registry] and restart containerd"
    )]
    InlineMirrors {
        /// Where the files are.
        certs: String,
        /// The table of this version.
        table: &'static str,
        /// The file to change.
        config: String,
    },
    /// It reads another folder.
    #[error(
        "containerd reads {0}, and the agent writes {1}; set config_path = \"{1}\" and restart containerd, or install the chart with nodeAgent.containerdDir set to the folder above {0}"
    )]
    OtherConfigPath(String, String),
    /// The configuration cannot be judged.
    #[error("{0}")]
    Unreadable(String),
}

impl Deaf {
    /// It in one word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoConfigPath { .. } => "NoConfigPath",
            Self::ColonConfigPath { .. } => "ColonConfigPath",
            Self::InlineMirrors { .. } => "InlineMirrors",
            Self::OtherConfigPath(..) => "OtherConfigPath",
            Self::Unreadable(_) => "ConfigUnreadable",
        }
    }

    /// Whether it is certain that the files are not read.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Unreadable(_))
    }
}

/// What is known of the node besides the texts.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// containerd's version, as the Node's status has it.
    pub version: Option<&'a str>,
    /// The mounted folder of containerd, as the host names it: `/etc/containerd`.
    pub folder: &'a str,
    /// Whether a list as one path leads to certs.d all the same, by a symbolic link that someone made.
    pub list_leads_here: bool,
}

/// The keys of one file that concern pulls.
#[derive(Clone, Debug, Default)]
struct Said {
    config_path: Option<String>,
    mirrors: bool,
    local_pull: bool,
    /// Whether it has the table of containerd's images at all.
    speaks: bool,
    /// The table in which its version of the format has them.
    table: Option<&'static str>,
}

/// Judges the configuration of containerd.
#[must_use]
pub fn detect(sources: &Sources, node: &Node<'_>) -> Detected {
    let version = node.version.and_then(Version::parse);
    let unknown = |text: String| Detected { config_path: None, reads: Reads::Not(Deaf::Unreadable(text)) };
    let mut said = Said::default();
    for text in sources.main.iter().chain(&sources.imports) {
        match said_in(text) {
            Ok(more) => said = merged(said, more, version),
            Err(error) => {
                return unknown(format!(
                    "{}/config.toml or an import is not valid TOML: {error}; correct it and restart containerd",
                    node.folder
                ));
            }
        }
    }
    if let (None, Some(path)) = (&said.config_path, &sources.unseen) {
        return unknown(format!(
            "config.toml imports {path}, which the agent cannot see; set config_path in {}/config.toml",
            node.folder
        ));
    }
    judge(said, version, node)
}

fn judge(said: Said, version: Option<Version>, node: &Node<'_>) -> Detected {
    let certs = format!("{}/certs.d", node.folder);
    let config = format!("{}/config.toml", node.folder);
    let table = said.table.unwrap_or(match version {
        Some(version) if version < Version(2, 0) => SECOND,
        _ => THIRD,
    });
    let defaults_to_list = version.is_some_and(|version| version >= Version(2, 2)) && !said.mirrors;
    let config_path = said.config_path.or_else(|| defaults_to_list.then(|| DEFAULT_LIST.to_owned()));
    let deaf = |why| Detected { config_path: config_path.clone(), reads: Reads::Not(why) };
    if said.mirrors {
        return deaf(Deaf::InlineMirrors { certs, table, config });
    }
    let Some(path) = config_path.as_deref().filter(|path| !path.is_empty()) else {
        return deaf(Deaf::NoConfigPath { certs, table, config });
    };
    let roots: Vec<&str> = path.split(':').map(|root| root.trim_end_matches('/')).collect();
    if roots.len() > 1 && !said.local_pull {
        match version {
            None => {
                return deaf(Deaf::Unreadable(
                    "config_path is a list, which containerd 2.1 and later do not understand, and this node's version is not known; set a single folder".to_owned(),
                ));
            }
            Some(version) if version >= Version(2, 1) && !node.list_leads_here => {
                let version = node.version.unwrap_or_default().trim_start_matches("containerd://").to_owned();
                return deaf(Deaf::ColonConfigPath { version, list: path.to_owned(), certs, table, config });
            }
            Some(_) => {}
        }
    }
    let inside = |root: &&&str| root.strip_prefix(node.folder).is_some_and(|rest| rest.starts_with('/'));
    match roots.iter().find(inside) {
        Some(root) => Detected { config_path: config_path.clone(), reads: Reads::From((*root).to_owned()) },
        None => deaf(Deaf::OtherConfigPath(path.to_owned(), certs)),
    }
}

/// containerd 1.x replaces a plugin's whole table by that of a later file, 2.x merges them.
fn merged(before: Said, more: Said, version: Option<Version>) -> Said {
    let table = before.table.or(more.table);
    if !more.speaks {
        return Said { table, ..before };
    }
    if version.is_some_and(|version| version < Version(2, 0)) {
        return Said { table, ..more };
    }
    Said {
        table,
        config_path: more.config_path.or(before.config_path),
        mirrors: before.mirrors || more.mirrors,
        local_pull: before.local_pull || more.local_pull,
        speaks: true,
    }
}

fn said_in(text: &str) -> Result<Said, String> {
    let document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.message().lines().next().unwrap_or_default().to_owned())?;
    let version = document.get("version").and_then(Item::as_integer).unwrap_or(1);
    let table = match version {
        1 => FIRST,
        2 => SECOND,
        _ => THIRD,
    };
    let plugin = table.trim_matches('"');
    let Some(images) = document.get("plugins").and_then(|plugins| plugins.get(plugin)) else {
        return Ok(Said { table: Some(table), ..Said::default() });
    };
    let registry = images.get("registry");
    let filled = |key: &str| {
        let table = registry.and_then(|registry| registry.get(key)?.as_table_like());
        table.is_some_and(|table| !table.is_empty())
    };
    Ok(Said {
        config_path: registry.and_then(|registry| registry.get("config_path")?.as_str()).map(str::to_owned),
        mirrors: filled("mirrors"),
        local_pull: filled("configs") || filled("auths") || pulls_locally(images, version),
        speaks: true,
        table: Some(table),
    })
}

/// Whether keys are set with which containerd 2.1 and later pull as before, where a list works.
fn pulls_locally(images: &Item, version: i64) -> bool {
    let truth = |item: Option<&Item>, wanted: bool| item.and_then(Item::as_bool) == Some(wanted);
    let downloads = images.get("max_concurrent_downloads").and_then(Item::as_integer).is_some_and(|count| count != 3);
    let empty = Item::Table(Table::new());
    // In an older file these keys count only beside a table of runtimes.
    let unpacking = match version {
        1 | 2 => images.get("containerd").filter(|inner| inner.get("runtimes").is_some()).unwrap_or(&empty),
        _ => images,
    };
    truth(images.get("use_local_image_pull"), true)
        || truth(images.get("image_pull_with_sync_fs"), true)
        || truth(unpacking.get("discard_unpacked_layers"), true)
        || truth(unpacking.get("disable_snapshot_annotations"), false)
        || downloads
}

/// The patterns of files that config.toml imports.
#[must_use]
pub fn imports(main: &str) -> Vec<String> {
    let Ok(document) = main.parse::<DocumentMut>() else { return vec![] };
    let list = document.get("imports").and_then(Item::as_array);
    list.into_iter().flatten().filter_map(|item| item.as_str()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
    const V3: &str = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n";

    fn reason(version: &str, main: &str) -> String {
        judged(version, &[main])
    }

    fn judged(version: &str, texts: &[&str]) -> String {
        let sources = Sources {
            main: texts.first().map(ToString::to_string),
            imports: texts.iter().skip(1).map(ToString::to_string).collect(),
            unseen: None,
        };
        let version = (!version.is_empty()).then_some(version);
        let node = Node { version, folder: "/etc/containerd", list_leads_here: false };
        match detect(&sources, &node).reads {
            Reads::From(root) => root,
            Reads::Not(deaf) => deaf.reason().to_owned(),
        }
    }

    #[test]
    fn every_version_is_judged_by_its_own_table() {
        let list = "config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n";
        let single = "config_path = \"/etc/containerd/certs.d\"\n";
        let here = "/etc/containerd/certs.d";
        for (version, text, expected) in [
            ("containerd://1.7.24", format!("{V2}{single}"), here),
            ("containerd://2.1.9", format!("{V3}{single}"), here),
            ("containerd://2.3.4", format!("{}{single}", V3.replace('3', "4")), here),
            ("containerd://2.1.9", format!("{V2}{single}"), here),
            (
                "containerd://1.6.20",
                "[plugins.cri.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n".to_owned(),
                here,
            ),
            ("containerd://1.7.24", format!("{V2}{list}"), here),
            ("containerd://2.0.7", format!("{V3}{list}"), here),
            ("containerd://2.1.9", format!("{V3}{list}"), "ColonConfigPath"),
            ("containerd://2.1.9", format!("{V2}{list}"), "ColonConfigPath"),
            ("", format!("{V3}{list}"), "ConfigUnreadable"),
            ("containerd://2.1.9", format!("{V3}config_path = \"\"\n"), "NoConfigPath"),
            ("containerd://2.1.9", "version = 3\n".to_owned(), "NoConfigPath"),
            ("containerd://1.7.24", "version = 2\n".to_owned(), "NoConfigPath"),
            ("containerd://2.2.0", "version = 3\n".to_owned(), "ColonConfigPath"),
            ("containerd://2.3.4", format!("{V3}config_path = \"\"\n"), "NoConfigPath"),
            ("containerd://2.1.9", format!("{V3}config_path = \"/etc/cri/hosts\"\n"), "OtherConfigPath"),
            ("containerd://2.1.9", format!("{V3}config_path = \"/etc/containerd/hosts/\"\n"), "/etc/containerd/hosts"),
            (
                "containerd://1.7.24",
                format!("{V2}[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n"),
                "InlineMirrors",
            ),
            ("containerd://2.1.9", "version = ".to_owned(), "ConfigUnreadable"),
        ] {
            assert_eq!(reason(version, &text), expected, "{version}: {text}");
        }
    }

    #[test]
    fn no_file_at_all_means_the_version_s_defaults() {
        assert_eq!(judged("containerd://1.7.24", &[]), "NoConfigPath");
        assert_eq!(judged("containerd://2.3.4", &[]), "ColonConfigPath");
    }

    #[test]
    fn what_forces_a_local_pull_makes_a_list_work() {
        let head = "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\n";
        let tail = "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"\n";
        for (key, expected) in [
            ("discard_unpacked_layers = true", "/etc/containerd/certs.d"),
            ("discard_unpacked_layers = false", "ColonConfigPath"),
            ("use_local_image_pull = true", "/etc/containerd/certs.d"),
            ("disable_snapshot_annotations = false", "/etc/containerd/certs.d"),
            ("max_concurrent_downloads = 3", "ColonConfigPath"),
            ("max_concurrent_downloads = 4", "/etc/containerd/certs.d"),
        ] {
            assert_eq!(reason("containerd://2.1.9", &format!("{head}{key}\n{tail}")), expected, "{key}");
        }
    }

    #[test]
    fn an_import_replaces_the_table_before_2_and_is_merged_since() {
        let main = format!("{V2}config_path = \"/etc/containerd/certs.d\"\n");
        let import = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
        assert_eq!(judged("containerd://1.7.24", &[&main, import]), "NoConfigPath");
        assert_eq!(judged("containerd://2.1.9", &[&main, import]), "/etc/containerd/certs.d");
        assert_eq!(judged("containerd://1.7.24", &[&main, "version = 2\n"]), "/etc/containerd/certs.d");
        assert_eq!(imports("imports = [\"conf.d/*.toml\"]\n"), ["conf.d/*.toml"]);
    }

    #[test]
    fn a_list_that_a_link_leads_here_works() {
        let sources = Sources::default();
        let node = Node { version: Some("containerd://2.3.4"), folder: "/etc/containerd", list_leads_here: true };
        assert_eq!(detect(&sources, &node).reads, Reads::From("/etc/containerd/certs.d".to_owned()));
    }

    #[test]
    fn a_cure_names_the_table_of_the_format_that_the_file_has() {
        let cure = |version, main: Option<&str>| {
            let sources = Sources { main: main.map(str::to_owned), ..Sources::default() };
            let node = Node { version: Some(version), folder: "/etc/containerd", list_leads_here: false };
            match detect(&sources, &node).reads {
                Reads::Not(deaf) => deaf.to_string(),
                Reads::From(root) => root,
            }
        };
        assert!(
            cure("containerd://2.1.9", Some("version = 2\n"))
                .contains("[plugins.\"io.containerd.grpc.v1.cri\".registry]")
        );
        assert!(
            cure("containerd://2.1.9", Some("version = 3\n"))
                .contains("[plugins.\"io.containerd.cri.v1.images\".registry]")
        );
        assert!(cure("containerd://2.1.9", None).contains("[plugins.\"io.containerd.cri.v1.images\".registry]"));
        assert!(cure("containerd://1.7.24", None).contains("[plugins.\"io.containerd.grpc.v1.cri\".registry]"));
    }

    #[test]
    fn each_cure_is_one_line_that_names_the_file() {
        let node = Node { version: Some("containerd://2.1.9"), folder: "/etc/containerd", list_leads_here: false };
        let Reads::Not(deaf) = detect(&Sources::default(), &node).reads else { unreachable!("it is read") };
        let text = deaf.to_string();
        assert!(
            text.contains("config_path = \"/etc/containerd/certs.d\"") && text.contains("/etc/containerd/config.toml")
        );
        assert!(text.contains("restart containerd") && !text.contains('\n'), "{text}");
    }
}
