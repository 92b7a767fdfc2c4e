//! Which canaries were pulled, and when. May import nothing of ours.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// How many pulls are remembered; the oldest go first.
const MOST: usize = 10_000;

/// The last pull of each canary, by its nonce.
#[derive(Debug, Default)]
pub struct Pulls(Mutex<HashMap<String, SystemTime>>);

impl Pulls {
    /// Notes a pull.
    pub fn note(&self, nonce: &str, now: SystemTime) {
        let mut pulls = self.pulls();
        pulls.insert(nonce.to_owned(), now);
        if pulls.len() > MOST
            && let Some(oldest) = pulls.iter().min_by_key(|(_, when)| **when).map(|(nonce, _)| nonce.clone())
        {
            pulls.remove(&oldest);
        }
    }

    /// All that are remembered.
    #[must_use]
    pub fn all(&self) -> Vec<(String, SystemTime)> {
        self.pulls().iter().map(|(nonce, when)| (nonce.clone(), *when)).collect()
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<String, SystemTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_pull_is_forgotten_first() {
        let pulls = Pulls::default();
        let at = |second: usize| SystemTime::UNIX_EPOCH + Duration::from_secs(second as u64);
        for second in 0..MOST {
            pulls.note(&second.to_string(), at(second));
        }
        // Pulled again, the first is the newest.
        pulls.note("0", at(MOST));
        pulls.note("new", at(MOST + 1));
        let all: HashMap<_, _> = pulls.all().into_iter().collect();
        assert_eq!(all.len(), MOST);
        assert_eq!((all.get("0"), all.get("1"), all.get("new")), (Some(&at(MOST)), None, Some(&at(MOST + 1))));
    }
}
