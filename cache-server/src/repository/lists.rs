//! Lists of a mirror: tags and referrers.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;

use super::{Mirror, Outcome, error::Error};
use crate::{
    oci::{Descriptor, Digest, ImageName, Manifest, Reference, Tag, manifest},
    upstream::{self, Patience},
};

impl Mirror {
    /// All tags of an image, sorted: the upstream's; while it cannot be asked, those last heard or those that are here.
    pub async fn tags(self: &Arc<Self>, image: &ImageName) -> Result<(Arc<Vec<Tag>>, Outcome), Error> {
        self.check_online()?;
        let known = self.tag_lists.get(image);
        if let Some((when, tags)) = &known
            && self.is_fresh(*when)
        {
            return Ok((Arc::clone(tags), Outcome::Hit));
        }
        let (mirror, image_) = (Arc::clone(self), image.clone());
        let question = || async move {
            let tags = mirror.upstream.tags(&image_, Patience::Long).await;
            let mut tags = tags.map_err(|error| mirror.refused(&image_, "tags", error))?;
            tags.sort_unstable();
            tags.dedup();
            let tags = Arc::new(tags);
            mirror.tag_lists.insert(image_, (Instant::now(), Arc::clone(&tags)));
            Ok(tags)
        };
        match self.tag_lists_asked.join(image.clone(), question).await {
            Ok(tags) => Ok((tags, Outcome::Miss)),
            Err(error) if error.is_outage() => match known {
                Some((_, tags)) => Ok((tags, Outcome::Stale)),
                None => match self.tree.tags(image).await? {
                    here if here.is_empty() => Err(error),
                    here => Ok((here, Outcome::Stale)),
                },
            },
            Err(error) => Err(error),
        }
    }

    /// The referrers of a digest as an image index: what the upstream's referrers API says, merged with the index that
    /// clients keep under the tag `<algorithm>-<hex>` for registries without that API. Never absent, only empty.
    pub async fn referrers(self: &Arc<Self>, image: &ImageName, digest: &Digest) -> Result<(Bytes, Outcome), Error> {
        self.check_online()?;
        self.check_denied(image, &Reference::Digest(digest.clone()), false).await?;
        let key = (image.clone(), digest.clone());
        let known = self.referrers.get(&key);
        if let Some((when, index)) = &known
            && self.is_fresh(*when)
        {
            return Ok((index.clone(), Outcome::Hit));
        }
        let (mirror, key_) = (Arc::clone(self), key.clone());
        let question = || async move { mirror.ask_for_referrers(key_).await };
        match self.referrers_asked.join(key, question).await {
            Ok(index) => Ok((index, Outcome::Miss)),
            Err(error) if error.is_outage() => match known {
                Some((_, index)) => Ok((index, Outcome::Stale)),
                None => match self.tree.referrers(image, digest).await? {
                    Some(index) => Ok((index.into(), Outcome::Stale)),
                    None => Err(error),
                },
            },
            Err(error) => Err(error),
        }
    }

    async fn ask_for_referrers(self: Arc<Self>, key: (ImageName, Digest)) -> Result<Bytes, Error> {
        let (image, digest) = &key;
        let (from_api, from_tag) =
            tokio::join!(self.upstream.referrers(image, digest, Patience::Long), self.referrers_tag(image, digest));
        let lists = match (from_api, from_tag) {
            (Ok(api), tag) => [api, tag.ok().flatten()],
            (Err(upstream::Error::NotFound), Ok(tag)) => [None, tag],
            (Err(error), _) => return Err(self.refused(image, digest.as_str(), error)),
        };
        let mut merged: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for list in lists.into_iter().flatten() {
            // A list that is none says nothing; the other may still.
            let Ok(index) = Manifest::parse(&list) else { continue };
            for descriptor in index.descriptors() {
                merged.entry(descriptor.digest.clone()).or_insert_with(|| descriptor.clone());
            }
        }
        let index = manifest::index_of(merged.into_values().collect());
        self.tree.set_referrers(image, digest, index.clone()).await;
        let index = Bytes::from(index);
        self.referrers.insert(key, (Instant::now(), index.clone()));
        Ok(index)
    }

    /// The index under the tag that stands for a digest (distribution-spec, "Referrers Tag Schema").
    async fn referrers_tag(&self, image: &ImageName, digest: &Digest) -> Result<Option<Vec<u8>>, upstream::Error> {
        // Cut so that sha512 fits into a tag, as the spec says.
        let Ok(tag) = format!("{}-{}", digest.algorithm(), &digest.hex()[..64]).parse::<Tag>() else { return Ok(None) };
        match self.upstream.get_manifest(image, &Reference::Tag(tag), Patience::Long).await {
            Ok(fetched) => Ok(Some(fetched.bytes.to_vec())),
            Err(upstream::Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
