//! Which key is looked at next. A value: the time comes in from outside.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use client::Key;
use jiff::Timestamp;

/// Doubled with each failure in a row.
const BACK_OFF_FIRST: Duration = Duration::from_millis(5);
/// Long enough that what fails for ever costs nothing; short enough that what was mended from outside is not forgotten.
const BACK_OFF_LAST: Duration = Duration::from_secs(60);

/// How a look at a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is as it should be until something changes, or until this time has passed.
    Done { after: Option<Duration> },
    /// Somebody else wrote first: what was seen is out of date.
    Stale,
    /// A write was refused.
    Failed(String),
}

/// A key's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub key: Key,
    /// What the look is for, for the log.
    pub reason: &'static str,
    /// Why the last look failed, if it did.
    pub failure: Option<String>,
}

#[derive(Default)]
struct Entry {
    reason: Option<&'static str>,
    running: bool,
    failures: u32,
    failure: Option<String>,
    due: Option<Timestamp>,
}

/// Invariant: a key waits at most once and runs at most once, and never both at a time in two places; so the queue is
/// as long as there are objects, and no longer.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<Key, Entry>,
    waiting: VecDeque<Key>,
    /// May hold times that no longer count: an entry's own `due` decides.
    deadlines: BinaryHeap<Reverse<(Timestamp, Key)>>,
}

impl Queue {
    /// A key is to be looked at as soon as may be. One that is being looked at has its turn again afterwards.
    pub fn ask(&mut self, key: Key, reason: &'static str) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.reason.is_none() {
            entry.reason = Some(reason);
            if !entry.running {
                self.waiting.push_back(key);
            }
        }
    }

    pub fn take(&mut self) -> Option<Turn> {
        let key = self.waiting.pop_front()?;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.running = true;
        entry.due = None;
        let reason = entry.reason.take().unwrap_or_default();
        Some(Turn { key, reason, failure: entry.failure.clone() })
    }

    pub fn done(&mut self, key: Key, outcome: Outcome, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.running = false;
        let after = match outcome {
            Outcome::Done { after } => {
                (entry.failures, entry.failure) = (0, None);
                after
            }
            Outcome::Stale => {
                entry.failures += 1;
                Some(back_off(entry.failures))
            }
            Outcome::Failed(text) => {
                entry.failures += 1;
                entry.failure = Some(text);
                Some(back_off(entry.failures))
            }
        };
        if entry.reason.is_some() {
            self.waiting.push_back(key);
        } else if let Some(due) = after.map(|after| later(now, after)) {
            entry.due = Some(due);
            self.deadlines.push(Reverse((due, key)));
        } else if entry.failures == 0 {
            self.entries.remove(&key);
        }
    }

    /// Gives every key whose time has come its turn.
    pub fn wake(&mut self, now: Timestamp) {
        while let Some(Reverse((due, key))) = self.deadlines.pop() {
            if self.entries.get(&key).and_then(|e| e.due) != Some(due) {
                continue;
            }
            if due > now {
                self.deadlines.push(Reverse((due, key)));
                return;
            }
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.due = None;
            }
            self.ask(key, "its time has come");
        }
    }

    /// When [`Queue::wake`] has something to do.
    pub fn next_deadline(&mut self) -> Option<Timestamp> {
        while let Some(Reverse((due, key))) = self.deadlines.peek() {
            if self.entries.get(key).and_then(|e| e.due) == Some(*due) {
                return Some(*due);
            }
            self.deadlines.pop();
        }
        None
    }
}

fn back_off(failures: u32) -> Duration {
    BACK_OFF_FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(BACK_OFF_LAST)
}

fn later(now: Timestamp, after: Duration) -> Timestamp {
    let after = jiff::SignedDuration::try_from(after).unwrap_or(jiff::SignedDuration::MAX);
    now.checked_add(after).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn key(name: &str) -> Key {
        Key::new("x", name)
    }

    const DONE: Outcome = Outcome::Done { after: None };

    #[test]
    fn a_key_waits_once_and_runs_once() {
        let mut queue = Queue::default();
        queue.ask(key("a"), "one");
        queue.ask(key("a"), "two");
        queue.ask(key("b"), "three");
        assert_eq!(queue.take().map(|t| (t.key, t.reason)), Some((key("a"), "one")));
        queue.ask(key("a"), "meanwhile");
        assert_eq!(queue.take().map(|t| t.key), Some(key("b")));
        assert_eq!(queue.take(), None, "a runs");
        queue.done(key("a"), DONE, at(0));
        assert_eq!(queue.take().map(|t| (t.key, t.reason)), Some((key("a"), "meanwhile")));
        queue.done(key("a"), DONE, at(0));
        queue.done(key("b"), DONE, at(0));
        assert!(queue.take().is_none() && queue.entries.is_empty());
    }

    #[test]
    fn failures_wait_longer_each_time_and_remember_why() {
        let mut queue = Queue::default();
        queue.ask(key("a"), "new");
        let mut waits = Vec::new();
        let mut now = at(0);
        for i in 0..16 {
            let turn = queue.take().expect("a turn");
            assert_eq!(turn.failure.as_deref(), (i > 0).then_some("refused"));
            queue.done(turn.key, Outcome::Failed("refused".into()), now);
            assert_eq!(queue.take(), None);
            let due = queue.next_deadline().expect("a deadline");
            waits.push(due.duration_since(now).as_millis());
            now = due;
            queue.wake(now);
        }
        assert_eq!(waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits[15], 60_000);
        let turn = queue.take().expect("a turn");
        queue.done(turn.key, DONE, now);
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn a_deadline_is_dropped_when_the_key_is_looked_at_before() {
        let mut queue = Queue::default();
        queue.ask(key("a"), "new");
        queue.take();
        queue.done(key("a"), Outcome::Done { after: Some(Duration::from_secs(10)) }, at(0));
        assert_eq!(queue.next_deadline(), Some(at(10)));
        queue.ask(key("a"), "changed");
        queue.take();
        assert_eq!(queue.next_deadline(), None);
        queue.done(key("a"), Outcome::Done { after: Some(Duration::from_secs(30)) }, at(5));
        queue.wake(at(34));
        assert_eq!(queue.take(), None);
        queue.wake(at(35));
        assert_eq!(queue.take().map(|t| t.reason), Some("its time has come"));
    }
}
