//! The canary: a tiny image that is served without an upstream, so that it can be seen whether a node pulls through this
//! server. Read in this order: [`program`], [`image`], [`record`]. May import `oci`.

pub mod image;
pub mod program;
pub mod record;

/// The registry that node files send here. It ends in `.invalid`, so that nothing else can be reached by it.
pub const REGISTRY: &str = "probe.entrepot.invalid";

/// The name of its repository in paths. No mirror may have it.
pub const REPOSITORY: &str = "probe";

/// The image's only name.
pub const IMAGE: &str = "canary";
