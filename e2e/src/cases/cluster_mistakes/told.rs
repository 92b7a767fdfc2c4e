//! What an object's status must tell about a mistake. The sentences are the product's; asserted is what must be in them:
//! the thing that is wrong by its name, and the cure.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::cluster::inventory;

/// The condition about the upstream.
pub(super) const UPSTREAM_REACHABLE: &str = "UpstreamReachable";

/// What must be told.
#[derive(Debug)]
pub(super) struct Told {
    /// The condition that is False.
    condition: &'static str,
    /// All of these are in its message: what is wrong.
    names: &'static [&'static str],
    /// So is this: what to do.
    cure: &'static str,
}

impl Told {
    /// The Secret is not there.
    pub(super) const MISSING_SECRET: Self = Self {
        condition: "Ready",
        names: &[
            "spec.upstream.credentialsSecretRef names the Secret \"basic-account\"",
            "which is not in the namespace entrepot-system",
        ],
        cure: "create it there with username and password",
    };
    /// The Secret has other keys.
    pub(super) const WRONG_KEYS: Self = Self {
        condition: "Ready",
        names: &["spec.upstream.credentialsSecretRef names the Secret \"basic-account\", which has no key"],
        cure: "it must have username and password",
    };
    /// The password is wrong.
    pub(super) const WRONG_PASSWORD: Self = Self {
        condition: UPSTREAM_REACHABLE,
        names: &["basic.registry.test", "refuses the credentials"],
        cure: "correct the Secret that spec.upstream.credentialsSecretRef names",
    };
    /// Nothing listens at the upstream.
    pub(super) const OUT_OF_REACH: Self = Self {
        condition: UPSTREAM_REACHABLE,
        names: &["upstream19.registry.test", "refuses connections"],
        cure: "correct spec.upstream.url, or start what should listen",
    };
    /// Another mirror stands for the registry.
    pub(super) const REGISTRY_TAKEN: Self = Self {
        condition: "Ready",
        names: &["docker.io is already what the mirror docker-hub stands for"],
        cure: "set upstream.registry to another name",
    };
    /// There is no such `CacheServer`.
    pub(super) const UNKNOWN_SERVER: Self = Self {
        condition: "Ready",
        names: &["spec.server names the CacheServer \"nowhere\", which does not exist"],
        cure: "create it, or correct spec.server",
    };

    fn is_in(&self, message: &str) -> bool {
        self.names.iter().all(|name| message.contains(name)) && message.contains(self.cure)
    }
}

/// Waits until the mirror's status tells it, and asserts that `kubectl describe` shows that very sentence.
pub(super) async fn by_describe(cluster: &Cluster, mirror: &str, told: &Told, limit: Duration) -> Result<()> {
    let mut message = String::new();
    cluster
        .until(&format!("the mirror {mirror} tells {told:?}"), limit, async || {
            let object = inventory::mirror(cluster, mirror).await?.context("the mirror is gone")?;
            let condition = inventory::condition(&object, told.condition);
            let condition = condition.with_context(|| format!("its status is {}", object["status"]))?;
            condition["message"].as_str().unwrap_or_default().clone_into(&mut message);
            let is_told = inventory::is_observed(&object) && condition["status"] == "False" && told.is_in(&message);
            ensure!(is_told, "its status is {}", object["status"]);
            Ok(true)
        })
        .await?;
    let described = cluster.kubectl(&["describe", "registrymirror", mirror]).await?;
    ensure!(
        one_line(&described).contains(&one_line(&message)),
        "kubectl describe does not show {message:?}:\n{described}"
    );
    println!("       told: {message}");
    Ok(())
}

/// kubectl breaks long lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_must_name_what_is_wrong_and_the_cure() {
        let told = Told::UNKNOWN_SERVER;
        let wrong = "spec.server names the CacheServer \"nowhere\", which does not exist";
        let cure = "create it, or correct spec.server";
        assert!(told.is_in(&format!("{wrong}; {cure}")));
        assert!(!told.is_in(wrong));
        assert!(!told.is_in(cure));
    }
}
