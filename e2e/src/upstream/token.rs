//! The token server: RS256 tokens whose certificate (`x5c`) Debian's docker-registry is told to trust.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256};
use serde::Serialize;
use serde_json::json;
use url::form_urlencoded;

use super::{
    answer::Answer,
    content::error,
    request::Request,
    users::{self, User},
};

/// Who issues the tokens.
pub const ISSUER: &str = "entrepot-e2e";
/// Whom they are for.
pub const SERVICE: &str = "registry.docker.io";
/// How long a token lives, in seconds: as Docker Hub's.
const LIFETIME: u64 = 300;

/// Issues tokens to the [`users`] and remembers what each is good for.
pub struct TokenServer {
    key: EncodingKey,
    certificate_pem: String,
    x5c: String,
    issued: Mutex<HashMap<String, Issued>>,
    serial: AtomicU64,
}

impl std::fmt::Debug for TokenServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TokenServer").finish_non_exhaustive()
    }
}

/// Whose a token is, and what it is good for.
struct Issued {
    holder: Option<User>,
    grants: Vec<Grant>,
}

/// What a token lets its bearer do with one image.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct Grant {
    r#type: String,
    name: String,
    actions: Vec<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
    access: &'a [Grant],
}

impl TokenServer {
    /// A token server with a new key; its tokens live as long as Docker Hub's.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).context("failed to make the token key")?;
        let mut params = CertificateParams::new(Vec::<String>::new()).context("no names")?;
        params.distinguished_name.push(DnType::CommonName, ISSUER);
        let certificate = params.self_signed(&key).context("failed to sign the token certificate")?;
        Ok(Self {
            key: EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes()).context("failed to use the token key")?,
            certificate_pem: certificate.pem(),
            x5c: STANDARD.encode(certificate.der()),
            issued: Mutex::default(),
            serial: AtomicU64::new(0),
        })
    }

    /// The certificate that registries must trust (`rootcertbundle`).
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Whether a token issued here lets its bearer pull the image.
    pub fn may_pull(&self, token: &str, image: &str) -> bool {
        let issued = self.lock();
        let grants = issued.get(token).map(|issued| issued.grants.as_slice()).unwrap_or_default();
        grants.iter().any(|grant| grant.name == image && grant.actions.iter().any(|action| action == "pull"))
    }

    /// Whether a token was issued here, whatever it is good for.
    pub fn knows(&self, token: &str) -> bool {
        self.lock().contains_key(token)
    }

    /// The account to which a token was issued here; nothing for what is no such token, and for those of nobody in particular.
    pub fn holder(&self, token: &str) -> Option<&'static str> {
        self.lock().get(token)?.holder.map(|user| user.name)
    }

    /// Answers a request for a token: GET with Basic, or POST with a form, as docker and containerd send them.
    pub fn answer(&self, request: &Request) -> Result<Answer> {
        let parameters = parameters(request);
        let Ok(user) = caller(request, &parameters) else {
            return Ok(error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"tokens\""));
        };
        let scopes = parameters.iter().filter(|(name, _)| name == "scope");
        let grants: Vec<_> =
            scopes.flat_map(|(_, scopes)| scopes.split(' ')).filter_map(|scope| grant(user, scope)).collect();
        let token = self.issue(user, grants)?;
        let body = json!({"token": token, "access_token": token, "expires_in": LIFETIME});
        Ok(Answer::text(200, "application/json", body.to_string()))
    }

    fn issue(&self, user: Option<User>, grants: Vec<Grant>) -> Result<String> {
        let now = u64::try_from(jiff::Timestamp::now().as_second()).context("a clock before 1970")?;
        let header = Header { x5c: Some(vec![self.x5c.clone()]), ..Header::new(Algorithm::RS256) };
        let claims = Claims {
            iss: ISSUER,
            sub: user.map_or("", |user| user.name),
            aud: SERVICE,
            exp: now + LIFETIME,
            nbf: now.saturating_sub(10),
            iat: now,
            jti: self.serial.fetch_add(1, Ordering::SeqCst).to_string(),
            access: &grants,
        };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).context("failed to sign a token")?;
        self.lock().insert(token.clone(), Issued { holder: user, grants });
        Ok(token)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Issued>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name and password of a Basic `Authorization` header.
#[must_use]
pub fn basic(authorization: &str) -> Option<(String, String)> {
    let encoded = authorization.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

/// A name and password that do not belong together.
struct WrongPassword;

/// Who asks: a user, or nobody in particular.
fn caller(request: &Request, parameters: &[(String, String)]) -> Result<Option<User>, WrongPassword> {
    let known = |name: &str, password: &str| users::authenticate(name, password).map(Some).ok_or(WrongPassword);
    if let Some(authorization) = request.authorization() {
        let (name, password) = basic(authorization).ok_or(WrongPassword)?;
        return known(&name, &password);
    }
    let field = |wanted: &str| {
        let found = parameters.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    match (field("username"), field("password")) {
        (Some(name), Some(password)) => known(name, password),
        _ => Ok(None),
    }
}

fn parameters(request: &Request) -> Vec<(String, String)> {
    let query = form_urlencoded::parse(request.query.as_bytes());
    let form = form_urlencoded::parse(&request.body);
    query.chain(form).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

/// What the user gets of a scope `repository:<image>:<actions>`; images are only ever pulled here.
fn grant(user: Option<User>, scope: &str) -> Option<Grant> {
    let (kind, rest) = scope.split_once(':')?;
    let (image, actions) = rest.rsplit_once(':')?;
    let wants_pull = actions.split(',').any(|action| action == "pull" || action == "*");
    let granted = kind == "repository" && wants_pull && users::may_pull(user, image);
    granted.then(|| Grant { r#type: kind.to_owned(), name: image.to_owned(), actions: vec!["pull".to_owned()] })
}
