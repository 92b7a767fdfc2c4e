//! One run from its first line to its last: `N passed, N failed`.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::bench;
use crate::checks;
use crate::cluster::{self, Cluster, ClusterWorld};
use crate::content::{self, Images};
use crate::install::{self, Engines, Programs};
use crate::lab::enter::{self, Layout, RunFolder};
use crate::lab::{Lab, NODES, cache_dir};
use crate::suite::{self, Case, ClusterCase, Totals, World};
use crate::upstream::Upstream;

/// The laboratory of the cases on single engines: nobody serves DNS, what `/etc/hosts` does not name fails at once.
const ENGINES: Layout = Layout { nodes: &NODES, resolver: Ipv4Addr::LOCALHOST, private: &[] };

/// The first phase, and around the second: prepares, runs everything, prints the totals.
pub fn test(filter: &str) -> Result<ExitCode> {
    let (alone, in_cluster) = (suite::named(filter), suite::named_in_cluster(filter));
    if alone.is_empty() && in_cluster.is_empty() {
        bail!("no case has {filter:?} in its name; leave the filter out to run everything");
    }
    let cache = cache_dir()?;
    let folder = RunFolder::create(&cache)?;
    // It takes longest by far, so it begins first.
    let kubernetes = (!in_cluster.is_empty()).then(|| install::begin_kubernetes(&cache)).transpose()?;
    let programs = prepare(&cache)?;
    let mut totals = Totals::default();
    if filter.is_empty() {
        totals.add(step("test the crates", checks::tests)?);
    }
    step("build our programs", checks::build_shipped)?;
    if !alone.is_empty() {
        let totals_of = || run_inside(&folder, &programs, &[filter.into()]);
        totals.add(step("run the whole-system cases", totals_of)?);
    }
    if let Some(kubernetes) = kubernetes {
        step("build Kubernetes and helm", || kubernetes.finish())?;
        let totals_of = || run_inside(&folder, &programs, &["--cluster".into(), filter.into()]);
        totals.add(step("run the cases in a cluster", totals_of)?);
    }
    drop(folder);
    Ok(conclude(totals))
}

/// The cases with engines whose name holds `filter`, with each generation of them.
pub fn matrix(filter: &str) -> Result<ExitCode> {
    if suite::of_engines(filter).is_empty() {
        bail!("no case with engines has {filter:?} in its name; leave the filter out to run all of them");
    }
    let cache = cache_dir()?;
    let programs = prepare(&cache)?;
    step("fetch the older engines", || install::install_older_engines(&cache))?;
    step("build our programs", checks::build_shipped)?;
    let mut totals = Totals::default();
    for engines in Engines::value_variants() {
        let name = engines.to_possible_value().context("every generation has a name")?.get_name().to_owned();
        let folder = RunFolder::create(&cache)?;
        let arguments = ["--engines".into(), name.clone().into(), filter.into()];
        let totals_of = || run_inside(&folder, &programs, &arguments);
        totals.add(step(&format!("run the cases with Docker {name}"), totals_of)?);
    }
    Ok(conclude(totals))
}

/// The load case for so many minutes, then an idle cluster.
pub fn soak(minutes: u64) -> Result<ExitCode> {
    let cache = cache_dir()?;
    let folder = RunFolder::create(&cache)?;
    let kubernetes = install::begin_kubernetes(&cache)?;
    let programs = prepare(&cache)?;
    step("build our programs", checks::build_shipped)?;
    step("build Kubernetes and helm", || kubernetes.finish())?;
    let arguments = ["--soak-minutes".into(), minutes.to_string().into()];
    let mut totals = step("soak", || run_inside(&folder, &programs, &arguments))?;
    let in_cluster = [&["--cluster".into()], &arguments[..]].concat();
    totals.add(step("soak, in a cluster", || run_inside(&folder, &programs, &in_cluster))?);
    drop(folder);
    Ok(conclude(totals))
}

/// Ours beside the peers.
pub fn bench(filter: &str, rounds: usize, output: &Path) -> Result<ExitCode> {
    bench::named(filter)?;
    let cache = cache_dir()?;
    let folder = RunFolder::create(&cache)?;
    let programs = step("install what is missing", || install::install(&cache))?;
    step("fetch what only benchmarks need", || install::install_for_bench(&cache))?;
    step("build our programs", checks::build_shipped)?;
    let mut arguments: Vec<OsString> = vec!["measure".into(), "--work".into(), folder.path().into()];
    let output = std::path::absolute(output).context("cannot tell where the output is to be")?;
    arguments.extend(["--rounds".into(), rounds.to_string().into(), "--output".into(), output.into(), filter.into()]);
    let mut child = folder.launch_inside(&arguments, &programs.search_path()?)?;
    let _lifeline = child.stdin.take();
    let status = child.wait().context("cannot wait for the namespaces")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Brings what every run needs.
pub fn prepare(cache: &Path) -> Result<Programs> {
    let programs = step("install what is missing", || install::install(cache))?;
    step("make the upstream's images", || content::make(cache))?;
    Ok(programs)
}

/// The last line of a run.
fn conclude(totals: Totals) -> ExitCode {
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does one step and says how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    let begun = Instant::now();
    let result = work().with_context(|| format!("failed: {name}"));
    println!("<== {name}: {:.1} s", begun.elapsed().as_secs_f64());
    result
}

/// Starts the second phase and reads its totals; one that died counts as a failure.
fn run_inside(folder: &RunFolder, programs: &Programs, what: &[OsString]) -> Result<Totals> {
    let totals = folder.path().join("totals.json");
    let mut arguments: Vec<OsString> =
        vec!["cases".into(), "--work".into(), folder.path().into(), "--totals".into(), totals.clone().into()];
    arguments.extend_from_slice(what);
    let mut child = folder.launch_inside(&arguments, &programs.search_path()?)?;
    // Waiting would close it, and the second phase ends when it closes.
    let _lifeline = child.stdin.take();
    let status = child.wait().context("cannot wait for the namespaces")?;
    if let Some(totals) = fs::read(&totals).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
        return Ok(totals);
    }
    println!("FAILED the cases did not come to an end ({status})");
    Ok(Totals { passed: 0, failed: 1 })
}

/// The second phase, in namespaces of its own: the cases on single engines.
pub fn cases_inside(work: PathBuf, totals: &Path, engines: Engines, cases: &[Case]) -> Result<ExitCode> {
    enter::settle(ENGINES, &cache_dir()?)?;
    conclude_inside(totals, async {
        let world = world(work, engines).await?;
        suite::run(&world.lab, &world, cases).await
    })
}

/// The second phase, in namespaces of its own: the cases in a cluster.
pub fn cluster_cases_inside(work: PathBuf, totals: &Path, cases: &[ClusterCase]) -> Result<ExitCode> {
    enter::settle(cluster::LAYOUT, &cache_dir()?)?;
    conclude_inside(totals, async {
        let world = cluster_world(work).await?;
        suite::run(&world.world.lab, &world, cases).await
    })
}

/// The second phase of [`bench`].
pub fn measure_inside(work: PathBuf, filter: &str, rounds: usize, output: &Path) -> Result<ExitCode> {
    enter::settle(ENGINES, &cache_dir()?)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
    runtime.block_on(bench::measure(work, filter, rounds, output))
}

fn conclude_inside(totals: &Path, counted: impl Future<Output = Result<Totals>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
    let counted = runtime.block_on(counted)?;
    fs::write(totals, serde_json::to_vec(&counted)?).with_context(|| format!("cannot write {}", totals.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// A cluster before the upstream.
async fn cluster_world(work: PathBuf) -> Result<ClusterWorld> {
    let world = world(work, Engines::default()).await?;
    let begun = Instant::now();
    let cluster = Cluster::start(&world).await.context("the cluster does not start")?;
    println!("       the cluster is ready after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(ClusterWorld { world, cluster })
}

/// Everything that the cases share: the upstream, filled.
pub async fn world(work: PathBuf, engines: Engines) -> Result<World> {
    let cache = cache_dir()?;
    let programs = Programs::in_cache(&cache, engines)?;
    let images = Images::in_cache(&cache);
    let lab = Lab::new(work, cache);
    let upstream = Upstream::start(&lab).await.context("the upstream does not start")?;
    let begun = Instant::now();
    let endpoint = upstream.push_endpoint()?;
    for image in images.all() {
        image.push(&endpoint)?;
    }
    println!("       the upstream holds its images after {:.1} s", begun.elapsed().as_secs_f64());
    Ok(World { lab, upstream, images, programs })
}
