//! A mirror: one upstream, one tree of the store, and what is remembered of the upstream's refusals.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crds::{
    names::RepositoryName,
    registry_mirror::{Freshness, OnDenied},
};
use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::Cache;

use super::{error::Error, flights::Flights, manifests::Fetched};
use crate::{
    oci::{Digest, ImageName, Reference, Tag},
    search::{Found, Index},
    settings::{IndexSettings, MirrorSettings, UpstreamSettings},
    store::{
        Store,
        record::TagRecord,
        tree::{Retention, Tree},
    },
    upstream::{self, Upstream, UpstreamConfig},
};

/// Refusals remembered, at most, of each sort.
const REFUSALS: usize = 10_000;

/// Lists remembered, at most, of each sort.
const LISTS: usize = 256;

/// A repository that proxies one upstream.
pub struct Mirror {
    pub(super) settings: MirrorSettings,
    pub(super) upstream: Arc<Upstream>,
    pub(super) store: Arc<Store>,
    pub(super) tree: Arc<Tree>,
    /// Bytes from the upstream.
    pub(super) received: Counter,
    /// What the upstream does not have.
    absent: Cache<(ImageName, String), Instant>,
    /// Images that the upstream denies.
    denied: Cache<ImageName, Instant>,
    pub(super) tags_asked: Flights<(ImageName, Tag, super::Want), Result<TagRecord, Error>>,
    pub(super) manifests_asked: Flights<(ImageName, Digest), Result<Fetched, Error>>,
    pub(super) blobs_asked: Flights<(ImageName, Digest), Result<Option<u64>, Error>>,
    pub(super) tag_lists_asked: Flights<ImageName, Result<Arc<Vec<Tag>>, Error>>,
    pub(super) tag_lists: Cache<ImageName, (Instant, Arc<Vec<Tag>>)>,
    pub(super) referrers_asked: Flights<(ImageName, Digest), Result<Bytes, Error>>,
    pub(super) referrers: Cache<(ImageName, Digest), (Instant, Bytes)>,
    /// Where it is searched, if it is.
    pub(super) index: Option<Index>,
}

/// Why a mirror cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its upstream cannot be asked.
    #[error("RegistryMirror {name}: the upstream cannot be used")]
    Upstream {
        /// The mirror.
        name: RepositoryName,
        /// Why.
        #[source]
        source: upstream::BuildError,
    },
    /// Its part of the store cannot be used.
    #[error("RegistryMirror {name}: its folder in the store cannot be used")]
    Store {
        /// The mirror.
        name: RepositoryName,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Mirror {
    /// A mirror over `store`, which counts in `received` the bytes that it gets from its upstream. Asks nobody.
    pub fn new(settings: MirrorSettings, store: Arc<Store>, received: Counter) -> Result<Arc<Self>, BuildError> {
        let upstream = Upstream::new(upstream_config(&settings.upstream))
            .map_err(|source| BuildError::Upstream { name: settings.name.clone(), source })?;
        let index =
            settings.index.as_ref().map(|index| Index::new(index_config(&settings.upstream, index), index.has_catalog));
        let index = index.transpose().map_err(|source| BuildError::Upstream { name: settings.name.clone(), source })?;
        let tree = store
            .tree(&settings.name, &settings.identity())
            .map_err(|source| BuildError::Store { name: settings.name.clone(), source })?;
        tree.set_retention(Retention {
            max_size: settings.retention.max_size.map(crds::names::ByteSize::as_u64),
            unused_for: settings.retention.unused_for.map(crds::names::Span::get),
        });
        Ok(Arc::new(Self {
            settings,
            upstream: Arc::new(upstream),
            store,
            tree,
            received,
            absent: Cache::new(REFUSALS),
            denied: Cache::new(REFUSALS),
            tags_asked: Flights::default(),
            manifests_asked: Flights::default(),
            blobs_asked: Flights::default(),
            tag_lists_asked: Flights::default(),
            tag_lists: Cache::new(LISTS),
            referrers_asked: Flights::default(),
            referrers: Cache::new(LISTS),
            index,
        }))
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &MirrorSettings {
        &self.settings
    }

    /// Its upstream.
    #[must_use]
    pub const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The first `need` images that the index has for a text. Nothing, if the mirror is not searched.
    pub async fn search(&self, text: &str, need: usize) -> Result<Found, Error> {
        self.check_online()?;
        let Some(index) = &self.index else { return Ok(Found::default()) };
        let named =
            |error| Error::of_upstream(error, format!("a search for {text:?}"), self.settings.registry.to_string());
        index.find(text, need).await.map_err(named)
    }

    /// The image as the upstream knows it.
    #[must_use]
    pub fn named(&self, image: &ImageName) -> ImageName {
        self.settings.image(image)
    }

    pub(super) const fn freshness(&self) -> &Freshness {
        &self.settings.freshness
    }

    /// Refuses when the repository is switched off.
    pub fn check_online(&self) -> Result<(), Error> {
        if self.settings.online { Ok(()) } else { Err(Error::Offline(self.settings.name.to_string())) }
    }

    /// What is asked for and of whom, for errors.
    pub(super) fn naming(&self, image: &ImageName, reference: &str) -> (String, String) {
        let separator = if reference.contains(':') { '@' } else { ':' };
        (format!("{image}{separator}{reference}"), self.settings.registry.to_string())
    }

    /// Turns an upstream's error into ours, and remembers a refusal.
    pub(super) fn refused(&self, image: &ImageName, reference: &str, error: upstream::Error) -> Error {
        match &error {
            upstream::Error::NotFound => {
                self.absent.insert((image.clone(), reference.to_owned()), Instant::now());
            }
            upstream::Error::Denied => {
                self.denied.insert(image.clone(), Instant::now());
            }
            _ => {}
        }
        let (what, registry) = self.naming(image, reference);
        Error::of_upstream(error, what, registry)
    }

    /// Refuses what the upstream said it does not have, for as long as that is believed.
    pub(super) fn check_absent(&self, image: &ImageName, reference: &str) -> Result<(), Error> {
        let key = (image.clone(), reference.to_owned());
        match self.absent.get(&key) {
            Some(when) if when.elapsed() < self.freshness().not_found.get() => {
                let (what, registry) = self.naming(image, reference);
                Err(Error::NotFound { what, registry })
            }
            Some(_) => {
                self.absent.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn forget_absence(&self, image: &ImageName, reference: &str) {
        self.absent.remove(&(image.clone(), reference.to_owned()));
    }

    /// Refuses an image that the upstream denies to these credentials. Once that has been believed for its time, the
    /// upstream is asked again before anything cached of the image is served: only its yes ends a denial.
    pub(super) async fn check_denied(&self, image: &ImageName, reference: &Reference, blob: bool) -> Result<(), Error> {
        let Some(when) = self.denied.get(image) else { return Ok(()) };
        let reference_text = reference.to_string();
        let (what, registry) = self.naming(image, &reference_text);
        if when.elapsed() < self.freshness().denied.get() {
            return if self.serves_denied() { Ok(()) } else { Err(Error::Denied { what, registry }) };
        }
        let patience = upstream::Patience::Short;
        let asked = match reference.digest() {
            Some(digest) if blob => self.upstream.head_blob(image, digest, patience).await.map(|_| ()),
            _ => self.upstream.head_manifest(image, reference, patience).await.map(|_| ()),
        };
        match asked {
            Ok(()) => {
                self.denied.remove(image);
                Ok(())
            }
            Err(_) if self.serves_denied() => Ok(()),
            Err(upstream::Error::Denied) => {
                self.denied.insert(image.clone(), Instant::now());
                Err(Error::Denied { what, registry })
            }
            // The last that was heard is a no.
            Err(error) => Err(Error::of_upstream(error, what, registry)),
        }
    }

    /// The upstream has said yes to something of the image.
    pub(super) fn forget_denial(&self, image: &ImageName) {
        self.denied.remove(image);
    }

    pub(super) fn serves_denied(&self) -> bool {
        self.freshness().on_denied == OnDenied::ServeCached
    }

    /// Whether something heard `when` is still believed as tags are.
    pub(super) fn is_fresh(&self, when: Instant) -> bool {
        when.elapsed() < self.freshness().tags.get()
    }

    /// How long a client whose blob broke off is sent away.
    pub(super) fn broken_blob(&self) -> Duration {
        self.freshness().broken_blob.get()
    }
}

/// The same for its index. What the upstream alone may see is shown to its own origin only.
fn index_config(settings: &UpstreamSettings, index: &IndexSettings) -> UpstreamConfig {
    let config = UpstreamConfig { url: index.url.clone(), ..upstream_config(settings) };
    if index.url.origin() == settings.url.origin() {
        return config;
    }
    UpstreamConfig {
        credentials: None,
        client_identity: None,
        skip_verify: false,
        token_hosts: Vec::new(),
        redirect_hosts: Vec::new(),
        ..config
    }
}

/// The settings of an upstream in the words of the module that asks it.
fn upstream_config(settings: &UpstreamSettings) -> UpstreamConfig {
    UpstreamConfig {
        url: settings.url.clone(),
        credentials: settings.credentials.clone(),
        trusted: settings.trusted_pem.clone().unwrap_or_default(),
        client_identity: settings
            .client_identity
            .as_ref()
            .map(|identity| upstream::ClientIdentity { chain: identity.chain().to_vec(), key: identity.key() }),
        skip_verify: settings.skip_verify,
        proxy: settings.proxy.clone(),
        token_hosts: settings.token_hosts.iter().map(ToString::to_string).collect(),
        redirect_hosts: settings.redirect_hosts.iter().map(ToString::to_string).collect(),
        limits: settings.limits.clone(),
        breaker: settings.breaker.clone(),
    }
}
