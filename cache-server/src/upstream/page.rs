//! Where the next page of a list is: pure. May import `hosts`.

use http::{HeaderMap, header::LINK};
use url::Url;

use super::hosts::host_of;

/// What an answer says about a next page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There is none.
    End,
    /// It is here: always at the origin that was asked, whatever scheme the link has (registries behind a TLS proxy often
    /// write `http`).
    Page(Url),
    /// The link leads to another host, or to the same page.
    Astray,
}

/// Reads `Link: <…>; rel="next"` of the answer to `asked`.
pub(super) fn next(asked: &Url, headers: &HeaderMap) -> Next {
    let texts = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let Some(target) = texts.flat_map(|text| text.split(',')).find_map(target_of_next) else {
        return Next::End;
    };
    let Ok(link) = asked.join(target) else { return Next::Astray };
    if host_of(&link) != host_of(asked) || !matches!(link.scheme(), "http" | "https") {
        return Next::Astray;
    }
    let mut page = asked.clone();
    page.set_path(link.path());
    page.set_query(link.query());
    if page == *asked { Next::Astray } else { Next::Page(page) }
}

fn target_of_next(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = |parameter: &str| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
    };
    parameters.split(';').any(is_next).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_only_at_the_same_host() {
        let asked = Url::parse("https://r.example:8443/p/v2/a/tags/list?n=2").expect("a URL");
        let page = |path: &str| Next::Page(asked.join(path).expect("a path"));
        for (link, expected) in [
            (r#"</p/v2/a/tags/list?last=b&n=2>; rel="next""#, page("/p/v2/a/tags/list?last=b&n=2")),
            ("<?last=b&n=2>; rel=next", page("?last=b&n=2")),
            (r#"<http://r.example/p/v2/a/tags/list?last=b>; rel="next""#, page("/p/v2/a/tags/list?last=b")),
            (r#"<https://evil.example/v2/a/tags/list?last=b>; rel="next""#, Next::Astray),
            (r#"</p/v2/a/tags/list?n=2>; rel="next""#, Next::Astray),
            (r#"</x>; rel="prev", </p/v2/a/tags/list?last=z>; rel="next""#, page("/p/v2/a/tags/list?last=z")),
            (r#"</x>; rel="prev""#, Next::End),
            ("nonsense", Next::End),
        ] {
            let headers = [(LINK, link.parse().expect("a value"))].into_iter().collect();
            assert_eq!(next(&asked, &headers), expected, "{link}");
        }
    }
}
