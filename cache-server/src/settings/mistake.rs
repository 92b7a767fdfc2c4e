//! What is wrong with a configuration, all of it at once. May import nothing of ours.

use std::{error::Error, fmt};

use crate::causes::with_causes;

/// Which object something is about, as far as that is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its kind.
    pub kind: String,
    /// Its `metadata.name`; empty if it has none.
    pub name: String,
    /// Its `metadata.generation`, if it says one: the operator writes it, people do not.
    pub generation: Option<i64>,
}

impl ObjectName {
    /// Whether both are of the same object, whatever its generation.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind, if self.name.is_empty() { "(unnamed)" } else { &self.name })
    }
}

/// Where in the configuration something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as it was given.
    pub file: String,
    /// The YAML document in it, counted from 1; empty documents do not count. `None`: the file as a whole.
    pub document: Option<usize>,
    /// The object in the document.
    pub object: Option<ObjectName>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some(document) = self.document {
            write!(formatter, ", document {document}")?;
        }
        match &self.object {
            Some(object) => write!(formatter, ", {object}"),
            None => Ok(()),
        }
    }
}

/// One mistake: where it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// File, document and object, as far as they are known.
    pub place: Place,
    /// The field, `spec.upstream.url`; empty: the object itself.
    pub field: String,
    /// The broken rule, what was found, and what to do. No full stop.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.field.is_empty() { "" } else { ", " };
        write!(formatter, "{}{separator}{}: {}", self.place, self.field, self.message)
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

    /// Whether something is wrong at a place.
    pub(super) fn concern(&self, place: &Place) -> bool {
        self.0.iter().any(|mistake| mistake.place == *place)
    }

    /// Whether something is wrong of which it is not known to which object it belongs.
    pub(super) fn hide_objects(&self) -> bool {
        self.0.iter().any(|mistake| mistake.place.object.as_ref().is_none_or(|object| object.name.is_empty()))
    }

    /// Notes a mistake that belongs to no object.
    pub(super) fn note_file(&mut self, file: impl fmt::Display, message: impl fmt::Display) {
        self.note(&Place { file: file.to_string(), document: None, object: None }, "", message);
    }

    /// Notes that an object in which nothing is wrong does not work.
    pub(super) fn note_failure(&mut self, object: Option<ObjectName>, why: &dyn Error) {
        let place = Place { file: "running it".to_owned(), document: None, object };
        self.note(&place, "", format!("{}; it is tried again when the configuration changes", chain(why)));
    }

    /// Notes a mistake in a field; the empty field is the object itself.
    pub(super) fn note(&mut self, place: &Place, field: &str, message: impl fmt::Display) {
        self.0.push(Mistake { place: place.clone(), field: field.to_owned(), message: message.to_string() });
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
