//! The hands: makes steps true on disk, and keeps what was there in the state folder. May import `names`, `plan`, `record`
//! and `view`.
//!
//! Guarantee: a crash between any two system calls leaves each file old or new, and what was there before us is on disk
//! before anything of it changes. [`Disk::sweep`] and the next plan do the rest.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File, FileTimes, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    names,
    plan::{NewFile, Plan, Step, Wish, plan},
    record::{Record, target_path},
    view,
};

/// Rounds of planning and doing; more would mean that two of us fight.
const ROUNDS: usize = 4;
/// In the state folder: that certs.d is of our making.
const MADE_ROOT: &str = "made-certs.d";

/// Why files could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A file of the state folder is not what we write there.
    #[error("{0} is not what the agent writes there: {1}; move it away")]
    State(PathBuf, #[source] serde_json::Error),
}

/// certs.d of a node, and the state folder beside it.
#[derive(Debug)]
pub struct Disk {
    state: PathBuf,
    /// How many changes are left before a crash is played; for tests.
    left: Cell<Option<usize>>,
}

impl Disk {
    /// Keeps what must be remembered in the folder `state`, which is made when it is needed.
    #[must_use]
    pub fn new(state: PathBuf) -> Self {
        Self { state, left: Cell::new(None) }
    }

    /// The same, which plays a crash: after so many changes every further one fails.
    #[must_use]
    pub fn crashing_after(state: PathBuf, changes: usize) -> Self {
        Self { state, left: Cell::new(Some(changes)) }
    }

    /// Makes a wish for a registry true in `root`.
    ///
    /// # Errors
    /// When something could not be read or changed. What is done stays; ask again.
    pub fn fulfil(&self, root: &Path, registry: &str, wish: Wish<'_>) -> Result<Fulfilled, Error> {
        let mut changed = false;
        let mut round = 0;
        loop {
            let record = self.record(registry)?;
            if matches!(wish, Wish::InForce(_)) {
                self.make_root(root)?;
            }
            let view = view::read(root, registry, record.as_ref()).map_err(at(root))?;
            let next = plan(root, wish, record.as_ref(), &view);
            round += 1;
            if next.steps.is_empty() || round > ROUNDS {
                return Ok(Fulfilled { plan: next, changed });
            }
            let place = record.as_ref().map_or(root, |record| &record.root);
            for step in &next.steps {
                self.step(place, registry, step)?;
                changed |= !matches!(step, Step::Remember(_) | Step::Forget);
            }
        }
    }

    /// Registries whose directories are not as they were before us.
    ///
    /// # Errors
    /// When the state folder cannot be read.
    pub fn remembered(&self) -> Result<BTreeMap<String, Record>, Error> {
        let folder = self.state.join("before");
        let mut records = BTreeMap::new();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(records),
            entries => entries.map_err(at(&folder))?,
        };
        for entry in entries {
            let name = entry.map_err(at(&folder))?.file_name().to_string_lossy().into_owned();
            let Some(registry) = name.strip_suffix(".json").filter(|name| !name.starts_with('.')) else { continue };
            if let Some(record) = self.record(registry)? {
                records.insert(registry.to_owned(), record);
            }
        }
        Ok(records)
    }

    /// Removes what a crash left half made; call it before the first wish.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn sweep(&self, root: &Path) -> Result<(), Error> {
        let Ok(entries) = fs::read_dir(root) else { return Ok(()) };
        for entry in entries {
            let path = entry.map_err(at(root))?.path();
            if is_temporary(&path) {
                self.remove_all(&path)?;
            } else if let Ok(files) = fs::read_dir(&path) {
                for file in files {
                    let file = file.map_err(at(&path))?.path();
                    if is_temporary(&file) {
                        self.remove_all(&file)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes certs.d if it is of our making and empty, and then everything that is remembered: nothing of ours is left.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn leave(&self, root: &Path) -> Result<(), Error> {
        if !self.state.exists() || !self.remembered()?.is_empty() {
            return Ok(());
        }
        if self.state.join(MADE_ROOT).exists() && fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none()) {
            self.change()?;
            fs::remove_dir(root).map_err(at(root))?;
        }
        let edited = self.state.join("edited");
        if edited.exists() {
            return Ok(());
        }
        self.remove_all(&self.state)
    }

    /// Reads something that was kept with [`Self::keep`].
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn kept<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let path = self.state.join(name);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Io(path, error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::State(path, error)),
        }
    }

    /// Keeps something in the state folder, as JSON. What is there already in the same words is not written again.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn keep<T: Serialize>(&self, name: &str, what: &T) -> Result<(), Error> {
        let path = self.state.join(name);
        let bytes = serde_json::to_vec(what).map_err(|error| Error::State(path.clone(), error))?;
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        self.keep_bytes(&path, bytes)
    }

    fn record(&self, registry: &str) -> Result<Option<Record>, Error> {
        self.kept(&format!("before/{registry}.json"))
    }

    fn step(&self, root: &Path, registry: &str, step: &Step) -> Result<(), Error> {
        match step {
            Step::Remember(record) => self.keep(&format!("before/{registry}.json"), record),
            Step::Forget => self.remove_file(&self.state.join(format!("before/{registry}.json"))),
            Step::KeepEdited(bytes) => {
                self.keep_bytes(&self.state.join(format!("edited/{registry}.hosts.toml")), bytes.clone())
            }
            Step::MakeDirectory(dir, files) => self.make_directory(root, dir, files),
            Step::WriteFile(dir, file) => self.write(&root.join(dir), file),
            Step::Link(dir, target) => self.link(&root.join(dir), target),
            Step::RemoveFile(dir, name) => self.remove_file(&root.join(dir).join(name)),
            Step::RemoveDirectory(dir) => self.remove_directory(root, dir),
        }
    }

    /// Makes certs.d if it is not there, and remembers that it was not.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_root(&self, root: &Path) -> Result<(), Error> {
        if root.exists() {
            return Ok(());
        }
        self.keep(MADE_ROOT, &true)?;
        self.change()?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(root).map_err(at(root))
    }

    fn make_directory(&self, root: &Path, dir: &str, files: &[NewFile]) -> Result<(), Error> {
        let staged = root.join(format!("{}new-{dir}", names::TEMPORARY));
        self.remove_all(&staged)?;
        self.change()?;
        fs::create_dir(&staged).map_err(at(&staged))?;
        fs::set_permissions(&staged, Permissions::from_mode(0o755)).map_err(at(&staged))?;
        for file in files {
            self.write(&staged, file)?;
        }
        self.rename(&staged, &root.join(dir))?;
        sync(root)
    }

    fn write(&self, dir: &Path, file: &NewFile) -> Result<(), Error> {
        let temporary = dir.join(format!("{}{}", names::TEMPORARY, file.name));
        self.change()?;
        let mut new = File::create(&temporary).map_err(at(&temporary))?;
        // Halfway through its bytes is where a crash would hurt most.
        let (first, second) = file.content.split_at(file.content.len() / 2);
        new.write_all(first).map_err(at(&temporary))?;
        self.change()?;
        new.write_all(second).map_err(at(&temporary))?;
        new.set_permissions(Permissions::from_mode(file.mode)).map_err(at(&temporary))?;
        if let Some(modified) = file.modified {
            new.set_times(FileTimes::new().set_modified(UNIX_EPOCH + modified)).map_err(at(&temporary))?;
        }
        new.sync_all().map_err(at(&temporary))?;
        self.rename(&temporary, &dir.join(&file.name))?;
        sync(dir)
    }

    fn link(&self, dir: &Path, target: &[u8]) -> Result<(), Error> {
        let temporary = dir.join(format!("{}link", names::TEMPORARY));
        self.remove_file(&temporary)?;
        self.change()?;
        symlink(target_path(target), &temporary).map_err(at(&temporary))?;
        self.rename(&temporary, &dir.join(names::HOSTS))?;
        sync(dir)
    }

    fn remove_file(&self, path: &Path) -> Result<(), Error> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        self.change()?;
        fs::remove_file(path).map_err(at(path))?;
        path.parent().map_or(Ok(()), sync)
    }

    fn remove_directory(&self, root: &Path, dir: &str) -> Result<(), Error> {
        // Out of sight at once: a directory without hosts.toml would hide `_default`.
        let gone = root.join(format!("{}old-{dir}", names::TEMPORARY));
        self.remove_all(&gone)?;
        self.rename(&root.join(dir), &gone)?;
        sync(root)?;
        self.remove_all(&gone)
    }

    fn remove_all(&self, path: &Path) -> Result<(), Error> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        self.change()?;
        if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(at(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.change()?;
        fs::rename(from, to).map_err(at(to))
    }

    fn keep_bytes(&self, path: &Path, content: Vec<u8>) -> Result<(), Error> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
        // What was there may hold secrets.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let name = name.to_string_lossy().into_owned();
        self.write(dir, &NewFile { name, content, mode: 0o600, modified: None })
    }

    /// Counts a change, and plays the crash.
    fn change(&self) -> Result<(), Error> {
        match self.left.get() {
            None => Ok(()),
            Some(0) => Err(Error::Io(self.state.clone(), io::Error::other("a crash was played"))),
            Some(left) => {
                self.left.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

/// What came of a wish.
#[derive(Clone, Debug)]
pub struct Fulfilled {
    /// The last plan; it has steps left only if someone else changes the same files all the time.
    pub plan: Plan,
    /// Whether a file in certs.d was changed.
    pub changed: bool,
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(names::TEMPORARY))
}

fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io(path, error)
}
