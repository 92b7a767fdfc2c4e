//! `/api/v1`: what is here, as JSON. Read-only; the table of its paths is in README.md, "Looking inside".

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    body::Body,
    error::ApiError,
    gate::{Gate, target},
    report::Report,
    value,
};
use crate::{
    access::{Action, Caller, Permissions, Refused, SHARED_SERVICE, User, may},
    browse::{self, Page, Reader, reader::Listed},
    causes::with_causes,
    oci::{EndpointError, ErrorCode, ImageName, Reference},
    repository::Repository,
    server::Current,
};

/// How browsers are asked for a login; programs send it by themselves.
pub(super) const BASIC: &str = "Basic realm=\"Entrepot\", charset=\"UTF-8\"";

/// How many look into the store at once. Looking reads folders; what pulls need of the volume goes first.
static LOOKS: Semaphore = Semaphore::const_new(8);

/// The most entries of one answer.
const MAX_LISTED: usize = 1_000;

/// The entries of one answer, if the request does not say how many.
const LISTED: usize = 100;

/// Somebody who looks: a user who logged in, or nobody in particular.
pub(super) struct Onlooker<'a> {
    permissions: &'a Permissions,
    user: Option<User>,
}

impl<'a> Onlooker<'a> {
    /// Who asks. Credentials that are wrong are refused, so that nobody takes a shorter list for all there is.
    pub(super) async fn of(gate: &Gate<'a>, report: &mut Report) -> Result<Self, ApiError> {
        let user = match gate.caller().await {
            Ok(Caller::User(user)) => Some(user),
            // A token is good for the images that it names, and for pulling them.
            Ok(Caller::Anonymous | Caller::Token(_)) | Err(Refused::NoLogins) => None,
            Err(refused) => return Err(gate.refused(refused, SHARED_SERVICE, None).with_challenge_if_any(BASIC)),
        };
        if let Some(user) = &user {
            report.user(user.name());
        }
        Ok(Self { permissions: &gate.auth().permissions, user })
    }

    /// Who asks, where it is no use to refuse: credentials that are wrong are nobody's.
    pub(super) async fn or_nobody(gate: &Gate<'a>) -> Self {
        let user = match gate.caller().await {
            Ok(Caller::User(user)) => Some(user),
            _ => None,
        };
        Self { permissions: &gate.auth().permissions, user }
    }

    /// Nobody in particular.
    pub(super) fn nobody(current: &'a Current) -> Self {
        Self { permissions: &current.settings.server.auth.permissions, user: None }
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_ref().map(User::name)
    }

    /// Whether they may look into a repository, or at an image of it: whoever may pull, may look. This is the one place where
    /// browsing asks for access.
    pub(super) fn may_see(&self, repository: &Repository, image: Option<&ImageName>) -> bool {
        let image = image.map(|image| repository.named(image));
        may(self.permissions, &target(repository), self.user.as_ref(), Action::Pull, image.as_ref())
    }
}

/// Whether a path belongs to this API.
pub(super) fn is_browse_path(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// Answers below `/api`.
pub(super) async fn answer(
    gate: &Gate<'_>,
    request: &Request<()>,
    report: &mut Report,
) -> Result<Response<Body>, ApiError> {
    let asked = Query { uri: request.uri(), prefix: gate.origin.prefix() };
    let path = request.uri().path();
    check_method(request.method(), path)?;
    let onlooker = Onlooker::of(gate, report).await?;
    let _turn = turn().await;
    let may_see = |repository: &_, image: Option<&_>| onlooker.may_see(repository, image);
    let reader = Reader::new(gate.current, &gate.server.store, &may_see);
    let segments: Vec<&str> = path.strip_prefix("/api/v1/").unwrap_or_default().split('/').collect();
    match segments.as_slice() {
        ["repositories"] => Ok(json_of(&json!({ "repositories": of(&reader.repositories())? }))),
        ["repositories", name, what] => {
            let repository = reader.repository(name).map_err(to_api)?;
            report.repository(repository.name());
            match *what {
                "images" => {
                    let page = asked.page(|last| last.parse().map_err(EndpointError::Image))?;
                    listed("images", reader.images(repository, &page).await, &asked, &page)
                }
                "tags" => {
                    let (image, page) = (asked.image()?, asked.page(text)?);
                    listed("tags", reader.tags(repository, &image, &page).await, &asked, &page)
                }
                "manifests" => {
                    let image = asked.image()?;
                    if let Some(reference) = asked.reference()? {
                        let manifest = reader.manifest(repository, &image, &reference).await.map_err(to_api)?;
                        return Ok(json_of(&of(&manifest)?));
                    }
                    let page = asked.page(text)?;
                    listed("manifests", reader.manifests(repository, &image, &page).await, &asked, &page)
                }
                _ => Err(unknown_path(path)),
            }
        }
        ["usage"] => Ok(json_of(&of(&reader.usage())?)),
        ["fills"] => {
            let page = asked.page(text)?;
            listed("fills", Ok(reader.fills(&page).await), &asked, &page)
        }
        _ => Err(unknown_path(path)),
    }
}

/// GET and HEAD; looking changes nothing.
pub(super) fn check_method(method: &Method, path: &str) -> Result<(), ApiError> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let message = format!("{path:?} only shows what is here: {method} is not offered, GET and HEAD are");
    Err(ApiError::new(ErrorCode::Unsupported, StatusCode::METHOD_NOT_ALLOWED, message))
}

/// Waits for a turn to look into the store, which ends when what is returned is dropped.
pub(super) async fn turn() -> Option<tokio::sync::SemaphorePermit<'static>> {
    // It is never closed.
    LOOKS.acquire().await.ok()
}

/// What cannot be shown, as an error of the API.
#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err, and the error ends here")]
pub(super) fn to_api(error: browse::Error) -> ApiError {
    let code = match &error {
        browse::Error::NoRepository(_) | browse::Error::NoImage { .. } => ErrorCode::NameUnknown,
        browse::Error::NoManifest { .. } => ErrorCode::ManifestUnknown,
        browse::Error::Store(_) => {
            return ApiError::new(ErrorCode::Unknown, StatusCode::INTERNAL_SERVER_ERROR, with_causes(&error));
        }
    };
    ApiError::new(code, StatusCode::NOT_FOUND, error.to_string())
}

fn unknown_path(path: &str) -> ApiError {
    let message = format!(
        "{path:?} is no path of this API; it has /api/v1/repositories, /api/v1/repositories/<name>/images, …/tags and …/manifests, /api/v1/usage and /api/v1/fills"
    );
    ApiError::new(ErrorCode::Unsupported, StatusCode::NOT_FOUND, message)
}

#[expect(clippy::unnecessary_wraps, reason = "one of several ways to read where a list goes on")]
fn text(last: &str) -> Result<String, EndpointError> {
    Ok(last.to_owned())
}

fn listed<T: Serialize, L>(
    what: &str,
    found: Result<Listed<T>, browse::Error>,
    asked: &Query<'_>,
    page: &Page<L>,
) -> Result<Response<Body>, ApiError> {
    let Listed { items, next } = found.map_err(to_api)?;
    let mut response = json_of(&json!({ what: of(&items)? }));
    let link = next.and_then(|next| value(&format!("<{}>; rel=\"next\"", asked.next_page(page.limit, &next))));
    if let Some(link) = link {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

fn of(shown: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(shown)
        .map_err(|error| ApiError::new(ErrorCode::Unknown, StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn json_of(shown: &Value) -> Response<Body> {
    let mut response = Response::new(Body::bytes(format!("{shown}\n").into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    guard(headers);
    response
}

/// What keeps browsers and caches on the way from making more of an answer than it is: the next moment it may be wrong, and
/// another caller may see less.
pub(super) fn guard(headers: &mut http::HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// What the query of a request asks for.
pub(super) struct Query<'a> {
    pub(super) uri: &'a Uri,
    /// What the client's path has in front of that.
    pub(super) prefix: &'a str,
}

impl Query<'_> {
    /// The first value of a parameter that is not empty, decoded.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.pairs().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value)
    }

    fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.uri.query().unwrap_or_default().as_bytes();
        url::form_urlencoded::parse(query).map(|(key, value)| (key.into_owned(), value.into_owned()))
    }

    pub(super) fn image(&self) -> Result<ImageName, ApiError> {
        let text = self.get("image").ok_or_else(|| {
            let message = "the parameter image must say which image is meant, as in ?image=library/alpine".to_owned();
            ApiError::new(ErrorCode::NameInvalid, StatusCode::BAD_REQUEST, message)
        })?;
        Ok(text.parse().map_err(EndpointError::Image)?)
    }

    pub(super) fn reference(&self) -> Result<Option<Reference>, ApiError> {
        let parse =
            |text: String| text.parse::<Reference>().map_err(|error| ApiError::from(EndpointError::from(error)));
        self.get("reference").map(parse).transpose()
    }

    pub(super) fn page<L>(&self, parse: impl Fn(&str) -> Result<L, EndpointError>) -> Result<Page<L>, ApiError> {
        let limit = match self.get("n") {
            None => LISTED,
            Some(text) => text.parse().map_err(|_| ApiError::from(EndpointError::BadLimit(text)))?,
        };
        let last = self.get("last").map(|last| parse(&last)).transpose()?;
        Ok(Page { limit: limit.min(MAX_LISTED), last })
    }

    fn next_page(&self, limit: usize, last: &str) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.pairs().filter(|(key, _)| key != "n" && key != "last"));
        query.append_pair("n", &limit.to_string()).append_pair("last", last);
        format!("{}{}?{}", self.prefix, self.uri.path(), query.finish())
    }
}
