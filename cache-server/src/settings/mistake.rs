//! What is wrong with a configuration, all of it at once. May import nothing of ours.

use std::{error::Error, fmt};

use crate::causes::with_causes;

/// Where in the configuration something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was given.
    pub file: String,
    /// The YAML document in it, counted from 1; empty documents do not count.
    pub document: usize,
    /// Kind and name of the object, as far as they are known.
    pub object: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, document {}", self.file, self.document)?;
        match &self.object {
            Some(object) => write!(formatter, ", {object}"),
            None => Ok(()),
        }
    }
}

/// One mistake: where it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// File, document, object and field, as far as they are known.
    pub place: String,
    /// The broken rule, what was found, and what to do. No full stop.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

/// Every mistake of a configuration, in the order of the files; never empty where it is an error. Displayed one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The mistakes.
    #[must_use]
    pub fn as_slice(&self) -> &[Mistake] {
        &self.0
    }

    /// `value` if there is no mistake.
    pub(super) fn unless_any<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Notes a mistake that belongs to no object.
    pub(super) fn note_file(&mut self, file: impl fmt::Display, message: impl fmt::Display) {
        self.0.push(Mistake { place: file.to_string(), message: message.to_string() });
    }

    /// Notes a mistake in a field; the empty field is the object itself.
    pub(super) fn note(&mut self, place: &Place, field: &str, message: impl fmt::Display) {
        let place = if field.is_empty() { place.to_string() } else { format!("{place}, {field}") };
        self.0.push(Mistake { place, message: message.to_string() });
    }

    /// The value, or a note of why there is none.
    pub(super) fn keep<T, E: Error>(&mut self, place: &Place, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.note(place, field, chain(&error))).ok()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(formatter, "{newline}{mistake}")?;
        }
        Ok(())
    }
}

impl Error for Mistakes {}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    with_causes(error).replace('\n', " ")
}
