//! Whether a failed attempt is followed by another. Pure.
//!
//! Without being asked, only what was certainly not processed is tried again: a connection that could not be made,
//! a request that was never sent, a stream that was refused.

use crate::error::{Error, Retry};

/// Attempts of one exchange, the first included.
pub const MAX_ATTEMPTS: u32 = 3;

/// Whether to try again after `attempts` attempts of which the last failed with `error`. `request_kept` says whether
/// the request can be sent once more.
pub fn again(error: &Error, attempts: u32, request_kept: bool) -> bool {
    request_kept && error.retry == Retry::Safe && attempts < MAX_ATTEMPTS
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::error::Flag;

    #[test]
    fn only_what_was_not_processed_is_tried_again() {
        let error = |retry| Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UC, retry, "");
        assert!(again(&error(Retry::Safe), 1, true));
        assert!(!again(&error(Retry::Safe), MAX_ATTEMPTS, true));
        assert!(!again(&error(Retry::Safe), 1, false));
        assert!(!again(&error(Retry::Unsafe), 1, true));
    }
}
