//! What is not an API: health, metrics, and pages for those who come with a browser.
//!
//! The pages are plain HTML without scripts, made from the same views as [`super::browse`]. What came from outside (names,
//! media types) is escaped by the templates; beyond that, a browser is told to load nothing and to run nothing.

use std::sync::{Arc, LazyLock};

use askama::Template;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use base64::Engine as _;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use tower::ServiceExt;

use super::{
    body::Body,
    browse::{BASIC, Onlooker, Query, check_method, guard, to_api, turn},
    error::ApiError,
    gate::Gate,
    origin::Origin,
    report::Report,
};
use crate::{
    browse::{
        self, Page, Reader,
        reader::Listed,
        view::{Image, Manifest, Repository, Tag, Usage},
    },
    oci::{Algorithm, Digest, EndpointError, ErrorCode, ImageName, Reference},
    server::{Current, Server},
};

/// The one style of all pages, inside each of them.
const STYLE: &str = include_str!("../../templates/style.css");

/// Manifests on one page: each is shown with all its parts.
const MANIFESTS: usize = 20;

/// Images and tags on one page.
const LISTED: usize = 100;

/// Whether a page is asked for that shows what the caller may see.
pub(super) fn is_shown<T>(request: &Request<T>) -> bool {
    let path = request.uri().path();
    path == "/" || path == "/browse" || path.starts_with("/browse/")
}

/// Answers with a page for browsers; at `/`, for programs with text.
pub(super) async fn show(gate: &Gate<'_>, request: &Request<()>, report: &mut Report) -> Response<Body> {
    if request.uri().path() == "/" && !wants_html(request) {
        return greeted(gate, request, report).await.unwrap_or_else(|error| error.response(report));
    }
    let root = gate.origin.prefix();
    shown(gate, request, report).await.unwrap_or_else(|error| refused(root, error, report))
}

/// Answers with a page for programs.
pub(super) async fn answer(server: &Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let response = match router(Arc::clone(server)).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    response.map(Body::page)
}

/// The pages for programs, on the main port and on the port of `--metrics`.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(welcome))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(server)
}

/// Nobody logs in at the port of `--metrics`.
async fn welcome(State(server): State<Arc<Server>>) -> String {
    let current = server.current();
    greeting(&current, &Onlooker::nobody(&current))
}

async fn greeted(gate: &Gate<'_>, request: &Request<()>, report: &mut Report) -> Result<Response<Body>, ApiError> {
    check_method(request.method(), request.uri().path())?;
    let onlooker = Onlooker::of(gate, report).await?;
    let mut response = Response::new(Body::bytes(greeting(gate.current, &onlooker).into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    guard(headers);
    Ok(response)
}

/// What is here, as far as one may see it.
fn greeting(current: &Current, onlooker: &Onlooker<'_>) -> String {
    let may_see = |name| current.repository(name).is_some_and(|repository| onlooker.may_see(repository, None));
    let seen = current.settings.repositories().filter(|repository| may_see(repository.name));
    let ways = seen.map(|repository| format!("  {0}: {1} at /repository/{0}/v2/\n", repository.name, repository.kind));
    format!("Entrepôt, a pull-through registry. Repositories:\n{}", ways.collect::<String>())
}

async fn readyz(State(server): State<Arc<Server>>) -> impl IntoResponse {
    if server.is_ready() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], server.metrics_text())
}

/// Browsers name HTML; programs do not, and get text.
fn wants_html<T>(request: &Request<T>) -> bool {
    let accept = request.headers().get_all(header::ACCEPT).iter();
    accept.filter_map(|accept| accept.to_str().ok()).any(|accept| accept.to_ascii_lowercase().contains("text/html"))
}

/// The first page: all repositories.
#[derive(Template)]
#[template(path = "repositories.html")]
struct AllRepositories<'a> {
    root: &'a str,
    user: Option<&'a str>,
    has_logins: bool,
    repositories: Vec<Repository>,
    usage: Usage,
}

/// The images of a repository.
#[derive(Template)]
#[template(path = "images.html")]
struct OneRepository<'a> {
    root: &'a str,
    repository: &'a str,
    is_group: bool,
    images: Vec<Image>,
    next: Option<String>,
}

/// An image: its tags, its manifests, and of each what it points to.
#[derive(Template)]
#[template(path = "image.html")]
struct OneImage<'a> {
    root: &'a str,
    repository: &'a str,
    image: &'a str,
    is_group: bool,
    /// What stands in front of `/<repository>/<image>` in a pull.
    host: &'a str,
    /// The one manifest that is asked for; else all are shown.
    reference: Option<String>,
    tags: Listed<Tag>,
    manifests: Listed<Manifest>,
}

/// What went wrong.
#[derive(Template)]
#[template(path = "refused.html")]
struct Refused<'a> {
    root: &'a str,
    message: &'a str,
}

async fn shown(gate: &Gate<'_>, request: &Request<()>, report: &mut Report) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    check_method(request.method(), path)?;
    let root = gate.origin.prefix();
    let asked = Query { uri: request.uri(), prefix: root };
    let onlooker = Onlooker::of(gate, report).await?;
    if asked.get("login").is_some() && onlooker.user().is_none() && gate.auth().has_logins() {
        let message = "this needs a login".to_owned();
        let error = ApiError::new(ErrorCode::Unauthorized, StatusCode::UNAUTHORIZED, message);
        return Err(error.with_challenge(BASIC.to_owned()));
    }
    let _turn = turn().await;
    let may_see = |repository: &_, image: Option<&_>| onlooker.may_see(repository, image);
    let reader = Reader::new(gate.current, &gate.server.store, &may_see);
    let name = path.strip_prefix("/browse").unwrap_or_default().trim_matches('/');
    if name.is_empty() {
        return Ok(page(&AllRepositories {
            root,
            user: onlooker.user(),
            has_logins: gate.auth().has_logins(),
            repositories: reader.repositories(),
            usage: reader.usage(),
        }));
    }
    let repository = reader.repository(name).map_err(to_api)?;
    report.repository(repository.name());
    let name = repository.name().as_str();
    let is_group = matches!(repository, crate::repository::Repository::Group(_));
    let last = asked.get("last");
    if asked.get("image").is_none() {
        let last = last.map(|last| last.parse().map_err(EndpointError::Image)).transpose()?;
        let Listed { items: images, next } =
            reader.images(repository, &Page { limit: LISTED, last }).await.map_err(to_api)?;
        return Ok(page(&OneRepository { root, repository: name, is_group, images, next }));
    }
    let image = asked.image()?;
    let (tags, manifests, reference) = if let Some(reference) = asked.reference()? {
        let manifest = reader.manifest(repository, &image, &reference).await.map_err(to_api)?;
        let none = Listed { items: Vec::new(), next: None };
        (none, Listed { items: vec![manifest], next: None }, Some(reference.to_string()))
    } else {
        let tags = reader.tags(repository, &image, &Page { limit: LISTED, last }).await.map_err(to_api)?;
        let page = Page { limit: MANIFESTS, last: asked.get("after") };
        (tags, opened(&reader, repository, &image, &page).await.map_err(to_api)?, None)
    };
    let host = host_of_pull(gate.origin);
    Ok(page(&OneImage {
        root,
        repository: name,
        image: image.as_str(),
        is_group,
        host: &host,
        reference,
        tags,
        manifests,
    }))
}

/// Manifests of an image with their parts, each as the first repository that holds it does.
async fn opened(
    reader: &Reader<'_>,
    repository: &crate::repository::Repository,
    image: &ImageName,
    page: &Page<String>,
) -> Result<Listed<Manifest>, browse::Error> {
    let Listed { mut items, next } = reader.manifests(repository, image, page).await?;
    items.dedup_by(|one, other| one.digest == other.digest);
    let mut manifests = Vec::new();
    for entry in items {
        let Ok(digest) = entry.digest.parse::<Digest>() else { continue };
        match reader.manifest(repository, image, &Reference::Digest(digest)).await {
            Ok(manifest) => manifests.push(manifest),
            // It went meanwhile.
            Err(browse::Error::NoManifest { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(Listed { items: manifests, next })
}

/// The host by which the browser came: an engine that pulls uses the same. One without a dot needs a port, or engines take it
/// for a user of Docker Hub.
fn host_of_pull(origin: &Origin) -> String {
    match origin.host() {
        Some(host) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        Some(host) => format!("{host}:{}", origin.usual_port()),
        None => "HOST:PORT".to_owned(),
    }
}

fn refused(root: &str, error: ApiError, report: &mut Report) -> Response<Body> {
    let (message, mut response) = error.said(report);
    let page = page(&Refused { root, message: &message });
    let (head, body) = page.into_parts();
    response.headers_mut().extend(head.headers);
    response.map(|_| body)
}

fn page(content: &impl Template) -> Response<Body> {
    static POLICY: LazyLock<HeaderValue> = LazyLock::new(policy);
    let mut response = match content.render() {
        Ok(html) => Response::new(Body::bytes(html.into())),
        Err(error) => {
            tracing::error!(%error, "a page cannot be written; this is a bug");
            let mut response = Response::new(Body::bytes("the page cannot be written\n".into()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    guard(headers);
    response
}

/// A browser may apply the one style, known by its hash, and nothing else.
fn policy() -> HeaderValue {
    let hash = hex::decode(Digest::of(Algorithm::Sha256, STYLE.as_bytes()).hex()).unwrap_or_default();
    let hash = base64::engine::general_purpose::STANDARD.encode(hash);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}
