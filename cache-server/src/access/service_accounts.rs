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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use aws_lc_rs::{
        rand::SystemRandom,
        rsa::{KeyPair as RsaKeyPair, KeySize},
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256},
    };
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    enum Signing {
        Rsa(Box<RsaKeyPair>),
        Ec(EcdsaKeyPair),
    }

    impl Signing {
        fn rsa() -> Self {
            Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
        }

        fn ec() -> Self {
            Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        const fn algorithm(&self) -> &'static str {
            match self {
                Self::Rsa(_) => "RS256",
                Self::Ec(_) => "ES256",
            }
        }

        fn jwk(&self, id: &str) -> Value {
            let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            match self {
                Self::Rsa(pair) => {
                    let components = aws_lc_rs::signature::RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                    json!({"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256", "n": text(&components.n), "e": text(&components.e)})
                }
                Self::Ec(pair) => {
                    let point = pair.public_key().as_ref();
                    json!({"kty": "EC", "kid": id, "use": "sig", "alg": "ES256", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
                }
            }
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let message = format!("{}.{}", part(header), part(claims));
            let random = SystemRandom::new();
            let signature = match self {
                Self::Rsa(pair) => {
                    let mut signature = vec![0; pair.public_modulus_len()];
                    pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                    signature
                }
                Self::Ec(pair) => pair.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            };
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
        }

        fn token(&self, id: &str, claims: &Value) -> String {
            self.sign(&json!({"alg": self.algorithm(), "kid": id, "typ": "JWT"}), claims)
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": ["entrepot"], "sub": "system:serviceaccount:team1:ci",
            "exp": NOW + 600, "nbf": NOW, "iat": NOW, "kubernetes.io": {"namespace": "team1"},
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut claims = claims();
        claims[field] = value;
        claims
    }

    fn issuer(keys: &[Value]) -> Issuer {
        Issuer::parse(&json!({"issuer": ISSUER, "jwks": {"keys": keys}}).to_string()).unwrap()
    }

    #[test]
    fn tokens_of_the_cluster_are_known() {
        let (rsa, ec) = (Signing::rsa(), Signing::ec());
        let strange =
            json!({"kty": "OKP", "crv": "Ed25519", "kid": "c", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let unknown = json!({"kty": "new"});
        let issuer = issuer(&[strange, unknown, rsa.jwk("a"), ec.jwk("b")]);
        for (signing, id) in [(&rsa, "a"), (&ec, "b")] {
            let user = issuer.verify(&signing.token(id, &claims()), NOW).unwrap();
            assert_eq!(user, User::named("system:serviceaccount:team1:ci"));
            assert!(user.is_service_account());
            assert!(issuer.verify(&signing.token(id, &with("aud", json!("entrepot"))), NOW).is_ok());
            let unnamed = signing.sign(&json!({"alg": signing.algorithm()}), &claims());
            assert!(issuer.verify(&unnamed, NOW).is_ok(), "a token may leave out which key");
        }
    }

    #[test]
    fn what_is_wrong_with_a_token_refuses_it() {
        let (rsa, ec, other) = (Signing::rsa(), Signing::ec(), Signing::ec());
        let issuer = issuer(&[rsa.jwk("a"), ec.jwk("b")]);
        for (claims, expected) in [
            (with("iss", json!("https://elsewhere")), TokenRefused::Issuer),
            (with("aud", json!(["https://kubernetes.default.svc"])), TokenRefused::Audience),
            (with("aud", json!("entrepot2")), TokenRefused::Audience),
            (with("exp", json!(NOW)), TokenRefused::Time),
            (with("nbf", json!(NOW + SKEW + 1)), TokenRefused::Time),
            (with("sub", json!("alice")), TokenRefused::Subject),
            (with("sub", json!("system:node:node1")), TokenRefused::Subject),
            (with("sub", json!("system:serviceaccount:team1")), TokenRefused::Subject),
            (with("sub", json!("system:serviceaccount::ci")), TokenRefused::Subject),
            (with("sub", json!("system:serviceaccount:team1:ci:x")), TokenRefused::Subject),
        ] {
            assert_eq!(issuer.verify(&ec.token("b", &claims), NOW), Err(expected), "{claims}");
        }
        let good = ec.token("b", &claims());
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
        let body = signed.split_once('.').unwrap().1;
        // The public key as the secret of an HMAC: what a confused verifier would take.
        let public = ec.jwk("b")["x"].as_str().unwrap().to_owned();
        let confused = jsonwebtoken::encode(
            &jsonwebtoken::Header::new(Algorithm::HS256),
            &claims(),
            &jsonwebtoken::EncodingKey::from_secret(public.as_bytes()),
        );
        for (what, token) in [
            ("another key", other.token("b", &claims())),
            ("the id of another key", ec.token("a", &claims())),
            ("an unknown key", ec.token("z", &claims())),
            ("no signature", format!("{signed}.")),
            ("no algorithm", format!("{none}.{body}.{signature}")),
            ("the algorithm of another key", ec.sign(&json!({"alg": "RS256", "kid": "b"}), &claims())),
            ("a shared secret", confused.unwrap()),
            (
                "a missing exp",
                ec.token("b", &json!({"iss": ISSUER, "aud": "entrepot", "sub": "system:serviceaccount:a:b"})),
            ),
            ("no token", "hunter2".to_owned()),
        ] {
            assert_eq!(issuer.verify(&token, NOW), Err(TokenRefused::Signature), "{what}");
        }
    }

    #[test]
    fn a_file_without_a_usable_key_is_a_mistake() {
        let parse = |value: Value| Issuer::parse(&value.to_string()).map(drop);
        assert!(matches!(Issuer::parse("{"), Err(IssuerError::Json(_))));
        assert!(matches!(parse(json!({"issuer": "x"})), Err(IssuerError::Json(_))));
        assert!(matches!(parse(json!({"issuer": "", "jwks": {"keys": []}})), Err(IssuerError::NoIssuer)));
        assert!(matches!(
            parse(json!({"issuer": "x", "jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}})),
            Err(IssuerError::NoKey)
        ));
    }
}
