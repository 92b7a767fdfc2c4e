//! The folder of `hosts.toml` files as it is on a node: what it says, and all of it to be compared byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cluster::Node;
use crate::cluster::runtime::CERTS_D;

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The permission bits.
    mode: u32,
    /// The owner and the group.
    owner: (u32, u32),
    /// A file's content; none for a folder.
    content: Option<Vec<u8>>,
}

/// Everything below the folder, by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// What is there now. Top-level folders whose name is one of `except` are left out.
    pub fn of(node: &Node, except: &[&str]) -> Result<Self> {
        let root = node.file(CERTS_D);
        let mut entries = BTreeMap::new();
        for path in children(&root)? {
            if !except.iter().any(|name| path.ends_with(name)) {
                collect(&root, &path, &mut entries)?;
            }
        }
        Ok(Self(entries))
    }

    /// How another one differs from this one, a line for each path; nothing if it does not.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| format!("{}: {} became {}", path.display(), shown(self.0.get(path)), shown(other.0.get(path))))
            .collect()
    }
}

/// Writes a file below the folder, with these permission bits.
pub fn seed(node: &Node, path: &str, content: &str, mode: u32) -> Result<()> {
    let path = format!("{CERTS_D}/{path}");
    node.write(&path, content)?;
    fs::set_permissions(node.file(&path), fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {path} on {}", node.name()))
}

/// Removes a folder below the folder.
pub fn remove(node: &Node, folder: &str) -> Result<()> {
    match fs::remove_dir_all(node.file(CERTS_D).join(folder)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {folder} on {}", node.name()))
        }
        _ => Ok(()),
    }
}

/// A file below the folder; `None` if it is not there.
pub fn text(node: &Node, path: &str) -> Result<Option<String>> {
    match fs::read_to_string(node.file(CERTS_D).join(path)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {path} on {}", node.name())),
    }
}

/// Whether the runtime is told to ask the cache for a registry.
#[must_use]
pub fn names_cache(node: &Node, folder: &str, mirror: &str) -> bool {
    let text = text(node, &format!("{folder}/hosts.toml")).ok().flatten();
    text.is_some_and(|text| position_of(&text, mirror).is_some())
}

/// Where a `hosts.toml` names a mirror first.
#[must_use]
pub fn position_of(text: &str, mirror: &str) -> Option<usize> {
    let path = format!("/repository/{mirror}");
    // Another mirror's name may begin as this one's.
    let is_whole = |(at, _): &(usize, &str)| text[at + path.len()..].starts_with(['"', '\'', '/']);
    text.match_indices(&path).find(is_whole).map(|(at, _)| at)
}

fn collect(root: &Path, path: &Path, entries: &mut BTreeMap<PathBuf, Entry>) -> Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let content = if metadata.is_dir() {
        None
    } else if metadata.is_file() {
        Some(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
    } else {
        bail!("{} is neither a file nor a folder", path.display());
    };
    let entry = Entry { mode: metadata.mode() & 0o7777, owner: (metadata.uid(), metadata.gid()), content };
    let is_folder = entry.content.is_none();
    entries.insert(path.strip_prefix(root)?.to_owned(), entry);
    if is_folder {
        for child in children(path)? {
            collect(root, &child, entries)?;
        }
    }
    Ok(())
}

fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot list {}", folder.display()))
}

fn shown(entry: Option<&Entry>) -> String {
    match entry {
        None => "nothing".to_owned(),
        Some(Entry { mode, owner, content: None }) => format!("a folder ({mode:o}, {owner:?})"),
        Some(Entry { mode, owner, content: Some(content) }) => {
            format!("a file ({mode:o}, {owner:?}) {:?}", String::from_utf8_lossy(content))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &str, content: Option<&str>, mode: u32) -> Tree {
        let content = content.map(|text| text.as_bytes().to_vec());
        Tree(BTreeMap::from([(path.into(), Entry { mode, owner: (0, 0), content })]))
    }

    #[test]
    fn a_mirror_is_found_by_its_whole_name() {
        let text = "[host.\"https://10.96.0.7:5000/repository/docker-hub-2\"]";
        assert_eq!(position_of(text, "docker-hub"), None);
        assert_eq!(position_of(text, "docker-hub-2"), Some(29));
    }

    #[test]
    fn every_difference_is_seen() {
        let before = tree("a", Some("x"), 0o644);
        assert_eq!(before.differences(&before.clone()), Vec::<String>::new());
        for after in [tree("a", Some("y"), 0o644), tree("a", Some("x"), 0o600), tree("a", None, 0o644)] {
            assert_eq!(before.differences(&after).len(), 1, "{after:?}");
        }
        assert_eq!(before.differences(&tree("b", Some("x"), 0o644)).len(), 2);
    }
}
