//! Which pod is next, and what a pod without a place waits for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use client::Key;

use crate::pod::PodInfo;

/// After a write that failed: soon at first, then at most this far apart.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Higher priority first, then first come.
type Turn = (Reverse<i32>, u64);

#[derive(Debug)]
struct Entry {
    pod: PodInfo,
    turn: Turn,
    state: State,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Handed out; comes back by [`Queue::park`], [`Queue::retry`] or [`Queue::forget`].
    Taken,
    /// No node would do when it was last looked at.
    Parked,
    /// A write failed; to be tried again then.
    Retrying(Instant),
}

/// All pods that wait for a node.
#[derive(Debug, Default)]
pub struct Queue {
    // Invariant: `ready` holds exactly the entries in state Ready, and `retrying` those in state Retrying.
    entries: HashMap<Key, Entry>,
    ready: BTreeMap<Turn, Key>,
    retrying: BTreeMap<(Instant, Turn), Key>,
    arrivals: u64,
}

impl Queue {
    /// A pod that waits, as it is now. One that is parked stays so unless it changed.
    pub fn offer(&mut self, pod: PodInfo) {
        let key = pod.key.clone();
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.pod == pod {
                return;
            }
            let same_turn = entry.turn.0 == Reverse(pod.priority) && entry.pod.uid == pod.uid;
            if entry.state == State::Taken && same_turn {
                entry.pod = pod;
                return;
            }
            self.forget(&key);
        }
        self.arrivals += 1;
        let turn = (Reverse(pod.priority), self.arrivals);
        self.ready.insert(turn, key.clone());
        self.entries.insert(key, Entry { pod, turn, state: State::Ready, failures: 0 });
    }

    /// The pod was bound, deleted, or is not ours any more.
    pub fn forget(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        match entry.state {
            State::Ready => drop(self.ready.remove(&entry.turn)),
            State::Retrying(at) => drop(self.retrying.remove(&(at, entry.turn))),
            State::Taken | State::Parked => {}
        }
    }

    pub fn pop(&mut self) -> Option<PodInfo> {
        let (_, key) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.state = State::Taken;
        Some(entry.pod.clone())
    }

    /// No node would do: the pod waits for [`Queue::wake`].
    pub fn park(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key).filter(|e| e.state == State::Taken) {
            entry.state = State::Parked;
        }
    }

    /// The pod's node could not be written down: it is tried again after a while that grows.
    pub fn retry(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key).filter(|e| e.state == State::Taken) {
            let wait = RETRY_FIRST.saturating_mul(1 << entry.failures.min(10)).min(RETRY_LAST);
            entry.failures += 1;
            entry.state = State::Retrying(now + wait);
            self.retrying.insert((now + wait, entry.turn), key.clone());
        }
    }

    /// Something changed that may give parked pods a place.
    pub fn wake(&mut self) {
        for (key, entry) in &mut self.entries {
            if entry.state == State::Parked {
                entry.state = State::Ready;
                self.ready.insert(entry.turn, key.clone());
            }
        }
    }

    /// Makes those ready whose time has come, and says when the next one is due.
    pub fn due(&mut self, now: Instant) -> Option<Instant> {
        while let Some((&(at, turn), _)) = self.retrying.first_key_value() {
            if at > now {
                return Some(at);
            }
            if let Some(key) = self.retrying.remove(&(at, turn))
                && let Some(entry) = self.entries.get_mut(&key)
            {
                entry.state = State::Ready;
                self.ready.insert(turn, key);
            }
        }
        None
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32) -> PodInfo {
        PodInfo { key: Key::new("d", name), uid: name.into(), priority, ..PodInfo::default() }
    }

    fn popped(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|p| p.key.name).collect()
    }

    #[test]
    fn priority_then_arrival() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.offer(pod(name, priority));
        }
        assert_eq!(popped(&mut queue), ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_parked_pod_waits_for_a_change() {
        let mut queue = Queue::default();
        queue.offer(pod("a", 0));
        let taken = queue.pop().expect("one");
        queue.park(&taken.key);
        queue.offer(pod("a", 0));
        assert!(!queue.has_ready(), "the same pod again is no change");
        queue.wake();
        assert_eq!(popped(&mut queue), ["a"]);
        queue.park(&taken.key);
        queue.offer(PodInfo { node_selector: vec![("x".into(), "y".into())], ..pod("a", 0) });
        assert_eq!(popped(&mut queue), ["a"], "a changed pod is looked at again");
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do to start from, and there is no other way to make one"
    )]
    fn a_failed_write_is_retried_later_and_later() {
        let mut queue = Queue::default();
        let start = Instant::now();
        queue.offer(pod("a", 0));
        let mut waits = Vec::new();
        let mut now = start;
        for _ in 0..9 {
            let taken = queue.pop().expect("due");
            queue.retry(&taken.key, now);
            let at = queue.due(now).expect("not yet");
            waits.push((at - now).as_millis());
            now = at;
            assert_eq!(queue.due(now), None);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        queue.forget(&Key::new("d", "a"));
        assert!(queue.pop().is_none() && queue.due(now).is_none());
    }
}
