//! Why a repository cannot answer. May import `upstream` and `store`.

use std::{io, sync::Arc, time::Duration};

use crate::{
    oci::{Digest, ManifestError},
    store::growing::Failure,
    upstream,
};

/// Why a repository cannot answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The repository is switched off.
    #[error("the repository {0} is switched off (spec.online: false)")]
    Offline(String),
    /// The repository has a mistake, and nobody may answer in its place.
    #[error(
        "the repository {0} cannot be served because of a mistake; see the server's log or the object's conditions"
    )]
    Unusable(String),
    /// No member of the group has it that everyone may pull from; the others are not asked before a login.
    #[error("{0} has no such thing for everyone; log in to have the members asked too that are for some only")]
    LogIn(String),
    /// The upstream does not have it.
    #[error("{what} is not known to {registry}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Whom the repository stands for.
        registry: String,
    },
    /// The upstream says that these credentials may not read it, or that it does not know it.
    #[error("{registry} denies {what} to this repository's credentials, or does not know it")]
    Denied {
        /// What was asked for.
        what: String,
        /// Whom the repository stands for.
        registry: String,
    },
    /// The upstream failed.
    #[error("{registry} could not be asked for {what}")]
    Upstream {
        /// What was asked for.
        what: String,
        /// Whom the repository stands for.
        registry: String,
        /// How it failed.
        #[source]
        source: upstream::Error,
    },
    /// A blob's transfer broke off a moment ago; a mirror client is sent on to its next host.
    #[error("the transfer of {digest} broke off {} s ago; ask again in {} s, or ask the upstream", ago.as_secs(), wait.as_secs())]
    BrokeOff {
        /// The blob.
        digest: Digest,
        /// When.
        ago: Duration,
        /// How long this is answered.
        wait: Duration,
    },
    /// What the upstream sent is not what was asked for.
    #[error("{registry} sent wrong content for {what}")]
    WrongContent {
        /// What was asked for.
        what: String,
        /// Whom the repository stands for.
        registry: String,
        /// In which way.
        #[source]
        source: WrongContent,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] Arc<io::Error>),
}

/// In which way content is wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WrongContent {
    /// A manifest that must not be handed on.
    #[error(transparent)]
    Manifest(Arc<ManifestError>),
    /// A blob.
    #[error(transparent)]
    Blob(Failure),
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Store(Arc::new(source))
    }
}

impl Error {
    /// Whether a cached copy may stand in: the upstream gave no answer about the content.
    #[must_use]
    pub const fn is_outage(&self) -> bool {
        matches!(self, Self::Upstream { .. } | Self::WrongContent { .. })
    }

    /// Why a blob's file did not become whole, where no upstream said no.
    pub(super) fn of_blob(failure: Failure, what: impl FnOnce() -> (String, String)) -> Self {
        if let Failure::Io { source, .. } = failure {
            return Self::Store(source);
        }
        let (what, registry) = what();
        Self::WrongContent { what, registry, source: WrongContent::Blob(failure) }
    }

    /// What an upstream's error means for the one who asked.
    pub(super) fn of_upstream(source: upstream::Error, what: String, registry: String) -> Self {
        match source {
            upstream::Error::NotFound => Self::NotFound { what, registry },
            upstream::Error::Denied => Self::Denied { what, registry },
            source => Self::Upstream { what, registry, source },
        }
    }
}
