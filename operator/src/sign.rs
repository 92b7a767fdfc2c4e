//! Short signs of values, by which changes are seen. May import nothing of ours.

use std::hash::Hasher;

use fnv::FnvHasher;
use serde_json::Value;

/// A sign of a value: the same on every machine and in every build. Nobody gains from a collision.
#[must_use]
pub fn hash(value: &Value) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(value.to_string().as_bytes());
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sign_does_not_change_by_itself() {
        assert_eq!(hash(&json!({"a": 1})), "9c3e82dd6fcae8b1");
        assert_ne!(hash(&json!({"a": 1})), hash(&json!({"a": 2})));
    }
}
