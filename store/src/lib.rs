//! A replicated, versioned key-value store: bytes in, bytes out, one global revision.
//!
//! A write goes through Raft's log: it is acknowledged once it is on disk (on a majority's disks) and applied to
//! the state in memory, from which all reads and watches are served. Behind that, at the distance of the history,
//! follow the checkpoint and the snapshots that let the log be cut.
//!
//! Modules, in reading order:
//! - `types`, `error`: what callers say and hear; `store`: how they say it, `place`: on which thread;
//! - `check`: what is refused before it is proposed; `command`: proposals as bytes;
//! - `map`: the keys; `mvcc`: the pure state machine: apply, history, undo; `lease`: when leases end;
//! - `members`: who the members are and where; `wire`: what they say to each other, as bytes;
//! - `quota`: how much may be stored;
//! - `watch`: who is told of which events; `shared`: what the threads and the callers have in common;
//! - `disk`, `log`, `image`, `checkpoint`: what is on disk;
//! - `backup`: all of it as one file, and back;
//! - `raft`: the loop that drives it all;
//! - `etcd`: the store as etcd's clients know it;
//! - `sim` (tests only): groups of members in one thread, by seed.
//!
//! Invariants:
//! - every committed change raises the revision by exactly one; the same log gives the same state everywhere;
//! - nothing is acknowledged before its log entry is synced; after a disk failed once, nothing is acknowledged;
//! - snapshot + log hold everything acknowledged; the checkpoint is a cache and may be lost at any time;
//! - a snapshot never changes; a watcher is delivered each event of its range once, in order;
//! - nothing grows without bound: proposals by permits, history by limits, watchers by the history, the log by
//!   snapshots, what the checkpoint lacks by keys and bytes.

mod backup;
mod check;
mod checkpoint;
mod command;
mod disk;
mod error;
pub mod etcd;
mod image;
mod lease;
mod log;
mod map;
mod members;
mod mvcc;
mod place;
mod quota;
mod raft;
mod shared;
mod store;
mod types;
mod watch;
mod wire;

pub use backup::{Contents, Recovered, recover, restore, set_aside};
pub use error::{Error, WatchError};
pub use members::{Group, MEMBERS, MemberInfo, is_there, member_key, prepare_join};
pub use place::Place;
pub use quota::ALARMS;
pub use store::{Config, QUOTA_BYTES, Status, Store};
pub use types::{
    Batch, Change, Compare, Event, EventKind, KeyValue, LeaseId, LeaseInfo, MemberChange, Op, OpResult, Operand,
    Relation, Revision, Snapshot, Txn, TxnResult, prefix_end,
};
pub use watch::Watcher;
pub use wire::{OutgoingSnapshot, Wire, WireError};

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
