//! Users and their passwords, as Apache's `htpasswd -B` writes them. Pure; may import nothing of ours.

use std::{collections::BTreeMap, fmt, sync::Arc};

/// The highest cost of a hash: 15 takes seconds, and whoever knows a user's name could ask for them.
const MAX_COST: u32 = 14;

/// What is hashed against when there is no such user: of cost 0, which is replaced.
const DECOY: &str = "$2b$00$abcdefghijklmnopqrstuuM6pLkUz4oLKq2AGVhoDbWBKKDdDKSC2";

/// The users of an htpasswd file.
///
/// Invariants: at least one; names are not empty and have no colon; each hash is bcrypt of cost 4 to 14.
#[derive(Clone, PartialEq, Eq)]
pub struct Users {
    hashes: Arc<BTreeMap<String, Arc<str>>>,
    decoy: Arc<str>,
}

/// Why a text is no list of users. Names the line, and never shows what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    /// No `user:hash`.
    #[error("line {0} must be a user name, a colon and a bcrypt hash, as `htpasswd -B` writes it")]
    NoUser(usize),
    /// Another kind of hash.
    #[error(
        "line {0} must have a bcrypt hash ($2y$…): other kinds can be guessed too quickly; make it anew with `htpasswd -B`"
    )]
    NotBcrypt(usize),
    /// A hash that takes too long.
    #[error(
        "line {line} has a bcrypt hash of cost {cost}, which must be 4 to {MAX_COST}; make it anew with `htpasswd -B`"
    )]
    Cost {
        /// The line, from 1.
        line: usize,
        /// Its cost.
        cost: u32,
    },
    /// A user twice.
    #[error("line {line} is for the same user as line {first}; remove one of them")]
    Twice {
        /// The line, from 1.
        line: usize,
        /// The line before it.
        first: usize,
    },
    /// Nobody.
    #[error("there must be at least one user; add one with `htpasswd -B`")]
    Nobody,
}

impl Users {
    /// Reads an htpasswd file. Empty lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Self, HtpasswdError> {
        let (mut hashes, mut lines) = (BTreeMap::new(), BTreeMap::new());
        let mut highest = 0;
        for (index, content) in text.lines().enumerate() {
            let (line, content) = (index + 1, content.trim());
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (user, hash) = content.split_once(':').ok_or(HtpasswdError::NoUser(line))?;
            if user.is_empty() || hash.is_empty() {
                return Err(HtpasswdError::NoUser(line));
            }
            let parts: bcrypt::HashParts = hash.parse().map_err(|_| HtpasswdError::NotBcrypt(line))?;
            let cost = parts.get_cost();
            if !(4..=MAX_COST).contains(&cost) {
                return Err(HtpasswdError::Cost { line, cost });
            }
            highest = highest.max(cost);
            if let Some(first) = lines.insert(user.to_owned(), line) {
                return Err(HtpasswdError::Twice { line, first });
            }
            hashes.insert(user.to_owned(), Arc::from(hash));
        }
        if hashes.is_empty() {
            return Err(HtpasswdError::Nobody);
        }
        let decoy = DECOY.replacen("$00$", &format!("${highest:02}$"), 1);
        Ok(Self { hashes: Arc::new(hashes), decoy: decoy.into() })
    }

    /// Whether there is such a user.
    #[must_use]
    pub fn contains(&self, user: &str) -> bool {
        self.hashes.contains_key(user)
    }

    /// What a password is to be checked against. For a user that is not there it is a hash that takes as long as the slowest, so
    /// that the time does not tell who is there.
    #[must_use]
    pub fn challenge(&self, user: &str) -> Challenge {
        match self.hashes.get(user) {
            Some(hash) => Challenge { hash: Arc::clone(hash), real: true },
            None => Challenge { hash: Arc::clone(&self.decoy), real: false },
        }
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Users({}, …)", self.hashes.len())
    }
}

/// A hash to check a password against.
pub struct Challenge {
    hash: Arc<str>,
    real: bool,
}

impl Challenge {
    /// The hash as text.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether it is the password. Takes tens of milliseconds and more, on purpose.
    #[must_use]
    pub fn accepts(&self, password: &str) -> bool {
        let right = bcrypt::verify(password, &self.hash).unwrap_or(false);
        right && self.real
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn hash(password: &str, cost: u32) -> String {
        bcrypt::hash_with_result(password, cost).unwrap().format_for_version(bcrypt::Version::TwoY)
    }

    #[test]
    fn users_are_read_and_their_passwords_hold() {
        let text = format!("# ours\n\nalice:{}\r\nbob:{}\n", hash("secret", 4), hash("hunter2", 5));
        let users = Users::parse(&text).unwrap();
        assert!(users.contains("alice") && users.contains("bob") && !users.contains("carol"));
        assert!(users.challenge("alice").accepts("secret"));
        assert!(!users.challenge("alice").accepts("hunter2"));
        assert!(users.challenge("bob").accepts("hunter2"));
        assert!(!users.challenge("bob").accepts(""));
        assert!(!users.challenge("carol").accepts("secret"));
    }

    #[test]
    fn who_is_not_there_takes_as_long_as_the_slowest() {
        let users = Users::parse(&format!("alice:{}\nbob:{}\n", hash("x", 4), hash("x", 6))).unwrap();
        let decoy: bcrypt::HashParts = users.challenge("carol").hash().parse().unwrap();
        assert_eq!(decoy.get_cost(), 6);
    }

    #[test]
    fn a_mistake_names_its_line_and_not_its_content() {
        let good = format!("alice:{}", hash("secret", 4));
        for (text, expected) in [
            (String::new(), HtpasswdError::Nobody),
            ("# nobody\n".to_owned(), HtpasswdError::Nobody),
            (format!("{good}\nplain"), HtpasswdError::NoUser(2)),
            (format!("{good}\n\n:{}", hash("secret", 4)), HtpasswdError::NoUser(3)),
            ("bob:".to_owned(), HtpasswdError::NoUser(1)),
            ("bob:secret".to_owned(), HtpasswdError::NotBcrypt(1)),
            ("bob:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00".to_owned(), HtpasswdError::NotBcrypt(1)),
            ("bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=".to_owned(), HtpasswdError::NotBcrypt(1)),
            ("bob:$2y$05$tooshort".to_owned(), HtpasswdError::NotBcrypt(1)),
            (format!("bob:{}", DECOY.replace("$00$", "$31$")), HtpasswdError::Cost { line: 1, cost: 31 }),
            (format!("{good}\nbob:{}\n{good}", hash("x", 4)), HtpasswdError::Twice { line: 3, first: 1 }),
        ] {
            let error = Users::parse(&text).unwrap_err();
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", Users::parse(&good).unwrap()).contains("$2"));
    }
}
