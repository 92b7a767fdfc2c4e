//! What the product must do, one file per subject; each file's `cases()` says what it shows.

pub mod conformance;
pub mod engines;
pub mod docker_host;
pub mod images;
pub mod access;
pub mod browser;
pub mod faults;
pub mod fill;
pub mod load;
pub mod objects;
pub mod registry;
pub mod hosted;
pub mod proxies;
pub mod teams;
pub mod cluster_start;
pub mod cluster_pods;
pub mod cluster_support;
pub mod cluster_outage;
pub mod cluster_nodes;
pub mod cluster_detection;
pub mod cluster_authority;
pub mod cluster_mistakes;
pub mod cluster_repositories;
pub mod cluster_rights;
pub mod cluster_crash;
