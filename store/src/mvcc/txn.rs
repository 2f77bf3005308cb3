//! How a transaction is carried out.
//!
//! First everything is decided that the state before it decides: which branches are taken, and whether any of their
//! operations is refused. Only then anything is written, so that a refused transaction leaves nothing behind.

use std::{cmp::Ordering, sync::Arc};

use bytes::Bytes;

use super::{Answer, Applied, Position, Refusal, State, size_of};
use crate::{
    Change, Compare, Event, EventKind, KeyValue, LeaseId, Op, OpResult, Operand, Relation, Revision, Txn, TxnResult,
};

impl State {
    pub(super) fn apply_txn(&mut self, position: Position, at: u64, txn: &Txn) -> Applied {
        // Which branches of transactions inside are taken, in the order in which they are met.
        let mut inner = Vec::new();
        let succeeded = match self.decide(txn, &mut inner) {
            Ok(succeeded) => succeeded,
            Err(refusal) => return Applied::refused(refusal),
        };
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(branch(txn, succeeded).len());
        let results = self.carry_out(branch(txn, succeeded), &mut inner.into_iter(), revision, &mut events);
        let batch = self.commit(position, at, events, None);
        Applied { answer: Ok(Answer::Txn(TxnResult { succeeded, revision: self.revision, results })), batch }
    }

    /// Whether a transaction's comparisons hold.
    fn decide(&self, txn: &Txn, inner: &mut Vec<bool>) -> Result<bool, Refusal> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        for op in branch(txn, succeeded) {
            match op {
                Op::Put { lease, .. } => self.check_lease(*lease)?,
                Op::Update { key, lease, .. } => {
                    if !self.map.contains(key) {
                        return Err(Refusal::KeyNotFound);
                    }
                    if let Change::Set(lease) = lease {
                        self.check_lease(*lease)?;
                    }
                }
                Op::Delete { .. } | Op::Range { .. } => {}
                Op::Txn(txn) => {
                    let place = inner.len();
                    inner.push(false);
                    inner[place] = self.decide(txn, inner)?;
                }
            }
        }
        Ok(succeeded)
    }

    fn check_lease(&self, lease: Option<LeaseId>) -> Result<(), Refusal> {
        lease.filter(|id| !self.leases.contains_key(id)).map_or(Ok(()), |id| Err(Refusal::LeaseNotFound(id)))
    }

    fn holds(&self, compare: &Compare) -> bool {
        let find = |key: &Bytes| self.map.get(key);
        match compare {
            Compare::ModRevision { key, equals } => find(key).map_or(0, |kv| kv.mod_revision) == *equals,
            Compare::CreateRevision { key, equals } => find(key).map_or(0, |kv| kv.create_revision) == *equals,
            Compare::Version { key, equals } => find(key).map_or(0, |kv| kv.version) == *equals,
            Compare::Value { key, equals } => find(key).is_some_and(|kv| kv.value == *equals),
            Compare::Keys { start, end: None, relation, operand } => related(find(start), *relation, operand),
            Compare::Keys { start, end: Some(end), relation, operand } => {
                let mut range = self.map.range(start, end).peekable();
                match range.peek() {
                    None => related(None, *relation, operand),
                    Some(_) => range.all(|kv| related(Some(kv), *relation, operand)),
                }
            }
        }
    }

    fn carry_out(
        &mut self,
        ops: &[Op],
        inner: &mut std::vec::IntoIter<bool>,
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> Vec<OpResult> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => self.put(Put { key, value, lease: *lease }, revision, events),
                Op::Update { key, value, lease } => self.update(key, value, lease, revision, events),
                Op::Delete { start, end } => {
                    let doomed = self.select(start, end.as_ref());
                    for kv in &doomed {
                        self.delete(kv, revision, events);
                    }
                    OpResult::Delete { deleted: doomed }
                }
                Op::Range { start, end } => OpResult::Range { items: self.select(start, end.as_ref()) },
                Op::Txn(txn) => {
                    let succeeded = inner.next().unwrap_or(false);
                    let results = self.carry_out(branch(txn, succeeded), inner, revision, events);
                    OpResult::Txn { succeeded, results }
                }
            });
        }
        results
    }

    fn select(&self, start: &Bytes, end: Option<&Bytes>) -> Vec<Arc<KeyValue>> {
        match end {
            None => self.map.get(start).cloned().into_iter().collect(),
            Some(end) => self.map.range(start, end).cloned().collect(),
        }
    }

    fn update(
        &mut self,
        key: &Bytes,
        value: &Change<Bytes>,
        lease: &Change<Option<LeaseId>>,
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> OpResult {
        // The key has been found to exist; where an earlier operation has deleted it since, there is nothing to keep.
        let old = self.map.get(key).cloned();
        let value = match value {
            Change::Keep => old.as_ref().map(|old| old.value.clone()).unwrap_or_default(),
            Change::Set(value) => value.clone(),
        };
        let lease = match lease {
            Change::Keep => old.and_then(|old| old.lease),
            Change::Set(lease) => *lease,
        };
        self.put(Put { key, value: &value, lease }, revision, events)
    }

    fn put(&mut self, Put { key, value, lease }: Put, revision: Revision, events: &mut Vec<Event>) -> OpResult {
        let new = |key: &Bytes, old: Option<&KeyValue>| {
            Arc::new(KeyValue {
                key: key.clone(),
                value: value.clone(),
                create_revision: old.map_or(revision, |old| old.create_revision),
                mod_revision: revision,
                version: old.map_or(1, |old| old.version + 1),
                lease,
            })
        };
        let (kv, previous) = match self.map.get_mut(key) {
            Some(place) => {
                // The old key's memory is kept, so that many versions of a key do not each hold a copy of it.
                let kv = new(&place.key, Some(place));
                (kv.clone(), Some(std::mem::replace(place, kv)))
            }
            None => {
                let kv = new(key, None);
                self.map.insert(kv.clone());
                (kv, None)
            }
        };
        self.bytes += size_of(&kv);
        self.bytes -= previous.as_deref().map_or(0, size_of);
        if previous.as_ref().and_then(|old| old.lease) != lease {
            self.detach(previous.as_deref());
            if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
                lease.keys.insert(kv.key.clone());
            }
        }
        events.push(Event { kind: EventKind::Put, kv: kv.clone(), previous: previous.clone() });
        OpResult::Put { kv, previous }
    }

    pub(super) fn delete(&mut self, kv: &Arc<KeyValue>, revision: Revision, events: &mut Vec<Event>) {
        self.map.remove(&kv.key);
        self.bytes -= size_of(kv);
        self.detach(Some(kv));
        let last = KeyValue { mod_revision: revision, ..KeyValue::clone(kv) };
        events.push(Event { kind: EventKind::Delete, kv: Arc::new(last), previous: Some(kv.clone()) });
    }

    fn detach(&mut self, kv: Option<&KeyValue>) {
        if let Some(kv) = kv
            && let Some(lease) = kv.lease.and_then(|id| self.leases.get_mut(&id))
        {
            lease.keys.remove(&kv.key);
        }
    }
}

struct Put<'a> {
    key: &'a Bytes,
    value: &'a Bytes,
    lease: Option<LeaseId>,
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.then } else { &txn.otherwise }
}

/// Whether a key, or its absence, stands in `relation` to `operand`.
fn related(kv: Option<&Arc<KeyValue>>, relation: Relation, operand: &Operand) -> bool {
    let number = |of: fn(&KeyValue) -> u64, operand: &i64| (kv.map_or(0, |kv| of(kv)) as i64).cmp(operand);
    let order = match operand {
        Operand::ModRevision(operand) => number(|kv| kv.mod_revision, operand),
        Operand::CreateRevision(operand) => number(|kv| kv.create_revision, operand),
        Operand::Version(operand) => number(|kv| kv.version, operand),
        Operand::Lease(operand) => number(|kv| kv.lease.map_or(0, |lease| lease.0), operand),
        // What is not there has no value to compare, whatever the relation.
        Operand::Value(operand) => match kv {
            Some(kv) => kv.value.cmp(operand),
            None => return false,
        },
    };
    match relation {
        Relation::Equal => order == Ordering::Equal,
        Relation::NotEqual => order != Ordering::Equal,
        Relation::Greater => order == Ordering::Greater,
        Relation::Less => order == Ordering::Less,
    }
}
