//! Requests and answers: the only place that speaks HTTP to clients. Read in this order: [`client`], [`request`], [`origin`], [`gate`], [`token`], [`manifests`],
//! [`blobs`], [`lists`], [`pushes`], [`search`], [`canary`], [`error`], [`body`], [`blob_stream`], [`report`], [`recall`], [`browse`], [`pages`], [`status`].
//! Calls `routing`, then `access` (at one place, [`gate`]), then `repository`. May import everything but `settings` files.

pub mod blob_stream;
mod blobs;
pub mod body;
mod browse;
mod canary;
mod client;
mod error;
mod gate;
mod lists;
mod manifests;
mod origin;
pub mod pages;
mod pushes;
mod recall;
mod report;
mod request;
mod search;
pub mod status;
mod token;

use std::{sync::Arc, time::Instant};

use crds::names::RepositoryName;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::{
    access::{Action, SHARED_SERVICE},
    canary::REPOSITORY,
    connector::{Connection, Serving, listener::Answer},
    oci::{Endpoint, ErrorCode},
    repository::{Asking, Error, MayPull, Repository},
    routing::{Resolved, Route, TOKEN, Unrouted},
    server::{Current, Server},
};
use body::Body;
use browse::Onlooker;
use client::Client;
use error::{ApiError, PullError, ToApi};
use gate::{Gate, Wish};
use origin::Origin;
use pushes::Pushing;
use recall::{Answers, Basis, Recalled};
use report::Report;
use request::Pull;

/// Answers the requests of one port.
#[derive(Clone)]
pub struct Api {
    server: Arc<Server>,
    /// The port of a connector; the main port has none.
    port: Option<u16>,
    answers: Answers,
}

impl Api {
    /// Answers on the main port, or with `port` on the connector that has that port.
    #[must_use]
    pub fn new(server: Arc<Server>, port: Option<u16>) -> Self {
        Self { server, port, answers: Answers::default() }
    }
}

impl Answer for Api {
    type Body = Body;
    type Recalled = Recalled;

    async fn answer(
        &self,
        connection: Arc<Connection>,
        serving: Serving,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let current = self.server.current();
        let basis = Basis::now(&self.server, &current, connection.peer());
        let address =
            origin::client_address(connection.peer(), request.headers(), &current.settings.server.trusted_proxies);
        // The port of a peer tells clients apart that stand behind one address.
        let port = (connection.peer().ip().to_canonical() == address).then(|| connection.peer().port());
        let mut report = Report::begin(&self.server.metrics, (address, port), &request, Instant::now());
        let external = current.settings.server.external_url.as_ref();
        let origin = Origin::of(request.uri(), request.headers(), connection.is_encrypted(), external);
        let gate = Gate::new(&self.server, &current, address, &origin, request.headers());
        let path = request.uri().path();
        let mut response = if request::is_registry_path(path) || self.port.is_some() {
            let answered = self.registry(&connection, &gate, &request, body, &mut report).await;
            let response = answered.unwrap_or_else(|error| error.response(&mut report));
            report.status(response.status());
            self.answers.remember((&self.server, &connection), basis, &request, &report, &response);
            response
        } else if browse::is_browse_path(path) {
            let answered = Box::pin(browse::answer(&gate, &request, &mut report)).await;
            answered.unwrap_or_else(|error| error.response(&mut report))
        } else if pages::is_shown(&request) {
            Box::pin(pages::show(&gate, &request, &mut report)).await
        } else {
            Box::pin(pages::answer(&self.server, request.map(|()| body))).await
        };
        report.status(response.status());
        response.body_mut().finish_with(report, serving);
        response
    }

    fn recall(&self, connection: &Connection, request: &[u8]) -> Option<Recalled> {
        self.answers.recall(&self.server, connection.peer(), request)
    }
}

// Futures behind pointers: every connection holds the largest state of its answer, so those that are rare are kept out of it.
impl Api {
    async fn registry(
        &self,
        connection: &Arc<Connection>,
        gate: &Gate<'_>,
        request: &Request<()>,
        body: Incoming,
        report: &mut Report,
    ) -> Result<Response<Body>, ApiError> {
        let asked = match request::ask(&gate.current.routing, self.port, request) {
            Ok(asked) => asked,
            Err(nowhere) => return Err(Box::pin(unrouted(gate, &nowhere)).await),
        };
        let (answered, name) = match &asked.resolved {
            Resolved::ServerBase => return gate.server_base(report).await.map(|()| base()),
            Resolved::ServerToken => {
                return Box::pin(token::answer(gate, SHARED_SERVICE, request, body, report)).await;
            }
            Resolved::Search(route) => {
                return Box::pin(search::answer(gate, route, request.uri().query(), report)).await;
            }
            Resolved::Canary { rest, by_path } => {
                (canary::answer(&self.server, request.method(), rest, report), by_path.then_some(REPOSITORY))
            }
            Resolved::To(route) => {
                let answered = self.repository(connection, gate, route, request, body, report).await;
                (answered, route.by_path().then_some(route.repository.as_str()))
            }
        };
        let namespace = asked.namespace.filter(|_| answered.is_ok());
        let mut response = answered.unwrap_or_else(|error| error.response(report));
        // By this a node's agent knows that it is this repository that answered, whatever the answer.
        if let Some(name) = name.and_then(value) {
            response.headers_mut().insert("entrepot-repository", name);
        }
        if let Some(registry) = namespace.as_deref().and_then(value) {
            response.headers_mut().insert("oci-namespace", registry);
        }
        Ok(response)
    }

    async fn repository(
        &self,
        connection: &Arc<Connection>,
        gate: &Gate<'_>,
        route: &Route,
        request: &Request<()>,
        body: Incoming,
        report: &mut Report,
    ) -> Result<Response<Body>, ApiError> {
        report.repository(&route.repository);
        let repository = repository(gate.current, &route.repository)?;
        if route.rest == TOKEN {
            return Box::pin(token::answer(gate, gate::service(route), request, body, report)).await;
        }
        let endpoint = Endpoint::parse(&route.rest, request.uri().query())?;
        if let Some(image) = endpoint.image() {
            report.image(&repository.named(image));
        }
        let action = request::action(request.method(), &endpoint);
        if action != Action::Pull && !gate::target(repository).takes_writes() {
            // Before the login, which would not help.
            pushes::target(repository)?;
        }
        let admitted = match &endpoint {
            Endpoint::Base => {
                gate.base(route, repository, report).await?;
                None
            }
            Endpoint::Unknown => return Err(ApiError::unknown_path(request.uri().path())),
            _ => {
                let from = request::mounted_from(request, &endpoint);
                let wish = Wish { action, image: endpoint.image(), from: from.as_deref() };
                let admitted = gate.admit(route, repository, &wish, report).await?;
                if let Some(challenge) = from.and_then(|from| gate.wider_token(&admitted, &from)) {
                    return Err(challenge);
                }
                Some(admitted)
            }
        };
        let client = Client::of(request, route);
        if let (Some(admitted), true) = (&admitted, action != Action::Pull) {
            let (hosted, group) = pushes::target(repository)?;
            let _change = self.server.change();
            let pushing = Pushing { gate, admitted, hosted, group, route, client, request, body };
            return Box::pin(pushing.answer(&endpoint, report)).await;
        }
        let want = request::want(request.method())?;
        let pull = Pull {
            connection,
            uri: request.uri(),
            headers: request.headers(),
            client,
            origin: gate.origin,
            route,
            want,
        };
        let may_pull =
            |name: &_, image: &_| admitted.as_ref().map_or(MayPull::No, |admitted| admitted.may_pull(name, image));
        let asking = Asking { meant: request::meant(route), may_pull: &may_pull };
        let answered = match &endpoint {
            Endpoint::Base => {
                report.routine();
                repository
                    .check_online()
                    .map(|()| base())
                    .map_err(|error| PullError { error, absent: ErrorCode::NameUnknown })
            }
            Endpoint::Manifest { image, reference } => {
                report.kind("manifest", &reference.to_string());
                manifests::answer(repository, &asking, image, reference, &pull, report).await
            }
            Endpoint::Blob { image, digest } => {
                report.kind("blob", digest.as_str());
                blobs::answer(&self.server, repository, &asking, image, digest, &pull, report).await
            }
            Endpoint::Tags { image, limit, last } => {
                report.kind("tags", "");
                Box::pin(lists::tags(repository, &asking, image, *limit, last.as_deref(), &pull, report)).await
            }
            Endpoint::Referrers { image, digest, artifact_type } => {
                report.kind("referrers", digest.as_str());
                let artifact_type = artifact_type.as_deref();
                Box::pin(lists::referrers(repository, &asking, image, digest, artifact_type, report)).await
            }
            Endpoint::Uploads { .. } | Endpoint::Unknown => return Err(ApiError::unknown_path(request.uri().path())),
        };
        answered.map_err(|failed| match &admitted {
            Some(admitted) if matches!(failed.error, Error::LogIn(_)) => {
                gate.with_login(admitted, failed.to_api(client))
            }
            _ => failed.to_api(client),
        })
    }
}

/// Why a request goes nowhere, with the ways in to what the caller may see.
async fn unrouted(gate: &Gate<'_>, nowhere: &Unrouted) -> ApiError {
    let message = if nowhere.is_lost() {
        let onlooker = Onlooker::or_nobody(gate).await;
        let may_see = |name: &_| gate.current.repository(name).is_some_and(|it| onlooker.may_see(it, None));
        match gate.current.routing.ways(may_see).as_slice() {
            [] => format!("{nowhere}; there is no way in that you may see without a permission"),
            ways => format!("{nowhere}; the ways in are: {}", ways.join("; ")),
        }
    } else {
        nowhere.to_string()
    };
    ApiError::new(nowhere.code(), StatusCode::NOT_FOUND, message)
}

/// The repository of a name that routing gave; both come from the same settings.
fn repository<'a>(current: &'a Current, name: &RepositoryName) -> Result<&'a Repository, ApiError> {
    current.repository(name).ok_or_else(|| {
        ApiError::new(ErrorCode::NameUnknown, StatusCode::NOT_FOUND, format!("there is no repository {name} here"))
    })
}

/// The answer to `/v2/`: this is a registry.
fn base() -> Response<Body> {
    let mut response = Response::new(Body::bytes("{}".into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    mark(&mut response);
    response
}

/// What every answer of a registry carries.
fn mark(response: &mut Response<Body>) {
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
}

/// A header value of our own making; nothing when a text from outside does not fit into a header.
fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

impl ApiError {
    fn unknown_path(path: &str) -> Self {
        let message = format!(
            "{path:?} is no path of the registry API; it begins with /v2/<name>/ and goes on with manifests, blobs, tags/list or referrers"
        );
        Self::new(ErrorCode::Unsupported, StatusCode::NOT_FOUND, message)
    }
}
