//! An error with its causes, on one line. May import nothing of ours.

use std::error::Error;

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their source.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn each_cause_is_said_once() {
        let last = Link { text: "refused", source: None };
        let repeated = Link { text: "cannot connect: refused", source: Some(Box::new(last)) };
        let first = Link { text: "no answer", source: Some(Box::new(repeated)) };
        assert_eq!(chain(&first), "no answer: cannot connect: refused");
    }
}
