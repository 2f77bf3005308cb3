//! The loop that owns the Raft node: inputs in, Readies out, entries applied.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut, Bytes, BytesMut};
use raft::{
    RawNode, SoftState, StateRole,
    eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot,
    },
};
use tokio::sync::oneshot;

use super::{
    Input, Proposed, Queue, Transport, keeper,
    pending::{Proposals, Readers},
    recover::{Sizes, TICK, stopped},
    storage::RaftStorage,
    writer,
};
use crate::{
    Batch, Error, LeaseId,
    command::{self, Command, Proposal},
    image,
    lease::LeaseClock,
    log::Write,
    mvcc::{Answer, Applied, Limits, Members, Position, Refusal, State},
    shared::Shared,
};

/// Leases ended in one tick; more wait for the next.
const LEASES_A_TICK: usize = 64;
/// An ended lease is tried again after this long if its revocation came to nothing.
const LEASE_RETRY: Duration = Duration::from_secs(5);
/// A member that is alone has no elections to watch over: only leases and timeouts.
const LONE_TICK: Duration = Duration::from_millis(500);
/// A stop waits no longer for proposals under way.
const STOP_WAIT: Duration = Duration::from_secs(5);

pub struct Parts {
    pub node: RawNode<RaftStorage>,
    pub shared: Arc<Shared>,
    pub inbox: Arc<Queue<Input>>,
    pub log: Arc<Queue<writer::Job>>,
    pub keeper: keeper::Handle,
    pub transport: Box<dyn Transport>,
    pub limits: Limits,
    pub sizes: Sizes,
    pub threads: Vec<JoinHandle<()>>,
    pub opened: oneshot::Sender<()>,
    pub lock: Option<fs::File>,
}

pub struct Driver {
    node: RawNode<RaftStorage>,
    shared: Arc<Shared>,
    inbox: Arc<Queue<Input>>,
    log: Arc<Queue<writer::Job>>,
    keeper: keeper::Handle,
    transport: Box<dyn Transport>,
    limits: Limits,
    sizes: Sizes,
    threads: Vec<JoinHandle<()>>,
    opened: Option<oneshot::Sender<()>>,
    lock: Option<fs::File>,

    proposals: Proposals,
    readers: Readers,
    leases: LeaseClock,
    started: Instant,
    next_tick: Duration,
    next_id: u64,
    leader: u64,
    role: StateRole,
    applied: u64,
    /// When the newest applied entry was proposed.
    at: u64,
    /// The log's size when it was last cut, and the size of the snapshot written for that.
    log_bytes_cut: u64,
    snapshot_bytes: u64,
    snapshot_under_way: bool,
    stop: Option<(Duration, Option<oneshot::Sender<()>>)>,
}

impl Driver {
    pub fn new(parts: Parts) -> Driver {
        let Parts { node, shared, inbox, log, keeper, transport, limits, sizes, threads, opened, lock } = parts;
        // Ids must differ from those of this member's earlier lives, whose entries may be replayed: they begin at
        // the time, in nanoseconds, and no life makes one a nanosecond.
        #[expect(clippy::disallowed_methods, reason = "the driver is the shell")]
        let next_id = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let applied = node.raft.raft_log.applied;
        #[expect(clippy::disallowed_methods, reason = "the driver is the shell")]
        let started = Instant::now();
        Driver {
            node,
            shared,
            inbox,
            log,
            keeper,
            transport,
            limits,
            sizes,
            threads,
            opened: Some(opened),
            lock,
            proposals: Proposals::default(),
            readers: Readers::default(),
            leases: LeaseClock::default(),
            started,
            next_tick: TICK,
            next_id,
            leader: 0,
            role: StateRole::Follower,
            applied,
            at: 0,
            log_bytes_cut: 0,
            snapshot_bytes: 0,
            snapshot_under_way: false,
            stop: None,
        }
    }

    /// Runs until it is stopped or something breaks that must not: then the store ends, with everyone told why.
    pub fn run(mut self) {
        let worked = catch_unwind(AssertUnwindSafe(|| self.work()));
        let error = match worked {
            Ok(Ok(())) => Error::Closed,
            Ok(Err(error)) => Error::Fatal { reason: error.to_string() },
            Err(panic) => Error::Fatal { reason: format!("an invariant broke: {}", message_of(&*panic)) },
        };
        if let Error::Fatal { reason } = &error {
            tracing::error!(%reason, "the store stops");
        }
        self.shared.close(error.clone());
        self.proposals.fail_all(|_| error.clone());
        self.readers.fail_all(&error);
        self.log.push(writer::Job::Stop);
        self.keeper.push(keeper::Job::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        drop(self.lock.take());
        self.refuse_rest(&error);
        if let Some((_, Some(done))) = self.stop.take() {
            let _ = done.send(());
        }
    }

    /// Whoever sent something while the doors were closing is told too.
    fn refuse_rest(&mut self, error: &Error) {
        for input in self.inbox.close() {
            match input {
                Input::Propose(proposed) => drop(proposed.answer.send(Err(error.clone()))),
                Input::Read(reader) => drop(reader.send(Err(error.clone()))),
                Input::Stop(Some(done)) => drop(done.send(())),
                Input::Message(_)
                | Input::Persisted { .. }
                | Input::Purged { .. }
                | Input::Failed(_)
                | Input::Stop(None) => {}
            }
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        let voters = &self.shared.state().members().voters.clone();
        let alone = voters[..] == [self.node.raft.id];
        if alone {
            // Nobody else could win: no reason to wait for a timeout.
            self.node.campaign().map_err(|error| stopped(&error))?;
        } else if let Some(opened) = self.opened.take() {
            let _ = opened.send(());
        }
        loop {
            self.handle_ready()?;
            if self.may_stop() {
                return Ok(());
            }
            let wait = self.next_tick.saturating_sub(self.now());
            self.take_inputs(wait)?;
            if self.now() >= self.next_tick {
                self.tick();
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn may_stop(&mut self) -> bool {
        let Some((since, _)) = &self.stop else { return false };
        if !self.proposals.is_empty() && self.now() < *since + STOP_WAIT {
            return false;
        }
        // The commit index is only written along with something else; written now, the next start knows it.
        let write = Write { hard_state: Some(self.node.raft.hard_state()), ..Write::default() };
        self.log.push(writer::Job::Write { number: 0, write, messages: Vec::new(), image: None });
        true
    }

    fn take_inputs(&mut self, wait: Duration) -> Result<(), Error> {
        let (mut proposed, mut failed) = (Vec::new(), Ok(()));
        for input in self.inbox.take(wait) {
            match input {
                Input::Propose(one) => proposed.push(one),
                Input::Read(reader) => self.readers.add(self.now(), reader),
                Input::Message(message) => {
                    // A message that makes no sense (any more) is the sender's trouble.
                    if let Err(error) = self.node.step(*message) {
                        tracing::debug!(%error, "a message was not taken");
                    }
                }
                Input::Persisted { number, messages } => {
                    self.node.on_persist_ready(number);
                    self.send(messages);
                }
                Input::Purged { index, snapshot_bytes } => {
                    tracing::debug!(index, snapshot_bytes, "a snapshot is written and the log is cut");
                    self.snapshot_under_way = false;
                    self.snapshot_bytes = snapshot_bytes;
                    self.log_bytes_cut = self.shared.gauges.log_bytes_now();
                }
                // Not at once: whoever else is in this batch is to hear of it too.
                Input::Failed(error) => failed = Err(error),
                Input::Stop(done) => {
                    let now = self.now();
                    self.shared.close(Error::Closed);
                    match &mut self.stop {
                        None => self.stop = Some((now, done)),
                        Some((_, first)) if first.is_none() => *first = done,
                        Some(_) => drop(done.map(|done| done.send(()))),
                    }
                }
            }
        }
        self.propose(proposed);
        if let Some(context) = self.readers.begin(self.now()) {
            let mut unique = self.node.raft.id.to_le_bytes().to_vec();
            unique.extend_from_slice(&context.to_le_bytes());
            self.node.read_index(unique);
        }
        failed
    }

    /// Proposes everything that has gathered as one message, hence one append and one sync.
    fn propose(&mut self, proposed: Vec<Proposed>) {
        if proposed.is_empty() {
            return;
        }
        let now = self.now();
        let mut entries = Vec::with_capacity(proposed.len());
        let first_id = self.next_id;
        for one in proposed {
            let mut context = BytesMut::with_capacity(16);
            context.put_u64_le(self.node.raft.id);
            context.put_u64_le(self.next_id);
            entries.push(Entry { data: one.data.clone(), context: context.freeze(), ..Entry::default() });
            self.proposals.add(self.next_id, now, one);
            self.next_id += 1;
        }
        let mut message = Message { from: self.node.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        if self.node.raft.step(message).is_err() {
            for id in first_id..self.next_id {
                self.proposals.answer(id, Err(Error::Unavailable));
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        let alone = self.shared.gauges.is_alone();
        // Late ticks are not made up for: time in which this thread did not run is no sign of a dead leader.
        self.next_tick = now + if alone { LONE_TICK } else { TICK };
        if !alone {
            self.node.tick();
        }
        self.proposals.expire(now);
        if self.role == StateRole::Leader && self.stop.is_none() {
            let (now, again) = (now.as_millis() as u64, LEASE_RETRY.as_millis() as u64);
            let ended = self.leases.expired(now, LEASES_A_TICK, again);
            let revocations = ended.into_iter().map(revocation).collect();
            self.propose(revocations);
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let snapshot_to = (message.get_msg_type() == MessageType::MsgSnapshot).then_some(message.to);
            self.transport.send(message);
            if let Some(to) = snapshot_to {
                // Raft holds its entries back until it hears how a snapshot went. A lost one shows in the follower's
                // next answers, so handing it over counts as having gone well.
                self.node.report_snapshot(to, raft::SnapshotStatus::Finish);
            }
        }
    }

    /// Works off every Ready, in the order that safety asks for: a leader's messages may leave before its own sync,
    /// anyone else's only after; entries are readable before raft is told that they are on their way to disk.
    fn handle_ready(&mut self) -> Result<(), Error> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let now_leading = ready.ss().map(|state| self.note_role(state)).unwrap_or(false);
            let messages = ready.take_messages();
            let mut write = Write::default();
            let mut received = None;
            if !ready.snapshot().is_empty() {
                let snapshot = ready.snapshot().clone();
                let image = self.install(&snapshot)?;
                write.reset = Some(image.base.position);
                received = Some(Box::new(image));
            }
            for state in ready.take_read_states() {
                let context = state.request_ctx.get(8..16).and_then(|bytes| bytes.try_into().ok());
                if let Some(context) = context {
                    self.readers.confirm(u64::from_le_bytes(context), state.index);
                }
            }
            let committed = ready.take_committed_entries();
            self.apply(committed)?;
            if now_leading {
                self.start_leases();
            }
            write.entries = ready.take_entries();
            self.node.mut_store().append(&write.entries);
            if let Some(hard_state) = ready.hs() {
                self.node.mut_store().hard_state = hard_state.clone();
            }
            if ready.must_sync() {
                write.hard_state = Some(self.node.store().hard_state.clone());
            }
            let after = ready.take_persisted_messages();
            let number = ready.number();
            let in_order = !after.is_empty() || write != Write::default();
            self.node.advance_append_async(ready);
            if in_order {
                self.log.push(writer::Job::Write { number, write, messages: after, image: received });
            }
            self.send(messages);
        }
        self.after_readies();
        Ok(())
    }

    fn after_readies(&mut self) {
        let log = &self.node.raft.raft_log;
        let applied = self.applied.min(log.persisted).min(log.committed);
        if applied > log.applied {
            self.node.advance_apply_to(applied);
            let keep = if self.node.raft.prs().is_singleton() { 0 } else { self.sizes.tail };
            self.node.mut_store().compact(applied, keep);
        }
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader && raft.apply_to_current_term();
        let alone = leads && raft.prs().is_singleton() && self.applied >= raft.raft_log.committed;
        self.shared.gauges.role(self.leader, raft.term, alone);
        if alone && let Some(opened) = self.opened.take() {
            let _ = opened.send(());
        }
        self.readers.applied(self.applied);
    }

    /// Answers whether this member has just become the leader.
    fn note_role(&mut self, state: &SoftState) -> bool {
        let was_leading = self.role == StateRole::Leader;
        if self.leader != 0 && self.leader != state.leader_id {
            // They may have been lost on the way to the old leader, or with it.
            self.proposals.fail_all(|operation| Error::LeaderChanged { operation });
        }
        self.leader = state.leader_id;
        self.role = state.raft_state;
        if self.role != StateRole::Leader {
            self.leases.clear();
        }
        !was_leading && self.role == StateRole::Leader
    }

    /// A new leader gives every lease its whole time again.
    fn start_leases(&mut self) {
        let now = self.now().as_millis() as u64;
        for (id, ttl_ms) in self.shared.state().leases() {
            self.leases.set(id, now.saturating_add(ttl_ms));
        }
    }

    /// Puts a received snapshot in the place of everything. It is on disk before anyone is told.
    fn install(&mut self, snapshot: &Snapshot) -> Result<crate::mvcc::Image, Error> {
        let fatal = |what: String| Error::Fatal { reason: format!("a received snapshot cannot be used: {what}") };
        let image = image::decode(snapshot.data.clone()).map_err(|error| fatal(error.to_string()))?;
        let metadata = snapshot.get_metadata();
        if metadata.index != image.base.position.index {
            return Err(fatal(format!("it says {} and holds {}", metadata.index, image.base.position.index)));
        }
        let position = image.base.position;
        self.node.mut_store().install(position, ConfState::from(&image.base.members));
        let revision = image.base.revision;
        *self.shared.state_mut() = State::new(image.clone());
        self.shared.hub.reset(revision);
        self.keeper.push(keeper::Job::Replace(image.clone()));
        self.applied = position.index;
        Ok(image)
    }

    /// Applies committed entries, hands out their events, answers who proposed them, and wakes the watchers.
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
                What::Members(members) => state.set_members(position, members),
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
        self.trim(&mut state);
        let oldest = state.oldest();
        drop(state);
        self.applied = last;
        let sleepers = self.shared.hub.dispatch(&batches);
        for (id, answer) in answers {
            self.proposals.answer(id, answer.map_err(Error::from));
        }
        sleepers.wake();
        if oldest > self.shared.hub.forgotten() {
            self.shared.hub.forget(oldest);
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
        let mine = entry.context.get(..8) == Some(&self.node.raft.id.to_le_bytes()[..]);
        let id = entry.context.get(8..16).filter(|_| mine).and_then(|bytes| bytes.try_into().ok());
        Ok(Decoded { position, id: id.map(u64::from_le_bytes), what })
    }

    fn change_members(&mut self, change: &ConfChangeV2) -> Result<Members, Error> {
        self.node.apply_conf_change(change).map(Members::from).map_err(|error| stopped(&error))
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
            _ => {}
        }
    }

    /// Cuts the history to its limits, and has the checkpoint and the log follow.
    fn trim(&mut self, state: &mut State) {
        if !state.over(&self.limits, self.at) {
            return;
        }
        let double = Limits { revisions: self.limits.revisions * 2, bytes: self.limits.bytes * 2, ..self.limits };
        // A keeper that is behind lets the history grow; when it has grown too far, it is trimmed all the same.
        if !self.keeper.has_room() && !state.over(&double, self.at) {
            return;
        }
        let forgotten = state.trim(&self.limits, self.at);
        if !forgotten.is_empty() {
            self.keeper.push(keeper::Job::Advance(forgotten));
        }
        let grown = self.shared.gauges.log_bytes_now().saturating_sub(self.log_bytes_cut);
        if !self.snapshot_under_way && grown > self.sizes.cut_after.max(self.snapshot_bytes) {
            self.snapshot_under_way = true;
            self.keeper.push(keeper::Job::Snapshot(state.base_image()));
        }
    }
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

fn revocation(id: LeaseId) -> Proposed {
    let at = crate::store::unix_millis();
    let data = command::encode(&Proposal { at, command: Command::LeaseRevoke { id } });
    let (answer, _) = oneshot::channel();
    Proposed { data, operation: "lease revoke", answer, permit: None }
}

/// The old form of a change of members, in the new one.
fn widen(change: ConfChange) -> ConfChangeV2 {
    let single =
        ConfChangeSingle { change_type: change.change_type, node_id: change.node_id, ..ConfChangeSingle::default() };
    ConfChangeV2 { changes: vec![single].into(), context: change.context, ..ConfChangeV2::default() }
}

fn parse<M: protobuf::Message>(data: &Bytes) -> Result<M, String> {
    let mut message = M::new();
    message.merge_from_bytes(data).map(|()| message).map_err(|error| error.to_string())
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
