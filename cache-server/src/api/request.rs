//! What a request asks for, and who asks.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::Incoming;

use super::error::ApiError;
use crate::{
    connector::Connection,
    oci::{Endpoint, ErrorCode},
    repository::Want,
    routing::{self, Resolved, Route, Routing},
};

/// A request that was routed.
pub(super) struct Asked {
    /// Where to; nothing for the bare `/v2/` of the main port.
    pub(super) route: Option<Route>,
    /// The registry that the request named by `ns`.
    pub(super) namespace: Option<String>,
}

/// What all pulls have in common.
pub(super) struct Pull<'a> {
    pub(super) connection: &'a Arc<Connection>,
    pub(super) headers: &'a HeaderMap,
    pub(super) client: Client,
    pub(super) want: Want,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// A runtime that uses us as one of several hosts: on 503 it asks the next at once; on 429 it would hammer us.
    Mirror,
    /// Everyone else.
    Direct,
}

impl Client {
    /// A request with `ns` comes from a runtime with several hosts; so does one of dockerd that names neither registry
    /// nor repository, which is how it asks its `registry-mirrors`.
    pub(super) fn of<T>(request: &Request<T>, route: &Route) -> Self {
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let docker = agent.is_some_and(|agent| agent.starts_with("docker/"));
        if namespace(request.uri().query()).is_some() || (docker && !route.registry_named) {
            Self::Mirror
        } else {
            Self::Direct
        }
    }
}

/// Whether a path belongs to the registry API, not to the pages.
pub(super) fn is_registry_path(path: &str) -> bool {
    // Reverse proxies like to double slashes.
    let path = path.trim_start_matches('/');
    path == "v2" || path.starts_with("v2/") || path.starts_with("repository/")
}

/// Routes a request.
pub(super) fn ask(routing: &Routing, port: Option<u16>, request: &Request<Incoming>) -> Result<Asked, ApiError> {
    let uri = request.uri();
    let host = uri.host().or_else(|| request.headers().get(header::HOST)?.to_str().ok());
    let namespace = namespace(uri.query());
    let path = uri.path();
    let asked = routing::Request { connector: port, host, path, ns: namespace.as_deref() };
    let resolved = routing
        .resolve(&asked)
        .map_err(|unrouted| ApiError::new(unrouted.code(), StatusCode::NOT_FOUND, unrouted.to_string()))?;
    let route = match resolved {
        Resolved::ServerBase => None,
        Resolved::To(route) => Some(route),
    };
    Ok(Asked { route, namespace })
}

/// The `ns` parameter, decoded.
fn namespace(query: Option<&str>) -> Option<String> {
    let query = query?;
    url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "ns").map(|(_, value)| value.into_owned())
}

/// GET and HEAD; everything else is refused with what to do instead.
pub(super) fn want(method: &Method, endpoint: &Endpoint) -> Result<Want, ApiError> {
    match *method {
        Method::GET => Ok(Want::Content),
        Method::HEAD => Ok(Want::Head),
        // An upload says more about itself than that the method is not allowed.
        _ if matches!(endpoint, Endpoint::Uploads { .. }) => Ok(Want::Content),
        _ => {
            let message =
                format!("{method} is not offered here: a mirror serves what its upstream has; push to the upstream");
            Err(ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message))
        }
    }
}
