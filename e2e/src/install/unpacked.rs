//! Debian packages that are fetched and unpacked into the cache folder, never installed: several versions stand side
//! by side, and no service starts.
//!
//! The mirror is the one that the machine's own apt uses; the suites are read into private lists.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::finish;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
    /// What comes after; it moves.
    Sid,
}

impl Suite {
    /// As apt names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// What is unpacked. The older suites' programs run on every newer C library; sid's engines ask for an old one.
const PACKAGES: [(Suite, &str); 9] = [
    (Suite::Bookworm, "containernetworking-plugins"),
    (Suite::Bookworm, "docker-registry"),
    (Suite::Bookworm, "runc"),
    (Suite::Trixie, "containerd"),
    (Suite::Trixie, "etcd-server"),
    (Suite::Sid, "containerd"),
    (Suite::Sid, "docker.io"),
    (Suite::Sid, "docker-cli"),
    (Suite::Sid, "tini-static"),
];

/// The engines that `cargo e2e matrix` tries beside those of [`PACKAGES`].
const OLDER_ENGINES: [(Suite, &str); 4] = [
    (Suite::Bookworm, "containerd"),
    (Suite::Bookworm, "docker.io"),
    (Suite::Trixie, "docker.io"),
    (Suite::Trixie, "docker-cli"),
];

/// What only `cargo e2e bench` needs.
const OF_BENCH: [(Suite, &str); 1] = [(Suite::Bookworm, "valgrind")];

/// Programs that are unpacked together with their libraries, which not every machine has: the first package names the
/// folder.
const WITH_LIBRARIES: [(Suite, &[&str]); 2] = [
    (Suite::Bookworm, &["nginx", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"]),
    (
        Suite::Bookworm,
        &[
            "apache2-bin",
            "libapr1",
            "libaprutil1",
            "libcrypt1",
            "libexpat1",
            "libgdbm6",
            "libdb5.3",
            "libpcre2-8-0",
            "libssl3",
            "libuuid1",
            "zlib1g",
        ],
    ),
];
/// Where libraries lie in an unpacked tree.
const LIBRARY_FOLDERS: [&str; 2] = ["usr/lib", "lib"];

/// Where a package is unpacked.
#[must_use]
pub fn folder(cache: &Path, suite: Suite, package: &str) -> PathBuf {
    cache.join("packages").join(suite.name()).join(package)
}

/// The folders of libraries in a tree, as `LD_LIBRARY_PATH` wants them.
#[must_use]
pub fn library_path(tree: &Path) -> OsString {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = LIBRARY_FOLDERS.map(|folder| tree.join(folder).join(&machine).into_os_string());
    folders.join(":".as_ref())
}

/// Fetches and unpacks the packages that are not there.
pub fn fetch_missing(cache: &Path) -> Result<()> {
    let alone = PACKAGES.iter().map(|(suite, package)| (*suite, std::slice::from_ref(package)));
    fetch(cache, alone.chain(WITH_LIBRARIES))
}

/// Fetches and unpacks the older engines that are not there.
pub fn fetch_older_engines(cache: &Path) -> Result<()> {
    fetch(cache, OLDER_ENGINES.iter().map(|(suite, package)| (*suite, std::slice::from_ref(package))))
}

/// Fetches and unpacks what only benchmarks need.
pub fn fetch_of_bench(cache: &Path) -> Result<()> {
    fetch(cache, OF_BENCH.iter().map(|(suite, package)| (*suite, std::slice::from_ref(package))))
}

fn fetch<'p>(cache: &Path, wanted: impl Iterator<Item = (Suite, &'p [&'p str])>) -> Result<()> {
    let missing: Vec<_> = wanted.filter(|(suite, packages)| !target(cache, *suite, packages).is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let archive = Archive::open(cache)?;
    missing
        .into_iter()
        .try_for_each(|(suite, packages)| archive.unpack(suite, packages, &target(cache, suite, packages)))
}

fn target(cache: &Path, suite: Suite, packages: &[&str]) -> PathBuf {
    folder(cache, suite, packages.first().copied().unwrap_or_default())
}

/// Private package lists of the three suites.
#[derive(Debug)]
pub struct Archive {
    home: PathBuf,
}

impl Archive {
    /// Reads the lists anew.
    pub fn open(cache: &Path) -> Result<Self> {
        let archive = Self { home: cache.join("apt") };
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(archive.home.join(folder)).context("cannot make the folders of the private lists")?;
        }
        let sources = sources(&machine_mirror()?);
        fs::write(archive.home.join("sources.list"), sources).context("cannot write the private sources.list")?;
        finish(archive.apt_get().arg("update").arg("-qq"))?;
        Ok(archive)
    }

    /// Fetches packages and unpacks them, over each other, into `target`, which is there only when it is complete.
    pub fn unpack(&self, suite: Suite, packages: &[&str], target: &Path) -> Result<()> {
        let fresh = tempfile::tempdir_in(&self.home).context("cannot make a folder for a package")?;
        let tree = fresh.path().join("tree");
        for package in packages {
            let download = fresh.path().join(package);
            fs::create_dir(&download).context("cannot make a folder for a package")?;
            finish(
                self.apt_get().args(["download", "-qq", &format!("{package}/{}", suite.name())]).current_dir(&download),
            )?;
            finish(Command::new("dpkg-deb").arg("-x").arg(only_file(&download)?).arg(&tree))?;
        }
        let parent = target.parent().context("a package is unpacked into a folder of a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::rename(&tree, target).with_context(|| format!("cannot make {}", target.display()))
    }

    fn apt_get(&self) -> Command {
        let home = self.home.display();
        let mut command = Command::new("apt-get");
        command
            .args(["-o", "Dir::Etc::sourceparts=-", "-o", "Acquire::Languages=none"])
            .args(["-o", "APT::Sandbox::User=root"])
            .arg(format!("-oDir::Etc::sourcelist={home}/sources.list"))
            .arg(format!("-oDir::State::lists={home}/lists"))
            .arg(format!("-oDir::Cache={home}"));
        command
    }
}

/// The address of the Debian mirror that the machine's own apt uses.
pub fn machine_mirror() -> Result<String> {
    if let Some(mirror) = listed_mirror()? {
        return Ok(mirror);
    }
    finish(Command::new("apt-get").args(["update", "-qq"]))?;
    listed_mirror()?.context("apt knows no Debian mirror; give it one in /etc/apt/sources.list")
}

fn listed_mirror() -> Result<Option<String>> {
    let listing = finish(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    Ok(listing.lines().find_map(|line| line.strip_prefix("Debian ")).map(str::to_owned))
}

fn sources(mirror: &str) -> String {
    [Suite::Bookworm, Suite::Trixie, Suite::Sid]
        .map(|suite| {
            let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
            format!("deb [signed-by={keys}] {mirror} {} main\n", suite.name())
        })
        .concat()
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).context("cannot list a fetched package")?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!("apt-get download left no file, or several, in {}", folder.display()),
    }
}
