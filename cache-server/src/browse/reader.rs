//! Reads what is shown. Every look goes through [`MaySee`]: what may not be seen is as if it were not there.

use std::{collections::BTreeSet, io, sync::Arc};

use crds::names::RepositoryName;

use super::{
    document::{Described, Document, Role},
    view::{
        Fill, Image, Manifest, ManifestEntry, Moment, Part, Progress, Referrer, Repository as RepositoryView,
        RepositoryUsage, Size, Tag as TagView, Upstream, Usage, Ways,
    },
};
use crate::{
    oci::{Digest, ImageName, Manifest as ManifestDocument, Reference, Tag},
    repository::{Leaf, Repository},
    server::Current,
    settings::{ConnectorSettings, RepositoryFacts},
    store::{
        Store,
        listing::{Kept, Seen},
        record::ManifestRecord,
        tree::Tree,
    },
};

/// Whether the one who asks may see something of a repository: an image, or without one the repository itself.
pub type MaySee<'a> = &'a (dyn Fn(&Repository, Option<&ImageName>) -> bool + Send + Sync);

/// Why something cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such repository, for the one who asks.
    #[error("there is no repository {0:?} here")]
    NoRepository(String),
    /// Nothing of the image is here.
    #[error(
        "nothing of the image {image} is in {repository}; images appear once they are pulled through it, or pushed"
    )]
    NoImage {
        /// The repository.
        repository: RepositoryName,
        /// The image.
        image: ImageName,
    },
    /// The manifest is not here.
    #[error(
        "the manifest {reference} of {image} is not in {repository}; it appears once it is pulled through it, or pushed"
    )]
    NoManifest {
        /// The repository.
        repository: RepositoryName,
        /// The image.
        image: ImageName,
        /// Tag or digest.
        reference: String,
    },
    /// The volume failed.
    #[error("failed to read the store")]
    Store(#[from] io::Error),
}

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct Page<L> {
    /// At most so many.
    pub limit: usize,
    /// Only what lies behind this.
    pub last: Option<L>,
}

/// A part of a list.
#[derive(Debug)]
pub struct Listed<T> {
    /// What is listed.
    pub items: Vec<T>,
    /// Behind what the next part begins; nothing if this was the last.
    pub next: Option<String>,
}

/// Looks into a server for somebody.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    current: &'a Current,
    store: &'a Arc<Store>,
    may_see: MaySee<'a>,
}

/// One repository that holds content, and the image as it knows it.
struct Shelf {
    name: String,
    tree: Arc<Tree>,
    image: ImageName,
}

impl<'a> Reader<'a> {
    /// For somebody who may see this.
    #[must_use]
    pub const fn new(current: &'a Current, store: &'a Arc<Store>, may_see: MaySee<'a>) -> Self {
        Self { current, store, may_see }
    }

    /// The repository of a name.
    pub fn repository(&self, name: &str) -> Result<&'a Repository, Error> {
        let found = name.parse().ok().and_then(|name: RepositoryName| self.current.repository(&name));
        found.filter(|found| (self.may_see)(found, None)).ok_or_else(|| Error::NoRepository(name.to_owned()))
    }

    fn sees(&self, name: &RepositoryName, image: Option<&ImageName>) -> bool {
        self.current.repository(name).is_some_and(|repository| (self.may_see)(repository, image))
    }

    /// All repositories, mirrors first.
    #[must_use]
    pub fn repositories(&self) -> Vec<RepositoryView> {
        let facts = self.current.settings.repositories();
        facts.filter_map(|facts| Some(self.view(&facts, self.repository(facts.name.as_str()).ok()?))).collect()
    }

    fn view(&self, facts: &RepositoryFacts<'_>, repository: &Repository) -> RepositoryView {
        let (mut registries, mut upstream, mut members, mut push_to) = (Vec::new(), None, None, None);
        let seen = |name: &&RepositoryName| self.repository(name.as_str()).is_ok();
        match repository {
            Repository::Leaf(Leaf::Mirror(mirror)) => {
                registries.push(mirror.settings().registry.to_string());
                let standing = mirror.upstream().standing();
                // Without its message, which names hosts that are nobody's business but the administrator's.
                upstream = Some(Upstream { state: standing.standing.as_str(), since: Moment(standing.since) });
            }
            Repository::Leaf(Leaf::Hosted(hosted)) => {
                registries.extend(hosted.settings().serves_for.iter().map(ToString::to_string));
            }
            Repository::Group(group) => {
                let settings = group.settings();
                members = Some(settings.members.iter().filter(seen).map(ToString::to_string).collect());
                push_to = settings.push_to.as_ref().filter(seen).map(ToString::to_string);
            }
        }
        RepositoryView {
            name: facts.name.to_string(),
            kind: facts.kind,
            online: repository.check_online().is_ok(),
            ways: ways(facts, repository),
            registries,
            upstream,
            members,
            push_to,
        }
    }

    /// Images of which a repository has something, in the order of their components. A page may hold less than its limit and
    /// have a next one all the same.
    pub async fn images(&self, repository: &Repository, page: &Page<ImageName>) -> Result<Listed<Image>, Error> {
        let mut found: Vec<(ImageName, String)> = Vec::new();
        let mut end: Option<ImageName> = None;
        for holder in repository.holders(&|name| self.sees(name, None)) {
            let Some(tree) = holder.tree().filter(|_| (self.may_see)(&holder, None)) else { continue };
            let images = self.store.images(tree, page.last.clone(), page.limit).await?;
            let seen = images
                .names
                .into_iter()
                .filter(|image| (self.may_see)(repository, Some(image)) && (self.may_see)(&holder, Some(image)));
            found.extend(seen.map(|image| (image, holder.name().to_string())));
            // Beyond where one member stopped, not all is known.
            end = [end, images.next].into_iter().flatten().min_by(by_components);
        }
        // Stable: members stay in their order.
        found.sort_by(|(one, _), (other, _)| by_components(one, other));
        let mut items: Vec<Image> = Vec::new();
        for (name, holder) in found {
            if end.as_ref().is_some_and(|end| by_components(&name, end).is_gt()) {
                break;
            }
            if let Some(image) = items.last_mut().filter(|image| image.name == name.as_str()) {
                image.repositories.push(holder);
            } else if items.len() == page.limit {
                end = items.last().and_then(|image| image.name.parse().ok());
                break;
            } else {
                items.push(Image { name: name.to_string(), repositories: vec![holder] });
            }
        }
        Ok(Listed { items, next: end.map(|end| end.to_string()) })
    }

    /// The tags of an image that are here, sorted; those of a group's members one beside the other.
    pub async fn tags(
        &self,
        repository: &Repository,
        image: &ImageName,
        page: &Page<String>,
    ) -> Result<Listed<TagView>, Error> {
        let shelves = self.shelves(repository, image).await?;
        let mut names = BTreeSet::new();
        for shelf in &shelves {
            names.extend(shelf.tree.tags(&shelf.image).await?.iter().cloned());
        }
        let (names, next) = cut(names.into_iter(), Tag::as_str, page);
        let mut items = Vec::new();
        for shelf in &shelves {
            let seen = self.store.see_tags(&shelf.tree, &shelf.image, names.clone()).await?;
            let targets = seen.iter().map(|seen| (seen.record.target.digest.clone(), true)).collect();
            let kept = self.store.kept(&shelf.tree, &shelf.image, targets).await;
            items.extend(seen.into_iter().zip(kept).map(|(seen, kept)| TagView {
                name: seen.key.to_string(),
                repository: shelf.name.clone(),
                digest: seen.record.target.digest.to_string(),
                media_type: seen.record.target.media_type.to_string(),
                size: Size(seen.record.target.size),
                cached: kept == Kept::Whole,
                confirmed: Moment::of_millis(seen.record.checked),
                last_used: Moment(seen.used),
            }));
        }
        items.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Listed { items, next })
    }

    /// The manifests of an image that are here, sorted by digest.
    pub async fn manifests(
        &self,
        repository: &Repository,
        image: &ImageName,
        page: &Page<String>,
    ) -> Result<Listed<ManifestEntry>, Error> {
        let shelves = self.shelves(repository, image).await?;
        let mut digests = BTreeSet::new();
        for shelf in &shelves {
            digests.extend(self.store.manifests(&shelf.tree, &shelf.image).await?);
        }
        let (digests, next) = cut(digests.into_iter(), Digest::as_str, page);
        let mut items = Vec::new();
        for shelf in &shelves {
            let seen = self.store.see_manifests(&shelf.tree, &shelf.image, digests.clone()).await?;
            items.extend(seen.into_iter().map(|seen| ManifestEntry {
                digest: seen.key.to_string(),
                repository: shelf.name.clone(),
                media_type: seen.record.media_type.to_string(),
                size: Size(seen.record.size),
                last_used: Moment(seen.used),
            }));
        }
        items.sort_by(|one, other| one.digest.cmp(&other.digest));
        Ok(Listed { items, next })
    }

    /// A manifest that is here, with what it points to; of a group's members, that of the first that has it.
    pub async fn manifest(
        &self,
        repository: &Repository,
        image: &ImageName,
        reference: &Reference,
    ) -> Result<Manifest, Error> {
        for shelf in self.shelves(repository, image).await? {
            let (digest, confirmed) = match reference {
                Reference::Digest(digest) => (digest.clone(), None),
                Reference::Tag(tag) => {
                    let seen = self.store.see_tags(&shelf.tree, &shelf.image, vec![tag.clone()]).await?;
                    let Some(seen) = seen.into_iter().next() else { continue };
                    (seen.record.target.digest, Some(Moment::of_millis(seen.record.checked)))
                }
            };
            let seen = self.store.see_manifests(&shelf.tree, &shelf.image, vec![digest]).await?;
            let Some(seen) = seen.into_iter().next() else { continue };
            let Some(manifest) = self.open(&shelf, seen).await? else { continue };
            return Ok(Manifest { confirmed, ..manifest });
        }
        Err(Error::NoManifest {
            repository: repository.name().clone(),
            image: image.clone(),
            reference: reference.to_string(),
        })
    }

    /// Nothing if its bytes are gone or damaged.
    async fn open(&self, at: &Shelf, entry: Seen<Digest, ManifestRecord>) -> Result<Option<Manifest>, Error> {
        let Seen { key: digest, record, used: last_used } = entry;
        let Some(bytes) = self.store.read_small(&digest).await? else { return Ok(None) };
        // A manifest of a kind that is not known has no parts that could be shown.
        let document = Document::read(&bytes).unwrap_or_default();
        let parts = document.parts.iter().map(|part| (part.digest.clone(), part.is_manifest)).collect();
        let kept = self.store.kept(&at.tree, &at.image, parts).await;
        let referrers = at.tree.referrers(&at.image, &digest).await?;
        let mut manifest = Manifest {
            image: at.image.to_string(),
            repository: at.name.clone(),
            digest: digest.to_string(),
            media_type: record.media_type.to_string(),
            artifact_type: document.artifact_type,
            size: Size(record.size),
            last_used: Moment(last_used),
            confirmed: None,
            manifests: Vec::new(),
            config: None,
            layers: Vec::new(),
            left_out: document.left_out,
            subject: document.subject.map(|subject| subject.to_string()),
            referrers: referrers.map(|index| listed_referrers(&index)).unwrap_or_default(),
        };
        for (described, kept) in document.parts.into_iter().zip(kept) {
            let role = described.role;
            let part = part(described, kept);
            match role {
                Role::Config => manifest.config = Some(part),
                Role::Layer => manifest.layers.push(part),
                Role::Manifest => manifest.manifests.push(part),
            }
        }
        Ok(Some(manifest))
    }

    /// How full the store is. Repositories as the sweep last counted them.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let survey = self.store.survey();
        let counted = survey.as_deref().map(|survey| Moment(survey.taken));
        let names = self.current.settings.repositories().map(|facts| facts.name);
        let of = |name: &RepositoryName| {
            self.repository(name.as_str()).ok()?;
            let held = *survey.as_deref()?.repositories.get(name.as_str())?;
            Some(RepositoryUsage {
                name: name.to_string(),
                manifests: held.manifests,
                blobs: held.blobs,
                bytes: Size(held.bytes),
            })
        };
        Usage {
            stored_bytes: Size(self.store.used_bytes()),
            limit_bytes: Size(self.store.limit_bytes()),
            counted,
            repositories: names.filter_map(of).collect(),
        }
    }

    /// The running fills of blobs that a repository may hand out which may be seen, sorted by digest.
    pub async fn fills(&self, page: &Page<String>) -> Listed<Fill> {
        let running = self.store.fills().await;
        let digests: Vec<Digest> = running.iter().map(|fill| fill.digest.clone()).collect();
        let mut waiting: Vec<Vec<String>> = vec![Vec::new(); running.len()];
        for facts in self.current.settings.repositories() {
            let Ok(repository) = self.repository(facts.name.as_str()) else { continue };
            let Some(tree) = repository.tree() else { continue };
            for (place, linked) in self.store.links(tree, digests.clone()).await.into_iter().enumerate() {
                if linked {
                    waiting[place].push(facts.name.to_string());
                }
            }
        }
        let fills = running.into_iter().zip(waiting).filter(|(_, waiting)| !waiting.is_empty());
        let fills = fills.map(|(fill, repositories)| Fill {
            digest: fill.digest.to_string(),
            repositories,
            progress: progress(fill.available, fill.total),
            began: Moment(fill.began),
        });
        let (items, next) = cut(fills, |fill| &fill.digest, page);
        Listed { items, next }
    }

    /// Where an image may lie, in the order in which a group asks. An error if it lies nowhere.
    async fn shelves(&self, repository: &Repository, image: &ImageName) -> Result<Vec<Shelf>, Error> {
        let mut shelves = Vec::new();
        for holder in repository.holders(&|name| self.sees(name, Some(image))) {
            let named = holder.named(image);
            let seen = [repository, &holder].iter().all(|it| (self.may_see)(it, Some(&named)));
            let Some(tree) = holder.tree().filter(|_| seen) else { continue };
            if self.store.has_image(tree, &named).await {
                shelves.push(Shelf { name: holder.name().to_string(), tree: Arc::clone(tree), image: named });
            }
        }
        if shelves.is_empty() {
            return Err(Error::NoImage { repository: repository.name().clone(), image: image.clone() });
        }
        Ok(shelves)
    }
}

/// The order in which a tree's folders are walked: by components, so that `a/b` stands before `a-b`.
fn by_components(one: &ImageName, other: &ImageName) -> std::cmp::Ordering {
    one.components().cmp(other.components())
}

/// At most `limit` of what lies behind `last`, and behind what to go on.
fn cut<T>(all: impl Iterator<Item = T>, text: impl Fn(&T) -> &str, page: &Page<String>) -> (Vec<T>, Option<String>) {
    let behind = |item: &T| page.last.as_deref().is_none_or(|last| text(item) > last);
    let mut rest = all.filter(behind);
    let items: Vec<T> = rest.by_ref().take(page.limit).collect();
    let next = rest.next().and_then(|_| items.last()).map(|last| text(last).to_owned());
    (items, next)
}

fn part(described: Described, kept: Kept) -> Part {
    let filling = match kept {
        Kept::Filling { available, total } => Some(progress(available, total)),
        Kept::No | Kept::Whole => None,
    };
    Part {
        role: match described.role {
            Role::Config => "config",
            Role::Layer => "layer",
            Role::Manifest => "manifest",
        },
        digest: described.digest.to_string(),
        media_type: described.media_type.to_string(),
        size: described.size.map(Size),
        platform: described.platform,
        cached: kept == Kept::Whole,
        filling,
    }
}

fn progress(available: u64, total: Option<u64>) -> Progress {
    Progress { bytes: Size(available), total: total.map(Size) }
}

fn listed_referrers(index: &[u8]) -> Vec<Referrer> {
    let listed = ManifestDocument::parse(index).map(|index| index.descriptors().to_vec()).unwrap_or_default();
    let referrer = |descriptor: crate::oci::Descriptor| Referrer {
        digest: descriptor.digest.to_string(),
        media_type: descriptor.media_type.to_string(),
        artifact_type: descriptor.artifact_type,
    };
    listed.into_iter().take(100).map(referrer).collect()
}

fn ways(facts: &RepositoryFacts<'_>, repository: &Repository) -> Ways {
    let mut paths = vec![format!("/repository/{}/v2/", facts.name), format!("/v2/{}/", facts.name)];
    if let Repository::Leaf(Leaf::Mirror(mirror)) = repository {
        paths.push(format!("/v2/{}/", mirror.settings().registry));
    }
    let (mut ports, mut hosts) = (Vec::new(), Vec::new());
    for connector in facts.connectors {
        match connector {
            ConnectorSettings::Port { port, .. } => ports.push(*port),
            ConnectorSettings::Host { host, .. } => hosts.push(host.clone()),
        }
    }
    Ways { paths, ports, hosts }
}
