//! One operator at a time: a Lease, renewed while we lead, given back at the end. May import nothing of ours.
//!
//! No crate for this follows kube 5 and ends the process when the Lease is lost, so here is the little that it takes.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout};

/// The name of the Lease.
pub const LEASE: &str = "entrepot-operator";
/// For how long nobody else takes a Lease that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// For how long renewing may fail before the Lease counts as lost.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const RETRY: Duration = Duration::from_secs(2);

/// The Lease, held. It is lost when [`Leader::keep`] returns.
pub struct Leader {
    leases: Api<Lease>,
    identity: String,
}

/// What to do about a Lease that was read.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    /// It is free or ours: write ourselves into it.
    Take,
    /// Someone else holds it.
    Wait,
}

impl Leader {
    /// Waits until the Lease is ours.
    pub async fn acquire(client: &Client, namespace: &str, identity: &str) -> Self {
        let leader = Self { leases: Api::namespaced(client.clone(), namespace), identity: identity.to_owned() };
        let mut watched = Watched::default();
        loop {
            match leader.attempt(&mut watched).await {
                Ok(true) => return leader,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "failed to ask for the leader Lease, trying again"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews the Lease every 2 s; returns when that has not worked for 10 s or someone else holds it.
    pub async fn keep(&self) {
        let mut renewed = Instant::now();
        let mut watched = Watched::default();
        while renewed.elapsed() < RENEW_WITHIN {
            sleep(RETRY).await;
            match timeout(RENEW_WITHIN.saturating_sub(renewed.elapsed()), self.attempt(&mut watched)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew the leader Lease, trying again"),
                Ok(Ok(false)) | Err(_) => return,
            }
        }
    }

    /// Gives the Lease back, so that the next one need not wait for it to run out.
    pub async fn release(&self) {
        let given_back = async {
            let mut lease = self.leases.get(LEASE).await?;
            if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
            {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.leases.replace(LEASE, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match timeout(Duration::from_secs(3), given_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to give the leader Lease back; it runs out in 15 s"),
            Err(_) => tracing::warn!("failed to give the leader Lease back in 3 s; it runs out in 15 s"),
        }
    }

    async fn attempt(&self, watched: &mut Watched) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        let written = match self.leases.get_opt(LEASE).await? {
            None => {
                let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
                let spec = Some(renewed(None, &self.identity, now));
                self.leases.create(&PostParams::default(), &Lease { metadata, spec }).await
            }
            Some(mut lease) => {
                if judge(lease.spec.as_ref(), &self.identity, watched.unchanged_for(&lease)) == Claim::Wait {
                    return Ok(false);
                }
                lease.spec = Some(renewed(lease.spec.as_ref(), &self.identity, now));
                self.leases.replace(LEASE, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Someone else was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How long the Lease has looked the same here: clocks of other machines are not trusted.
#[derive(Default)]
struct Watched {
    version: Option<String>,
    since: Option<Instant>,
}

impl Watched {
    fn unchanged_for(&mut self, lease: &Lease) -> Duration {
        if self.version != lease.metadata.resource_version || self.since.is_none() {
            self.version.clone_from(&lease.metadata.resource_version);
            self.since = Some(Instant::now());
        }
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

fn judge(spec: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration) -> Claim {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let duration = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
    let duration = Duration::from_secs(u64::try_from(duration).unwrap_or_default());
    match holder {
        None => Claim::Take,
        Some(holder) if holder == identity => Claim::Take,
        Some(_) if unchanged_for > duration => Claim::Take,
        Some(_) => Claim::Wait,
    }
}

fn renewed(before: Option<&LeaseSpec>, identity: &str, now: Timestamp) -> LeaseSpec {
    let mut spec = before.cloned().unwrap_or_default();
    let same = spec.holder_identity.as_deref() == Some(identity);
    if !same {
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(-1) + 1);
    }
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = i32::try_from(SignedDuration::try_from(DURATION).map_or(15, |it| it.as_secs())).ok();
    spec.renew_time = Some(MicroTime(now));
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str) -> LeaseSpec {
        LeaseSpec { holder_identity: Some(by.to_owned()), lease_duration_seconds: Some(15), ..LeaseSpec::default() }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_has_run_out() {
        let long = Duration::from_secs(16);
        for (spec, unchanged, expected) in [
            (None, Duration::ZERO, Claim::Take),
            (Some(held("")), Duration::ZERO, Claim::Take),
            (Some(held("me")), Duration::ZERO, Claim::Take),
            (Some(held("you")), Duration::from_secs(15), Claim::Wait),
            (Some(held("you")), long, Claim::Take),
        ] {
            assert_eq!(judge(spec.as_ref(), "me", unchanged), expected, "{spec:?}");
        }
    }

    #[test]
    fn only_a_change_of_hands_counts_as_a_transition() {
        let first = renewed(None, "me", Timestamp::UNIX_EPOCH);
        assert_eq!(first.lease_transitions, Some(0));
        let again = renewed(Some(&first), "me", Timestamp::UNIX_EPOCH);
        assert_eq!(again.lease_transitions, Some(0));
        assert_eq!(renewed(Some(&again), "you", Timestamp::UNIX_EPOCH).lease_transitions, Some(1));
    }
}
