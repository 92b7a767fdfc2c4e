//! Names of hosts to addresses, as the system's files say: a static program must not ask the C library.

use std::{net::SocketAddr, sync::Arc};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

/// `/etc/hosts`, then the name servers of `/etc/resolv.conf`; read with the first name, so that neither is needed for
/// addresses.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<OnceCell<TokioResolver>>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let cell = Arc::clone(&self.0);
        Box::pin(async move {
            let resolver = cell.get_or_try_init(|| async { resolver() }).await?;
            let found: Vec<_> =
                resolver.lookup_ip(name.as_str()).await?.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn resolver() -> Result<TokioResolver, NetError> {
    // Without name servers there is still the hosts file.
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    // Not both at once: for a name with an IPv4 address alone, a dead name server would be waited for.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    // An address that changed is asked for anew, as the engine does.
    options.cache_size = 0;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_of_the_hosts_file_is_found() {
        let name: Name = "localhost".parse().expect("a name");
        let found = Names::default().resolve(name).await.expect("an address");
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
    }
}
