//! The network of the laboratory: upstream addresses, a bridge, one namespace per node, and ways to cut an upstream off.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};

use super::{BASIC_UPSTREAM, CACHE, DOCKER_HUB, DOCKER_INDEX, Node, SPARE_UPSTREAMS, TOKEN_SERVER};
use crate::command::{feed, run};

/// The table of our rules; it lives and dies with the network namespace.
const TABLE: &str = "inet lab";

/// Builds the network of the namespace that this process is in, with these nodes; it must be a fresh one.
pub fn build(nodes: &[Node]) -> Result<()> {
    run("ip", ["link", "set", "lo", "up"])?;
    add_upstreams()?;
    add_bridge()?;
    nodes.iter().try_for_each(add_node)?;
    forbid_forwarding()?;
    feed("nft", ["-f", "-"], &format!("table {TABLE} {{\n chain in {{ type filter hook input priority 0; }}\n}}\n"))
}

fn add_upstreams() -> Result<()> {
    // Not every kernel has dummy devices; the loopback carries addresses as well.
    [DOCKER_HUB, TOKEN_SERVER, BASIC_UPSTREAM, DOCKER_INDEX]
        .iter()
        .chain(&SPARE_UPSTREAMS)
        .try_for_each(|address| run("ip", ["address", "add", &format!("{address}/32"), "dev", "lo"]))
}

fn add_bridge() -> Result<()> {
    run("ip", ["link", "add", "nodes", "type", "bridge"])?;
    run("ip", ["address", "add", &format!("{CACHE}/24"), "dev", "nodes"])?;
    run("ip", ["link", "set", "nodes", "up"])
}

fn add_node(node: &Node) -> Result<()> {
    let Node { name, address } = node;
    let inner = |arguments: &[&str]| run("ip", [&["-n", name], arguments].concat());
    run("ip", ["netns", "add", name])?;
    run("ip", ["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name])?;
    run("ip", ["link", "set", name, "master", "nodes", "up"])?;
    inner(&["link", "set", "lo", "up"])?;
    inner(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    inner(&["link", "set", "eth0", "up"])
}

fn forbid_forwarding() -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("cannot switch forwarding off")
}

/// Lets every packet to and from `address` vanish.
pub fn black_hole(address: Ipv4Addr) -> Result<()> {
    reopen(address)?;
    add_rules(&[
        format!("ip daddr {address} drop comment \"{address}\""),
        format!("ip saddr {address} drop comment \"{address}\""),
    ])
}

/// Answers every packet to `address` with a TCP reset; what its programs still send vanishes.
pub fn refuse(address: Ipv4Addr) -> Result<()> {
    reopen(address)?;
    add_rules(&[
        // Between programs of this machine the reset's own destination is the address too.
        format!("ip saddr {address} tcp flags & rst == rst accept comment \"{address}\""),
        format!("ip daddr {address} meta l4proto tcp reject with tcp reset comment \"{address}\""),
        format!("ip saddr {address} tcp flags & rst == 0 drop comment \"{address}\""),
    ])
}

/// Removes the rules about `address`.
pub fn reopen(address: Ipv4Addr) -> Result<()> {
    let listing = run_text(&["-a", "list", "chain", "inet", "lab", "in"])?;
    let mark = format!("comment \"{address}\"");
    for line in listing.lines().filter(|line| line.contains(&mark)) {
        let (_, handle) =
            line.rsplit_once("# handle ").with_context(|| format!("nft printed a rule without a handle: {line}"))?;
        run("nft", ["delete", "rule", "inet", "lab", "in", "handle", handle.trim()])?;
    }
    Ok(())
}

fn add_rules(rules: &[String]) -> Result<()> {
    let mut script = String::new();
    for rule in rules {
        writeln!(script, "add rule {TABLE} in {rule}")?;
    }
    feed("nft", ["-f", "-"], &script)
}

fn run_text(arguments: &[&str]) -> Result<String> {
    crate::command::output("nft", arguments)
}

/// The file that names a node's network namespace.
#[must_use]
pub fn namespace_of(node: Node) -> std::path::PathBuf {
    Path::new("/run/netns").join(node.name)
}
