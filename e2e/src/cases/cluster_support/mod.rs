//! What the cases of an installed product share.
//!
//! In reading order: [`product`] (what it says of itself), [`node_files`] (what it leaves on nodes), [`pods_images`]
//! (images made for one case), [`pods`] (pods that run them), [`pulls`] (pulls that go on
//! meanwhile), [`odd`] (configuration of someone else on nodes).

pub mod product;
pub mod node_files;
pub mod pods_images;
pub mod pods;
pub mod pulls;
pub mod odd;
