//! Who may do what: logins, tokens, and the one policy that all routes ask. Read in this order: [`caller`], [`permissions`],
//! [`judge`], [`htpasswd`], [`service_accounts`], [`token`], [`attempts`], [`key`], [`logins`]. May import `oci`, `globs`
//! and `credentials`.
//!
//! All but [`key`] (a file) and [`logins`] (which hashes passwords on other threads) is pure, and is told the time.

pub mod attempts;
pub mod caller;
pub mod htpasswd;
pub mod judge;
pub mod key;
pub mod logins;
pub mod permissions;
pub mod service_accounts;
pub mod token;

pub use caller::{Caller, Presented, User};
pub use judge::{Action, Asked, Kind, Target, Verdict, acting, judge, may};
pub use logins::{Logins, Refused};
pub use permissions::Permissions;
pub use token::{Granted, Scope, Token};

use htpasswd::Users;
use service_accounts::Issuer;

/// The service of tokens for the ways in that all repositories share, where an image's name says which repository is meant.
/// No repository can have this name, because of its dot.
pub const SHARED_SERVICE: &str = "entrepot.dev";

/// Who can log in to a server, and what they may do. Without users and issuer nobody can.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Auth {
    /// Users with passwords.
    pub users: Option<Users>,
    /// Who signs tokens of service accounts.
    pub issuer: Option<Issuer>,
    /// Who may do what.
    pub permissions: Permissions,
}

impl Auth {
    /// Whether anybody can log in.
    #[must_use]
    pub const fn has_logins(&self) -> bool {
        self.users.is_some() || self.issuer.is_some()
    }

    /// Whether a user who logged in before still could: their line is still there, or service accounts still count.
    #[must_use]
    pub fn knows(&self, user: &User) -> bool {
        if user.is_service_account() {
            self.issuer.is_some()
        } else {
            self.users.as_ref().is_some_and(|users| users.contains(user.name()))
        }
    }
}
