//! The store as its callers see it.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::raft::eraftpb::Message;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::{
    Error, Group, LeaseId, LeaseInfo, MemberChange, Revision, Snapshot, Txn, TxnResult, Watcher, Wire, WireError,
    check::check,
    command::{self, Command, Proposal},
    disk::{Disk, RealDisk, memory::MemoryDisk},
    log::failed,
    members,
    mvcc::{Answer, Image, Limits, Refusal},
    quota::{self, Fill, Verdict},
    raft::{
        self, Input, NoPeers, Parts, Proposed, Queue, Runner, Sizes, Started, Transport, UNCOMMITTED_BYTES, Waiter,
    },
    shared::Shared,
    wire::{self, OnWire},
};

/// The largest transaction accepted, keys and values and all.
const MAX_TXN_BYTES: usize = 8 << 20;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the store owns lies below it.
    pub dir: PathBuf,
    /// The number of a group's founder; a member that has joined knows its own. Never 0.
    pub member_id: u64,
    /// How many revisions back can be read and watched from.
    pub history_revisions: usize,
    /// How long back can be read and watched from.
    pub history_age: Duration,
    /// How many bytes may be stored.
    pub quota_bytes: usize,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            member_id: 1,
            history_revisions: 16 * 1024,
            history_age: Duration::from_secs(10 * 60),
            quota_bytes: QUOTA_BYTES,
        }
    }
}

/// As much as etcd's own. All of it is in memory too, so it is no small number.
pub const QUOTA_BYTES: usize = 2 << 30;
/// What the history may hold of values, whatever the other limits say: the last line against memory running out.
const HISTORY_BYTES: usize = 64 << 20;

impl Config {
    fn limits(&self) -> Limits {
        Limits {
            revisions: self.history_revisions.max(1),
            age_ms: self.history_age.as_millis() as u64,
            bytes: HISTORY_BYTES,
        }
    }
}

/// How the store is doing, for metrics and for a person who asks.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest_revision: Revision,
    pub keys: usize,
    pub applied_index: u64,
    pub term: u64,
    pub member_id: u64,
    /// 0 while there is none.
    pub leader_id: u64,
    pub history_bytes: usize,
    /// What keys, values and leases take, and may take.
    pub bytes: u64,
    pub quota_bytes: u64,
    pub log_bytes: u64,
    /// How many different ranges are watched.
    pub watched_ranges: usize,
}

/// A handle; clones share one store, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    runner: Arc<Runner>,
    /// Told of what the thread that hands it in is to carry out itself.
    handed_in: Option<Arc<Notify>>,
    /// Bounds what is under way, in units of `PERMIT_BYTES`.
    permits: Arc<Semaphore>,
    member_id: u64,
    quota: usize,
}

/// Stops the store when the last handle goes.
#[derive(Debug)]
struct Inbox(Arc<Queue<Input>>);

impl Drop for Inbox {
    fn drop(&mut self) {
        self.0.push(Input::Stop(None));
    }
}

impl Store {
    /// Opens the store in `config.dir`, making it where it is not there, for a group of one; returns when it can serve.
    pub async fn open(config: Config) -> Result<Store, Error> {
        Store::open_over(config, Box::new(NoPeers)).await
    }

    /// Opens the store of a group of any size, whose other members are reached over `wire`. A member that is not alone
    /// serves once it hears of a leader, which [`Store::read_barrier`] waits for.
    pub async fn open_in_group(config: Config, wire: Arc<dyn Wire>) -> Result<Store, Error> {
        Store::open_over(config, Box::new(OnWire(wire))).await
    }

    async fn open_over(config: Config, transport: Box<dyn Transport>) -> Result<Store, Error> {
        RealDisk.create_dir_all(&config.dir).map_err(failed("create", &config.dir))?;
        // Who has joined founds nothing.
        let joined = members::joined_as(&config.dir)?;
        Store::open_with(Parts {
            member_id: joined.unwrap_or(config.member_id),
            voters: if joined.is_some() { Vec::new() } else { vec![config.member_id] },
            limits: config.limits(),
            disk: Arc::new(RealDisk),
            log_dir: config.dir.join("log"),
            snapshot_dir: config.dir.join("snapshot"),
            checkpoint: Some(config.dir.join("checkpoint")),
            lock: Some(config.dir.join("lock")),
            transport,
            sizes: Sizes::default(),
            quota: config.quota_bytes,
        })
        .await
    }

    /// A store that lives in memory only, and with this process; for tests. `config.dir` is not used.
    pub async fn in_memory(config: Config) -> Result<Store, Error> {
        let disk = Arc::new(MemoryDisk::default());
        let parts = Parts { quota: config.quota_bytes, ..Parts::on_disk(config.member_id, config.limits(), disk) };
        Store::open_with(parts).await
    }

    pub(crate) async fn open_with(parts: Parts) -> Result<Store, Error> {
        let (member_id, quota) = (parts.member_id, parts.quota);
        // Reading the disk blocks; the caller's threads have other things to do.
        let started = tokio::task::spawn_blocking(move || raft::start(parts)).await;
        let (Started { shared, inbox, ready }, runner) =
            started.map_err(|error| Error::Fatal { reason: error.to_string() })??;
        let permits = Arc::new(Semaphore::new(PERMITS));
        let inbox = Arc::new(Inbox(inbox));
        let store = Store { shared, inbox, runner, handed_in: None, permits, member_id, quota };
        match ready.await {
            Ok(()) => Ok(store),
            Err(_) => Err(store.shared.check_open().err().unwrap_or(Error::Closed)),
        }
    }

    /// A handle for whatever runs on one thread: what comes in by it is carried out there too, by the future beside it, for
    /// as long as that is polled. To wake another thread, and to be woken by it, takes as long as a quick disk does.
    pub(crate) fn on_this_thread(&self) -> (Store, impl Future<Output = Infallible> + Send + use<>) {
        let (handed_in, runner) = (Arc::new(Notify::new()), self.runner.clone());
        let store = Store { handed_in: Some(handed_in.clone()), ..self.clone() };
        let work = async move {
            let mut again = None;
            loop {
                match again {
                    None => handed_in.notified().await,
                    Some(wait) => drop(tokio::time::timeout(wait, handed_in.notified()).await),
                }
                again = runner.lend_hand().await;
            }
        };
        (store, work)
    }

    /// The applied state as it is now: a pointer copy.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.state().snapshot()
    }

    pub(crate) fn image(&self) -> Image {
        self.shared.state().image()
    }

    /// The state as it was at `revision`.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Error> {
        let undo = self.shared.state().undo_to(revision).map_err(Error::from)?;
        Ok(Snapshot { map: undo.undo().map, revision })
    }

    /// Whether this member is the only one and leads: then it knows everything that was acknowledged.
    pub fn is_alone(&self) -> bool {
        self.shared.gauges.is_alone()
    }

    /// After it, `snapshot` has every write acknowledged before the call, by whichever member.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        // What a lone leader has acknowledged it has applied: there is nobody to ask.
        if self.is_alone() {
            return Ok(());
        }
        self.shared.check_open()?;
        let (reader, confirmed) = oneshot::channel();
        self.hand_in(Input::Read(reader));
        confirmed.await.unwrap_or(Err(Error::Closed))
    }

    /// Carries out a transaction, which is proposed at once; resolves when it is durable and applied. Not an `async fn`, which
    /// would keep the whole of it while it waits.
    pub fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnResult, Error>> + Send {
        let begun = self.begin(txn);
        async move {
            let answer = match begun? {
                Begun::UnderWay(answered) => self.answer_to(answered).await?,
                // Rare, and large.
                Begun::Held(verdict, encoded) => Box::pin(self.go_on(verdict, encoded)).await?,
            };
            match answer {
                Answer::Txn(result) => Ok(result),
                Answer::Lease { .. } | Answer::Done => unreachable!("a transaction is answered by its result"),
            }
        }
    }

    /// Proposes a transaction at once, where nothing has to be done or waited for before.
    fn begin(&self, txn: Txn) -> Result<Begun, Error> {
        check(&txn)?;
        self.shared.check_open()?;
        let verdict = self.judge(|| quota::adds(&txn));
        let encoded = encode("transaction", Command::Txn(txn))?;
        match self.permits.clone().try_acquire_many_owned(encoded.permits) {
            Ok(permit) if verdict == Verdict::Proceed => Ok(Begun::UnderWay(self.send(encoded, permit))),
            Ok(_) | Err(_) => Ok(Begun::Held(verdict, encoded)),
        }
    }

    async fn go_on(&self, verdict: Verdict, encoded: Encoded) -> Result<Answer, Error> {
        self.heed(verdict).await?;
        self.propose_encoded(encoded).await
    }

    /// Does what comes before a proposal that changes how full the store is, or refuses it.
    async fn heed(&self, verdict: Verdict) -> Result<(), Error> {
        let fill @ Fill { bytes, quota, .. } = self.fill();
        match verdict {
            Verdict::Proceed => Ok(()),
            Verdict::Refuse => Err(quota::no_space(fill)),
            Verdict::Raise => {
                tracing::error!(bytes, quota, "the store is full: it takes no writes but deletes");
                self.propose("alarm", Command::Txn(quota::raise(self.member_id))).await?;
                Err(quota::no_space(fill))
            }
            Verdict::Clear => {
                tracing::info!(bytes, quota, "the store has room again");
                self.propose("end of the alarm", Command::Txn(quota::clear())).await.map(drop)
            }
        }
    }

    fn fill(&self) -> Fill {
        let gauges = &self.shared.gauges;
        Fill { bytes: gauges.bytes() as usize, quota: self.quota, alarmed: gauges.is_alarmed() }
    }

    /// What a proposal that adds so many bytes at most has to do with the quota.
    fn judge(&self, adds: impl FnOnce() -> usize) -> Verdict {
        let fill = self.fill();
        // Most are far from any limit: then nothing needs to be counted.
        if !fill.alarmed && fill.bytes + MAX_TXN_BYTES <= fill.quota {
            return Verdict::Proceed;
        }
        quota::decide(fill, adds())
    }

    /// Who has raised the alarm that the store is full.
    pub fn alarms(&self) -> Vec<u64> {
        quota::alarms(&self.snapshot())
    }

    /// Watches `start..end` (an empty `end` is no bound) for events with `mod_revision >= from`. `from` may lie in
    /// the future; 0 means from now on.
    pub fn watch(&self, start: Bytes, end: Bytes, from: Revision) -> Result<Watcher, Error> {
        let (revision, oldest) = {
            let state = self.shared.state();
            (state.revision(), state.oldest_event())
        };
        let from = if from == 0 { revision + 1 } else { from };
        if from < oldest {
            return Err(Error::Compacted { requested: from, oldest });
        }
        Ok(Watcher::new(self.shared.clone(), &start, &end, from))
    }

    /// Makes revisions before `revision` unreadable, and forgets them.
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.propose("compaction", Command::Compact { revision }).await.map(drop)
    }

    /// A lease whose keys are deleted when it has not been kept alive for `ttl`.
    pub async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.grant(None, ttl).await
    }

    /// A lease of a name its owner chose, which no other lease may have now.
    pub async fn lease_grant_as(&self, id: LeaseId, ttl: Duration) -> Result<LeaseId, Error> {
        self.grant(Some(id), ttl).await
    }

    async fn grant(&self, id: Option<LeaseId>, ttl: Duration) -> Result<LeaseId, Error> {
        self.heed(self.judge(|| quota::LEASE_BYTES)).await?;
        match self.propose("lease grant", Command::LeaseGrant { id, ttl }).await? {
            Answer::Lease { id, .. } => Ok(id),
            Answer::Txn(_) | Answer::Done => unreachable!("a grant is answered by its lease"),
        }
    }

    /// Answers how long it has been kept for.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<Duration, Error> {
        match self.propose("lease keep-alive", Command::LeaseKeepAlive { id }).await? {
            Answer::Lease { ttl_ms, .. } => Ok(Duration::from_millis(ttl_ms)),
            Answer::Txn(_) | Answer::Done => unreachable!("a keep-alive is answered by its lease"),
        }
    }

    /// A lease as this member knows it.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.shared.state().lease(id, unix_millis())
    }

    /// All the leases that this member knows, in order.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.shared.state().leases().map(|(id, _)| id).collect()
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.propose("lease revoke", Command::LeaseRevoke { id }).await.map(drop)
    }

    /// Changes who belongs to the group; only the leader can. Returns once the change is in force.
    pub async fn change_members(&self, change: MemberChange) -> Result<(), Error> {
        self.shared.check_open()?;
        let (answer, answered) = oneshot::channel();
        self.inbox.0.push(Input::Change { change, answer });
        answered.await.unwrap_or(Err(Error::Closed)).map(drop)
    }

    /// Has another member lead, where this one does and another can; returns when it does, or after two seconds.
    pub async fn step_down(&self) {
        let others = {
            let group = self.shared.group.borrow();
            group.leads() && group.active.iter().any(|id| group.voters.contains(id))
        };
        if others {
            // Whoever is left without a leader elects one.
            self.leave_to(None, |group| group.leader_id != 0 && !group.leads()).await;
        }
    }

    /// Has a certain member lead, where this one does; answers whether it came to that within two seconds.
    pub(crate) async fn hand_over_to(&self, next: u64) -> bool {
        self.leave_to(Some(next), move |group| group.leader_id == next).await
    }

    async fn leave_to(&self, next: Option<u64>, done: impl FnMut(&Group) -> bool) -> bool {
        let mut group = self.group();
        self.inbox.0.push(Input::StepDown(next));
        tokio::time::timeout(STEP_DOWN_WAIT, group.wait_for(done)).await.is_ok_and(|told| told.is_ok())
    }

    /// Flushes and stops. Everything acknowledged is safe without it too; the next start is quicker with it.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let (done, stopped) = oneshot::channel();
        self.inbox.0.push(Input::Stop(Some(done)));
        match tokio::time::timeout(SHUTDOWN_WAIT, stopped).await {
            // A store that has stopped already lets the question drop, which is an answer too.
            Ok(Ok(Ok(())) | Err(_)) => {}
            Ok(Ok(left)) => return left,
            Err(_) => {
                let reason = format!("it has not ended within {SHUTDOWN_WAIT:?}: the disk takes nothing");
                return Err(Error::Fatal { reason });
            }
        }
        // That it is closed is what was asked for.
        self.shared.check_open().or_else(|error| if matches!(error, Error::Fatal { .. }) { Err(error) } else { Ok(()) })
    }

    /// Resolves when the store has ended, with the reason: `Closed` after a shutdown, `Fatal` where this process must
    /// not go on.
    pub fn ended(&self) -> impl Future<Output = Error> + Send + use<> {
        let mut end = self.shared.end();
        async move {
            let ended = end.wait_for(Option::is_some).await;
            ended.ok().and_then(|end| end.clone()).unwrap_or(Error::Closed)
        }
    }

    pub fn status(&self) -> Status {
        let state = self.shared.state();
        Status {
            revision: state.revision(),
            oldest_revision: state.oldest(),
            applied_index: state.position().index,
            history_bytes: state.history_bytes(),
            keys: state.snapshot().len(),
            bytes: state.bytes() as u64,
            quota_bytes: self.quota as u64,
            member_id: self.member_id,
            leader_id: self.shared.gauges.leader(),
            term: self.shared.gauges.term(),
            log_bytes: self.shared.gauges.log_bytes_now(),
            watched_ranges: self.shared.hub.ranges(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.shared.state().revision()
    }

    /// The oldest revision that can be read.
    pub(crate) fn oldest_revision(&self) -> Revision {
        self.shared.state().oldest()
    }

    /// The newest revision that someone asked to compact at.
    pub(crate) fn compact_revision(&self) -> Option<Revision> {
        self.shared.state().asked()
    }

    pub(crate) fn member_id(&self) -> u64 {
        self.member_id
    }

    /// 0 while there is none.
    pub(crate) fn leader(&self) -> u64 {
        self.shared.gauges.leader()
    }

    pub(crate) fn term(&self) -> u64 {
        self.shared.gauges.term()
    }

    /// Who belongs to the group and who leads, and every change of that.
    pub fn group(&self) -> watch::Receiver<Group> {
        self.shared.group.subscribe()
    }

    /// Takes in a message that the member `from` has put on its wire.
    pub fn receive(&self, from: u64, message: &Bytes) -> Result<(), WireError> {
        self.take_in(wire::read_message(from, message)?);
        Ok(())
    }

    /// Takes in the bytes of an [`crate::OutgoingSnapshot`].
    pub fn receive_snapshot(&self, from: u64, bytes: Bytes) -> Result<(), WireError> {
        self.take_in(wire::read_snapshot(from, bytes)?);
        Ok(())
    }

    fn take_in(&self, message: Message) {
        // What is for somebody who was at this address before is nobody's any more.
        if message.to == self.member_id {
            self.hand_in(Input::Message(Box::new(message)));
        }
    }

    /// Ends the store for a reason that its caller has found.
    pub fn fail(&self, reason: String) {
        self.inbox.0.push(Input::Failed(Error::Fatal { reason }));
    }

    /// Where messages of other members go.
    #[cfg(test)]
    pub(crate) fn inbox(&self) -> Arc<Queue<Input>> {
        self.inbox.0.clone()
    }

    async fn propose(&self, operation: &'static str, command: Command) -> Result<Answer, Error> {
        self.shared.check_open()?;
        self.propose_encoded(encode(operation, command)?).await
    }

    async fn propose_encoded(&self, encoded: Encoded) -> Result<Answer, Error> {
        let permit = self.permits.clone().acquire_many_owned(encoded.permits).await.map_err(|_| Error::Closed)?;
        self.answer_to(self.send(encoded, permit)).await
    }

    fn send(&self, Encoded { data, operation, .. }: Encoded, permit: OwnedSemaphorePermit) -> Answered {
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { operation, answer, _permit: Some(permit) };
        self.hand_in(Input::Propose(Proposed { data, waiter }));
        answered
    }

    fn hand_in(&self, input: Input) {
        match &self.handed_in {
            None => self.inbox.0.push(input),
            Some(handed_in) => {
                self.inbox.0.push_quietly(input);
                handed_in.notify_one();
            }
        }
    }

    async fn answer_to(&self, answered: Answered) -> Result<Answer, Error> {
        answered.await.unwrap_or_else(|_| Err(self.shared.check_open().err().unwrap_or(Error::Closed)))
    }
}

type Answered = oneshot::Receiver<Result<Answer, Error>>;

/// What can be proposed.
struct Encoded {
    data: Bytes,
    operation: &'static str,
    /// How much of what may be under way it takes.
    permits: u32,
}

enum Begun {
    UnderWay(Answered),
    /// Something comes first: the quota, or those that are under way.
    Held(Verdict, Encoded),
}

fn encode(operation: &'static str, command: Command) -> Result<Encoded, Error> {
    let bytes = command::size_hint(&command);
    if bytes > MAX_TXN_BYTES {
        return Err(Error::TooLarge { bytes, limit: MAX_TXN_BYTES });
    }
    let data = command::encode(&Proposal { at: unix_millis(), command });
    Ok(Encoded { data, operation, permits: 1 + (bytes / PERMIT_BYTES) as u32 })
}

/// Longer than every part of an end may take, but for a disk that hangs while the driver itself writes to it.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(60);
/// A handover takes a round trip, or two.
const STEP_DOWN_WAIT: Duration = Duration::from_secs(2);

/// One permit stands for this much of a proposal.
const PERMIT_BYTES: usize = 1 << 10;
/// Three quarters of what raft lets be uncommitted, so that it need not refuse what waits here already.
const PERMITS: usize = (UNCOMMITTED_BYTES as usize / 4 * 3) / PERMIT_BYTES;

#[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
pub(crate) fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::LeaseNotFound(id) => Error::LeaseNotFound { id },
            Refusal::LeaseExists(id) => Error::LeaseExists { id },
            Refusal::KeyNotFound => Error::KeyNotFound,
            Refusal::Compacted { requested, oldest } => Error::Compacted { requested, oldest },
            Refusal::Future { requested, current } => Error::Future { requested, current },
        }
    }
}
