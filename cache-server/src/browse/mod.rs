//! What people are shown of the repositories and of what is kept: read-only, never a use, and never more than who asks may
//! pull. Read in this order: [`view`], [`document`], [`reader`]. May import `oci`, `repository`, `server`, `settings`
//! and `store`; knows no HTTP.

pub mod document;
pub mod reader;
pub mod view;

pub use reader::{Error, MaySee, Page, Reader};
