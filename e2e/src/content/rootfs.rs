//! Root folders with Debian in them, as trees to be packed into layers.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::command::{finish, run};

/// The release that the images hold.
const SUITE: &str = "bookworm";
/// Installs packages in a root folder; it runs in a mount namespace of its own, so `proc` goes with it.
const INSTALL: &str = r#"
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot "$root" apt-get update -qq
chroot "$root" apt-get install -y -qq --no-install-recommends "$@"
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root/usr/sbin/policy-rc.d" "$root"/var/cache/apt/*.bin
# Programs need the folders that they log to.
find "$root/var/log" -type f -delete
"#;

/// Makes the smallest Debian in `target`.
pub(super) fn debootstrap(mirror: &str, target: &Path) -> Result<()> {
    finish(
        // What it mounts while it works goes with a mount namespace of its own.
        Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .args(["debootstrap", "--variant=minbase", SUITE])
            .arg(target)
            .arg(mirror)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    for leftover in ["var/lib/apt/lists", "var/cache/apt/archives", "var/log"] {
        empty(&target.join(leftover))?;
    }
    Ok(())
}

/// A copy of `base` with packages installed; files later than the answered moment are what they added.
pub(super) fn with_packages(base: &Path, target: &Path, packages: &[&str]) -> Result<SystemTime> {
    run("cp", ["-a".as_ref(), base.as_os_str(), target.as_os_str()])?;
    // A file's change time is no finer than a timer tick.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let copied = SystemTime::now();
    std::thread::sleep(std::time::Duration::from_millis(50));
    finish(
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", INSTALL, "sh"])
            .arg(target)
            .args(packages),
    )?;
    Ok(copied)
}

/// Writes a folder as a tar file, names in order; with `since`, only what changed after that.
///
/// Devices and sockets stay out: a runtime brings its own `/dev`.
pub(super) fn pack(root: &Path, since: Option<SystemTime>, out: &mut dyn Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    tar.follow_symlinks(false);
    // Engines do not read GNU's form of files with holes.
    tar.sparse(false);
    for path in walk(root)? {
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let kind = metadata.file_type();
        let special = kind.is_char_device() || kind.is_block_device() || kind.is_socket() || kind.is_fifo();
        if special || since.is_some_and(|since| changed(&metadata) <= since) {
            continue;
        }
        let name = path.strip_prefix(root).context("a walk left its root")?;
        tar.append_path_with_name(&path, name).with_context(|| format!("cannot pack {}", path.display()))?;
    }
    tar.into_inner().map(drop).context("cannot end a layer")
}

/// Everything below `root`, a folder before what it holds, names in order.
fn walk(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn changed(metadata: &fs::Metadata) -> SystemTime {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
    let nanoseconds = u64::try_from(metadata.ctime_nsec()).unwrap_or_default();
    UNIX_EPOCH + std::time::Duration::from_secs(seconds) + std::time::Duration::from_nanos(nanoseconds)
}

fn empty(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
