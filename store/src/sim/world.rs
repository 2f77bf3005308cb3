//! Lets time pass: what is due next happens, and what follows from it is put where it is due.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use raft::eraftpb::{Message, MessageType};

use super::{
    check::{self, Archive},
    clients::Clients,
    faults::Sabotage,
};
use crate::{
    Error, Revision,
    disk::memory::{MemoryDisk, faults::Dice},
    mvcc::{Limits, Members, State},
    raft::{
        Input, Parts, Queue, Sizes, Transport,
        driver::{Driver, Now, Turn},
        keeper::{self, Keeper},
        recover::{Member, assemble},
        writer::{self, Writer},
    },
    shared::Shared,
    wire::OutgoingSnapshot,
};

/// Microseconds since the beginning.
pub type Time = u64;
pub const MS: Time = 1000;
pub const SECOND: Time = 1000 * MS;
/// How long clients work and things break, and how long the group then has to come to rest.
const TROUBLE: Time = 40 * SECOND;
const REST: Time = 60 * SECOND;
/// Unix time at the beginning.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// What a seed makes of a run.
pub struct Plan {
    pub seed: u64,
    pub members: u64,
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    pub fn of(seed: u64, sabotage: Option<Sabotage>) -> Plan {
        let members = [1, 3, 3, 3, 5][Dice(seed ^ 0xd1ce).roll(5) as usize];
        Plan { seed, members, sabotage }
    }
}

/// What happened in a run, for a person who wants to know whether anything did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub acknowledged: u64,
    pub unknown: u64,
    pub reads: u64,
    pub revisions: u64,
    pub watched: u64,
    pub crashes: u64,
    pub leaders: u64,
    pub snapshots: u64,
    pub changes: u64,
}

impl Summary {
    pub fn add(&mut self, other: &Summary) {
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.revisions += other.revisions;
        self.watched += other.watched;
        self.crashes += other.crashes;
        self.leaders += other.leaders;
        self.snapshots += other.snapshots;
        self.changes += other.changes;
    }
}

#[derive(Debug)]
pub enum Due {
    Start(u64),
    Turn {
        id: u64,
        life: u64,
    },
    /// The disk has taken what the log's thread, or the keeper's, was given.
    Written {
        id: u64,
        life: u64,
    },
    Kept {
        id: u64,
        life: u64,
    },
    Deliver(Box<Message>),
    Client(usize),
    Watcher(usize),
    Fault,
    Mend(super::faults::Mend),
}

/// One member: its disk, and the process that may be running on it.
pub struct Slot {
    /// It was there when the group began; the others are added to it.
    founder: bool,
    pub disk: MemoryDisk,
    pub live: Option<Live>,
    pub life: u64,
    /// The process is stopped until then, as by a signal or a hypervisor.
    pub paused: Time,
    pub disk_delay: Time,
    pub clock_ms: i64,
}

impl Slot {
    pub fn new(founder: bool) -> Slot {
        Slot { founder, disk: MemoryDisk::default(), live: None, life: 0, paused: 0, disk_delay: MS, clock_ms: 0 }
    }
}

pub struct Live {
    pub driver: Driver,
    pub writer: Writer,
    pub keeper: Keeper,
    pub inbox: Arc<Queue<Input>>,
    pub shared: Arc<Shared>,
    started: Time,
    next_turn: Time,
    /// What the disk is busy with.
    pub writing: Option<Vec<writer::Job>>,
    pub keeping: Option<Vec<keeper::Job>>,
    archived: Revision,
    term: u64,
}

pub struct World {
    pub plan: Plan,
    pub dice: Dice,
    pub now: Time,
    due: BTreeMap<(Time, u64), Due>,
    scheduled: u64,
    pub slots: BTreeMap<u64, Slot>,
    wires: Arc<Mutex<Vec<Message>>>,
    /// Messages from the first to the second do not arrive.
    pub cut: BTreeSet<(u64, u64)>,
    /// Of 100 messages.
    pub lost: u64,
    pub doubled: u64,
    pub slowest: Time,
    pub archive: Archive,
    /// The state at an index of the log, as the first member that got there had it.
    digests: HashMap<u64, u64>,
    /// Of each term.
    leaders: BTreeMap<u64, u64>,
    /// Who belongs to the group, by the longest log that was applied, and who ever did.
    pub members: (u64, Members),
    /// An id is never used again.
    pub newest_id: u64,
    ever: BTreeSet<u64>,
    pub clients: Clients,
    pub summary: Summary,
}

/// A member's end of the wires.
struct Plug(Arc<Mutex<Vec<Message>>>);

impl Transport for Plug {
    fn send(&mut self, message: Message) {
        self.0.lock().unwrap().push(message);
    }

    fn send_snapshot(&mut self, snapshot: OutgoingSnapshot) {
        self.send(snapshot.into_message());
    }
}

impl World {
    pub fn new(plan: Plan) -> World {
        let mut dice = Dice(plan.seed);
        let slots = (1..=plan.members).map(|id| (id, Slot::new(true))).collect();
        let (lost, doubled) = (dice.roll(3) * dice.roll(10), dice.roll(2) * dice.roll(10));
        World {
            clients: Clients::new(&mut dice),
            dice,
            now: 0,
            due: BTreeMap::new(),
            scheduled: 0,
            slots,
            wires: Arc::default(),
            cut: BTreeSet::new(),
            lost,
            doubled,
            slowest: 5 * MS,
            archive: Archive::default(),
            digests: HashMap::new(),
            leaders: BTreeMap::new(),
            members: (0, Members::default()),
            newest_id: plan.members,
            ever: BTreeSet::new(),
            summary: Summary::default(),
            plan,
        }
    }

    pub fn run(mut self) -> Result<Summary, String> {
        for id in 1..=self.plan.members {
            self.after(0, Due::Start(id));
        }
        for client in 0..self.clients.count() {
            self.after(SECOND, Due::Client(client));
        }
        for watcher in 0..self.clients.watchers() {
            self.after(SECOND, Due::Watcher(watcher));
        }
        self.after(2 * SECOND, Due::Fault);
        while self.now < TROUBLE {
            self.step()?;
        }
        self.mend_everything();
        let deadline = self.now + REST;
        while !self.is_at_rest() {
            if self.now > deadline {
                return Err(format!("the group did not come to rest: {}", self.describe()));
            }
            self.step()?;
        }
        // Whoever was removed, or never came to belong to the group, may wait for ever.
        let members = &self.members.1;
        self.slots.retain(|id, _| members.voters.contains(id) || members.learners.contains(id));
        self.finish_watchers()?;
        self.summary.revisions = self.archive.newest();
        self.summary.leaders = self.leaders.len() as u64;
        self.clients.count_into(&mut self.summary);
        check::history(&self.archive, self.clients.history())?;
        check::watches(&self.archive, self.clients.watches())?;
        Ok(self.summary)
    }

    pub fn after(&mut self, delay: Time, due: Due) {
        self.scheduled += 1;
        self.due.insert((self.now + delay, self.scheduled), due);
    }

    fn step(&mut self) -> Result<(), String> {
        let ((at, _), due) = self.due.pop_first().ok_or("nothing is due any more")?;
        self.now = at;
        match due {
            Due::Start(id) => self.start(id),
            Due::Turn { id, life } => self.turn(id, life),
            Due::Written { id, life } => {
                if let Some(live) = self.live(id, life)
                    && let Some(jobs) = live.writing.take()
                {
                    let _ = live.writer.turn(jobs);
                    self.wake(id);
                }
                Ok(())
            }
            Due::Kept { id, life } => {
                if let Some(live) = self.live(id, life)
                    && let Some(jobs) = live.keeping.take()
                {
                    self.summary.snapshots +=
                        jobs.iter().filter(|job| matches!(job, keeper::Job::Snapshot { .. })).count() as u64;
                    if let Some(live) = self.live(id, life) {
                        let _ = live.keeper.turn(jobs);
                    }
                    self.wake(id);
                }
                Ok(())
            }
            Due::Deliver(message) => {
                let to = message.to;
                if !self.cut.contains(&(message.from, to))
                    && let Some(live) = self.slots.get_mut(&to).and_then(|slot| slot.live.as_mut())
                {
                    live.inbox.push(Input::Message(message));
                    self.wake(to);
                }
                Ok(())
            }
            Due::Client(client) => {
                if self.now < TROUBLE {
                    self.client(client);
                }
                Ok(())
            }
            Due::Watcher(watcher) => self.watch(watcher),
            Due::Fault => {
                if self.now < TROUBLE {
                    self.fault();
                }
                Ok(())
            }
            Due::Mend(mend) => {
                self.mend(mend);
                Ok(())
            }
        }
    }

    fn live(&mut self, id: u64, life: u64) -> Option<&mut Live> {
        self.slots.get_mut(&id).filter(|slot| slot.life == life)?.live.as_mut()
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let seed = self.dice.roll(u64::MAX >> 16) << 8 | id;
        let (members, now, wires) = (self.plan.members, self.now, self.wires.clone());
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.live.is_none()) else { return Ok(()) };
        let limits = Limits { revisions: 40, age_ms: u64::MAX / 8, bytes: 1 << 20 };
        let parts = Parts {
            voters: if slot.founder { (1..=members).collect() } else { Vec::new() },
            transport: Box::new(Plug(wires)),
            sizes: Sizes { segment: 16 << 10, cut_after: 16 << 10, tail: 6 << 10 },
            ..Parts::on_disk(id, limits, Arc::new(slot.disk.clone()))
        };
        let Member { mut driver, writer, keeper, started } = match assemble(parts, seed) {
            Ok(member) => member,
            Err(Error::Disk { .. }) if slot.disk.is_failing() => {
                self.power_cut(id);
                return Ok(());
            }
            Err(error) => return Err(format!("member {id} cannot start: {error}")),
        };
        driver.begin().map_err(|error| format!("member {id} cannot begin: {error}"))?;
        let archived = started.shared.state().oldest();
        slot.life += 1;
        slot.live = Some(Live {
            driver,
            writer,
            keeper,
            inbox: started.inbox,
            shared: started.shared,
            started: now,
            next_turn: now,
            writing: None,
            keeping: None,
            archived,
            term: 0,
        });
        let life = slot.life;
        self.after(0, Due::Turn { id, life });
        Ok(())
    }

    /// There is something in a member's inbox.
    pub fn wake(&mut self, id: u64) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let life = slot.life;
        let Some(live) = slot.live.as_mut().filter(|live| live.next_turn > now) else { return };
        live.next_turn = now;
        self.after(0, Due::Turn { id, life });
    }

    fn turn(&mut self, id: u64, life: u64) -> Result<(), String> {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.life == life) else { return Ok(()) };
        let Some(live) = slot.live.as_mut().filter(|live| live.next_turn == now) else { return Ok(()) };
        if slot.paused > now {
            live.next_turn = slot.paused;
            let pause = slot.paused - now;
            self.after(pause, Due::Turn { id, life });
            return Ok(());
        }
        let time = Now {
            since_start: Duration::from_micros(now - live.started),
            unix_ms: (EPOCH_MS + now / 1000).saturating_add_signed(slot.clock_ms),
        };
        let inputs = live.inbox.take(Duration::ZERO);
        match live.driver.turn(time, inputs) {
            Ok(Turn::Wait(wait)) => {
                let wait = wait.as_micros() as Time + 1;
                live.next_turn = now + wait;
                self.after(wait, Due::Turn { id, life });
            }
            Ok(Turn::Stopped) => return Err(format!("member {id} stopped, and nobody asked it to")),
            Err(error) => return self.ended(id, &error),
        }
        self.hand_out(id, life);
        self.archive(id)?;
        self.settle_clients();
        self.send();
        Ok(())
    }

    /// A process ends by itself where its disk has failed, and for no other reason.
    fn ended(&mut self, id: u64, error: &Error) -> Result<(), String> {
        if !matches!(error, Error::Disk { .. }) {
            return Err(format!("member {id} ended: {error}"));
        }
        self.send();
        self.power_cut(id);
        Ok(())
    }

    /// Gives the disk what the driver has left for it.
    fn hand_out(&mut self, id: u64, life: u64) {
        let early = self.plan.sabotage == Some(Sabotage::AcknowledgeBeforeSync);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let delay = slot.disk_delay / 2 + self.dice.roll(slot.disk_delay + 1);
        let Some(live) = slot.live.as_mut() else { return };
        let (mut write, mut keep) = (false, false);
        if live.writing.is_none() {
            let mut jobs = live.writer.jobs.take(Duration::ZERO);
            write = !jobs.is_empty();
            if early {
                super::faults::acknowledge_early(&mut jobs, &live.inbox);
            }
            live.writing = write.then_some(jobs);
        }
        if live.keeping.is_none() {
            let jobs = live.keeper.jobs.take(Duration::ZERO);
            keep = !jobs.is_empty();
            live.keeping = keep.then_some(jobs);
        }
        if write {
            self.after(delay, Due::Written { id, life });
        }
        if keep {
            self.after(2 * delay, Due::Kept { id, life });
        }
        if early && write {
            self.wake(id);
        }
    }

    fn send(&mut self) {
        let messages = std::mem::take(&mut *self.wires.lock().unwrap());
        for mut message in messages {
            self.tamper(&mut message);
            if self.dice.roll(100) < self.lost {
                continue;
            }
            // A proposal that a follower passes on must not be doubled; no wire of ours does.
            let doubled = match (message.get_msg_type(), self.plan.sabotage) {
                (MessageType::MsgPropose, Some(Sabotage::RepeatProposals)) => 50,
                (MessageType::MsgPropose, _) => 0,
                _ => self.doubled,
            };
            if self.dice.roll(100) < doubled {
                let delay = self.delay();
                self.after(delay, Due::Deliver(Box::new(message.clone())));
            }
            let delay = self.delay();
            self.after(delay, Due::Deliver(Box::new(message)));
        }
    }

    /// Most messages are quick, and some very late, so that they overtake each other.
    fn delay(&mut self) -> Time {
        let late = self.dice.roll(20) == 0;
        100 + self.dice.roll(if late { 20 * self.slowest } else { self.slowest })
    }

    /// Notes what a member has applied, and compares it with what others had at the same place.
    fn archive(&mut self, id: u64) -> Result<(), String> {
        let Some(live) = self.slots.get_mut(&id).and_then(|slot| slot.live.as_mut()) else { return Ok(()) };
        let state = live.shared.state();
        live.archived = live.archived.max(state.oldest());
        for batch in state.batches_after(live.archived) {
            self.archive.add(batch).map_err(|what| format!("member {id}: {what}"))?;
        }
        if state.revision() < live.archived {
            return Err(format!("member {id} went back from revision {} to {}", live.archived, state.revision()));
        }
        live.archived = state.revision();
        let (index, digest) = (state.position().index, digest(&state));
        if index > self.members.0 {
            self.members = (index, state.members().clone());
            self.ever.extend(state.members().voters.iter().chain(&state.members().learners));
        }
        drop(state);
        if let Some(other) = self.digests.insert(index, digest)
            && other != digest
        {
            return Err(format!("member {id} has another state at index {index} than another member had"));
        }
        let (leader, term) = (live.shared.gauges.leader(), live.shared.gauges.term());
        if leader == id && term != live.term {
            live.term = term;
            // One that is alone may be elected twice in a term, where it did not live to note the first time.
            if let Some(other) = self.leaders.insert(term, id).filter(|&other| other != id) {
                return Err(format!("term {term} has two leaders, {other} and {id}"));
            }
        }
        Ok(())
    }

    /// Whoever has been removed from the group.
    pub fn removed(&self) -> Vec<u64> {
        let members = &self.members.1;
        let gone = |id: &&u64| !members.voters.contains(id) && !members.learners.contains(id);
        self.ever.iter().filter(gone).copied().collect()
    }

    /// Whether most of the voters have applied what made the group what it is.
    pub fn those_who_stay_know(&self) -> bool {
        let (index, members) = &self.members;
        let knows = |id: &&u64| {
            let live = self.slots.get(id).and_then(|slot| slot.live.as_ref());
            live.is_some_and(|live| live.shared.state().position().index >= *index)
        };
        members.voters.iter().filter(knows).count() * 2 > members.voters.len()
    }

    fn is_at_rest(&mut self) -> bool {
        self.settle_clients();
        let members = &self.members.1;
        let mut places = members.voters.iter().chain(&members.learners).map(|id| {
            let live = self.slots.get(id)?.live.as_ref()?;
            let idle = live.writing.is_none() && live.keeping.is_none();
            let (position, revision) = (live.shared.state().position(), live.shared.state().revision());
            idle.then(|| (position, revision, live.shared.gauges.leader()))
        });
        let first = places.next().flatten();
        // All that anybody ever had is there.
        first.is_some_and(|(_, revision, leader)| leader != 0 && revision == self.archive.newest())
            && places.all(|place| place == first)
            && self.clients.are_idle()
            && self.archive.newest() >= self.clients.newest_acknowledged()
    }

    fn describe(&self) -> String {
        let slots = self.slots.iter().map(|(id, slot)| match &slot.live {
            Some(live) => format!(
                "{id}: {:?}, revision {}, leader {}, writing: {}, keeping: {}",
                live.shared.state().position(),
                live.shared.state().revision(),
                live.shared.gauges.leader(),
                live.writing.is_some(),
                live.keeping.is_some()
            ),
            None => format!("{id}: down"),
        });
        let (members, newest) = (&self.members.1, self.archive.newest());
        let idle = self.clients.are_idle();
        format!("{}; {members:?}; newest revision {newest}, clients idle: {idle}", slots.collect::<Vec<_>>().join("; "))
    }
}

/// A number that depends on everything in a state that must be the same everywhere.
fn digest(state: &State) -> u64 {
    let mut crc = crc32fast::Hasher::new();
    let mut sum = state.revision().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for kv in state.snapshot().range(b""..b"") {
        crc.update(&kv.key);
        crc.update(&kv.value);
        for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease.map_or(0, |lease| lease.0)] {
            sum = (sum ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            sum ^= sum >> 29;
        }
    }
    for (id, ttl) in state.leases() {
        sum = (sum ^ id.0 ^ ttl.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    sum ^ u64::from(crc.finalize())
}
