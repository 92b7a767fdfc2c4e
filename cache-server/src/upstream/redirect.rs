//! Where a redirect may lead, and what goes along: pure. May import `address`, `hosts` and `error`.

use url::Url;

use super::{
    address::Reach,
    error::{Error, Violation},
    hosts::{HostList, host_of, same_origin},
};

/// A redirect that may be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// Where it leads.
    pub(super) url: Url,
    /// Which addresses the host may have.
    pub(super) reach: Reach,
    /// Whether scheme, host and port stay the same, so that `Authorization` may go along.
    pub(super) same_origin: bool,
}

/// Judges a `Location` that came from `from`, an answer of `upstream` or of where it led.
pub(super) fn judge(from: &Url, location: Option<&[u8]>, upstream: &Url, redirect_hosts: &HostList) -> Result<Hop, Error> {
    let unusable = || Error::Protocol(Violation::Location);
    let text = location.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or_else(unusable)?;
    let mut url = from.join(text).map_err(|_| unusable())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(unusable());
    }
    // A user name in a location would become an Authorization header.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(unusable());
    }
    url.set_fragment(None);
    if from.scheme() == "https" && url.scheme() == "http" && upstream.scheme() != "http" {
        return Err(Error::Protocol(Violation::Downgrade));
    }
    let listed = host_of(&url) == host_of(upstream) || redirect_hosts.has(&url);
    let reach = if listed { Reach::Listed } else { Reach::Public };
    reach.admit_literal(&url).map_err(|kind| Error::ForbiddenAddress { host: host_of(&url).to_owned(), kind })?;
    let same_origin = same_origin(from, &url);
    Ok(Hop { url, reach, same_origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_only_where_they_may() {
        let secure = "https://registry.example.com/v2/a/blobs/x";
        let plain = "http://10.0.0.5:5000/v2/a/blobs/x";
        let table = [
            // from (also the upstream), location, reach and same origin, or the text of the refusal
            (secure, "https://cdn.example.net/x?sig=1", Ok((Reach::Public, false))),
            (secure, "/elsewhere", Ok((Reach::Listed, true))),
            (secure, "//registry.example.com/x", Ok((Reach::Listed, true))),
            (secure, "https://registry.example.com:443/x", Ok((Reach::Listed, true))),
            (secure, "https://registry.example.com:8443/x", Ok((Reach::Listed, false))),
            (secure, "https://10.1.1.1:9000/x", Ok((Reach::Listed, false))),
            (secure, "https://10.1.1.1:22/x", Err("private")),
            (secure, "https://10.1.1.2/x", Err("private")),
            (secure, "https://127.0.0.1/x", Err("loopback")),
            (secure, "https://[::ffff:10.0.0.1]/x", Err("private")),
            (secure, "https://169.254.169.254/latest/meta-data", Err("link-local")),
            (secure, "https://169.254.2.2/x", Err("link-local")),
            (secure, "http://cdn.example.net/x", Err("from https to http")),
            (secure, "ftp://cdn.example.net/x", Err("location")),
            (secure, "https://user:secret@cdn.example.net/x", Err("location")),
            (plain, "http://10.0.0.5:5000/y", Ok((Reach::Listed, true))),
            (plain, "http://10.0.0.5:6000/y", Ok((Reach::Listed, false))),
            (plain, "https://10.0.0.5:5000/y", Ok((Reach::Listed, false))),
            (plain, "http://10.0.0.6/y", Err("private")),
            (plain, "http://203.0.113.4/y", Ok((Reach::Public, false))),
        ];
        let listed = HostList::parse(&["10.1.1.1:9000".into(), "169.254.2.2".into()]).expect("hosts");
        for (from, location, expected) in table {
            let from = Url::parse(from).expect("a URL");
            match (judge(&from, Some(location.as_bytes()), &from, &listed), expected) {
                (Ok(hop), Ok(expected)) => assert_eq!((hop.reach, hop.same_origin), expected, "{location}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{location}: {error}"),
                (got, _) => unreachable!("{location}: {got:?}"),
            }
        }
        assert!(judge(&Url::parse(secure).expect("a URL"), None, &Url::parse(secure).expect("a URL"), &listed).is_err());
    }
}
