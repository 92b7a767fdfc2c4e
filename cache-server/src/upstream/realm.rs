//! Which token server may be asked, and whether it may be given the credentials: pure. May import `address` and `hosts`.

use url::Url;

use super::{
    address::{AddressKind, Reach},
    hosts::{HostList, host_of, related},
};

/// Why a token server must not be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an absolute http or https URL without user name.
    #[error("its realm is no usable URL")]
    NotAUrl,
    /// Plain http, although the upstream is not on the same host with plain http.
    #[error("its realm is not https")]
    NotHttps,
    /// The mirror has credentials, and the realm's host may not be given them.
    #[error("credentials go only to the upstream's own host or domain; add the host to tokenHosts if that is intended")]
    Foreign,
    /// The host is literally an address that leads inside.
    #[error("its address is {0}")]
    Address(AddressKind),
}

/// How a token server may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    /// Where it is.
    pub(super) url: Url,
    /// Which addresses it may have.
    pub(super) reach: Reach,
}

/// Judges the realm of an upstream's challenge. With credentials, only a host that may be given them is permitted: asking
/// another one anonymously would turn a wrong setting into "not found".
pub(super) fn judge(realm: &str, upstream: &Url, token_hosts: &HostList, with_credentials: bool) -> Result<Permission, Refusal> {
    let url = Url::parse(realm).map_err(|_| Refusal::NotAUrl)?;
    let usable = matches!(url.scheme(), "http" | "https") && url.host().is_some();
    if !usable || !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::NotAUrl);
    }
    let own = host_of(&url) == host_of(upstream);
    if url.scheme() == "http" && !(own && upstream.scheme() == "http") {
        return Err(Refusal::NotHttps);
    }
    let listed = own || token_hosts.has(&url);
    let reach = if listed { Reach::Listed } else { Reach::Public };
    reach.admit_literal(&url).map_err(Refusal::Address)?;
    if with_credentials && !listed && !related(host_of(&url), host_of(upstream)) {
        return Err(Refusal::Foreign);
    }
    Ok(Permission { url, reach })
}

/// The host of a realm, for messages.
pub(super) fn host(realm: &str) -> String {
    Url::parse(realm).map_or_else(|_| "(no URL)".to_owned(), |url| host_of(&url).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_reach_only_the_upstreams_own_realms() {
        let hub = "https://registry-1.docker.io";
        let inside = "http://10.0.0.5:5000";
        let table = [
            // upstream, realm, with credentials, without
            (hub, "https://auth.docker.io/token", Ok(Reach::Public), Ok(Reach::Public)),
            (hub, "https://registry-1.docker.io/token", Ok(Reach::Listed), Ok(Reach::Listed)),
            (hub, "https://registry-1.docker.io:8443/token", Ok(Reach::Listed), Ok(Reach::Listed)),
            (hub, "https://login.partner.example/token", Ok(Reach::Listed), Ok(Reach::Listed)),
            (hub, "https://auth.evil.example/token", Err(Refusal::Foreign), Ok(Reach::Public)),
            (hub, "https://auth.docker.io.evil.example/", Err(Refusal::Foreign), Ok(Reach::Public)),
            (hub, "https://203.0.113.9/token", Err(Refusal::Foreign), Ok(Reach::Public)),
            (hub, "http://auth.docker.io/token", Err(Refusal::NotHttps), Err(Refusal::NotHttps)),
            (hub, "http://login.partner.example/token", Err(Refusal::NotHttps), Err(Refusal::NotHttps)),
            (hub, "http://registry-1.docker.io/token", Err(Refusal::NotHttps), Err(Refusal::NotHttps)),
            (hub, "https://127.0.0.1/token", Err(Refusal::Address(AddressKind::Loopback)), Err(Refusal::Address(AddressKind::Loopback))),
            (hub, "https://[::1]/token", Err(Refusal::Address(AddressKind::Loopback)), Err(Refusal::Address(AddressKind::Loopback))),
            (hub, "https://10.0.0.1/token", Err(Refusal::Address(AddressKind::Private)), Err(Refusal::Address(AddressKind::Private))),
            (hub, "https://169.254.169.254/", Err(Refusal::Address(AddressKind::LinkLocal)), Err(Refusal::Address(AddressKind::LinkLocal))),
            (hub, "https://169.254.1.1/", Err(Refusal::Address(AddressKind::LinkLocal)), Err(Refusal::Address(AddressKind::LinkLocal))),
            (hub, "https://u:p@auth.docker.io/token", Err(Refusal::NotAUrl), Err(Refusal::NotAUrl)),
            (hub, "ftp://auth.docker.io/token", Err(Refusal::NotAUrl), Err(Refusal::NotAUrl)),
            (hub, "/token", Err(Refusal::NotAUrl), Err(Refusal::NotAUrl)),
            (hub, "", Err(Refusal::NotAUrl), Err(Refusal::NotAUrl)),
            (inside, "http://10.0.0.5:5001/token", Ok(Reach::Listed), Ok(Reach::Listed)),
            (inside, "https://10.0.0.5/token", Ok(Reach::Listed), Ok(Reach::Listed)),
            (inside, "http://10.0.0.6/token", Err(Refusal::NotHttps), Err(Refusal::NotHttps)),
            (inside, "https://10.0.0.6/token", Err(Refusal::Address(AddressKind::Private)), Err(Refusal::Address(AddressKind::Private))),
        ];
        // A listed host may be anything but link-local.
        let listed = HostList::parse(&["login.partner.example".into(), "169.254.1.1".into()]).expect("hosts");
        for (upstream, realm, with, without) in table {
            let upstream = Url::parse(upstream).expect("a URL");
            let judged = |credentials| judge(realm, &upstream, &listed, credentials).map(|permission| permission.reach);
            assert_eq!(judged(true), with, "with credentials: {realm}");
            assert_eq!(judged(false), without, "anonymous: {realm}");
        }
    }
}
