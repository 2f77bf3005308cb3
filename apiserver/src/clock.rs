//! The clocks, read in this one place.

use jiff::Timestamp;
use tokio::time::Instant;

/// Seconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "this is where the wall clock comes in")]
pub fn seconds() -> i64 {
    Timestamp::now().as_second()
}

/// For deadlines: this clock only goes forward.
#[expect(clippy::disallowed_methods, reason = "this is where time comes in")]
pub fn instant() -> Instant {
    Instant::now()
}
