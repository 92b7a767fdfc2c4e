//! The whole-system cases: what there is, what they share, and how they are run and told.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::cases;
use crate::content::Images;
use crate::install::Programs;
use crate::lab::{Lab, process};
use crate::upstream::Upstream;

/// No case may hang a run.
const CASE_LIMIT: Duration = Duration::from_secs(600);

/// Longer lines of logs are cut.
const LINE_BYTES: usize = 600;

/// What every case may use.
#[derive(Debug)]
pub struct World {
    /// The network, the folders, the processes.
    pub lab: Lab,
    /// The registries beyond the cache, filled with [`Self::images`].
    pub upstream: Upstream,
    /// The images that the upstream serves.
    pub images: Images,
    /// The engines and tools, unpacked.
    pub programs: Programs,
}

/// The body of a case.
pub type Body = for<'w> fn(&'w World) -> LocalBoxFuture<'w, Result<()>>;

/// One thing that the product must do, shown on the real thing.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Says what is shown; `cargo e2e test FILTER` picks by a part of it.
    pub name: &'static str,
    /// Does it.
    pub run: Body,
}

impl Case {
    /// A case by name.
    #[must_use]
    pub const fn new(name: &'static str, run: Body) -> Self {
        Self { name, run }
    }
}

/// Every case, in the order in which they run.
#[must_use]
pub fn all() -> Vec<Case> {
    [cases::engines::cases(), cases::conformance::cases(), cases::images::cases(), cases::fill::cases(), cases::faults::cases(), cases::access::cases(), cases::load::cases()].concat()
}

/// How many passed and how many failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

impl Totals {
    /// Adds another count to this one.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the cases whose name holds `filter`, one after the other.
pub async fn run(world: &World, filter: &str) -> Result<Totals> {
    let mut totals = Totals::default();
    for case in all().iter().filter(|case| case.name.contains(filter)) {
        let begun = Instant::now();
        let result = tokio::time::timeout(CASE_LIMIT, (case.run)(world))
            .await
            .unwrap_or_else(|_| Err(anyhow!("still not done after {CASE_LIMIT:?}")));
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                totals.passed += 1;
                println!("ok     {} ({seconds:.1} s)", case.name);
            }
            Err(error) => {
                totals.failed += 1;
                println!("FAILED {} ({seconds:.1} s)\n{}", case.name, indented(&format!("{error:#}")));
                show_logs(world.lab.work(), begun)?;
            }
        }
    }
    Ok(totals)
}

/// Prints the end of every log that was written to since `begun`.
fn show_logs(work: &Path, begun: Instant) -> Result<()> {
    let folder = work.join("logs");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age <= begun.elapsed() {
            println!("  the end of {}:", entry.file_name().display());
            println!("{}", indented(&process::tail(&entry.path())));
        }
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| {
            let end = line.floor_char_boundary(LINE_BYTES);
            format!("    {}\n", &line[..end])
        })
        .collect()
}
