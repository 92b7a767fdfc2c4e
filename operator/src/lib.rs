//! The operator: it runs cache servers, and switches nodes over to them.
//!
//! Read in this order: [`settings`], [`cluster`] (what is watched), then along the data of a reconcile: [`gather`],
//! [`validate`], [`desired`], [`apply`], [`status`], joined by [`controllers`]. Beside it: [`observe`] (what cache servers
//! say), [`repository`] (what the kinds of repositories have in common), [`authority`] (managed certificates), [`issuer`],
//! [`requeue`], [`leader`], [`release_nodes`], [`check`], [`metrics`], [`telemetry`], [`sign`], [`causes`]. [`node`] is the agent of one
//! node, a program of its own in the same image; [`docker`] switches over a Docker host outside a cluster.
//!
//! ```text
//! cluster ──► gather ──► validate ──► desired ──► apply ──► status
//!                 observe (what pods say) ──────────────────┘
//! ```
//!
//! Rights. `run` needs, in the cluster: list and watch of our kinds and of nodes; patch of `registrymirrors`,
//! `repositorygroups` and `cacheservers` (the finalizer) and of all kinds' status; create of `cacheservers` (the default
//! one); create and patch of `nodemirrors`. In the release namespace: list, watch, create and patch of config maps,
//! Services, service accounts, claims, Secrets (these also delete) and Deployments; list, watch and patch of pods; create
//! of Leases, get and update of `entrepot-operator`. In the agents' namespace: list, watch, create and delete of pods. In
//! `default`: create and patch of events (of `events.k8s.io`). `release-nodes` needs list and patch of the kinds with a
//! finalizer and of `nodemirrors`, list of nodes, patch of the operator's `deployments/scale`, the Lease as above, and list
//! and delete of pods in the agents' namespace.

pub mod settings;
pub mod telemetry;
pub mod metrics;
pub mod sign;
pub mod causes;
pub mod issuer;
pub mod repository;
pub mod cluster;
pub mod gather;
pub mod validate;
pub mod desired;
pub mod authority;
pub mod apply;
pub mod observe;
pub mod status;
pub mod requeue;
pub mod leader;
pub mod controllers;
pub mod run;
pub mod release_nodes;
pub mod check;
pub mod node;
pub mod docker;
