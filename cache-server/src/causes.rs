//! An error together with its causes, for the places where errors end: logs, answers, lists of mistakes.
//! Imports nothing of ours.

use std::error::Error;

/// The message of an error and those of its causes, outermost first.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
