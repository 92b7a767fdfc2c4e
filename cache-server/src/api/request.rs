//! What a request asks for, and who asks.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode, Uri, header};

use super::{
    client::{self, Client},
    error::ApiError,
    origin::Origin,
};
use crate::{
    access::Action,
    connector::Connection,
    oci::{Endpoint, ErrorCode, UploadQuery},
    repository::{Meant, Want},
    routing::{self, Resolved, Route, Routing, Unrouted},
};

/// A request that was routed.
pub(super) struct Asked {
    /// Where to.
    pub(super) resolved: Resolved,
    /// The registry that the request named by `ns`.
    pub(super) namespace: Option<String>,
}

/// What all pulls have in common.
pub(super) struct Pull<'a> {
    pub(super) connection: &'a Arc<Connection>,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) client: Client,
    /// Where the client reached us.
    pub(super) origin: &'a Origin,
    pub(super) route: &'a Route,
    pub(super) want: Want,
}

/// Whether a path belongs to the registry API, not to the pages.
pub(super) fn is_registry_path(path: &str) -> bool {
    // Reverse proxies like to double slashes.
    let path = path.trim_start_matches('/');
    path == "v2" || path.starts_with("v2/") || path.starts_with("v1/") || path.starts_with("repository/")
}

/// Routes a request.
pub(super) fn ask(routing: &Routing, port: Option<u16>, request: &Request<()>) -> Result<Asked, Unrouted> {
    let uri = request.uri();
    let host = uri.host().or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let namespace = client::namespace(uri.query());
    let path = uri.path();
    let asked = routing::Request { connector: port, host, path, ns: namespace.as_deref() };
    let resolved = routing.resolve(&asked)?;
    Ok(Asked { resolved, namespace })
}

/// What a request would do, whether or not it is offered.
pub(super) fn action(method: &Method, endpoint: &Endpoint) -> Action {
    match (method, endpoint) {
        (_, Endpoint::Uploads { .. }) => Action::Push,
        (&Method::GET | &Method::HEAD, _) => Action::Pull,
        (&Method::DELETE, _) => Action::Delete,
        _ => Action::Push,
    }
}

/// Whence a request wants a blob mounted, as the client calls that image.
pub(super) fn mounted_from(request: &Request<()>, endpoint: &Endpoint) -> Option<String> {
    match (request.method(), endpoint) {
        (&Method::POST, Endpoint::Uploads { .. }) => {
            let query = UploadQuery::parse(request.uri().query()).ok()?;
            query.mount.and(query.from)
        }
        _ => None,
    }
}

/// The registry whose image a request means.
pub(super) const fn meant(route: &Route) -> Meant<'_> {
    match (&route.registry, route.registry_named) {
        (Some(registry), _) => Meant::Registry(registry),
        (None, true) => Meant::Unheard,
        (None, false) => Meant::Unsaid,
    }
}

/// GET and HEAD; everything else is refused.
pub(super) fn want(method: &Method) -> Result<Want, ApiError> {
    match *method {
        Method::GET => Ok(Want::Content),
        Method::HEAD => Ok(Want::Head),
        _ => {
            let message = format!("{method} is not offered here");
            Err(ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message))
        }
    }
}
