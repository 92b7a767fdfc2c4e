//! Debian packages that are installed: tools without a service.

use std::process::Command;

use anyhow::{Context, Result};

use crate::command::finish;

/// A program that must be there, and the package that brings it.
const TOOLS: [(&str, &str); 10] = [
    ("chromium-headless-shell", "chromium-headless-shell"),
    ("dnsmasq", "dnsmasq-base"),
    ("hostname", "hostname"),
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("debootstrap", "debootstrap"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
];
/// Where programs of the superuser are; not everyone's PATH says so.
const PLACES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Installs the packages of the tools that are not there.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    finish(Command::new("apt-get").args(["update", "-qq"]))?;
    finish(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .map(drop)
    .context("install these packages by hand if apt cannot")
}

fn is_there(program: &str) -> bool {
    PLACES.iter().any(|place| std::path::Path::new(place).join(program).is_file())
}
