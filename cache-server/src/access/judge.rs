//! May this caller do this? The one policy that all routes ask. Pure. May import `caller`, `permissions`, `token` and `oci`.

use crds::names::RepositoryName;

use super::{
    caller::{Caller, User},
    permissions::Permissions,
};
use crate::oci::ImageName;

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read manifests, blobs, tags, referrers.
    Pull,
    /// Write them, and all that belongs to an upload.
    Push,
    /// Delete them.
    Delete,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// The word of the distribution spec's token scopes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// A repository, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its name.
    pub name: &'a RepositoryName,
    /// What it is.
    pub kind: Kind<'a>,
    /// Whether everyone may pull.
    pub anonymous_pull: bool,
}

/// What a repository is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// It takes no pushes.
    Mirror,
    /// It takes pushes.
    Hosted,
    /// It takes pushes for a member, if it has one for that.
    Group {
        /// The hosted member.
        push_to: Option<&'a RepositoryName>,
    },
}

impl Target<'_> {
    /// Whether some of its users need to log in, so that `/v2/` says so: engines learn it nowhere else.
    #[must_use]
    pub const fn wants_logins(&self) -> bool {
        !self.anonymous_pull || self.takes_writes()
    }

    /// Whether anybody could push to it or delete from it.
    #[must_use]
    pub const fn takes_writes(&self) -> bool {
        matches!(self.kind, Kind::Hosted | Kind::Group { push_to: Some(_) })
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// To do what.
    pub action: Action,
    /// With which image, as the repository knows it; without one, with any of it.
    pub image: Option<&'a ImageName>,
    /// The image's name as the client writes it, which is how tokens name it.
    pub written: Option<&'a str>,
    /// Tokens of which services count on the way by which the request came.
    pub services: &'a [&'a str],
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// Nobody in particular may not: log in (401).
    LogIn,
    /// The caller may, but not with this token: get one for it (401).
    OtherToken,
    /// The caller may not (403).
    Denied,
}

/// Whether a user, or nobody in particular, may do something with an image of a repository; without an image, with any one of it.
///
/// This is about the user alone. A group asks it for each member that it is about to ask.
#[must_use]
pub fn may(
    permissions: &Permissions,
    target: &Target<'_>,
    user: Option<&User>,
    action: Action,
    image: Option<&ImageName>,
) -> bool {
    let repository = match (action, target.kind) {
        (Action::Pull, _) if target.anonymous_pull => return true,
        (Action::Pull, _) | (_, Kind::Hosted) => target.name,
        (_, Kind::Group { push_to: Some(member) }) => member,
        (_, Kind::Mirror | Kind::Group { push_to: None }) => return false,
    };
    user.is_some_and(|user| permissions.allow(user, repository, action, image))
}

/// The user as whom a caller may be taken for what is asked: a token lends its user's rights only on its own service, and
/// only for what it is for.
#[must_use]
pub fn acting<'a>(caller: &'a Caller, asked: &Asked<'_>) -> Option<&'a User> {
    match caller {
        Caller::Anonymous => None,
        Caller::User(user) => Some(user),
        Caller::Token(token) => {
            let covers = asked.written.is_none_or(|name| token.covers(name, asked.action));
            token.user.as_ref().filter(|_| covers && asked.services.contains(&token.service.as_str()))
        }
    }
}

/// Judges a request. A token narrows what its user may do, and never widens it; what everyone may do needs none.
#[must_use]
pub fn judge(permissions: &Permissions, target: &Target<'_>, caller: &Caller, asked: &Asked<'_>) -> Verdict {
    let Asked { action, image, services, .. } = *asked;
    if may(permissions, target, None, action, image) {
        return Verdict::Allow;
    }
    if let Caller::Token(token) = caller
        && !services.contains(&token.service.as_str())
    {
        return Verdict::OtherToken;
    }
    let Some(user) = caller.user() else { return Verdict::LogIn };
    if !may(permissions, target, Some(user), action, image) {
        return Verdict::Denied;
    }
    if acting(caller, asked).is_some() { Verdict::Allow } else { Verdict::OtherToken }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;
    use crate::access::token::{Granted, Token};

    fn permissions() -> Permissions {
        let specs = json!([
            {"users": ["writer"], "repositories": ["team"], "images": ["app"], "actions": ["Pull", "Push"]},
            {"users": ["cleaner"], "repositories": ["team"], "actions": ["Pull", "Delete"]},
            {"users": ["reader"], "repositories": ["team", "hub", "all"], "actions": ["Pull"]},
            // What nobody can do, it does not allow either.
            {"users": ["root"], "repositories": ["*"], "actions": ["Pull", "Push", "Delete"]},
        ]);
        Permissions::new(&serde_json::from_value::<Vec<_>>(specs).unwrap())
    }

    fn token(user: Option<&str>, service: &str, name: &str, actions: &[Action]) -> Caller {
        let access = vec![Granted { name: name.to_owned(), actions: actions.to_vec() }];
        Caller::Token(Token { user: user.map(User::named), service: service.to_owned(), access })
    }

    fn user(name: &str) -> Caller {
        Caller::User(User::named(name))
    }

    /// pull, push and delete of `app`, in letters: `+` allow, `?` log in, `t` other token, `-` denied.
    fn judged(kind: &Kind<'_>, name: &str, anonymous_pull: bool, caller: &Caller) -> String {
        let (name, image): (RepositoryName, ImageName) = (name.parse().unwrap(), "app".parse().unwrap());
        let target = Target { name: &name, kind: *kind, anonymous_pull };
        let services = [name.as_str()];
        let verdict = |action| {
            let asked = Asked { action, image: Some(&image), written: Some("app"), services: &services };
            judge(&permissions(), &target, caller, &asked)
        };
        let letter = |verdict| match verdict {
            Verdict::Allow => '+',
            Verdict::LogIn => '?',
            Verdict::OtherToken => 't',
            Verdict::Denied => '-',
        };
        Action::ALL.into_iter().map(|action| letter(verdict(action))).collect()
    }

    #[test]
    fn callers_by_kinds_of_repositories() {
        use Action::{Delete, Pull, Push};
        let team: RepositoryName = "team".parse().unwrap();
        let group = Kind::Group { push_to: Some(&team) };
        let closed_group = Kind::Group { push_to: None };
        let (mirror, hosted) = (Kind::Mirror, Kind::Hosted);
        // Columns: an open mirror hub, a closed one, an open hosted team, a closed one, a closed group all that
        // pushes to team, one that takes no pushes.
        let columns = [
            (mirror, "hub", true),
            (mirror, "hub", false),
            (hosted, "team", true),
            (hosted, "team", false),
            (group, "all", false),
            (closed_group, "all", false),
        ];
        let all = [Pull, Push, Delete];
        for (caller, expected) in [
            (Caller::Anonymous, ["+??", "???", "+??", "???", "???", "???"]),
            (user("stranger"), ["+--", "---", "+--", "---", "---", "---"]),
            (user("reader"), ["+--", "+--", "+--", "+--", "+--", "+--"]),
            (user("writer"), ["+--", "---", "++-", "++-", "-+-", "---"]),
            (user("cleaner"), ["+--", "---", "+-+", "+-+", "--+", "---"]),
            (user("root"), ["+--", "+--", "+++", "+++", "+++", "+--"]),
            // A token of another service is worth nothing, whoever has it.
            (token(Some("root"), "elsewhere", "app", &all), ["+tt", "ttt", "+tt", "ttt", "ttt", "ttt"]),
            (token(Some("root"), "team", "app", &all), ["+tt", "ttt", "+++", "+++", "ttt", "ttt"]),
            // So is one for another image, or without the action.
            (token(Some("root"), "team", "app/web", &all), ["+tt", "ttt", "+tt", "ttt", "ttt", "ttt"]),
            (token(Some("root"), "team", "app", &[Pull]), ["+tt", "ttt", "+tt", "+tt", "ttt", "ttt"]),
            (token(Some("root"), "all", "app", &[Pull, Push]), ["+tt", "ttt", "+tt", "ttt", "++t", "+--"]),
            // It gives no more than its user has now.
            (token(Some("reader"), "team", "app", &all), ["+tt", "ttt", "+--", "+--", "ttt", "ttt"]),
            (token(None, "team", "app", &all), ["+tt", "ttt", "+??", "???", "ttt", "ttt"]),
        ] {
            let found = columns.map(|(kind, name, open)| judged(&kind, name, open, &caller));
            assert_eq!(found, expected, "{caller:?}");
        }
    }

    #[test]
    fn a_token_lends_its_user_only_for_what_it_is_for() {
        let asked = Asked { action: Action::Pull, image: None, written: Some("app"), services: &["all"] };
        let lent = |caller: &Caller| acting(caller, &asked).map(|user| user.name().to_owned());
        assert_eq!(lent(&user("alice")).as_deref(), Some("alice"));
        assert_eq!(lent(&token(Some("alice"), "all", "app", &[Action::Pull])).as_deref(), Some("alice"));
        for caller in [
            Caller::Anonymous,
            token(None, "all", "app", &[Action::Pull]),
            token(Some("alice"), "team", "app", &[Action::Pull]),
            token(Some("alice"), "all", "web", &[Action::Pull]),
            token(Some("alice"), "all", "app", &[Action::Push]),
        ] {
            assert_eq!(lent(&caller), None, "{caller:?}");
        }
    }

    #[test]
    fn without_an_image_any_will_do() {
        let name: RepositoryName = "team".parse().unwrap();
        let target = Target { name: &name, kind: Kind::Hosted, anonymous_pull: false };
        let asked = |action| Asked { action, image: None, written: None, services: &["team"] };
        let verdict = |caller: &Caller, action| judge(&permissions(), &target, caller, &asked(action));
        assert_eq!(verdict(&user("writer"), Action::Push), Verdict::Allow);
        assert_eq!(verdict(&user("writer"), Action::Delete), Verdict::Denied);
        assert_eq!(verdict(&Caller::Anonymous, Action::Pull), Verdict::LogIn);
        assert_eq!(verdict(&token(Some("writer"), "team", "x", &[]), Action::Push), Verdict::Allow);
    }

    #[test]
    fn logins_are_wanted_where_something_needs_one() {
        let name: RepositoryName = "team".parse().unwrap();
        for (kind, anonymous_pull, expected) in [
            (Kind::Mirror, true, false),
            (Kind::Mirror, false, true),
            (Kind::Hosted, true, true),
            (Kind::Group { push_to: None }, true, false),
            (Kind::Group { push_to: Some(&name) }, true, true),
            (Kind::Group { push_to: None }, false, true),
        ] {
            assert_eq!(Target { name: &name, kind, anonymous_pull }.wants_logins(), expected, "{kind:?}");
        }
    }
}
