//! The schema of a kind, applied to one object, so that every mistake is found at once and named by its field (serde stops
//! at the first and says no path). May import `crds`.

use std::str::FromStr;

use crds::{
    names::{
        ByteSize, HOST_PATTERN, REGISTRY_PATTERN, REPOSITORY_GLOB_PATTERN, SECRET_NAME_PATTERN, Span, is_host,
        is_registry, is_repository_glob, is_secret_name,
    },
    repository::{IMAGE_GLOB_PATTERN, TAG_GLOB_PATTERN, is_image_glob, is_tag_glob},
};
use serde_json::{Map, Value};

/// A mistake in an object: the field, and the rule that it breaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Breach {
    /// The path from the top of the object, `spec.connectors[0].port`.
    pub(super) field: String,
    /// The rule and what was found.
    pub(super) message: String,
}

/// Everything in `value` that its structural `schema` (the `OpenAPI` subset of a CRD) refuses. Unknown fields count, as
/// they do for `kubectl apply` with strict validation.
pub(super) fn breaches(value: &Value, schema: &Value, field: &str) -> Vec<Breach> {
    let mut found = Vec::new();
    Walk { found: &mut found }.value(value, schema, field);
    found
}

struct Walk<'a> {
    found: &'a mut Vec<Breach>,
}

impl Walk<'_> {
    fn note(&mut self, field: &str, message: String) {
        self.found.push(Breach { field: field.to_owned(), message });
    }

    fn value(&mut self, value: &Value, schema: &Value, field: &str) {
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        let expected = schema["type"].as_str().unwrap_or_default();
        let fits = match expected {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            _ => true,
        };
        if !fits {
            let hint = if expected == "string" { "; put it in quotes" } else { "" };
            return self.note(field, format!("must be of type {expected}, got {value}{hint}"));
        }
        match value {
            Value::Object(fields) => self.object(fields, schema, field),
            Value::Array(entries) => self.array(entries, schema, field),
            Value::String(text) => self.string(text, schema, field),
            Value::Number(number) => self.number(number.as_f64().unwrap_or_default(), schema, field),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn object(&mut self, fields: &Map<String, Value>, schema: &Value, field: &str) {
        let Some(known) = schema["properties"].as_object() else { return };
        for (name, value) in fields {
            let path = format!("{field}.{name}");
            if let Some(schema) = known.get(name) {
                self.value(value, schema, &path);
            } else {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                self.note(&path, format!("unknown field; known here are {}", names.join(", ")));
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.note(&format!("{field}.{name}"), "must be set".to_owned());
            }
        }
    }

    fn array(&mut self, entries: &[Value], schema: &Value, field: &str) {
        if let Some(most) = schema["maxItems"].as_u64()
            && entries.len() as u64 > most
        {
            self.note(field, format!("must have at most {most} entries, got {}", entries.len()));
        }
        for (index, entry) in entries.iter().enumerate() {
            self.value(entry, &schema["items"], &format!("{field}[{index}]"));
        }
    }

    fn string(&mut self, text: &str, schema: &Value, field: &str) {
        let length = text.chars().count() as u64;
        let (least, most) =
            (schema["minLength"].as_u64().unwrap_or(0), schema["maxLength"].as_u64().unwrap_or(u64::MAX));
        if !(least..=most).contains(&length) {
            return self.note(field, format!("must have {least} to {most} characters, got {length}"));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.iter().any(|value| value == text)
        {
            let words: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            return self.note(field, format!("must be one of {}, got {text:?}", words.join(", ")));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && let Err(message) = check_pattern(pattern, text)
        {
            self.note(field, message);
        }
    }

    fn number(&mut self, number: f64, schema: &Value, field: &str) {
        if schema["minimum"].as_f64().is_some_and(|least| number < least) {
            self.note(field, format!("must be at least {}, got {number}", schema["minimum"]));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            self.note(field, format!("must be at most {}, got {number}", schema["maximum"]));
        }
    }
}

/// What a schema's `pattern` means, in words. The patterns are few and each has a type or a check of its own, so that no
/// regular expression is run; a test holds that all of them are known here.
fn check_pattern(pattern: &str, text: &str) -> Result<(), String> {
    let rule = |holds: bool, rule: &str| if holds { Ok(()) } else { Err(format!("{rule}, got {text:?}")) };
    match pattern {
        Span::PATTERN => Span::from_str(text).map(|_| ()).map_err(|error| error.to_string()),
        ByteSize::PATTERN => ByteSize::from_str(text).map(|_| ()).map_err(|error| error.to_string()),
        HOST_PATTERN => rule(is_host(text), "must be a host name in lower case without a port"),
        REGISTRY_PATTERN => rule(is_registry(text), "must be a host name in lower case with an optional port"),
        SECRET_NAME_PATTERN => rule(is_secret_name(text), "must be the name of a Secret: a-z, 0-9, '-' and '.'"),
        TAG_GLOB_PATTERN => {
            rule(is_tag_glob(text), "must be a pattern of tags: letters, digits, '_', '.', '-' and '*'")
        }
        REPOSITORY_GLOB_PATTERN => {
            rule(is_repository_glob(text), "must be a pattern of repository names: a-z, 0-9, '-' and '*'")
        }
        IMAGE_GLOB_PATTERN => {
            rule(is_image_glob(text), "must be a pattern of image names: a-z, 0-9, '.', '_', '-', '/' and '*'")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    fn collect(schema: &Value, keyword: &str, found: &mut Vec<Value>) {
        match schema {
            Value::Object(fields) => {
                // Below `properties`, names are the user's, not keywords.
                for (name, inner) in fields {
                    if name == keyword {
                        found.push(inner.clone());
                    }
                    collect(inner, keyword, found);
                }
            }
            Value::Array(entries) => entries.iter().for_each(|entry| collect(entry, keyword, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_and_keyword_of_our_kinds_is_known_here() {
        for kind in crds::all() {
            let kind = serde_json::to_value(kind).unwrap();
            let schema = &kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let mut patterns = Vec::new();
            collect(schema, "pattern", &mut patterns);
            for pattern in patterns {
                let known = [
                    Span::PATTERN,
                    ByteSize::PATTERN,
                    HOST_PATTERN,
                    REGISTRY_PATTERN,
                    SECRET_NAME_PATTERN,
                    REPOSITORY_GLOB_PATTERN,
                    TAG_GLOB_PATTERN,
                    IMAGE_GLOB_PATTERN,
                ];
                assert!(known.contains(&pattern.as_str().unwrap()), "{pattern}");
            }
            for keyword in
                ["oneOf", "anyOf", "allOf", "not", "multipleOf", "exclusiveMinimum", "exclusiveMaximum", "minItems"]
            {
                let mut uses = Vec::new();
                collect(schema, keyword, &mut uses);
                assert_eq!(uses, Vec::<Value>::new(), "{keyword}");
            }
        }
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let schema = json!({
            "type": "object",
            "required": ["a", "z"],
            "properties": {
                "a": {"type": "string", "maxLength": 3},
                "b": {"type": "array", "maxItems": 1, "items": {"type": "integer", "minimum": 1, "maximum": 5}},
                "c": {"type": "string", "enum": ["X", "Y"]},
                "d": {"type": "boolean", "nullable": true},
                "e": {"type": "string", "pattern": Span::PATTERN},
            },
        });
        let value = json!({"a": "long", "b": [0, 6, "x"], "c": "Z", "d": null, "e": "5 minutes", "f": 1});
        let found: Vec<String> = breaches(&value, &schema, "spec")
            .into_iter()
            .map(|breach| format!("{}: {}", breach.field, breach.message))
            .collect();
        assert_eq!(
            found,
            [
                "spec.a: must have 0 to 3 characters, got 4",
                "spec.b: must have at most 1 entries, got 3",
                "spec.b[0]: must be at least 1, got 0",
                "spec.b[1]: must be at most 5, got 6",
                "spec.b[2]: must be of type integer, got \"x\"",
                "spec.c: must be one of X, Y, got \"Z\"",
                "spec.e: a length of time must be written like 500ms, 90s or 1h30m and not be negative, got \"5 minutes\"",
                "spec.f: unknown field; known here are a, b, c, d, e",
                "spec.z: must be set",
            ]
        );
    }
}
