//! When an object whose reconcile failed is tried again. Pure. May import nothing of ours.

use std::{collections::HashMap, time::Duration};

/// The first wait; each failure doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_mins(2);

/// What went wrong, as far as it decides when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object itself is wrong: nothing but a change of it helps.
    Refused,
    /// Anything else may pass by itself.
    Passing,
}

/// Which objects wait, and for what. Times are since any fixed moment.
#[derive(Debug, Default)]
pub struct Requeue {
    waiting: HashMap<String, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    version: String,
    failures: u32,
    until: Option<Duration>,
}

impl Requeue {
    /// Whether an object is tried now. Another version of it always is.
    #[must_use]
    pub fn is_due(&self, key: &str, version: &str, now: Duration) -> bool {
        self.waiting
            .get(key)
            .is_none_or(|waiting| waiting.version != version || waiting.until.is_some_and(|until| until <= now))
    }

    /// Records that an object is in line.
    pub fn succeeded(&mut self, key: &str) {
        self.waiting.remove(key);
    }

    /// Records that an object's reconcile failed.
    pub fn failed(&mut self, key: &str, version: &str, failure: Failure, now: Duration) {
        let waiting = self.waiting.entry(key.to_owned()).or_insert(Waiting {
            version: version.to_owned(),
            failures: 0,
            until: None,
        });
        if waiting.version != version {
            version.clone_into(&mut waiting.version);
            waiting.failures = 0;
        }
        let wait = FIRST.saturating_mul(2_u32.saturating_pow(waiting.failures)).min(LONGEST);
        waiting.failures = waiting.failures.saturating_add(1);
        waiting.until = (failure == Failure::Passing).then_some(now + wait);
    }

    /// When the next object is due by itself.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.waiting.values().filter_map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_failure_doubles_the_wait_up_to_two_minutes() {
        let mut requeue = Requeue::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            requeue.failed("a", "1", Failure::Passing, Duration::ZERO);
            waits.push(requeue.next().unwrap_or_default().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 120, 120]);
        assert!(!requeue.is_due("a", "1", SECOND));
        requeue.succeeded("a");
        assert!(requeue.is_due("a", "1", SECOND));
    }

    #[test]
    fn a_refused_object_waits_for_a_change() {
        let mut requeue = Requeue::default();
        requeue.failed("a", "1", Failure::Refused, Duration::ZERO);
        assert_eq!(requeue.next(), None);
        assert!(!requeue.is_due("a", "1", SECOND * 1000));
        assert!(requeue.is_due("a", "2", Duration::ZERO));
    }
}
