//! From entries that are committed to the state, to those who wait for them, and to the checkpoint behind.

use std::sync::Arc;

use bytes::Bytes;
use raft::{
    StateRole,
    eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType},
};

use super::{Driver, members::widen};
use crate::{
    Batch, Error,
    command::{self, Command, Proposal},
    mvcc::{Answer, Applied, Change, Members, Position, Refusal, State, Undo},
};

/// To cut the log is to write the whole state, twice. So it grows to a multiple of that first, which a start replays in some
/// tenths of a second for what fits into memory comfortably.
const CUT_RATIO: u64 = 4;

impl Driver {
    /// Applies what is committed, up to a change of members that this member does not yet know durably to be committed.
    ///
    /// Were it applied before, and this member restarted without the note that it is committed, it would vote as the
    /// group was before: one that was alone would find itself elected at once, while the others go on without it.
    pub(super) fn apply_committed(&mut self) -> Result<(), Error> {
        let changes = |entry: &Entry| entry.entry_type != EntryType::EntryNormal && entry.index > self.durable.commit;
        let waits = |entry: &Entry| changes(entry) || self.leaves_unheard(entry);
        let ready = self.committed.iter().position(waits).unwrap_or(self.committed.len());
        let entries = self.committed.drain(..ready).collect();
        self.apply(entries)
    }

    /// Applies entries, hands out their events, answers who proposed them, and wakes the watchers.
    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
        // Taken apart before the state is locked: readers wait for as little as possible.
        let mut decoded = Vec::with_capacity(entries.len());
        for entry in entries {
            decoded.push(self.decode(entry)?);
        }
        let mut answers = Vec::with_capacity(decoded.len());
        let mut batches: Vec<Arc<Batch>> = Vec::with_capacity(decoded.len());
        let now = self.now().as_millis() as u64;
        let shared = self.shared.clone();
        let mut state = shared.state_mut();
        for Decoded { position, id, what } in decoded {
            match what {
                What::Nothing => state.skip(position),
                What::Members(members) => {
                    state.set_members(position, members);
                    answers.extend(id.map(|id| (id, Ok(Answer::Done))));
                }
                What::Proposal(Proposal { at, command }) => {
                    // A clock set back must not make the history look young.
                    self.at = self.at.max(at);
                    let Applied { answer, batch } = state.apply(position, self.at, &command);
                    self.time_lease(&command, &answer, now);
                    answers.extend(id.map(|id| (id, answer)));
                    batches.extend(batch);
                }
            }
        }
        let trimmed = self.trim(&mut state);
        let forgotten = state.oldest_event() - 1;
        self.shared.gauges.fill(&state);
        drop(state);
        self.applied = last;
        self.keep(trimmed);
        let sleepers = self.shared.hub.dispatch(&batches);
        for (id, answer) in answers {
            self.proposals.answer(id, answer.map_err(Error::from));
        }
        sleepers.wake();
        if forgotten > self.shared.hub.forgotten() {
            self.shared.hub.forget(forgotten);
        }
        Ok(())
    }

    fn decode(&mut self, entry: Entry) -> Result<Decoded, Error> {
        let position = Position { index: entry.index, term: entry.term };
        let unreadable =
            |what: String| Error::Fatal { reason: format!("entry {} of the log cannot be read: {what}", entry.index) };
        let what = match entry.entry_type {
            EntryType::EntryNormal if entry.data.is_empty() => What::Nothing,
            EntryType::EntryNormal => {
                What::Proposal(command::decode(entry.data.clone()).map_err(|error| unreadable(error.to_string()))?)
            }
            EntryType::EntryConfChange => {
                let change: ConfChange = parse(&entry.data).map_err(unreadable)?;
                What::Members(self.change_members(&widen(change))?)
            }
            EntryType::EntryConfChangeV2 => {
                let change: ConfChangeV2 = parse(&entry.data).map_err(unreadable)?;
                What::Members(self.change_members(&change)?)
            }
        };
        let proposer = entry.context.get(..8);
        let mine = proposer == Some(&self.node.raft.id.to_le_bytes()[..]);
        self.told_is_awaited |= proposer.is_some() && !mine;
        let id = entry.context.get(8..16).filter(|_| mine).and_then(|bytes| bytes.try_into().ok());
        Ok(Decoded { position, id: id.map(u64::from_le_bytes), what })
    }

    fn time_lease(&mut self, command: &Command, answer: &Result<Answer, Refusal>, now: u64) {
        if self.role != StateRole::Leader {
            return;
        }
        match (command, answer) {
            (Command::LeaseGrant { .. } | Command::LeaseKeepAlive { .. }, Ok(Answer::Lease { id, ttl_ms })) => {
                self.leases.set(*id, now.saturating_add(*ttl_ms));
            }
            (Command::LeaseRevoke { id }, _) => self.leases.remove(*id),
            (
                Command::LeaseGrant { .. } | Command::LeaseKeepAlive { .. },
                Ok(Answer::Txn(_) | Answer::Done) | Err(_),
            )
            | (Command::Txn(_) | Command::Compact { .. }, _) => {}
        }
    }

    /// A new leader gives every lease its whole time again.
    pub(super) fn start_leases(&mut self) {
        let now = self.now().as_millis() as u64;
        for (id, ttl_ms) in self.shared.state().leases() {
            self.leases.set(id, now.saturating_add(ttl_ms));
        }
    }

    /// Cuts the history to its limits; with what a snapshot is made of, where one is due.
    fn trim(&self, state: &mut State) -> Trimmed {
        if !state.over(&self.limits, self.at) {
            return Trimmed::default();
        }
        let forgotten = state.trim(&self.limits, self.at);
        let grown = self.shared.gauges.log_bytes_now().saturating_sub(self.log_bytes_cut);
        let due = !self.snapshot_under_way && grown > self.sizes.cut_after.max(CUT_RATIO * self.snapshot_bytes);
        Trimmed { forgotten, base: due.then(|| state.base_image()) }
    }

    /// Has the checkpoint and the log follow what was trimmed.
    fn keep(&mut self, Trimmed { forgotten, base }: Trimmed) {
        self.keeper.note(&forgotten);
        if let Some(base) = base {
            self.snapshot_under_way = true;
            self.keeper.snapshot(base, self.at);
        }
    }
}

#[derive(Default)]
struct Trimmed {
    forgotten: Vec<Change>,
    base: Option<Undo>,
}

struct Decoded {
    position: Position,
    /// Where this very process waits for it.
    id: Option<u64>,
    what: What,
}

enum What {
    Nothing,
    Proposal(Proposal),
    Members(Members),
}

pub(super) fn parse<M: protobuf::Message>(data: &Bytes) -> Result<M, String> {
    let mut message = M::new();
    message.merge_from_bytes(data).map(|()| message).map_err(|error| error.to_string())
}
