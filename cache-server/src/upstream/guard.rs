//! The guard at connect: names are resolved here, and addresses that lead inside are dropped *after* resolution, so that
//! a name cannot be checked as one address and connected to as another. May import `address`.

use std::{error::Error as StdError, net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

use super::address::{AddressKind, Reach};

/// For how long it is remembered that a name has no address: shorter than any breaker stays open.
const LONGEST_ABSENCE: Duration = Duration::from_secs(5);

/// The system's way of resolving names: `/etc/hosts`, then the name servers of `/etc/resolv.conf`. Set up with the first
/// name, so that neither file is needed to start. Clones share one cache.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<OnceCell<TokioResolver>>);

impl Names {
    async fn lookup(&self, name: &str) -> Result<Vec<std::net::IpAddr>, NetError> {
        let resolver = self.0.get_or_try_init(|| async { resolver() }).await?;
        Ok(resolver.lookup_ip(name).await?.iter().collect())
    }
}

fn resolver() -> Result<TokioResolver, NetError> {
    let builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn StdError,
            "no name servers configured: only names in the hosts file are known"
        );
        TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
    });
    configured(builder)
}

fn configured(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<TokioResolver, NetError> {
    let options = builder.options_mut();
    // Not both at once: for a name that /etc/hosts gives an IPv4 address alone, a dead name server would be asked for the
    // other sort, and waited for.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    options.negative_max_ttl = Some(LONGEST_ABSENCE);
    builder.build()
}

/// Resolves names for one HTTP client, to addresses within its reach only.
pub(super) struct Guard {
    names: Names,
    reach: Reach,
}

impl Guard {
    /// A guard for a client with this reach.
    pub(super) const fn new(names: Names, reach: Reach) -> Self {
        Self { names, reach }
    }
}

/// Every address of a name is out of reach.
#[derive(Debug, thiserror::Error)]
#[error("every address is out of reach; the first is {kind}")]
pub(super) struct OutOfReach {
    /// What kind the first address is of.
    pub(super) kind: AddressKind,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, reach) = (self.names.clone(), self.reach);
        Box::pin(async move {
            let addresses = names.lookup(name.as_str()).await?;
            let mut refused = None;
            let within: Vec<SocketAddr> = addresses
                .into_iter()
                .filter(|address| match reach.admit(*address) {
                    Ok(()) => true,
                    Err(kind) => {
                        refused.get_or_insert(kind);
                        false
                    }
                })
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            match refused {
                Some(kind) if within.is_empty() => Err(OutOfReach { kind }.into()),
                _ => Ok(Box::new(within.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_name_servers_the_hosts_file_still_counts() {
        let builder = TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default());
        let names = Names(Arc::new(OnceCell::new_with(configured(builder).ok())));
        let guard = |reach| Guard::new(names.clone(), reach);
        let name = |text: &str| text.parse::<Name>().expect("a name");

        let found = guard(Reach::Listed).resolve(name("localhost")).await.expect("an address");
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
        let refused = guard(Reach::Public).resolve(name("localhost")).await.err().expect("nothing public");
        assert!(refused.is::<OutOfReach>());
        let unknown =
            tokio::time::timeout(Duration::from_secs(5), guard(Reach::Listed).resolve(name("nobody.invalid"))).await;
        assert!(unknown.expect("an answer at once").is_err());
    }
}
