//! Patterns of names: `*` stands for any characters but `/`, `**` for any at all, everything else for itself. Pure; may import
//! nothing of ours.

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Segment,
    Anything,
}

impl Glob {
    /// Reads a pattern; every text is one.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        for byte in text.bytes() {
            match (byte, pieces.last_mut()) {
                (b'*', Some(last @ (Piece::Segment | Piece::Anything))) => *last = Piece::Anything,
                (b'*', _) => pieces.push(Piece::Segment),
                _ => pieces.push(Piece::Byte(byte)),
            }
        }
        Self(pieces)
    }

    /// Whether a text matches as a whole. Takes time by the product of both lengths at most, whatever the pattern.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        // Which prefixes of the pattern match what was read so far.
        let mut reached = vec![false; self.0.len() + 1];
        reached[0] = true;
        self.skip_stars(&mut reached);
        for byte in text.bytes() {
            let mut next = vec![false; self.0.len() + 1];
            for (place, piece) in self.0.iter().enumerate().filter(|(place, _)| reached[*place]) {
                match piece {
                    Piece::Byte(wanted) => next[place + 1] |= *wanted == byte,
                    Piece::Segment => next[place] |= byte != b'/',
                    Piece::Anything => next[place] = true,
                }
            }
            self.skip_stars(&mut next);
            reached = next;
        }
        reached[self.0.len()]
    }

    /// A star may stand for nothing.
    fn skip_stars(&self, reached: &mut [bool]) {
        for (place, piece) in self.0.iter().enumerate() {
            if reached[place] && !matches!(piece, Piece::Byte(_)) {
                reached[place + 1] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_a_segment_and_two_do_not() {
        for (glob, yes, no) in [
            ("**", &["a", "a/b/c"][..], &[][..]),
            ("*", &["a", "a-b.c"], &["a/b"]),
            ("team1-*", &["team1-", "team1-x"], &["team1", "team10", "xteam1-"]),
            ("team/*", &["team/a"], &["team", "team/a/b", "teams/a"]),
            ("team/**", &["team/a", "team/a/b"], &["team", "teams/a"]),
            ("*/app", &["a/app"], &["app", "a/b/app"]),
            ("**/app", &["a/app", "a/b/app"], &["app", "a/app/b", "a/myapp2"]),
            ("a*b*c", &["abc", "axxbyyc"], &["ab", "abcd", "ab/c"]),
            ("a.c", &["a.c"], &["abc"]),
            ("a/**/z", &["a/b/z", "a/b/c/z"], &["a/z"]),
            ("***", &["a/b"], &[]),
        ] {
            for text in yes {
                assert!(Glob::new(glob).matches(text), "{glob} should match {text}");
            }
            for text in no {
                assert!(!Glob::new(glob).matches(text), "{glob} should not match {text}");
            }
        }
    }

    #[test]
    fn a_pattern_of_stars_takes_no_time() {
        assert!(!Glob::new(&"*a".repeat(127)).matches(&"a".repeat(126)));
    }
}
