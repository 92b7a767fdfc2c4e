//! The V1 search, over the synthetic images: Docker Hub's index, and indexes of others at the spare sites.

use serde_json::{Value, json};
use url::form_urlencoded::parse;

use super::{
    answer::Answer,
    content::Content,
    request::Request,
    sites::{BASIC, HUB, INDEX},
};

/// Where searches go.
const SEARCH: &str = "/v1/search";
/// How many results a page has unless the request says so.
const PAGE: usize = 25;

/// The answer to a search; nothing for every other request. Docker's own registries have no index.
#[must_use]
pub fn answer(content: &Content, request: &Request) -> Option<Answer> {
    match request.path.as_str() {
        SEARCH if ![HUB, BASIC].contains(&request.host.as_str()) => {
            let found = search(content, &request.query, request.host == INDEX);
            Some(Answer::text(200, "application/json", found.to_string()))
        }
        _ => None,
    }
}

/// Docker Hub's index shows what is public, its own images (`library/`) by their short names; others show what is private.
fn search(content: &Content, query: &str, is_hub: bool) -> Value {
    let parameter =
        |name: &str| parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let number = |name: &str| parameter(name).and_then(|value| value.parse().ok()).filter(|number| *number > 0);
    let wanted = parameter("q").unwrap_or_default();
    let (size, page): (usize, usize) = (number("n").unwrap_or(PAGE), number("page").unwrap_or(1));
    let names = content.names();
    let shown = names.iter().filter(|name| name.starts_with("private/") != is_hub);
    let found: Vec<&str> =
        shown.map(|name| name.strip_prefix("library/").unwrap_or(name)).filter(|name| name.contains(&wanted)).collect();
    let results = found.iter().skip((page - 1) * size).take(size).map(|name| {
        let official = !name.contains('/');
        json!({ "name": name, "description": "made up", "star_count": 1, "is_official": official, "is_automated": false, "is_trusted": false })
    });
    json!({
        "query": wanted,
        "num_results": found.len(),
        "num_pages": found.len().div_ceil(size),
        "page": page,
        "page_size": size,
        "results": results.collect::<Vec<_>>(),
    })
}
