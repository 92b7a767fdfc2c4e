//! The kinds of `entrepot.dev/v1alpha1`: the contract between people, the operator and the cache server.
//!
//! Read in this order: [`names`] (the words a spec is made of), [`registry_mirror`], [`cache_server`].
//! The cache server's configuration file is these objects in YAML, so there is no second schema.
//!
//! Depends on nothing of ours.

#![expect(unreachable_pub, reason = "the KubeSchema derive writes a pub item into a function")]

pub mod cache_server;
pub mod names;
pub mod registry_mirror;

pub use cache_server::{CacheServer, CacheServerSpec};
pub use registry_mirror::{RegistryMirror, RegistryMirrorSpec};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Every kind, in the order in which they are documented.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![RegistryMirror::crd(), CacheServer::crd()]
}
