//! What callers say to the store and what it answers: plain values, no behaviour.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::map::Map;

/// The number of the newest committed change. An empty store is at 1; every change raises it by one.
pub type Revision = u64;

/// Names a lease: a number its owner chose, or else one derived from the log index of its grant, so that every member
/// has the same one. Never 0, and never above `i64::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One key with its newest value, as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    /// When the key came to be, counted anew after a delete.
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// 1 for the put that created the key, one more for each further put.
    pub version: u64,
    pub lease: Option<LeaseId>,
}

/// A condition on one key. An absent key has revision 0, version 0 and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    ModRevision {
        key: Bytes,
        equals: Revision,
    },
    CreateRevision {
        key: Bytes,
        equals: Revision,
    },
    Version {
        key: Bytes,
        equals: u64,
    },
    Value {
        key: Bytes,
        equals: Bytes,
    },
    /// The general form: every key of the range stands in `relation` to `operand`. A range without keys is compared as
    /// one absent key, and its value with nothing.
    Keys {
        start: Bytes,
        end: Option<Bytes>,
        relation: Relation,
        operand: Operand,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// What of a key is compared, and with what. The numbers are signed, as those who ask may name any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    ModRevision(i64),
    CreateRevision(i64),
    Version(i64),
    Value(Bytes),
    /// No lease is 0.
    Lease(i64),
}

/// One step of a transaction. A range is `start..end`; without `end` it is the single key `start`, and an
/// empty `end` means no upper bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        start: Bytes,
        end: Option<Bytes>,
    },
    Range {
        start: Bytes,
        end: Option<Bytes>,
    },
    /// A put that leaves as it is what it does not set. The key must exist.
    Update {
        key: Bytes,
        value: Change<Bytes>,
        lease: Change<Option<LeaseId>>,
    },
    /// Its comparisons see the state before the outermost transaction.
    Txn(Txn),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    Keep,
    Set(T),
}

/// If every comparison holds, `then` is carried out, else `otherwise`: all of it or nothing, at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    Put {
        kv: Arc<KeyValue>,
        previous: Option<Arc<KeyValue>>,
    },
    /// What was deleted, as it was, in key order.
    Delete {
        deleted: Vec<Arc<KeyValue>>,
    },
    Range {
        items: Vec<Arc<KeyValue>>,
    },
    Txn {
        succeeded: bool,
        results: Vec<OpResult>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether every comparison held.
    pub succeeded: bool,
    /// The store's revision after this transaction; the one of its changes, if it made any.
    pub revision: Revision,
    /// One per operation of the branch taken.
    pub results: Vec<OpResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// A delete's `kv` has the last value and the delete's own `mod_revision`.
    pub kv: Arc<KeyValue>,
    /// What the key held before, if it existed.
    pub previous: Option<Arc<KeyValue>>,
}

/// All the events of one revision that one watcher sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A lease as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    pub id: LeaseId,
    pub ttl: Duration,
    /// How long it has yet if nobody keeps it alive.
    pub remaining: Duration,
    /// In order.
    pub keys: Vec<Bytes>,
}

/// Who belongs to the group. One change at a time; each is a log entry, and takes effect where it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// It is sent everything and has no vote: nothing waits for it.
    AddLearner(u64),
    /// A learner that has caught up gets a vote.
    Promote(u64),
    Remove(u64),
}

/// The whole key space at one revision. Taking and cloning one copies a pointer; it blocks nobody and never changes.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) map: Map,
    pub(crate) revision: Revision,
}

impl Snapshot {
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.map.get(key)
    }

    /// The keys in `start..end`, in order; an empty `end` means no upper bound.
    pub fn range(&self, range: Range<&[u8]>) -> impl Iterator<Item = &Arc<KeyValue>> + use<'_> {
        self.map.range(range.start, range.end)
    }

    pub fn count(&self, start: &[u8], end: &[u8]) -> usize {
        self.map.range(start, end).count()
    }

    /// How many keys there are in all.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// Whether `key` lies in `start..end`, an empty `end` being no bound.
pub(crate) fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

/// The end of the range that holds every key beginning with `prefix`: empty (no bound) where there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|&byte| byte != 0xff) else { return Bytes::new() };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ends() {
        for (prefix, end) in [(&b"a/"[..], &b"a0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b""), (b"", b"")] {
            assert_eq!(&prefix_end(prefix)[..], end, "prefix {prefix:?}");
        }
    }

    #[test]
    fn ranges() {
        for (key, start, end, inside) in [
            (&b"b"[..], &b"a"[..], &b"c"[..], true),
            (b"c", b"a", b"c", false),
            (b"a", b"a", b"c", true),
            (b"z", b"a", b"", true),
            (b"Z", b"a", b"", false),
        ] {
            assert_eq!(in_range(key, start, end), inside, "{key:?} in {start:?}..{end:?}");
        }
    }
}
