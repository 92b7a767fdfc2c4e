//! Tokens of the upstream's token server: fetched once for all who need the same, renewed before they expire, given to
//! nobody else. May import `challenge`, `realm` and `exchange`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::AUTHORIZATION};
use quick_cache::sync::Cache;
use reqwest::Response;
use serde::Deserialize;

use super::{
    error::{Error, Slow, Violation},
    exchange::{Deadline, Wire, common_headers},
    hosts::HostList,
    rate_limit::retry_after,
    realm,
};
use crate::{credentials::Credentials, oci::ImageName};

/// How many tokens are kept at most: one for each image name that is asked for.
const MOST_TOKENS: usize = 4096;
/// How large a token server's answer may be.
const LARGEST_ANSWER: usize = 256 * 1024;
/// What the token specification says when `expires_in` is missing.
const DEFAULT_LIFE: u64 = 60;
/// No token is believed to live longer.
const LONGEST_LIFE: u64 = 24 * 60 * 60;
/// After a failed early renewal the next one waits so long.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);
/// How long an early renewal, for which nobody waits, may take.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);

/// What a token is for. The identity is not part of it: a [`Tokens`] has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Purpose {
    realm: String,
    service: Option<String>,
    /// None: no image, only whether we may log in.
    scope: Option<String>,
}

/// The value of an `Authorization` header.
#[derive(Clone, Debug)]
pub(super) struct Token {
    header: HeaderValue,
    renew_at: Instant,
    expires_at: Instant,
}

impl Token {
    /// What to send; marked as sensitive, so it is never printed.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// One token and who is fetching it.
#[derive(Default)]
struct Slot {
    token: Mutex<Option<Token>>,
    /// Held by the one who asks the token server; it keeps why the last attempt failed, for those who waited.
    flight: Arc<tokio::sync::Mutex<Option<Failure>>>,
}

struct Failure {
    at: Instant,
    error: Error,
}

impl Slot {
    fn current(&self, now: Instant) -> Option<Token> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|token| now < token.expires_at)
    }

    fn keep(&self, token: &Token) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
    }

    fn forget(&self, rejected: &Token) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_ref().is_some_and(|token| token.header == rejected.header) {
            *token = None;
        }
    }
}

/// The tokens of one identity at one upstream.
pub(super) struct Tokens {
    wire: Arc<Wire>,
    credentials: Option<Credentials>,
    token_hosts: HostList,
    slots: Cache<Purpose, Arc<Slot>>,
}

impl Tokens {
    /// No tokens yet.
    pub(super) fn new(wire: Arc<Wire>, credentials: Option<Credentials>, token_hosts: HostList) -> Self {
        Self { wire, credentials, token_hosts, slots: Cache::new(MOST_TOKENS) }
    }

    /// The `Authorization` for an upstream that wants user name and password, if there are any.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        self.credentials.as_ref().and_then(basic)
    }

    /// Whether nobody is named.
    pub(super) const fn is_anonymous(&self) -> bool {
        self.credentials.is_none()
    }

    /// A token to pull `image`, or for nothing but to be known, and whether it was fetched just now. `rejected` is one that the upstream refused.
    pub(super) async fn get(
        self: &Arc<Self>,
        realm: &str,
        service: Option<&str>,
        image: Option<&ImageName>,
        rejected: Option<&Token>,
        deadline: Deadline,
    ) -> Result<(Token, bool), Error> {
        let purpose = Purpose {
            realm: realm.to_owned(),
            service: service.map(ToOwned::to_owned),
            scope: image.map(|image| format!("repository:{image}:pull")),
        };
        let slot = self.slot(&purpose);
        if let Some(rejected) = rejected {
            slot.forget(rejected);
        }
        let began = Instant::now();
        if let Some(token) = slot.current(began) {
            if began >= token.renew_at {
                self.renew(purpose, &slot, began);
            }
            return Ok((token, false));
        }
        let mut flight = deadline.hold(Slow::Token, slot.flight.lock()).await?;
        // Those who waited share what the one who asked found out.
        if let Some(token) = slot.current(Instant::now()) {
            return Ok((token, true));
        }
        if let Some(failure) = flight.as_ref().filter(|failure| failure.at >= began) {
            return Err(failure.error.clone());
        }
        let fetched = self.fetch(&purpose, deadline).await;
        *flight = fetched.as_ref().err().map(|error| Failure { at: Instant::now(), error: error.clone() });
        let token = fetched?;
        slot.keep(&token);
        Ok((token, true))
    }

    fn slot(&self, purpose: &Purpose) -> Arc<Slot> {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::new(Slot::default()));
        match self.slots.get_or_insert_with(purpose, fresh) {
            Ok(slot) => slot,
            Err(never) => match never {},
        }
    }

    /// Renews a token in the background while the old one still serves.
    fn renew(self: &Arc<Self>, purpose: Purpose, slot: &Arc<Slot>, now: Instant) {
        let Ok(mut flight) = Arc::clone(&slot.flight).try_lock_owned() else { return };
        if flight.as_ref().is_some_and(|failure| now < failure.at + RENEWAL_PAUSE) {
            return;
        }
        let (tokens, slot) = (Arc::clone(self), Arc::clone(slot));
        tokio::spawn(async move {
            match tokens.fetch(&purpose, Deadline::after(RENEWAL_LIMIT)).await {
                Ok(token) => {
                    slot.keep(&token);
                    *flight = None;
                }
                Err(error) => {
                    tracing::debug!(%error, host = realm::host(&purpose.realm), "early renewal of a token failed");
                    *flight = Some(Failure { at: Instant::now(), error });
                }
            }
        });
    }

    async fn fetch(&self, purpose: &Purpose, deadline: Deadline) -> Result<Token, Error> {
        let permission =
            realm::judge(&purpose.realm, self.wire.upstream(), &self.token_hosts, self.credentials.is_some())
                .map_err(|why| Error::ForbiddenRealm { host: realm::host(&purpose.realm), why })?;
        let mut url = permission.url;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &purpose.service {
                query.append_pair("service", service);
            }
            if let Some(scope) = &purpose.scope {
                query.append_pair("scope", scope);
            }
        }
        let response =
            self.wire.send(&Method::GET, &url, self.headers(), permission.reach, Slow::Token, deadline).await?;
        judge_status(&response)?;
        let asked_at = Instant::now();
        let bytes = deadline.hold(Slow::Token, read(response)).await??;
        parse(&bytes, asked_at).ok_or(Error::Protocol(Violation::Token))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = common_headers();
        if let Some(basic) = self.basic() {
            headers.insert(AUTHORIZATION, basic);
        }
        headers
    }
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let pair = format!("{}:{}", credentials.username, credentials.password.expose());
    sensitive(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn judge_status(response: &Response) -> Result<(), Error> {
    let wait = || retry_after(response.headers(), SystemTime::now());
    match response.status() {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Err(Error::Denied),
        StatusCode::TOO_MANY_REQUESTS => Err(Error::RateLimited { retry_after: wait() }),
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Err(Error::Unavailable { status: status.as_u16(), retry_after: wait() })
        }
        _ => Err(Error::Protocol(Violation::Token)),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| Error::Broken)? {
        if bytes.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Error::Protocol(Violation::Token));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A token server's answer. It has no `Debug`: it holds a secret.
#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn parse(bytes: &[u8], asked_at: Instant) -> Option<Token> {
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let text = [answer.token, answer.access_token].into_iter().flatten().find(|text| !text.is_empty())?;
    let life = answer.expires_in.filter(|life| *life > 0).unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE);
    let life = Duration::from_secs(life);
    Some(Token {
        header: sensitive(&format!("Bearer {text}"))?,
        renew_at: asked_at + life.mul_f64(0.8),
        expires_at: asked_at + life,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_answers_are_read() {
        let now = Instant::now();
        for (text, expected) in [
            (r#"{"token":"t"}"#, Some(("Bearer t", 60))),
            (r#"{"token":"t","access_token":"a","expires_in":300}"#, Some(("Bearer t", 300))),
            (r#"{"access_token":"a","expires_in":0}"#, Some(("Bearer a", 60))),
            (r#"{"token":"","access_token":"a"}"#, Some(("Bearer a", 60))),
            (r#"{"token":"t","expires_in":99999999}"#, Some(("Bearer t", LONGEST_LIFE))),
            (r#"{"token":"a\nb"}"#, None),
            (r#"{"expires_in":300}"#, None),
            ("<html>", None),
        ] {
            let token = parse(text.as_bytes(), now);
            let got =
                token.as_ref().map(|token| (token.header.to_str().expect("text"), (token.expires_at - now).as_secs()));
            assert_eq!(got, expected, "{text}");
            if let Some(token) = token {
                assert!(!format!("{token:?}").contains("Bearer"));
                assert!(token.renew_at < token.expires_at);
            }
        }
    }
}
