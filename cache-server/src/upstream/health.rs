//! How an upstream is doing: the breaker and the pause that a 429 asks for, with what they are for logs and metrics.
//! May import `breaker`, `error`, `rate_limit` and `standing`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crds::registry_mirror::BreakerSpec;

use super::{
    breaker::{Admission, Breaker},
    error::Error,
    rate_limit::RateLimit,
    standing::{self, Standing, StandingReport, Subject},
};

/// Whether an upstream may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// As far as is known.
    Available,
    /// It failed repeatedly and is left alone.
    Down {
        /// Since when.
        since: Instant,
        /// When it is asked again.
        until: Instant,
        /// Why the last request failed.
        last_error: String,
    },
}

/// How one upstream is doing.
pub(super) struct Health {
    subject: Subject,
    state: Mutex<State>,
}

struct State {
    breaker: Breaker,
    paused_until: Option<Instant>,
    last_error: String,
    rate_limit: Option<RateLimit>,
    probing: bool,
    standing: StandingReport,
}

impl Health {
    /// An upstream of which nothing is known.
    pub(super) fn new(subject: Subject, spec: BreakerSpec) -> Self {
        let message = format!("{} was not asked yet", subject.host);
        let state = State {
            breaker: Breaker::new(spec),
            paused_until: None,
            last_error: String::new(),
            rate_limit: None,
            probing: false,
            standing: StandingReport { standing: Standing::Unknown, message, since: SystemTime::now() },
        };
        Self { subject, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses at once if nothing may be asked now, without taking the trial of a half-open breaker.
    pub(super) fn check(&self, now: Instant) -> Result<(), Error> {
        let state = self.state();
        match state.breaker.opening() {
            Some(opening) if now < opening.until => Err(Error::CircuitOpen { until: opening.until }),
            _ => state.pause(now),
        }
    }

    /// Lets a request go, or refuses it.
    pub(super) fn admit(&self, now: Instant) -> Result<Ticket<'_>, Error> {
        let mut state = self.state();
        state.pause(now)?;
        match state.breaker.admit(now) {
            Admission::Go => Ok(Ticket { health: self, trial: false }),
            Admission::Trial => Ok(Ticket { health: self, trial: true }),
            Admission::Refuse { until } => Err(Error::CircuitOpen { until }),
        }
    }

    /// Lets a request go whatever the breaker says: an administrator wants to know. Only a pause is kept.
    pub(super) fn admit_check(&self, now: Instant) -> Result<Ticket<'_>, Error> {
        self.state().pause(now)?;
        Ok(Ticket { health: self, trial: false })
    }

    /// How the upstream stands, for people.
    pub(super) fn standing(&self) -> StandingReport {
        self.state().standing.clone()
    }

    /// What is known about availability.
    pub(super) fn availability(&self) -> Availability {
        let state = self.state();
        match state.breaker.opening() {
            None => Availability::Available,
            Some(opening) => {
                Availability::Down { since: opening.since, until: opening.until, last_error: state.last_error.clone() }
            }
        }
    }

    /// The last rate limit.
    pub(super) fn rate_limit(&self) -> Option<RateLimit> {
        self.state().rate_limit
    }

    /// Keeps what the upstream said about its rate limit.
    pub(super) fn note_rate_limit(&self, limit: RateLimit) {
        self.state().rate_limit = Some(limit);
    }

    /// Whether the breaker is open and nobody probes yet; then the caller is the one to probe.
    pub(super) fn claim_probing(&self) -> bool {
        let mut state = self.state();
        let claim = state.breaker.opening().is_some() && !state.probing;
        state.probing |= claim;
        claim
    }

    /// When the prober is to probe next; `None` ends the probing.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let mut state = self.state();
        let opening = state.breaker.opening();
        state.probing = opening.is_some();
        opening.map(|opening| opening.until)
    }
}

impl State {
    fn stand(&mut self, standing: Standing, message: String) {
        if self.standing.standing != standing {
            self.standing.since = SystemTime::now();
        }
        (self.standing.standing, self.standing.message) = (standing, message);
    }

    fn pause(&self, now: Instant) -> Result<(), Error> {
        match self.paused_until.map(|until| until.saturating_duration_since(now)) {
            Some(left) if left > Duration::ZERO => Err(Error::RateLimited { retry_after: Some(left) }),
            _ => Ok(()),
        }
    }
}

/// The permission for one request. Dropped without a word it says nothing about the upstream.
pub(super) struct Ticket<'a> {
    health: &'a Health,
    trial: bool,
}

impl Ticket<'_> {
    /// Reports how the request ended, and whether it was about us or about some content.
    pub(super) fn settle(mut self, outcome: Result<(), &Error>, about_us: bool) {
        let now = Instant::now();
        let mut state = self.health.state();
        let before = state.standing.standing;
        if let Some((standing, message)) = standing::judge(&self.health.subject, before, outcome, about_us) {
            state.stand(standing, message);
        }
        match outcome {
            Err(error) if error.counts_for_breaker() => {
                state.last_error = describe(error);
                if let Some(opening) = state.breaker.fail(now, self.trial, rand::random()) {
                    let seconds = opening.until.saturating_duration_since(now).as_secs_f64();
                    tracing::warn!(upstream.host = %self.health.subject.host, error = %state.last_error, seconds, "upstream is left alone");
                }
                self.trial = false;
            }
            Err(error) if !error.proves_life() => {}
            Ok(()) | Err(_) => {
                if state.breaker.opening().is_some() {
                    tracing::info!(upstream.host = %self.health.subject.host, "upstream is back");
                }
                state.breaker.succeed();
                self.trial = false;
            }
        }
        if let Err(Error::RateLimited { retry_after: Some(wait) }) = outcome {
            state.paused_until = Some(now + *wait);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.trial {
            self.health.state().breaker.abandon_trial();
        }
    }
}

/// An error with its causes in one line.
fn describe(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use crds::names::Span;

    use super::*;

    fn health() -> Health {
        let subject = Subject { host: "registry.example.com".into(), proxy: None, has_credentials: false };
        Health::new(subject, BreakerSpec { failures: 1, min_open: Span::secs(1), max_open: Span::secs(1) })
    }

    #[test]
    fn the_time_of_a_standing_moves_only_with_the_standing() {
        let health = health();
        let settle = |outcome: Result<(), &Error>| {
            health.admit_check(Instant::now()).expect("admitted").settle(outcome, true);
            health.standing()
        };
        assert_eq!(health.standing().standing, Standing::Unknown);
        let status = |status| Error::Unavailable { status, retry_after: None };
        let first = settle(Err(&status(502)));
        let second = settle(Err(&status(503)));
        assert_eq!((first.standing, second.standing), (Standing::Unreachable, Standing::Unreachable));
        assert_eq!(first.since, second.since);
        assert!(second.message.contains("503"), "{}", second.message);
        let third = settle(Ok(()));
        assert_eq!(third.standing, Standing::Reachable);
        assert!(third.since > second.since);
        assert_eq!(health.availability(), Availability::Available, "a check that finds it back closes the breaker");
    }

    #[test]
    fn a_pause_is_over_when_it_is_over_and_opens_nothing() {
        let health = health();
        let now = Instant::now();
        let limited = Error::RateLimited { retry_after: Some(Duration::from_secs(5)) };
        health.admit(now).expect("admitted").settle(Err(&limited), false);
        assert!(matches!(health.admit(now), Err(Error::RateLimited { .. })));
        assert!(health.admit(now + Duration::from_secs(6)).is_ok());
        assert_eq!(health.availability(), Availability::Available);
    }

    #[test]
    fn a_dropped_trial_leaves_the_trial_to_the_next() {
        let health = health();
        let now = Instant::now();
        health.admit(now).expect("admitted").settle(Err(&Error::Unavailable { status: 502, retry_after: None }), false);
        assert!(matches!(health.check(now), Err(Error::CircuitOpen { .. })));
        let later = now + Duration::from_secs(3);
        drop(health.admit(later).expect("the trial"));
        let trial = health.admit(later).expect("the next trial");
        assert!(health.admit(later).is_err());
        trial.settle(Err(&Error::NotFound), false);
        assert_eq!(health.availability(), Availability::Available);
    }
}
