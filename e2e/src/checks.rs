//! Cargo's own tests and checks, as this program runs them.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::suite::Totals;

/// The workspace: the folder above this crate.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Runs a cargo command; what it prints is shown.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    let status = command(arguments).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// What is shipped, as cargo selects it. Cargo compiles a dependency once for each selection that wants other features of it:
/// builds and tests of these crates name all of them, and this crate, which runs already, is a selection of its own.
const SHIPPED: [&str; 6] = ["-p", "crds", "-p", "cache-server", "-p", "operator"];

/// Builds what is shipped.
pub fn build_shipped() -> Result<()> {
    cargo(&[&["build", "--release"], &SHIPPED[..]].concat())
}

/// Runs every test of the crates, shows what they print, and counts.
pub fn tests() -> Result<Totals> {
    let mut totals = tests_of(&SHIPPED)?;
    totals.add(tests_of(&["-p", "e2e"])?);
    Ok(totals)
}

fn tests_of(selection: &[&str]) -> Result<Totals> {
    let mut command = command(&[&["test", "--release", "--no-fail-fast"], selection].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut totals = Totals::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo prints")?;
        println!("{line}");
        if let Some(counted) = summary(&line) {
            totals.add(counted);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && totals.failed == 0 {
        // It did not get as far as running tests, or a test program died.
        totals.failed = 1;
    }
    Ok(totals)
}

/// Reads `test result: ok. 3 passed; 0 failed; …`.
fn summary(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = counts.split("; ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some(Totals { passed: number("passed")?, failed: number("failed")? })
}

/// The arguments of a cargo command, and an environment variable that it needs.
type Check = (&'static [&'static str], Option<(&'static str, &'static str)>);

/// Checks form; every check runs, and each that fails is named at the end.
pub fn lint() -> Result<ExitCode> {
    let checks: [Check; 4] = [
        (&["fmt", "--all", "--check"], None),
        (&["clippy", "--release", "--workspace", "--all-targets", "--", "-Dwarnings"], None),
        (&["doc", "--workspace", "--no-deps", "--document-private-items"], Some(("RUSTDOCFLAGS", "-Dwarnings"))),
        (&["deny", "check"], None),
    ];
    let mut failed = Vec::new();
    for (arguments, variable) in checks {
        if arguments[0] == "deny" && !has_deny() {
            println!("cargo-deny is not installed: licences and advisories are not checked");
            continue;
        }
        let status = command(arguments).envs(variable).status().context("cannot run cargo")?;
        if !status.success() {
            failed.push(arguments[0]);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn has_deny() -> bool {
    command(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(WORKSPACE).stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary_of_a_test_program() {
        let line = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(summary(line), Some(Totals { passed: 3, failed: 1 }));
        assert_eq!(summary("running 4 tests"), None);
    }
}
