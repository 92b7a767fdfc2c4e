//! The words of the OCI distribution specification, as types that cannot hold a wrong value.
//!
//! Pure: no I/O, no axum, no async; may import nothing else of ours. Read in this order.

pub mod digest;
pub mod image_name;
pub mod tag;
pub mod reference;
pub mod media_type;
pub mod range;
pub mod manifest;
pub mod error_code;
pub mod endpoint;
pub mod push;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use endpoint::{Endpoint, EndpointError};
pub use error_code::ErrorCode;
pub use image_name::{ImageName, ImageNameError};
pub use manifest::{Descriptor, Manifest, ManifestError, PushedManifest, PushedManifestError};
pub use media_type::{MediaType, MediaTypeError};
pub use push::{ChunkRange, ManifestQuery, PushQueryError, UploadQuery};
pub use range::{RangeRequest, Ranged};
pub use reference::{Reference, ReferenceError};
pub use tag::{Tag, TagError};
