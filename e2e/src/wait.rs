//! Waiting on a condition with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Short beside what is waited for, long beside what one look costs.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until the condition gives a value. An error from the condition is the reason why not yet.
pub fn wait<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut last;
    loop {
        match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => last = String::new(),
            Err(error) => last = format!(": {error:#}"),
        }
        if Instant::now() >= end {
            bail!("no {what} within {} s{last}", deadline.as_secs());
        }
        thread::park_timeout(LOOK_EVERY);
    }
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
