//! What raft-rs reads of the log: the newest entries, in memory. The older ones lie on disk for the next start only;
//! a follower that needs them is sent a snapshot instead.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata},
    util::limit_size,
};

use crate::{
    mvcc::{Image, Position},
    shared::Shared,
};

/// States held for snapshots on their way out: raft asks for one and sends it at once.
const OFFERED: usize = 2;

pub struct RaftStorage {
    pub hard_state: HardState,
    conf_state: ConfState,
    /// The entry before the first one kept.
    before: Position,
    /// Invariant: the first one's index is `before.index + 1`, and the indexes have no gap.
    entries: VecDeque<Entry>,
    /// What they take.
    bytes: usize,
    shared: Arc<Shared>,
    /// The states of the snapshots that raft has been given for others, by index: raft itself knows only their position.
    offered: RefCell<BTreeMap<u64, Image>>,
}

impl RaftStorage {
    pub fn new(shared: Arc<Shared>, hard_state: HardState, entries: Vec<Entry>) -> RaftStorage {
        let (before, conf_state) = {
            let state = shared.state();
            (state.position(), ConfState::from(state.members()))
        };
        let offered = RefCell::default();
        let bytes = entries.iter().map(size_of_entry).sum();
        RaftStorage { hard_state, conf_state, before, entries: entries.into(), bytes, shared, offered }
    }

    pub fn append(&mut self, new: &[Entry]) {
        let Some(first) = new.first() else { return };
        // A new leader's entries void those from the same index on.
        for voided in self.entries.drain((first.index - self.before.index - 1) as usize..) {
            self.bytes -= size_of_entry(&voided);
        }
        self.bytes += new.iter().map(size_of_entry).sum::<usize>();
        self.entries.extend(new.iter().cloned());
    }

    /// Everything starts over after a snapshot.
    pub fn install(&mut self, position: Position, conf_state: ConfState) {
        self.entries.clear();
        self.bytes = 0;
        self.before = position;
        self.conf_state = conf_state;
    }

    /// Lets go of applied entries but the last ones of `keep` bytes, which are for followers that are a little behind.
    pub fn compact(&mut self, applied: u64, keep: usize) {
        while self.bytes > keep && self.before.index < applied {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= size_of_entry(&entry);
            self.before = Position { index: entry.index, term: entry.term };
        }
    }

    /// No snapshot is on its way any more that has not left.
    pub fn forget_offered(&mut self) {
        self.offered.get_mut().clear();
    }

    /// The state that belongs to a snapshot raft sends; none where another one has been offered since.
    pub fn offered(&self, index: u64) -> Option<Image> {
        self.offered.borrow().get(&index).cloned()
    }

    fn last(&self) -> u64 {
        self.before.index + self.entries.len() as u64
    }
}

/// What an entry takes of memory, about.
fn size_of_entry(entry: &Entry) -> usize {
    const FIXED: usize = 128;
    FIXED + entry.data.len()
}

impl Storage for RaftStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} asked of a log that ends at {}", self.last());
        let at = |index: u64| (index - self.before.index - 1) as usize;
        let mut entries: Vec<Entry> = self.entries.range(at(low)..at(high)).cloned().collect();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.index {
            return Ok(self.before.term);
        }
        if index < self.before.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get((index - self.before.index - 1) as usize);
        entry.map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// The position of the applied state as it is now; the state itself is [`RaftStorage::offered`].
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let image = self.shared.state().image();
        let Position { index, term } = image.base.position;
        if index < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(ConfState::from(&image.base.members));
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        let mut offered = self.offered.borrow_mut();
        offered.insert(index, image);
        // An old state costs memory for as long as it is held.
        while offered.len() > OFFERED {
            offered.pop_first();
        }
        Ok(snapshot)
    }
}
