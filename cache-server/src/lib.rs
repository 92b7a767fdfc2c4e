//! The cache server: fetches each image once and hands it on.
//!
//! ```text
//! connector → api → {routing, repository} → {upstream, store} → oci
//! ```
//!
//! Read in the order below. `oci` is pure: no I/O. `upstream` and `store` do not know each other; only `repository`
//! joins them. `settings` turns the objects of the `crds` crate into types that cannot be wrong. `canary` is an
//! image that needs no upstream. `server` is what all
//! requests share, `browse` shows people what is kept, `ports` the listeners, `run` the life of the process.

pub mod oci;
pub mod causes;
pub mod credentials;
pub mod globs;
pub mod access;
pub mod settings;
pub mod canary;
pub mod routing;
pub mod upstream;
pub mod search;
pub mod store;
pub mod repository;
pub mod metrics;
pub mod server;
pub mod browse;
pub mod api;
pub mod connector;
pub mod ports;
pub mod run;
pub mod telemetry;
