//! Where log lines go: to standard error, as text for a person at a terminal, else as one JSON object per line.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Sets the process's log up. `ENTREPOT_LOG` chooses what is said (`info`, `debug`, `operator=debug,info`, …).
pub fn init() {
    let filter = EnvFilter::try_from_env("ENTREPOT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    }
}
