//! What pushes may change: pure. May import `oci`.

use crds::hosted_repository::WritePolicy;

use crate::oci::{Digest, Tag};

/// What pushes to a repository may change.
#[derive(Clone, Debug)]
pub struct Policy {
    writes: WritePolicy,
    immutable: Vec<String>,
}

/// Why something may not be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Nothing may.
    #[error("this repository takes no pushes and deletions (writePolicy: ReadOnly)")]
    ReadOnly,
    /// No tag that exists is moved.
    #[error(
        "the tag {0} exists, and this repository lets no tag be moved (writePolicy: AllowOnce); push under another tag"
    )]
    Moved(Tag),
    /// This tag is never moved.
    #[error("the tag {0} exists and is immutable here (immutableTags): it cannot be moved; push under another tag")]
    ImmutableMoved(Tag),
    /// This tag, and what it leads to, is never deleted.
    #[error("the tag {0} is immutable here (immutableTags): neither it nor what it points to can be deleted")]
    ImmutableDeleted(Tag),
}

impl Policy {
    /// From the settings.
    #[must_use]
    pub fn new(writes: WritePolicy, immutable: &[String]) -> Self {
        Self { writes, immutable: immutable.to_vec() }
    }

    /// Whether anything may be changed.
    pub fn may_write(&self) -> Result<(), Forbidden> {
        if self.writes == WritePolicy::ReadOnly { Err(Forbidden::ReadOnly) } else { Ok(()) }
    }

    /// Whether a tag may point to `digest` from now on, when it points to `now`.
    pub fn may_point(&self, tag: &Tag, now: Option<&Digest>, digest: &Digest) -> Result<(), Forbidden> {
        self.may_write()?;
        if now.is_none_or(|now| now == digest) {
            return Ok(());
        }
        if self.is_immutable(tag) {
            return Err(Forbidden::ImmutableMoved(tag.clone()));
        }
        if self.writes == WritePolicy::AllowOnce { Err(Forbidden::Moved(tag.clone())) } else { Ok(()) }
    }

    /// Whether a tag, and what it leads to, may be deleted.
    pub fn may_delete(&self, tag: &Tag) -> Result<(), Forbidden> {
        self.may_write()?;
        if self.is_immutable(tag) { Err(Forbidden::ImmutableDeleted(tag.clone())) } else { Ok(()) }
    }

    /// Whether a tag is immutable.
    #[must_use]
    pub fn is_immutable(&self, tag: &Tag) -> bool {
        self.immutable.iter().any(|pattern| matches(pattern, tag.as_str()))
    }

    /// Whether any tag can be.
    #[must_use]
    pub fn knows_immutable(&self) -> bool {
        !self.immutable.is_empty()
    }
}

/// Whether a text is as a pattern says, in which `*` stands for any characters. Takes the time of the texts' lengths multiplied,
/// never more.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut position) = (0, 0);
    // The last star, and up to where it stands for text.
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                star = Some((at, position));
                at += 1;
            }
            (Some(byte), _) if *byte == text[position] => {
                at += 1;
                position += 1;
            }
            (_, Some((place, end))) => {
                star = Some((place, end + 1));
                at = place + 1;
                position = end + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use proptest::prelude::*;

    use super::*;
    use crate::oci::Algorithm;

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, good, bad) in [
            ("v*", &["v", "v1", "v1.2"][..], &["1v", "V1"][..]),
            ("*", &["a"], &[]),
            ("*-final", &["1-final", "-final", "final-final"], &["final", "1-final-2"]),
            ("v*.*.0", &["v1.2.0", "v1.0.0.0"], &["v1.0", "v1.2.1"]),
            ("1.0", &["1.0"], &["1.00", "1x0"]),
        ] {
            for text in good {
                assert!(matches(pattern, text), "{pattern} {text}");
            }
            for text in bad {
                assert!(!matches(pattern, text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn the_same_digest_may_always_be_pushed_again() {
        let (one, two) = (digest("1"), digest("2"));
        for writes in [WritePolicy::Allow, WritePolicy::AllowOnce] {
            let policy = Policy::new(writes, &["v*".to_owned()]);
            assert_eq!(policy.may_point(&tag("v1"), Some(&one), &one), Ok(()));
            assert_eq!(policy.may_point(&tag("v1"), None, &one), Ok(()));
            assert_eq!(policy.may_point(&tag("v1"), Some(&one), &two), Err(Forbidden::ImmutableMoved(tag("v1"))));
            assert_eq!(policy.may_point(&tag("new"), Some(&one), &two).is_ok(), writes == WritePolicy::Allow);
            assert!(policy.may_delete(&tag("v1")).is_err() && policy.may_delete(&tag("new")).is_ok());
        }
        let policy = Policy::new(WritePolicy::ReadOnly, &[]);
        assert_eq!(policy.may_point(&tag("a"), Some(&one), &one), Err(Forbidden::ReadOnly));
        assert_eq!(policy.may_delete(&tag("a")), Err(Forbidden::ReadOnly));
    }

    proptest! {
        #[test]
        fn a_text_whose_parts_became_stars_matches(parts in proptest::collection::vec("[a-c.]{0,4}", 1..6), fill in "[a-c]{0,6}") {
            prop_assert!(matches(&parts.join("*"), &parts.join(&fill)));
        }

        #[test]
        fn a_pattern_of_stars_takes_no_time(text in "a{0,128}") {
            let pattern = "*a".repeat(64) + "b";
            prop_assert!(!matches(&pattern, &text));
        }
    }
}
