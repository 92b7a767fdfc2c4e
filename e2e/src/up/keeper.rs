//! The keeper: owns the namespaces until it is asked to end, and gives the apiserver a port on the machine's loopback.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{API, NAME, relay};
use crate::cluster::API_PORT;
use crate::install::{Engines, Programs};
use crate::lab::cache_dir;
use crate::lab::enter::RunFolder;

/// How many ports are tried.
const PORTS: u16 = 100;

/// Keeps the cluster until SIGTERM or its end; then nothing of it is left.
pub fn keep() -> Result<ExitCode> {
    let cache = cache_dir()?;
    let folder = RunFolder::named(&cache, NAME)?;
    let programs = Programs::in_cache(&cache, Engines::default())?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start a runtime")?;
    runtime.block_on(async {
        let (listener, port) = free_port().await?;
        let arguments =
            ["inside".into(), "--work".into(), folder.path().into(), "--port".into(), port.to_string().into()];
        let mut child = folder.launch_inside(&arguments, &programs.search_path()?)?;
        // What is inside ends when this closes.
        let lifeline = child.stdin.take();
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        let mut asked_to_end = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tokio::select! {
            status = &mut ended => bail!("the cluster ended by itself ({})", status??),
            _ = asked_to_end.recv() => {}
            relayed = relay::port_to_socket(listener, folder.path().join(API)) => relayed?,
        }
        drop(lifeline);
        ended.await?.context("cannot wait for the namespaces")?;
        Ok(ExitCode::SUCCESS)
    })
}

/// A port of the loopback, from the usual one upward.
async fn free_port() -> Result<(TcpListener, u16)> {
    for port in API_PORT..API_PORT + PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return Ok((listener, port)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("cannot listen on port {port}")),
        }
    }
    bail!("no port from {API_PORT} to {} is free on the loopback", API_PORT + PORTS - 1)
}
