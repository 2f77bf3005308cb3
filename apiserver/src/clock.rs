//! The wall clock, read in this one place.

use jiff::Timestamp;

/// Seconds since the epoch.
pub fn seconds() -> i64 {
    Timestamp::now().as_second()
}
