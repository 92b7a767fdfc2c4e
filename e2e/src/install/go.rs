//! Programs written in Go: the OCI conformance suite and our CRI client, from the module in `e2e/tools`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::unpacked::{Archive, Suite, folder as package_folder};
use crate::command::finish;
use crate::package::digest::sha256;

/// The module's folder.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools");
/// The files that decide what is built.
const INPUTS: [&str; 3] = ["go.mod", "go.sum", "cri/main.go"];
/// The programs, as packages of the module or of what it requires.
const PACKAGES: [&str; 2] = ["./cri", "github.com/opencontainers/distribution-spec/conformance"];
/// The compiler for machines without one; it fetches the one that go.mod asks for by itself.
const COMPILER: [&str; 2] = ["golang-1.24-go", "golang-1.24-src"];

/// Where the programs of the module as it is now are.
pub fn folder(cache: &Path) -> Result<PathBuf> {
    let mut text = Vec::new();
    for input in INPUTS {
        let path = Path::new(MODULE).join(input);
        text.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(cache.join("tools").join(&sha256(&text)[..16]))
}

/// Builds the programs if they are not there.
pub fn build_missing(cache: &Path) -> Result<()> {
    let target = folder(cache)?;
    if target.is_dir() {
        return Ok(());
    }
    let parent = cache.join("tools");
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let fresh = tempfile::tempdir_in(&parent).context("cannot make a folder for Go programs")?;
    finish(
        Command::new(compiler(cache)?)
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
            .arg(fresh.path().join(""))
            .args(PACKAGES)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "auto")
            .current_dir(MODULE),
    )?;
    fs::rename(fresh.path(), &target).with_context(|| format!("cannot make {}", target.display()))
}

/// The machine's `go`, else an unpacked one.
fn compiler(cache: &Path) -> Result<PathBuf> {
    if finish(Command::new("go").arg("version")).is_ok() {
        return Ok(PathBuf::from("go"));
    }
    let root = package_folder(cache, Suite::Trixie, "golang");
    if !root.is_dir() {
        // The compiler's folder links to the sources, so both lie in one tree.
        Archive::open(cache)?.unpack(Suite::Trixie, &COMPILER, &root)?;
    }
    Ok(root.join("usr/lib/go-1.24/bin/go"))
}
