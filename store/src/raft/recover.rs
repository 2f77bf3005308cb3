//! The start: from what lies on the disk to a running driver.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use raft::{RawNode, eraftpb::EntryType};
use tokio::sync::oneshot;

use super::{
    Input, Queue, Transport,
    driver::Driver,
    keeper::Keeper,
    logger::logger,
    runner::{Runner, Work},
    storage::RaftStorage,
    writer::Writer,
};
use crate::{
    Config, Error,
    checkpoint::Checkpoint,
    command::{self, Proposal},
    disk::{Disk, RealDisk},
    image,
    log::{Log, Origin, Place, Recovered, SEGMENT_BYTES, Start, failed},
    mvcc::{Base, FIRST_REVISION, Image, Limits, Members, Position, State},
    shared::Shared,
    store::QUOTA_BYTES,
};

/// Where a new group's log begins. Not 0: raft-rs takes that for a member that knows nothing yet.
const FOUNDING: Position = Position { index: 1, term: 1 };
/// Of every 100 ms a tick; a leader that is not heard of for `ELECTION_TICKS` to twice that is replaced.
pub const TICK: Duration = Duration::from_millis(100);
const HEARTBEAT_TICKS: usize = 2;
pub const ELECTION_TICKS: usize = 7;
/// One message to a follower; larger ones delay heartbeats.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Messages on the way to one follower.
const INFLIGHT: usize = 256;
/// Proposals beyond it are refused until some are committed.
pub const UNCOMMITTED_BYTES: u64 = 64 << 20;
/// A second or so of full write speed: whoever was away for longer is sent the state.
const TAIL_BYTES: usize = 32 << 20;
/// Applied in one go, during which readers wait.
const COMMITTED_BYTES: u64 = 8 << 20;

/// What a member is made of.
pub struct Parts {
    pub member_id: u64,
    /// Who votes in a group that does not exist yet. Nobody, where the group is somebody else's and is to be joined: such
    /// a member waits for what it is sent.
    pub voters: Vec<u64>,
    pub limits: Limits,
    pub disk: Arc<dyn Disk>,
    pub log_dir: PathBuf,
    pub snapshot_dir: PathBuf,
    /// Where sled keeps the checkpoint; none for a member without one.
    pub checkpoint: Option<PathBuf>,
    /// Locked, so that no other process uses the same directory.
    pub lock: Option<PathBuf>,
    pub transport: Box<dyn Transport>,
    pub sizes: Sizes,
    /// How many bytes may be stored.
    pub quota: usize,
}

/// How much of the log is kept where.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub segment: u64,
    /// The log is cut once it has grown by this much, and by several times the snapshot that cutting it takes.
    pub cut_after: u64,
    /// Bytes of applied entries kept in memory for followers that are a little behind.
    pub tail: usize,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { segment: SEGMENT_BYTES, cut_after: 32 << 20, tail: TAIL_BYTES }
    }
}

impl Parts {
    /// A group of one that keeps everything on `disk`.
    pub fn on_disk(member_id: u64, limits: Limits, disk: Arc<dyn Disk>) -> Parts {
        Parts {
            member_id,
            voters: vec![member_id],
            limits,
            disk,
            log_dir: "/log".into(),
            snapshot_dir: "/snapshot".into(),
            checkpoint: None,
            lock: None,
            transport: Box::new(super::NoPeers),
            sizes: Sizes::default(),
            quota: QUOTA_BYTES,
        }
    }

    fn log_place(&self) -> Place {
        Place { disk: self.disk.clone(), dir: self.log_dir.clone(), segment_bytes: self.sizes.segment }
    }
}

/// What the callers of a member need.
pub struct Started {
    pub shared: Arc<Shared>,
    pub inbox: Arc<Queue<Input>>,
    /// Resolves when the member can serve.
    pub ready: oneshot::Receiver<()>,
}

/// A member that is about to run: three that work by turns, and what their callers need.
pub struct Member {
    pub driver: Driver,
    pub writer: Writer,
    pub keeper: Keeper,
    pub started: Started,
}

/// Starts a member on threads of its own.
pub fn start(parts: Parts) -> Result<(Started, Arc<Runner>), Error> {
    let lock = parts.lock.as_deref().map(lock).transpose()?;
    // No life of a member makes one proposal a nanosecond, so the time it began is a seed that no other life had.
    #[expect(clippy::disallowed_methods, reason = "the start is the shell")]
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let Member { mut driver, writer, keeper, started } = assemble(parts, seed)?;
    driver.begin()?;
    let inbox = started.inbox.clone();
    let threads = vec![spawn("store-keep", &inbox, move || keeper.run())?];
    #[expect(clippy::disallowed_methods, reason = "the start is the shell")]
    let began = Instant::now();
    let log = writer.jobs.clone();
    let runner = Arc::new_cyclic(|runner| {
        let work = Work {
            driver,
            inbox: inbox.clone(),
            runner: runner.clone(),
            writer: Some(writer),
            threads,
            lock,
            started: began,
            last_write: Duration::ZERO,
            wakes_at: Duration::ZERO,
            end: None,
        };
        Runner::new(work, log)
    });
    let own = runner.clone();
    spawn("store-raft", &inbox, move || own.run())?;
    Ok((started, runner))
}

/// Makes a member of what lies on its disk.
pub fn assemble(parts: Parts, seed: u64) -> Result<Member, Error> {
    let Loaded { image, origin, checkpoint } = load(&parts)?;
    let position = image.base.position;
    let at = Start { position, origin };
    let (log, Recovered { hard_state, entries, torn }) = Log::open(parts.log_place(), at)?;
    if torn > 0 {
        tracing::info!(bytes = torn, "the log ended in a batch that was never finished; it is cut off");
    }
    tracing::debug!(index = position.index, entries = entries.len(), "the log is replayed");
    let shared = Arc::new(Shared::new(State::new(image.clone())));
    shared.gauges.log_bytes(log.bytes());
    let storage = RaftStorage::new(shared.clone(), hard_state, entries);
    let config = raft_config(parts.member_id, position.index);
    let node = RawNode::new(&config, storage, &logger()).map_err(|error| stopped(&error))?;

    let (inbox, jobs) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let writer = Writer {
        log,
        disk: parts.disk.clone(),
        snapshots: parts.snapshot_dir.clone(),
        jobs: jobs.clone(),
        inbox: inbox.clone(),
        shared: shared.clone(),
    };
    let (keeper, handle) =
        Keeper::new(parts.checkpoint, checkpoint, parts.disk, parts.snapshot_dir, (jobs.clone(), inbox.clone()));
    if origin != Origin::Checkpoint {
        handle.replace(image);
    }
    let (opened, ready) = oneshot::channel();
    let driver = Driver::new(super::driver::Parts {
        node,
        shared: shared.clone(),
        inbox: inbox.clone(),
        log: jobs,
        keeper: handle,
        transport: parts.transport,
        limits: parts.limits,
        sizes: parts.sizes,
        opened,
        seed,
    });
    Ok(Member { driver, writer, keeper, started: Started { shared, inbox, ready } })
}

/// The newest state that can be rebuilt.
struct Loaded {
    image: Image,
    origin: Origin,
    /// To be written anew, where the state does not come from it.
    checkpoint: Option<Checkpoint>,
}

fn load(parts: &Parts) -> Result<Loaded, Error> {
    let snapshot = image::load(&*parts.disk, &parts.snapshot_dir);
    let mut checkpoint = None;
    let path = parts.checkpoint.as_deref().filter(|path| path.exists());
    if let Some(path) = path {
        match Checkpoint::open(path) {
            Ok((opened, None)) => checkpoint = Some((opened, Image::default())),
            Ok((opened, Some(image))) => checkpoint = Some((opened, image)),
            Err(reason) => tracing::warn!(path = %path.display(), %reason, "no checkpoint is kept for now"),
        }
    }
    let newest = snapshot.as_ref().ok().and_then(Option::as_ref).map_or(0, |image| image.base.position.index);
    match checkpoint {
        Some((checkpoint, image)) if image.base.position.index > newest => {
            if let Err(error) = &snapshot {
                tracing::warn!(%error, "the snapshot is damaged; the checkpoint has it all and newer");
            }
            Ok(Loaded { image, origin: Origin::Checkpoint, checkpoint: Some(checkpoint) })
        }
        older => {
            let image = match snapshot? {
                Some(image) => image,
                None => found_group(parts)?,
            };
            // A checkpoint is only made behind a log: one without the other is a loss, not a beginning.
            let founding = image.base.position <= FOUNDING && path.is_none();
            let origin = if founding { Origin::Founding } else { Origin::Snapshot };
            Ok(Loaded { image, origin, checkpoint: older.map(|(checkpoint, _)| checkpoint) })
        }
    }
}

/// All that one member knows of.
pub struct Survivor {
    pub image: Image,
    /// Entries after those that it knows to be committed.
    pub unconfirmed: u64,
}

/// Reads the store of a member that does not run, and applies its whole log.
pub fn read_all(config: &Config, member_id: u64) -> Result<Survivor, Error> {
    let lock_path = config.dir.join("lock");
    let _lock = lock(&lock_path)?;
    let parts = Parts {
        member_id,
        voters: Vec::new(),
        log_dir: config.dir.join("log"),
        snapshot_dir: config.dir.join("snapshot"),
        checkpoint: Some(config.dir.join("checkpoint")),
        ..Parts::on_disk(member_id, Limits::NONE, Arc::new(RealDisk))
    };
    let Loaded { image, origin, checkpoint: _checkpoint } = load(&parts)?;
    let at = Start { position: image.base.position, origin };
    let (_, Recovered { hard_state, entries, .. }) = Log::open(parts.log_place(), at)?;
    let unconfirmed = entries.iter().filter(|entry| entry.index > hard_state.commit && !entry.data.is_empty()).count();
    let mut state = State::new(image);
    for entry in entries {
        let position = Position { index: entry.index, term: entry.term };
        // Who belonged to the group does not matter any more.
        if entry.entry_type != EntryType::EntryNormal || entry.data.is_empty() {
            state.skip(position);
            continue;
        }
        let Proposal { at, command } = command::decode(entry.data).map_err(|error| stopped(&error))?;
        // What was refused was refused then too.
        let _ = state.apply(position, at, &command);
        state.trim(&Limits::NONE, at);
    }
    Ok(Survivor { image: state.image(), unconfirmed: unconfirmed as u64 })
}

/// The first snapshot of a new group, which says who votes, or of a member that knows nothing yet. It is on disk before
/// there is a log.
fn found_group(parts: &Parts) -> Result<Image, Error> {
    let log = parts.disk.list(&parts.log_dir).unwrap_or_default();
    if log.iter().any(|name| name.ends_with(".log")) {
        let reason = "there is a log but no snapshot that it follows".to_owned();
        return Err(Error::Corrupt { path: parts.snapshot_dir.clone(), offset: 0, reason });
    }
    let members = Members { voters: parts.voters.clone(), ..Members::default() };
    let position = if parts.voters.is_empty() { Position::default() } else { FOUNDING };
    let base = Base { position, revision: FIRST_REVISION, members, ..Base::default() };
    let image = Image { base, ..Image::default() };
    image::save(&*parts.disk, &parts.snapshot_dir, &image)?;
    Ok(image)
}

fn raft_config(member_id: u64, applied: u64) -> raft::Config {
    raft::Config {
        id: member_id,
        applied,
        heartbeat_tick: HEARTBEAT_TICKS,
        election_tick: ELECTION_TICKS,
        max_size_per_msg: MESSAGE_BYTES,
        max_inflight_msgs: INFLIGHT,
        check_quorum: true,
        pre_vote: true,
        // Not batched by raft-rs 0.7: it adds entries to an empty append that still waits to be sent, whatever index that
        // one continues from, and the follower that gets it stops. Whole batches are proposed as one message as it is.
        batch_append: false,
        max_uncommitted_size: UNCOMMITTED_BYTES,
        max_committed_size_per_ready: COMMITTED_BYTES,
        // The driver has followers told itself, with the next entries where they come soon.
        skip_bcast_commit: true,
        ..raft::Config::default()
    }
}

fn lock(path: &Path) -> Result<fs::File, Error> {
    let file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(failed("lock", path)(error)),
    }
}

/// A thread that one can stop waiting for.
pub struct Thread(mpsc::Receiver<()>);

impl Thread {
    /// Whether it has ended, or ends within this time.
    pub fn ends_within(&self, patience: Duration) -> bool {
        self.0.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// A thread whose panic ends the store, rather than leaving the others to wait for it for ever.
pub fn spawn(
    name: &'static str,
    inbox: &Arc<Queue<Input>>,
    work: impl FnOnce() + Send + 'static,
) -> Result<Thread, Error> {
    let inbox = inbox.clone();
    let (alive, ended) = mpsc::channel();
    let watched = move || {
        // Goes with the thread, which never says anything.
        let _alive: mpsc::Sender<()> = alive;
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            inbox.push(Input::Failed(Error::Fatal { reason: format!("thread {name} panicked") }));
        }
    };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(watched);
    let failed = |error| Error::Fatal { reason: format!("cannot start thread {name}: {error}") };
    spawned.map(|_| Thread(ended)).map_err(failed)
}

pub fn stopped(error: &dyn std::fmt::Display) -> Error {
    Error::Fatal { reason: format!("raft: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_a_thread() {
        let (go_on, goes_on) = mpsc::channel::<()>();
        let thread = spawn("test", &Arc::default(), move || assert!(goes_on.recv().is_err())).expect("it starts");
        assert!(!thread.ends_within(Duration::ZERO));
        drop(go_on);
        assert!(thread.ends_within(Duration::from_secs(60)));
    }
}
