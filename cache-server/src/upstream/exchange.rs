//! Sending requests and following redirects, within a time limit. May import the judgements, `guard` and `tls`.

use std::{error::Error as StdError, future::Future, io, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, USER_AGENT},
};
use reqwest::{Client, Response};
use tokio::time::Instant;
use url::Url;

use super::{
    address::Reach,
    config::UpstreamConfig,
    error::{BuildError, Error, Slow},
    guard::{Guard, Names, OutOfReach},
    hosts::{HostList, host_of},
    rate_limit::RateLimit,
    redirect,
    retry::{self, Loss},
    tls,
};

/// For how long an idle connection is kept; shorter than servers usually keep theirs.
const IDLE: Duration = Duration::from_secs(30);

const AGENT: &str = concat!("entrepot/", env!("CARGO_PKG_VERSION"));

/// The moment by which an answer's header must be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// So much time from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// Gives a future the time that is left.
    pub(super) async fn hold<T>(self, what: Slow, future: impl Future<Output = T>) -> Result<T, Error> {
        tokio::time::timeout_at(self.0, future).await.map_err(|_| Error::TimedOut { what })
    }
}

/// A request to the upstream itself.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// HEAD or GET.
    pub(super) method: Method,
    /// At the upstream's own origin.
    pub(super) url: Url,
    /// Which media types are wanted.
    pub(super) accept: Option<&'static str>,
    /// From where on the content is wanted; 0 sends no `Range`.
    pub(super) offset: u64,
}

/// The answer to a question, after all redirects.
pub(super) struct Reply {
    /// Status, header and the body yet to come.
    pub(super) response: Response,
    /// Whether it comes from the upstream's own origin.
    pub(super) at_home: bool,
    /// What the upstream itself said about its rate limit.
    pub(super) rate_limit: Option<RateLimit>,
}

/// The connections of one upstream.
pub(super) struct Wire {
    upstream: Url,
    redirect_hosts: HostList,
    redirects: u32,
    /// For hosts that the upstream chose: public addresses only, no client certificate, every certificate checked.
    public: Client,
    /// For the upstream's own host and listed hosts.
    listed: Client,
}

impl Wire {
    /// Sets up the connections; opens none.
    pub(super) fn new(config: &UpstreamConfig, token_hosts: &HostList) -> Result<Self, BuildError> {
        let url = &config.url;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(BuildError::Url { scheme: url.scheme().to_owned() });
        }
        if let Some(proxy) = config.proxy.as_ref().filter(|proxy| !matches!(proxy.scheme(), "http" | "https")) {
            return Err(BuildError::ProxyKind { scheme: proxy.scheme().to_owned() });
        }
        Reach::Listed.admit_literal(url).map_err(|kind| BuildError::ForbiddenAddress { kind })?;
        let redirect_hosts = HostList::parse(&config.redirect_hosts).map_err(|text| BuildError::Host { text })?;
        let own = host_of(url);
        let unchecked = std::iter::once(own)
            .chain(token_hosts.names())
            .chain(redirect_hosts.names())
            .filter(|_| config.skip_verify)
            .map(|host| host.trim_matches(['[', ']']).to_owned())
            .collect();
        let names = Names::default();
        let public =
            client(config, tls::settings(config, None, std::collections::HashSet::new())?, &names, Reach::Public)?;
        let listed =
            client(config, tls::settings(config, config.client_identity.as_ref(), unchecked)?, &names, Reach::Listed)?;
        Ok(Self { upstream: url.clone(), redirect_hosts, redirects: config.limits.redirects, public, listed })
    }

    /// The URL of the upstream.
    pub(super) const fn upstream(&self) -> &Url {
        &self.upstream
    }

    /// Asks the upstream and follows its redirects. `authorization` stays at the upstream's own origin.
    pub(super) async fn ask(
        &self,
        question: &Question,
        mut authorization: Option<HeaderValue>,
        deadline: Deadline,
    ) -> Result<Reply, Error> {
        let mut url = question.url.clone();
        let (mut reach, mut at_home, mut rate_limit) = (Reach::Listed, true, None);
        for hops in 0.. {
            let headers = headers(question, authorization.as_ref());
            let response = self.send(&question.method, &url, headers, reach, Slow::Header, deadline).await?;
            if at_home {
                rate_limit = RateLimit::of(response.headers()).or(rate_limit);
            }
            if !is_redirect(response.status()) {
                return Ok(Reply { response, at_home, rate_limit });
            }
            if hops >= self.redirects {
                break;
            }
            let location = response.headers().get(LOCATION).map(HeaderValue::as_bytes);
            let hop = redirect::judge(&url, location, &self.upstream, &self.redirect_hosts)?;
            if !hop.same_origin {
                authorization = None;
                at_home = false;
            }
            (url, reach) = (hop.url, hop.reach);
        }
        Err(Error::TooManyRedirects { limit: self.redirects })
    }

    /// Sends one HEAD or GET and waits for the answer's header. The caller has judged the URL to be within `reach`.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        reach: Reach,
        what: Slow,
        deadline: Deadline,
    ) -> Result<Response, Error> {
        let client = match reach {
            Reach::Public => &self.public,
            Reach::Listed => &self.listed,
        };
        let mut attempt = 0;
        loop {
            let request = client.request(method.clone(), url.clone()).headers(headers.clone());
            let error = match deadline.hold(what, request.send()).await? {
                Ok(response) => {
                    // The path only: a query may be a signature.
                    tracing::debug!(%method, host = host_of(url), path = url.path(), status = response.status().as_u16(), "upstream answered");
                    return Ok(response);
                }
                Err(error) => error.without_url(),
            };
            let host = host_of(url).to_owned();
            if let Some(OutOfReach { kind }) = cause(&error) {
                return Err(Error::ForbiddenAddress { host, kind: *kind });
            }
            let loss = loss(&error);
            if retry::again(loss, attempt) {
                attempt += 1;
                continue;
            }
            return Err(match loss {
                Loss::ConnectTimeOut => Error::TimedOut { what: Slow::Connection },
                Loss::NoConnection | Loss::BrokenConnection => Error::Unreachable { host, source: Arc::new(error) },
            });
        }
    }
}

fn client(
    config: &UpstreamConfig,
    tls: rustls::ClientConfig,
    names: &Names,
    reach: Reach,
) -> Result<Client, BuildError> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(config.limits.connect.get())
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .no_proxy();
    let builder = match &config.proxy {
        None => builder.dns_resolver(Guard::new(names.clone(), reach)),
        // The only name that is resolved here is the proxy's own, which the administrator chose.
        Some(proxy) => builder
            .proxy(reqwest::Proxy::all(proxy.clone()).map_err(|error| BuildError::Proxy(error.without_url()))?)
            .dns_resolver(Guard::new(names.clone(), Reach::Listed)),
    };
    builder.build().map_err(BuildError::Client)
}

fn headers(question: &Question, authorization: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = common_headers();
    if let Some(accept) = question.accept {
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
    }
    if question.offset > 0
        && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", question.offset))
    {
        headers.insert(RANGE, range);
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    headers
}

/// What every request says: who we are, and that bytes are wanted as they are.
pub(super) fn common_headers() -> HeaderMap {
    HeaderMap::from_iter([
        (USER_AGENT, HeaderValue::from_static(AGENT)),
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        (ACCEPT, HeaderValue::from_static("*/*")),
    ])
}

const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn loss(error: &reqwest::Error) -> Loss {
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => Loss::ConnectTimeOut,
        (true, false) => Loss::NoConnection,
        (false, _) => Loss::BrokenConnection,
    }
}

/// The first cause of this type in the chain of causes. What an I/O error wraps counts too, although it is no source of it.
pub(super) fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}
