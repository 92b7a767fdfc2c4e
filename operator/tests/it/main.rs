//! The operator and the agent without a cluster, a file per subject. One program, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
mod layers;
mod node_agent;
mod node_files;
