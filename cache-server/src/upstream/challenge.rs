//! What an upstream asks for when it denies, and what follows from a denial: pure. May import nothing of ours.

use http::{HeaderMap, StatusCode, header::WWW_AUTHENTICATE};
use http_auth::ChallengeParser;

/// How an upstream wants its callers to say who they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Challenge {
    /// A token from a token server.
    Bearer {
        /// The token server's URL, not judged yet.
        realm: String,
        /// What the token server calls the upstream.
        service: Option<String>,
    },
    /// User name and password with each request.
    Basic,
}

impl Challenge {
    /// The challenge in an answer; a bearer one is preferred to a basic one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut basic = None;
        for challenge in texts.flat_map(|text| ChallengeParser::new(text).map_while(Result::ok)) {
            let parameter = |name: &str| {
                challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter("realm") {
                    return Some(Self::Bearer { realm, service: parameter("service") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// What a request said about who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing.
    Nothing,
    /// A token that was there before the request began.
    OldToken,
    /// A token that was fetched for this request.
    FreshToken,
    /// User name and password.
    Password,
}

/// What follows from a 401 or 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Say who asks in this way, with nothing remembered, and ask once more.
    Answer(Challenge),
    /// It is denied.
    Denied,
}

/// Judges a 401 or 403 of the upstream itself. `remembered` is the challenge by which the request was authorised,
/// `repeated` whether it already is a repetition.
pub(super) fn judge(status: StatusCode, said: Said, received: Option<Challenge>, remembered: Option<Challenge>, repeated: bool) -> Step {
    if repeated {
        return Step::Denied;
    }
    if status == StatusCode::FORBIDDEN {
        // Rights may have been granted since the token was made.
        return match (said, remembered) {
            (Said::OldToken, Some(challenge)) => Step::Answer(challenge),
            _ => Step::Denied,
        };
    }
    match (received, said) {
        (None, _) | (Some(Challenge::Basic), Said::Password) => Step::Denied,
        (Some(challenge), Said::FreshToken) if Some(&challenge) == remembered.as_ref() => Step::Denied,
        (Some(challenge), _) => Step::Answer(challenge),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) }
    }

    #[test]
    fn challenges_are_read() {
        let table: [(&[&str], _); 8] = [
            (
                &[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#],
                Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            ),
            (&[r#"bearer Realm="https://a/b,c""#], Some(bearer("https://a/b,c", None))),
            (&[r#"Basic realm="x", Bearer realm="https://a/", service="s""#], Some(bearer("https://a/", Some("s")))),
            (&[r#"Basic realm="x""#, r#"Bearer realm="https://a/""#], Some(bearer("https://a/", None))),
            (&[r#"Basic realm="https://ecr.example/",service="ecr.amazonaws.com""#], Some(Challenge::Basic)),
            (&["Negotiate"], None),
            (&["Bearer"], None),
            (&[], None),
        ];
        for (texts, expected) in table {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append(WWW_AUTHENTICATE, text.parse().expect("a header"));
            }
            assert_eq!(Challenge::of(&headers), expected, "{texts:?}");
        }
    }

    #[test]
    fn a_denial_is_final_only_after_a_fresh_token() {
        let (unauthorized, forbidden) = (StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN);
        let (known, other) = (bearer("https://a/", None), bearer("https://b/", None));
        let answer = |challenge: &Challenge| Step::Answer(challenge.clone());
        let table = [
            (unauthorized, Said::Nothing, Some(&known), None, false, answer(&known)),
            (unauthorized, Said::OldToken, Some(&known), Some(&known), false, answer(&known)),
            (unauthorized, Said::FreshToken, Some(&known), Some(&known), false, Step::Denied),
            (unauthorized, Said::FreshToken, Some(&other), Some(&known), false, answer(&other)),
            (unauthorized, Said::FreshToken, Some(&known), Some(&known), true, Step::Denied),
            (unauthorized, Said::Nothing, None, None, false, Step::Denied),
            (unauthorized, Said::Nothing, Some(&Challenge::Basic), None, false, answer(&Challenge::Basic)),
            (unauthorized, Said::Password, Some(&Challenge::Basic), Some(&Challenge::Basic), false, Step::Denied),
            (unauthorized, Said::Password, Some(&known), Some(&Challenge::Basic), false, answer(&known)),
            (forbidden, Said::Nothing, None, None, false, Step::Denied),
            (forbidden, Said::OldToken, None, Some(&known), false, answer(&known)),
            (forbidden, Said::FreshToken, None, Some(&known), false, Step::Denied),
            (forbidden, Said::OldToken, None, Some(&known), true, Step::Denied),
        ];
        for (status, said, received, remembered, repeated, expected) in table {
            let step = judge(status, said, received.cloned(), remembered.cloned(), repeated);
            assert_eq!(step, expected, "{status} {said:?} {received:?} {repeated}");
        }
    }
}
