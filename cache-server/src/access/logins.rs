//! Logins: what a request presents becomes a caller. Passwords are checked on other threads, a few at a time.
//! May import the other files of `access` and `credentials`.

use std::{
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::hmac;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::{
    Auth,
    attempts::Attempts,
    caller::{Caller, Presented, User},
    htpasswd::Challenge,
    key::token_key,
    token::{Signer, Token, TokenRefused},
};
use crate::credentials::Secret;

/// How many passwords that were right are remembered.
const REMEMBERED: usize = 4096;

/// Why a login is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody can log in here.
    #[error("this server has no logins; give its CacheServer auth")]
    NoLogins,
    /// Not the password of that user, or no such user.
    #[error("the user name or the password is wrong")]
    Wrong,
    /// Too many failures from that address.
    #[error("too many logins failed from this address; try again in {} s", .0.as_secs().max(1))]
    TooMany(Duration),
    /// No token of ours, and none of a service account here.
    #[error("{0}")]
    Token(TokenRefused),
    /// An `Authorization` that is neither Basic nor Bearer, or broken.
    #[error("the Authorization header must be Basic or Bearer")]
    Unreadable,
}

/// Checks logins for a server, whatever its settings are at the time.
pub struct Logins {
    signer: Signer,
    attempts: Attempts,
    /// By what passwords are remembered: never as they are.
    remembering: hmac::Key,
    remembered: Cache<[u8; 32], ()>,
    hashing: Arc<Semaphore>,
}

impl Logins {
    /// With the token key of a data folder.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        // Half of the processors: transfers go on while someone guesses.
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            signer: Signer::new(&token_key(data)),
            attempts: Attempts::default(),
            remembering: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()),
            remembered: Cache::new(REMEMBERED),
            hashing: Arc::new(Semaphore::new(processors.div_ceil(2))),
        }
    }

    /// Who it is that presents this.
    pub async fn caller(&self, auth: &Auth, presented: &Presented, address: IpAddr) -> Result<Caller, Refused> {
        match presented {
            Presented::Nothing => Ok(Caller::Anonymous),
            Presented::Password { user, password } => {
                self.password(auth, user, password, address).await.map(Caller::User)
            }
            Presented::Bearer(token) => self.bearer(auth, token),
            Presented::Unreadable => Err(Refused::Unreadable),
        }
    }

    /// The user of a name and a password. A service account's token is a password too, with any name.
    pub async fn password(&self, auth: &Auth, name: &str, password: &Secret, address: IpAddr) -> Result<User, Refused> {
        if !auth.has_logins() {
            return Err(Refused::NoLogins);
        }
        if let Some(user) = service_account(auth, password) {
            return Ok(user);
        }
        let challenge = auth.users.as_ref().map(|users| users.challenge(name));
        if let Some(challenge) = &challenge
            && self.remembered.get(&self.key(name, password, challenge)).is_some()
        {
            return Ok(User::named(name));
        }
        self.attempts.begin(address, Instant::now()).map_err(Refused::TooMany)?;
        let Some(challenge) = challenge else { return Err(Refused::Wrong) };
        let key = self.key(name, password, &challenge);
        if !self.accepts(challenge, password.clone()).await {
            return Err(Refused::Wrong);
        }
        self.attempts.succeeded(address);
        self.remembered.insert(key, ());
        Ok(User::named(name))
    }

    /// Who has this token: one of ours, or a service account's own.
    pub fn bearer(&self, auth: &Auth, token: &Secret) -> Result<Caller, Refused> {
        match self.signer.verify(token.expose(), seconds()) {
            // Someone who was removed since is gone at once.
            Ok(ours) if ours.user.as_ref().is_none_or(|user| auth.knows(user)) => Ok(Caller::Token(ours)),
            Ok(_) => Err(Refused::Token(TokenRefused::Expired)),
            Err(refused) => service_account(auth, token).map(Caller::User).ok_or(Refused::Token(refused)),
        }
    }

    /// Issues a token. Nothing only if the cryptography fails.
    #[must_use]
    pub fn issue(&self, token: &Token) -> Option<String> {
        self.signer.issue(token, seconds())
    }

    async fn accepts(&self, challenge: Challenge, password: Secret) -> bool {
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else { return false };
        let check = move || {
            let accepted = challenge.accepts(password.expose());
            drop(permit);
            accepted
        };
        tokio::task::spawn_blocking(check).await.unwrap_or(false)
    }

    /// With the hash in it, a changed password is forgotten by itself.
    fn key(&self, user: &str, password: &Secret, challenge: &Challenge) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.remembering);
        for part in [user, challenge.hash(), password.expose()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.sign().as_ref());
        key
    }
}

fn service_account(auth: &Auth, token: &Secret) -> Option<User> {
    auth.issuer.as_ref()?.verify(token.expose(), seconds()).ok()
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
