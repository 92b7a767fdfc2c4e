//! Looking for images by name, as `docker search` does (Docker's registry API, version 1). [`found`] is pure: what was found, how
//! it is merged and paged; [`index`] asks. May import `upstream`.

pub mod found;
pub mod index;

pub use found::{Found, Hit, Query, QueryError};
pub use index::Index;
