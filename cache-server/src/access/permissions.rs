//! Permissions: users × repositories × images × actions. Pure. May import `caller`, `judge`'s words,
//! `globs` and `oci`.

use crds::{
    cache_server::{PermissionSpec, PermittedAction},
    names::RepositoryName,
};

use super::{caller::User, judge::Action};
use crate::{globs::Glob, oci::ImageName};

/// Whoever is logged in.
const EVERYONE: &str = "*";

/// What is permitted beside anonymous pulls. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions(Vec<Permission>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Permission {
    users: Vec<String>,
    repositories: Vec<Glob>,
    images: Vec<Glob>,
    actions: Vec<Action>,
}

impl Permissions {
    /// The permissions that a spec lists.
    #[must_use]
    pub fn new(specs: &[PermissionSpec]) -> Self {
        Self(specs.iter().map(Permission::new).collect())
    }

    /// Whether a user may do something with an image of a repository; without an image, with any one of it.
    #[must_use]
    pub fn allow(&self, user: &User, repository: &RepositoryName, action: Action, image: Option<&ImageName>) -> bool {
        self.0.iter().any(|permission| {
            permission.actions.contains(&action)
                && permission.users.iter().any(|who| who == EVERYONE || user.is(who))
                && permission.repositories.iter().any(|glob| glob.matches(repository.as_str()))
                && image.is_none_or(|image| permission.images.iter().any(|glob| glob.matches(image.as_str())))
        })
    }
}

impl Permission {
    fn new(spec: &PermissionSpec) -> Self {
        let globs = |texts: &[String]| texts.iter().map(|text| Glob::new(text)).collect();
        Self {
            users: spec.users.clone(),
            repositories: globs(&spec.repositories),
            images: globs(&spec.images),
            actions: spec.actions.iter().map(|action| Action::of(*action)).collect(),
        }
    }
}

impl Action {
    const fn of(permitted: PermittedAction) -> Self {
        match permitted {
            PermittedAction::Pull => Self::Pull,
            PermittedAction::Push => Self::Push,
            PermittedAction::Delete => Self::Delete,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_permission_needs_user_repository_image_and_action() {
        let specs: Vec<PermissionSpec> = serde_json::from_value(json!([
            {"users": ["alice", "system:serviceaccounts:team1"], "repositories": ["team1-*"], "images": ["app/*"], "actions": ["Pull", "Push"]},
            {"users": ["*"], "repositories": ["shared"], "actions": ["Pull"]},
        ]))
        .unwrap();
        let permissions = Permissions::new(&specs);
        let allowed = |user: &str, repository: &str, action, image: Option<&str>| {
            let image = image.map(|image| image.parse::<ImageName>().unwrap());
            permissions.allow(&User::named(user), &repository.parse().unwrap(), action, image.as_ref())
        };
        for (user, repository, action, image, expected) in [
            ("alice", "team1-hosted", Action::Push, Some("app/web"), true),
            ("alice", "team1-hosted", Action::Pull, Some("app/web"), true),
            ("alice", "team1-hosted", Action::Pull, None, true),
            ("alice", "team1-hosted", Action::Delete, Some("app/web"), false),
            ("alice", "team1-hosted", Action::Delete, None, false),
            ("alice", "team1-hosted", Action::Push, Some("web"), false),
            ("alice", "team2-hosted", Action::Push, Some("app/web"), false),
            ("bob", "team1-hosted", Action::Push, Some("app/web"), false),
            ("system:serviceaccount:team1:ci", "team1-x", Action::Push, Some("app/web"), true),
            ("system:serviceaccount:team2:ci", "team1-x", Action::Push, Some("app/web"), false),
            ("bob", "shared", Action::Pull, Some("a/b/c"), true),
            ("bob", "shared", Action::Push, Some("a/b/c"), false),
        ] {
            assert_eq!(allowed(user, repository, action, image), expected, "{user} {repository} {action:?} {image:?}");
        }
    }
}
