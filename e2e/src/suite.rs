//! The whole-system cases: what there is, what they share, and how they are run and told.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::cases;
use crate::cluster::{ClusterWorld, demonstration};
use crate::content::{Image, Images};
use crate::install::Programs;
use crate::lab::{Lab, process};
use crate::upstream::Upstream;

/// How long a case may take.
const CASE_LIMIT: Duration = Duration::from_mins(10);

/// The length of a soak: a case is a plain function, which carries nothing along.
static SOAK_MINUTES: AtomicU64 = AtomicU64::new(60);

/// For how long a soak watches a cluster that has nothing to do.
const IDLE_MINUTES: u64 = 10;

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

impl World {
    /// Asserts that the upstream sent every blob of `images` once and whole, and nothing to those whom `is_node` names.
    pub fn sent_once<'i>(
        &self,
        images: impl IntoIterator<Item = &'i Image>,
        is_node: impl Fn(IpAddr) -> bool,
    ) -> Result<()> {
        let counts = self.upstream.counts();
        for image in images {
            for (digest, size) in image.blobs()? {
                let (gets, bytes) = (counts.gets(&digest), counts.bytes(&digest));
                ensure!(
                    gets == 1 && bytes == size,
                    "the upstream sent {digest} of {} ({size} bytes) in {gets} answers, {bytes} bytes: {:#?}",
                    image.name,
                    counts.all().iter().filter(|asked| asked.path.ends_with(&digest)).collect::<Vec<_>>()
                );
            }
        }
        let strangers: Vec<_> = counts.all().iter().filter(|asked| is_node(asked.client)).collect();
        ensure!(strangers.is_empty(), "nodes reached the upstream: {strangers:?}");
        Ok(())
    }
}

/// The body of a case.
pub type Body<W = World> = for<'w> fn(&'w W) -> LocalBoxFuture<'w, Result<()>>;

/// One thing that the product must do, shown on the real thing: on single engines ([`World`]) or in a cluster.
#[derive(Debug)]
pub struct Case<W: 'static = World> {
    /// Says what is shown; `cargo e2e test FILTER` picks by a part of it.
    pub name: &'static str,
    /// Does it.
    pub run: Body<W>,
    /// No case may hang a run.
    limit: Duration,
}

/// A case in the cluster.
pub type ClusterCase = Case<ClusterWorld>;

// Derived ones would ask the same of the world.
impl<W> Clone for Case<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Case<W> {}

impl<W> Case<W> {
    /// A case by name.
    #[must_use]
    pub const fn new(name: &'static str, run: Body<W>) -> Self {
        Self { name, run, limit: CASE_LIMIT }
    }
}

/// Every case, in the order in which they run.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        cases::engines::cases(),
        cases::docker_host::cases(),
        cases::conformance::cases(),
        cases::images::cases(),
        cases::fill::cases(),
        cases::faults::cases(),
        cases::access::cases(),
        cases::browser::cases(),
        cases::hosted::cases(),
        cases::proxies::cases(),
        cases::teams::cases(),
        cases::load::cases(),
    ]
    .concat()
}

/// Every case in the cluster, in the order in which they run.
#[must_use]
pub fn all_in_cluster() -> Vec<ClusterCase> {
    [
        cases::cluster_start::cases(),
        cases::cluster_pods::cases(),
        cases::cluster_outage::cases(),
        cases::cluster_nodes::cases(),
        cases::cluster_detection::cases(),
        cases::cluster_authority::cases(),
        cases::cluster_mistakes::cases(),
        cases::cluster_repositories::cases(),
        cases::cluster_rights::cases(),
        cases::cluster_crash::cases(),
        // From here on the product is removed.
        cases::cluster_nodes::uninstall(),
        vec![cases::cluster_rights::last()],
    ]
    .concat()
}

/// Beginnings of the names of cases in which it may matter which engine it is.
const OF_ENGINES: [&str; 7] = [
    "engines: real images",
    "docker host: ",
    "hosted: docker",
    "proxies: nginx by host",
    "proxies: Apache",
    "proxies: none",
    "teams: three",
];

/// The cases whose name holds `filter` and in which it may matter which engine it is.
#[must_use]
pub fn of_engines(filter: &str) -> Vec<Case> {
    named(filter).into_iter().filter(|case| OF_ENGINES.iter().any(|start| case.name.starts_with(start))).collect()
}

/// The cases whose name holds `filter`.
#[must_use]
pub fn named(filter: &str) -> Vec<Case> {
    all().into_iter().filter(|case| case.name.contains(filter)).collect()
}

/// The cases in the cluster whose name holds `filter`, after the one that installs the product.
#[must_use]
pub fn named_in_cluster(filter: &str) -> Vec<ClusterCase> {
    let named: Vec<_> = all_in_cluster().into_iter().filter(|case| case.name.contains(filter)).collect();
    if named.is_empty() {
        return named;
    }
    let mut first = vec![cases::cluster_pods::first()];
    first.retain(|first| named.iter().all(|case| case.name != first.name));
    [first, named].concat()
}

/// The load case, for so many minutes.
#[must_use]
pub fn soak(minutes: u64) -> Case {
    SOAK_MINUTES.store(minutes, Ordering::Relaxed);
    let run: Body = |world| {
        let length = Duration::from_mins(SOAK_MINUTES.load(Ordering::Relaxed));
        Box::pin(cases::load::mixed(world, length))
    };
    Case { limit: Duration::from_mins(minutes) + CASE_LIMIT, ..Case::new("soak: mixed load with faults", run) }
}

/// A cluster with the product and nothing to do.
#[must_use]
pub fn idle_soak() -> ClusterCase {
    let run: Body<ClusterWorld> = |world| {
        Box::pin(async {
            demonstration::install(&world.cluster).await?;
            demonstration::mirror_docker_hub(world).await?;
            cases::cluster_crash::idle(&world.cluster, IDLE_MINUTES).await
        })
    };
    Case {
        limit: Duration::from_mins(IDLE_MINUTES) + CASE_LIMIT,
        ..Case::new("soak: nothing is written while nothing changes", run)
    }
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

/// Runs cases one after the other.
pub async fn run<W>(lab: &Lab, world: &W, cases: &[Case<W>]) -> Result<Totals> {
    let mut totals = Totals::default();
    for case in cases {
        let begun = Instant::now();
        let result = tokio::time::timeout(case.limit, (case.run)(world))
            .await
            .unwrap_or_else(|_| Err(anyhow!("still not done after {:?}", case.limit)));
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                totals.passed += 1;
                println!("ok     {} ({seconds:.1} s)", case.name);
            }
            Err(error) => {
                totals.failed += 1;
                println!("FAILED {} ({seconds:.1} s)\n{}", case.name, indented(&format!("{error:#}")));
                show_logs(lab.work(), begun)?;
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
    let lines: Vec<String> =
        text.lines().map(|line| format!("    {}", &line[..line.floor_char_boundary(LINE_BYTES)])).collect();
    lines.join("\n")
}
