//! Everything that runs the product for real: its tests, its checks, its images.
//!
//! In reading order: [`install`] (what a bare machine lacks), [`content`] and [`package`] (images without an engine),
//! [`lab`] (a network without a way out, and processes in it), [`upstream`], [`proxy`] and [`engine`] (the registries
//! beyond the cache, reverse proxies and runtimes before it), [`cluster`] (a Kubernetes), [`suite`] and [`cases`] (what is
//! shown with them), [`run`] (a run from end to end), [`up`] (a cluster to look at), [`bench`] (beside the peers),
//! [`checks`] (cargo's own).

pub mod bench;
pub mod cases;
pub mod checks;
pub mod cluster;
pub mod command;
pub mod content;
pub mod engine;
pub mod install;
pub mod lab;
pub mod package;
pub mod proxy;
pub mod run;
pub mod suite;
pub mod up;
pub mod upstream;
