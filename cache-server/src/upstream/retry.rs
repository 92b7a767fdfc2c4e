//! What follows from a request that got no answer: pure. May import nothing of ours.

/// How a request failed before an answer's header was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// No connection within its limit.
    ConnectTimeOut,
    /// No connection.
    NoConnection,
    /// The connection broke after the request was under way.
    BrokenConnection,
}

/// Whether a HEAD or GET is sent once more at once: a connection that lay idle may have been closed while the request was
/// on its way, and a new one then answers. Everything else is left to the breaker and to the one who asks.
pub(super) const fn again(loss: Loss, attempt: u32) -> bool {
    matches!(loss, Loss::BrokenConnection) && attempt == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_broken_connection_is_tried_again_and_only_once() {
        for (loss, attempt, expected) in [
            (Loss::BrokenConnection, 0, true),
            (Loss::BrokenConnection, 1, false),
            (Loss::NoConnection, 0, false),
            (Loss::ConnectTimeOut, 0, false),
        ] {
            assert_eq!(again(loss, attempt), expected, "{loss:?} {attempt}");
        }
    }
}
