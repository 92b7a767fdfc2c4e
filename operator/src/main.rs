//! The operator's program: flags to calls. May import `crds` and the library.

use std::io::{self, Write};

use clap::{Parser, Subcommand};
use operator::{
    check::check,
    release_nodes::release_nodes,
    run::run,
    settings::{CheckSettings, ReleaseSettings, Settings},
    telemetry,
};

/// Runs Entrepôt in a cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs cache servers and switches nodes over to them, as the objects of the cluster say.
    Run(Settings),
    /// Puts every node's files back, before the release is removed.
    ReleaseNodes(ReleaseSettings),
    /// Waits until everything is Ready, and fails saying what is not.
    Check(CheckSettings),
    /// Prints every kind as YAML, for `kubectl apply --server-side -f -`.
    Crds,
}

fn main() -> anyhow::Result<()> {
    let command = Arguments::parse().command;
    if let Command::Crds = command {
        return Ok(io::stdout().write_all(all_kinds().as_bytes())?);
    }
    telemetry::init();
    // Only the first call sets it, and this is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new()?;
    match command {
        Command::Run(settings) => runtime.block_on(run(settings))?,
        Command::ReleaseNodes(settings) => runtime.block_on(release_nodes(&settings))?,
        Command::Check(settings) => runtime.block_on(check(&settings))?,
        Command::Crds => {}
    }
    Ok(())
}

/// One YAML stream of every kind.
fn all_kinds() -> String {
    crds::YAML.iter().flat_map(|(_, text)| ["---\n", text]).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_kind_is_a_document_of_its_own() {
        let text = all_kinds();
        assert_eq!(text.matches("\nkind: CustomResourceDefinition").count(), crds::YAML.len());
        assert_eq!(text.lines().filter(|line| *line == "---").count(), crds::YAML.len());
    }
}
