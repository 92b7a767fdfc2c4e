//! Who asks: what a request says of itself, and what that was found to be. May import `token` and `credentials`.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::token::Token;
use crate::credentials::Secret;

/// Base64 as clients write it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How the names of service accounts begin. No user of an htpasswd file has a colon in the name.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Someone who logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    /// Those of a service account, as Kubernetes names them.
    groups: Vec<String>,
}

impl User {
    /// The user of a name; one that is a service account's has its groups.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let namespace = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
        let groups = namespace.map(|(namespace, _)| {
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
        });
        Self { name: name.to_owned(), groups: groups.unwrap_or_default() }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a permission for `who` is one for this user.
    #[must_use]
    pub fn is(&self, who: &str) -> bool {
        self.name == who || self.groups.iter().any(|group| group == who)
    }

    /// Whether it is a service account of Kubernetes.
    #[must_use]
    pub fn is_service_account(&self) -> bool {
        !self.groups.is_empty()
    }
}

/// Who asks, after credentials were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular.
    Anonymous,
    /// Someone with a password, or a service account with its own token.
    User(User),
    /// Someone with a token of ours.
    Token(Token),
}

impl Caller {
    /// The user, if it is one: also the one whom a token was issued to.
    #[must_use]
    pub const fn user(&self) -> Option<&User> {
        match self {
            Self::Anonymous => None,
            Self::User(user) => Some(user),
            Self::Token(token) => token.user.as_ref(),
        }
    }
}

/// What a request says about who it is from; nothing of it has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// Nothing.
    Nothing,
    /// `Authorization: Basic`.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// `Authorization: Bearer`.
    Bearer(Secret),
    /// Something else, or broken.
    Unreadable,
}

impl Presented {
    /// Reads the values of the `Authorization` headers.
    pub fn of<'a>(mut headers: impl Iterator<Item = &'a [u8]>) -> Self {
        let Some(value) = headers.next() else { return Self::Nothing };
        if headers.next().is_some() {
            return Self::Unreadable;
        }
        Self::parse(value).unwrap_or(Self::Unreadable)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (scheme, rest) = std::str::from_utf8(value).ok()?.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(Secret::new(rest)));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some(Self::Password { user: user.to_owned(), password: Secret::new(password) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Presented {
        Presented::of(values.iter().map(|value| value.as_bytes()))
    }

    fn password(user: &str, password: &str) -> Presented {
        Presented::Password { user: user.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn authorization_is_read_as_clients_write_it() {
        for (value, expected) in [
            ("Basic YWxpY2U6c2VjcmV0", password("alice", "secret")),
            ("basic   YWxpY2U6c2VjcmV0 ", password("alice", "secret")),
            ("Basic YWxpY2U6YTpi", password("alice", "a:b")),
            ("Basic YTpiYw", password("a", "bc")),
            ("Basic Og==", password("", "")),
            ("Bearer ey.ey.x", Presented::Bearer(Secret::new("ey.ey.x"))),
            ("bearer x", Presented::Bearer(Secret::new("x"))),
            ("Basic !!!", Presented::Unreadable),
            ("Basic YWxpY2U=", Presented::Unreadable),
            ("Basic /w==", Presented::Unreadable),
            ("Digest username=\"x\"", Presented::Unreadable),
            ("Basic", Presented::Unreadable),
            ("", Presented::Unreadable),
        ] {
            assert_eq!(read(&[value]), expected, "{value}");
        }
        assert_eq!(read(&[]), Presented::Nothing);
        assert_eq!(read(&["Bearer a", "Bearer b"]), Presented::Unreadable);
    }

    #[test]
    fn a_service_account_has_its_groups() {
        let robot = User::named("system:serviceaccount:team1:ci");
        assert!(robot.is_service_account());
        for who in ["system:serviceaccount:team1:ci", "system:serviceaccounts", "system:serviceaccounts:team1"] {
            assert!(robot.is(who), "{who}");
        }
        for who in ["system:serviceaccounts:team", "system:serviceaccounts:team10", "ci", "*", ""] {
            assert!(!robot.is(who), "{who}");
        }
        assert!(!User::named("alice").is_service_account());
    }

    #[test]
    fn what_is_presented_is_not_printed() {
        let printed = format!("{:?} {:?}", password("alice", "hunter2"), Presented::Bearer(Secret::new("hunter3")));
        assert!(!printed.contains("hunter"), "{printed}");
    }
}
