//! How an upstream is doing: the breaker and the pause that a 429 asks for, with what they are for logs and metrics.
//! May import `breaker`, `error` and `rate_limit`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crds::registry_mirror::BreakerSpec;

use super::{
    breaker::{Admission, Breaker},
    error::Error,
    rate_limit::RateLimit,
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
    host: String,
    state: Mutex<State>,
}

struct State {
    breaker: Breaker,
    paused_until: Option<Instant>,
    last_error: String,
    rate_limit: Option<RateLimit>,
    probing: bool,
}

impl Health {
    /// A healthy upstream.
    pub(super) fn new(host: &str, spec: BreakerSpec) -> Self {
        let state = State { breaker: Breaker::new(spec), paused_until: None, last_error: String::new(), rate_limit: None, probing: false };
        Self { host: host.to_owned(), state: Mutex::new(state) }
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

    /// What is known about availability.
    pub(super) fn availability(&self) -> Availability {
        let state = self.state();
        match state.breaker.opening() {
            None => Availability::Available,
            Some(opening) => Availability::Down { since: opening.since, until: opening.until, last_error: state.last_error.clone() },
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
    /// Reports how the request ended.
    pub(super) fn settle(mut self, outcome: Result<(), &Error>) {
        let now = Instant::now();
        let mut state = self.health.state();
        match outcome {
            Err(error) if error.counts_for_breaker() => {
                state.last_error = describe(error);
                if let Some(opening) = state.breaker.fail(now, self.trial, rand::random()) {
                    let seconds = opening.until.saturating_duration_since(now).as_secs_f64();
                    tracing::warn!(upstream.host = %self.health.host, error = %state.last_error, seconds, "upstream is left alone");
                }
                self.trial = false;
            }
            Err(error) if !error.proves_life() => {}
            Ok(()) | Err(_) => {
                if state.breaker.opening().is_some() {
                    tracing::info!(upstream.host = %self.health.host, "upstream is back");
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

    #[test]
    fn a_pause_is_over_when_it_is_over_and_opens_nothing() {
        let health = Health::new("registry.example.com", BreakerSpec { failures: 1, min_open: Span::secs(1), max_open: Span::secs(1) });
        let now = Instant::now();
        let limited = Error::RateLimited { retry_after: Some(Duration::from_secs(5)) };
        health.admit(now).expect("admitted").settle(Err(&limited));
        assert!(matches!(health.admit(now), Err(Error::RateLimited { .. })));
        assert!(health.admit(now + Duration::from_secs(6)).is_ok());
        assert_eq!(health.availability(), Availability::Available);
    }

    #[test]
    fn a_dropped_trial_leaves_the_trial_to_the_next() {
        let health = Health::new("registry.example.com", BreakerSpec { failures: 1, min_open: Span::secs(1), max_open: Span::secs(1) });
        let now = Instant::now();
        health.admit(now).expect("admitted").settle(Err(&Error::Unavailable { status: 502, retry_after: None }));
        assert!(matches!(health.check(now), Err(Error::CircuitOpen { .. })));
        let later = now + Duration::from_secs(3);
        drop(health.admit(later).expect("the trial"));
        let trial = health.admit(later).expect("the next trial");
        assert!(health.admit(later).is_err());
        trial.settle(Err(&Error::NotFound));
        assert_eq!(health.availability(), Availability::Available);
    }
}
