//! How an upstream stands, for people: what an outcome says about it, in words that name the host, the cause and what to do.
//! Pure. May import `error` and `exchange`'s search for causes.

use std::{error::Error as StdError, io, time::SystemTime};

use hickory_resolver::net::NetError;

use super::{
    error::{Error, Slow},
    exchange::cause,
};

/// How an upstream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was not asked yet.
    Unknown,
    /// It answers, and takes our credentials.
    Reachable,
    /// It cannot be asked, or fails.
    Unreachable,
    /// It refuses our credentials.
    Denied,
}

impl Standing {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Reachable => "Reachable",
            Self::Unreachable => "Unreachable",
            Self::Denied => "Denied",
        }
    }
}

/// How an upstream stands, why, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingReport {
    /// The state.
    pub standing: Standing,
    /// Host, cause and what to do. Holds no secret and nothing that an upstream wrote.
    pub message: String,
    /// When the state became this one.
    pub since: SystemTime,
}

/// Who is asked, and how, as far as messages say it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The upstream's host.
    pub(super) host: String,
    /// The host of the proxy that everything goes through.
    pub(super) proxy: Option<String>,
    /// Whether we say who we are.
    pub(super) has_credentials: bool,
}

/// What the outcome of a question says. With `about_us` the question was whether we may ask at all, else it was about some
/// content: then a refusal says nothing of our credentials, only that the upstream answers. Nothing: no change.
pub(super) fn judge(
    subject: &Subject,
    before: Standing,
    outcome: Result<(), &Error>,
    about_us: bool,
) -> Option<(Standing, String)> {
    let reachable = || (Standing::Reachable, format!("{} answers", subject.host));
    let error = match outcome {
        Ok(()) => return Some(reachable()),
        Err(error) => error,
    };
    match error {
        Error::Denied if about_us && subject.has_credentials => Some((Standing::Denied, denied(subject))),
        // Some token servers give nobody a token that is good for nothing, and serve public images all the same.
        Error::Denied if about_us => Some((Standing::Reachable, public_only(subject))),
        // Some registries have no /v2/ page; those that serve content are registries nevertheless.
        Error::NotFound if about_us && before != Standing::Reachable => {
            let message =
                format!("{} answered 404 to /v2/, as no registry does; correct spec.upstream.url", subject.host);
            Some((Standing::Unreachable, message))
        }
        Error::NotFound if about_us => Some(reachable()),
        Error::CircuitOpen { .. } | Error::TimedOut { what: Slow::Turn } => None,
        Error::Unavailable { status, .. } if error.counts_for_breaker() => {
            let message = format!("{} answered {status}; it is failing, and is asked again by itself", subject.host);
            Some((Standing::Unreachable, message))
        }
        Error::TimedOut { .. }
        | Error::Unreachable { .. }
        | Error::ForbiddenAddress { .. }
        | Error::ForbiddenRealm { .. } => Some((Standing::Unreachable, out_of_reach(subject, error))),
        // Odd answers: they count only where they are all that is known.
        Error::TooManyRedirects { .. } | Error::Protocol(_) | Error::WrongContent(_) if about_us => {
            let message = format!("{}: {error}; correct spec.upstream.url", subject.host);
            (before != Standing::Reachable).then_some((Standing::Unreachable, message))
        }
        _ if before == Standing::Unreachable || (about_us && before != Standing::Denied) => Some(reachable()),
        _ => None,
    }
}

fn denied(subject: &Subject) -> String {
    format!(
        "{}, or its token server, refuses the credentials; correct the Secret that spec.upstream.credentialsSecretRef names",
        subject.host
    )
}

fn public_only(subject: &Subject) -> String {
    format!(
        "{} answers; what it does not show to everyone needs a Secret in spec.upstream.credentialsSecretRef",
        subject.host
    )
}

fn out_of_reach(subject: &Subject, error: &Error) -> String {
    let (peer, field) = match (&subject.proxy, error) {
        (Some(proxy), _) => (format!("{} through the proxy {proxy}", subject.host), "spec.upstream.proxyURL"),
        (None, Error::Unreachable { host, .. }) => (host.clone(), "spec.upstream.url"),
        (None, _) => (subject.host.clone(), "spec.upstream.url"),
    };
    match error {
        Error::Unreachable { source, .. } => no_connection(&peer, field, subject.proxy.as_deref(), source.as_ref()),
        Error::TimedOut { what: Slow::Connection } => format!(
            "{peer} takes no connection within spec.upstream.limits.connect; see to the way there (name servers, routes, firewalls, network policies), or correct {field}"
        ),
        Error::TimedOut { what } => {
            format!("{peer}: {what} took longer than spec.upstream.limits.header; it is asked again by itself")
        }
        Error::ForbiddenRealm { .. } => {
            format!("{error}; list that host in spec.upstream.tokenHosts if it may have the credentials")
        }
        other => format!("{}: {other}", subject.host),
    }
}

/// Why there is no connection, by what the layers below said.
fn no_connection(peer: &str, field: &str, proxy: Option<&str>, source: &(dyn StdError + 'static)) -> String {
    if let Some(error) = cause::<NetError>(source) {
        let name = proxy.unwrap_or(peer);
        return if error.is_no_records_found() || error.is_nx_domain() {
            format!("the name {name} does not resolve; correct {field}, or see to the name servers of the cache server")
        } else {
            format!(
                "the name {name} cannot be resolved: no name server answers; see to the name servers of the cache server"
            )
        };
    }
    if let Some(error) = cause::<rustls::Error>(source) {
        return format!("TLS with {peer} fails: {}", tls(error));
    }
    match cause::<io::Error>(source).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("{peer} refuses connections: nothing listens there; correct {field}, or start what should listen")
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable) => {
            format!("there is no route to {peer}; see to the network, or set spec.upstream.proxyURL")
        }
        _ => format!("the connection to {peer} broke; it is asked again by itself, and {field} may be wrong"),
    }
}

fn tls(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return format!(
            "{error}; see whether spec.upstream.url names a TLS port, and which versions and certificates it wants"
        );
    };
    match certificate {
        Certificate::UnknownIssuer => {
            "its certificate is from an unknown authority; put the authority's certificate into spec.upstream.caBundle"
                .to_owned()
        }
        Certificate::Expired | Certificate::ExpiredContext { .. } => {
            "its certificate has expired; have it renewed, or see to the clock of this node".to_owned()
        }
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
            "its certificate is for another name; correct spec.upstream.url, or have the certificate made for it"
                .to_owned()
        }
        other => format!("its certificate is not good ({other}); have it made anew"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::upstream::error::Violation;

    fn subject() -> Subject {
        Subject { host: "registry.example.com".into(), proxy: None, has_credentials: true }
    }

    fn after(before: Standing, error: &Error, about_us: bool) -> Option<Standing> {
        judge(&subject(), before, Err(error), about_us).map(|(standing, _)| standing)
    }

    #[test]
    fn each_outcome_says_what_it_can_say_and_no_more() {
        use Standing::{Denied, Reachable, Unknown, Unreachable};
        let status = |status| Error::Unavailable { status, retry_after: None };
        for (before, error, about_us, expected) in [
            // A refused image is no refused credential, and ends an outage.
            (Unknown, Error::Denied, false, None),
            (Reachable, Error::Denied, false, None),
            (Denied, Error::Denied, false, None),
            (Unreachable, Error::Denied, false, Some(Reachable)),
            (Reachable, Error::Denied, true, Some(Denied)),
            (Denied, Error::NotFound, false, None),
            (Unreachable, Error::NotFound, false, Some(Reachable)),
            (Unknown, Error::NotFound, true, Some(Unreachable)),
            (Reachable, Error::NotFound, true, Some(Reachable)),
            (Reachable, status(503), false, Some(Unreachable)),
            (Reachable, status(408), false, None),
            (Reachable, Error::TimedOut { what: Slow::Header }, false, Some(Unreachable)),
            (Reachable, Error::TimedOut { what: Slow::Turn }, false, None),
            (Unreachable, Error::CircuitOpen { until: Instant::now() }, false, None),
            (Unknown, Error::RateLimited { retry_after: None }, true, Some(Reachable)),
            (Denied, Error::RateLimited { retry_after: None }, false, None),
            (Unknown, Error::Protocol(Violation::Status(418)), true, Some(Unreachable)),
            (Reachable, Error::Protocol(Violation::Status(418)), true, None),
            (Unreachable, Error::WrongContent(super::super::error::Misfit::Html), false, Some(Reachable)),
        ] {
            assert_eq!(after(before, &error, about_us), expected, "{before:?}, {error}, about us: {about_us}");
        }
        assert_eq!(judge(&subject(), Denied, Ok(()), false).map(|(standing, _)| standing), Some(Reachable));
    }

    #[test]
    fn a_denial_says_where_the_credentials_come_from() {
        for (has_credentials, standing, words) in
            [(true, Standing::Denied, "correct the Secret"), (false, Standing::Reachable, "needs a Secret")]
        {
            let subject = Subject { has_credentials, ..subject() };
            let judged = judge(&subject, Standing::Unknown, Err(&Error::Denied), true);
            assert!(judged.is_some_and(|(judged, message)| judged == standing && message.contains(words)), "{words}");
        }
    }

    #[test]
    fn a_certificate_is_named_by_what_is_wrong_with_it() {
        for (error, words) in [
            (
                rustls::CertificateError::UnknownIssuer,
                "unknown authority; put the authority's certificate into spec.upstream.caBundle",
            ),
            (rustls::CertificateError::Expired, "expired"),
            (rustls::CertificateError::NotValidForName, "another name"),
            (rustls::CertificateError::Revoked, "not good"),
        ] {
            let text = tls(&rustls::Error::InvalidCertificate(error));
            assert!(text.contains(words), "{text}");
        }
    }
}
