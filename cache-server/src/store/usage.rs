//! How much is stored, and how much may be. Imports nothing of ours.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

#[derive(Default)]
pub(super) struct Usage {
    counters: Arc<Counters>,
}

struct Counters {
    /// Signed, because what was there before the start is counted in the background: until then removals may lead.
    stored: AtomicI64,
    reserved: AtomicU64,
    limit: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { stored: AtomicI64::new(0), reserved: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

/// Space that a fill is going to take.
pub(super) struct Reservation {
    counters: Arc<Counters>,
    bytes: u64,
}

impl Usage {
    /// Stored bytes and those being stored.
    pub(super) fn used(&self) -> u64 {
        let stored = self.counters.stored.load(Ordering::Relaxed);
        u64::try_from(stored).unwrap_or(0) + self.counters.reserved.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.counters.limit.load(Ordering::Relaxed)
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.counters.limit.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn added(&self, bytes: u64) {
        self.counters.stored.fetch_add(signed(bytes), Ordering::Relaxed);
    }

    pub(super) fn removed(&self, bytes: u64) {
        self.counters.stored.fetch_sub(signed(bytes), Ordering::Relaxed);
    }

    pub(super) fn reserve(&self, bytes: u64) -> Reservation {
        self.counters.reserved.fetch_add(bytes, Ordering::Relaxed);
        Reservation { counters: Arc::clone(&self.counters), bytes }
    }

    /// Whether cleaning should begin: above 85 % of the limit.
    pub(super) fn is_high(&self) -> bool {
        self.used() > percent(self.limit(), 85)
    }

    /// How many bytes must go for cleaning to end: down to 75 % of the limit.
    pub(super) fn surplus(&self) -> u64 {
        self.used().saturating_sub(percent(self.limit(), 75))
    }
}

impl Reservation {
    /// The size has become known.
    pub(super) fn set(&mut self, bytes: u64) {
        self.counters.reserved.fetch_add(bytes, Ordering::Relaxed);
        self.counters.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    /// The space is taken for good.
    pub(super) fn kept(self) {
        self.counters.stored.fetch_add(signed(self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.counters.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// `share` hundredths of `whole`, without overflow.
fn percent(whole: u64, share: u64) -> u64 {
    whole / 100 * share + whole % 100 * share / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_begins_at_85_and_ends_at_75_percent() {
        let usage = Usage::default();
        usage.set_limit(1000);
        usage.added(850);
        assert!(!usage.is_high());
        let reservation = usage.reserve(1);
        assert!(usage.is_high());
        assert_eq!(usage.surplus(), 101);
        drop(reservation);
        assert_eq!(usage.used(), 850);
    }

    #[test]
    fn kept_space_is_counted_once() {
        let usage = Usage::default();
        let mut reservation = usage.reserve(10);
        reservation.set(30);
        assert_eq!(usage.used(), 30);
        reservation.kept();
        assert_eq!(usage.used(), 30);
    }

    #[test]
    fn an_unset_limit_is_never_reached() {
        let usage = Usage::default();
        usage.added(1 << 50);
        assert!(!usage.is_high());
    }
}
