//! Why an upstream gave no usable answer: whose fault it is, and whether asking again helps.
//!
//! Texts are fixed and short; they name hosts, never queries, tokens or what an upstream wrote. May import `address` and
//! `realm`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{address::AddressKind, realm::Refusal};

/// Why an upstream gave no usable answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The upstream says that it does not have it.
    #[error("the upstream does not have it")]
    NotFound,
    /// 401 or 403 after a fresh token. Some registries (Docker Hub) say this for what does not exist, too.
    #[error("the upstream denies it or does not know it")]
    Denied,
    /// 429, now or during the pause that an earlier 429 asked for.
    #[error("the upstream limits how often it may be asked")]
    RateLimited {
        /// When to ask again, if the upstream said so.
        retry_after: Option<Duration>,
    },
    /// A status that says that the upstream, its token server or the target of a redirect cannot answer now.
    #[error("the upstream answered {status}")]
    Unavailable {
        /// The status.
        status: u16,
        /// When to ask again, if the upstream said so.
        retry_after: Option<Duration>,
    },
    /// A time limit passed before the answer's header was there.
    #[error("{what} took longer than its time limit")]
    TimedOut {
        /// What was waited for.
        what: Slow,
    },
    /// No connection could be made, or it broke before the answer's header was there.
    #[error("failed to reach {host}")]
    Unreachable {
        /// The host that was to be reached.
        host: String,
        /// What the connection said; its URL is removed.
        source: Arc<reqwest::Error>,
    },
    /// More redirects than the limit.
    #[error("the upstream redirects more than {limit} times")]
    TooManyRedirects {
        /// The limit.
        limit: u32,
    },
    /// A redirect, a realm or a name led to an address that must not be connected to.
    #[error("refused to connect to {host}: its address is {kind}; list the host if that is intended")]
    ForbiddenAddress {
        /// The host.
        host: String,
        /// What kind of address it has.
        kind: AddressKind,
    },
    /// The upstream named a token server that must not be asked.
    #[error("refused the upstream's token server {host}: {why}")]
    ForbiddenRealm {
        /// The host of the realm.
        host: String,
        /// Which rule it broke.
        why: Refusal,
    },
    /// An answer came, but not with the content that was asked for.
    #[error("the upstream sent wrong content: {0}")]
    WrongContent(Misfit),
    /// A body ended or broke before it was complete.
    #[error("the upstream's answer broke off")]
    Broken,
    /// A body arrived more slowly than the stall limit allows.
    #[error("the upstream's answer stalled")]
    Stalled,
    /// The upstream failed too often and is left alone for now.
    #[error("the upstream failed repeatedly and is left alone for now")]
    CircuitOpen {
        /// When it may be asked again.
        until: Instant,
    },
    /// An answer that the protocol does not allow.
    #[error("the upstream does not keep to the protocol: {0}")]
    Protocol(Violation),
}

/// What a time limit was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// A free place among the requests that may be under way at once.
    Turn,
    /// The connection, TLS included.
    Connection,
    /// The token server's answer.
    Token,
    /// The answer's header.
    Header,
}

impl fmt::Display for Slow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Turn => "waiting for a free place among the requests to the upstream",
            Self::Connection => "connecting to the upstream",
            Self::Token => "the upstream's token server",
            Self::Header => "the upstream's answer",
        })
    }
}

/// In which way content is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// A web page.
    #[error("a web page")]
    Html,
    /// The content hashes to another digest than the one that was asked for or claimed.
    #[error("it hashes to {got} instead of {expected}")]
    Digest {
        /// The digest that was asked for, or that the upstream claimed.
        expected: String,
        /// The digest of what came.
        got: String,
    },
    /// More than such an answer may have.
    #[error("more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A media type that is missing or none.
    #[error("no media type")]
    MediaType,
    /// Text that is not the JSON that belongs here.
    #[error("not the expected JSON")]
    Json,
}

/// In which way an answer breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A status that means nothing here.
    #[error("status {0}")]
    Status(u16),
    /// A redirect without a usable `Location`.
    #[error("a redirect without a usable location")]
    Location,
    /// A redirect from https to http.
    #[error("a redirect from https to http")]
    Downgrade,
    /// A range that is not the one that was asked for, or none can be had: ask from the beginning.
    #[error("the asked range cannot be had")]
    Range,
    /// A content encoding that was not asked for and cannot be undone.
    #[error("a content encoding that cannot be undone")]
    Encoding,
    /// A token server's answer without a usable token.
    #[error("a token server's answer without a usable token")]
    Token,
    /// Pages that lead elsewhere, in a circle, or never end.
    #[error("a list whose pages lead elsewhere or never end")]
    Pages,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The upstream's, or the way's to it.
    Upstream,
    /// Ours: our limits or our settings.
    Us,
    /// The client's: it asked for what it cannot have.
    Client,
}

impl Error {
    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NotFound | Self::Denied => Fault::Client,
            Self::TimedOut { what: Slow::Turn } => Fault::Us,
            _ => Fault::Upstream,
        }
    }

    /// Whether the same question may be answered differently in a moment without anybody changing a setting.
    #[must_use]
    pub const fn may_retry(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Broken
            | Self::Stalled
            | Self::CircuitOpen { .. } => true,
            Self::NotFound
            | Self::Denied
            | Self::TooManyRedirects { .. }
            | Self::ForbiddenAddress { .. }
            | Self::ForbiddenRealm { .. }
            | Self::WrongContent(_)
            | Self::Protocol(_) => false,
        }
    }

    /// Whether a transfer that was to go on at an offset must begin again at 0.
    #[must_use]
    pub const fn restart(&self) -> bool {
        matches!(self, Self::Protocol(Violation::Range))
    }

    /// Whether it counts towards opening the breaker: the upstream gave no answer, or one that says that it is broken.
    #[must_use]
    pub const fn counts_for_breaker(&self) -> bool {
        match self {
            Self::Unavailable { status, .. } => *status >= 500,
            Self::TimedOut { what } => !matches!(what, Slow::Turn),
            Self::Unreachable { .. } => true,
            _ => false,
        }
    }

    /// Whether it proves that the upstream answers at all.
    pub(super) const fn proves_life(&self) -> bool {
        match self {
            Self::CircuitOpen { .. } | Self::ForbiddenAddress { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } => false,
            Self::Unavailable { status, .. } => *status < 500,
            _ => true,
        }
    }

    /// How long to wait before asking again, if that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Unavailable { retry_after, .. } => *retry_after,
            Self::CircuitOpen { until } => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }
}

/// Why an [`Upstream`](super::Upstream) cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not `http` or `https`, or without a host.
    #[error("the upstream's URL must be http or https with a host, got scheme {scheme:?}")]
    Url {
        /// The scheme that was given.
        scheme: String,
    },
    /// The upstream's URL names an address that is never connected to.
    #[error("the upstream's URL must not lead to a {kind} address")]
    ForbiddenAddress {
        /// What kind of address it names.
        kind: AddressKind,
    },
    /// An entry of the token or redirect hosts is no host.
    #[error("{text:?} must be a host, or a host and a port")]
    Host {
        /// The entry.
        text: String,
    },
    /// The proxy's URL cannot be used.
    #[error("failed to use the proxy's URL")]
    Proxy(#[source] reqwest::Error),
    /// A trusted certificate cannot be read.
    #[error("failed to read trusted certificate number {number}")]
    Certificate {
        /// Which one, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The client certificate and its key do not fit.
    #[error("failed to use the client certificate")]
    ClientIdentity(#[source] rustls::Error),
    /// TLS cannot be set up.
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_whose_fault_it_is_and_what_helps() {
        let status = |status| Error::Unavailable { status, retry_after: None };
        let table = [
            // error, fault, may_retry, counts_for_breaker
            (Error::NotFound, Fault::Client, false, false),
            (Error::Denied, Fault::Client, false, false),
            (Error::RateLimited { retry_after: None }, Fault::Upstream, true, false),
            (status(503), Fault::Upstream, true, true),
            (status(408), Fault::Upstream, true, false),
            (Error::TimedOut { what: Slow::Header }, Fault::Upstream, true, true),
            (Error::TimedOut { what: Slow::Turn }, Fault::Us, true, false),
            (Error::TooManyRedirects { limit: 5 }, Fault::Upstream, false, false),
            (Error::WrongContent(Misfit::Html), Fault::Upstream, false, false),
            (Error::Broken, Fault::Upstream, true, false),
            (Error::Stalled, Fault::Upstream, true, false),
            (Error::CircuitOpen { until: Instant::now() }, Fault::Upstream, true, false),
            (Error::Protocol(Violation::Range), Fault::Upstream, false, false),
        ];
        for (error, fault, may_retry, counts) in table {
            assert_eq!(error.fault(), fault, "{error}");
            assert_eq!(error.may_retry(), may_retry, "{error}");
            assert_eq!(error.counts_for_breaker(), counts, "{error}");
            assert!(!(error.counts_for_breaker() && error.proves_life()), "{error}");
        }
    }
}
