//! Watches: who is told of which events.
//!
//! Watchers of the same range share one `Group`, a bounded ring of pointers to the batches of that range: an
//! event is filtered once and pushed once per range, however many watch it, and a watcher is no more than a
//! cursor. What a watcher has missed of the ring it reads from the history; when the history has forgotten it
//! too, the watcher ends as slow. So no watcher ever holds memory of its own.
//!
//! Invariant: a group's ring holds every batch of its range in `floor + 1 ..= Hub::dispatched`.
//! Invariant: batches reach a group in the order of their revisions.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::{
    Batch, Revision, WatchError,
    shared::Shared,
    types::{in_range, prefix_end},
};

/// Batches a group keeps for its watchers before they have to look in the history: some tenths of a second at
/// full write speed, and 8 KB of pointers.
const RING: usize = 1024;

/// The events of one range, for all who watch it.
#[derive(Debug)]
pub struct Group {
    start: Bytes,
    end: Bytes,
    ring: Mutex<Ring>,
    changed: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Ring {
    /// Everything of this range after `floor` is in `batches`.
    floor: Revision,
    batches: VecDeque<Arc<Batch>>,
}

/// What a watcher finds in its group.
#[derive(Debug, PartialEq)]
pub enum Found {
    Batch(Arc<Batch>),
    /// Nothing of the range lies after the cursor, up to and including this revision, the newest there is.
    Nothing {
        up_to: Revision,
    },
    /// The cursor lies before the ring: the history has to tell.
    TooOld,
    Closed,
}

impl Group {
    /// The first batch after `cursor`.
    pub fn after(&self, cursor: Revision, hub: &Hub) -> Found {
        // Read before the ring is looked at: everything up to it has been pushed by then.
        let up_to = hub.dispatched.load(Ordering::Acquire);
        let ring = lock(&self.ring);
        if cursor < ring.floor {
            return Found::TooOld;
        }
        let next = ring.batches.partition_point(|batch| batch.revision <= cursor);
        match ring.batches.get(next) {
            Some(batch) => Found::Batch(batch.clone()),
            None if self.closed.load(Ordering::Acquire) => Found::Closed,
            None => Found::Nothing { up_to },
        }
    }

    /// Resolves at the next push. To be made before looking, so that nothing in between is missed.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// What of `batch` lies in this range: the batch itself where that is all of it.
    pub fn filter(&self, batch: &Arc<Batch>) -> Option<Arc<Batch>> {
        let inside = batch.events.iter().filter(|event| in_range(&event.kv.key, &self.start, &self.end));
        match inside.clone().count() {
            0 => None,
            all if all == batch.events.len() => Some(batch.clone()),
            _ => Some(Arc::new(Batch { revision: batch.revision, events: inside.cloned().collect() })),
        }
    }

    fn push(&self, batch: Arc<Batch>) {
        let mut ring = lock(&self.ring);
        if ring.batches.len() == RING
            && let Some(oldest) = ring.batches.pop_front()
        {
            ring.floor = oldest.revision;
        }
        ring.batches.push_back(batch);
    }

    /// Lets go of batches the history has let go of, so that an idle group pins no old values.
    fn forget(&self, up_to: Revision) {
        let mut ring = lock(&self.ring);
        while let Some(oldest) = ring.batches.front().filter(|batch| batch.revision <= up_to) {
            // No further than what is dropped: a watcher with nothing to see keeps its old cursor, and loses nothing.
            ring.floor = oldest.revision;
            ring.batches.pop_front();
        }
    }
}

/// All groups, found by key.
#[derive(Debug, Default)]
pub struct Hub {
    index: Mutex<Index>,
    /// Everything up to this revision has been pushed to every group.
    dispatched: AtomicU64,
    /// Everything up to this revision has been dropped from every group.
    forgotten: AtomicU64,
}

/// Groups with something new. Waking a thousand watchers takes a while, so it is left to a moment that has one.
#[must_use]
pub struct Sleepers(Vec<Arc<Group>>);

impl Sleepers {
    pub fn wake(self) {
        for group in self.0 {
            group.changed.notify_waiters();
        }
    }
}

#[derive(Debug, Default)]
struct Index {
    /// Ranges that hold one key each.
    keys: HashMap<Bytes, Weak<Group>>,
    /// Ranges that hold all the keys with a prefix, by that prefix.
    prefixes: BTreeMap<Bytes, Weak<Group>>,
    /// Any other range; these are few, and are all looked at.
    others: Vec<Weak<Group>>,
    /// A watch that begins after the end must end too.
    closed: bool,
}

impl Hub {
    pub fn new(revision: Revision) -> Hub {
        Hub { dispatched: AtomicU64::new(revision), ..Hub::default() }
    }

    pub fn forgotten(&self) -> Revision {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// The group of a range, made where nobody watches it yet.
    pub fn group(&self, start: &Bytes, end: &Bytes) -> Arc<Group> {
        let mut index = lock(&self.index);
        // Under the lock no dispatch is under way: what the new ring misses is exactly what came before.
        let floor = self.dispatched.load(Ordering::Acquire);
        let closed = index.closed;
        let make = || {
            Arc::new(Group {
                start: start.clone(),
                end: end.clone(),
                ring: Mutex::new(Ring { floor, batches: VecDeque::new() }),
                changed: Notify::new(),
                closed: AtomicBool::new(closed),
            })
        };
        let is_key = end.len() == start.len() + 1 && end.starts_with(start) && end.last() == Some(&0);
        let place = if is_key {
            index.keys.entry(start.clone()).or_default()
        } else if prefix_end(start) == *end {
            index.prefixes.entry(start.clone()).or_default()
        } else {
            index.others.retain(|group| group.strong_count() > 0);
            let known = index.others.iter().filter_map(Weak::upgrade);
            if let Some(group) = known.into_iter().find(|group| group.start == *start && group.end == *end) {
                return group;
            }
            let group = make();
            index.others.push(Arc::downgrade(&group));
            return group;
        };
        place.upgrade().unwrap_or_else(|| {
            let group = make();
            *place = Arc::downgrade(&group);
            group
        })
    }

    /// Hands out batches, in order; whom they concern is woken when the answer is.
    pub fn dispatch(&self, batches: &[Arc<Batch>]) -> Sleepers {
        let mut sleepers = Sleepers(Vec::new());
        let Some(last) = batches.last() else { return sleepers };
        let mut index = lock(&self.index);
        for batch in batches {
            let mut groups: Vec<Arc<Group>> = Vec::new();
            for event in &batch.events {
                index.find(&event.kv.key, &mut groups);
            }
            for group in groups {
                if let Some(inside) = group.filter(batch) {
                    group.push(inside);
                }
                if !sleepers.0.iter().any(|known| Arc::ptr_eq(known, &group)) {
                    sleepers.0.push(group);
                }
            }
        }
        self.dispatched.store(last.revision, Ordering::Release);
        sleepers
    }

    /// Lets go of what the history has let go of.
    pub fn forget(&self, up_to: Revision) {
        self.forgotten.store(up_to, Ordering::Relaxed);
        lock(&self.index).each(|group| group.forget(up_to));
    }

    /// Starts over at `revision`: what lies between was never seen here, so no ring may claim to have it.
    pub fn reset(&self, revision: Revision) {
        let mut index = lock(&self.index);
        self.dispatched.store(revision, Ordering::Release);
        index.each(|group| {
            let mut ring = lock(&group.ring);
            ring.batches.clear();
            ring.floor = revision;
            drop(ring);
            group.changed.notify_waiters();
        });
    }

    /// Ends every watcher once it has been delivered what there is.
    pub fn close(&self) {
        let mut index = lock(&self.index);
        index.closed = true;
        index.each(|group| {
            group.closed.store(true, Ordering::Release);
            group.changed.notify_waiters();
        });
    }

    /// How many ranges are watched.
    pub fn ranges(&self) -> usize {
        let mut count = 0;
        lock(&self.index).each(|_| count += 1);
        count
    }
}

impl Index {
    /// Adds the groups whose range holds `key`, each once. Forgets those nobody watches any more.
    fn find(&mut self, key: &Bytes, found: &mut Vec<Arc<Group>>) {
        let mut add = |group: Arc<Group>| {
            if !found.iter().any(|known| Arc::ptr_eq(known, &group)) {
                found.push(group);
            }
        };
        if let Some(group) = self.keys.get(key) {
            match group.upgrade() {
                Some(group) => add(group),
                None => drop(self.keys.remove(key)),
            }
        }
        // Of the prefixes not after `bound` the last is looked at. Where it is no prefix of the key, any other that
        // is must be a prefix of what the two have in common, so the bound shrinks and few steps are taken.
        let mut bound = Some(key.clone());
        while let Some(upper) = bound.take() {
            let below = (Bound::Unbounded, Bound::Included(&upper));
            let Some((prefix, group)) = self.prefixes.range::<Bytes, _>(below).next_back() else { break };
            let common = prefix.iter().zip(key.iter()).take_while(|(a, b)| a == b).count();
            if common < prefix.len() {
                bound = Some(key.slice(..common));
                continue;
            }
            bound = common.checked_sub(1).map(|shorter| key.slice(..shorter));
            let group = group.upgrade();
            match group {
                Some(group) => add(group),
                None => {
                    let prefix = prefix.clone();
                    self.prefixes.remove(&prefix);
                }
            }
        }
        for group in self.others.iter().filter_map(Weak::upgrade) {
            if in_range(key, &group.start, &group.end) {
                add(group);
            }
        }
    }

    fn each(&mut self, mut visit: impl FnMut(&Group)) {
        self.keys.retain(|_, group| group.strong_count() > 0);
        self.prefixes.retain(|_, group| group.strong_count() > 0);
        self.others.retain(|group| group.strong_count() > 0);
        for group in self.keys.values().chain(self.prefixes.values()).chain(&self.others) {
            if let Some(group) = group.upgrade() {
                visit(&group);
            }
        }
    }
}

/// Delivers the events of one range, in order, each once. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    group: Arc<Group>,
    /// Everything at or below it has been delivered, or did not concern this range.
    cursor: Revision,
    /// The newest batch delivered; 0 before the first. Once there is one, events lost are this watcher's fault.
    delivered: Revision,
}

impl Watcher {
    pub(crate) fn new(shared: Arc<Shared>, start: &Bytes, end: &Bytes, from: Revision) -> Watcher {
        let group = shared.hub.group(start, end);
        Watcher { shared, group, cursor: from.saturating_sub(1), delivered: 0 }
    }

    /// The next batch; waits for one. Safe to drop half-way: no batch is lost.
    pub async fn next(&mut self) -> Result<Arc<Batch>, WatchError> {
        loop {
            let group = self.group.clone();
            let changed = group.changed();
            tokio::pin!(changed);
            // Registered before looking, so that what is pushed in between wakes it.
            changed.as_mut().enable();
            if let Some(batch) = self.try_next()? {
                return Ok(batch);
            }
            changed.await;
        }
    }

    /// The next batch if there is one already.
    pub fn try_next(&mut self) -> Result<Option<Arc<Batch>>, WatchError> {
        loop {
            match self.group.after(self.cursor, &self.shared.hub) {
                Found::Batch(batch) => return Ok(Some(self.deliver(batch))),
                Found::Nothing { up_to } => {
                    // A cursor may lie ahead: a watch can begin in the future.
                    self.cursor = self.cursor.max(up_to);
                    return Ok(None);
                }
                Found::Closed => return Err(WatchError::Closed),
                Found::TooOld => {
                    if let Some(batch) = self.read_history()? {
                        return Ok(Some(self.deliver(batch)));
                    }
                }
            }
        }
    }

    /// Everything at or below this revision that concerns the range has been delivered.
    pub fn progress(&self) -> Revision {
        match self.group.after(self.cursor, &self.shared.hub) {
            Found::Nothing { up_to } => up_to.max(self.delivered),
            Found::Batch(_) | Found::TooOld => self.cursor,
            Found::Closed => self.delivered,
        }
    }

    fn deliver(&mut self, batch: Arc<Batch>) -> Arc<Batch> {
        self.cursor = batch.revision;
        self.delivered = batch.revision;
        batch
    }

    /// The first batch after the cursor that the history has; none moves the cursor to where the history ends.
    fn read_history(&mut self) -> Result<Option<Arc<Batch>>, WatchError> {
        let state = self.shared.state();
        if self.cursor + 1 < state.oldest_event() {
            let (delivered, oldest) = (self.cursor, state.oldest_event() - 1);
            return Err(match self.delivered > 0 {
                true => WatchError::Slow { delivered },
                false => WatchError::Compacted { delivered, oldest },
            });
        }
        let found = state.batches_after(self.cursor).find_map(|batch| self.group.filter(batch));
        if found.is_none() {
            self.cursor = state.revision();
        }
        Ok(found)
    }
}

/// A panic while a lock was held has been reported where it happened; the data below stays consistent step by step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
