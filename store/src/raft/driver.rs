//! Owns the Raft node: inputs in and Readies out (here), entries applied (`apply`), members changed (`members`). It has no
//! clock and no random source: a turn is given the time, and a member its seed, so that `runner` can give it those of the
//! machine and the simulator its own.

mod apply;
mod members;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use raft::{
    RawNode, SnapshotStatus, SoftState, StateRole,
    eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot},
};
use tokio::sync::oneshot;

use super::{
    Input, Proposed, Queue, Stopped, Transport, Waiter, keeper,
    pending::{Proposals, Readers},
    recover::{ELECTION_TICKS, Sizes, TICK, stopped},
    storage::RaftStorage,
    writer,
};
use crate::{
    Error, LeaseId,
    command::{self, Command, Proposal},
    image,
    lease::LeaseClock,
    log::Write,
    mvcc::{Limits, State},
    shared::{Role, Shared},
    wire::OutgoingSnapshot,
};

/// Leases ended in one tick; more wait for the next.
const LEASES_A_TICK: usize = 64;
/// An ended lease is tried again after this long if its revocation came to nothing.
const LEASE_RETRY: Duration = Duration::from_secs(5);
/// A member that is alone has no elections to watch over: only leases and timeouts.
const LONE_TICK: Duration = Duration::from_millis(500);
/// A learner this many entries behind, or fewer, has caught up: it gets the rest while it is made a voter.
const CAUGHT_UP: u64 = 1000;
/// A leader whose disk takes longer than this over a write has another member lead.
const SLOW_DISK: Duration = Duration::from_secs(1);
/// And tries no other one for this long: where all disks are slow, leading goes in circles and helps nobody.
const SLOW_DISK_REST: Duration = Duration::from_secs(10);
/// A member not heard of for this long counts as absent.
const ABSENT: Duration = Duration::from_secs(3);
/// Followers hear this much later that something is committed, if not with the next entries before.
const TELL_WITHIN: Duration = Duration::from_millis(1);
/// A stop waits no longer for proposals under way.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// The time of a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since this member started, by a clock that only goes forward.
    pub since_start: Duration,
    /// Milliseconds of unix time, which may jump.
    pub unix_ms: u64,
}

/// What a turn came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next turn is due after this long, or when there are inputs.
    Wait(Duration),
    /// It was asked to stop, and everything is handed over.
    Stopped,
}

pub struct Parts {
    pub node: RawNode<RaftStorage>,
    pub shared: Arc<Shared>,
    /// Its own: where what it hands out reports to.
    pub inbox: Arc<Queue<Input>>,
    /// Whoever works the driver wakes who waits there.
    pub log: Arc<Queue<writer::Job>>,
    pub keeper: keeper::Handle,
    pub transport: Box<dyn Transport>,
    pub limits: Limits,
    pub sizes: Sizes,
    pub opened: oneshot::Sender<()>,
    /// Differs between members and between the lives of one: it spreads their elections, and numbers proposals.
    pub seed: u64,
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
    opened: Option<oneshot::Sender<()>>,
    seed: u64,

    proposals: Proposals,
    readers: Readers,
    leases: LeaseClock,
    now: Now,
    next_tick: Duration,
    /// Elections that this member has begun, each after another time.
    elections: u64,
    leader: u64,
    role: StateRole,
    applied: u64,
    /// Committed and not yet applied, in order.
    committed: VecDeque<Entry>,
    /// Up to where followers know, or are about to hear, that entries are committed, while this member leads.
    told: u64,
    /// When they are to hear of what is beyond it; and whether one of them waits for it.
    tell_at: Option<Duration>,
    told_is_awaited: bool,
    /// When other members were last heard of, while this one leads.
    heard: HashMap<u64, Duration>,
    /// When another member was last asked to lead, as this one's disk was slow.
    asked_to_lead: Option<Duration>,
    /// Readies on their way to the disk, and since when: the first of them says how slow the disk is.
    writing: VecDeque<(u64, Duration)>,
    /// Hard states on their way to the disk, by the Ready that they are written with; and the one that is there.
    writes: VecDeque<(u64, HardState)>,
    durable: HardState,
    /// When the newest applied entry was proposed.
    at: u64,
    /// The log's size when it was last cut, and the size of the snapshot written for that.
    log_bytes_cut: u64,
    snapshot_bytes: u64,
    snapshot_under_way: bool,
    stop: Option<(Duration, Option<Stopped>)>,
}

impl Driver {
    pub fn new(parts: Parts) -> Driver {
        let Parts { node, shared, inbox, log, keeper, transport, limits, sizes, opened, seed } = parts;
        let applied = node.raft.raft_log.applied;
        let durable = node.store().hard_state.clone();
        Driver {
            node,
            shared,
            inbox,
            log,
            keeper,
            transport,
            limits,
            sizes,
            opened: Some(opened),
            seed,
            proposals: Proposals::new(seed),
            readers: Readers::new(seed),
            leases: LeaseClock::default(),
            now: Now::default(),
            next_tick: TICK,
            elections: 0,
            leader: 0,
            role: StateRole::Follower,
            applied,
            committed: VecDeque::new(),
            told: 0,
            tell_at: None,
            told_is_awaited: false,
            heard: HashMap::new(),
            asked_to_lead: None,
            writing: VecDeque::new(),
            writes: VecDeque::new(),
            durable,
            at: 0,
            log_bytes_cut: 0,
            snapshot_bytes: 0,
            snapshot_under_way: false,
            stop: None,
        }
    }

    /// What comes before the first turn.
    pub fn begin(&mut self) -> Result<(), Error> {
        let voters = &self.shared.state().members().voters.clone();
        if voters[..] == [self.node.raft.id] {
            // Nobody else could win: no reason to wait for a timeout.
            self.node.campaign().map_err(|error| stopped(&error))?;
        } else if let Some(opened) = self.opened.take() {
            let _ = opened.send(());
        }
        Ok(())
    }

    /// Takes in what has come since the last turn, and does everything that follows from it and from the time.
    pub fn turn(&mut self, now: Now, inputs: Vec<Input>) -> Result<Turn, Error> {
        self.now = now;
        self.take_inputs(inputs)?;
        if self.now() >= self.next_tick {
            self.tick();
        }
        self.handle_ready()?;
        if self.tell_committed() {
            self.handle_ready()?;
        }
        if self.may_stop() {
            return Ok(Turn::Stopped);
        }
        let due = [self.tell_at, self.readers.due()].into_iter().flatten().fold(self.next_tick, Duration::min);
        Ok(Turn::Wait(due.saturating_sub(self.now())))
    }

    /// Tells everybody who waits that nothing more will come.
    pub fn end(&mut self, error: &Error) {
        self.shared.close(error.clone());
        self.proposals.fail_all(|_| error.clone());
        self.readers.fail_all(error);
        self.log.push(writer::Job::Stop);
        match error {
            Error::Closed => self.keeper.stop(self.shared.state().base().clone()),
            _ => self.keeper.abandon(),
        }
    }

    pub fn leads(&self) -> bool {
        self.role == StateRole::Leader
    }

    /// Whom to tell that the stop is complete.
    pub fn stopper(&mut self) -> Option<Stopped> {
        self.stop.take().and_then(|(_, done)| done)
    }

    fn now(&self) -> Duration {
        self.now.since_start
    }

    /// A received snapshot is not on the disk yet. Raft must not campaign meanwhile: it would look in the log, which is gone,
    /// for changes of members that it has not applied.
    fn is_installing(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.applied + 1 < log.first_index()
    }

    fn may_stop(&mut self) -> bool {
        let Some((since, _)) = &self.stop else { return false };
        let busy = !self.proposals.is_empty() || self.node.raft.lead_transferee.is_some();
        if busy && self.now() < *since + STOP_WAIT {
            return false;
        }
        // The commit index is only written along with something else; written now, the next start knows it.
        let write = Write { hard_state: Some(self.node.raft.hard_state()), ..Write::default() };
        self.log.push(writer::Job::Write { number: 0, write, messages: Vec::new(), image: None });
        true
    }

    fn take_inputs(&mut self, inputs: Vec<Input>) -> Result<(), Error> {
        let (mut proposed, mut failed) = (Vec::new(), Ok(()));
        for input in inputs {
            match input {
                Input::Propose(one) => proposed.push(one),
                Input::Change { change, answer } => self.change(change, answer),
                Input::StepDown(None) => self.hand_over(),
                Input::StepDown(Some(next)) => self.node.transfer_leader(next),
                Input::Read(reader) => self.readers.add(self.now(), reader),
                Input::Message(message)
                    if self.is_installing() && message.get_msg_type() == MessageType::MsgTimeoutNow =>
                {
                    tracing::debug!("asked to lead while a snapshot is on its way to the disk");
                }
                Input::Message(message) => {
                    // A message that makes no sense (any more) is the sender's trouble.
                    if let Err(error) = self.node.step(*message) {
                        tracing::debug!(%error, "a message was not taken");
                    }
                }
                Input::SnapshotSent { to, delivered } => {
                    let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                    self.node.report_snapshot(to, status);
                }
                Input::Persisted { number, messages } => {
                    while self.writing.front().is_some_and(|(written, _)| *written <= number) {
                        self.writing.pop_front();
                    }
                    while self.writes.front().is_some_and(|(written, _)| *written <= number) {
                        self.durable = self.writes.pop_front().map_or_else(HardState::default, |(_, state)| state);
                    }
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
                    self.hand_over();
                    match &mut self.stop {
                        None => self.stop = Some((now, done)),
                        Some((_, first)) if first.is_none() => *first = done,
                        Some(_) => drop(done.map(|done| done.send(Ok(())))),
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
        let first = self.proposals.next_number();
        let mut entries = Vec::with_capacity(proposed.len());
        let mut contexts = BytesMut::with_capacity(proposed.len() * CONTEXT_BYTES);
        for Proposed { data, waiter } in proposed {
            put_context(&mut contexts, self.node.raft.id, self.proposals.add(now, waiter));
            entries.push(Entry { data, ..Entry::default() });
        }
        let mut contexts = contexts.freeze();
        for entry in &mut entries {
            entry.context = contexts.split_to(CONTEXT_BYTES);
        }
        let mut message = Message { from: self.node.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        if self.node.raft.step(message).is_err() {
            for number in first..self.proposals.next_number() {
                self.proposals.answer(number, Err(Error::Unavailable));
            }
        } else if self.node.raft.state == StateRole::Leader {
            // The entries go out with what is committed by now.
            self.told = self.node.raft.raft_log.committed;
        }
    }

    /// Has followers hear what is committed, where the next entries come too late for that: each of them answers, so a
    /// message only for this would double what a lone write costs. Answers whether there is something to be sent.
    fn tell_committed(&mut self) -> bool {
        let (committed, now) = (self.node.raft.raft_log.committed, self.now());
        debug_assert!(self.told <= committed, "nobody is told what is not committed");
        let awaited = std::mem::take(&mut self.told_is_awaited);
        if self.role != StateRole::Leader || self.is_single() || committed <= self.told {
            self.tell_at = None;
            return false;
        }
        let at = *self.tell_at.get_or_insert(now + TELL_WITHIN);
        if now < at && !awaited {
            return false;
        }
        self.node.raft.bcast_append();
        (self.told, self.tell_at) = (committed, None);
        true
    }

    fn tick(&mut self) {
        let now = self.now();
        let alone = self.shared.gauges.is_alone();
        // Late ticks are not made up for: time in which this thread did not run is no sign of a dead leader.
        self.next_tick = now + if alone { LONE_TICK } else { TICK };
        if !alone && !self.is_installing() {
            // raft-rs draws the time at random. One draw for each term and election, so that two members that were
            // even once are not so for ever.
            let draw = mix(self.seed ^ self.node.raft.term.rotate_left(32) ^ self.elections);
            self.node.raft.set_randomized_election_timeout(ELECTION_TICKS + (draw % ELECTION_TICKS as u64) as usize);
            let campaigned = self.node.raft.promotable() && self.node.raft.state != StateRole::Leader;
            if self.node.tick() && campaigned {
                self.elections += 1;
            }
        }
        self.proposals.expire(now);
        self.readers.expire(now);
        self.look_around(now);
        if self.role == StateRole::Leader && self.stop.is_none() {
            let (now, again) = (now.as_millis() as u64, LEASE_RETRY.as_millis() as u64);
            let ended = self.leases.expired(now, LEASES_A_TICK, again);
            let at = self.now.unix_ms;
            let revocations = ended.into_iter().map(|id| revocation(id, at)).collect();
            self.propose(revocations);
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        let mut offers = false;
        for message in messages {
            if message.get_msg_type() != MessageType::MsgSnapshot {
                self.transport.send(message);
                continue;
            }
            offers = true;
            // Raft holds its entries back until it hears how a snapshot went.
            match self.node.store().offered(message.get_snapshot().get_metadata().index) {
                Some(image) => {
                    self.transport.send_snapshot(OutgoingSnapshot::new(message, image, self.inbox.clone()));
                }
                None => self.node.report_snapshot(message.to, SnapshotStatus::Failure),
            }
        }
        if offers {
            self.node.mut_store().forget_offered();
        }
    }

    /// Works off every Ready, in the order that safety asks for: a leader's messages may leave before its own sync,
    /// anyone else's only after; entries are readable before raft is told that they are on their way to disk.
    fn handle_ready(&mut self) -> Result<(), Error> {
        self.apply_committed()?;
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
            self.committed.extend(ready.take_committed_entries());
            self.apply_committed()?;
            if now_leading {
                self.start_leases();
            }
            write.entries = ready.take_entries();
            self.node.mut_store().append(&write.entries);
            if let Some(hard_state) = ready.hs() {
                self.node.mut_store().hard_state = hard_state.clone();
            }
            let number = ready.number();
            if ready.must_sync() || !self.committed.is_empty() {
                write.hard_state = Some(self.node.store().hard_state.clone());
                self.writes.push_back((number, self.node.store().hard_state.clone()));
            }
            let mut after = ready.take_persisted_messages();
            // A leader need not wait for its own disk, but for the note that it leads: one that elected itself alone, and
            // restarts without it, would lead the same term once more and send other entries under the same numbers.
            let messages = if self.durable.term < self.node.raft.term {
                after.extend(messages);
                Vec::new()
            } else {
                messages
            };
            let in_order = !after.is_empty() || write != Write::default();
            self.node.advance_append_async(ready);
            // The others' way to their disks is longer.
            self.send(messages);
            if in_order {
                self.writing.push_back((number, self.now()));
                self.log.push_quietly(writer::Job::Write { number, write, messages: after, image: received });
            }
        }
        self.after_readies();
        Ok(())
    }

    fn after_readies(&mut self) {
        let log = &self.node.raft.raft_log;
        let applied = self.applied.min(log.persisted).min(log.committed);
        if applied > log.applied {
            self.node.advance_apply_to(applied);
            let keep = if self.node.raft.prs().iter().count() == 1 { 0 } else { self.sizes.tail };
            self.node.mut_store().compact(applied, keep);
        }
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader && raft.apply_to_current_term();
        // Learners count: they have no vote, but must be sent what got lost.
        let single = self.is_single();
        let alone = leads && single && self.applied >= raft.raft_log.committed;
        self.shared.gauges.role(Role { leader: self.leader, term: raft.term, alone });
        self.tell_group();
        // Whoever finds on the way through its log that it has fellows cannot wait for being elected.
        if (alone || !single)
            && let Some(opened) = self.opened.take()
        {
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
        let state = State::new(image.clone());
        self.shared.gauges.fill(&state);
        *self.shared.state_mut() = state;
        self.shared.hub.reset(revision);
        // Not replaced by the image: that is not on the disk yet, and a checkpoint must not be ahead of the log.
        self.keeper.forget();
        self.applied = position.index;
        // All of it is in the snapshot.
        self.committed.clear();
        Ok(image)
    }
}

fn revocation(id: LeaseId, at: u64) -> Proposed {
    let data = command::encode(&Proposal { at, command: Command::LeaseRevoke { id } });
    let (answer, _) = oneshot::channel();
    Proposed { data, waiter: Waiter { operation: "lease revoke", answer, _permit: None } }
}

/// A member and a number of its own: what marks an entry as one that somebody waits for there.
const CONTEXT_BYTES: usize = 16;

fn put_context(out: &mut impl BufMut, member: u64, number: u64) {
    out.put_u64_le(member);
    out.put_u64_le(number);
}

/// Spreads a number's bits over the whole range.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}
