//! What a group's list of members comes to. Pure. May import the settings themselves.

use std::collections::HashSet;

use crds::names::RepositoryName;

use super::{GroupSettings, Settings, objects};

/// What a group's list of members comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The members that are no groups, in the order in which they are asked, those of nested groups in their place; each once,
    /// however many groups lead to it. Some may not be there, see [`Settings::has_lost`].
    pub members: Vec<RepositoryName>,
    /// Why the group serves less than its list says, one sentence each.
    pub problems: Vec<String>,
}

impl Settings {
    /// What the members of a group come to. A ring of groups adds nothing when it comes round, and a member that is not there
    /// is passed over: the group serves what the others have.
    #[must_use]
    pub fn membership(&self, group: &GroupSettings) -> Membership {
        let mut found = Membership::default();
        let mut seen = HashSet::from([&group.name]);
        self.walk(&mut vec![group], &mut seen, &mut found);
        if let Some(target) = &group.push_to {
            let is_hosted = self.hosted.iter().any(|hosted| hosted.name == *target);
            if !(is_hosted && found.members.contains(target)) {
                let problem = format!(
                    "pushTo names {target}, which is not a hosted repository among the members; nothing can be pushed to the group until it is"
                );
                found.problems.push(problem);
            }
        }
        found
    }

    fn walk<'a>(
        &'a self,
        way: &mut Vec<&'a GroupSettings>,
        seen: &mut HashSet<&'a RepositoryName>,
        found: &mut Membership,
    ) {
        let Some(group) = way.last().copied() else { return };
        for member in &group.members {
            if way.iter().any(|group| group.name == *member) {
                let ring: Vec<&str> = way.iter().map(|group| group.name.as_str()).collect();
                let problem = format!(
                    "the members form a ring ({} → {member}); remove one of them, the group serves each of the others once",
                    ring.join(" → ")
                );
                found.problems.push(problem);
                continue;
            }
            if !seen.insert(member) {
                continue;
            }
            if let Some(nested) = self.groups.iter().find(|group| group.name == *member) {
                way.push(nested);
                self.walk(way, seen, found);
                way.pop();
                continue;
            }
            if !self.serves(member) {
                let of = if way.len() > 1 { format!(" of the group {}", group.name) } else { String::new() };
                found.problems.push(match self.mistaken(member) {
                    Some(kind) => format!("the member {member}{of} is a {kind} with a mistake, so it is not served"),
                    None => format!(
                        "the member {member}{of} is no repository of this cache server; create it, or remove it from members"
                    ),
                });
            }
            found.members.push(member.clone());
        }
    }

    fn serves(&self, name: &RepositoryName) -> bool {
        self.mirrors.iter().any(|mirror| mirror.name == *name) || self.hosted.iter().any(|it| it.name == *name)
    }

    /// The kind of a repository that has a mistake and is therefore not served.
    fn mistaken(&self, name: &RepositoryName) -> Option<&str> {
        let objects = self.mistakes.as_slice().iter().filter_map(|mistake| mistake.place.object.as_ref());
        objects
            .filter(|object| objects::REPOSITORIES.contains(&object.kind.as_str()))
            .find(|object| object.name == name.as_str())
            .map(|object| object.kind.as_str())
    }

    /// Whether a member is a hosted repository that exists and cannot be served. What it has is not known, so nobody may answer
    /// in its place.
    #[must_use]
    pub fn has_lost(&self, member: &RepositoryName) -> bool {
        !self.serves(member) && self.mistaken(member) == Some(objects::HOSTED)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::settings::Sources;

    /// Groups by `name: members`, mirrors by name alone, hosted repositories with a slash in front; those that end in `!` have a
    /// mistake.
    fn settings(repositories: &[&str]) -> Settings {
        let text: Vec<String> = repositories
            .iter()
            .map(|text| {
                let (kind, name, spec) = match (text.split_once(": "), text.strip_prefix('/')) {
                    (Some((name, members)), _) => ("RepositoryGroup", name, format!("members: [{members}]")),
                    (None, Some(name)) => match name.strip_suffix('!') {
                        Some(name) => ("HostedRepository", name, "oops: 1".to_owned()),
                        None => ("HostedRepository", name, String::new()),
                    },
                    (None, None) => ("RegistryMirror", *text, format!("upstream: {{url: 'https://{text}.example.com'}}")),
                };
                format!(
                    "---\n{{apiVersion: entrepot.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
                )
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, text.concat()).unwrap();
        Settings::load_good(&Sources { config: Some(config), ..Sources::default() }, None).settings
    }

    fn of(settings: &Settings, name: &str) -> (Vec<String>, Vec<String>) {
        let group = settings.groups.iter().find(|group| group.name.as_str() == name).unwrap();
        let Membership { members, problems } = settings.membership(group);
        (members.iter().map(ToString::to_string).collect(), problems)
    }

    #[test]
    fn members_of_nested_groups_stand_in_their_place_and_each_once() {
        let settings = settings(&["all: team, hub, ghcr", "team: own, hub, shared", "/own", "/shared", "hub", "ghcr"]);
        assert_eq!(of(&settings, "all"), (["own", "hub", "shared", "ghcr"].map(str::to_owned).into(), vec![]));
    }

    #[test]
    fn a_ring_of_groups_ends_and_is_told() {
        let settings = settings(&["a: left, b", "b: a, right", "left", "right"]);
        for (name, ring) in [("a", "(a → b → a)"), ("b", "(b → a → b)")] {
            let (members, problems) = of(&settings, name);
            assert_eq!(members, ["left", "right"]);
            assert!(problems.len() == 1 && problems[0].contains(ring), "{problems:?}");
        }
    }

    #[test]
    fn a_member_that_is_not_there_is_told_and_one_of_which_groups_share_is_no_ring() {
        let all = settings(&["all: one, two, gone", "one: hub", "two: hub, lost", "hub"]);
        let (members, problems) = of(&all, "all");
        assert_eq!(members, ["hub", "lost", "gone"]);
        assert_eq!(
            problems,
            [
                "the member lost of the group two is no repository of this cache server; create it, or remove it from members",
                "the member gone is no repository of this cache server; create it, or remove it from members",
            ]
        );
    }

    #[test]
    fn pushes_go_to_a_hosted_member_only() {
        for (push_to, good) in [("own", true), ("hub", false), ("other", false), ("gone", false)] {
            let mut settings = settings(&["all: own, hub", "/own", "/other", "hub"]);
            settings.groups[0].push_to = Some(push_to.parse().unwrap());
            assert_eq!(of(&settings, "all").1.is_empty(), good, "{push_to}");
        }
    }

    #[test]
    fn a_hosted_member_with_a_mistake_is_lost_and_not_missing() {
        let settings = settings(&["all: own, hub, gone", "/own!", "hub"]);
        assert!(settings.has_lost(&"own".parse().unwrap()));
        assert!(!settings.has_lost(&"hub".parse().unwrap()) && !settings.has_lost(&"gone".parse().unwrap()));
        let problems = of(&settings, "all").1;
        assert_eq!(problems[0], "the member own is a HostedRepository with a mistake, so it is not served");
    }
}
