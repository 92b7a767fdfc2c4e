//! A Docker host outside a cluster: its engine is switched over to the cache, and put back. No apiserver is asked.
//!
//! Read in this order: [`mirror`], [`daemon_json`], [`plan`] (the judgements, pure), [`engine`] (dockerd, asked and told),
//! [`disk`] (the hands), [`host`] (the steps, and the loop of `--watch`).
//! May import `crds`, and of [`crate::node`] what hosts.toml and the probes take.

pub mod mirror;
pub mod daemon_json;
pub mod plan;
pub mod engine;
pub mod disk;
pub mod host;
