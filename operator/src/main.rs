//! The operator's program: flags to calls. May import `crds`.
//!
//! So far it prints the kinds; the controllers and the node agent come with the next issues.

use std::io::{self, Write};

use clap::{Parser, Subcommand};

/// Runs Entrepôt in a cluster. So far it prints the kinds; the controllers and the node agent are not written yet.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints every kind as YAML, for `kubectl apply --server-side -f -`.
    Crds,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Crds => Ok(io::stdout().write_all(all_kinds().as_bytes())?),
    }
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
