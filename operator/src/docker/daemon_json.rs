//! The text of daemon.json: its lists changed in place, every other byte left as it was. Pure.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

/// Why a text cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no JSON object.
    #[error("line {line}, column {column}: {what}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// A key stands in it more than once.
    #[error("the key {0:?} stands there twice; remove one of them")]
    Twice(String),
    /// A key that must hold a list of texts holds something else.
    #[error("{0:?} is not a list of texts; make it one")]
    NotAList(String),
}

/// A daemon.json that can be read.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    text: &'a str,
    entries: Vec<(String, Range<usize>)>,
}

impl<'a> Document<'a> {
    /// Reads a text. One without anything but white space has no keys.
    ///
    /// # Errors
    /// When it is no JSON object, or says a key twice.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Ok(Self { text: "{}\n", entries: vec![] });
        }
        let Raw(found) = serde_json::from_str(text).map_err(|error| described(text, &error))?;
        let mut entries: Vec<(String, Range<usize>)> = vec![];
        for (key, value) in found {
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(Error::Twice(key));
            }
            let start = value.get().as_ptr().addr() - text.as_ptr().addr();
            entries.push((key, start..start + value.get().len()));
        }
        Ok(Self { text, entries })
    }

    /// Its keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// What a key holds.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value> {
        serde_json::from_str(&self.text[self.place(key)?]).ok()
    }

    /// The list that a key holds; `None` if there is no such key.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn list(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(place) = self.place(key) else { return Ok(None) };
        serde_json::from_str(&self.text[place]).map(Some).map_err(|_| Error::NotAList(key.to_owned()))
    }

    /// The text with this list under the key.
    #[must_use]
    pub fn with_list(&self, key: &str, list: &[String]) -> String {
        let texts: Vec<_> = list.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
        let list = format!("[{}]", texts.join(", "));
        if let Some(place) = self.place(key) {
            return self.spliced(place, &list);
        }
        let key = Value::from(key);
        let opening = self.opening();
        if let Some((_, end)) = self.entries.last() {
            // As far in as the first key is.
            let lead = white_space(&self.text[opening..]);
            self.spliced(end.end..end.end, &format!(",{}{key}: {list}", if lead.is_empty() { " " } else { lead }))
        } else {
            let inside = opening..opening + white_space(&self.text[opening..]).len();
            self.spliced(inside, &format!("\n  {key}: {list}\n"))
        }
    }

    /// The text without the key.
    #[must_use]
    pub fn without(&self, key: &str) -> String {
        let Some(index) = self.entries.iter().position(|(known, _)| known == key) else { return self.text.to_owned() };
        let end = self.entries[index].1.end;
        let before = index.checked_sub(1).map(|index| self.entries[index].1.end);
        let range = match (before, self.entries.get(index + 1)) {
            (Some(before), _) => before..end,
            // The comma goes along.
            (None, Some(_)) => self.opening()..end + white_space(&self.text[end..]).len() + 1,
            (None, None) => self.opening()..end + white_space(&self.text[end..]).len(),
        };
        self.spliced(range, "")
    }

    fn place(&self, key: &str) -> Option<Range<usize>> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, place)| place.clone())
    }

    /// Where the inside begins.
    fn opening(&self) -> usize {
        self.text.find('{').map_or(0, |place| place + 1)
    }

    fn spliced(&self, range: Range<usize>, new: &str) -> String {
        format!("{}{new}{}", &self.text[..range.start], &self.text[range.end..])
    }
}

/// The keys of an object, with their values as they are written.
struct Raw<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Raw<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object, { … }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'de>, A::Error> {
                let mut entries = vec![];
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw(entries))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

fn white_space(text: &str) -> &str {
    &text[..text.len() - text.trim_start().len()]
}

fn described(text: &str, error: &serde_json::Error) -> Error {
    let (line, column) = (error.line().max(1), error.column().max(1));
    let rest = text.lines().nth(line - 1).and_then(|text| text.get(column - 1..)).unwrap_or_default();
    let what = if rest.starts_with('/') || rest.starts_with('#') {
        "JSON has no comments".to_owned()
    } else {
        let said = error.to_string();
        said.split(" at line ").next().unwrap_or_default().to_owned()
    };
    Error::Json { line, column, what }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;

    fn with(text: &str, list: &[&str]) -> String {
        let list: Vec<_> = list.iter().map(|&text| text.to_owned()).collect();
        Document::parse(text).unwrap().with_list("l", &list)
    }

    #[test]
    fn a_list_is_put_where_the_style_of_the_file_wants_it() {
        assert_eq!(with("", &["a"]), "{\n  \"l\": [\"a\"]\n}\n");
        assert_eq!(with(" {  }", &["a", "b"]), " {\n  \"l\": [\"a\", \"b\"]\n}");
        assert_eq!(with("{\n    \"x\": 1e400\n}\n", &["a"]), "{\n    \"x\": 1e400,\n    \"l\": [\"a\"]\n}\n");
        assert_eq!(with("{\"x\":{\"l\":1}}", &[]), "{\"x\":{\"l\":1}, \"l\": []}");
        assert_eq!(with("{\"l\" : [ \"z\" ], \"x\": 2}", &["a\"\\"]), "{\"l\" : [\"a\\\"\\\\\"], \"x\": 2}");
    }

    #[test]
    fn a_key_goes_with_its_comma() {
        let without = |text: &str| Document::parse(text).unwrap().without("l");
        assert_eq!(without("{\n  \"l\": [],\n  \"x\": 1\n}"), "{\n  \"x\": 1\n}");
        assert_eq!(without("{\n  \"x\": 1,\n  \"l\": []\n}"), "{\n  \"x\": 1\n}");
        assert_eq!(without("{ \"l\": [] }"), "{}");
        assert_eq!(without("{\"x\": 1}"), "{\"x\": 1}");
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let error = |text: &str| Document::parse(text).unwrap_err().to_string();
        assert_eq!(error("{\n  // mine\n  \"x\": 1\n}"), "line 2, column 3: JSON has no comments");
        assert_eq!(error("{\n  \"x\": 1,\n}"), "line 3, column 1: trailing comma");
        assert!(error("{\n  \"x\": trux\n}").starts_with("line 2, column "));
        assert!(error("[1]").contains("expected a JSON object"), "{}", error("[1]"));
        assert!(error("{\"x\": 1} {").starts_with("line 1, column 10"), "{}", error("{\"x\": 1} {"));
        assert_eq!(error("{\"x\": 1, \"x\": 2}"), "the key \"x\" stands there twice; remove one of them");
        let document = Document::parse("{\"l\": {}, \"m\": [1], \"n\": null}").unwrap();
        assert!(["l", "m", "n"].iter().all(|key| matches!(document.list(key), Err(Error::NotAList(_)))));
        assert_eq!(document.list("o"), Ok(None));
    }

    /// JSON values as people write them, a few levels deep.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn setting_a_list_changes_nothing_else_and_removing_it_brings_the_same_meaning_back(
            map in prop::collection::btree_map("[a-k]{1,3}|\"", json(), 0..5),
            list in prop::collection::vec(".{0,6}", 0..3),
            pretty in any::<bool>(),
        ) {
            let before = Value::Object(map.into_iter().collect());
            let text = if pretty { serde_json::to_string_pretty(&before).unwrap() } else { before.to_string() };
            let set = Document::parse(&text).unwrap().with_list("l", &list);
            let read: Value = serde_json::from_str(&set).unwrap();
            let mut expected = before.clone();
            expected["l"] = Value::from(list.clone());
            prop_assert_eq!(read, expected);
            let document = Document::parse(&set).unwrap();
            prop_assert_eq!(document.list("l").unwrap(), Some(list));
            let removed: Value = serde_json::from_str(&document.without("l")).unwrap();
            prop_assert_eq!(removed, before);
        }
    }
}
