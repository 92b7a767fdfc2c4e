//! The kinds: generated files, rules, schemas. One program, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod generated_files;
mod rules;
mod schema;
