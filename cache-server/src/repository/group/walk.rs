//! Which members of a group are asked, in which order, and what an answer means for the next. Pure. May import `error` and
//! the settings' words.

use crds::names::RepositoryName;

use crate::{
    globs::Glob,
    oci::ImageName,
    repository::{Meant, error::Error},
    settings::RegistryName,
};

/// What of a member decides whether it is asked.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its name.
    pub(super) name: RepositoryName,
    /// Where its content comes from.
    pub(super) kind: Kind,
    /// The registries that it may answer for.
    pub(super) stands_for: Vec<RegistryName>,
}

/// Where a member's content comes from.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// From an upstream.
    Mirror {
        /// Whether images without a slash live under `library/` there.
        library: bool,
    },
    /// From those who push to it.
    Hosted {
        /// Image names that are its own.
        reserves: Vec<Glob>,
    },
}

/// What is asked for, as far as it matters here.
pub(super) struct Wanted<'a> {
    /// The image, as the client calls it.
    pub(super) image: &'a ImageName,
    /// The registry that the client means.
    pub(super) meant: Meant<'a>,
    /// Whether the one who asks may pull it from a member.
    pub(super) may_pull: &'a dyn Fn(&RepositoryName) -> bool,
    /// The member that is asked first, if it is asked at all: a digest means the same everywhere, so the order is free.
    pub(super) first: Option<usize>,
}

/// The members to ask, in order, as places in `members`.
///
/// An image whose name a hosted member reserves is asked of no other member; so is one that only an upstream would
/// call so. That holds whether the member has the image or not, and whether the one who asks may see it or not.
pub(super) fn order(members: &[Member], wanted: &Wanted<'_>) -> Vec<usize> {
    let library = format!("library/{}", wanted.image);
    let reserved = members.iter().any(|member| member.reserves(wanted.image.as_str()));
    let reserved_there = !wanted.image.as_str().contains('/') && members.iter().any(|member| member.reserves(&library));
    let is_asked = |member: &Member| {
        let free = match member.kind {
            Kind::Mirror { library } => !(reserved || library && reserved_there),
            Kind::Hosted { .. } => !reserved || member.reserves(wanted.image.as_str()),
        };
        free && member.answers_for(&wanted.meant) && (wanted.may_pull)(&member.name)
    };
    let mut asked: Vec<usize> =
        members.iter().enumerate().filter(|(_, member)| is_asked(member)).map(|(place, _)| place).collect();
    if let Some(at) = asked.iter().position(|place| Some(*place) == wanted.first) {
        asked[..=at].rotate_right(1);
    }
    asked
}

impl Member {
    fn reserves(&self, image: &str) -> bool {
        match &self.kind {
            Kind::Mirror { .. } => false,
            Kind::Hosted { reserves } => reserves.iter().any(|pattern| pattern.matches(image)),
        }
    }

    /// A request that names no registry takes the members in order.
    fn answers_for(&self, meant: &Meant<'_>) -> bool {
        match meant {
            Meant::Unsaid => true,
            Meant::Registry(registry) => self.stands_for.contains(registry),
            Meant::Unheard => false,
        }
    }
}

/// What a member's no means for the members behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It does not have it: the next is asked.
    Next,
    /// It could not tell: the next is asked, and if nobody has it, this is the answer.
    Remember,
    /// It could not tell, and nobody may answer in its place: what is pushed to it may have the name of something public.
    Stop,
}

impl Then {
    pub(super) const fn of(kind: &Kind, error: &Error) -> Self {
        match (kind, error) {
            (_, Error::NotFound { .. } | Error::Denied { .. }) => Self::Next,
            (Kind::Mirror { .. }, _) => Self::Remember,
            (Kind::Hosted { .. }, _) => Self::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// `own` reserves `team1/**` and `library/base`, `shop` reserves `team1/shop` and answers for docker.io.
    fn members() -> Vec<Member> {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(text)).collect();
        let member = |name: &str, kind: Kind, registries: &[&str]| Member {
            name: name.parse().unwrap(),
            kind,
            stands_for: registries.iter().map(|registry| registry.parse().unwrap()).collect(),
        };
        vec![
            member("hub", Kind::Mirror { library: true }, &["docker.io"]),
            member("own", Kind::Hosted { reserves: globs(&["team1/**", "library/base"]) }, &[]),
            member("shop", Kind::Hosted { reserves: globs(&["team1/shop"]) }, &["docker.io"]),
            member("quay", Kind::Mirror { library: false }, &["quay.io"]),
            member("me", Kind::Mirror { library: true }, &["docker.io", "me.docker.io"]),
        ]
    }

    fn asked(image: &str, registry: Option<&str>, hidden: &[&str], first: Option<usize>) -> String {
        let members = members();
        let registry = registry.map(|text| text.parse::<RegistryName>());
        let meant = match &registry {
            None => Meant::Unsaid,
            Some(Ok(registry)) => Meant::Registry(registry),
            Some(Err(_)) => Meant::Unheard,
        };
        let may_pull = |name: &RepositoryName| !hidden.contains(&name.as_str());
        let wanted = Wanted { image: &image.parse().unwrap(), meant, may_pull: &may_pull, first };
        order(&members, &wanted).into_iter().map(|place| members[place].name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_is_asked_for_what() {
        for (image, registry, hidden, first, expected) in [
            ("nginx", None, &[][..], None, "hub own shop quay me"),
            // Who may not be read is not asked.
            ("nginx", None, &["hub", "shop"], None, "own quay me"),
            // The one that had the manifest comes first, if it is asked at all.
            ("nginx", None, &[], Some(3), "quay hub own shop me"),
            ("nginx", None, &["quay"], Some(3), "hub own shop me"),
            ("nginx", None, &[], Some(99), "hub own shop quay me"),
            ("nginx", Some("docker.io"), &[], Some(3), "hub shop me"),
            ("nginx", Some("docker.io"), &[], Some(4), "me hub shop"),
            // A registry that was named.
            ("nginx", Some("docker.io"), &[], None, "hub shop me"),
            ("nginx", Some("index.docker.io"), &[], None, "hub shop me"),
            ("nginx", Some("me.docker.io"), &[], None, "me"),
            ("nginx", Some("quay.io"), &[], None, "quay"),
            ("nginx", Some("ghcr.io"), &[], None, ""),
            ("nginx", Some("http://nonsense/"), &[], None, ""),
            // Reserved names.
            ("team1/app", None, &[], None, "own"),
            ("team1/app", None, &[], Some(0), "own"),
            ("team1/a/b", None, &[], None, "own"),
            ("team1/shop", None, &[], None, "own shop"),
            ("team10/app", None, &[], None, "hub own shop quay me"),
            ("team1/app", Some("docker.io"), &[], None, ""),
            ("team1/shop", Some("docker.io"), &[], None, "shop"),
            // Also for those who must not know that they are.
            ("team1/app", None, &["own"], None, ""),
            ("team1/shop", None, &["own"], None, "shop"),
            // Docker Hub would be asked for `library/base`.
            ("library/base", None, &[], None, "own"),
            ("base", None, &[], None, "own shop quay"),
        ] {
            assert_eq!(asked(image, registry, hidden, first), expected, "{image} {registry:?} {hidden:?} {first:?}");
        }
    }

    #[test]
    fn what_an_error_means_for_those_behind() {
        let mirror = Kind::Mirror { library: false };
        let hosted = Kind::Hosted { reserves: Vec::new() };
        let text = || "x".to_owned();
        let absent = Error::NotFound { what: text(), registry: text() };
        let denied = Error::Denied { what: text(), registry: text() };
        let failed = || Error::Upstream { what: text(), registry: text(), source: crate::upstream::Error::Broken };
        let broken = std::io::Error::other("x").into();
        for (kind, error, then) in [
            (&mirror, absent.clone(), Then::Next),
            (&hosted, absent, Then::Next),
            (&mirror, denied.clone(), Then::Next),
            (&hosted, denied, Then::Next),
            (&mirror, failed(), Then::Remember),
            (&mirror, Error::Offline(text()), Then::Remember),
            (&hosted, Error::Offline(text()), Then::Stop),
            (&hosted, broken, Then::Stop),
            (&hosted, Error::Unusable(text()), Then::Stop),
        ] {
            assert_eq!(Then::of(kind, &error), then, "{kind:?} {error}");
        }
    }
}
