//! What a repository does: joins an upstream with the store. Read in this order: [`error`], [`freshness`],
//! [`flights`], [`mirror`], [`manifests`], [`blobs`], [`lists`]. May import `upstream`, `store`, `oci`, `settings`.

mod blobs;
pub mod error;
mod flights;
pub mod freshness;
mod lists;
mod manifests;
pub mod mirror;

pub use blobs::{BlobAnswer, BlobContent, BlobRequest};
pub use error::Error;
pub use manifests::ManifestAnswer;
pub use mirror::Mirror;

/// Where an answer came from. The words of the request log and of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the store, without asking anybody.
    Hit,
    /// From the upstream; stored on the way.
    Miss,
    /// From a fill that ran already.
    Joined,
    /// From the store, after the upstream confirmed it.
    Revalidated,
    /// From the store, because the upstream could not be asked.
    Stale,
}

impl Outcome {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
        }
    }
}

/// Whether a request wants the content or only what is said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// HEAD.
    Head,
    /// GET.
    Content,
}
