//! Who asks.

use http::{Request, header};

use crate::routing::Route;

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

/// The `ns` parameter, decoded.
pub(super) fn namespace(query: Option<&str>) -> Option<String> {
    let query = query?;
    url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "ns").map(|(_, value)| value.into_owned())
}
