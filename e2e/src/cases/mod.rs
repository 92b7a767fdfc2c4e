//! What the product must do, one file per subject; each file's `cases()` says what it shows.

pub mod conformance;
pub mod engines;
pub mod images;
