use std::{path::PathBuf, time::Duration};

use crate::{LeaseId, Revision};

/// What can go wrong, each with the operation and its subject.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("revision {requested} has been compacted, the oldest one kept is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future { requested: Revision, current: Revision },
    #[error("lease {} does not exist", id.0)]
    LeaseNotFound { id: LeaseId },
    #[error("lease {} exists already", id.0)]
    LeaseExists { id: LeaseId },
    #[error("a key that should be updated does not exist")]
    KeyNotFound,
    #[error("transaction refused: {reason}")]
    InvalidTxn { reason: &'static str },
    #[error("change of members refused: {reason}")]
    InvalidChange { reason: String },
    #[error("transaction of {bytes} bytes is larger than the {limit} allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the store is full: {bytes} bytes of {quota}; delete something, or raise the quota")]
    NoSpace { bytes: usize, quota: usize },
    /// The proposal was not accepted; nothing was written and it may be tried again.
    #[error("the store has no leader or too many writes waiting, nothing was written")]
    Unavailable,
    /// The proposal may yet be carried out.
    #[error("{operation} was not confirmed within {waited:?}, its outcome is unknown")]
    Timeout { operation: &'static str, waited: Duration },
    /// The leader changed while the proposal was under way; it may yet be carried out.
    #[error("the leader changed during {operation}, its outcome is unknown")]
    LeaderChanged { operation: &'static str },
    #[error("the store has been shut down")]
    Closed,
    /// The store stopped for good: what it had promised is safe on disk, but this process must not go on.
    #[error("the store has stopped: {reason}")]
    Fatal { reason: String },
    #[error("{operation} {}: {reason}", path.display())]
    Disk { operation: &'static str, path: PathBuf, reason: String },
    /// Bytes on disk that were once acknowledged cannot be read back. Never repaired silently.
    #[error("{} is corrupt at byte {offset}: {reason}; restore the directory from another member or a snapshot", path.display())]
    Corrupt { path: PathBuf, offset: u64, reason: String },
    #[error("{} exists already: it is never written over", path.display())]
    Exists { path: PathBuf },
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
}

/// Why a watcher has ended. A new one may start from the revision given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// It did not keep up: events after `delivered` have left the bounded history.
    #[error("the watcher was too slow, it was delivered everything up to revision {delivered} and lost what follows")]
    Slow { delivered: Revision },
    /// A compaction removed revisions that it had not been delivered.
    #[error("revisions up to {oldest} were compacted before the watcher was delivered those after {delivered}")]
    Compacted { delivered: Revision, oldest: Revision },
    #[error("the store has been closed")]
    Closed,
}
