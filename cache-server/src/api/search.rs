//! `docker search`: what is left of version 1 of Docker's registry API.

use http::{HeaderValue, Response, StatusCode, header};

use super::{
    body::Body,
    client::Client,
    error::{ApiError, PullError, ToApi},
    gate::{Gate, Wish},
    report::Report,
    repository as repository_of,
};
use crate::{
    access::Action,
    oci::ErrorCode,
    repository::{Asking, Meant},
    routing::Route,
    search::Query,
};

/// Answers a path below `/v1/`.
pub(super) async fn answer(
    gate: &Gate<'_>,
    route: &Route,
    query: Option<&str>,
    report: &mut Report,
) -> Result<Response<Body>, ApiError> {
    report.repository(&route.repository);
    let repository = repository_of(gate.current, &route.repository)?;
    if !repository.searches() {
        let message = format!(
            "{} does not take version 1 of the registry API; spec.v1Search of a mirror or group switches its search on",
            route.repository
        );
        return Err(ApiError::new(ErrorCode::Unsupported, StatusCode::NOT_FOUND, message));
    }
    match route.rest.trim_end_matches('/') {
        "_ping" => {
            report.routine();
            Ok(json("true".to_owned()))
        }
        "search" => {
            report.kind("search", "");
            let wish = Wish { action: Action::Pull, image: None, from: None };
            let admitted = gate.admit(route, repository, &wish, report).await?;
            let may_pull = |name: &_, image: &_| admitted.may_pull(name, image);
            let asking = Asking { meant: Meant::Unsaid, may_pull: &may_pull };
            let query = Query::parse(query)
                .map_err(|error| ApiError::new(ErrorCode::Unsupported, StatusCode::BAD_REQUEST, error.to_string()))?;
            let failed = |error| PullError { error, absent: ErrorCode::NameUnknown }.to_api(Client::Direct);
            let found = match query.need() {
                Some(need) => repository.search(&query.text, need, &asking).await.map_err(failed)?,
                None => crate::search::Found::default(),
            };
            Ok(json(query.page_of(&found).to_string()))
        }
        _ => {
            let message = "of version 1 there are only /v1/_ping and /v1/search".to_owned();
            Err(ApiError::new(ErrorCode::Unsupported, StatusCode::NOT_FOUND, message))
        }
    }
}

/// Clients read off the header that the registry needs no index beside it to log in.
fn json(text: String) -> Response<Body> {
    let mut response = Response::new(Body::bytes(text.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-docker-registry-standalone", HeaderValue::from_static("true"));
    response
}
