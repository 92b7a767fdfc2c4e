//! containerd's configuration on this node: read, never written. May import `detect`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use globset::Glob;

use super::detect::{self, Sources};

/// The folder of containerd, as the agent and as the host see it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is mounted.
    pub mounted: PathBuf,
    /// What the host calls it.
    pub on_host: PathBuf,
}

impl Folder {
    /// A folder that is mounted below `root`, under its own name.
    #[must_use]
    pub fn new(mounted: PathBuf, root: &Path) -> Self {
        let on_host = mounted.strip_prefix(root).map_or_else(|_| mounted.clone(), |rest| Path::new("/").join(rest));
        Self { mounted, on_host }
    }

    /// Where the agent finds a path of the host, if it is inside.
    #[must_use]
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.on_host).ok().map(|rest| self.mounted.join(rest))
    }

    /// Whether a list of folders, taken for one path, leads to certs.d by a link that someone made.
    #[must_use]
    pub fn list_leads_here(&self, list: &str) -> bool {
        let Some(literal) = self.inside(Path::new(list)) else { return false };
        let certs = fs::canonicalize(self.mounted.join("certs.d"));
        // A link to the host's name of certs.d leads nowhere in here, and is as good.
        let names_certs = fs::read_link(&literal).is_ok_and(|target| target == self.on_host.join("certs.d"));
        names_certs || certs.is_ok_and(|certs| fs::canonicalize(&literal).is_ok_and(|found| found == certs))
    }

    /// Reads config.toml and what it imports.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn sources(&self) -> io::Result<Sources> {
        let main = match fs::read_to_string(self.mounted.join("config.toml")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => Some(text?),
        };
        let mut sources = Sources { main, ..Sources::default() };
        for pattern in detect::imports(sources.main.as_deref().unwrap_or_default()) {
            match self.inside(&self.on_host.join(&pattern)) {
                Some(path) => sources.imports.extend(matches(&path)?),
                None => sources.unseen = Some(pattern),
            }
        }
        Ok(sources)
    }

    /// When config.toml was last written: a change that is undone is a change, since containerd may have started in between.
    #[must_use]
    pub fn written(&self) -> Option<SystemTime> {
        fs::metadata(self.mounted.join("config.toml")).and_then(|metadata| metadata.modified()).ok()
    }

    /// Whether config.toml was written after this machine started: containerd may have been started before that.
    #[must_use]
    pub fn changed_since_boot(&self) -> bool {
        let Some(boot) = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time) else { return true };
        self.written().is_some_and(|written| written > UNIX_EPOCH + boot)
    }
}

/// The texts of the files that a pattern means, by name.
fn matches(pattern: &Path) -> io::Result<Vec<String>> {
    let (Some(dir), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Ok(vec![]) };
    let Ok(glob) = Glob::new(&name.to_string_lossy()) else { return Ok(vec![]) };
    let glob = glob.compile_matcher();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(vec![]) };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| glob.is_match(name)) && path.is_file());
    paths.sort();
    paths.iter().map(fs::read_to_string).collect()
}

/// When the machine started, since 1970, as `/proc/stat` says.
fn boot_time(stat: &str) -> Option<Duration> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn imports_are_found_where_the_host_names_them() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().join("etc/containerd"), root.path());
        assert_eq!(folder.on_host, Path::new("/etc/containerd"));
        assert_eq!(folder.sources().unwrap(), Sources::default());
        fs::create_dir_all(folder.mounted.join("conf.d")).unwrap();
        let main = "imports = [\"/etc/containerd/conf.d/*.toml\", \"/opt/x.toml\"]\n";
        for (name, text) in
            [("config.toml", main), ("conf.d/2.toml", "b=1"), ("conf.d/1.toml", "a=1"), ("conf.d/x", "")]
        {
            fs::write(folder.mounted.join(name), text).unwrap();
        }
        let sources = folder.sources().unwrap();
        assert_eq!(sources.imports, ["a=1", "b=1"]);
        assert_eq!(sources.unseen.as_deref(), Some("/opt/x.toml"));
    }

    #[test]
    fn a_link_named_like_the_list_is_found() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().join("etc/containerd"), root.path());
        let list = "/etc/containerd/certs.d:/etc/docker/certs.d";
        fs::create_dir_all(folder.mounted.join("certs.d:/etc/docker")).unwrap();
        assert!(!folder.list_leads_here(list));
        std::os::unix::fs::symlink("/etc/containerd/certs.d", folder.mounted.join("certs.d:/etc/docker/certs.d"))
            .unwrap();
        assert!(folder.list_leads_here(list));
    }

    #[test]
    fn the_start_of_the_machine_is_read_from_stat() {
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(Duration::from_secs(1_700_000_000)));
        assert_eq!(boot_time("cpu 1 2\n"), None);
    }
}
