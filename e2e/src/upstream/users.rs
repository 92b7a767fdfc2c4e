//! The accounts of the test upstreams. Their passwords are canaries: no log or metric may show them.

/// One account.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// The login.
    pub name: &'static str,
    /// The password.
    pub password: &'static str,
}

/// May pull everything public and `private/alice…`.
pub const ALICE: User = User { name: "alice", password: "canary-alice-81d2" };

/// May pull everything public and `private/bob…`.
pub const BOB: User = User { name: "bob", password: "canary-bob-5c07" };

/// The one account of the registry with basic authentication.
pub const CAROL: User = User { name: "carol", password: "carol-secret" };

/// The htpasswd file that knows [`CAROL`] (bcrypt).
pub const HTPASSWD: &str = "carol:$2y$05$dyxVZDq.7BxQEFtdYMjv7.D6mWJAvh31IZ/y4BddW3DMGqP.KgGB.\n";

/// The token user who presents these credentials.
#[must_use]
pub fn authenticate(name: &str, password: &str) -> Option<User> {
    [ALICE, BOB].into_iter().find(|user| user.name == name && user.password == password)
}

/// Whether this user (nobody: anonymous) may pull the image.
#[must_use]
pub fn may_pull(user: Option<User>, image: &str) -> bool {
    let Some(private) = image.strip_prefix("private/") else {
        return true;
    };
    user.is_some_and(|user| private.split('/').next() == Some(user.name))
}

#[cfg(test)]
mod tests {
    use super::{ALICE, BOB, authenticate, may_pull};

    #[test]
    fn rights_are_per_user_and_image() {
        assert!(may_pull(None, "library/nginx"));
        assert!(!may_pull(None, "private/alice"));
        assert!(may_pull(Some(ALICE), "private/alice"));
        assert!(may_pull(Some(ALICE), "private/alice/tool"));
        assert!(!may_pull(Some(ALICE), "private/alice2"));
        assert!(!may_pull(Some(BOB), "private/alice"));
    }

    #[test]
    fn a_wrong_password_is_nobody() {
        assert!(authenticate(ALICE.name, ALICE.password).is_some());
        assert!(authenticate(ALICE.name, BOB.password).is_none());
    }
}
