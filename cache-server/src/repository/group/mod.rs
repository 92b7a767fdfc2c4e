//! A group: an ordered union of repositories behind one address. [`walk`] decides who is asked, this file asks.

mod walk;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use crds::names::RepositoryName;
use futures_util::{FutureExt, future::BoxFuture};
use quick_cache::sync::Cache;

use super::{
    Asking, BlobAnswer, BlobContent, BlobRequest, Hosted, Leaf, ManifestAnswer, MayPull, Outcome, Want, error::Error,
};
use crate::{
    globs::Glob,
    oci::{Descriptor, Digest, ImageName, Manifest, Reference, Tag, manifest},
    search::Found,
    settings::{GroupSettings, HostedSettings, MirrorSettings, RegistryName, Settings},
};
use walk::{Kind, Member, Then, Walk, Wanted, Ways};

/// Of how many images it is remembered which member had their manifest.
const ANSWERED: usize = 10_000;

/// A member and what decides whether it is asked.
struct Place {
    member: Member,
    /// Nothing for a hosted repository that exists and cannot be served.
    leaf: Option<Leaf>,
}

/// An ordered union of repositories.
pub struct Group {
    settings: GroupSettings,
    /// Those that hold content, in the order in which they are asked; each once, however many groups lead to it.
    places: Vec<Place>,
    /// The same without what only the asking needs.
    members: Vec<Member>,
    /// How they are reached.
    ways: Ways,
    /// Which member had a manifest of an image: it has the blobs too.
    answered: Cache<ImageName, usize>,
}

/// What the members have of something that is merged.
struct Merged<T> {
    /// What they answered, in their order.
    answers: Vec<T>,
    /// The first that could not tell.
    error: Option<Error>,
}

impl Group {
    /// A group over those of its members that are there, the members of nested groups in their place. `unmade` are hosted
    /// repositories that could not be made: nobody may answer in their place.
    #[must_use]
    pub fn new(
        settings: GroupSettings,
        all: &Settings,
        leaves: &HashMap<RepositoryName, Leaf>,
        unmade: &[HostedSettings],
    ) -> Arc<Self> {
        let place = |name: &RepositoryName| {
            if let Some(leaf) = leaves.get(name) {
                return Some(Place { member: member(leaf, all), leaf: Some(leaf.clone()) });
            }
            if let Some(hosted) = unmade.iter().find(|hosted| hosted.name == *name) {
                return Some(Place { member: hosted_member(hosted), leaf: None });
            }
            let kind = Kind::Hosted { reserves: Vec::new() };
            let member = Member { name: name.clone(), kind, stands_for: Vec::new() };
            all.has_lost(name).then_some(Place { member, leaf: None })
        };
        let places: Vec<Place> = all.membership(&settings).members.iter().filter_map(place).collect();
        let members: Vec<Member> = places.iter().map(|place| place.member.clone()).collect();
        let ways = Ways::new(&settings, &all.groups, &members);
        Arc::new(Self { settings, places, members, ways, answered: Cache::new(ANSWERED) })
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &GroupSettings {
        &self.settings
    }

    /// The members that hold content, in the order in which they are asked, without those that cannot be served.
    pub fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.places.iter().filter_map(|place| place.leaf.as_ref())
    }

    /// The same without those that are hidden by groups between from one who may see this.
    pub fn leaves_for(&self, may_see: &dyn Fn(&RepositoryName) -> bool) -> impl Iterator<Item = &Leaf> {
        let of_group = |name: &RepositoryName| if may_see(name) { MayPull::Yes } else { MayPull::No };
        let judged = self.ways.judge(of_group, |_| MayPull::Yes);
        let seen = self.places.iter().zip(judged).filter(|(_, may)| *may == MayPull::Yes);
        seen.filter_map(|(place, _)| place.leaf.as_ref())
    }

    /// The hosted member that takes what is pushed to the group, if there is one.
    #[must_use]
    pub fn push_target(&self) -> Option<&Arc<Hosted>> {
        let name = self.settings.push_to.as_ref()?;
        self.leaves().find_map(|leaf| match leaf {
            Leaf::Hosted(hosted) if hosted.settings().name == *name => Some(hosted),
            _ => None,
        })
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
        // Only a tag depends on the order.
        let first = reference.digest().and_then(|_| self.answered.get(image));
        let walk = self.walk(image, first, asking);
        let ask = |leaf| Leaf::manifest(leaf, image, reference, want).boxed();
        match self.first(&walk, ask).await? {
            Some((place, answer)) => {
                if self.answered.get(image) != Some(place) {
                    self.answered.insert(image.clone(), place);
                }
                Ok(answer)
            }
            None => Err(self.not_found(image, &reference.to_string())),
        }
    }

    /// A blob of the member that had the image's manifest, else of the first that has it.
    pub async fn blob(
        &self,
        image: &ImageName,
        digest: &Digest,
        request: BlobRequest,
        asking: &Asking<'_>,
    ) -> Result<BlobAnswer, Error> {
        self.check_online()?;
        let walk = self.walk(image, self.answered.get(image), asking);
        let found = self.first(&walk, |leaf| leaf.blob(image, digest, request).boxed()).await?;
        found.map(|(_, answer)| answer).ok_or_else(|| self.not_found(image, digest.as_str()))
    }

    /// Reads a blob that the caller may have through the group to its end, so that the server has it.
    pub async fn fetch_blob(&self, image: &ImageName, digest: &Digest, asking: &Asking<'_>) -> Result<(), Error> {
        let request = BlobRequest { want: Want::Content, may_go_elsewhere: false };
        let BlobContent::File { growing, .. } = self.blob(image, digest, request, asking).await?.content else {
            return Ok(());
        };
        let mut position = 0;
        loop {
            let readable = growing.readable(position).await;
            let limit = readable
                .map_err(|failure| Error::of_blob(failure, || (digest.to_string(), self.settings.name.to_string())))?;
            if limit <= position {
                return Ok(());
            }
            position = limit;
        }
    }

    /// The tags that the members have together, sorted. If some mirrors cannot be asked, those of the others.
    pub async fn tags(&self, image: &ImageName, asking: &Asking<'_>) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        self.check_online()?;
        let walk = self.walk(image, None, asking);
        let merged = self.all(&walk, |leaf| leaf.tags(image).boxed()).await?;
        if merged.answers.is_empty() {
            self.check_hidden(&walk)?;
            return Err(merged.error.unwrap_or_else(|| self.not_found(image, "tags")));
        }
        let outcome = outcome(merged.answers.iter().map(|(_, outcome)| *outcome), merged.error.is_some());
        if let [(tags, _)] = merged.answers.as_slice() {
            return Ok((Arc::clone(tags), outcome));
        }
        let mut tags: Vec<Tag> = merged.answers.iter().flat_map(|(tags, _)| tags.iter().cloned()).collect();
        tags.sort_unstable();
        tags.dedup();
        Ok((Arc::new(tags), outcome))
    }

    /// The referrers that the members have together, as an image index. If a mirror cannot be asked and the others know of none,
    /// that is an error: who looks for a signature must not be told that there is none.
    pub async fn referrers(
        &self,
        image: &ImageName,
        digest: &Digest,
        asking: &Asking<'_>,
    ) -> Result<(Bytes, Outcome), Error> {
        self.check_online()?;
        let walk = self.walk(image, self.answered.get(image), asking);
        let answered = self.all(&walk, |leaf| leaf.referrers(image, digest).boxed()).await?;
        let mut merged: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for (index, _) in &answered.answers {
            let Ok(index) = Manifest::parse(index) else { continue };
            for descriptor in index.descriptors() {
                merged.entry(descriptor.digest.clone()).or_insert_with(|| descriptor.clone());
            }
        }
        if merged.is_empty() && (answered.error.is_some() || answered.answers.is_empty()) {
            self.check_hidden(&walk)?;
            return Err(answered.error.unwrap_or_else(|| self.not_found(image, digest.as_str())));
        }
        let outcome = outcome(answered.answers.iter().map(|(_, outcome)| *outcome), answered.error.is_some());
        Ok((manifest::index_of(merged.into_values().collect()).into(), outcome))
    }

    /// The first `need` images that the members' indexes have for a text, at least: what the group would pull from the member
    /// that found it. An index that fails leaves the others.
    pub async fn search(&self, text: &str, need: usize, asking: &Asking<'_>) -> Result<Found, Error> {
        self.check_online()?;
        let leaves = self.places.iter().map(|place| async move {
            match &place.leaf {
                Some(leaf) => leaf.search(text, need).await,
                None => Ok(Found::default()),
            }
        });
        let (mut found, mut failed) = (Vec::new(), None);
        for answer in futures_util::future::join_all(leaves).await {
            // Each place has its entry, so that the one who found it is known.
            found.push(answer.unwrap_or_else(|error| {
                failed.get_or_insert(error);
                Found::default()
            }));
        }
        if let Some(error) = failed.filter(|_| found.iter().all(|found| found.hits.is_empty())) {
            return Err(error);
        }
        Ok(Found::merged(found, |place, hit| {
            hit.name.parse().is_ok_and(|image| self.walk(&image, None, asking).asked.contains(&place))
        }))
    }

    fn walk(&self, image: &ImageName, first: Option<usize>, asking: &Asking<'_>) -> Walk {
        let of = |name: &RepositoryName| (asking.may_pull)(name, image);
        let of_member = |place: usize| match &self.places[place] {
            // Who may read what cannot be served is not known; it stops everybody.
            Place { leaf: None, .. } => MayPull::Yes,
            Place { member, .. } => of(&member.name),
        };
        let may_pull = self.ways.judge(of, of_member);
        walk::order(&self.members, &Wanted { image, meant: asking.meant, may_pull: &may_pull, first })
    }

    /// Refuses one who is not known, where there are members that may say something else to somebody who is. Whether they would is
    /// not told: they are not asked.
    fn check_hidden(&self, walk: &Walk) -> Result<(), Error> {
        if walk.hidden.is_empty() { Ok(()) } else { Err(Error::LogIn(self.settings.name.to_string())) }
    }

    /// The first answer, and the place that gave it. Nothing if all of them have nothing; an error if one of them could not tell
    /// and no other has it. The members that are hidden go before such an error: one that cannot be asked must not keep those who
    /// would log in from what another one has.
    async fn first<'a, T: Send + 'a>(
        &'a self,
        walk: &Walk,
        ask: impl Fn(&'a Leaf) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<Option<(usize, T)>, Error> {
        let mut remembered = None;
        for &place in &walk.asked {
            let error = match self.ask(place, &ask).await {
                Ok(answer) => return Ok(Some((place, answer))),
                Err(error) => error,
            };
            match Then::of(&self.members[place].kind, &error) {
                Then::Next => {}
                Then::Remember => drop(remembered.get_or_insert(error)),
                Then::Stop if walk.hidden.iter().any(|hidden| *hidden < place) => break,
                // It would stop everybody before those that are hidden.
                Then::Stop => return Err(error),
            }
        }
        self.check_hidden(walk)?;
        remembered.map_or(Ok(None), Err)
    }

    /// All answers. The hosted members come first, since one that cannot tell ends it before anybody outside is asked; then all
    /// mirrors at once.
    async fn all<'a, T: Send + 'a>(
        &'a self,
        walk: &Walk,
        ask: impl Fn(&'a Leaf) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<Merged<T>, Error> {
        let is_hosted = |place: &usize| matches!(self.members[*place].kind, Kind::Hosted { .. });
        let (hosted, mirrors): (Vec<usize>, Vec<usize>) = walk.asked.iter().copied().partition(is_hosted);
        let mut answers = Vec::new();
        for place in hosted {
            match self.ask(place, &ask).await {
                Ok(answer) => answers.push((place, answer)),
                Err(error) if Then::of(&self.members[place].kind, &error) == Then::Stop => return Err(error),
                Err(_) => {}
            }
        }
        let asked = mirrors.into_iter().map(|place| self.ask(place, &ask).map(move |answer| (place, answer)));
        let mut failed = None;
        for (place, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(answer) => answers.push((place, answer)),
                Err(error) if Then::of(&self.members[place].kind, &error) == Then::Next => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        answers.sort_by_key(|(place, _)| *place);
        Ok(Merged { answers: answers.into_iter().map(|(_, answer)| answer).collect(), error: failed })
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        place: usize,
        ask: &impl Fn(&'a Leaf) -> BoxFuture<'a, Result<T, Error>>,
    ) -> BoxFuture<'a, Result<T, Error>> {
        let Place { member, leaf } = &self.places[place];
        match leaf {
            Some(leaf) => ask(leaf),
            None => std::future::ready(Err(Error::Unusable(member.name.to_string()))).boxed(),
        }
    }

    fn not_found(&self, image: &ImageName, reference: &str) -> Error {
        let separator = if reference.contains(':') { '@' } else { ':' };
        Error::NotFound { what: format!("{image}{separator}{reference}"), registry: self.settings.name.to_string() }
    }
}

fn member(leaf: &Leaf, all: &Settings) -> Member {
    match leaf {
        Leaf::Hosted(hosted) => hosted_member(hosted.settings()),
        Leaf::Mirror(mirror) => {
            let settings = mirror.settings();
            let kind = Kind::Mirror { library: settings.is_docker_hub() };
            Member { name: settings.name.clone(), kind, stands_for: stands_for(settings, &all.mirrors) }
        }
    }
}

fn hosted_member(settings: &HostedSettings) -> Member {
    let reserves = settings.reserved_names.iter().map(|text| Glob::new(text)).collect();
    let kind = Kind::Hosted { reserves };
    Member { name: settings.name.clone(), kind, stands_for: settings.serves_for.clone() }
}

/// The registries whose images a mirror has: its own, and those of the other mirrors of its URL. They differ in who asks, not in
/// what images are called; one registry leads to one mirror only where no group decides.
fn stands_for(mirror: &MirrorSettings, all: &[MirrorSettings]) -> Vec<RegistryName> {
    let url = |mirror: &MirrorSettings| mirror.upstream.url.as_str().trim_end_matches('/').to_owned();
    let same = all.iter().filter(|other| other.name != mirror.name && url(other) == url(mirror));
    std::iter::once(mirror).chain(same).map(|mirror| mirror.registry.clone()).collect()
}

/// What is said of a merged answer: the outcome that says most about upstreams.
fn outcome(outcomes: impl Iterator<Item = Outcome>, failed: bool) -> Outcome {
    let rank = |outcome: &Outcome| match outcome {
        Outcome::Hit => 0,
        Outcome::Joined => 1,
        Outcome::Revalidated => 2,
        Outcome::Miss => 3,
        Outcome::Stale => 4,
    };
    let failed = failed.then_some(Outcome::Stale);
    outcomes.chain(failed).max_by_key(rank).unwrap_or(Outcome::Hit)
}
