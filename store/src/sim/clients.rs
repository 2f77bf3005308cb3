//! Clients that write, read and watch at random, and remember what they were told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    faults::Sabotage,
    world::{Due, MS, SECOND, Summary, Time, World},
};
use crate::{
    Batch, Compare, Error, KeyValue, LeaseId, Op, Revision, Txn, TxnResult, WatchError, Watcher,
    command::{self, Command, Proposal},
    disk::memory::faults::Dice,
    mvcc::Answer,
    raft::{Input, Proposed, Waiter},
    shared::Shared,
};

const KEYS: u64 = 5;

/// When something happened, as the number of what had happened before.
pub type Moment = u64;

/// One thing that a client asked for.
#[derive(Debug)]
pub struct Record {
    pub begun: Moment,
    pub what: What,
    /// None while the answer is not there, or when it will never be.
    pub outcome: Option<(Moment, Outcome)>,
}

#[derive(Debug)]
pub enum What {
    Txn(Txn),
    Read {
        linearizable: bool,
    },
    /// Leases and compactions: they change no key by themselves.
    Other,
}

#[derive(Debug)]
pub enum Outcome {
    Txn(TxnResult),
    Seen {
        revision: Revision,
        items: Vec<Arc<KeyValue>>,
    },
    /// It was said that nothing was written.
    Refused,
    Done,
}

/// What one watcher was told, from one start on.
#[derive(Debug)]
pub struct WatchLog {
    /// The first revision that it asked for.
    pub from: Revision,
    pub told: Vec<Told>,
}

#[derive(Debug)]
pub enum Told {
    Batch(Arc<Batch>),
    /// Everything up to here has been told.
    Progress(Revision),
}

pub struct Clients {
    clients: Vec<Client>,
    watchers: Vec<Watching>,
    history: Vec<Record>,
    logs: Vec<WatchLog>,
    moment: Moment,
    values: u64,
    newest_acknowledged: Revision,
}

#[derive(Default)]
struct Client {
    running: Option<Running>,
    /// When it acts again.
    due: Time,
    seen: BTreeMap<Bytes, Revision>,
    lease: Option<LeaseId>,
}

struct Running {
    record: usize,
    shared: Arc<Shared>,
    waits: Waits,
}

enum Waits {
    Answer(oneshot::Receiver<Result<Answer, Error>>),
    Confirmation(oneshot::Receiver<Result<(), Error>>),
}

#[derive(Default)]
struct Watching {
    watcher: Option<(u64, u64, Watcher)>,
    log: Option<usize>,
    next: Revision,
}

impl Clients {
    pub fn new(dice: &mut Dice) -> Clients {
        let count = 2 + dice.roll(7) as usize;
        Clients {
            clients: (0..count).map(|_| Client { due: SECOND, ..Client::default() }).collect(),
            watchers: (0..3).map(|_| Watching { next: 2, ..Watching::default() }).collect(),
            history: Vec::new(),
            logs: Vec::new(),
            moment: 0,
            values: 0,
            newest_acknowledged: 1,
        }
    }

    pub fn count(&self) -> usize {
        self.clients.len()
    }

    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    pub fn history(&self) -> &[Record] {
        &self.history
    }

    pub fn watches(&self) -> &[WatchLog] {
        &self.logs
    }

    pub fn are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.running.is_none())
    }

    pub fn newest_acknowledged(&self) -> Revision {
        self.newest_acknowledged
    }

    pub fn count_into(&self, summary: &mut Summary) {
        for record in &self.history {
            match &record.outcome {
                Some((_, Outcome::Txn(_))) => summary.acknowledged += 1,
                Some((_, Outcome::Seen { .. })) => summary.reads += 1,
                Some((_, Outcome::Refused | Outcome::Done)) => {}
                None => summary.unknown += 1,
            }
        }
        let batches = self.logs.iter().flat_map(|log| &log.told).filter(|told| matches!(told, Told::Batch(_)));
        summary.watched += batches.count() as u64;
    }

    fn begin(&mut self, what: What) -> usize {
        self.moment += 1;
        self.history.push(Record { begun: self.moment, what, outcome: None });
        self.history.len() - 1
    }

    fn end(&mut self, record: usize, outcome: Outcome) {
        self.moment += 1;
        if let Outcome::Txn(TxnResult { revision, .. }) = &outcome {
            self.newest_acknowledged = self.newest_acknowledged.max(*revision);
        }
        self.history[record].outcome = Some((self.moment, outcome));
    }

    fn value(&mut self) -> Bytes {
        self.values += 1;
        // Each value is written once, so that whoever reads it knows who wrote it; some are long.
        let length = if self.values.is_multiple_of(17) { 900 } else { 6 };
        format!("{:0length$}", self.values).into()
    }

    /// A transaction such as clients make.
    fn txn(&mut self, n: usize, dice: &mut Dice) -> Txn {
        let key = |dice: &mut Dice| Bytes::from(format!("k{}", dice.roll(KEYS)));
        let put = |key, value, lease| Op::Put { key, value, lease };
        let (first, second) = (key(dice), key(dice));
        let seen = self.clients[n].seen.get(&first).copied().unwrap_or(0);
        let compare = Compare::ModRevision { key: first.clone(), equals: seen };
        let mut txn = Txn::default();
        match dice.roll(10) {
            0..=2 => txn.then.push(put(first, self.value(), None)),
            3 => txn.then.push(put(first, self.value(), self.clients[n].lease)),
            4 => txn.then.push(Op::Delete { start: first, end: None }),
            5 => txn.then.push(Op::Delete { start: first, end: Some(Bytes::from_static(b"k4")) }),
            6 | 7 => {
                txn.compare.push(compare);
                txn.then.push(put(first.clone(), self.value(), None));
                txn.otherwise.push(Op::Range { start: first, end: None });
            }
            8 => {
                txn.compare.push(compare);
                txn.then.push(Op::Delete { start: first, end: None });
                txn.otherwise.push(Op::Range { start: Bytes::from_static(b"k"), end: Some(Bytes::from_static(b"l")) });
            }
            _ => {
                txn.then.push(put(first.clone(), self.value(), None));
                if first != second {
                    txn.then.push(put(second, self.value(), None));
                }
                txn.then.push(Op::Range { start: Bytes::from_static(b"k"), end: Some(Bytes::from_static(b"l")) });
            }
        }
        txn
    }
}

impl World {
    /// A client's turn: what has taken too long is given up, and something new begun.
    pub fn client(&mut self, n: usize) {
        if self.clients.clients[n].due != self.now {
            return;
        }
        self.clients.clients[n].running = None;
        let alive: Vec<u64> = self.slots.iter().filter(|(_, slot)| slot.live.is_some()).map(|(&id, _)| id).collect();
        let patience = 200 * MS + self.dice.roll(4 * SECOND);
        self.again(n, patience);
        if alive.is_empty() {
            return;
        }
        let id = alive[self.dice.roll(alive.len() as u64) as usize];
        let Some(live) = self.slots[&id].live.as_ref() else { return };
        let (shared, inbox) = (live.shared.clone(), live.inbox.clone());
        match self.dice.roll(20) {
            0..=3 => {
                let record = self.clients.begin(What::Read { linearizable: true });
                let unsafe_ = self.plan.sabotage == Some(Sabotage::ReadWithoutConfirming);
                if shared.gauges.is_alone() || unsafe_ {
                    return self.saw(n, record, &shared);
                }
                let (reader, confirmed) = oneshot::channel();
                inbox.push(Input::Read(reader));
                self.clients.clients[n].running =
                    Some(Running { record, shared, waits: Waits::Confirmation(confirmed) });
            }
            4 => {
                let record = self.clients.begin(What::Read { linearizable: false });
                return self.saw(n, record, &shared);
            }
            choice => {
                let (what, command) = self.command(n, choice);
                let record = self.clients.begin(what);
                let data = command::encode(&Proposal { at: self.now / 1000, command });
                let (answer, answered) = oneshot::channel();
                inbox.push(Input::Propose(Proposed {
                    data,
                    waiter: Waiter { operation: "simulated", answer, _permit: None },
                }));
                self.clients.clients[n].running = Some(Running { record, shared, waits: Waits::Answer(answered) });
            }
        }
        self.wake(id);
    }

    fn command(&mut self, n: usize, choice: u64) -> (What, Command) {
        let lease = self.clients.clients[n].lease;
        let command = match (choice, lease) {
            (5, None) => Command::LeaseGrant { id: None, ttl: Duration::from_millis(200 + self.dice.roll(5000)) },
            (5, Some(id)) => Command::LeaseKeepAlive { id },
            (6, Some(id)) => Command::LeaseRevoke { id },
            (7, _) => Command::Compact { revision: self.archive.newest().saturating_sub(self.dice.roll(60)) },
            _ => {
                let txn = self.clients.txn(n, &mut self.dice);
                return (What::Txn(txn.clone()), Command::Txn(txn));
            }
        };
        (What::Other, command)
    }

    fn again(&mut self, n: usize, delay: Time) {
        self.clients.clients[n].due = self.now + delay;
        self.after(delay, Due::Client(n));
    }

    /// A read is answered by the state as it is now.
    fn saw(&mut self, n: usize, record: usize, shared: &Shared) {
        let snapshot = shared.state().snapshot();
        let items: Vec<Arc<KeyValue>> = snapshot.range(b""..b"").cloned().collect();
        self.clients.clients[n].seen = items.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        self.clients.end(record, Outcome::Seen { revision: snapshot.revision(), items });
        self.think(n);
    }

    fn think(&mut self, n: usize) {
        let pause = 1 + self.dice.roll(150 * MS);
        self.again(n, pause);
    }

    /// Looks who has been answered.
    pub fn settle_clients(&mut self) {
        for n in 0..self.clients.count() {
            let Some(Running { record, shared, mut waits }) = self.clients.clients[n].running.take() else { continue };
            let outcome = match &mut waits {
                Waits::Answer(answer) => match answer.try_recv() {
                    Err(TryRecvError::Empty) => None,
                    Ok(Ok(Answer::Txn(result))) => Some(Some(Outcome::Txn(result))),
                    Ok(Ok(Answer::Lease { id, .. })) => {
                        self.clients.clients[n].lease = Some(id);
                        Some(Some(Outcome::Done))
                    }
                    Ok(Ok(Answer::Done)) => Some(Some(Outcome::Done)),
                    Ok(Err(Error::LeaseNotFound { .. })) => {
                        self.clients.clients[n].lease = None;
                        Some(Some(Outcome::Refused))
                    }
                    Ok(Err(Error::Unavailable | Error::Compacted { .. } | Error::Future { .. })) => {
                        Some(Some(Outcome::Refused))
                    }
                    // It may have been carried out, or may yet be.
                    Ok(Err(_)) | Err(TryRecvError::Closed) => Some(None),
                },
                Waits::Confirmation(confirmed) => match confirmed.try_recv() {
                    Err(TryRecvError::Empty) => None,
                    Ok(Ok(())) => {
                        self.saw(n, record, &shared);
                        continue;
                    }
                    Ok(Err(_)) | Err(TryRecvError::Closed) => Some(None),
                },
            };
            match outcome {
                None => self.clients.clients[n].running = Some(Running { record, shared, waits }),
                Some(known) => {
                    if let Some(outcome) = known {
                        self.clients.end(record, outcome);
                    }
                    self.think(n);
                }
            }
        }
    }

    /// A watcher's turn.
    pub fn watch(&mut self, n: usize) -> Result<(), String> {
        let pause = 1 + self.dice.roll(400 * MS);
        self.after(pause, Due::Watcher(n));
        self.look(n)
    }

    fn look(&mut self, n: usize) -> Result<(), String> {
        let alive: Vec<(u64, u64)> =
            self.slots.iter().filter(|(_, slot)| slot.live.is_some()).map(|(&id, slot)| (id, slot.life)).collect();
        let watching = &mut self.clients.watchers[n];
        watching.watcher.take_if(|(id, life, _)| !alive.contains(&(*id, *life)));
        if watching.watcher.is_none() {
            let Some(&(id, life)) = alive.get(self.dice.roll(alive.len().max(1) as u64) as usize) else {
                return Ok(());
            };
            let Some(live) = self.slots[&id].live.as_ref() else { return Ok(()) };
            let oldest = live.shared.state().oldest_event();
            if watching.next < oldest {
                (watching.next, watching.log) = (oldest, None);
            }
            let watcher = Watcher::new(live.shared.clone(), &Bytes::new(), &Bytes::new(), watching.next);
            watching.watcher = Some((id, life, watcher));
        }
        let logs = &mut self.clients.logs;
        let log = *watching.log.get_or_insert_with(|| {
            logs.push(WatchLog { from: watching.next, told: Vec::new() });
            logs.len() - 1
        });
        let Some((_, _, watcher)) = watching.watcher.as_mut() else { return Ok(()) };
        loop {
            match watcher.try_next() {
                Ok(Some(batch)) => {
                    watching.next = batch.revision + 1;
                    if self.plan.sabotage != Some(Sabotage::SkipWatchedBatch) || self.dice.roll(50) > 0 {
                        logs[log].told.push(Told::Batch(batch));
                    }
                }
                Ok(None) => {
                    let progress = watcher.progress();
                    logs[log].told.push(Told::Progress(progress));
                    watching.next = watching.next.max(progress + 1);
                    return Ok(());
                }
                Err(error) => {
                    watching.watcher = None;
                    if matches!(error, WatchError::Slow { .. } | WatchError::Compacted { .. }) {
                        watching.log = None;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Whoever still watches is told everything in the end.
    pub fn finish_watchers(&mut self) -> Result<(), String> {
        for n in 0..self.clients.watchers() {
            // A watch that ends is begun anew at once; the second cannot end, as nothing happens any more.
            self.look(n)?;
            self.look(n)?;
            let (told, newest) = (self.clients.watchers[n].next, self.archive.newest());
            if told <= newest {
                return Err(format!("watcher {n} waits for revision {told}, and the newest is {newest}"));
            }
        }
        Ok(())
    }
}
