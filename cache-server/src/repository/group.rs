//! A group: an ordered union of repositories behind one address.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use crds::names::RepositoryName;

use super::{Asking, BlobAnswer, BlobRequest, Hosted, ManifestAnswer, Mirror, Outcome, Want, error::Error};
use crate::{
    oci::{Digest, ImageName, Reference, Tag},
    settings::GroupSettings,
};

/// A repository that holds content itself.
#[derive(Clone)]
pub enum Leaf {
    /// A mirror.
    Mirror(Arc<Mirror>),
    /// A hosted repository.
    Hosted(Arc<Hosted>),
}

impl Leaf {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RepositoryName {
        match self {
            Self::Mirror(mirror) => &mirror.settings().name,
            Self::Hosted(hosted) => &hosted.settings().name,
        }
    }
}

/// An ordered union of repositories.
pub struct Group {
    settings: GroupSettings,
    /// The repositories that hold content, in the order in which they are asked; each once, however many groups lead to it.
    leaves: Vec<Leaf>,
}

impl Group {
    /// A group over those of its members that are there, the members of nested groups in their place.
    #[must_use]
    pub fn new(settings: GroupSettings, groups: &[GroupSettings], leaves: &HashMap<RepositoryName, Leaf>) -> Arc<Self> {
        let order = flatten(&settings, groups);
        let leaves = order.into_iter().filter_map(|name| leaves.get(&name).cloned()).collect();
        Arc::new(Self { settings, leaves })
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &GroupSettings {
        &self.settings
    }

    /// The members that hold content, in the order in which they are asked.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Refuses when the group is switched off.
    pub fn check_online(&self) -> Result<(), Error> {
        if self.settings.online { Ok(()) } else { Err(Error::Offline(self.settings.name.to_string())) }
    }

    /// A manifest of the first member that has it.
    pub async fn manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        want: Want,
        asking: &Asking<'_>,
    ) -> Result<ManifestAnswer, Error> {
        self.check_online()?;
        for leaf in self.asked(image, asking) {
            let answered = match leaf {
                Leaf::Mirror(mirror) => mirror.manifest(&mirror.named(image), reference, want).await,
                Leaf::Hosted(hosted) => hosted.manifest(image, reference).await,
            };
            match answered {
                Err(Error::NotFound { .. } | Error::Denied { .. }) => {}
                other => return other,
            }
        }
        Err(self.not_found(image, &reference.to_string()))
    }

    /// A blob of the first member that has it.
    pub async fn blob(
        &self,
        image: &ImageName,
        digest: &Digest,
        request: BlobRequest,
        asking: &Asking<'_>,
    ) -> Result<BlobAnswer, Error> {
        self.check_online()?;
        for leaf in self.asked(image, asking) {
            let answered = match leaf {
                Leaf::Mirror(mirror) => mirror.blob(&mirror.named(image), digest, request).await,
                Leaf::Hosted(hosted) => hosted.blob(image, digest, request.want).await,
            };
            match answered {
                Err(Error::NotFound { .. } | Error::Denied { .. }) => {}
                other => return other,
            }
        }
        Err(self.not_found(image, digest.as_str()))
    }

    /// The tags of the first member that knows the image.
    pub async fn tags(&self, image: &ImageName, asking: &Asking<'_>) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        self.check_online()?;
        for leaf in self.asked(image, asking) {
            let answered = match leaf {
                Leaf::Mirror(mirror) => mirror.tags(&mirror.named(image)).await,
                Leaf::Hosted(hosted) => hosted.tags(image).await,
            };
            match answered {
                Err(Error::NotFound { .. } | Error::Denied { .. }) => {}
                other => return other,
            }
        }
        Err(self.not_found(image, "tags"))
    }

    /// The referrers of a digest, of the first member that has the image.
    pub async fn referrers(
        &self,
        image: &ImageName,
        digest: &Digest,
        asking: &Asking<'_>,
    ) -> Result<(Bytes, Outcome), Error> {
        self.check_online()?;
        for leaf in self.asked(image, asking) {
            let answered = match leaf {
                Leaf::Mirror(mirror) => mirror.referrers(&mirror.named(image), digest).await,
                Leaf::Hosted(hosted) => hosted.referrers(image, digest).await,
            };
            match answered {
                Err(Error::NotFound { .. } | Error::Denied { .. }) => {}
                other => return other,
            }
        }
        Err(self.not_found(image, digest.as_str()))
    }

    /// The members that are asked for an image, in order.
    fn asked<'a>(&'a self, image: &'a ImageName, asking: &'a Asking<'_>) -> impl Iterator<Item = &'a Leaf> {
        self.leaves.iter().filter(move |leaf| (asking.may_pull)(leaf.name(), image) && stands_for(leaf, asking))
    }

    fn not_found(&self, image: &ImageName, reference: &str) -> Error {
        let separator = if reference.contains(':') { '@' } else { ':' };
        Error::NotFound { what: format!("{image}{separator}{reference}"), registry: self.settings.name.to_string() }
    }
}

/// Whether a member may answer for the registry that a request names. A request that names none takes the members in order.
fn stands_for(leaf: &Leaf, asking: &Asking<'_>) -> bool {
    let Some(registry) = asking.registry else { return true };
    match leaf {
        Leaf::Mirror(mirror) => mirror.settings().registry == *registry,
        Leaf::Hosted(hosted) => hosted.settings().serves_for.contains(registry),
    }
}

/// The members that are no groups, those of nested groups in their place. A ring of groups adds nothing when it comes round.
fn flatten(group: &GroupSettings, groups: &[GroupSettings]) -> Vec<RepositoryName> {
    fn walk(
        group: &GroupSettings,
        groups: &[GroupSettings],
        seen: &mut HashSet<RepositoryName>,
        order: &mut Vec<RepositoryName>,
    ) {
        for member in &group.members {
            if !seen.insert(member.clone()) {
                continue;
            }
            match groups.iter().find(|group| group.name == *member) {
                Some(nested) => walk(nested, groups, seen, order),
                None => order.push(member.clone()),
            }
        }
    }
    let mut order = Vec::new();
    walk(group, groups, &mut HashSet::from([group.name.clone()]), &mut order);
    order
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn group(name: &str, members: &[&str]) -> GroupSettings {
        GroupSettings {
            name: name.parse().unwrap(),
            online: true,
            anonymous_pull: true,
            members: members.iter().map(|member| member.parse().unwrap()).collect(),
            push_to: None,
            connectors: Vec::new(),
        }
    }

    fn flat(name: &str, groups: &[GroupSettings]) -> Vec<String> {
        let group = groups.iter().find(|group| group.name.as_str() == name).unwrap();
        flatten(group, groups).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn members_of_nested_groups_stand_in_their_place_and_each_once() {
        let groups = [group("all", &["team", "hub", "ghcr"]), group("team", &["own", "hub", "shared"])];
        assert_eq!(flat("all", &groups), ["own", "hub", "shared", "ghcr"]);
    }

    #[test]
    fn a_ring_of_groups_ends() {
        let groups = [group("a", &["x", "b"]), group("b", &["a", "y", "b"])];
        assert_eq!(flat("a", &groups), ["x", "y"]);
        assert_eq!(flat("b", &groups), ["x", "y"]);
    }
}
