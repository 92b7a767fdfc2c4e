//! The objects that a checked `CacheServer` and its repositories ask for. Pure, and cannot fail. May import `sign` and
//! `repository`.
//!
//! Read in this order: [`names`], [`labels`], [`deployment`], [`service`], [`config_map`], [`secret`], [`service_account`],
//! [`claim`], [`tls`] (when certificates are made anew), [`node_entries`] and [`rollout`] (what nodes write, and when),
//! [`canary`] (the pull that verifies a node).

pub mod names;
pub mod labels;
pub mod deployment;
pub mod service;
pub mod config_map;
pub mod secret;
pub mod service_account;
pub mod claim;
pub mod tls;
pub mod node_entries;
pub mod rollout;
pub mod canary;
