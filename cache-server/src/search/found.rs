//! What was found, and pages of it. Pure. May import nothing of ours.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// How many hits a page has unless the client says otherwise.
const PAGE: usize = 25;

/// The most hits that a page has.
pub const LARGEST_PAGE: usize = 100;

/// The most hits that one can page to.
const MOST: usize = 1000;

/// The longest text that is looked for, in characters.
const LONGEST_TEXT: usize = 255;

/// The longest description that is handed on, in characters.
const LONGEST_DESCRIPTION: usize = 500;

/// What a client looks for.
///
/// Invariants: 1 to 100 hits a page, pages count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The text.
    pub text: String,
    size: usize,
    page: usize,
}

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A text that no index takes.
    #[error("q must have at most {LONGEST_TEXT} characters and no control characters")]
    Text,
    /// No number.
    #[error("{parameter} must be a number, got {got:?}")]
    Number {
        /// Of which parameter.
        parameter: &'static str,
        /// What stands there.
        got: String,
    },
}

impl Query {
    /// Reads `q`, `n` and `page` of a URL.
    pub fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let (mut text, mut size, mut page) = (String::new(), PAGE, 1);
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*key {
                "q" => value.trim().clone_into(&mut text),
                "n" | "page_size" => size = number("n", &value)?.unwrap_or(PAGE),
                "page" => page = number("page", &value)?.unwrap_or(1),
                _ => {}
            }
        }
        if text.chars().count() > LONGEST_TEXT || text.chars().any(char::is_control) {
            return Err(QueryError::Text);
        }
        Ok(Self { text, size: size.min(LARGEST_PAGE), page })
    }

    /// How many hits must be known for the page; nothing for a page that lies behind all that is looked for.
    #[must_use]
    pub fn need(&self) -> Option<usize> {
        self.page.checked_mul(self.size).filter(|need| *need <= MOST)
    }

    /// The page, as clients of the API read it.
    #[must_use]
    pub fn page_of(&self, found: &Found) -> serde_json::Value {
        let first = (self.page - 1).saturating_mul(self.size);
        let hits: Vec<&Hit> = found.hits.iter().skip(first).take(self.size).collect();
        serde_json::json!({
            "query": self.text,
            "num_results": found.total,
            "num_pages": found.total.div_ceil(self.size),
            "page": self.page,
            "page_size": self.size,
            "results": hits,
        })
    }
}

/// Zero and nothing say nothing; more digits than a number holds are a lot.
fn number(parameter: &'static str, text: &str) -> Result<Option<usize>, QueryError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QueryError::Number { parameter, got: text.to_owned() });
    }
    Ok((!text.is_empty()).then(|| text.parse().unwrap_or(usize::MAX)).filter(|number| *number > 0))
}

/// An image that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// Its name, as it is pulled.
    pub name: String,
    /// What its owner says about it.
    pub description: String,
    /// How many like it.
    pub star_count: u64,
    /// Whether it is one of Docker Hub's official images.
    pub is_official: bool,
    /// Whether Docker Hub built it.
    pub is_automated: bool,
}

impl Hit {
    /// An image of which only the name is known.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

/// What was found: the first hits, and how many there are in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first hits, in order.
    pub hits: Vec<Hit>,
    /// How many there are, as far as anybody says; never less than `hits`.
    pub total: usize,
}

impl Found {
    /// Everything, known by name.
    #[must_use]
    pub fn all(names: impl Iterator<Item = String>) -> Self {
        let hits: Vec<Hit> = names.map(|name| Hit { name, ..Hit::default() }).collect();
        Self { total: hits.len(), hits }
    }

    /// What several found, each image once: where the first found it. `is_ours` says whether a hit counts.
    #[must_use]
    pub fn merged(all: Vec<Self>, is_ours: impl Fn(usize, &Hit) -> bool) -> Self {
        let mut seen = HashSet::new();
        let mut merged = Self::default();
        for (source, found) in all.into_iter().enumerate() {
            let known = found.hits.len();
            let hits: Vec<Hit> = found.hits.into_iter().filter(|hit| is_ours(source, hit)).collect();
            let hits: Vec<Hit> = hits.into_iter().filter(|hit| seen.insert(hit.name.clone())).collect();
            // Of those that were not fetched nobody knows which count.
            merged.total += hits.len() + found.total.saturating_sub(known);
            merged.hits.extend(hits);
        }
        merged
    }
}

/// One answer of an index.
#[derive(Deserialize)]
pub(super) struct IndexPage {
    num_results: Option<usize>,
    pub(super) num_pages: Option<usize>,
    results: Vec<IndexHit>,
}

#[derive(Deserialize)]
struct IndexHit {
    name: Option<String>,
    description: Option<String>,
    #[serde(default)]
    star_count: Option<u64>,
    #[serde(default)]
    is_official: Option<bool>,
    #[serde(default)]
    is_automated: Option<bool>,
}

impl IndexPage {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Adds the page to what was found. Says whether it had anything.
    pub(super) fn add_to(self, found: &mut Found) -> bool {
        let before = found.hits.len();
        found.hits.extend(self.results.into_iter().filter_map(IndexHit::hit));
        found.total = self.num_results.unwrap_or_default().max(found.hits.len());
        found.hits.len() > before
    }
}

impl IndexHit {
    /// Names that could not be pulled are left out.
    fn hit(self) -> Option<Hit> {
        let name = self.name.filter(|name| !name.is_empty() && name.len() <= LONGEST_TEXT)?;
        let description = self.description.unwrap_or_default();
        Some(Hit {
            name,
            description: description.chars().take(LONGEST_DESCRIPTION).collect(),
            star_count: self.star_count.unwrap_or_default(),
            is_official: self.is_official.unwrap_or_default(),
            is_automated: self.is_automated.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn found(names: &[&str], total: usize) -> Found {
        Found { hits: names.iter().map(|name| Hit::named(name)).collect(), total }
    }

    fn names(found: &Found) -> Vec<&str> {
        found.hits.iter().map(|hit| hit.name.as_str()).collect()
    }

    #[test]
    fn queries_have_bounds() {
        for (query, expected) in [
            ("q=mysql&n=25", Some(("mysql", Some(25)))),
            ("q=%20my+sql%20&n=10&page=3", Some(("my sql", Some(30)))),
            ("", Some(("", Some(25)))),
            ("q=a&n=0&page=0", Some(("a", Some(25)))),
            ("q=a&n=5000", Some(("a", Some(100)))),
            ("q=a&n=100&page=10", Some(("a", Some(1000)))),
            ("q=a&n=100&page=11", Some(("a", None))),
            ("q=a&page=99999999999999999999999", Some(("a", None))),
            ("q=a&n=x", None),
            ("q=a&page=-1", None),
            ("q=a%0ab", None),
        ] {
            let parsed = Query::parse(Some(query));
            let got = parsed.as_ref().ok().map(|query| (query.text.as_str(), query.need()));
            assert_eq!(got, expected, "{query}");
        }
        assert_eq!(Query::parse(Some(&format!("q={}", "a".repeat(256)))), Err(QueryError::Text));
    }

    #[test]
    fn a_page_is_a_part_of_what_was_found() {
        let query = Query::parse(Some("q=a&n=2&page=2")).unwrap();
        let page = query.page_of(&found(&["a1", "a2", "a3"], 3));
        assert_eq!(page["results"].as_array().unwrap().len(), 1);
        assert_eq!(page["results"][0]["name"], "a3");
        let numbers = ["num_results", "num_pages", "page", "page_size"].map(|key| page[key].as_u64().unwrap());
        assert_eq!(numbers, [3, 2, 2, 2]);
        let behind = Query::parse(Some("q=a&page=99999999999999999999999")).unwrap().page_of(&found(&["a1"], 1));
        assert_eq!(behind["results"], serde_json::json!([]));
    }

    #[test]
    fn merged_hits_keep_the_order_of_the_sources_and_occur_once() {
        let all = vec![found(&["b", "a"], 2), found(&["c", "a", "hidden"], 10)];
        let merged = Found::merged(all, |source, hit| source == 0 || hit.name != "hidden");
        assert_eq!((names(&merged), merged.total), (vec!["b", "a", "c"], 10));
    }

    #[test]
    fn an_answer_of_an_index_is_read_with_its_gaps() {
        let text = r#"{"num_results": 7, "num_pages": 4, "query": "a", "results": [
            {"name": "a", "description": null, "star_count": 5, "is_official": true, "is_trusted": false},
            {"name": "", "description": "x"}, {"description": "x"}]}"#;
        let mut all = Found::default();
        assert!(IndexPage::parse(text.as_bytes()).unwrap().add_to(&mut all));
        let hit = Hit { star_count: 5, is_official: true, ..Hit::named("a") };
        assert_eq!(all, Found { hits: vec![hit], total: 7 });
        assert!(IndexPage::parse(b"{}").is_none() && IndexPage::parse(b"<html>").is_none());
    }
}
