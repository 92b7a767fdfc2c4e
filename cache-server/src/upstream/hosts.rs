//! Hosts and lists of hosts: pure. May import nothing of ours.

use url::Url;

/// The host of a URL as it is compared: lower case (the URL parser sees to that), without a final dot.
pub(super) fn host_of(url: &Url) -> &str {
    let host = url.host_str().unwrap_or_default();
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether two URLs have the same scheme, host and port.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && host_of(one) == host_of(other)
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Whether two hosts belong to the same registrable domain, for instance `auth.docker.io` and `registry-1.docker.io`.
/// Only below a suffix that the public suffix list knows: `cluster.local` belongs to everybody in the cluster.
pub(super) fn related(one: &str, other: &str) -> bool {
    match (registrable(one), registrable(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

fn registrable(host: &str) -> Option<&[u8]> {
    psl::domain(host.as_bytes()).filter(|domain| domain.suffix().is_known()).map(|domain| domain.as_bytes())
}

/// Hosts that an administrator listed, each with or without a port.
#[derive(Clone, Debug, Default)]
pub(super) struct HostList(Vec<(String, Option<u16>)>);

impl HostList {
    /// Reads a list; the error is the entry that is no host.
    pub(super) fn parse(entries: &[String]) -> Result<Self, String> {
        entries.iter().map(|entry| parse(entry).ok_or_else(|| entry.clone())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the list has the URL's host; an entry with a port only matches that port.
    pub(super) fn has(&self, url: &Url) -> bool {
        let wanted = host_of(url);
        self.0.iter().any(|(host, port)| host == wanted && (port.is_none() || *port == url.port_or_known_default()))
    }

    /// The hosts without their ports.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(host, _)| host.as_str())
    }
}

fn parse(entry: &str) -> Option<(String, Option<u16>)> {
    if entry.contains(['/', '@', '?', '#', '\\']) || entry.chars().any(char::is_whitespace) {
        return None;
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (entry, None),
    };
    let url = Url::parse(&format!("https://{host}/")).ok()?;
    // An unbracketed IPv6 address would have left a port behind.
    (url.port().is_none() && !host_of(&url).is_empty()).then(|| (host_of(&url).to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn a_listed_host_matches_whole_names_and_its_port() {
        let list = HostList::parse(&["Auth.example.com".into(), "s3.local:9000".into(), "[::1]:443".into()]).expect("hosts");
        for (text, expected) in [
            ("https://auth.example.com/token", true),
            ("https://auth.example.com.:8443/token", true),
            ("https://xauth.example.com/", false),
            ("https://auth.example.com.evil.example/", false),
            ("http://s3.local:9000/x", true),
            ("http://s3.local/x", false),
            ("https://[::1]/", true),
            ("http://[::1]/", false),
        ] {
            assert_eq!(list.has(&url(text)), expected, "{text}");
        }
    }

    #[test]
    fn an_entry_that_is_no_host_is_refused() {
        for entry in ["", "https://auth.example.com", "a/b", "user@host", "host:99999", "a b", "::1"] {
            assert_eq!(HostList::parse(&[entry.to_owned()]).err().as_deref(), Some(entry), "{entry}");
        }
    }

    #[test]
    fn relatives_share_a_registrable_domain_below_a_known_suffix() {
        for (one, other, expected) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.co.uk", "auth.example.co.uk", true),
            ("a.co.uk", "b.co.uk", false),
            ("docker.io", "evil.io", false),
            ("one.github.io", "two.github.io", false),
            ("a.svc.cluster.local", "b.svc.cluster.local", false),
            ("registry", "registry", false),
            ("10.0.0.1", "10.0.0.1", false),
        ] {
            assert_eq!(related(one, other), expected, "{one} {other}");
        }
    }
}
