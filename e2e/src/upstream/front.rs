//! The front: ends TLS for every site, counts, spoils, and hands on.

use std::{collections::HashMap, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use http::header::{ACCEPT, AUTHORIZATION, IF_NONE_MATCH, IF_RANGE, RANGE};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    answer::{After, Answer, Body, Connection},
    authority::Authority,
    content::{Content, Wanted, error},
    counts::{Asked, Counts, authorization_hash},
    fault::Faults,
    index,
    request::Request,
    sites::{AUTH, Access, Kind, Site, Sites},
    token::{SERVICE, TokenServer, basic},
    users::{ALICE, BOB, CAROL},
};

/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Listens for every site until it is dropped.
#[derive(Debug)]
pub struct Front {
    shared: Arc<Shared>,
    #[cfg(test)]
    addresses: HashMap<String, SocketAddr>,
    _listeners: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    counts: Arc<Counts>,
    faults: Faults,
    content: Content,
    tokens: Arc<TokenServer>,
    realm: String,
    http: reqwest::Client,
}

impl Front {
    /// Binds every site and begins to answer.
    pub async fn start(authority: &Authority, sites: Sites, tokens: Arc<TokenServer>) -> Result<Self> {
        let mut bound = Vec::new();
        for site in sites.0 {
            let listener = TcpListener::bind(site.listen)
                .await
                .with_context(|| format!("failed to listen for {} on {}", site.host, site.listen))?;
            let address = listener.local_addr().context("failed to ask for a site's address")?;
            bound.push((site, listener, address));
        }
        let addresses: HashMap<_, _> = bound.iter().map(|(site, _, address)| (site.host.clone(), *address)).collect();
        let shared = Arc::new(Shared {
            counts: Arc::new(Counts::new()),
            faults: Faults::default(),
            content: Content::default(),
            tokens,
            realm: realm(&addresses),
            http: http_client()?,
        });
        let acceptor = TlsAcceptor::from(authority.server_config());
        let mut listeners = JoinSet::new();
        for (site, listener, _) in bound {
            listeners.spawn(listen(listener, acceptor.clone(), Arc::new(site), Arc::clone(&shared)));
        }
        Ok(Self {
            shared,
            #[cfg(test)]
            addresses,
            _listeners: listeners,
        })
    }

    /// What was asked.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.shared.counts
    }

    /// What is spoilt.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Synthetic images.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.shared.content
    }

    /// Where the site with this host name listens.
    #[cfg(test)]
    #[must_use]
    pub fn address(&self, host: &str) -> Option<SocketAddr> {
        self.addresses.get(host).copied()
    }
}

fn realm(addresses: &HashMap<String, SocketAddr>) -> String {
    match addresses.get(AUTH) {
        Some(address) if address.port() != 443 => format!("https://{address}/token"),
        _ => format!("https://{AUTH}/token"),
    }
}

fn http_client() -> Result<reqwest::Client> {
    // Fails only if it is set already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("failed to make the front's HTTP client")
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor, site: Arc<Site>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, client)) = accepted else { continue };
                connections.spawn(converse(stream, client, acceptor.clone(), Arc::clone(&site), Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection. Whatever goes wrong on it is the client's affair: the client sees it end.
async fn converse(stream: TcpStream, client: SocketAddr, acceptor: TlsAcceptor, site: Arc<Site>, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let mut connection = BufReader::new(stream);
    while let Ok(Some(request)) = Request::read(&site.host, &mut connection).await {
        match shared.exchange(&site, request, client, &mut connection).await {
            Ok(After::Open) => {}
            Ok(After::Reset) => return reset(&connection),
            Ok(After::Close) => break,
            Err(error) => {
                eprintln!("the front for {} failed: {error:#}", site.host);
                break;
            }
        }
    }
    // The client may have gone first.
    let _ = connection.shutdown().await;
}

/// Makes the end of this connection a reset: nothing waits to be sent, and closing says RST.
fn reset(connection: &Connection) {
    let (stream, _) = connection.get_ref().get_ref();
    let _ = rustix::net::sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
}

impl Shared {
    async fn exchange(
        &self,
        site: &Site,
        mut request: Request,
        client: SocketAddr,
        connection: &mut Connection,
    ) -> Result<After> {
        let entry = self.counts.arrived(asked(&request, client, &self.tokens));
        let taken = self.faults.take(&request);
        if taken.ignores_range() {
            request.headers.remove(RANGE);
        }
        let answer = self.answer(site, &request).await?;
        let answer = self.faults.apply(taken, &request, answer).await?;
        Ok(answer.send(request.method == "HEAD", connection, &self.counts, entry).await)
    }

    async fn answer(&self, site: &Site, request: &Request) -> Result<Answer> {
        let Kind::Registry { access, backend } = &site.kind else {
            return self.tokens.answer(request);
        };
        if let Some(found) = index::answer(&self.content, request) {
            return Ok(found);
        }
        let wanted = Wanted::from_path(&request.path);
        match (wanted, backend) {
            (Some(wanted), _) if self.content.has(wanted.image) => {
                let refused = self.refuse(*access, request, wanted.image);
                Ok(refused.unwrap_or_else(|| self.content.answer(request, &wanted)))
            }
            (_, Some(backend)) => self.hand_on(*backend, request).await,
            (Some(wanted), None) => {
                let refused = self.refuse(*access, request, wanted.image);
                Ok(refused.unwrap_or_else(|| error(404, "NAME_UNKNOWN")))
            }
            (None, None) => {
                let refused = self.refuse(*access, request, "");
                Ok(refused.unwrap_or_else(|| Answer::text(200, "application/json", "{}")))
            }
        }
    }

    /// The challenge for a caller who may not pull the image; an empty name asks only for any valid identity.
    fn refuse(&self, access: Access, request: &Request, image: &str) -> Option<Answer> {
        let authorization = request.authorization().unwrap_or_default();
        let (admitted, challenge) = match access {
            Access::Open => return None,
            Access::Token => (self.has_token(authorization, image), self.challenge(image)),
            Access::Basic => (is_carol(authorization), "Basic realm=\"basic.registry.test\"".to_owned()),
        };
        (!admitted).then(|| error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge))
    }

    fn has_token(&self, authorization: &str, image: &str) -> bool {
        let Some(token) = authorization.strip_prefix("Bearer ") else {
            return false;
        };
        match image {
            "" => self.tokens.knows(token),
            image => self.tokens.may_pull(token, image),
        }
    }

    fn challenge(&self, image: &str) -> String {
        let realm = &self.realm;
        match image {
            "" => format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\""),
            image => format!("Bearer realm=\"{realm}\",service=\"{SERVICE}\",scope=\"repository:{image}:pull\""),
        }
    }

    /// Asks the registry behind and passes its answer on as it comes.
    async fn hand_on(&self, backend: SocketAddr, request: &Request) -> Result<Answer> {
        let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
        let url = format!("http://{backend}{}{query}", request.path);
        let method = request.method.parse().context("a bad method")?;
        let mut asked = self.http.request(method, &url);
        for name in [ACCEPT, AUTHORIZATION, IF_NONE_MATCH, IF_RANGE, RANGE] {
            for value in request.headers.get_all(&name) {
                asked = asked.header(name.clone(), value.clone());
            }
        }
        let from = asked.send().await.context("failed to ask the registry behind the front")?;
        passed(from, request.method == "HEAD").await
    }
}

async fn passed(from: reqwest::Response, is_head: bool) -> Result<Answer> {
    let status = from.status().as_u16();
    let headers = from.headers().iter().filter(|(name, _)| is_end_to_end(name.as_str()));
    let headers: Vec<_> = headers
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let announced = from.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let body = match announced {
        Some(length) => Body::Passed { from, length },
        None if is_head => whole(Vec::new()),
        None => whole(from.bytes().await.context("failed to read the registry's answer")?.into()),
    };
    Ok(Answer { status, headers, body, delivery: super::answer::Delivery::default() })
}

fn whole(bytes: Vec<u8>) -> Body {
    Body::Part { length: bytes.len() as u64, blob: bytes.into(), offset: 0 }
}

fn is_end_to_end(name: &str) -> bool {
    !matches!(name, "content-length" | "transfer-encoding" | "connection" | "keep-alive")
}

fn is_carol(authorization: &str) -> bool {
    basic(authorization).is_some_and(|(name, password)| name == CAROL.name && password == CAROL.password)
}

fn asked(request: &Request, client: SocketAddr, tokens: &TokenServer) -> Asked {
    let token = request.authorization().and_then(|value| value.strip_prefix("Bearer "));
    Asked {
        host: request.host.clone(),
        method: request.method.clone(),
        path: request.path.clone(),
        range: request.header(&RANGE).map(str::to_owned),
        authorization: request.authorization().map(authorization_hash),
        password_of: password_of(request),
        token_of: token.and_then(|token| tokens.holder(token)),
        client: client.ip(),
        status: 0,
        sent: 0,
    }
}

fn password_of(request: &Request) -> Option<&'static str> {
    let header = request.authorization().unwrap_or_default();
    let decoded = basic(header).map(|(_, password)| password).unwrap_or_default();
    let body = String::from_utf8_lossy(&request.body);
    let carries = |password: &str| [header, &decoded, &request.query, &body].iter().any(|text| text.contains(password));
    [ALICE, BOB, CAROL].iter().find(|user| carries(user.password)).map(|user| user.name)
}
