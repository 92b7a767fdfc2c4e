//! The operator's program: flags to calls. May import `crds` and the library.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use operator::{
    check::check,
    docker::host::{self, ApplySettings, Place},
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
    /// Writes this node's containerd configuration as its `NodeMirror` says; or switches over a host outside a cluster.
    #[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
    Node(NodeArguments),
}

#[derive(Args, Debug)]
struct NodeArguments {
    /// Without one: the agent of a node.
    #[command(subcommand)]
    host: Option<HostCommand>,
    /// The node that this runs on: the name of its `NodeMirror`.
    #[arg(long, env = "NODE_NAME", required = true)]
    node: Option<String>,
    /// Where containerd's folder of this host is mounted: it holds config.toml and certs.d.
    #[arg(long, value_name = "DIR", default_value = "/host/etc/containerd")]
    containerd_dir: PathBuf,
    /// What stands before the host's own path in --containerd-dir.
    #[arg(long, value_name = "DIR", default_value = "/host")]
    host_root: PathBuf,
}

/// For a host outside a cluster; no apiserver is asked.
#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Has this host's engine ask the cache first.
    Apply(ApplySettings),
    /// Puts back what `apply` changed.
    Restore(Place),
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
        return match arguments.host {
            Some(command) => on_host(command),
            None => node(arguments),
        };
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
    let node = arguments.node.context("--node must name the node")?;
    let options = Options { node, containerd_dir: arguments.containerd_dir, host_root: arguments.host_root };
    // One worker for files, one for probes: a slow disk must not delay a withdrawal.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await.context("failed to find the apiserver")?;
        agent::run(client, options, told_to_stop()?).await.context("the node agent ended")
    })
}

/// A host outside a cluster, once or until SIGTERM.
fn on_host(command: HostCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            HostCommand::Apply(settings) => host::apply(settings, told_to_stop()?).await?,
            HostCommand::Restore(place) => host::restore(place).await?,
        }
        Ok(())
    })
}

/// Ends with SIGTERM or SIGINT.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
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
    fn the_agent_and_a_host_are_told_apart() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        assert!(parse("operator node --node node1 --containerd-dir /x").is_ok());
        let apply = parse("operator node apply --runtime docker --mirror docker.io=http://10.0.2.2:8181 --watch");
        let Ok(Arguments { command: Command::Node(NodeArguments { host: Some(HostCommand::Apply(settings)), .. }) }) =
            apply
        else {
            unreachable!("{apply:?}")
        };
        assert!(settings.watch && settings.mirrors.len() == 1);
        assert!(parse("operator node restore --runtime docker").is_ok());
        assert!(parse("operator node apply --runtime docker").is_err());
        assert!(parse("operator node apply --runtime docker --mirror docker.io=x").is_err());
    }

    #[test]
    fn every_kind_is_a_document_of_its_own() {
        let text = all_kinds();
        assert_eq!(text.matches("\nkind: CustomResourceDefinition").count(), crds::YAML.len());
        assert_eq!(text.lines().filter(|line| *line == "---").count(), crds::YAML.len());
    }
}
