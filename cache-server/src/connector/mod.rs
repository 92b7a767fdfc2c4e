//! Where requests come in: ports, TLS, connections. Read in this order: [`connection`], [`stream`], [`tls`],
//! [`recall`], [`listener`]. May import `store` (files that are sent by the kernel) and is handed the function that answers.

pub mod connection;
pub mod listener;
pub mod recall;
mod stream;
pub mod tls;

pub use connection::{Connection, Serving};
