//! The operator's program: flags to calls. May import `crds` and the library.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use operator::{
    check::check,
    node::agent::{self, Options},
    release_nodes::release_nodes,
    run::run,
    settings::{CheckSettings, ReleaseSettings, Settings},
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};

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
    /// Writes this node's containerd configuration as its `NodeMirror` says.
    Node(NodeArguments),
}

#[derive(Args, Debug)]
struct NodeArguments {
    /// The node that this runs on: the name of its `NodeMirror`.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where containerd's folder of this host is mounted: it holds config.toml and certs.d.
    #[arg(long, value_name = "DIR", default_value = "/host/etc/containerd")]
    containerd_dir: PathBuf,
    /// What stands before the host's own path in --containerd-dir.
    #[arg(long, value_name = "DIR", default_value = "/host")]
    host_root: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let command = Arguments::parse().command;
    if let Command::Crds = command {
        return Ok(io::stdout().write_all(all_kinds().as_bytes())?);
    }
    telemetry::init();
    // Only the first call sets it, and this is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Command::Node(arguments) = command {
        return node(arguments);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    match command {
        Command::Run(settings) => runtime.block_on(run(settings))?,
        Command::ReleaseNodes(settings) => runtime.block_on(release_nodes(&settings))?,
        Command::Check(settings) => runtime.block_on(check(&settings))?,
        Command::Crds | Command::Node(_) => {}
    }
    Ok(())
}

/// The agent, until SIGTERM.
fn node(arguments: NodeArguments) -> anyhow::Result<()> {
    let options =
        Options { node: arguments.node, containerd_dir: arguments.containerd_dir, host_root: arguments.host_root };
    // One worker for files, one for probes: a slow disk must not delay a withdrawal.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await.context("failed to find the apiserver")?;
        let mut term = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let stop = async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        };
        agent::run(client, options, stop).await.context("the node agent ended")
    })
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
