//! The first line of each file of ours: that it is ours, and whether it is as we wrote it. Pure.

/// What the line begins with; the hash of all that follows it ends it.
const OPENING: &str = "# managed-by: entrepot/node-agent v1 sha256:";

/// Whose a hosts.toml is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Ours, as we wrote it.
    Us,
    /// Ours, and someone changed it since.
    UsEdited,
    /// Someone else's.
    Other,
}

/// A body with our mark before it.
#[must_use]
pub fn mark(body: &str) -> String {
    format!("{OPENING}{}\n{body}", hash(body.as_bytes()))
}

/// Whose a file is.
#[must_use]
pub fn owner(content: &[u8]) -> Owner {
    let Some(rest) = content.strip_prefix(OPENING.as_bytes()) else { return Owner::Other };
    let end = rest.iter().position(|byte| *byte == b'\n');
    match end {
        Some(end) if rest[..end] == *hash(&rest[end + 1..]).as_bytes() => Owner::Us,
        _ => Owner::UsEdited,
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_ours_until_a_byte_of_it_changes() {
        let text = mark("server = \"a\"\n");
        assert_eq!(owner(text.as_bytes()), Owner::Us);
        assert_eq!(owner(text.replace("\"a\"", "\"b\"").as_bytes()), Owner::UsEdited);
        assert_eq!(owner(format!("{text}\n").as_bytes()), Owner::UsEdited);
        assert_eq!(owner(b"server = \"a\"\n"), Owner::Other);
        assert_eq!(owner(b""), Owner::Other);
    }
}
