//! The server over real sockets and folders, a file per subject. One program, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod access;
mod browse;
mod cluster;
mod connection;
mod fill;
mod groups;
mod hosted;
mod keep;
mod layers;
mod outage;
mod ports;
mod pull;
mod recall;
mod search;
mod support;
mod upstream;
