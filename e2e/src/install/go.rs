//! Programs written in Go, each module built once per state of its files: the OCI conformance suite, our CRI client
//! and `pause` from `e2e/tools`; Kubernetes and helm from `e2e/tools/kubernetes`.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::unpacked::{Archive, Suite, folder as package_folder};
use crate::command::finish;
use crate::lab::process::tail;
use crate::package::digest::sha256;

/// The compiler for machines without one; it fetches the one that go.mod asks for by itself.
const COMPILER: [&str; 2] = ["golang-1.24-go", "golang-1.24-src"];
/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(200);
/// How often a wait says that it is not stuck.
const SAY: Duration = Duration::from_secs(15);

/// A Go module of this crate and what is built of it.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// What a wait for it is called.
    name: &'static str,
    /// Its folder.
    folder: &'static str,
    /// The files that decide what is built.
    inputs: &'static [&'static str],
    /// The linker's flags.
    linker: &'static str,
    /// The programs, as packages of the module or of what it requires.
    packages: &'static [&'static str],
    /// Further names of one program, which starts as the one by whose name it is called.
    links: &'static [&'static str],
}

/// Small tools.
pub const TOOLS: Module = Module {
    name: "tools written in Go",
    folder: concat!(env!("CARGO_MANIFEST_DIR"), "/tools"),
    inputs: &["go.mod", "go.sum", "cri/main.go", "pause/main.go"],
    linker: "-s -w",
    packages: &["./cri", "./pause", "github.com/opencontainers/distribution-spec/conformance"],
    links: &[],
};

/// Kubernetes in one program, and helm.
pub const KUBERNETES: Module = Module {
    name: "Kubernetes and helm",
    folder: concat!(env!("CARGO_MANIFEST_DIR"), "/tools/kubernetes"),
    inputs: &["go.mod", "go.sum", "main.go"],
    // Clients cannot read the version that a build without these would report.
    linker: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
             -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
    packages: &[".", "helm.sh/helm/v4/cmd/helm"],
    links: &["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"],
};

impl Module {
    /// Where the programs of the module as it is now are.
    pub fn folder(&self, cache: &Path) -> Result<PathBuf> {
        let mut text = Vec::new();
        for input in self.inputs {
            let path = Path::new(self.folder).join(input);
            text.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        for word in [&[self.linker], self.packages, self.links].concat() {
            text.extend(word.as_bytes());
        }
        Ok(cache.join("tools").join(&sha256(&text)[..16]))
    }

    /// Begins to build the programs if they are not there, at a low priority: the rest of an installation goes first.
    pub fn begin(&'static self, cache: &Path) -> Result<Build> {
        let target = self.folder(cache)?;
        if target.is_dir() {
            return Ok(Build { module: self, target, running: None });
        }
        let parent = cache.join("tools");
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let fresh = tempfile::tempdir_in(&parent).context("cannot make a folder for Go programs")?;
        let programs = fresh.path().join("programs");
        fs::create_dir(&programs).context("cannot make a folder for Go programs")?;
        let log = File::create(fresh.path().join("log")).context("cannot make a log for a Go build")?;
        let child = Command::new("nice")
            .args(["-n", "10"])
            .arg(compiler(cache)?)
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", self.linker, "-o"])
            .arg(programs.join(""))
            .args(self.packages)
            .env("CGO_ENABLED", "0")
            .env("GOTOOLCHAIN", "auto")
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start `go build`")?;
        Ok(Build { module: self, target, running: Some(Running { child, fresh, begun: Instant::now() }) })
    }
}

/// A build that may still run; dropping it gives it up.
#[derive(Debug)]
pub struct Build {
    module: &'static Module,
    target: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    fresh: TempDir,
    begun: Instant,
}

impl Build {
    /// Waits for the end, and says every 15 seconds that it does.
    pub fn finish(mut self) -> Result<()> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let mut said = Instant::now();
        let status = loop {
            if let Some(status) = running.child.try_wait().context("cannot wait for `go build`")? {
                break status;
            }
            if said.elapsed() >= SAY {
                said = Instant::now();
                let seconds = running.begun.elapsed().as_secs();
                println!("    building {}: {seconds} s so far, about 8 min on two cores", self.module.name);
            }
            thread::sleep(POLL);
        };
        if !status.success() {
            bail!("`go build` of {} failed ({status}):\n{}", self.module.name, tail(&running.fresh.path().join("log")));
        }
        let programs = running.fresh.path().join("programs");
        for link in self.module.links {
            symlink("kubernetes", programs.join(link)).with_context(|| format!("cannot link {link}"))?;
        }
        fs::rename(&programs, &self.target).with_context(|| format!("cannot make {}", self.target.display()))
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            // It has ended already, save when nobody waits for it any more.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
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
