//! Image names: the `<name>` of the distribution spec ("Pulling manifests"). May import nothing of ours.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The most characters that a name may have, slashes included.
const MAX_LEN: usize = 255;

/// An image name such as `library/mysql`; what the spec calls `<name>`.
///
/// Invariants: 1 to 255 characters; components joined by `/`, each of lower-case letters and digits with single `.`, `_`, `__`
/// or any number of `-` between them. So no component is empty, `.` or `..`, or begins with `.` or `_`: the name is
/// safe as a relative path and never meets the store's own `_tags`. Cloning counts a reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(Arc<str>);

/// Why a text is no [`ImageName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// More than 255 characters.
    #[error("an image name must have at most 255 characters, got {0}")]
    TooLong(usize),
    /// A component breaks the rule.
    #[error(
        "each component of an image name must be lower-case letters and digits with '.', '_', '__' or '-' only between them, got {0:?}"
    )]
    BadComponent(String),
}

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts between the slashes; at least one.
    #[must_use]
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(ImageNameError::TooLong(text.len()));
        }
        match text.split('/').find(|component| !is_component(component)) {
            Some(bad) => Err(ImageNameError::BadComponent(bad.to_owned())),
            None => Ok(Self(text.into())),
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`: no separator at either end, and each run of separators one of the four.
fn is_component(component: &str) -> bool {
    let alphanumeric = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit();
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component
            .split(alphanumeric)
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

impl TryFrom<String> for ImageName {
    type Error = ImageNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_are_taken() {
        for text in ["nginx", "library/mysql", "a/b/c/d", "a.b_c__d---e", "0", "manifests/blobs", &"a".repeat(255)] {
            assert_eq!(text.parse::<ImageName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/./b",
            ".a",
            "a.",
            "_a",
            "a_",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a-_b",
            "A",
            "a b",
            "a\0b",
            "a%2fb",
            "ä",
            "a:b",
            "a\\b",
            "a\n",
            &"a".repeat(256),
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_the_grammar_makes_is_taken(text in "[a-z0-9]{1,5}((\\.|_|__|-{1,4})[a-z0-9]{1,5}){0,4}(/[a-z0-9]{1,5}(-{1,2}[a-z0-9]{1,3}){0,2}){0,3}") {
            prop_assert!(text.parse::<ImageName>().is_ok());
        }

        #[test]
        fn no_name_leaves_its_folder(text in "[a-z./_-]{0,20}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert!(name.components().all(|part| part.starts_with(|char: char| char.is_ascii_alphanumeric())));
            }
        }
    }
}
