//! When a failing upstream is left alone: a pure state machine, told the time. It decides only whether to ask, never
//! whether to serve. May import the `crds` crate only.

use std::time::{Duration, Instant};

use crds::registry_mirror::BreakerSpec;

/// Closed, open for a while, or open with one trial under way.
#[derive(Debug)]
pub(super) struct Breaker {
    spec: BreakerSpec,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { since: Instant, until: Instant, round: u32, trial: bool },
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Go,
    /// It may, as the one request that finds out whether the upstream is back. Its end must be reported.
    Trial,
    /// It may not.
    Refuse {
        /// When one may go again; in the past while a trial is under way.
        until: Instant,
    },
}

/// How long an open breaker stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    /// Since when the upstream is left alone.
    pub(super) since: Instant,
    /// When the next trial may go.
    pub(super) until: Instant,
}

impl Breaker {
    /// A closed breaker.
    pub(super) const fn new(spec: BreakerSpec) -> Self {
        Self { spec, state: State::Closed { failures: 0 } }
    }

    /// Whether a request may go now.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match &mut self.state {
            State::Closed { .. } => Admission::Go,
            State::Open { until, trial, .. } if now < *until || *trial => Admission::Refuse { until: *until },
            State::Open { trial, .. } => {
                *trial = true;
                Admission::Trial
            }
        }
    }

    /// The upstream answered: it is back, whoever asked.
    pub(super) const fn succeed(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// The upstream failed. `jitter` is a random number from 0 to 1. Returns the opening if this opened the breaker or
    /// kept it open.
    pub(super) fn fail(&mut self, now: Instant, was_trial: bool, jitter: f64) -> Option<Opening> {
        let (since, round) = match self.state {
            State::Closed { failures } if failures + 1 < self.spec.failures => {
                self.state = State::Closed { failures: failures + 1 };
                return None;
            }
            State::Closed { .. } => (now, 0),
            State::Open { since, round, .. } if was_trial => (since, round.saturating_add(1)),
            // A request from before the opening says nothing new.
            State::Open { .. } => return None,
        };
        let until = now + self.span(round, jitter);
        self.state = State::Open { since, until, round, trial: false };
        Some(Opening { since, until })
    }

    /// The trial ended without saying anything about the upstream: the next request becomes the trial.
    pub(super) const fn abandon_trial(&mut self) {
        if let State::Open { trial, .. } = &mut self.state {
            *trial = false;
        }
    }

    /// The opening, if the breaker is open.
    pub(super) const fn opening(&self) -> Option<Opening> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { since, until, .. } => Some(Opening { since, until }),
        }
    }

    /// `min_open`, doubled with each round up to `max_open`, spread by a quarter within these two.
    fn span(&self, round: u32, jitter: f64) -> Duration {
        let (min, max) = (self.spec.min_open.get(), self.spec.max_open.get().max(self.spec.min_open.get()));
        let doubled = min.saturating_mul(2_u32.saturating_pow(round)).min(max);
        let low = doubled.min(max.mul_f64(0.8)).max(min);
        let high = doubled.mul_f64(1.25).min(max).max(low);
        low + (high - low).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use crds::names::Span;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(BreakerSpec::default()), Instant::now())
    }

    fn opened() -> (Breaker, Instant) {
        let (mut breaker, now) = breaker();
        assert_eq!(breaker.fail(now, false, 0.0), None);
        assert_eq!(breaker.fail(now, false, 0.0), None);
        assert_eq!(breaker.fail(now, false, 0.0), Some(Opening { since: now, until: now + 10 * SECOND }));
        (breaker, now)
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.admit(now), Admission::Refuse { until: now + 10 * SECOND });
        assert_eq!(breaker.admit(now + 9 * SECOND), Admission::Refuse { until: now + 10 * SECOND });
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let (mut breaker, now) = breaker();
        for _ in 0..5 {
            breaker.fail(now, false, 0.0);
            breaker.fail(now, false, 0.0);
            breaker.succeed();
        }
        assert_eq!(breaker.admit(now), Admission::Go);
    }

    #[test]
    fn half_open_lets_exactly_one_through() {
        let (mut breaker, now) = opened();
        let later = now + 10 * SECOND;
        assert_eq!(breaker.admit(later), Admission::Trial);
        assert!(matches!(breaker.admit(later), Admission::Refuse { .. }));
        breaker.abandon_trial();
        assert_eq!(breaker.admit(later), Admission::Trial);
        breaker.succeed();
        assert_eq!(breaker.admit(later), Admission::Go);
        assert_eq!(breaker.opening(), None);
    }

    #[test]
    fn each_failed_trial_doubles_the_time_up_to_the_longest() {
        let (mut breaker, start) = opened();
        let mut now = start;
        for expected in [20, 40, 80, 160, 240, 240, 240] {
            now = breaker.opening().expect("open").until;
            assert_eq!(breaker.admit(now), Admission::Trial);
            let opening = breaker.fail(now, true, 0.0).expect("stays open");
            assert_eq!(opening, Opening { since: start, until: now + expected * SECOND });
        }
        assert_eq!(breaker.span(u32::MAX, 1.0), 300 * SECOND);
        assert!(now > start);
    }

    #[test]
    fn a_late_failure_neither_prolongs_nor_reopens() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.fail(now + SECOND, false, 1.0), None);
        assert_eq!(breaker.opening(), Some(Opening { since: now, until: now + 10 * SECOND }));
    }

    #[test]
    fn jitter_stays_within_the_bounds() {
        let breaker = Breaker::new(BreakerSpec { failures: 1, min_open: Span::secs(10), max_open: Span::secs(300) });
        for round in 0..40 {
            for jitter in [0.0, 0.3, 1.0] {
                let span = breaker.span(round, jitter);
                assert!(span >= 10 * SECOND && span <= 300 * SECOND, "{round} {jitter}: {span:?}");
            }
            assert!(breaker.span(round, 1.0) > breaker.span(round, 0.0));
        }
    }
}
