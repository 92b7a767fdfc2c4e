//! One question under way per key, any number who wait for its answer. Imports nothing of ours.

use std::{future::Future, hash::Hash, sync::Arc};

use dashmap::{DashMap, Entry};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

/// Questions under way.
pub(super) struct Flights<K, V: Clone> {
    running: Arc<DashMap<K, Shared<BoxFuture<'static, V>>>>,
}

impl<K: Hash + Eq, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self { running: Arc::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to `question`, asked now unless somebody asks it already. It is asked to its end even when everybody
    /// who waits leaves.
    pub(super) async fn join<F>(&self, key: K, question: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = match self.running.entry(key.clone()) {
            Entry::Occupied(flight) => flight.get().clone(),
            Entry::Vacant(place) => {
                let (question, running) = (question(), Arc::clone(&self.running));
                let task = tokio::spawn(async move {
                    let answer = question.await;
                    running.remove(&key);
                    answer
                });
                let answer = async move {
                    match task.await {
                        Ok(answer) => answer,
                        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                        // Only when the runtime shuts down.
                        Err(_) => std::future::pending().await,
                    }
                };
                place.insert(answer.boxed().shared()).clone()
            }
        };
        flight.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_get_the_answer_to_one_question() {
        let flights = Flights::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let asked = Arc::clone(&asked);
            async move {
                tokio::task::yield_now().await;
                asked.fetch_add(1, Ordering::Relaxed)
            }
        };
        let answers = futures_util::future::join_all((0..10).map(|_| flights.join("key", ask))).await;
        assert_eq!(answers, [0; 10]);
        assert_eq!(flights.join("key", ask).await, 1);
    }
}
