//! The hands: daemon.json, certificates, and what is remembered of both. May import `plan`.
//!
//! Guarantee: a crash between any two system calls leaves each file old or new, and what was there before us is on disk
//! before anything of it changes.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::plan::Record;
use crate::node::disk as node;

/// In the state folder: what daemon.json said before us.
const RECORD: &str = "daemon-json.json";
/// In the state folder: the certificates that we wrote.
const AUTHORITY: &str = "authority.json";
/// In the state folder: who changes things now.
const LOCK: &str = "lock";
/// Beside daemon.json, while it is written.
const TEMPORARY: &str = ".entrepot-daemon.json";
/// What the engine reads beside each other in a folder of certificates: the usual name, and ours where that is taken.
const NAMES: [&str; 2] = ["ca.crt", "entrepot.crt"];

/// Why a file could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A file that is a mount of its own.
    #[error("{0} is a mount of its own and cannot be replaced as a whole; mount its folder instead")]
    Mount(PathBuf),
    /// A file that should be text.
    #[error("{0} is no text (UTF-8); dockerd would refuse it at its next start too. Correct it; it is untouched")]
    NoText(PathBuf),
    /// The state folder, or a hosts.toml.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// Someone else is at it.
    #[error(
        "another `operator node` of this host is at work (it holds {0}): end it first; one that watches leaves everything as it is"
    )]
    Busy(PathBuf),
}

/// The files of an engine, and the state folder.
#[derive(Debug)]
pub struct Disk {
    daemon_json: PathBuf,
    certificates: PathBuf,
    state: PathBuf,
    kept: node::Disk,
}

/// Certificates that we wrote for the engine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Authority {
    path: PathBuf,
    content: String,
    /// Whether its folder is ours too.
    made_folder: bool,
}

impl Disk {
    /// The files at these places; what is remembered goes to the folder `state`, which is made when it is needed.
    #[must_use]
    pub fn new(daemon_json: PathBuf, certificates: PathBuf, state: PathBuf) -> Self {
        Self { daemon_json, certificates, kept: node::Disk::new(state.clone()), state }
    }

    /// Where daemon.json is.
    #[must_use]
    pub fn daemon_json(&self) -> &Path {
        &self.daemon_json
    }

    /// The folder of hosts.toml files and certificates.
    #[must_use]
    pub fn certificates(&self) -> &Path {
        &self.certificates
    }

    /// What writes hosts.toml files, and remembers those before them.
    #[must_use]
    pub fn hosts(&self) -> &node::Disk {
        &self.kept
    }

    /// Keeps every other run out until the answer is dropped.
    ///
    /// # Errors
    /// When there is another one.
    pub fn lock(&self) -> Result<File, Error> {
        // What was there before may hold secrets.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.state).map_err(at(&self.state))?;
        let path = self.state.join(LOCK);
        let file = File::options().create(true).append(true).open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Busy(path)),
            Err(fs::TryLockError::Error(error)) => Err(Error::Io(path, error)),
        }
    }

    /// Whether anything may be remembered.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.state.exists()
    }

    /// What daemon.json says; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Option<String>, Error> {
        match fs::read(&self.daemon_json) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Io(self.daemon_json.clone(), error)),
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| Error::NoText(self.daemon_json.clone())),
        }
    }

    /// Makes daemon.json say this, with the permissions and the owner that it has; `None` removes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, text: Option<&str>) -> Result<(), Error> {
        if self.read().ok().as_ref().map(Option::as_deref) == Some(text) {
            return Ok(());
        }
        // Where a link leads, so that it stays one.
        let path = fs::canonicalize(&self.daemon_json).unwrap_or_else(|_| self.daemon_json.clone());
        match text {
            Some(text) => replace(&path, text.as_bytes()),
            None => remove(&path),
        }
    }

    /// What is remembered of daemon.json.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        Ok(self.kept.kept(RECORD)?)
    }

    /// Remembers what daemon.json said.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, record: &Record) -> Result<(), Error> {
        Ok(self.kept.keep(RECORD, record)?)
    }

    /// Forgets what daemon.json said.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn forget(&self) -> Result<(), Error> {
        remove(&self.state.join(RECORD))
    }

    /// Has the engine trust these certificates when it speaks to `authority` (`HOST:PORT`). Where they were written, if
    /// they were not there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn trust(&self, authority: &str, content: &str) -> Result<Option<PathBuf>, Error> {
        let folder = self.certificates.join(authority);
        if let Some(found) = self.kept.kept::<Authority>(AUTHORITY)? {
            let is_right = found.path.parent() == Some(&folder) && found.content == content;
            if is_right && fs::read(&found.path).is_ok_and(|bytes| bytes == content.as_bytes()) {
                return Ok(None);
            }
            self.distrust()?;
        }
        if fs::read(folder.join(NAMES[0])).is_ok_and(|bytes| bytes == content.as_bytes()) {
            return Ok(None);
        }
        let made_folder = !folder.exists();
        let free = NAMES.iter().map(|name| folder.join(name)).find(|path| !path.exists());
        let path = free.unwrap_or_else(|| folder.join(NAMES[1]));
        self.kept.keep(AUTHORITY, &Authority { path: path.clone(), content: content.to_owned(), made_folder })?;
        self.kept.make_root(&self.certificates)?;
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        replace(&path, content.as_bytes())?;
        Ok(Some(path))
    }

    /// Takes those certificates away again, unless someone changed them. Where they were.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn distrust(&self) -> Result<Option<PathBuf>, Error> {
        let Some(found) = self.kept.kept::<Authority>(AUTHORITY)? else { return Ok(None) };
        let is_ours = fs::read(&found.path).is_ok_and(|bytes| bytes == found.content.as_bytes());
        if is_ours {
            remove(&found.path)?;
        }
        if let Some(folder) = found.path.parent().filter(|_| found.made_folder) {
            match fs::remove_dir(folder) {
                // Someone put something else there, or took it away.
                Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
                removed => removed.map_err(at(folder))?,
            }
        }
        remove(&self.state.join(AUTHORITY))?;
        Ok(is_ours.then_some(found.path))
    }

    /// Removes what is remembered, once all is as it was.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn leave(&self) -> Result<(), Error> {
        Ok(self.kept.leave(&self.certificates)?)
    }
}

fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(at(folder))?;
    let temporary = folder.join(TEMPORARY);
    remove(&temporary)?;
    let mut file = File::options().write(true).create_new(true).open(&temporary).map_err(at(&temporary))?;
    file.write_all(content).map_err(at(&temporary))?;
    let old = fs::metadata(path).ok();
    let mode = old.as_ref().map_or(0o644, |old| old.permissions().mode() & 0o7777);
    if let Some(old) = old {
        let new = file.metadata().map_err(at(&temporary))?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid())).map_err(at(path))?;
        }
    }
    file.set_permissions(Permissions::from_mode(mode)).map_err(at(&temporary))?;
    file.sync_all().map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        if error.kind() == io::ErrorKind::ResourceBusy { Error::Mount(path.to_owned()) } else { at(path)(error) }
    })?;
    sync(folder)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(at(path)).and_then(|()| path.parent().map_or(Ok(()), sync)),
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io(path, error)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn disk(root: &Path) -> Disk {
        Disk::new(root.join("docker/daemon.json"), root.join("docker/certs.d"), root.join("state"))
    }

    #[test]
    fn daemon_json_keeps_its_permissions_and_the_link_that_leads_to_it() {
        let root = tempfile::tempdir().unwrap();
        let disk = disk(root.path());
        assert_eq!(disk.read().unwrap(), None);
        disk.write(Some("{}")).unwrap();
        assert_eq!(fs::metadata(disk.daemon_json()).unwrap().permissions().mode() & 0o7777, 0o644);
        let real = root.path().join("real.json");
        fs::rename(disk.daemon_json(), &real).unwrap();
        fs::set_permissions(&real, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&real, disk.daemon_json()).unwrap();
        disk.write(Some("{\"debug\": true}")).unwrap();
        assert!(fs::symlink_metadata(disk.daemon_json()).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "{\"debug\": true}");
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing temporary is left");
    }

    #[test]
    fn certificates_come_beside_those_of_others_and_go_alone() {
        let root = tempfile::tempdir().unwrap();
        let disk = disk(root.path());
        let folder = disk.certificates().join("cache.test:5000");
        assert_eq!(disk.trust("cache.test:5000", "one").unwrap(), Some(folder.join("ca.crt")));
        assert_eq!(disk.trust("cache.test:5000", "one").unwrap(), None);
        assert_eq!(disk.trust("cache.test:5000", "two").unwrap(), Some(folder.join("ca.crt")));
        assert_eq!(disk.distrust().unwrap(), Some(folder.join("ca.crt")));
        assert!(!folder.exists());
        disk.leave().unwrap();
        assert!(!disk.certificates().exists(), "it was not there before");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ca.crt"), "theirs").unwrap();
        assert_eq!(disk.trust("cache.test:5000", "one").unwrap(), Some(folder.join("entrepot.crt")));
        assert_eq!(disk.distrust().unwrap(), Some(folder.join("entrepot.crt")));
        assert_eq!(fs::read_to_string(folder.join("ca.crt")).unwrap(), "theirs");
        assert_eq!(disk.trust("cache.test:5000", "theirs").unwrap(), None);
        assert_eq!(disk.distrust().unwrap(), None);
    }

    #[test]
    fn two_runs_at_once_are_kept_apart() {
        let root = tempfile::tempdir().unwrap();
        let held = disk(root.path()).lock().unwrap();
        assert!(matches!(disk(root.path()).lock(), Err(Error::Busy(_))));
        drop(held);
        disk(root.path()).lock().unwrap();
    }
}
