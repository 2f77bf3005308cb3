//! The clocks, read in this one place.

use std::time::Duration;

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

/// When a complaint was made last, which is made again now and then for as long as its reason lasts.
#[derive(Default)]
pub struct Reminder(Option<Instant>);

impl Reminder {
    /// Whether it is time to complain, which is done then.
    pub fn is_due(&mut self, every: Duration) -> bool {
        let now = instant();
        let due = self.0.is_none_or(|last| last + every <= now);
        if due {
            self.0 = Some(now);
        }
        due
    }
}
