//! How often one address may guess passwords. Pure: it is told the time. May import nothing of ours.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use quick_cache::unsync::Cache;

/// How many failures in a row an address has free.
const FREE: u32 = 20;

/// After how long it has one more.
const ONE_MORE: Duration = Duration::from_secs(3);

/// How many addresses are remembered.
const ADDRESSES: usize = 10_000;

/// Failed logins, by address. An address without failures takes no memory.
pub struct Attempts(Mutex<Cache<IpAddr, Instant>>);

impl Default for Attempts {
    fn default() -> Self {
        Self(Mutex::new(Cache::new(ADDRESSES)))
    }
}

impl Attempts {
    /// Takes an attempt from an address; the wait until there is one, if there is none. What turns out well is
    /// [given back](Self::succeeded), so that only failures count, and many at once are counted before they have failed.
    pub fn begin(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let key = network(address);
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The time at which all are free again.
        let free_at = used.get(&key).copied().filter(|free_at| *free_at > now).unwrap_or(now);
        let next = free_at + ONE_MORE;
        let ahead = next.duration_since(now);
        let most = ONE_MORE * FREE;
        if ahead > most {
            return Err(ahead.saturating_sub(most));
        }
        used.insert(key, next);
        Ok(())
    }

    /// Gives an attempt back.
    pub fn succeeded(&self, address: IpAddr) {
        let key = network(address);
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(free_at) = used.get(&key).copied()
            && let Some(free_at) = free_at.checked_sub(ONE_MORE)
        {
            used.insert(key, free_at);
        }
    }
}

/// What one guesser has: an IPv4 address, or the IPv6 addresses of one network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn failures_beyond_the_free_ones_wait() {
        let (attempts, now, one) = (Attempts::default(), Instant::now(), address("192.0.2.1"));
        for _ in 0..FREE {
            assert_eq!(attempts.begin(one, now), Ok(()));
        }
        assert_eq!(attempts.begin(one, now), Err(ONE_MORE));
        assert_eq!(attempts.begin(one, now + Duration::from_secs(1)), Err(Duration::from_secs(2)));
        assert_eq!(attempts.begin(address("192.0.2.2"), now), Ok(()), "another one is not held up");
        assert_eq!(attempts.begin(one, now + ONE_MORE), Ok(()));
        assert_eq!(attempts.begin(one, now + ONE_MORE), Err(ONE_MORE));
        let later = now + ONE_MORE * (FREE + 2);
        for _ in 0..FREE {
            assert_eq!(attempts.begin(one, later), Ok(()));
        }
    }

    #[test]
    fn what_turns_out_well_does_not_count() {
        let (attempts, now, one) = (Attempts::default(), Instant::now(), address("192.0.2.1"));
        for _ in 0..FREE * 3 {
            assert_eq!(attempts.begin(one, now), Ok(()));
            attempts.succeeded(one);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_guesser() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for last in 0..FREE {
            assert_eq!(attempts.begin(address(&format!("2001:db8::{last:x}")), now), Ok(()));
        }
        assert!(attempts.begin(address("2001:db8::ffff"), now).is_err());
        assert!(attempts.begin(address("2001:db8:0:1::1"), now).is_ok());
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }
}
