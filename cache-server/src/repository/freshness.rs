//! Whether a cached tag may be served, and whether the upstream is asked first. Pure.

use std::time::Duration;

use crds::registry_mirror::Freshness;

/// What to do with a cached tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Serve it; nobody is asked.
    Fresh,
    /// Serve it, and ask the upstream meanwhile.
    ServeAndAsk,
    /// Ask the upstream first.
    Ask,
}

/// Judges a tag that the upstream confirmed `age` ago.
#[must_use]
pub fn judge(age: Duration, freshness: &Freshness) -> Judgement {
    let fresh = freshness.tags.get();
    if age < fresh {
        Judgement::Fresh
    } else if age < fresh + freshness.stale_while_revalidate.get() {
        Judgement::ServeAndAsk
    } else {
        Judgement::Ask
    }
}

/// Whether a tag of that age may be served while the upstream cannot be asked.
#[must_use]
pub fn may_be_stale(age: Duration, freshness: &Freshness) -> bool {
    freshness.stale_if_error.is_none_or(|limit| age <= limit.get())
}

#[cfg(test)]
mod tests {
    use crds::names::Span;

    use super::*;

    #[test]
    fn a_tag_is_fresh_then_served_while_asking_then_asked_for_first() {
        let freshness =
            Freshness { tags: Span::secs(10), stale_while_revalidate: Span::secs(5), ..Freshness::default() };
        let seconds = Duration::from_secs;
        for (age, judgement) in [(0, Judgement::Fresh), (10, Judgement::ServeAndAsk), (15, Judgement::Ask)] {
            assert_eq!(judge(seconds(age), &freshness), judgement, "{age} s");
        }
    }

    #[test]
    fn any_age_will_do_in_an_outage_unless_bounded() {
        let year = Duration::from_hours(8760);
        assert!(may_be_stale(year, &Freshness::default()));
        let bounded = Freshness { stale_if_error: Some(Span::secs(60)), ..Freshness::default() };
        assert!(may_be_stale(Duration::from_mins(1), &bounded));
        assert!(!may_be_stale(Duration::from_secs(61), &bounded));
    }
}
