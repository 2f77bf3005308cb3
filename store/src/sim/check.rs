//! What a history must be like: linearizable, and told to watchers whole and in order.
//!
//! The store itself says in which order its writes took effect, by their revisions. So nothing has to be searched for:
//! the writes are carried out one after the other on a dumb model, and every answer must be the model's, no write may
//! come before one that had been answered when it began, and nothing may be there that nobody asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::clients::{Moment, Outcome, Record, Told, WatchLog, What};
use crate::{
    Batch, Compare, Event, EventKind, KeyValue, Op, OpResult, Revision, Txn, TxnResult, mvcc::FIRST_REVISION,
    types::in_range,
};

/// Every revision there was, as the first member that had it.
#[derive(Debug, Default)]
pub struct Archive {
    batches: BTreeMap<Revision, Arc<Batch>>,
}

impl Archive {
    pub fn add(&mut self, batch: &Arc<Batch>) -> Result<(), String> {
        match self.batches.get(&batch.revision) {
            Some(known) if known == batch => Ok(()),
            Some(known) => Err(format!("revision {} was {known:?} and is {batch:?}", batch.revision)),
            None if batch.revision == self.newest() + 1 => {
                self.batches.insert(batch.revision, batch.clone());
                Ok(())
            }
            None => Err(format!("revision {} follows {}", batch.revision, self.newest())),
        }
    }

    pub fn newest(&self) -> Revision {
        self.batches.last_key_value().map_or(FIRST_REVISION, |(&revision, _)| revision)
    }

    /// The key deleted last, as it was.
    pub fn last_deleted(&self) -> Option<Arc<KeyValue>> {
        let events = self.batches.values().rev().flat_map(|batch| &batch.events);
        events.filter(|event| event.kind == EventKind::Delete).find_map(|event| event.previous.clone())
    }
}

type Model = BTreeMap<Bytes, Arc<KeyValue>>;

/// What a transaction does to the model: its result, and the events it makes at `revision`.
fn carry_out(model: &Model, txn: &Txn, revision: Revision) -> (TxnResult, Vec<Event>) {
    let mut model = model.clone();
    let succeeded = txn.compare.iter().all(|compare| match compare {
        Compare::ModRevision { key, equals } => model.get(key).map_or(0, |kv| kv.mod_revision) == *equals,
        Compare::CreateRevision { key, equals } => model.get(key).map_or(0, |kv| kv.create_revision) == *equals,
        Compare::Version { key, equals } => model.get(key).map_or(0, |kv| kv.version) == *equals,
        Compare::Value { key, equals } => model.get(key).is_some_and(|kv| kv.value == *equals),
        Compare::Keys { .. } => unreachable!("not generated"),
    });
    let mut events = Vec::new();
    let mut results = Vec::new();
    for op in if succeeded { &txn.then } else { &txn.otherwise } {
        let (Op::Put { key: start, .. } | Op::Delete { start, .. } | Op::Range { start, .. }) = op else {
            unreachable!("not generated")
        };
        let end = match op {
            Op::Put { .. } => None,
            Op::Delete { end, .. } | Op::Range { end, .. } => end.as_ref(),
            Op::Update { .. } | Op::Txn(_) => unreachable!("not generated"),
        };
        let inside = |key: &Bytes| end.map_or(key == start, |end| in_range(key, start, end));
        let items: Vec<Arc<KeyValue>> = model.values().filter(|kv| inside(&kv.key)).cloned().collect();
        results.push(match op {
            Op::Put { key, value, lease } => {
                let old = model.get(key).cloned();
                let kv = Arc::new(KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                    mod_revision: revision,
                    version: old.as_ref().map_or(1, |old| old.version + 1),
                    lease: *lease,
                });
                model.insert(key.clone(), kv.clone());
                events.push(Event { kind: EventKind::Put, kv: kv.clone(), previous: old.clone() });
                OpResult::Put { kv, previous: old }
            }
            Op::Delete { .. } => {
                for kv in &items {
                    model.remove(&kv.key);
                    let last = KeyValue { mod_revision: revision, ..KeyValue::clone(kv) };
                    events.push(Event { kind: EventKind::Delete, kv: Arc::new(last), previous: Some(kv.clone()) });
                }
                OpResult::Delete { deleted: items }
            }
            Op::Range { .. } => OpResult::Range { items },
            Op::Update { .. } | Op::Txn(_) => unreachable!("not generated"),
        });
    }
    let revision = if events.is_empty() { revision - 1 } else { revision };
    (TxnResult { succeeded, revision, results }, events)
}

fn changed(result: &TxnResult) -> bool {
    result.results.iter().any(|result| match result {
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted } => !deleted.is_empty(),
        OpResult::Range { .. } => false,
        OpResult::Txn { .. } => unreachable!("not generated"),
    })
}

/// A record with the place that it took in the order of revisions.
struct Placed<'a> {
    what: &'a What,
    begun: Moment,
    ended: Option<Moment>,
    revision: Revision,
    changes: bool,
}

/// Whether one sequence of operations explains everything that was answered.
pub fn history(archive: &Archive, records: &[Record]) -> Result<(), String> {
    let mut writes: BTreeMap<Revision, Vec<(&Txn, &TxnResult)>> = BTreeMap::new();
    let mut looks: BTreeMap<Revision, Vec<&Record>> = BTreeMap::new();
    let mut unknown: Vec<(&Record, &Txn)> = Vec::new();
    let mut placed = Vec::new();
    for record in records {
        let (begun, ended) = (record.begun, record.outcome.as_ref().map(|(moment, _)| *moment));
        match (&record.what, record.outcome.as_ref().map(|(_, outcome)| outcome)) {
            (What::Txn(txn), Some(Outcome::Txn(result))) => {
                let (revision, changes) = (result.revision, changed(result));
                placed.push(Placed { what: &record.what, begun, ended, revision, changes });
                match changes {
                    true => writes.entry(revision).or_default().push((txn, result)),
                    false => looks.entry(revision).or_default().push(record),
                }
            }
            (What::Txn(txn), None) => unknown.push((record, txn)),
            (What::Read { linearizable }, Some(Outcome::Seen { revision, .. })) => {
                looks.entry(*revision).or_default().push(record);
                if *linearizable {
                    placed.push(Placed { what: &record.what, begun, ended, revision: *revision, changes: false });
                }
            }
            _ => {}
        }
    }
    let seen = first_seen(&placed);
    let (mut model, mut unexplained) = (Model::new(), Vec::new());
    look(&model, looks.remove(&FIRST_REVISION).as_deref().unwrap_or_default(), FIRST_REVISION)?;
    for (&revision, batch) in &archive.batches {
        match writes.remove(&revision).as_deref() {
            Some([(txn, result)]) => {
                let (wanted, events) = carry_out(&model, txn, revision);
                if wanted != **result || events != batch.events {
                    return Err(format!(
                        "{txn:?} was answered {result:?} and must have been {wanted:?}; it left {batch:?}"
                    ));
                }
            }
            Some(several) => return Err(format!("revision {revision} was given to {} writes", several.len())),
            None if ended_with_lease(batch) => {}
            None => {
                // What begins later fits only to later revisions.
                let by = seen.range(revision..).next().map_or(Moment::MAX, |(_, &moment)| moment);
                let made = |(record, txn): &(&Record, &Txn)| {
                    record.begun < by && carry_out(&model, txn, revision).1 == batch.events
                };
                let makers = (0..unknown.len()).filter(|&at| made(&unknown[at])).collect();
                unexplained.push(Unexplained { batch, makers });
            }
        }
        follow(&mut model, &batch.events);
        look(&model, looks.remove(&revision).as_deref().unwrap_or_default(), revision)?;
    }
    if let Some((revision, _)) = writes.first_key_value() {
        return Err(format!("a write was acknowledged at revision {revision}, and it is not there"));
    }
    if let Some((revision, _)) = looks.first_key_value() {
        return Err(format!("somebody saw revision {revision}, which never was"));
    }
    for (batch, maker) in explain(&unexplained)? {
        let (record, _) = unknown[maker];
        let (what, begun) = (&record.what, record.begun);
        placed.push(Placed { what, begun, ended: None, revision: batch.revision, changes: true });
    }
    in_real_time(placed)
}

fn follow(model: &mut Model, events: &[Event]) {
    for event in events {
        match event.kind {
            EventKind::Put => drop(model.insert(event.kv.key.clone(), event.kv.clone())),
            EventKind::Delete => drop(model.remove(&event.kv.key)),
        }
    }
}

/// A batch that nobody was answered for, and the writes without an answer that would have made it.
struct Unexplained<'a> {
    batch: &'a Batch,
    makers: Vec<usize>,
}

/// Gives each batch a maker of its own: a maximum matching, by augmenting paths. The first one that fits will not do, as
/// it may be the only one that fits another batch.
fn explain<'a>(unexplained: &[Unexplained<'a>]) -> Result<Vec<(&'a Batch, usize)>, String> {
    fn augment(
        at: usize,
        unexplained: &[Unexplained<'_>],
        taken: &mut BTreeMap<usize, usize>,
        tried: &mut BTreeSet<usize>,
    ) -> bool {
        for &maker in &unexplained[at].makers {
            if !tried.insert(maker) {
                continue;
            }
            let free = taken.get(&maker).copied().is_none_or(|other| augment(other, unexplained, taken, tried));
            if free {
                taken.insert(maker, at);
                return true;
            }
        }
        false
    }
    let mut taken = BTreeMap::new();
    for at in 0..unexplained.len() {
        if !augment(at, unexplained, &mut taken, &mut BTreeSet::new()) {
            return Err(format!("nobody asked for {:?}", unexplained[at].batch));
        }
    }
    Ok(taken.into_iter().map(|(maker, at)| (unexplained[at].batch, maker)).collect())
}

/// For each revision when it, or a later one, was first in an answer.
fn first_seen(placed: &[Placed<'_>]) -> BTreeMap<Revision, Moment> {
    let mut seen: BTreeMap<Revision, Moment> = BTreeMap::new();
    for Placed { revision, ended, .. } in placed {
        let Some(ended) = *ended else { continue };
        seen.entry(*revision).and_modify(|first| *first = ended.min(*first)).or_insert(ended);
    }
    let mut earliest = Moment::MAX;
    for first in seen.values_mut().rev() {
        earliest = earliest.min(*first);
        *first = earliest;
    }
    seen
}

/// Answers that changed nothing must be what the model has.
fn look(model: &Model, records: &[&Record], revision: Revision) -> Result<(), String> {
    for record in records {
        match (&record.what, &record.outcome) {
            (What::Txn(txn), Some((_, Outcome::Txn(result)))) => {
                let (wanted, _) = carry_out(model, txn, revision + 1);
                if wanted != *result {
                    return Err(format!("{txn:?} was answered {result:?} and must have been {wanted:?}"));
                }
            }
            (_, Some((_, Outcome::Seen { items, .. }))) if !items.iter().eq(model.values()) => {
                return Err(format!("at revision {revision} somebody saw {items:?} where there was {model:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn ended_with_lease(batch: &Batch) -> bool {
    let lease = batch.events.first().and_then(|event| event.kv.lease);
    lease.is_some() && batch.events.iter().all(|event| event.kind == EventKind::Delete && event.kv.lease == lease)
}

/// What had been answered when something began comes before it.
fn in_real_time(mut placed: Vec<Placed<'_>>) -> Result<(), String> {
    let mut ends: Vec<(Moment, Revision)> = placed.iter().filter_map(|p| Some((p.ended?, p.revision))).collect();
    ends.sort_unstable();
    placed.sort_unstable_by_key(|p| p.begun);
    let (mut ends, mut floor) = (ends.into_iter().peekable(), 0);
    for Placed { what, begun, revision, changes, .. } in placed {
        while let Some((_, ended)) = ends.next_if(|(moment, _)| *moment < begun) {
            floor = floor.max(ended);
        }
        if revision < floor || changes && revision == floor {
            return Err(format!(
                "{what:?}, begun at moment {begun}, took effect at revision {revision}, when {floor} had been answered"
            ));
        }
    }
    Ok(())
}

/// Ordered, unique, atomic, without gaps, and never ahead of itself.
pub fn watches(archive: &Archive, logs: &[WatchLog]) -> Result<(), String> {
    for log in logs {
        let mut next = log.from;
        for told in &log.told {
            match told {
                Told::Batch(batch) if batch.revision != next => {
                    return Err(format!("a watcher was told of revision {} when {next} was due", batch.revision));
                }
                Told::Batch(batch) => {
                    if archive.batches.get(&batch.revision) != Some(batch) {
                        return Err(format!("a watcher was told {batch:?}, which is not what happened"));
                    }
                    next += 1;
                }
                Told::Progress(revision) if *revision >= next => {
                    return Err(format!("a watcher was told that it had all up to {revision} when {next} was due"));
                }
                Told::Progress(_) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Txn {
        let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: None };
        Txn { then: vec![op], ..Txn::default() }
    }

    /// An archive of puts, and the results they had.
    fn archive(puts: &[Txn]) -> (Archive, Vec<TxnResult>) {
        let (mut archive, mut model, mut results) = (Archive::default(), Model::new(), Vec::new());
        for (txn, revision) in puts.iter().zip(2..) {
            let (result, events) = carry_out(&model, txn, revision);
            follow(&mut model, &events);
            archive.add(&Arc::new(Batch { revision, events })).unwrap();
            results.push(result);
        }
        (archive, results)
    }

    fn wrote(begun: Moment, ended: Option<Moment>, txn: &Txn, result: &TxnResult) -> Record {
        let outcome = ended.map(|ended| (ended, Outcome::Txn(result.clone())));
        Record { begun, what: What::Txn(txn.clone()), outcome }
    }

    fn read(begun: Moment, ended: Moment, revision: Revision, items: Vec<Arc<KeyValue>>) -> Record {
        let outcome = Some((ended, Outcome::Seen { revision, items }));
        Record { begun, what: What::Read { linearizable: true }, outcome }
    }

    #[test]
    fn known_histories() {
        let (a, b, c) = (put("k", "1"), put("k", "2"), put("k", "3"));
        let (two, results) = archive(&[a.clone(), b.clone()]);
        let item = |n: usize| match &results[n].results[0] {
            OpResult::Put { kv, .. } => vec![kv.clone()],
            other => panic!("{other:?}"),
        };
        let both = || vec![wrote(1, Some(2), &a, &results[0]), wrote(3, Some(4), &b, &results[1])];
        let with = |more: Record| both().into_iter().chain([more]).collect::<Vec<_>>();
        let good: [(&str, Vec<Record>); 4] = [
            ("one after the other", both()),
            ("side by side", vec![wrote(1, Some(4), &b, &results[1]), wrote(2, Some(3), &a, &results[0])]),
            ("the answer got lost", vec![wrote(1, None, &a, &results[0]), wrote(3, Some(4), &b, &results[1])]),
            ("a read beside a write may see either", with(read(2, 5, 2, item(0)))),
        ];
        for (what, records) in good {
            assert_eq!(history(&two, &records), Ok(()), "{what}");
        }
        let bad: [(&str, Vec<Record>, &str); 7] = [
            ("a stale read", with(read(5, 6, 2, item(0))), "had been answered"),
            ("a read of what never was", with(read(5, 6, 3, item(0))), "somebody saw"),
            ("a read from the future", with(read(5, 6, 9, item(1))), "which never was"),
            (
                "turned around",
                vec![wrote(1, Some(2), &b, &results[1]), wrote(3, Some(4), &a, &results[0])],
                "had been answered",
            ),
            ("done twice", vec![wrote(1, Some(2), &a, &results[0])], "nobody asked"),
            ("lost", with(wrote(5, Some(6), &c, &TxnResult { revision: 4, ..results[1].clone() })), "not there"),
            ("one revision for two", with(wrote(5, Some(6), &b, &results[1])), "was given to 2"),
        ];
        for (what, records, why) in bad {
            let found = history(&two, &records).expect_err(what);
            assert!(found.contains(why), "{what}: {found}");
        }
    }

    #[test]
    fn known_watches() {
        let (archive, _) = archive(&[put("a", "1"), put("b", "2"), put("a", "3")]);
        let batch = |revision| Told::Batch(archive.batches[&revision].clone());
        let good = WatchLog { from: 2, told: vec![batch(2), Told::Progress(2), batch(3), batch(4), Told::Progress(4)] };
        assert_eq!(watches(&archive, &[good]), Ok(()));
        for (what, told) in [
            ("a gap", vec![batch(2), batch(4)]),
            ("again", vec![batch(2), batch(2)]),
            ("backwards", vec![batch(3), batch(2)]),
            ("ahead of itself", vec![batch(2), Told::Progress(3), batch(3)]),
        ] {
            assert!(watches(&archive, &[WatchLog { from: 2, told }]).is_err(), "{what}");
        }
    }

    /// The first of two writes without an answer would do for both deletes, the second one only for the first delete.
    #[test]
    fn of_two_unknown_writes_each_explains_one() {
        let delete = |end: Option<&'static [u8]>| Txn {
            then: vec![Op::Delete { start: Bytes::from_static(b"k"), end: end.map(Bytes::from_static) }],
            ..Txn::default()
        };
        let (many, one) = (delete(Some(b"l")), delete(None));
        let all = [put("k", "1"), one.clone(), put("k", "2"), put("k2", "3"), many.clone()];
        let (five, results) = archive(&all);
        let mut records = vec![wrote(1, None, &many, &results[4]), wrote(2, None, &one, &results[1])];
        for (at, begun) in [(0, 3), (2, 5), (3, 7)] {
            records.push(wrote(begun, Some(begun + 1), &all[at], &results[at]));
        }
        assert_eq!(history(&five, &records), Ok(()));
        records.remove(1);
        assert!(history(&five, &records).unwrap_err().contains("nobody asked"));
    }
}
