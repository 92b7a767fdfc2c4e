//! What an upstream says about how often it may be asked: pure. May import nothing of ours.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header::RETRY_AFTER};

/// No `Retry-After` is believed for longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The last rate limit that an upstream told (Docker Hub: `ratelimit-limit: 100;w=21600`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many requests per window.
    pub limit: Option<u64>,
    /// How many are left in this window.
    pub remaining: Option<u64>,
    /// The window.
    pub window: Option<Duration>,
}

impl RateLimit {
    /// The rate limit in an answer, if it has one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let read = |name| headers.get(name).and_then(|value| value.to_str().ok()).and_then(parse);
        let (limit, remaining) = (read("ratelimit-limit"), read("ratelimit-remaining"));
        if limit.is_none() && remaining.is_none() {
            return None;
        }
        Some(Self {
            limit: limit.map(|(count, _)| count),
            remaining: remaining.map(|(count, _)| count),
            window: limit.and_then(|(_, window)| window).or(remaining.and_then(|(_, window)| window)),
        })
    }
}

/// `100;w=21600`, also with more parameters or policies behind a comma.
fn parse(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok()).map(Duration::from_secs);
    Some((count, window))
}

/// How long an answer asks to wait: seconds or a date, at most ten minutes.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn rate_limits_are_read() {
        let hours = Some(Duration::from_secs(21_600));
        let limit = |limit, remaining, window| Some(RateLimit { limit, remaining, window });
        for (pairs, expected) in [
            (vec![("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "20;w=21600")], limit(Some(100), Some(20), hours)),
            (vec![("ratelimit-remaining", "0;w=21600")], limit(None, Some(0), hours)),
            (vec![("ratelimit-limit", "100, 100;w=60"), ("ratelimit-remaining", "7")], limit(Some(100), Some(7), None)),
            (vec![("ratelimit-limit", "many")], None),
            (vec![], None),
        ] {
            assert_eq!(RateLimit::of(&headers(&pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn retry_after_is_read_and_bounded() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").expect("a date");
        for (text, expected) in [
            ("30", Some(30)),
            ("0", Some(0)),
            ("99999999999", Some(600)),
            ("Wed, 21 Oct 2026 07:28:10 GMT", Some(10)),
            ("Wed, 21 Oct 2026 07:27:10 GMT", Some(0)),
            ("soon", None),
        ] {
            let got = retry_after(&headers(&[("retry-after", text)]), now);
            assert_eq!(got, expected.map(Duration::from_secs), "{text}");
        }
    }
}
