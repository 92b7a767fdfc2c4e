//! Whether the cache answers this node: when to ask, what the answers amount to (pure), and one question.
//! May import `resolve`.

use std::time::Duration;

use crds::nodes::ProbeSpec;
use reqwest::{Client, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::resolve::Names;
use crate::causes::chain;

/// Between two questions while failures are counted: three failures of 1 s each fit into 10 s with the interval before.
const AFTER_FAILURE: Duration = Duration::from_millis(250);
/// Between two questions while successes are counted.
const AFTER_SUCCESS: Duration = Duration::from_secs(1);
/// The header in which the cache names the repository that answers.
const REPOSITORY: &str = "entrepot-repository";
/// The header by which every registry can be told from another web server, and what it says.
const REGISTRY: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

/// What the answers so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough of them.
    Unknown,
    /// The cache answers.
    Up,
    /// It does not.
    Down,
}

/// Counts answers. A verdict changes after so many equal answers in a row as the spec says.
#[derive(Clone, Debug)]
pub struct Count {
    spec: ProbeSpec,
    verdict: Verdict,
    last: Option<bool>,
    streak: u32,
}

impl Count {
    /// Before the first answer.
    #[must_use]
    pub fn new(spec: ProbeSpec) -> Self {
        Self { spec, verdict: Verdict::Unknown, last: None, streak: 0 }
    }

    /// What the answers so far amount to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes one answer, and tells after which time to ask again.
    pub fn take(&mut self, good: bool) -> Duration {
        self.streak = if self.last == Some(good) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let (settled, enough, gap) = if good {
            (Verdict::Up, self.spec.successes, AFTER_SUCCESS)
        } else {
            (Verdict::Down, self.spec.failures, AFTER_FAILURE)
        };
        if self.streak >= enough {
            self.verdict = settled;
        }
        let interval = self.spec.interval.get();
        if self.verdict == settled { interval } else { interval.min(gap) }
    }
}

/// Why a question got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificates of the entry cannot be read.
    #[error("its caBundle holds no certificate that can be read: {0}")]
    Certificates(String),
    /// No client can be made.
    #[error("no HTTP client can be made: {0}")]
    Client(String),
    /// No answer in time, or none at all.
    #[error("{0}")]
    Unreachable(String),
    /// Something answered that is not the cache, or the cache says that it cannot serve.
    #[error("it answered {0}, and 200 was expected")]
    Status(u16),
    /// Something else answers there.
    #[error("the answer came from {0:?} instead of repository {1:?}")]
    Stranger(String, String),
    /// Something answers there that is no registry.
    #[error("what answers there is no registry")]
    NoRegistry,
}

/// What is asked: the very URL that the node's files name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The entry's URL.
    pub url: String,
    /// The repository that must answer. Unset: the URL leads to one without naming it, so any registry will do.
    pub repository: Option<String>,
    /// The only authorities that are trusted. Unset: those of the web.
    pub ca_bundle: Option<String>,
}

/// Asks one target, over a new connection each time.
#[derive(Debug)]
pub struct Probe {
    client: Client,
    target: Target,
    url: String,
}

impl Probe {
    /// Prepares the questions to `target`, each answered within `timeout` or not at all.
    ///
    /// # Errors
    /// When the target's certificates cannot be read.
    pub fn new(target: Target, timeout: Duration) -> Result<Self, Error> {
        let tls = trust(target.ca_bundle.as_deref())?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            // The runtime's way to the cache is what counts: no proxy, no detour, no connection that survived the cache.
            .no_proxy()
            .redirect(Policy::none())
            .dns_resolver(Names::default())
            .pool_max_idle_per_host(0)
            .timeout(timeout)
            .build()
            .map_err(|error| Error::Client(chain(&error)))?;
        let url = format!("{}/v2/", target.url.trim_end_matches('/'));
        Ok(Self { client, target, url })
    }

    /// Asks once.
    ///
    /// # Errors
    /// Unless the repository itself answered in time, with 200 or by asking for a login.
    pub async fn ask(&self) -> Result<(), Error> {
        let answer = self.client.get(&self.url).send().await.map_err(|error| Error::Unreachable(said(error)))?;
        // A repository that also takes pushes asks everyone to log in here, and answers pulls without that all the same.
        if answer.status() != 200 && answer.status() != 401 {
            return Err(Error::Status(answer.status().as_u16()));
        }
        let Some(repository) = &self.target.repository else {
            let is_registry = answer.headers().get(REGISTRY.0).is_some_and(|value| value == REGISTRY.1);
            return if is_registry { Ok(()) } else { Err(Error::NoRegistry) };
        };
        let name = answer.headers().get(REPOSITORY).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if name.as_deref() != Some(repository) {
            return Err(Error::Stranger(name.unwrap_or_default(), repository.clone()));
        }
        Ok(())
    }
}

fn trust(ca_bundle: Option<&str>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match ca_bundle {
        Some(text) => {
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let certificate = certificate.map_err(|error| Error::Certificates(error.to_string()))?;
                roots.add(certificate).map_err(|error| Error::Certificates(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(Error::Certificates("there is none".to_owned()));
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Client(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn said(error: reqwest::Error) -> String {
    if error.is_timeout() { "no answer in time".to_owned() } else { chain(&error.without_url()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a cache that answers in the spans `answers` of a fake clock; tells when the verdict changed.
    fn play(answers: impl Fn(Duration) -> bool, until: Duration) -> Vec<(Duration, Verdict)> {
        let spec = ProbeSpec::default();
        let timeout = spec.timeout.get();
        let mut count = Count::new(spec);
        let (mut now, mut changes) = (Duration::ZERO, vec![]);
        while now < until {
            let good = answers(now);
            let before = count.verdict();
            if !good {
                now += timeout;
            }
            let pause = count.take(good);
            if count.verdict() != before {
                changes.push((now, count.verdict()));
            }
            now += pause;
        }
        changes
    }

    #[test]
    fn a_frozen_cache_is_withdrawn_within_ten_seconds_and_back_within_fifteen() {
        for offset in 0..100 {
            let freeze = Duration::from_mins(1) + Duration::from_millis(offset * 100);
            let thaw = freeze + Duration::from_secs(30) + Duration::from_millis(offset * 37);
            let changes = play(|now| now < freeze || now >= thaw, thaw + Duration::from_mins(1));
            let [(first, Verdict::Up), (down, Verdict::Down), (up, Verdict::Up)] = changes[..] else {
                unreachable!("{changes:?}")
            };
            assert!(first <= Duration::from_secs(3));
            assert!(down <= freeze + Duration::from_secs(10), "frozen at {freeze:?}, withdrawn at {down:?}");
            assert!(up <= thaw + Duration::from_secs(15), "back at {thaw:?}, noticed at {up:?}");
        }
    }

    #[test]
    fn one_lost_answer_changes_nothing() {
        let mut count = Count::new(ProbeSpec::default());
        for good in [true, true, true, false, false, true, false, false, true] {
            count.take(good);
        }
        assert_eq!(count.verdict(), Verdict::Up);
    }

    #[test]
    fn a_short_interval_is_never_stretched() {
        let spec = ProbeSpec { interval: crds::names::Span::millis(100), ..ProbeSpec::default() };
        let mut count = Count::new(spec);
        assert_eq!(count.take(true), Duration::from_millis(100));
        assert_eq!(count.take(false), Duration::from_millis(100));
    }

    #[test]
    fn certificates_that_cannot_be_read_are_named_as_the_cause() {
        for text in ["", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let target = Target { url: "https://127.0.0.1:1".into(), repository: None, ca_bundle: Some(text.into()) };
            assert!(matches!(Probe::new(target, Duration::from_secs(1)), Err(Error::Certificates(_))), "{text}");
        }
    }
}
