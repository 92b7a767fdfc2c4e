//! An index, asked like any upstream. May import `found` and `upstream`.

use super::found::{Found, IndexPage, LARGEST_PAGE};
use crate::upstream::{BuildError, Error, Misfit, Upstream, UpstreamConfig, Violation};

/// The most pages that are fetched for one search.
const MOST_PAGES: usize = 10;

/// The most names of a catalog that are looked through.
const MOST_NAMES: usize = 20_000;

/// Where a mirror looks for images. It has a breaker and connections of its own: an index that fails says nothing about pulls.
pub struct Index {
    upstream: Upstream,
    has_catalog: bool,
}

impl Index {
    /// An index with these settings. Where `has_catalog`, the names in `/v2/_catalog` are looked through if there is no index.
    pub fn new(config: UpstreamConfig, has_catalog: bool) -> Result<Self, BuildError> {
        Ok(Self { upstream: Upstream::new(config)?, has_catalog })
    }

    /// The first `need` images whose names or descriptions have the text.
    pub async fn find(&self, text: &str, need: usize) -> Result<Found, Error> {
        match self.ask(text, need).await {
            // Registries of today have no version 1, and some answer every path with a page for browsers.
            Err(Error::NotFound | Error::Denied | Error::WrongContent(_) | Error::Protocol(Violation::Status(_)))
                if self.has_catalog =>
            {
                let names = self.upstream.catalog(MOST_NAMES).await?;
                let text = text.to_ascii_lowercase();
                let names = names.into_iter().map(|name| name.to_string());
                Ok(Found::all(names.filter(|name| name.contains(&text))))
            }
            other => other,
        }
    }

    async fn ask(&self, text: &str, need: usize) -> Result<Found, Error> {
        let mut found = Found::default();
        let size = need.clamp(1, LARGEST_PAGE);
        for page in 1..=MOST_PAGES {
            let bytes = self.upstream.search(text, size, page).await?;
            let read = IndexPage::parse(&bytes).ok_or(Error::WrongContent(Misfit::Json))?;
            let pages = read.num_pages.unwrap_or(1);
            if !read.add_to(&mut found) || found.hits.len() >= need || page >= pages {
                break;
            }
        }
        Ok(found)
    }
}
