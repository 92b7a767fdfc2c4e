//! What is in certs.d for one registry, read into values. Changes nothing. May import `names`, `mark` and `record`.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use super::{
    mark::{Owner, owner},
    names,
    record::{Original, Record},
};

/// One directory of certs.d.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its name.
    pub name: String,
    /// Its hosts.toml.
    pub hosts: Original,
    /// Whether hosts.toml is there and cannot be read (a link to nowhere, a folder).
    pub unreadable: bool,
    /// Names of certificate files, sorted.
    pub certificates: Vec<String>,
    /// Our certificate files: names, and whether the content is what the name says.
    pub authorities: Vec<(String, bool)>,
    /// Whether it holds anything else than hosts.toml and our certificates.
    pub others: bool,
    /// Whether another name in certs.d leads to the same directory.
    pub aliased: bool,
}

impl Directory {
    /// Whose its hosts.toml is; a missing one is nobody's.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        match &self.hosts {
            Original::None => None,
            Original::File { content, .. } => Some(owner(content)),
            Original::Link { .. } => Some(Owner::Other),
        }
    }
}

/// What is there for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The directory that the runtime reads for exactly this registry.
    pub exact: Option<Directory>,
    /// What it reads while there is none, ours apart.
    pub shared: Option<Directory>,
    /// The directory that the record is about, wherever the runtime reads now.
    pub recorded: Option<Directory>,
}

/// Reads what is there for a registry.
///
/// # Errors
/// When a folder cannot be read; a file that cannot be read is part of the answer.
pub fn read(root: &Path, registry: &str, record: Option<&Record>) -> io::Result<View> {
    let mut view = View::default();
    for name in names::exact(registry) {
        if view.exact.is_none() {
            view.exact = directory(root, &name)?;
        }
    }
    for name in names::shared(registry) {
        if view.shared.is_none() {
            view.shared =
                directory(root, &name)?.filter(|found| !matches!(found.owner(), Some(Owner::Us | Owner::UsEdited)));
        }
    }
    view.recorded = match record {
        Some(record) => directory(&record.root, &record.dir)?,
        None => None,
    };
    Ok(view)
}

/// Reads one directory; `None` if there is none of that name.
fn directory(root: &Path, name: &str) -> io::Result<Option<Directory>> {
    let path = root.join(name);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut found = Directory {
        name: name.to_owned(),
        hosts: Original::None,
        unreadable: false,
        certificates: vec![],
        authorities: vec![],
        others: false,
        aliased: is_aliased(root, name)?,
    };
    let Ok(entries) = fs::read_dir(&path) else {
        // A file, or a link to nowhere: existing all the same, so that the runtime stops looking here.
        found.unreadable = true;
        return Ok(Some(found));
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file == names::HOSTS {
            (found.hosts, found.unreadable) = hosts(&entry.path())?;
        } else if names::is_authority(&file) {
            let content = fs::read_to_string(entry.path()).unwrap_or_default();
            let whole = names::authority(&content) == file;
            found.authorities.push((file, whole));
        } else if !file.starts_with(names::TEMPORARY) {
            found.others = true;
            if [".crt", ".cert", ".key"].iter().any(|suffix| file.ends_with(suffix)) {
                found.certificates.push(file);
            }
        }
    }
    found.certificates.sort();
    found.authorities.sort();
    Ok(Some(found))
}

/// Reads a hosts.toml, and tells whether it is there without being readable.
fn hosts(path: &Path) -> io::Result<(Original, bool)> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        let target = fs::read_link(path)?.as_os_str().as_bytes().to_vec();
        let content = fs::read(path).ok();
        let unreadable = content.is_none();
        return Ok((Original::Link { target, content }, unreadable));
    }
    if !metadata.is_file() {
        return Ok((Original::None, true));
    }
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let mode = metadata.permissions().mode() & 0o7777;
    match fs::read(path) {
        Ok(content) => Ok((Original::File { content, mode, modified }, false)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok((Original::None, true)),
        Err(error) => Err(error),
    }
}

/// Whether a directory is a link into certs.d, or another name there is a link to it: a file in it would then speak for
/// several registries.
fn is_aliased(root: &Path, name: &str) -> io::Result<bool> {
    let real = |path: PathBuf| fs::canonicalize(path).ok();
    let Some(own) = real(root.join(name)) else { return Ok(false) };
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name() != name && real(entry.path()).as_ref() == Some(&own) {
            return Ok(true);
        }
    }
    Ok(false)
}
