//! Which members of a group are asked, in which order, and what an answer means for the next. Pure. May import `error` and
//! the settings' words.

use crds::names::RepositoryName;

use crate::{
    globs::Glob,
    oci::ImageName,
    repository::{MayPull, Meant, error::Error},
    settings::{GroupSettings, RegistryName},
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
    /// Whether the one who asks may pull it from each member.
    pub(super) may_pull: &'a [MayPull],
    /// The member that is asked first, if it is asked at all: a digest means the same everywhere, so the order is free.
    pub(super) first: Option<usize>,
}

/// Members, as places in the group's list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Those to ask, in order.
    pub(super) asked: Vec<usize>,
    /// Those that would be asked too if nobody in particular were somebody who may pull from them.
    pub(super) hidden: Vec<usize>,
}

/// The members to ask.
///
/// An image whose name a hosted member reserves is asked of no other member; so is one that only an upstream would
/// call so. That holds whether the member has the image or not, and whether the one who asks may see it or not.
pub(super) fn order(members: &[Member], wanted: &Wanted<'_>) -> Walk {
    let library = format!("library/{}", wanted.image);
    let reserved = members.iter().any(|member| member.reserves(wanted.image.as_str()));
    let reserved_there = !wanted.image.as_str().contains('/') && members.iter().any(|member| member.reserves(&library));
    let is_meant = |member: &Member| {
        let free = match member.kind {
            Kind::Mirror { library } => !(reserved || library && reserved_there),
            Kind::Hosted { .. } => !reserved || member.reserves(wanted.image.as_str()),
        };
        free && member.answers_for(&wanted.meant)
    };
    let those = |whom: MayPull| -> Vec<usize> {
        let places = members.iter().zip(wanted.may_pull).enumerate();
        places.filter(|(_, (member, may))| **may == whom && is_meant(member)).map(|(place, _)| place).collect()
    };
    let mut asked = those(MayPull::Yes);
    if let Some(at) = asked.iter().position(|place| Some(*place) == wanted.first) {
        asked[..=at].rotate_right(1);
    }
    Walk { asked, hidden: those(MayPull::AfterLogin) }
}

/// The ways to the members: which groups they stand in, and which groups those stand in, up to the one that is asked.
pub(super) struct Ways {
    /// The first is the one that is asked.
    groups: Vec<Inner>,
    /// How many members there are.
    members: usize,
}

/// A group on the way.
struct Inner {
    name: RepositoryName,
    /// Groups that stand in it, as places among the groups.
    groups: Vec<usize>,
    /// Other members that do, as places among the members.
    members: Vec<usize>,
}

impl Ways {
    /// The ways from a group to those members.
    pub(super) fn new(root: &GroupSettings, all: &[GroupSettings], members: &[Member]) -> Self {
        let mut groups = vec![root];
        let mut at = 0;
        while let Some(group) = groups.get(at).copied() {
            for nested in group.members.iter().filter_map(|name| all.iter().find(|group| group.name == *name)) {
                if !groups.iter().any(|known| known.name == nested.name) {
                    groups.push(nested);
                }
            }
            at += 1;
        }
        let place_of_group = |name: &RepositoryName| groups.iter().position(|group| group.name == *name);
        let place_of_member = |name: &RepositoryName| members.iter().position(|member| member.name == *name);
        let inner = |group: &&GroupSettings| Inner {
            name: group.name.clone(),
            groups: group.members.iter().filter_map(place_of_group).collect(),
            members: group.members.iter().filter_map(place_of_member).collect(),
        };
        Self { groups: groups.iter().map(inner).collect(), members: members.len() }
    }

    /// Whether one who may pull from the group may pull from each member: who may pull from it, and from each group on one way to
    /// it. Whether they may pull from the group itself is not asked.
    pub(super) fn judge(
        &self,
        of_group: impl Fn(&RepositoryName) -> MayPull,
        of_member: impl Fn(usize) -> MayPull,
    ) -> Vec<MayPull> {
        let mut reached = vec![MayPull::No; self.groups.len()];
        // The first one is the group itself.
        reached[0] = MayPull::Yes;
        let mut pending = vec![0];
        while let Some(group) = pending.pop() {
            for &nested in &self.groups[group].groups {
                let by_this_way = reached[group].min(of_group(&self.groups[nested].name));
                // Rings end, as it only ever gets better.
                if by_this_way > reached[nested] {
                    reached[nested] = by_this_way;
                    pending.push(nested);
                }
            }
        }
        let mut judged = vec![MayPull::No; self.members];
        for (group, reached) in self.groups.iter().zip(reached) {
            for &member in &group.members {
                judged[member] = judged[member].max(reached);
            }
        }
        let places = judged.into_iter().enumerate();
        places.map(|(place, way)| if way == MayPull::No { way } else { way.min(of_member(place)) }).collect()
    }
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
        let registry = registry.map(str::parse::<RegistryName>);
        let meant = match &registry {
            None => Meant::Unsaid,
            Some(Ok(registry)) => Meant::Registry(registry),
            Some(Err(_)) => Meant::Unheard,
        };
        let names =
            |places: &[usize]| places.iter().map(|place| members[*place].name.as_str()).collect::<Vec<_>>().join(" ");
        let walk = |closed: MayPull| {
            let may = |member: &Member| if hidden.contains(&member.name.as_str()) { closed } else { MayPull::Yes };
            let may_pull: Vec<MayPull> = members.iter().map(may).collect();
            order(&members, &Wanted { image: &image.parse().unwrap(), meant, may_pull: &may_pull, first })
        };
        // Who is denied and who is not known see the same; of those alone it is known that a login may show more.
        let (denied, unknown) = (walk(MayPull::No), walk(MayPull::AfterLogin));
        assert_eq!(denied, Walk { asked: unknown.asked, hidden: Vec::new() });
        let all = walk(MayPull::Yes).asked;
        assert_eq!(all.len(), denied.asked.len() + unknown.hidden.len());
        assert!(unknown.hidden.iter().all(|place| all.contains(place) && !denied.asked.contains(place)));
        names(&denied.asked)
    }

    /// A group by its name and members.
    fn group(text: &str) -> GroupSettings {
        let (name, members) = text.split_once(": ").unwrap();
        GroupSettings {
            name: name.parse().unwrap(),
            online: true,
            anonymous_pull: true,
            members: members.split(' ').map(|member| member.parse().unwrap()).collect(),
            v1_search: false,
            push_to: None,
            connectors: Vec::new(),
        }
    }

    #[test]
    fn a_member_is_as_closed_as_the_best_way_to_it() {
        use MayPull::{AfterLogin, No, Yes};
        let members = members();
        // hub, own, shop, quay, me
        for (groups, closed, expected) in [
            (&["a: hub own shop quay me"][..], &[][..], [Yes; 5]),
            (&["a: hub own"], &[("own", AfterLogin)], [Yes, AfterLogin, No, No, No]),
            // A group between counts, and so does the member behind it.
            (&["a: b quay", "b: hub own"], &[("b", AfterLogin)], [AfterLogin, AfterLogin, No, Yes, No]),
            (&["a: b quay", "b: hub own"], &[("b", No)], [No, No, No, Yes, No]),
            (&["a: b", "b: hub own"], &[("own", No)], [Yes, No, No, No, No]),
            (&["a: b", "b: hub own"], &[("b", AfterLogin), ("own", No)], [AfterLogin, No, No, No, No]),
            (&["a: b", "b: c", "c: me"], &[("b", AfterLogin), ("c", No)], [No; 5]),
            (&["a: b", "b: c", "c: me"], &[("c", AfterLogin)], [No, No, No, No, AfterLogin]),
            // Of several ways the best, in whatever order they come.
            (&["a: b hub", "b: hub"], &[("b", No)], [Yes, No, No, No, No]),
            (&["a: b c", "b: d", "c: d", "d: hub"], &[("b", No), ("c", AfterLogin)], [AfterLogin, No, No, No, No]),
            (&["a: b c", "b: d", "c: d", "d: hub"], &[("c", No)], [Yes, No, No, No, No]),
            // Rings, and members that are not there.
            (&["a: b gone", "b: a hub c", "c: b me"], &[("c", AfterLogin)], [Yes, No, No, No, AfterLogin]),
            // The group itself is not asked about.
            (&["a: hub"], &[("a", No)], [Yes, No, No, No, No]),
        ] {
            let groups: Vec<_> = groups.iter().map(|text| group(text)).collect();
            let ways = Ways::new(&groups[0], &groups, &members);
            let of = |name: &RepositoryName| {
                closed.iter().find(|(closed, _)| *closed == name.as_str()).map_or(Yes, |(_, may)| *may)
            };
            assert_eq!(ways.judge(of, |place| of(&members[place].name)), expected, "{closed:?}");
        }
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
