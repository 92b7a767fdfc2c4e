//! Asking an upstream registry: who may be asked, with which credentials, for how long, and what its answers mean.
//!
//! May import `oci`, `credentials` and the `crds` crate. Judgements are pure and stand in files of their own (`address`, `hosts`,
//! `realm`, `redirect`, `challenge`, `breaker`, `retry`, `rate_limit`, `page`); `client` and the files
//! after it act on them. Read in the order below.

pub mod config;
pub mod error;

mod address;
mod breaker;
mod challenge;
mod hosts;
mod page;
mod rate_limit;
mod realm;
mod redirect;
mod retry;

mod body;
mod client;
mod exchange;
mod guard;
mod health;
mod standing;
mod tls;
mod token;

pub use address::AddressKind;
pub use body::Body;
pub use client::{BlobBody, FetchedManifest, ManifestHead, Patience, Upstream};
pub use config::{ClientIdentity, UpstreamConfig};
pub use error::{BuildError, Error, Fault, Misfit, Slow, Violation};
pub use health::Availability;
pub use rate_limit::RateLimit;
pub use realm::Refusal as RealmRefusal;
pub use standing::{Standing, StandingReport};
