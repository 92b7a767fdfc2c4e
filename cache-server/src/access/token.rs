//! Our own tokens (distribution-spec, "token authentication"): signed, for one service, for minutes. Pure.
//! May import `caller`, `judge`'s words and `oci`.

use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::{caller::User, judge::Action};
use crate::oci::ImageName;

/// For how long a token is valid, in seconds. A push takes longer; engines then get another one.
pub const LIFE: u64 = 300;

/// By how much our own clock may have been set back since a token was issued, in seconds.
const SKEW: u64 = 5;

/// Who issued a token.
const ISSUER: &str = "entrepot";

/// How many scopes of a request are read. Engines ask for two at most.
const MAX_SCOPES: usize = 32;

/// A token that was found to be ours and valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// To whom it was issued; `None`: to nobody in particular.
    pub user: Option<User>,
    /// For which service: a repository, or [`super::SHARED_SERVICE`].
    pub service: String,
    /// What it is for.
    pub access: Vec<Granted>,
}

impl Token {
    /// Whether it is for doing this with the image that the client calls so.
    #[must_use]
    pub fn covers(&self, name: &str, action: Action) -> bool {
        self.access.iter().any(|granted| granted.name == name && granted.actions.contains(&action))
    }
}

/// What a token is for: actions on one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The image, as the client calls it.
    pub name: String,
    /// What may be done with it.
    pub actions: Vec<Action>,
}

/// What a client asks a token for: actions on one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The image, as the client calls it.
    pub name: String,
    /// What it wants to do.
    pub actions: Vec<Action>,
}

impl Scope {
    /// Reads `repository:<name>:<action>,…`, several of them with spaces between. What is of another type, or broken, is left out:
    /// it can only be missing in the token.
    #[must_use]
    pub fn parse_all<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Self> {
        texts.flat_map(|text| text.split(' ')).filter_map(Self::parse).take(MAX_SCOPES).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        // A registry in front of a name has a colon of its own.
        let (name, actions) = rest.rsplit_once(':')?;
        let is_image = kind == "repository" || (kind.starts_with("repository(") && kind.ends_with(')'));
        if !is_image || name.is_empty() {
            return None;
        }
        let wanted: Vec<&str> = actions.split(',').collect();
        let asked = |action: &Action| wanted.contains(&action.as_str()) || wanted.contains(&"*");
        Some(Self { name: name.to_owned(), actions: Action::ALL.into_iter().filter(asked).collect() })
    }
}

/// The scopes that a challenge asks for: one for the image, since engines read while they write, and one to pull that `from` which
/// a blob is to be mounted. What is no image's name is not repeated.
#[must_use]
pub fn wanted_scopes(name: &str, action: Action, from: Option<&str>) -> String {
    let actions = match action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
        Action::Delete => "pull,delete",
    };
    let from = from.filter(|from| *from != name && is_image(from));
    let read = from.map_or_else(String::new, |from| format!(" repository:{from}:pull"));
    format!("repository:{name}:{actions}{read}")
}

/// Whether a client may call an image so: it may write a registry in front.
fn is_image(name: &str) -> bool {
    let is_registry = |text: &str| {
        text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte))
    };
    let is_name = |text: &str| text.parse::<ImageName>().is_ok();
    is_name(name) || name.split_once('/').is_some_and(|(registry, image)| is_registry(registry) && is_name(image))
}

/// Why a text is no token of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Not signed by this server.
    #[error("the token was not issued by this server")]
    Foreign,
    /// Not valid any more, or not yet.
    #[error("the token has expired; get another one")]
    Expired,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    #[serde(default)]
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    access: Vec<Access>,
}

#[derive(Serialize, Deserialize)]
struct Access {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

impl Access {
    fn of(granted: &Granted) -> Self {
        let actions = granted.actions.iter().map(|action| action.as_str().to_owned()).collect();
        Self { kind: "repository".to_owned(), name: granted.name.clone(), actions }
    }

    fn granted(self) -> Granted {
        let has = |action: &Action| self.actions.iter().any(|word| word == action.as_str());
        Granted { actions: Action::ALL.into_iter().filter(has).collect(), name: self.name }
    }
}

/// Issues tokens, and knows its own again.
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Signer {
    /// With this key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self { encoding: EncodingKey::from_secret(key), decoding: DecodingKey::from_secret(key) }
    }

    /// Issues a token. `now` in seconds since 1970. Nothing only if the cryptography fails.
    #[must_use]
    pub fn issue(&self, token: &Token, now: u64) -> Option<String> {
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: token.service.clone(),
            sub: token.user.as_ref().map_or_else(String::new, |user| user.name().to_owned()),
            iat: now,
            nbf: now,
            exp: now + LIFE,
            access: token.access.iter().map(Access::of).collect(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding).ok()
    }

    /// What a token of ours says.
    pub fn verify(&self, text: &str, now: u64) -> Result<Token, TokenRefused> {
        // Only this algorithm: the token does not choose by what it is judged.
        let mut validation = Validation::new(Algorithm::HS256);
        // Judged below, by the time that is given; and the audience by the one policy.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let decoded = jsonwebtoken::decode::<Claims>(text, &self.decoding, &validation);
        let claims = decoded.map_err(|_| TokenRefused::Foreign)?.claims;
        if claims.iss != ISSUER {
            return Err(TokenRefused::Foreign);
        }
        if claims.exp <= now || claims.nbf > now + SKEW {
            return Err(TokenRefused::Expired);
        }
        Ok(Token {
            user: (!claims.sub.is_empty()).then(|| User::named(&claims.sub)),
            service: claims.aud,
            access: claims
                .access
                .into_iter()
                .filter(|access| access.kind == "repository")
                .map(Access::granted)
                .collect(),
        })
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Signer(…)")
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn token() -> Token {
        Token {
            user: Some(User::named("alice")),
            service: "team".to_owned(),
            access: vec![Granted { name: "a/b".to_owned(), actions: vec![Action::Pull, Action::Push] }],
        }
    }

    fn signer() -> Signer {
        Signer::new(&[7; 32])
    }

    #[test]
    fn a_token_says_what_it_was_issued_for() {
        let text = signer().issue(&token(), NOW).unwrap();
        assert_eq!(signer().verify(&text, NOW + 10), Ok(token()));
        let anonymous = Token { user: None, ..token() };
        assert_eq!(signer().verify(&signer().issue(&anonymous, NOW).unwrap(), NOW), Ok(anonymous));
        let claims: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text.split('.').nth(1).unwrap()).unwrap()).unwrap();
        let access = json!([{"type": "repository", "name": "a/b", "actions": ["pull", "push"]}]);
        let expected = json!({"iss": "entrepot", "aud": "team", "sub": "alice", "iat": NOW, "nbf": NOW, "exp": NOW + 300, "access": access});
        assert_eq!(claims, expected);
    }

    #[test]
    fn a_token_is_for_exactly_its_images_and_actions() {
        let token = token();
        assert!(token.covers("a/b", Action::Pull) && token.covers("a/b", Action::Push));
        for (name, action) in
            [("a/b", Action::Delete), ("a", Action::Pull), ("a/b/c", Action::Pull), ("", Action::Pull)]
        {
            assert!(!token.covers(name, action), "{name} {action:?}");
        }
    }

    #[test]
    fn a_token_has_its_time() {
        let text = signer().issue(&token(), NOW).unwrap();
        assert!(signer().verify(&text, NOW + LIFE - 1).is_ok());
        assert_eq!(signer().verify(&text, NOW + LIFE), Err(TokenRefused::Expired));
        assert!(signer().verify(&text, NOW - SKEW).is_ok());
        assert_eq!(signer().verify(&text, NOW - SKEW - 1), Err(TokenRefused::Expired));
    }

    #[test]
    fn nothing_but_our_signature_counts() {
        let good = signer().issue(&token(), NOW).unwrap();
        let [header, claims, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let encode = |algorithm: Algorithm, claims: &serde_json::Value, key: &[u8]| {
            jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(key)).unwrap()
        };
        let own = json!({"iss": "entrepot", "aud": "team", "sub": "alice", "iat": NOW, "nbf": NOW, "exp": NOW + 9, "access": []});
        assert!(signer().verify(&encode(Algorithm::HS256, &own, &[7; 32]), NOW).is_ok());
        let mut other_issuer = own.clone();
        other_issuer["iss"] = json!("other");
        let mut no_audience = own.clone();
        no_audience.as_object_mut().unwrap().remove("aud");
        let none = part(json!({"alg": "none", "typ": "JWT"}));
        let changed = part(
            json!({"iss": "entrepot", "aud": "team", "sub": "root", "iat": NOW, "nbf": NOW, "exp": NOW + 9, "access": []}),
        );
        for (what, text) in [
            ("another key", Signer::new(&[8; 32]).issue(&token(), NOW).unwrap()),
            ("another algorithm", encode(Algorithm::HS512, &own, &[7; 32])),
            ("no algorithm", format!("{none}.{claims}.")),
            ("no algorithm, with a signature", format!("{none}.{claims}.{signature}")),
            ("other claims", format!("{header}.{changed}.{signature}")),
            ("no signature", format!("{header}.{claims}.")),
            ("two parts", format!("{header}.{claims}")),
            ("another issuer", encode(Algorithm::HS256, &other_issuer, &[7; 32])),
            ("no audience", encode(Algorithm::HS256, &no_audience, &[7; 32])),
            ("nothing", String::new()),
            ("dots", "..".to_owned()),
            ("something", "dckr_pat_x".to_owned()),
        ] {
            assert_eq!(signer().verify(&text, NOW), Err(TokenRefused::Foreign), "{what}");
        }
    }

    #[test]
    fn scopes_are_read_as_engines_write_them() {
        use Action::{Delete, Pull, Push};
        let all = |texts: &[&str]| -> Vec<(String, Vec<Action>)> {
            let scopes = Scope::parse_all(texts.iter().copied());
            scopes.into_iter().map(|scope| (scope.name, scope.actions)).collect()
        };
        let scope = |name: &str, actions: &[Action]| (name.to_owned(), actions.to_vec());
        assert_eq!(all(&["repository:a/b:pull"]), [scope("a/b", &[Pull])]);
        assert_eq!(
            all(&["repository:a:push,pull repository:b:pull"]),
            [scope("a", &[Pull, Push]), scope("b", &[Pull])]
        );
        assert_eq!(
            all(&["repository:a:*", "repository:b:delete"]),
            [scope("a", &[Pull, Push, Delete]), scope("b", &[Delete])]
        );
        assert_eq!(all(&["repository(plugin):a:pull"]), [scope("a", &[Pull])]);
        assert_eq!(all(&["repository:host:5000/a:pull"]), [scope("host:5000/a", &[Pull])]);
        assert_eq!(all(&["registry:catalog:*", "repository:a", "repository::pull", "", "x"]), []);
        assert_eq!(all(&["repository:a:admin"]), [scope("a", &[])]);
        assert_eq!(all(&[&"repository:a:pull ".repeat(1000)]).len(), MAX_SCOPES);
    }
}
