//! Where log lines go: to standard error, as text for a person at a terminal, else as one JSON object per line. May import
//! nothing of ours. One line per request makes this part of the hot path, so [`json`] and [`lines`] are ours.

mod json;
mod lines;

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

pub use lines::Guard;

/// Sets the process's log up. `ENTREPOT_LOG` chooses what is said (`info`, `debug`, `request=off,info`, …).
///
/// Lines are written by a thread of their own, so that no request waits for whoever reads them; none is left out. What is under
/// way is written when the guard is dropped.
#[must_use]
pub fn init() -> Guard {
    let filter = EnvFilter::try_from_env("ENTREPOT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let (lines, guard) = lines::begin(io::stderr());
    let log = fmt().with_env_filter(filter).with_writer(lines);
    if io::stderr().is_terminal() {
        log.init();
    } else {
        log.event_format(json::Json).init();
    }
    guard
}
