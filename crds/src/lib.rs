//! The kinds of `entrepot.dev/v1alpha1`: the contract between people, the operator and the cache server.
//!
//! Read in this order: [`names`] (the words a spec is made of), [`conditions`], [`nodes`], [`repository`] (what the kinds of
//! repositories have in common), [`registry_mirror`], [`hosted_repository`], [`repository_group`], [`cache_server`], [`node_mirror`].
//! The cache server's configuration file is these objects in YAML, so there is no second schema.
//!
//! Depends on nothing of ours.

#![expect(unreachable_pub, reason = "the KubeSchema derive writes a pub item into a function")]
#![expect(clippy::duplicated_attributes, reason = "each printer column says its type anew")]

pub mod names;
pub mod conditions;
pub mod nodes;
pub mod repository;
pub mod registry_mirror;
pub mod hosted_repository;
pub mod repository_group;
pub mod cache_server;
pub mod node_mirror;

pub use cache_server::{CacheServer, CacheServerSpec, CacheServerStatus};
pub use hosted_repository::{HostedRepository, HostedRepositorySpec, HostedRepositoryStatus};
pub use node_mirror::{NodeMirror, NodeMirrorSpec, NodeMirrorStatus};
pub use registry_mirror::{RegistryMirror, RegistryMirrorSpec, RegistryMirrorStatus};
pub use repository_group::{RepositoryGroup, RepositoryGroupSpec, RepositoryGroupStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

/// Every kind, in the order in which they are documented.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [RegistryMirror::crd(), HostedRepository::crd(), RepositoryGroup::crd(), CacheServer::crd(), NodeMirror::crd()]
        .map(without_formats)
        .into()
}

/// Drops Rust's number formats (`uint16`), which `OpenAPI` does not know: an apiserver warns of each. `minimum` and `maximum` say more.
fn without_formats(mut kind: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas =
        kind.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
    schemas.for_each(drop_formats);
    kind
}

fn drop_formats(schema: &mut JSONSchemaProps) {
    schema.format = None;
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(drop_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(entries)) = &mut schema.items {
        drop_formats(entries);
    }
}

/// The YAML of every kind, as `kubectl apply` takes it: the name of the file in `crds/yaml/`, and its text. In the order of [`all`].
///
/// Generated; the test `generated_files` keeps it equal to [`all`].
pub const YAML: [(&str, &str); 5] = [
    ("registrymirrors.yaml", include_str!("../yaml/registrymirrors.yaml")),
    ("hostedrepositories.yaml", include_str!("../yaml/hostedrepositories.yaml")),
    ("repositorygroups.yaml", include_str!("../yaml/repositorygroups.yaml")),
    ("cacheservers.yaml", include_str!("../yaml/cacheservers.yaml")),
    ("nodemirrors.yaml", include_str!("../yaml/nodemirrors.yaml")),
];
