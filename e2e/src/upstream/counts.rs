//! What the upstreams were asked, request by request.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use tokio::{sync::watch, time::timeout};

use super::blob::Hash;

/// One request that reached an upstream.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The site's host name.
    pub host: String,
    /// `GET`, `HEAD`, `POST`.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The sha256 of the `Authorization` header: enough to tell identities apart.
    pub authorization: Option<String>,
    /// The account whose password the request carries in any form: a header, the query, a form.
    pub password_of: Option<&'static str>,
    /// The account to which the token that the request bears was issued.
    pub token_of: Option<&'static str>,
    /// Who asked.
    pub client: IpAddr,
    /// The status that was answered; 0 while or if none was.
    pub status: u16,
    /// Body bytes handed to the connection so far.
    pub sent: u64,
}

impl Asked {
    /// Whether the path ends in this digest or tag.
    #[must_use]
    pub fn is_for(&self, reference: &str) -> bool {
        self.path.rsplit('/').next() == Some(reference)
    }
}

/// The hash under which [`Asked::authorization`] shows a header's value.
#[must_use]
pub fn authorization_hash(value: &str) -> String {
    Hash::of(value.as_bytes())
}

/// The live record; shared by all connections of the front.
#[derive(Debug)]
pub struct Counts {
    asked: Mutex<Vec<Asked>>,
    changed: watch::Sender<()>,
}

/// Names one record; stale ones (from before a reset) are ignored.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    index: usize,
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    /// Nothing asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self { asked: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Adds a request that has just arrived.
    pub fn arrived(&self, asked: Asked) -> Entry {
        let mut all = self.lock();
        all.push(asked);
        let index = all.len() - 1;
        drop(all);
        self.changed.send_replace(());
        Entry { index }
    }

    /// Notes the status with which a request is answered.
    pub fn answered(&self, entry: Entry, status: u16) {
        self.update(entry, |asked| asked.status = status);
    }

    /// Adds body bytes that were handed to the connection.
    pub fn sent(&self, entry: Entry, bytes: u64) {
        self.update(entry, |asked| asked.sent += bytes);
    }

    /// All requests so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.lock().iter().filter(|asked| !asked.method.is_empty()).cloned().collect())
    }

    /// Forgets every request.
    pub fn reset(&self) {
        // Entries of running requests stay valid: what they add is not shown.
        for asked in self.lock().iter_mut() {
            asked.method.clear();
        }
    }

    /// Waits until the record satisfies the condition.
    pub async fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Snapshot) -> bool) -> Result<()> {
        let mut changed = self.changed.subscribe();
        let reached = async {
            while !condition(&self.snapshot()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(limit, reached).await.is_err() {
            bail!("waited {limit:?} in vain until {what}; asked: {:#?}", self.snapshot().0);
        }
        Ok(())
    }

    fn update(&self, entry: Entry, change: impl FnOnce(&mut Asked)) {
        if let Some(asked) = self.lock().get_mut(entry.index) {
            change(asked);
        }
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests up to one moment.
#[derive(Clone, Debug)]
pub struct Snapshot(Vec<Asked>);

impl Snapshot {
    /// Every request, in the order of arrival.
    #[must_use]
    pub fn all(&self) -> &[Asked] {
        &self.0
    }

    /// Requests for this digest or tag.
    pub fn of<'a>(&'a self, reference: &'a str) -> impl Iterator<Item = &'a Asked> {
        self.0.iter().filter(move |asked| asked.is_for(reference))
    }

    /// GETs for this digest or tag that were not answered by a challenge.
    #[must_use]
    pub fn gets(&self, reference: &str) -> usize {
        self.of(reference).filter(|asked| asked.method == "GET" && asked.status != 401).count()
    }

    /// Body bytes sent for this digest or tag in answers 200 and 206.
    #[must_use]
    pub fn bytes(&self, reference: &str) -> u64 {
        self.of(reference).filter(|asked| matches!(asked.status, 200 | 206)).map(|asked| asked.sent).sum()
    }

    /// Requests that reached the site with this host name.
    pub fn at<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Asked> {
        self.0.iter().filter(move |asked| asked.host == host)
    }
}
