//! `cargo e2e bench`: ours and the peers, measured in turn in one run. A program, never a test: a busy machine makes it
//! slower, not red.
//!
//! In reading order: [`stage`] (what is asked for), [`origin`] (the upstream), [`contender`] (who is asked), [`client`] (who
//! asks), [`cases`] (what is measured and wanted), [`instructions`], [`images`] and [`million`] (some of
//! them), [`report`] (what is said of it).

pub mod cases;
pub mod client;
pub mod contender;
pub mod images;
pub mod instructions;
pub mod million;
pub mod origin;
pub mod report;
pub mod stage;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

use crate::{
    install::{Engines, Programs},
    lab::{Lab, cache_dir},
};
use cases::{Case, Measure, Round, Sample};
use contender::{Contender, Ground, Running, Setup};
use report::{Outcome, Samples};
use stage::Stage;

/// The cases whose name holds `filter`, or one of its parts between commas, or an error that says what there is.
pub fn named(filter: &str) -> Result<Vec<&'static Case>> {
    let found: Vec<_> =
        cases::ALL.iter().filter(|case| filter.split(',').any(|part| case.name.contains(part))).collect();
    if found.is_empty() {
        let all: Vec<_> = cases::ALL.iter().map(|case| case.name).collect();
        bail!("no case has {filter:?} in its name; there are {}", all.join(", "));
    }
    Ok(found)
}

/// Measures those cases over so many rounds, prints what came of it and writes it into `output`. Inside the laboratory.
pub async fn measure(work: PathBuf, filter: &str, rounds: usize, output: &Path) -> Result<ExitCode> {
    raise_open_files();
    spare_ports()?;
    let cache = cache_dir()?;
    let programs = Programs::in_cache(&cache, Engines::default())?;
    let lab = Lab::new(work, cache);
    let files = lab.dir("files")?;
    let stage = Stage::build(&files)?;
    let ground = Ground::new(lab, programs, files)?;
    let mut outcomes = Vec::new();
    for case in named(filter)? {
        let rounds = (case.rounds)(rounds);
        let samples = match case.measure {
            Measure::Warm(measure) => warm(&ground, &stage, case, measure, rounds).await,
            Measure::Cold(measure) => cold(&ground, &stage, case, measure, rounds).await,
            Measure::Alone(measure) => measure(&ground, &stage, rounds).await,
        };
        let outcome = Outcome::of(case, &samples.with_context(|| format!("cannot measure {}", case.name))?);
        outcome.print(case);
        outcomes.push(outcome);
        report::write(output, &outcomes)?;
    }
    println!("\nevery sample is in {}", output.join("bench.json").display());
    Ok(ExitCode::SUCCESS)
}

/// Takes one sample.
type Sampled = fn(&Round<'_>) -> Result<Sample>;

/// All run from the first round to the last.
async fn warm(ground: &Ground, stage: &Stage, case: &Case, measure: Sampled, rounds: usize) -> Result<Samples> {
    let tls = case.tls.then(|| client::trusting(&ground.certificate.ca)).transpose()?;
    let origin = (case.origin)(stage);
    let mut running = BTreeMap::new();
    for contender in case.contenders {
        let one = Running::start(ground, setup(case, stage, *contender)).await?;
        let round = Round { ground, stage, origin, contender: *contender, running: &one, tls: tls.as_ref() };
        cases::warm_up(&round).with_context(|| format!("cannot warm up {}", contender.name()))?;
        running.insert(*contender, one);
    }
    let mut samples = Samples::new();
    for number in 0..rounds {
        let mut of_round = BTreeMap::new();
        for contender in in_turn(case, number) {
            let running = running.get(&contender).context("started above")?;
            let round = Round { ground, stage, origin, contender, running, tls: tls.as_ref() };
            let sample = measure(&round).with_context(|| format!("cannot measure {}", contender.name()))?;
            of_round.insert(contender, sample);
        }
        samples.push(of_round);
    }
    for (_, one) in running {
        one.stop(ground).await?;
    }
    Ok(samples)
}

/// Each sample is of one that was just started, with nothing.
async fn cold(ground: &Ground, stage: &Stage, case: &Case, measure: Sampled, rounds: usize) -> Result<Samples> {
    let tls = case.tls.then(|| client::trusting(&ground.certificate.ca)).transpose()?;
    let origin = (case.origin)(stage);
    let mut samples = Samples::new();
    for number in 0..rounds {
        let mut of_round = BTreeMap::new();
        for contender in in_turn(case, number) {
            // Nobody is measured with what others still have to write.
            rustix::fs::sync();
            let running = Running::start(ground, setup(case, stage, contender)).await?;
            let round = Round { ground, stage, origin, contender, running: &running, tls: tls.as_ref() };
            let sample = measure(&round).with_context(|| format!("cannot measure {}", contender.name()))?;
            of_round.insert(contender, sample);
            running.stop(ground).await?;
        }
        samples.push(of_round);
    }
    Ok(samples)
}

fn setup<'a>(case: &Case, stage: &'a Stage, contender: Contender) -> Setup<'a> {
    Setup { contender, origin: (case.origin)(stage), tls: case.tls, mirrors: case.mirrors, counts: None }
}

/// Whose turn it is, one after the other; another begins each round, so that none is always measured after the same one.
fn in_turn(case: &Case, round: usize) -> impl Iterator<Item = Contender> {
    let count = case.contenders.len();
    (0..count).map(move |place| case.contenders[(place + round) % count])
}

/// Thousands of connections are open at once.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // The first connection too many says what is wrong.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Every round of some cases leaves thousands of connections that the kernel would remember for a minute.
fn spare_ports() -> Result<()> {
    for (name, value) in [("ip_local_port_range", "1024 65000"), ("tcp_max_tw_buckets", "1000")] {
        let file = Path::new("/proc/sys/net/ipv4").join(name);
        std::fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
