//! The `Range` header of a request (RFC 9110, section 14), as far as registries use it: one range of bytes.
//! May import nothing of ours.

/// One range of bytes as a client asks for it, before the total is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// `bytes=N-`: everything from there.
    From(u64),
    /// `bytes=N-M`: both ends included.
    FromTo(u64, u64),
    /// `bytes=-N`: the last N bytes.
    Suffix(u64),
}

/// What a request means for content of a known length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranged {
    /// 200: everything.
    Whole,
    /// 206: these bytes; `start ≤ end_inclusive < total`.
    Part {
        /// The first byte.
        start: u64,
        /// The last byte.
        end_inclusive: u64,
    },
    /// 416: there is no such byte.
    Unsatisfiable,
}

impl RangeRequest {
    /// Reads the value of a `Range` header. `None` means: answer as if it were absent, which RFC 9110 (14.2) asks for where the
    /// syntax or the unit is wrong, and allows for several ranges.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.trim().split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        match set.trim().split_once('-')? {
            ("", count) => Some(Self::Suffix(number(count)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => Some(Self::FromTo(number(first)?, number(last)?)),
        }
    }

    /// What it means for content of `total` bytes.
    #[must_use]
    pub fn resolve(self, total: u64) -> Ranged {
        let (start, end) = match self {
            // No byte can be named, and an empty 206 does not exist (RFC 9110, 14.4): the empty whole is the answer.
            Self::Suffix(1..) if total == 0 => return Ranged::Whole,
            Self::Suffix(0) => return Ranged::Unsatisfiable,
            Self::Suffix(count) => (total.saturating_sub(count), u64::MAX),
            Self::From(first) => (first, u64::MAX),
            // RFC 9110 (14.2) leaves it open whether to ignore or refuse this; others refuse it, and it is no use to send all.
            Self::FromTo(first, last) if last < first => return Ranged::Unsatisfiable,
            Self::FromTo(first, last) => (first, last),
        };
        if start >= total {
            return Ranged::Unsatisfiable;
        }
        Ranged::Part { start, end_inclusive: end.min(total - 1) }
    }
}

impl Ranged {
    /// Reads a `Range` header against a known total.
    #[must_use]
    pub fn parse(header: Option<&str>, total: u64) -> Self {
        header.and_then(RangeRequest::parse).map_or(Self::Whole, |request| request.resolve(total))
    }
}

/// Digits only (no sign); a number too big for any content counts as the biggest.
fn number(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_of_ten_bytes() {
        use Ranged::{Part, Unsatisfiable, Whole};
        for (header, expected) in [
            ("bytes=0-", Part { start: 0, end_inclusive: 9 }),
            ("bytes=3-", Part { start: 3, end_inclusive: 9 }),
            ("bytes=9-", Part { start: 9, end_inclusive: 9 }),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-11", Unsatisfiable),
            ("bytes=0-0", Part { start: 0, end_inclusive: 0 }),
            ("bytes=2-5", Part { start: 2, end_inclusive: 5 }),
            ("bytes=2-500", Part { start: 2, end_inclusive: 9 }),
            ("bytes=0-99999999999999999999999", Part { start: 0, end_inclusive: 9 }),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-3", Part { start: 7, end_inclusive: 9 }),
            ("bytes=-30", Part { start: 0, end_inclusive: 9 }),
            ("bytes=-0", Unsatisfiable),
            ("BYTES=1-2", Part { start: 1, end_inclusive: 2 }),
            (" bytes= 1-2 ", Part { start: 1, end_inclusive: 2 }),
            ("bytes=5-2", Unsatisfiable),
            ("bytes=0-1,3-4", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("", Whole),
            ("items=0-1", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1--2", Whole),
            ("bytes=1 - 2", Whole),
        ] {
            assert_eq!(Ranged::parse(Some(header), 10), expected, "{header:?}");
        }
        assert_eq!(Ranged::parse(None, 10), Whole);
    }

    #[test]
    fn nothing_has_no_parts() {
        assert_eq!(Ranged::parse(Some("bytes=0-"), 0), Ranged::Unsatisfiable);
        assert_eq!(Ranged::parse(Some("bytes=-5"), 0), Ranged::Whole);
        assert_eq!(Ranged::parse(Some("bytes=-0"), 0), Ranged::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_whole(header in "bytes=[0-9]{0,3}-[0-9]{0,3}", total in 0_u64..500) {
            if let Ranged::Part { start, end_inclusive } = Ranged::parse(Some(&header), total) {
                prop_assert!(start <= end_inclusive && end_inclusive < total);
            }
        }

        #[test]
        fn no_header_panics(header: String, total: u64) {
            let _ = Ranged::parse(Some(&header), total);
        }
    }
}
