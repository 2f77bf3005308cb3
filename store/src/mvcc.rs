//! The state machine: a pure function from (state, entry) to (state', answer, events). No clock, no disk, no task.
//!
//! The state is the newest map, and the bounded history of the changes that led to it. An older map is made
//! by undoing history. What the history forgets becomes the `Base`, the oldest state that can still be rebuilt:
//! checkpoints and snapshots on disk are taken of the base, so a restart replays the history too and watchers
//! resume across it.
//!
//! Invariant: base + history = map, revision and leases.
//! Invariant: revisions in the history are consecutive, and the first is `base.revision + 1`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    Batch, Event, KeyValue, LeaseId, LeaseInfo, Revision, Snapshot, TxnResult,
    command::Command,
    map::Map,
    quota::{ALARMS, LEASE_BYTES},
    types::prefix_end,
};

/// The revision of an empty store. Not 0: clients give that number a meaning of its own ("any").
pub const FIRST_REVISION: Revision = 1;

/// A position in the Raft log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub index: u64,
    pub term: u64,
}

/// Who the members are, as far as the state has to keep it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
}

/// How much history is kept, whichever limit is met first.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub revisions: usize,
    pub age_ms: u64,
    pub bytes: usize,
}

impl Limits {
    /// Keeps nothing.
    pub const NONE: Limits = Limits { revisions: 0, age_ms: u64::MAX / 2, bytes: 0 };
}

/// Everything one entry changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub position: Position,
    /// The revision after it.
    pub revision: Revision,
    pub at: u64,
    pub batch: Option<Arc<Batch>>,
    pub lease: Option<LeaseChange>,
    /// Rare, and much larger than the rest.
    pub members: Option<Box<Members>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    Granted { id: LeaseId, ttl_ms: u64 },
    Revoked { id: LeaseId },
}

/// What is known of the state just before the history, beyond the keys themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base {
    pub position: Position,
    pub revision: Revision,
    pub members: Members,
    /// Time to live of every lease, in milliseconds.
    pub leases: BTreeMap<LeaseId, u64>,
}

/// The base with its keys: what a checkpoint or a snapshot on disk holds.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub base: Base,
    pub map: Map,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Txn(TxnResult),
    Lease { id: LeaseId, ttl_ms: u64 },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    LeaseNotFound(LeaseId),
    LeaseExists(LeaseId),
    KeyNotFound,
    Compacted { requested: Revision, oldest: Revision },
    Future { requested: Revision, current: Revision },
}

/// What one command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub answer: Result<Answer, Refusal>,
    /// What changed, for the watchers.
    pub batch: Option<Arc<Batch>>,
}

impl Applied {
    fn quietly(answer: Answer) -> Applied {
        Applied { answer: Ok(answer), batch: None }
    }

    fn refused(refusal: Refusal) -> Applied {
        Applied { answer: Err(refusal), batch: None }
    }
}

#[derive(Debug, Default)]
struct Lease {
    ttl_ms: u64,
    /// The time of the entry that granted it or kept it alive last; 0 where that is not in the log any more.
    renewed: u64,
    keys: BTreeSet<Bytes>,
}

#[derive(Debug)]
pub struct State {
    map: Map,
    /// What the keys take, values and all.
    bytes: usize,
    revision: Revision,
    position: Position,
    members: Members,
    leases: BTreeMap<LeaseId, Lease>,
    base: Base,
    history: VecDeque<Change>,
    history_bytes: usize,
    /// Revisions up to here are refused to readers even while the history still has them.
    compacted: Revision,
    /// The newest revision that someone asked to compact at, which cannot be asked again.
    asked: Option<Revision>,
}

impl State {
    /// The state an image describes, with no history yet.
    pub fn new(image: Image) -> State {
        let Image { mut base, map } = image;
        base.revision = base.revision.max(FIRST_REVISION);
        let mut leases: BTreeMap<LeaseId, Lease> =
            base.leases.iter().map(|(&id, &ttl_ms)| (id, Lease { ttl_ms, ..Lease::default() })).collect();
        for kv in map.values() {
            if let Some(lease) = kv.lease.and_then(|id| leases.get_mut(&id)) {
                lease.keys.insert(kv.key.clone());
            }
        }
        State {
            bytes: map.values().map(|kv| size_of(kv)).sum(),
            map,
            revision: base.revision,
            position: base.position,
            members: base.members.clone(),
            leases,
            compacted: base.revision,
            asked: None,
            base,
            history: VecDeque::new(),
            history_bytes: 0,
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { map: self.map.clone(), revision: self.revision }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn members(&self) -> &Members {
        &self.members
    }

    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The oldest revision that can be read.
    pub fn oldest(&self) -> Revision {
        self.compacted
    }

    /// The oldest revision whose events are known: those of the oldest one that can be read, too, where that was compacted
    /// to. Who reads it, and watches from it on, must not miss what was deleted there.
    pub fn oldest_event(&self) -> Revision {
        self.compacted.max(self.base.revision + 1)
    }

    /// The newest revision that someone asked to compact at.
    pub fn asked(&self) -> Option<Revision> {
        self.asked
    }

    /// Whether any member has raised an alarm.
    pub fn is_alarmed(&self) -> bool {
        self.map.range(ALARMS, &prefix_end(ALARMS)).next().is_some()
    }

    /// What counts for the quota.
    pub fn bytes(&self) -> usize {
        self.bytes + self.leases.len() * LEASE_BYTES
    }

    pub fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, u64)> {
        self.leases.iter().map(|(&id, lease)| (id, lease.ttl_ms))
    }

    /// A lease as it is at the time `now`, in milliseconds of unix time.
    pub fn lease(&self, id: LeaseId, now: u64) -> Option<LeaseInfo> {
        let lease = self.leases.get(&id)?;
        let spent = if lease.renewed == 0 { 0 } else { now.saturating_sub(lease.renewed) };
        Some(LeaseInfo {
            id,
            ttl: Duration::from_millis(lease.ttl_ms),
            remaining: Duration::from_millis(lease.ttl_ms.saturating_sub(spent)),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    /// Whether `revision` can be read.
    pub fn check_readable(&self, revision: Revision) -> Result<(), Refusal> {
        if revision > self.revision {
            Err(Refusal::Future { requested: revision, current: self.revision })
        } else if revision < self.compacted {
            Err(Refusal::Compacted { requested: revision, oldest: self.compacted })
        } else {
            Ok(())
        }
    }

    /// The batches after `revision`, oldest first.
    pub fn batches_after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Batch>> {
        let start = self.history.partition_point(|change| change.revision <= revision);
        self.history.range(start..).filter_map(|change| change.batch.as_ref())
    }

    /// Carries out one command of the log.
    pub fn apply(&mut self, position: Position, at: u64, command: &Command) -> Applied {
        self.position = position;
        match command {
            Command::Txn(txn) => self.apply_txn(position, at, txn),
            Command::LeaseGrant { id, ttl } => self.grant(position, at, *id, ttl.as_millis() as u64),
            // Who counts the time is the leader, from when it sees this entry applied: here it is only noted.
            Command::LeaseKeepAlive { id } => match self.leases.get_mut(id) {
                Some(lease) => {
                    lease.renewed = at;
                    Applied::quietly(Answer::Lease { id: *id, ttl_ms: lease.ttl_ms })
                }
                None => Applied::refused(Refusal::LeaseNotFound(*id)),
            },
            Command::LeaseRevoke { id } => self.revoke(position, at, *id),
            Command::Compact { revision } => self.compact(*revision),
        }
    }

    fn grant(&mut self, position: Position, at: u64, id: Option<LeaseId>, ttl_ms: u64) -> Applied {
        let id = match id {
            Some(id) if self.leases.contains_key(&id) => return Applied::refused(Refusal::LeaseExists(id)),
            Some(id) => id,
            // Someone may have chosen that very number.
            None => (position.index..).map(LeaseId).find(|id| !self.leases.contains_key(id)).unwrap_or(LeaseId(1)),
        };
        self.leases.insert(id, Lease { ttl_ms, renewed: at, keys: BTreeSet::new() });
        self.record(Change {
            position,
            revision: self.revision,
            at,
            batch: None,
            lease: Some(LeaseChange::Granted { id, ttl_ms }),
            members: None,
        });
        Applied::quietly(Answer::Lease { id, ttl_ms })
    }

    /// What the history has forgotten by itself may still be asked for, once: it has been done already.
    fn compact(&mut self, revision: Revision) -> Applied {
        if revision > self.revision {
            return Applied::refused(Refusal::Future { requested: revision, current: self.revision });
        }
        if self.asked.is_some_and(|asked| revision <= asked) {
            return Applied::refused(Refusal::Compacted { requested: revision, oldest: self.compacted });
        }
        self.asked = Some(revision);
        self.compacted = self.compacted.max(revision);
        Applied::quietly(Answer::Done)
    }

    /// Notes who the members are from `position` on.
    pub fn set_members(&mut self, position: Position, members: Members) {
        self.position = position;
        self.members = members.clone();
        // It takes the age of its neighbour: what has no clock of its own must not outlive or cut the history.
        let at = self.history.back().map_or(0, |change| change.at);
        let members = Some(Box::new(members));
        self.record(Change { position, revision: self.revision, at, batch: None, lease: None, members });
    }

    /// Notes that an entry with no command (a new leader's first) has been passed.
    pub fn skip(&mut self, position: Position) {
        self.position = position;
    }

    fn record(&mut self, change: Change) {
        self.history_bytes += size_of_change(&change);
        self.history.push_back(change);
    }

    fn revoke(&mut self, position: Position, at: u64, id: LeaseId) -> Applied {
        let Some(lease) = self.leases.remove(&id) else { return Applied::refused(Refusal::LeaseNotFound(id)) };
        let (revision, mut events) = (self.revision + 1, Vec::new());
        for key in &lease.keys {
            if let Some(kv) = self.map.get(key).cloned() {
                self.delete(&kv, revision, &mut events);
            }
        }
        let batch = self.commit(position, at, events, Some(LeaseChange::Revoked { id }));
        Applied { answer: Ok(Answer::Done), batch }
    }

    /// Raises the revision where there were events, and records the change where there was one.
    fn commit(
        &mut self,
        position: Position,
        at: u64,
        events: Vec<Event>,
        lease: Option<LeaseChange>,
    ) -> Option<Arc<Batch>> {
        let batch = (!events.is_empty()).then(|| {
            self.revision += 1;
            Arc::new(Batch { revision: self.revision, events })
        });
        if batch.is_some() || lease.is_some() {
            self.record(Change { position, revision: self.revision, at, batch: batch.clone(), lease, members: None });
        }
        batch
    }

    /// Whether the history is over a limit by enough to be worth a trim, `now` being the newest entry's time.
    pub fn over(&self, limits: &Limits, now: u64) -> bool {
        // An eighth of slack makes one trim of many changes.
        let slack = |limit: usize| limit + limit / 8;
        let old = self.history.front().is_some_and(|front| front.at + limits.age_ms + limits.age_ms / 8 < now);
        self.history.len() > slack(limits.revisions) || self.history_bytes > slack(limits.bytes) || old
            // What is compacted need not be kept either.
            || self.compacted > self.base.revision + 1
    }

    /// Forgets history beyond the limits and returns it, oldest first: it is what the base has gained.
    pub fn trim(&mut self, limits: &Limits, now: u64) -> Vec<Change> {
        let mut forgotten = Vec::new();
        while let Some(front) = self.history.front() {
            let compacted = front.revision < self.compacted;
            let over = self.history.len() > limits.revisions
                || self.history_bytes > limits.bytes
                || front.at + limits.age_ms < now;
            if !compacted && !over {
                break;
            }
            let Some(change) = self.history.pop_front() else { break };
            self.history_bytes -= size_of_change(&change);
            advance(&mut self.base, &change);
            forgotten.push(change);
        }
        self.compacted = self.compacted.max(self.base.revision);
        forgotten
    }

    /// What is needed to make the base's image: the newest map and how to undo it. Cheap; `undo` does the work.
    pub fn base_image(&self) -> Undo {
        Undo {
            base: self.base.clone(),
            map: self.map.clone(),
            batches: self.history.iter().filter_map(|change| change.batch.clone()).collect(),
        }
    }

    /// The image of the state as it is now.
    pub fn image(&self) -> Image {
        let base = Base {
            position: self.position,
            revision: self.revision,
            members: self.members.clone(),
            leases: self.leases().collect(),
        };
        Image { base, map: self.map.clone() }
    }

    /// What is needed to make the map at `revision`.
    pub fn undo_to(&self, revision: Revision) -> Result<Undo, Refusal> {
        self.check_readable(revision)?;
        Ok(Undo {
            base: Base { revision, ..Base::default() },
            map: self.map.clone(),
            batches: self.batches_after(revision).cloned().collect(),
        })
    }
}

/// An older map in the making: pointers only, so it is taken under a lock and worked off outside it.
pub struct Undo {
    base: Base,
    map: Map,
    batches: Vec<Arc<Batch>>,
}

impl Undo {
    pub fn undo(self) -> Image {
        let Undo { base, mut map, batches } = self;
        for event in batches.iter().rev().flat_map(|batch| batch.events.iter().rev()) {
            match &event.previous {
                Some(previous) => map.insert(previous.clone()),
                None => map.remove(&event.kv.key),
            };
        }
        Image { base, map }
    }
}

/// What one change does to everything of a base but its keys.
fn advance(base: &mut Base, change: &Change) {
    base.position = change.position;
    base.revision = change.revision;
    match change.lease {
        Some(LeaseChange::Granted { id, ttl_ms }) => {
            base.leases.insert(id, ttl_ms);
        }
        Some(LeaseChange::Revoked { id }) => {
            base.leases.remove(&id);
        }
        None => {}
    }
    if let Some(members) = &change.members {
        base.members = Members::clone(members);
    }
}

/// What a key takes, about: the rest of it is small and always there.
fn size_of(kv: &KeyValue) -> usize {
    const FIXED: usize = 64;
    FIXED + kv.key.len() + kv.value.len()
}

/// What a change costs in memory, about: the values it alone may be keeping alive.
fn size_of_change(change: &Change) -> usize {
    const FIXED: usize = 256;
    let events = change.batch.as_ref().map_or(&[][..], |batch| &batch.events);
    FIXED + events.iter().map(|event| event.kv.key.len() + event.kv.value.len()).sum::<usize>()
}

mod txn;

#[cfg(test)]
mod tests;
