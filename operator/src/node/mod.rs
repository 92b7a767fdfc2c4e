//! The agent of one node: writes what its `NodeMirror` says into containerd's certs.d, and puts back what was there.
//!
//! Read in this order: [`names`], [`mark`], [`hosts`], [`record`], [`view`], [`plan`] (the judgement), [`disk`] (the hands),
//! [`resolve`], [`probe`], [`detect`], [`config`], [`report`], [`probing`],
//! `cluster`, [`agent`] (the loop).
//! May import `crds`; nothing of the controllers.

pub mod names;
pub mod mark;
pub mod hosts;
pub mod record;
pub mod view;
pub mod plan;
pub mod disk;
pub mod resolve;
pub mod probe;
pub mod detect;
pub mod report;
pub mod config;
pub mod probing;
mod cluster;
pub mod agent;
#[cfg(test)]
mod fixtures;
