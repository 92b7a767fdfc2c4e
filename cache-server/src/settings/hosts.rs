//! Where things are: the names of registries and hosts, the URLs of upstreams. May import `crds`.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use url::{Host, Url};

/// A registry as images name it: `docker.io`, `ghcr.io`, `registry.example.com:5000`.
///
/// Invariants: a host name, IPv4 address or bracketed IPv6 address in lower case, with an optional port; `registry-1.docker.io`
/// and `index.docker.io` read as `docker.io`, so that equality is sameness.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryName(String);

/// Why a text is no [`RegistryName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a registry must be a host name with an optional port, such as docker.io or registry.example.com:5000, got {0:?}"
)]
pub struct RegistryNameError(String);

impl RegistryName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is Docker Hub, whose official images live under `library/`.
    #[must_use]
    pub fn is_docker_hub(&self) -> bool {
        self.0 == "docker.io"
    }

    /// What an upstream stands for unless it says otherwise: its host, and its port if it is not the scheme's.
    pub(super) fn of_url(url: &Url) -> Result<Self, RegistryNameError> {
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => format!("{host}:{port}").parse(),
            None => host.parse(),
        }
    }
}

impl FromStr for RegistryName {
    type Err = RegistryNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        if ["registry-1.docker.io", "index.docker.io"].contains(&lower.as_str()) {
            return Ok(Self("docker.io".to_owned()));
        }
        if crds::names::is_registry(&lower) || is_bracketed(&lower) {
            return Ok(Self(lower));
        }
        Err(RegistryNameError(text.to_owned()))
    }
}

/// Whether a text is `[address]` or `[address]:port`.
fn is_bracketed(text: &str) -> bool {
    text.strip_prefix('[').and_then(|rest| rest.split_once(']')).is_some_and(|(address, port)| {
        let good_port = port.is_empty()
            || port.strip_prefix(':').is_some_and(|port| !port.starts_with('+') && port.parse::<u16>().is_ok());
        good_port && address.parse::<Ipv6Addr>().is_ok()
    })
}

impl fmt::Display for RegistryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A host that is allowed something: any port of it, or one.
///
/// Invariants: a host name or address in lower case; no pattern characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedHost {
    host: String,
    port: Option<u16>,
}

/// Why a text is no [`AllowedHost`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a host name or address with an optional port, such as auth.example.com or 10.0.0.1:9000, got {0:?}")]
pub struct AllowedHostError(String);

impl AllowedHost {
    /// Whether a URL's host and port (the scheme's, if it names none) are allowed.
    #[must_use]
    pub fn allows(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| host.eq_ignore_ascii_case(&self.host))
            && (self.port.is_none() || self.port == url.port_or_known_default())
    }
}

impl FromStr for AllowedHost {
    type Err = AllowedHostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let refuse = || AllowedHostError(text.to_owned());
        if !crds::names::is_registry(&lower) && !is_bracketed(&lower) {
            return Err(refuse());
        }
        match lower.rsplit_once(':') {
            // The last colon of `[::1]` belongs to the address.
            Some((host, port)) if !port.ends_with(']') => {
                Ok(Self { host: host.to_owned(), port: Some(port.parse().map_err(|_| refuse())?) })
            }
            _ => Ok(Self { host: lower, port: None }),
        }
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(formatter, "{}:{port}", self.host),
            None => formatter.write_str(&self.host),
        }
    }
}

/// Why a text is no URL of an upstream or a proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No URL at all.
    #[error("must be a URL such as https://registry.example.com, got {text:?}")]
    Syntax {
        /// The text.
        text: String,
        /// What the parser says.
        source: url::ParseError,
    },
    /// Another scheme.
    #[error("must start with https:// or http://, got {0:?}")]
    Scheme(String),
    /// Credentials in the URL. The URL is not repeated, since this is printed.
    #[error("must not contain credentials; put them into a Secret")]
    Credentials,
    /// A query or a fragment.
    #[error("must not have a query or a fragment, got {0:?}")]
    Query(String),
    /// The path ends in `/v2`.
    #[error("must be what stands in front of /v2/; remove /v2 from {0:?}")]
    V2(String),
    /// A path where there must be none.
    #[error("must be scheme, host and port only, got {0:?}")]
    Path(String),
    /// A link-local address: there live the metadata services of clouds, which hand out credentials.
    #[error("must not be a link-local address, got {0:?}; use the registry's routable address")]
    LinkLocal(String),
}

/// The URL of an upstream.
pub(super) fn upstream_url(text: &str) -> Result<Url, UrlError> {
    let url = http_url(text)?;
    if url.path().trim_end_matches('/').ends_with("/v2") {
        return Err(UrlError::V2(text.to_owned()));
    }
    if is_link_local(&url) {
        return Err(UrlError::LinkLocal(text.to_owned()));
    }
    Ok(url)
}

/// The URL of an HTTP proxy.
pub(super) fn proxy_url(text: &str) -> Result<Url, UrlError> {
    let url = http_url(text)?;
    if url.path() == "/" { Ok(url) } else { Err(UrlError::Path(text.to_owned())) }
}

/// Where clients reach the server.
pub(super) fn external_url(text: &str) -> Result<url::Origin, UrlError> {
    let url = http_url(text)?;
    if url.path() == "/" { Ok(url.origin()) } else { Err(UrlError::Path(text.to_owned())) }
}

fn http_url(text: &str) -> Result<Url, UrlError> {
    // A text that does not parse may still hold a password.
    let shown = || if text.contains('@') { "…".to_owned() } else { text.to_owned() };
    let url = Url::parse(text).map_err(|source| UrlError::Syntax { text: shown(), source })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    if !["http", "https"].contains(&url.scheme()) {
        return Err(UrlError::Scheme(shown()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(UrlError::Query(shown()));
    }
    Ok(url)
}

fn is_link_local(url: &Url) -> bool {
    let four = |address: Ipv4Addr| address.is_link_local();
    match url.host() {
        Some(Host::Ipv4(address)) => four(address),
        Some(Host::Ipv6(address)) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some_and(four),
        Some(Host::Domain(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn registries_are_compared_in_lower_case_and_docker_hub_has_one_name() {
        for (text, expected) in [
            ("docker.io", "docker.io"),
            ("Registry-1.docker.io", "docker.io"),
            ("INDEX.docker.io", "docker.io"),
            ("GHCR.io", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(text.parse::<RegistryName>().unwrap().as_str(), expected);
        }
        for text in [
            "",
            "a/b",
            "a b",
            "-a",
            "a.",
            "a:",
            "a:99999",
            "a:+80",
            "a:b",
            "https://a",
            "a@b",
            "..",
            "[::1",
            "[x]",
            "a_b",
            "ä",
        ] {
            assert!(text.parse::<RegistryName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_default_registry_comes_from_the_url() {
        for (url, expected) in [
            ("https://registry-1.docker.io", "docker.io"),
            ("https://quay.io:443/", "quay.io"),
            ("http://Registry.example.com:5000/prefix", "registry.example.com:5000"),
            ("http://[fd00::1]:5000", "[fd00::1]:5000"),
        ] {
            assert_eq!(RegistryName::of_url(&upstream_url(url).unwrap()).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn bad_upstream_urls_are_refused() {
        for text in [
            "",
            "docker.io",
            "ftp://a",
            "https://",
            "https://me:pw@a",
            "https://me@a",
            "https://a?x",
            "https://a#x",
            "https://a/v2",
            "https://a/v2/",
            "http://169.254.169.254",
            "http://[fe80::1]",
            "http://[::ffff:169.254.169.254]",
            "http://2852039166",
            "http://0xa9.254.1.1",
        ] {
            assert!(upstream_url(text).is_err(), "{text:?}");
        }
        for text in ["http://10.0.0.1:5000", "https://a/prefix", "http://localhost:1"] {
            assert!(upstream_url(text).is_ok(), "{text:?}");
        }
        assert!(!upstream_url("https://me:hunter2@").unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn an_allowed_host_without_port_allows_every_port() {
        let allows = |host: &str, url: &str| host.parse::<AllowedHost>().unwrap().allows(&url.parse().unwrap());
        assert!(allows("auth.example.com", "https://AUTH.example.com:8443/token"));
        assert!(allows("auth.example.com:443", "https://auth.example.com/token"));
        assert!(!allows("auth.example.com:443", "http://auth.example.com/token"));
        assert!(!allows("auth.example.com", "https://auth.example.com.evil.example/token"));
        assert!(allows("[::1]:80", "http://[::1]/"));
        assert!(allows("[::1]", "http://[::1]:9000/"));
        for bad in ["*.example.com", "https://a", "a/b", "", "*"] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad:?}");
        }
    }
}
