//! A replicated, versioned key-value store: bytes in, bytes out, one global revision.
//!
//! Modules, in reading order:
//! - [`types`]: what callers say and hear;
//! - [`command`]: proposals as bytes;
//! - [`mvcc`]: the pure state machine: apply, history, undo;
//! - [`watch`]: who is told of which events.
//!
//! Invariants:
//! - every committed change raises the revision by exactly one;
//! - a snapshot never changes; a watcher is delivered each event of its range once, in order.

mod command;
mod error;
mod mvcc;
mod shared;
mod store;
mod types;
mod watch;

pub use error::{Error, WatchError};
pub use store::{Config, Status, Store};
pub use types::{
    Batch, Compare, Event, EventKind, KeyValue, LeaseId, Op, OpResult, Revision, Snapshot, Txn, TxnResult, prefix_end,
};
pub use watch::Watcher;
