//! Tokens of Kubernetes service accounts, checked against the cluster's public keys without asking anybody. Pure.
//! May import `caller`.

use std::{fmt, sync::Arc};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm},
};
use serde::Deserialize;

use super::caller::User;

/// For whom a token must be made.
pub const AUDIENCE: &str = "entrepot";

/// By how much clocks may differ for a token that is not valid yet.
const SKEW: u64 = 60;

/// Who signs a cluster's tokens.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    text: String,
    issuer: String,
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// Why a file does not name an issuer.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Not the JSON that is expected.
    #[error("must be JSON with issuer and jwks, as the operator writes it")]
    Json(#[source] serde_json::Error),
    /// Nothing to compare with.
    #[error("issuer must not be empty")]
    NoIssuer,
    /// No key that could be used.
    #[error("jwks must have at least one key for RS256 or ES256")]
    NoKey,
}

/// Why a token is none of a service account here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    /// Not signed by a key of the issuer.
    #[error("it is not signed by a key of this cluster")]
    Signature,
    /// Of another issuer.
    #[error("it is of another issuer")]
    Issuer,
    /// For someone else.
    #[error("it is not for the audience entrepot")]
    Audience,
    /// Not valid any more, or not yet.
    #[error("it has expired or is not valid yet")]
    Time,
    /// Of something that is no service account.
    #[error("it is not of a service account")]
    Subject,
}

#[derive(Deserialize)]
struct File {
    issuer: String,
    jwks: Keys,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    sub: String,
    exp: u64,
    #[serde(default)]
    nbf: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(one) => one == wanted,
            Self::Many(many) => many.iter().any(|one| one == wanted),
        }
    }
}

impl Issuer {
    /// Reads `{"issuer": …, "jwks": {"keys": […]}}`. Keys of other algorithms are left out.
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let File { issuer, jwks } = serde_json::from_str(text).map_err(IssuerError::Json)?;
        if issuer.is_empty() {
            return Err(IssuerError::NoIssuer);
        }
        let keys: Vec<Key> = jwks.keys.into_iter().filter_map(Key::parse).collect();
        if keys.is_empty() {
            return Err(IssuerError::NoKey);
        }
        Ok(Self(Arc::new(Inner { text: text.to_owned(), issuer, keys })))
    }

    /// The service account whose token this is. `now` in seconds since 1970.
    pub fn verify(&self, token: &str, now: u64) -> Result<User, TokenRefused> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenRefused::Signature)?;
        let fits = |key: &&Key| key.algorithm == header.alg && (header.kid.is_none() || header.kid == key.id);
        let claims =
            self.0.keys.iter().filter(fits).find_map(|key| key.claims(token)).ok_or(TokenRefused::Signature)?;
        if claims.iss != self.0.issuer {
            return Err(TokenRefused::Issuer);
        }
        if !claims.aud.has(AUDIENCE) {
            return Err(TokenRefused::Audience);
        }
        if claims.exp <= now || claims.nbf > now + SKEW {
            return Err(TokenRefused::Time);
        }
        let is_one = claims.sub.strip_prefix("system:serviceaccount:").is_some_and(|rest| {
            rest.split_once(':').is_some_and(|(namespace, name)| is_name(namespace) && is_name(name))
        });
        if is_one { Ok(User::named(&claims.sub)) } else { Err(TokenRefused::Subject) }
    }
}

/// A DNS subdomain, which names of namespaces and service accounts are.
fn is_name(text: &str) -> bool {
    crds::names::is_secret_name(text) && !text.is_empty()
}

impl Key {
    fn parse(key: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
            (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
            (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES256))
                if curve.curve == EllipticCurve::P256 =>
            {
                Algorithm::ES256
            }
            _ => return None,
        };
        Some(Self { id: jwk.common.key_id.clone(), algorithm, decoding: DecodingKey::from_jwk(&jwk).ok()? })
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let mut validation = Validation::new(self.algorithm);
        // Judged by `verify`, which is told the time.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Some(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims)
    }
}

impl PartialEq for Issuer {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Issuer({}, {} keys)", self.0.issuer, self.0.keys.len())
    }
}
