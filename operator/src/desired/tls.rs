//! When the managed certificates are made anew: a state machine that is told the time. Pure. May import nothing of ours.
//!
//! A new authority is published beside the old one first; the leaf changes over when every reachable node trusts both;
//! the old one is dropped when the server shows the new leaf, and with it the new authority signed by the old one, for pulls
//! that read what they trust before. So no node meets a certificate that it does not trust.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// What is known of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Since when it is good.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// The names and addresses it is good for.
    pub names: BTreeSet<String>,
    /// Its subject, DER in hex.
    pub subject: String,
    /// The subject of who signed it, DER in hex.
    pub issuer: String,
    /// SHA-256 of its DER, in hex.
    pub fingerprint: String,
}

impl Facts {
    /// Whether two thirds of its life are over.
    #[must_use]
    pub fn is_ageing(&self, now: Timestamp) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        now.duration_since(self.not_before) >= life * 2 / 3
    }
}

/// How far the rotation of an authority is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation<'a> {
    /// The authority that signs.
    pub current: Option<&'a Facts>,
    /// Whether another one is published beside it.
    pub has_next: bool,
    /// Whether one that signed before is still published.
    pub has_previous: bool,
    /// The wish for a rotation that was heeded last.
    pub heeded: Option<&'a str>,
}

/// What the state machine is told of the world.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The time.
    pub now: Timestamp,
    /// The wish for a rotation, as an annotation.
    pub wish: Option<&'a str>,
    /// Whether every agent of a ready node has written all authorities that are published.
    pub nodes_trust_all: bool,
    /// Whether the server shows the leaf that is mounted, and the current authority signed it.
    pub leaf_is_loaded: bool,
}

/// The next step of an authority. One at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the first one.
    Begin,
    /// Publish another one beside it.
    PublishNext,
    /// Let the other one sign, and keep the old one published.
    Switch,
    /// Drop the old one.
    DropPrevious,
    /// Nothing.
    Stay,
}

/// The next step.
#[must_use]
pub fn next_step(rotation: &Rotation<'_>, seen: &Seen<'_>) -> Step {
    let Some(current) = rotation.current else { return Step::Begin };
    if rotation.has_previous {
        return if seen.leaf_is_loaded { Step::DropPrevious } else { Step::Stay };
    }
    if rotation.has_next {
        return if seen.nodes_trust_all { Step::Switch } else { Step::Stay };
    }
    let wished = seen.wish.is_some() && seen.wish != rotation.heeded;
    if wished || current.is_ageing(seen.now) { Step::PublishNext } else { Step::Stay }
}

/// Whether a leaf must be made anew.
#[must_use]
pub fn leaf_is_due(leaf: Option<&Facts>, authority: &Facts, names: &BTreeSet<String>, now: Timestamp) -> bool {
    leaf.is_none_or(|leaf| leaf.is_ageing(now) || leaf.names != *names || leaf.issuer != authority.subject)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn facts(days: i64) -> Facts {
        Facts {
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days),
            names: BTreeSet::from(["a".to_owned()]),
            subject: "ca".to_owned(),
            issuer: "ca".to_owned(),
            fingerprint: String::new(),
        }
    }

    fn day(day: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * day)
    }

    #[test]
    fn a_rotation_goes_step_by_step_and_ends() {
        let authority = facts(3650);
        let mut rotation = Rotation { current: Some(&authority), has_next: false, has_previous: false, heeded: None };
        let mut seen = Seen { now: day(1), wish: Some("now"), nodes_trust_all: false, leaf_is_loaded: false };
        assert_eq!(next_step(&rotation, &seen), Step::PublishNext);
        rotation.has_next = true;
        rotation.heeded = Some("now");
        assert_eq!(next_step(&rotation, &seen), Step::Stay, "a node does not trust it yet");
        seen.nodes_trust_all = true;
        assert_eq!(next_step(&rotation, &seen), Step::Switch);
        (rotation.has_next, rotation.has_previous) = (false, true);
        assert_eq!(next_step(&rotation, &seen), Step::Stay, "the server shows the old leaf");
        seen.leaf_is_loaded = true;
        assert_eq!(next_step(&rotation, &seen), Step::DropPrevious);
        rotation.has_previous = false;
        assert_eq!(next_step(&rotation, &seen), Step::Stay);
    }

    #[test]
    fn an_authority_is_made_anew_after_two_thirds_of_its_life() {
        let authority = facts(3000);
        let rotation = Rotation { current: Some(&authority), has_next: false, has_previous: false, heeded: None };
        for (today, expected) in [(1999, Step::Stay), (2000, Step::PublishNext)] {
            let seen = Seen { now: day(today), wish: None, nodes_trust_all: true, leaf_is_loaded: true };
            assert_eq!(next_step(&rotation, &seen), expected);
        }
        let none = Rotation { current: None, has_next: false, has_previous: false, heeded: None };
        let seen = Seen { now: day(1), wish: None, nodes_trust_all: true, leaf_is_loaded: true };
        assert_eq!(next_step(&none, &seen), Step::Begin);
    }

    #[test]
    fn a_leaf_is_due_by_age_by_names_and_by_authority() {
        let (authority, leaf) = (facts(3650), facts(90));
        let names = leaf.names.clone();
        assert!(!leaf_is_due(Some(&leaf), &authority, &names, day(59)));
        assert!(leaf_is_due(Some(&leaf), &authority, &names, day(60)));
        assert!(leaf_is_due(None, &authority, &names, day(1)));
        assert!(leaf_is_due(Some(&leaf), &authority, &BTreeSet::new(), day(1)));
        let other = Facts { subject: "other".to_owned(), ..facts(3650) };
        assert!(leaf_is_due(Some(&leaf), &other, &names, day(1)));
    }
}
