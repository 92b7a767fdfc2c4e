//! The upstream as the rest of the server sees it: what can be asked, and what the answers mean. May import everything of
//! this module.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use crds::{
    names::Span,
    registry_mirror::{StallLimit, UpstreamLimits},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, HeaderName},
};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::{
    body::{Body, Encoding, content_length, content_range, is_html},
    challenge::{self, Challenge, Said, Step},
    config::UpstreamConfig,
    error::{BuildError, Error, Misfit, Slow, Violation},
    exchange::{Deadline, Question, Reply, Wire},
    health::{Availability, Health, Ticket},
    hosts::{HostList, host_of},
    page::{self, Next},
    rate_limit::{RateLimit, retry_after},
    standing::{StandingReport, Subject},
    token::{Token, Tokens},
};
use crate::oci::{Algorithm, Digest, ImageName, MediaType, Reference, Tag, media_type};

/// The largest manifest, list of tags or list of referrers that is read (a page of it).
const LARGEST_DOCUMENT: usize = 8 * 1024 * 1024;
/// How many pages of a list are read.
const MOST_PAGES: usize = 200;
/// How many tags a list may have.
const MOST_TAGS: usize = 200_000;
/// How many tags are asked for at once.
const PAGE: &str = "1000";
/// The prober waits at least so long, lest it spin while another request is the trial.
const SHORTEST_PROBE_WAIT: Duration = Duration::from_millis(50);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A check is made at most so often; who asks more often is told what the last one found.
const CHECK_PAUSE: Duration = Duration::from_secs(2);

/// How long an answer's header may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Nothing cached could be served instead: `limits.header`.
    Long,
    /// A cached copy could be served instead: `limits.headerWithCopy`.
    Short,
}

/// What an upstream says about a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest, if the upstream says it.
    pub digest: Option<Digest>,
    /// Its media type, if the upstream says it.
    pub media_type: Option<MediaType>,
    /// Its size in bytes, if the upstream says it.
    pub size: Option<u64>,
}

/// A manifest, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The manifest.
    pub bytes: Bytes,
    /// Its media type: what the upstream says, or, if it says nothing useful, what the manifest itself says.
    pub media_type: MediaType,
    /// What it hashes to; the asked digest if it was asked for by digest, else of the claimed digest's algorithm.
    pub digest: Digest,
    /// What the upstream claims that it hashes to; equal to `digest` if of the same algorithm.
    pub claimed: Option<Digest>,
}

/// A blob on its way.
#[derive(Debug)]
pub struct BlobBody {
    /// The offset of the first byte: the asked one, or 0 if the upstream starts over.
    pub start: u64,
    /// The size of the whole blob, if the upstream says it.
    pub total: Option<u64>,
    /// The bytes from `start` on.
    pub body: Body,
}

/// One upstream registry, asked as one identity. Cheap to share in an `Arc`; making one opens no connection.
///
/// Every request: waits for one of `limits.concurrency` places (not longer than its header limit, which then begins),
/// ends within the header limit or begins a body that is bound by the stall limit only, and is refused at once while the
/// breaker is open or the upstream asked for a pause. When the breaker opens, a task of its own probes the upstream until
/// it is back or the `Upstream` is dropped.
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    limits: UpstreamLimits,
    wire: Arc<Wire>,
    tokens: Arc<Tokens>,
    places: Arc<Semaphore>,
    health: Health,
    /// How the upstream wanted to be told who asks, last time.
    challenge: Mutex<Option<Challenge>>,
    /// When the last check ended. Held by the one who checks.
    checked: tokio::sync::Mutex<Option<Instant>>,
}

/// What a question is about, which decides who the upstream is told we are.
#[derive(Clone, Copy)]
enum About<'a> {
    /// Whether it is alive: nobody is named.
    Life,
    /// Whether it knows us: named, without an image.
    Us,
    /// What it has: named, without an image.
    Content,
    /// An image: named, with the right to pull it.
    Image(&'a ImageName),
}

impl<'a> About<'a> {
    const fn image(self) -> Option<&'a ImageName> {
        match self {
            Self::Life | Self::Us | Self::Content => None,
            Self::Image(image) => Some(image),
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Upstream({})", host_of(self.shared.wire.upstream()))
    }
}

impl Upstream {
    /// An upstream with these settings.
    pub fn new(config: UpstreamConfig) -> Result<Self, BuildError> {
        let token_hosts = HostList::parse(&config.token_hosts).map_err(|text| BuildError::Host { text })?;
        let wire = Arc::new(Wire::new(&config, &token_hosts)?);
        let subject = Subject {
            host: host_of(&config.url).to_owned(),
            proxy: config.proxy.as_ref().map(|proxy| host_of(proxy).to_owned()),
            has_credentials: config.credentials.is_some(),
        };
        let shared = Shared {
            tokens: Arc::new(Tokens::new(Arc::clone(&wire), config.credentials, token_hosts)),
            places: Arc::new(Semaphore::new(config.limits.concurrency.max(1) as usize)),
            health: Health::new(subject, config.breaker),
            limits: config.limits,
            wire,
            challenge: Mutex::new(None),
            checked: tokio::sync::Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks what a manifest is, without its content: Docker Hub does not count this as a pull.
    pub async fn head_manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        patience: Patience,
    ) -> Result<ManifestHead, Error> {
        let question =
            self.question(Method::HEAD, image, &["manifests", &reference.to_string()], Some(media_type::ACCEPT));
        match self.shared.ask(&question, About::Image(image), patience).await {
            Ok((reply, _place)) => head_of(reply.response.headers()),
            Err(error) if head_is_odd(&error) => {
                let manifest = self.get_manifest(image, reference, patience).await?;
                Ok(ManifestHead {
                    digest: Some(manifest.digest),
                    media_type: Some(manifest.media_type),
                    size: Some(manifest.bytes.len() as u64),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches a manifest of at most 8 MiB. It hashes to what it was asked for by and to what the upstream claims.
    pub async fn get_manifest(
        &self,
        image: &ImageName,
        reference: &Reference,
        patience: Patience,
    ) -> Result<FetchedManifest, Error> {
        let question =
            self.question(Method::GET, image, &["manifests", &reference.to_string()], Some(media_type::ACCEPT));
        let (reply, place) = self.shared.ask(&question, About::Image(image), patience).await?;
        let headers = reply.response.headers().clone();
        let bytes = self.document(reply, place, patience).await?;
        manifest_of(&headers, bytes, reference.digest())
    }

    /// Asks for the size of a blob; `None` if it exists but the upstream does not say its size.
    pub async fn head_blob(
        &self,
        image: &ImageName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Option<u64>, Error> {
        let mut question = self.question(Method::HEAD, image, &["blobs", digest.as_str()], None);
        let (reply, _place) = match self.shared.ask(&question, About::Image(image), patience).await {
            Err(error) if head_is_odd(&error) => {
                // Some registries know no HEAD, and some storages sign only GET. The body is dropped unread.
                question.method = Method::GET;
                self.shared.ask(&question, About::Image(image), patience).await?
            }
            other => other?,
        };
        let headers = reply.response.headers();
        if is_html(headers) {
            return Err(Error::WrongContent(Misfit::Html));
        }
        Ok(content_length(headers)
            .filter(|_| Encoding::of(headers).is_ok_and(|encoding| encoding == Encoding::Identity)))
    }

    /// Fetches a blob from `offset` on. The bytes are not verified here. If [`Error::restart`], only offset 0 helps.
    pub async fn get_blob(
        &self,
        image: &ImageName,
        digest: &Digest,
        offset: u64,
        patience: Patience,
    ) -> Result<BlobBody, Error> {
        let mut question = self.question(Method::GET, image, &["blobs", digest.as_str()], None);
        question.offset = offset;
        let (reply, place) = self.shared.ask(&question, About::Image(image), patience).await?;
        let (status, headers) = (reply.response.status(), reply.response.headers());
        if is_html(headers) {
            return Err(Error::WrongContent(Misfit::Html));
        }
        let (start, total) = place_of(status, headers, offset)?;
        Ok(BlobBody { start, total, body: Body::of(reply.response, &self.shared.limits.stall, place)? })
    }

    /// All tags of an image, in the upstream's order; what is no tag is left out.
    pub async fn tags(&self, image: &ImageName, patience: Patience) -> Result<Vec<Tag>, Error> {
        let mut question = self.question(Method::GET, image, &["tags", "list"], None);
        question.url.query_pairs_mut().append_pair("n", PAGE);
        let mut tags = Vec::new();
        for _ in 0..MOST_PAGES {
            let (bytes, next) = self.page(&question, About::Image(image), patience).await?;
            let list: TagList = serde_json::from_slice(&bytes).map_err(|_| Error::WrongContent(Misfit::Json))?;
            tags.extend(list.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse::<Tag>().ok()));
            if tags.len() > MOST_TAGS {
                break;
            }
            match next {
                Some(url) => question.url = url,
                None => return Ok(tags),
            }
        }
        Err(Error::Protocol(Violation::Pages))
    }

    /// The index of what refers to a manifest, all pages in one. `None`: this upstream has no referrers API.
    pub async fn referrers(
        &self,
        image: &ImageName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut question = self.question(Method::GET, image, &["referrers", digest.as_str()], Some(media_type::ACCEPT));
        let (bytes, mut next) = match self.page(&question, About::Image(image), patience).await {
            Ok(page) => page,
            Err(
                Error::NotFound
                | Error::WrongContent(Misfit::Html)
                | Error::Protocol(Violation::Status(_))
                | Error::Unavailable { status: 501, .. },
            ) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(mut index) = Index::parse(&bytes) else { return Ok(None) };
        if next.is_none() {
            return Ok(Some(bytes.into()));
        }
        for _ in 1..MOST_PAGES {
            let Some(url) = next else {
                return serde_json::to_vec(&index.0).map(Some).map_err(|_| Error::WrongContent(Misfit::Json));
            };
            question.url = url;
            let (bytes, after) = self.page(&question, About::Image(image), patience).await?;
            let page = Index::parse(&bytes).ok_or(Error::WrongContent(Misfit::Json))?;
            index.append(page);
            next = after;
        }
        Err(Error::Protocol(Violation::Pages))
    }

    /// A page of what has a text in its name or description (Docker's registry API, version 1: `GET /v1/search`).
    pub async fn search(&self, text: &str, size: usize, page: usize) -> Result<Bytes, Error> {
        let mut url = self.shared.wire.upstream().clone();
        url.set_path(&format!("{}/v1/search", url.path().trim_end_matches('/')));
        url.query_pairs_mut()
            .append_pair("q", text)
            .append_pair("n", &size.to_string())
            .append_pair("page", &page.to_string());
        let question = Question { method: Method::GET, url, accept: None, offset: 0 };
        let (reply, place) = self.shared.ask(&question, About::Content, Patience::Long).await?;
        self.document(reply, place, Patience::Long).await
    }

    /// The names of images that the upstream lists, at most so many; what is no name is left out.
    pub async fn catalog(&self, most: usize) -> Result<Vec<ImageName>, Error> {
        let mut url = self.shared.url("_catalog");
        url.query_pairs_mut().append_pair("n", PAGE);
        let mut question = Question { method: Method::GET, url, accept: None, offset: 0 };
        let mut names = Vec::new();
        for _ in 0..MOST_PAGES {
            let (bytes, next) = self.page(&question, About::Content, Patience::Long).await?;
            let list: Catalog = serde_json::from_slice(&bytes).map_err(|_| Error::WrongContent(Misfit::Json))?;
            names
                .extend(list.repositories.unwrap_or_default().iter().filter_map(|name| name.parse::<ImageName>().ok()));
            match next {
                Some(url) if names.len() < most => question.url = url,
                _ => break,
            }
        }
        names.truncate(most);
        Ok(names)
    }

    /// Whether the upstream may be asked, for logs, metrics and the decision not to ask.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.shared.health.availability()
    }

    /// How the upstream stands, by what was last heard of it.
    #[must_use]
    pub fn standing(&self) -> StandingReport {
        self.shared.health.standing()
    }

    /// Asks the upstream whether it answers us (`GET /v2/`, with the credentials), even while the breaker is open, and
    /// says how it stands then. Not asked: within 2 s after the last check, and during the pause that a 429 asked for.
    pub async fn check(&self) -> StandingReport {
        self.shared.check().await;
        self.standing()
    }

    /// The last rate limit that the upstream told.
    #[must_use]
    pub fn rate_limit(&self) -> Option<RateLimit> {
        self.shared.health.rate_limit()
    }

    /// Asks whether the upstream is alive (`GET /v2/`: everything that is no 5xx counts), for the breaker's sake. Does
    /// nothing while the breaker is open and its time has not come.
    pub async fn probe(&self) {
        self.shared.probe().await;
    }

    fn question(&self, method: Method, image: &ImageName, rest: &[&str], accept: Option<&'static str>) -> Question {
        let mut path = format!("{image}");
        for part in rest {
            path.push('/');
            path.push_str(part);
        }
        Question { method, url: self.shared.url(&path), accept, offset: 0 }
    }

    async fn page(
        &self,
        question: &Question,
        about: About<'_>,
        patience: Patience,
    ) -> Result<(Bytes, Option<Url>), Error> {
        let (reply, place) = self.shared.ask(question, about, patience).await?;
        let next = match page::next(&question.url, reply.response.headers()) {
            Next::End => None,
            Next::Page(url) => Some(url),
            Next::Astray => return Err(Error::Protocol(Violation::Pages)),
        };
        Ok((self.document(reply, place, patience).await?, next))
    }

    /// The body of a small answer. It may stall no longer than its header might have taken.
    async fn document(&self, reply: Reply, place: OwnedSemaphorePermit, patience: Patience) -> Result<Bytes, Error> {
        let headers = reply.response.headers();
        if is_html(headers) {
            return Err(Error::WrongContent(Misfit::Html));
        }
        if content_length(headers).is_some_and(|length| length > LARGEST_DOCUMENT as u64) {
            return Err(Error::WrongContent(Misfit::TooLarge { limit: LARGEST_DOCUMENT as u64 }));
        }
        let StallLimit { window, bytes_per_second } = self.shared.limits.stall;
        let window =
            if window.get() < self.shared.limit(patience).get() { window } else { self.shared.limit(patience) };
        Body::of(reply.response, &StallLimit { window, bytes_per_second }, place)?.collect(LARGEST_DOCUMENT).await
    }
}

impl Shared {
    /// A URL below `/v2/`, behind the path of the upstream's own URL.
    fn url(&self, path: &str) -> Url {
        let mut url = self.wire.upstream().clone();
        url.set_path(&format!("{}/v2/{path}", url.path().trim_end_matches('/')));
        url.set_query(None);
        url.set_fragment(None);
        url
    }

    const fn limit(&self, patience: Patience) -> Span {
        match patience {
            Patience::Long => self.limits.header,
            Patience::Short => self.limits.header_with_copy,
        }
    }

    /// Asks, and keeps what the outcome says about the upstream's health.
    async fn ask(
        self: &Arc<Self>,
        question: &Question,
        about: About<'_>,
        patience: Patience,
    ) -> Result<(Reply, OwnedSemaphorePermit), Error> {
        self.health.check(Instant::now())?;
        let limit = self.limit(patience).get();
        let place = Deadline::after(limit).hold(Slow::Turn, Arc::clone(&self.places).acquire_owned()).await?;
        let place = place.map_err(|_| Error::TimedOut { what: Slow::Turn })?;
        let ticket = self.health.admit(Instant::now())?;
        let reply = self.ask_admitted(ticket, question, about, limit).await?;
        Ok((reply, place))
    }

    async fn ask_admitted(
        self: &Arc<Self>,
        ticket: Ticket<'_>,
        question: &Question,
        about: About<'_>,
        limit: Duration,
    ) -> Result<Reply, Error> {
        let outcome = self.converse(question, about, Deadline::after(limit)).await;
        ticket.settle(outcome.as_ref().map(|_| ()), matches!(about, About::Us));
        if self.health.claim_probing() {
            self.keep_probing();
        }
        outcome
    }

    /// Asks, saying who asks as the upstream wants it; answers that are no success become errors.
    async fn converse(&self, question: &Question, about: About<'_>, deadline: Deadline) -> Result<Reply, Error> {
        let mut challenge = self.remembered();
        let mut repeated = false;
        let mut rejected: Option<Token> = None;
        loop {
            let known = challenge.as_ref().filter(|_| !matches!(about, About::Life));
            let introduced = self.introduce(known, about.image(), rejected.as_ref(), deadline).await;
            let (said, token, header) = introduced.inspect_err(|error| {
                // The token server may have moved: the next request hears from the upstream where it is.
                if !matches!(error, Error::Denied | Error::RateLimited { .. }) {
                    self.remember(None);
                }
            })?;
            if repeated {
                self.remember(challenge.clone());
            }
            let reply = self.wire.ask(question, header, deadline).await?;
            if let Some(limit) = reply.rate_limit {
                self.health.note_rate_limit(limit);
            }
            let status = reply.response.status();
            let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if !reply.at_home || !denied || matches!(about, About::Life) {
                return judge(reply);
            }
            let received = Challenge::of(reply.response.headers());
            let Step::Answer(next) = challenge::judge(status, said, received, challenge.clone(), repeated) else {
                // Anonymous tokens without an image often open nothing, yet show that images can be asked for.
                let is_answer = matches!(about, About::Us) && token.is_some() && self.tokens.is_anonymous();
                return if is_answer { Ok(reply) } else { Err(Error::Denied) };
            };
            if next == Challenge::Basic && self.tokens.basic().is_none() {
                return Err(Error::Denied);
            }
            rejected = token.filter(|_| challenge.as_ref() == Some(&next));
            (challenge, repeated) = (Some(next), true);
        }
    }

    /// What to say about who asks.
    async fn introduce(
        &self,
        challenge: Option<&Challenge>,
        image: Option<&ImageName>,
        rejected: Option<&Token>,
        deadline: Deadline,
    ) -> Result<(Said, Option<Token>, Option<HeaderValue>), Error> {
        Ok(match challenge {
            None => (Said::Nothing, None, None),
            Some(Challenge::Basic) => (Said::Password, None, self.tokens.basic()),
            Some(Challenge::Bearer { realm, service }) => {
                let (token, fresh) = self.tokens.get(realm, service.as_deref(), image, rejected, deadline).await?;
                let said = if fresh { Said::FreshToken } else { Said::OldToken };
                let header = token.header();
                (said, Some(token), Some(header))
            }
        })
    }

    fn remembered(&self) -> Option<Challenge> {
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, challenge: Option<Challenge>) {
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = challenge;
    }

    fn base(&self) -> Question {
        Question { method: Method::GET, url: self.url(""), accept: None, offset: 0 }
    }

    async fn check(self: &Arc<Self>) {
        // Those who wait for a running check find that it was just made.
        let mut checked = self.checked.lock().await;
        if checked.is_some_and(|when| when.elapsed() < CHECK_PAUSE) {
            return;
        }
        if let Ok(ticket) = self.health.admit_check(Instant::now())
            && let Err(error) = self.ask_admitted(ticket, &self.base(), About::Us, self.limits.header.get()).await
        {
            tracing::debug!(upstream.host = host_of(self.wire.upstream()), %error, "upstream checked");
        }
        *checked = Some(Instant::now());
    }

    async fn probe(self: &Arc<Self>) {
        if let Err(error) = self.ask(&self.base(), About::Life, Patience::Long).await {
            tracing::debug!(upstream.host = host_of(self.wire.upstream()), %error, "upstream probed");
        }
    }

    /// Probes from the moment the breaker allows it until it is closed, as long as somebody holds the upstream.
    fn keep_probing(self: &Arc<Self>) {
        let upstream = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let Some(until) = upstream.upgrade().and_then(|shared| shared.health.next_probe()) else { return };
                let wait = until.saturating_duration_since(Instant::now()).max(SHORTEST_PROBE_WAIT);
                tokio::time::sleep(wait).await;
                let Some(shared) = upstream.upgrade() else { return };
                // Boxed: asking may start probing, so the two types contain each other.
                let probe: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
                    Box::pin(async move { shared.probe().await });
                probe.await;
            }
        });
    }
}

/// What an answer that is not about who asks means.
fn judge(reply: Reply) -> Result<Reply, Error> {
    let wait = retry_after(reply.response.headers(), SystemTime::now());
    let status = reply.response.status();
    match (status.as_u16(), reply.at_home) {
        (200 | 206, _) => Ok(reply),
        (404 | 410, _) => Err(Error::NotFound),
        (401 | 403 | 451, true) => Err(Error::Denied),
        (429, true) => Err(Error::RateLimited { retry_after: wait }),
        // Where a redirect led, a signature may be too old or a region blocked: that says nothing about who asks.
        (401 | 403 | 408 | 425 | 429 | 451 | 500..=599, _) => {
            Err(Error::Unavailable { status: status.as_u16(), retry_after: wait })
        }
        (416, _) => Err(Error::Protocol(Violation::Range)),
        (status, _) => Err(Error::Protocol(Violation::Status(status))),
    }
}

/// Whether a HEAD may have failed only because it was a HEAD.
const fn head_is_odd(error: &Error) -> bool {
    matches!(error, Error::Protocol(Violation::Status(_)) | Error::Unavailable { status: 401 | 403 | 501, .. })
}

fn head_of(headers: &HeaderMap) -> Result<ManifestHead, Error> {
    if is_html(headers) {
        return Err(Error::WrongContent(Misfit::Html));
    }
    let identity = Encoding::of(headers).is_ok_and(|encoding| encoding == Encoding::Identity);
    Ok(ManifestHead {
        digest: claimed_digest(headers),
        media_type: content_type(headers),
        size: content_length(headers).filter(|_| identity),
    })
}

fn claimed_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

fn content_type(headers: &HeaderMap) -> Option<MediaType> {
    headers.get(CONTENT_TYPE)?.to_str().ok()?.parse().ok()
}

fn manifest_of(headers: &HeaderMap, bytes: Bytes, asked: Option<&Digest>) -> Result<FetchedManifest, Error> {
    let claimed = claimed_digest(headers);
    let verify = |expected: &Digest| {
        let got = Digest::of(expected.algorithm(), &bytes);
        if got == *expected {
            return Ok(got);
        }
        Err(Error::WrongContent(Misfit::Digest { expected: expected.to_string(), got: got.to_string() }))
    };
    let from_claim = claimed.as_ref().map(verify).transpose()?;
    let digest = match (asked, from_claim) {
        (Some(asked), _) => verify(asked)?,
        (None, Some(digest)) => digest,
        (None, None) => Digest::of(Algorithm::Sha256, &bytes),
    };
    let media_type = content_type(headers)
        .filter(MediaType::is_manifest_like)
        .or_else(|| own_media_type(&bytes))
        .or_else(|| content_type(headers))
        .ok_or(Error::WrongContent(Misfit::MediaType))?;
    Ok(FetchedManifest { bytes, media_type, digest, claimed })
}

/// What a manifest says about itself, for upstreams that serve it as plain JSON.
fn own_media_type(bytes: &[u8]) -> Option<MediaType> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: String,
    }
    serde_json::from_slice::<Own>(bytes).ok()?.media_type.parse().ok().filter(MediaType::is_manifest_like)
}

/// Where the body of an answer to a blob request begins, and how large the blob is.
fn place_of(status: StatusCode, headers: &HeaderMap, offset: u64) -> Result<(u64, Option<u64>), Error> {
    let identity = Encoding::of(headers)? == Encoding::Identity;
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok((0, content_length(headers).filter(|_| identity)));
    }
    match content_range(headers) {
        // A range of encoded bytes is a range of something else.
        Some((first, total)) if first == offset && offset > 0 && identity => Ok((first, total)),
        _ => Err(Error::Protocol(Violation::Range)),
    }
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

/// An image index whose manifests are under our hands, everything else as it came.
struct Index(serde_json::Map<String, serde_json::Value>);

impl Index {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let map: serde_json::Map<_, _> = serde_json::from_slice(bytes).ok()?;
        map.get("manifests").is_some_and(serde_json::Value::is_array).then_some(Self(map))
    }

    fn append(&mut self, mut page: Self) {
        if let (Some(serde_json::Value::Array(all)), Some(serde_json::Value::Array(more))) =
            (self.0.get_mut("manifests"), page.0.get_mut("manifests"))
        {
            all.append(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn a_blob_begins_where_it_was_asked_to_or_at_its_beginning() {
        let (full, part) = (StatusCode::OK, StatusCode::PARTIAL_CONTENT);
        let (length, range, encoding) = (CONTENT_LENGTH, CONTENT_RANGE, CONTENT_ENCODING);
        for (status, pairs, offset, expected) in [
            (full, vec![(length.clone(), "10")], 0, Some((0, Some(10)))),
            (full, vec![(length.clone(), "10")], 5, Some((0, Some(10)))),
            (full, vec![(length.clone(), "7"), (encoding.clone(), "gzip")], 0, Some((0, None))),
            (full, vec![], 0, Some((0, None))),
            (part, vec![(length.clone(), "5"), (range.clone(), "bytes 5-9/10")], 5, Some((5, Some(10)))),
            (part, vec![(range.clone(), "bytes 5-9/*")], 5, Some((5, None))),
            (part, vec![(range.clone(), "bytes 4-9/10")], 5, None),
            (part, vec![(range.clone(), "bytes 0-9/10")], 0, None),
            (part, vec![(range.clone(), "bytes 5-9/10"), (encoding, "gzip")], 5, None),
            (part, vec![], 5, None),
        ] {
            let got = place_of(status, &headers(&pairs), offset);
            assert_eq!(got.as_ref().ok().copied(), expected, "{status} {pairs:?} {offset}");
            assert!(got.err().is_none_or(|error| error.restart()));
        }
    }

    #[test]
    fn a_manifest_must_hash_to_what_was_asked_and_claimed() {
        let bytes = Bytes::from_static(br#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#);
        let right = Digest::of(Algorithm::Sha256, &bytes);
        let right512 = Digest::of(Algorithm::Sha512, &bytes);
        let wrong = Digest::of(Algorithm::Sha256, b"another");
        for (claimed, asked, expected) in [
            (None, None, Some(&right)),
            (Some(&right), None, Some(&right)),
            (Some(&right512), None, Some(&right512)),
            (Some(&right), Some(&right512), Some(&right512)),
            (None, Some(&right), Some(&right)),
            (Some(&wrong), None, None),
            (Some(&wrong), Some(&right), None),
            (Some(&right), Some(&wrong), None),
        ] {
            let claim = claimed.map(|digest| (CONTENT_DIGEST, digest.as_str()));
            let manifest = manifest_of(&headers(&claim.into_iter().collect::<Vec<_>>()), bytes.clone(), asked);
            assert_eq!(manifest.as_ref().ok().map(|manifest| &manifest.digest), expected, "{claimed:?} {asked:?}");
            if let Ok(manifest) = manifest {
                assert_eq!(manifest.media_type, MediaType::OCI_MANIFEST);
            }
        }
    }
}
