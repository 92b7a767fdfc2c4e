//! `cargo e2e …`: the command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use e2e::install::Engines;
use e2e::{checks, package, run, suite, up};

/// Runs the product for real: tests, checks, images.
#[derive(Debug, Parser)]
#[command(name = "cargo e2e", bin_name = "cargo e2e")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs what is missing, then runs every test: of the crates, and of the whole on this machine.
    Test {
        /// Only whole-system cases whose name holds this, and no tests of the crates.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Brings up a Kubernetes of two nodes with the chart, a mirror of docker.io and pods; from a bare machine if need be.
    Up,
    /// Ends what `up` brought up, and removes what it left.
    Down,
    /// Keeps what `up` brought up.
    #[command(hide = true)]
    Keep,
    /// Is the cluster, inside the namespaces that `keep` makes.
    #[command(hide = true)]
    Inside {
        /// The run's folder.
        #[arg(long)]
        work: PathBuf,
        /// The apiserver's port on the machine's loopback.
        #[arg(long)]
        port: u16,
    },
    /// Runs the whole-system cases inside the namespaces that `test` makes.
    #[command(hide = true)]
    Cases {
        /// The run's folder.
        #[arg(long)]
        work: PathBuf,
        /// A file to write the totals to.
        #[arg(long)]
        totals: PathBuf,
        /// As for `soak`; then no case runs.
        #[arg(long)]
        soak_minutes: Option<u64>,
        /// The cases in a cluster instead of those on single engines.
        #[arg(long)]
        cluster: bool,
        /// Of the cases that the filter picks, only those with engines, and with these.
        #[arg(long)]
        engines: Option<Engines>,
        /// As for `test`.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Runs the cases with engines once for every generation of Docker and containerd in use.
    Matrix {
        /// Only those whose name holds this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Mixed load with random faults for an hour: nothing wrong, nothing hung, nothing left over, memory flat. Then ten
    /// idle minutes of a cluster: nothing is written.
    Soak {
        /// For how many minutes.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
    /// Measures the cache server beside nginx and docker-registry, in turn in one run: tables of medians and ratios, a JSON
    /// file, a plot.
    Bench {
        /// Only cases whose name holds this, or one of several with commas between.
        #[arg(default_value = "")]
        filter: String,
        /// How often each is measured.
        #[arg(long, default_value = "9")]
        rounds: NonZeroUsize,
        /// A folder for `bench.json` and `bench.svg`.
        #[arg(long, default_value = "target/bench")]
        output: PathBuf,
    },
    /// Measures inside the namespaces that `bench` makes.
    #[command(hide = true)]
    Measure {
        /// The run's folder.
        #[arg(long)]
        work: PathBuf,
        /// As for `bench`.
        #[arg(long)]
        rounds: NonZeroUsize,
        /// As for `bench`.
        #[arg(long)]
        output: PathBuf,
        /// As for `bench`.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Checks form: rustfmt, clippy, rustdoc, and cargo-deny where it is installed.
    Lint,
    /// Our own images, made without a container engine.
    Images {
        #[command(subcommand)]
        command: Images,
    },
}

#[derive(Debug, Subcommand)]
enum Images {
    /// Builds the programs and writes an OCI layout of each beside them.
    Build,
    /// Pushes the layouts, named REGISTRY/NAME:VERSION.
    Push {
        /// A registry, or a path in one: `registry.example/entrepot`.
        registry: String,
    },
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Test { filter } => run::test(&filter),
        Command::Soak { minutes } => run::soak(minutes),
        Command::Cases { work, totals, cluster: true, soak_minutes, filter, .. } => {
            let cases = soak_minutes.map_or_else(|| suite::named_in_cluster(&filter), |_| vec![suite::idle_soak()]);
            run::cluster_cases_inside(work, &totals, &cases)
        }
        Command::Cases { work, totals, engines: Some(engines), filter, .. } => {
            run::cases_inside(work, &totals, engines, &suite::of_engines(&filter))
        }
        Command::Cases { work, totals, soak_minutes, filter, .. } => {
            let cases = soak_minutes.map_or_else(|| suite::named(&filter), |minutes| vec![suite::soak(minutes)]);
            run::cases_inside(work, &totals, Engines::default(), &cases)
        }
        Command::Matrix { filter } => run::matrix(&filter),
        Command::Up => up::up(),
        Command::Down => up::down(),
        Command::Keep => up::keeper::keep(),
        Command::Inside { work, port } => up::inside::stay(work, port),
        Command::Bench { filter, rounds, output } => run::bench(&filter, rounds.get(), &output),
        Command::Measure { work, rounds, output, filter } => run::measure_inside(work, &filter, rounds.get(), &output),
        Command::Lint => checks::lint(),
        Command::Images { command: Images::Build } => {
            checks::build_shipped()?;
            package::build_all(&package::output_folder()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Images { command: Images::Push { registry } } => {
            package::push_all(&package::output_folder()?, &registry)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
