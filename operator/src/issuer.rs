//! Who signs the tokens of the cluster's service accounts, as the apiserver says. Cache servers are told, so that they can judge
//! such a token without asking anyone. May import `causes`.

use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::causes::chain;

/// Where the apiserver says who it is as an issuer.
const CONFIGURATION: &str = "/.well-known/openid-configuration";
/// Where it has its public keys.
const KEYS: &str = "/openid/v1/jwks";
/// Between two questions: keys are exchanged now and then, and overlap for longer.
const ASK_EVERY: Duration = Duration::from_mins(5);
/// Between two questions after a failure.
const RETRY: Duration = Duration::from_secs(15);
/// For both answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The apiserver did not answer, or refused.
    #[error("failed to ask the apiserver for {path}")]
    Ask {
        /// What was asked for.
        path: &'static str,
        /// What went wrong.
        source: Box<kube::Error>,
    },
    /// It did not answer in time.
    #[error("the apiserver did not say within {PATIENCE:?} who signs tokens of service accounts")]
    TimedOut,
    /// It names none.
    #[error("the apiserver names no issuer at {CONFIGURATION}; set its --service-account-issuer")]
    NoIssuer,
    /// It was asked a moment ago.
    #[error("the apiserver did not say who signs tokens of service accounts; it is asked again every {RETRY:?}")]
    NotNow,
}

/// What is known of the issuer. Asked only when a server needs it.
pub struct Issuer {
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asked: Option<Instant>,
    known: Option<String>,
}

impl Issuer {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, state: Mutex::default() }
    }

    /// `{"issuer": …, "jwks": {"keys": […]}}`. What was known last stays while the apiserver does not say.
    pub async fn text(&self) -> Result<String, Error> {
        let mut state = self.state.lock().await;
        let pause = if state.known.is_some() { ASK_EVERY } else { RETRY };
        if state.asked.is_some_and(|asked| asked.elapsed() < pause) {
            return state.known.clone().ok_or(Error::NotNow);
        }
        state.asked = Some(Instant::now());
        match timeout(PATIENCE, self.ask()).await.unwrap_or(Err(Error::TimedOut)) {
            Ok(text) => {
                state.known = Some(text.clone());
                Ok(text)
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "failed to learn who signs tokens of service accounts");
                state.known.clone().ok_or(error)
            }
        }
    }

    async fn ask(&self) -> Result<String, Error> {
        let (configuration, keys) = (self.get(CONFIGURATION).await?, self.get(KEYS).await?);
        file(&configuration, &keys)
    }

    async fn get(&self, path: &'static str) -> Result<Value, Error> {
        let failed = |source| Error::Ask { path, source: Box::new(source) };
        let request = Request::get(path).body(Vec::new()).map_err(|error| failed(kube::Error::HttpError(error)))?;
        self.client.request(request).await.map_err(failed)
    }
}

/// The two answers as one file, as the cache server reads it.
fn file(configuration: &Value, keys: &Value) -> Result<String, Error> {
    let issuer = configuration["issuer"].as_str().filter(|issuer| !issuer.is_empty()).ok_or(Error::NoIssuer)?;
    Ok(json!({"issuer": issuer, "jwks": {"keys": keys["keys"]}}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_issuer_and_its_keys_and_nothing_else() {
        let keys = json!({"keys": [{"kid": "a"}], "other": 1});
        let text = file(&json!({"issuer": "https://kubernetes.default.svc", "jwks_uri": "x"}), &keys);
        assert_eq!(
            text.expect("should be a file"),
            r#"{"issuer":"https://kubernetes.default.svc","jwks":{"keys":[{"kid":"a"}]}}"#
        );
        assert!(matches!(file(&json!({}), &keys), Err(Error::NoIssuer)));
    }
}
