//! Where tokens are fetched: GET with Basic (distribution-spec, "token authentication") and POST with a form (OAuth 2).
//!
//! Scopes that the caller may not use are left out, not refused: the answer then is what the token is for.
//!
//! There are no refresh tokens: one that outlives the key in the data folder cannot be made, and a server on an emptied disk
//! would log everyone out who holds one. Engines keep the password instead. A client that has nothing but a refresh token
//! (`identitytoken`) can give a service account's token as one.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::json;
use url::form_urlencoded;

use super::{
    body::Body,
    error::ApiError,
    gate::{Gate, meant, target},
    mark,
    report::Report,
};
use crate::{
    access::{Action, Caller, Granted, Presented, Refused, SHARED_SERVICE, Scope, Token, User, may, token::LIFE},
    credentials::Secret,
    oci::{ErrorCode, ImageName},
    repository::Repository,
};

/// The largest form. A service account's token takes 2 KiB.
const MAX_FORM: usize = 32 * 1024;

/// What a request for a token says.
#[derive(Default)]
struct Wanted {
    service: Option<String>,
    scopes: Vec<String>,
    grant: Option<String>,
    user: Option<String>,
    password: Option<Secret>,
    refresh_token: Option<Secret>,
}

impl Wanted {
    /// Reads a query or a form.
    fn read(&mut self, text: &[u8]) {
        for (key, value) in form_urlencoded::parse(text) {
            match key.as_ref() {
                "service" => self.service = Some(value.into_owned()),
                "scope" => self.scopes.push(value.into_owned()),
                "grant_type" => self.grant = Some(value.into_owned()),
                "username" => self.user = Some(value.into_owned()),
                "password" => self.password = Some(Secret::new(&value)),
                "refresh_token" => self.refresh_token = Some(Secret::new(&value)),
                // `account`, `client_id` and the like say nothing that the credentials do not say.
                _ => {}
            }
        }
    }
}

/// Answers a request for a token. `home` is the service of the way by which it came.
pub(super) async fn answer(
    gate: &Gate<'_>,
    home: &str,
    request: &Request<()>,
    body: Incoming,
    report: &mut Report,
) -> Result<Response<Body>, ApiError> {
    report.kind("token", "");
    let mut wanted = Wanted::default();
    let found = match *request.method() {
        Method::GET => {
            wanted.read(request.uri().query().unwrap_or_default().as_bytes());
            gate.caller().await
        }
        Method::POST => {
            let patience = gate.current.settings.server.limits.request_header.get();
            wanted.read(&form(request, body, patience).await?);
            gate.check(&credentials(&wanted)?).await
        }
        _ => return Err(not_offered(request.method())),
    };
    let service = service(gate, home, wanted.service.as_deref())?;
    let user = match found {
        Ok(Caller::Anonymous) => None,
        Ok(Caller::User(user)) => Some(user),
        // A token gives no other token: it would never end.
        Ok(Caller::Token(_)) => return Err(not_for_a_token()),
        Err(why) => return Err(refused(gate, why)),
    };
    if let Some(user) = &user {
        report.user(user.name());
    }
    let scopes = Scope::parse_all(wanted.scopes.iter().map(String::as_str));
    let access = scopes.into_iter().filter_map(|scope| granted(gate, &service, user.as_ref(), scope)).collect();
    let token = gate.server.logins.issue(&Token { user, service, access });
    let token = token.ok_or_else(|| {
        let message = "failed to sign a token".to_owned();
        ApiError::new(ErrorCode::Unknown, StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    Ok(response(&token))
}

/// What of a scope the caller may use.
fn granted(gate: &Gate<'_>, service: &str, user: Option<&User>, scope: Scope) -> Option<Granted> {
    // A mount may name an image of another repository, with that one's name in front.
    let [here, elsewhere] = [service, SHARED_SERVICE].map(|service| meant(gate.current, service, &scope.name));
    let allowed = |found: &Option<(&Repository, ImageName)>, action| {
        found.as_ref().is_some_and(|(repository, image)| {
            let known = repository.named(image);
            may(&gate.auth().permissions, &target(repository), user, action, Some(&known))
        })
    };
    let is_granted =
        |action: &Action| allowed(&here, *action) || (*action == Action::Pull && allowed(&elsewhere, Action::Pull));
    let actions: Vec<_> = scope.actions.into_iter().filter(is_granted).collect();
    (!actions.is_empty()).then_some(Granted { name: scope.name, actions })
}

/// The service that a token is wanted for: one of ours, by default that of the way in.
fn service(gate: &Gate<'_>, home: &str, wanted: Option<&str>) -> Result<String, ApiError> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty() && *wanted != home) else {
        return Ok(home.to_owned());
    };
    let is_repository = || wanted.parse().is_ok_and(|name| gate.current.repository(&name).is_some());
    if wanted == SHARED_SERVICE || is_repository() {
        return Ok(wanted.to_owned());
    }
    let message =
        format!("there is no service {wanted:?} here; ask for the one that the challenge (WWW-Authenticate) names");
    Err(ApiError::new(ErrorCode::NameUnknown, StatusCode::BAD_REQUEST, message))
}

async fn form(request: &Request<()>, body: Incoming, patience: Duration) -> Result<Bytes, ApiError> {
    let bad = |status, message: &str| ApiError::new(ErrorCode::Unsupported, status, message.to_owned());
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_form = kind
        .split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
    if !is_form {
        return Err(bad(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/x-www-form-urlencoded"));
    }
    match tokio::time::timeout(patience, Limited::new(body, MAX_FORM).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(bad(StatusCode::PAYLOAD_TOO_LARGE, "the form is larger than any that is needed"))
        }
        Ok(Err(_)) => Err(bad(StatusCode::BAD_REQUEST, "the form did not come whole")),
        Err(_) => Err(bad(StatusCode::REQUEST_TIMEOUT, "the form did not come in time (limits.requestHeader)")),
    }
}

/// What a form presents.
fn credentials(wanted: &Wanted) -> Result<Presented, ApiError> {
    let bad = |message: &str| Err(ApiError::new(ErrorCode::Unsupported, StatusCode::BAD_REQUEST, message.to_owned()));
    match wanted.grant.as_deref() {
        Some("password") => match (&wanted.user, &wanted.password) {
            (Some(user), Some(password)) => Ok(Presented::Password { user: user.clone(), password: password.clone() }),
            _ => bad("the grant password needs username and password"),
        },
        Some("refresh_token") => match &wanted.refresh_token {
            Some(token) => Ok(Presented::Bearer(token.clone())),
            None => bad("the grant refresh_token needs refresh_token"),
        },
        _ => bad("grant_type must be password or refresh_token"),
    }
}

/// How to log in here: there is no token to fetch for this.
const CHALLENGE: &str = "Basic realm=\"entrepot\"";

fn refused(gate: &Gate<'_>, why: Refused) -> ApiError {
    gate.refused(why, "", None).with_challenge_if_any(CHALLENGE)
}

fn not_for_a_token() -> ApiError {
    let message =
        "a token is no login: log in with a user name and a password, or a service account's token".to_owned();
    ApiError::new(ErrorCode::Unauthorized, StatusCode::UNAUTHORIZED, message).with_challenge(CHALLENGE.to_owned())
}

fn not_offered(method: &Method) -> ApiError {
    let message = format!("{method} is not offered here: tokens are fetched by GET, or by POST with a form");
    ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message).allowing("GET, POST")
}

fn response(token: &str) -> Response<Body> {
    let content =
        json!({"token": token, "access_token": token, "expires_in": LIFE, "issued_at": Timestamp::now().to_string()});
    let mut response = Response::new(Body::bytes(content.to_string().into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    mark(&mut response);
    response
}
