//! Where the client reached us, as it sees it: for the addresses that answers name. Pure.
//!
//! What a request says of itself steers only its own answer, so it is believed from everyone; but nothing of it gets into a
//! header that is not a host, a port or a path.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Uri, header};
use ipnet::IpNet;

use crate::routing::Route;

/// The longest path that a proxy may put in front of ours.
const MAX_PREFIX: usize = 256;

/// The headers that a reverse proxy adds. With any of them the path that we see may not be the client's.
const FORWARDED: [&str; 4] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"];

/// Where the client reached us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// `https://registry.example.com:8443`; empty if the request names no host, and addresses are then relative.
    base: String,
    /// What the client's paths have in front of ours: empty, or `/registry`.
    prefix: String,
    /// Whether a proxy may have put `/repository/<name>` in front of the client's path.
    hides_path: bool,
}

impl Origin {
    /// From what a request says, `encrypted` if its connection is; `external` goes before all but the path.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap, encrypted: bool, external: Option<&url::Origin>) -> Self {
        let prefix = first(headers, "x-forwarded-prefix").and_then(prefix);
        let base =
            external.map_or_else(|| base(uri, headers, encrypted), |external| Some(external.ascii_serialization()));
        Self {
            base: base.unwrap_or_default(),
            hides_path: prefix.is_none() && FORWARDED.iter().any(|name| headers.contains_key(*name)),
            prefix: prefix.unwrap_or_default(),
        }
    }

    /// Where tokens are fetched.
    pub(super) fn realm(&self) -> String {
        format!("{}{}/v2/token", self.base, self.prefix)
    }

    /// The host, and the port where it is not the usual one, as an engine names the registry in a pull; nothing if it is not
    /// known.
    pub(super) fn host(&self) -> Option<&str> {
        self.base.split_once("://").map(|(_, host)| host)
    }

    /// The port where none is told.
    pub(super) fn usual_port(&self) -> u16 {
        if self.base.starts_with("https:") { 443 } else { 80 }
    }

    /// What the client's paths have in front of ours, without a slash at its end.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The address of what a request by this route calls `rest`: what follows its [prefix](Route::prefix), with a query or
    /// without.
    pub(super) fn address(&self, route: &Route, rest: &str) -> String {
        let path = if self.hides_path && route.by_path() { "/v2/" } else { route.prefix.as_str() };
        format!("{}{}{path}{rest}", self.base, self.prefix)
    }
}

fn base(uri: &Uri, headers: &HeaderMap, encrypted: bool) -> Option<String> {
    let said = first(headers, "x-forwarded-proto").map(str::to_ascii_lowercase);
    let scheme = match said.as_deref() {
        Some("https") => "https",
        Some("http") => "http",
        _ if encrypted => "https",
        _ => "http",
    };
    let host =
        || uri.authority().map(http::uri::Authority::as_str).or_else(|| headers.get(header::HOST)?.to_str().ok());
    let (host, port) = first(headers, "x-forwarded-host").and_then(host_and_port).or_else(|| host_and_port(host()?))?;
    // A proxy that ends TLS often tells the port behind it, so neither of the usual ones says anything.
    let told = || first(headers, "x-forwarded-port")?.parse().ok().filter(|port| ![0, 80, 443].contains(port));
    let usual = if scheme == "https" { 443 } else { 80 };
    Some(match port.or_else(told).filter(|port| *port != usual) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

/// What the first proxy said, which is the client's own.
fn first<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    value.split(',').next().map(str::trim)
}

/// A host with at most a port, and nothing else.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let in_brackets = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match in_brackets {
        Some((inner, rest)) => {
            (&text[..inner.len() + 2], rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let inner = in_brackets.map(|(inner, _)| inner);
    let known = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_');
    let good = match inner {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => (1..=253).contains(&host.len()) && host.chars().all(known),
    };
    let port = if port.is_empty() { None } else { Some(port.parse().ok().filter(|port| *port != 0)?) };
    good.then_some((host, port))
}

/// A path without its last slash; nothing if it is none that could stand in a header.
fn prefix(text: &str) -> Option<String> {
    let path = text.trim_end_matches('/');
    let known = |char: char| char.is_ascii_alphanumeric() || matches!(char, '/' | '.' | '-' | '_' | '~');
    let good = text.starts_with('/')
        && path.len() <= MAX_PREFIX
        && path.chars().all(known)
        && !path.contains("//")
        && path.split('/').all(|segment| segment != ".." && segment != ".");
    good.then(|| path.to_owned())
}

/// Who asks: the peer, or where that is a proxy that is trusted, the first address in front of it that is none.
pub(super) fn client_address(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.ip().to_canonical();
    let lines: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or_default()).collect();
    for said in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        if !is_among(trusted, client) {
            break;
        }
        // What a trusted proxy cannot have written ends the chain.
        let Some(address) = address(said.trim()) else { break };
        client = address.to_canonical();
    }
    client
}

/// Whether the peer is a proxy that is trusted.
pub(super) fn is_trusted(peer: SocketAddr, trusted: &[IpNet]) -> bool {
    is_among(trusted, peer.ip().to_canonical())
}

fn is_among(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use http::{HeaderName, HeaderValue};

    use super::*;

    /// `name: value` each.
    fn headers(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn origin(lines: &[&str], encrypted: bool) -> Origin {
        Origin::of(&Uri::from_static("/v2/"), &headers(lines), encrypted, None)
    }

    #[test]
    fn the_realm_is_at_what_the_client_used() {
        for (lines, encrypted, expected) in [
            (&["host: cache:5000"][..], false, "http://cache:5000/v2/token"),
            (&["host: cache:5000"], true, "https://cache:5000/v2/token"),
            (&["host: cache:443"], true, "https://cache/v2/token"),
            (&["host: cache:443"], false, "http://cache:443/v2/token"),
            (&["host: [::1]:5000"], false, "http://[::1]:5000/v2/token"),
            (&["host: [::1]"], false, "http://[::1]/v2/token"),
            // nginx as usual: Host with port, X-Forwarded-Proto.
            (
                &["host: r.example.com:8443", "x-forwarded-proto: https", "x-forwarded-for: 192.0.2.1"],
                false,
                "https://r.example.com:8443/v2/token",
            ),
            (&["host: r.example.com", "x-forwarded-proto: HTTPS"], false, "https://r.example.com/v2/token"),
            // The port once, wherever it is told.
            (
                &["host: r.example.com", "x-forwarded-proto: https", "x-forwarded-port: 8443"],
                false,
                "https://r.example.com:8443/v2/token",
            ),
            (
                &["host: r.example.com:8443", "x-forwarded-proto: https", "x-forwarded-port: 8443"],
                false,
                "https://r.example.com:8443/v2/token",
            ),
            (
                &["host: r.example.com", "x-forwarded-proto: https", "x-forwarded-port: 443"],
                false,
                "https://r.example.com/v2/token",
            ),
            (
                &["host: r.example.com", "x-forwarded-proto: https", "x-forwarded-port: 80"],
                false,
                "https://r.example.com/v2/token",
            ),
            // A proxy that does not keep Host.
            (
                &["host: 10.0.0.7:5000", "x-forwarded-host: r.example.com", "x-forwarded-proto: https"],
                false,
                "https://r.example.com/v2/token",
            ),
            (
                &["host: 10.0.0.7:5000", "x-forwarded-host: r.example.com:5002", "x-forwarded-port: 5002"],
                false,
                "http://r.example.com:5002/v2/token",
            ),
            // Two in a row: the first one is the client's.
            (
                &[
                    "host: x",
                    "x-forwarded-host: a.example.com:8443, b.internal",
                    "x-forwarded-proto: https, http",
                    "x-forwarded-port: 8443, 80",
                ],
                false,
                "https://a.example.com:8443/v2/token",
            ),
            (&["host: x", "x-forwarded-prefix: /registry/"], false, "http://x/registry/v2/token"),
            (&["host: x", "x-forwarded-prefix: /"], false, "http://x/v2/token"),
            // Nothing odd gets in.
            (&["host: x", "x-forwarded-host: evil\"/,realm=\"y"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: me:pw@evil"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: "], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: a/b"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: a:99999"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: [zz]"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-host: [::1]evil"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-proto: javascript"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-port: 80@evil"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-prefix: //evil.example.com"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-prefix: /a/../b"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-prefix: /a\"b"], false, "http://x/v2/token"),
            (&["host: x", "x-forwarded-prefix: a"], false, "http://x/v2/token"),
            // Nobody said where.
            (&[], false, "/v2/token"),
            (&["host: a b"], false, "/v2/token"),
        ] {
            assert_eq!(origin(lines, encrypted).realm(), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_absolute_request_and_an_external_url_go_before_the_host() {
        let headers = headers(&["host: x:1", "x-forwarded-proto: http", "x-forwarded-prefix: /p"]);
        let uri: Uri = "http://y:2/v2/".parse().unwrap();
        assert_eq!(Origin::of(&uri, &headers, false, None).realm(), "http://y:2/p/v2/token");
        let external = url::Url::parse("https://r.example.com:8443").unwrap().origin();
        assert_eq!(Origin::of(&uri, &headers, false, Some(&external)).realm(), "https://r.example.com:8443/p/v2/token");
    }

    fn route(prefix: &str) -> Route {
        Route {
            repository: "team".parse().unwrap(),
            rest: String::new(),
            prefix: prefix.to_owned(),
            registry_named: false,
            registry: None,
            whole_path: true,
            shared: false,
        }
    }

    #[test]
    fn addresses_have_the_path_that_the_client_used() {
        let forwarded = "x-forwarded-proto: https";
        for (lines, prefix, expected) in [
            (&["host: x"][..], "/v2/", "http://x/v2/app/tags/list?n=1"),
            (&["host: x"], "/repository/team/v2/", "http://x/repository/team/v2/app/tags/list?n=1"),
            (&["host: x"], "/v2/team/", "http://x/v2/team/app/tags/list?n=1"),
            // A proxy hides /repository/<name>, and nothing else of a path.
            (&["host: x", forwarded], "/repository/team/v2/", "https://x/v2/app/tags/list?n=1"),
            (&["host: x", forwarded], "/repository/team//v2/", "https://x/v2/app/tags/list?n=1"),
            (&["host: x", "x-forwarded-for: 192.0.2.1"], "/repository/team/v2/", "http://x/v2/app/tags/list?n=1"),
            (&["host: x", forwarded], "/v2/team/", "https://x/v2/team/app/tags/list?n=1"),
            // Unless it says what it took away.
            (
                &["host: x", forwarded, "x-forwarded-prefix: /"],
                "/repository/team/v2/",
                "https://x/repository/team/v2/app/tags/list?n=1",
            ),
            (
                &["host: x", forwarded, "x-forwarded-prefix: /registry"],
                "/repository/team/v2/",
                "https://x/registry/repository/team/v2/app/tags/list?n=1",
            ),
            (
                &["host: x", forwarded, "x-forwarded-prefix: /registry"],
                "/v2/",
                "https://x/registry/v2/app/tags/list?n=1",
            ),
        ] {
            assert_eq!(
                origin(lines, false).address(&route(prefix), "app/tags/list?n=1"),
                expected,
                "{lines:?} {prefix}"
            );
        }
    }

    #[test]
    fn a_client_is_the_first_address_that_is_no_trusted_proxy() {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap()).into();
        for (peer, lines, expected) in [
            ("192.0.2.9:1", &[][..], "192.0.2.9"),
            // Who is not trusted is not believed.
            ("192.0.2.9:1", &["x-forwarded-for: 198.51.100.1"], "192.0.2.9"),
            ("10.1.1.1:1", &[], "10.1.1.1"),
            ("10.1.1.1:1", &["x-forwarded-for: 198.51.100.1"], "198.51.100.1"),
            ("10.1.1.1:1", &["x-forwarded-for: 203.0.113.5, 198.51.100.1"], "198.51.100.1"),
            ("10.1.1.1:1", &["x-forwarded-for: 198.51.100.1, 10.2.2.2"], "198.51.100.1"),
            ("10.1.1.1:1", &["x-forwarded-for: 198.51.100.1", "x-forwarded-for: 10.2.2.2"], "198.51.100.1"),
            ("[::ffff:10.1.1.1]:1", &["x-forwarded-for: 198.51.100.1:4711"], "198.51.100.1"),
            ("[2001:db8::1]:1", &["x-forwarded-for: [2001:db9::7]:80"], "2001:db9::7"),
            ("10.1.1.1:1", &["x-forwarded-for: 2001:db9::7"], "2001:db9::7"),
            ("10.1.1.1:1", &["x-forwarded-for: 198.51.100.1, unknown"], "10.1.1.1"),
            ("10.1.1.1:1", &["x-forwarded-for: 10.2.2.2"], "10.2.2.2"),
            ("10.1.1.1:1", &["x-forwarded-for: "], "10.1.1.1"),
        ] {
            let found = client_address(peer.parse().unwrap(), &headers(lines), &trusted);
            assert_eq!(found.to_string(), expected, "{peer} {lines:?}");
        }
    }
}
