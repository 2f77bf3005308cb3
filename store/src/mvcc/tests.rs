use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    Change as Set, Compare, EventKind, Op, OpResult, Operand, Relation, Txn, check::check, command::Command, image,
    types::in_range,
};

const NO_LIMITS: Limits = Limits { revisions: usize::MAX / 8, age_ms: u64::MAX / 8, bytes: usize::MAX / 8 };

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: bytes(key), value: bytes(value), lease: None }
}

fn then(ops: Vec<Op>) -> Command {
    Command::Txn(Txn { then: ops, ..Txn::default() })
}

/// A state and the log that made it.
struct Machine {
    state: State,
    index: u64,
}

impl Machine {
    fn new() -> Machine {
        Machine { state: State::new(Image::default()), index: 1 }
    }

    fn apply(&mut self, command: Command) -> Applied {
        self.apply_at(0, command)
    }

    fn apply_at(&mut self, at: u64, command: Command) -> Applied {
        self.index += 1;
        self.state.apply(Position { index: self.index, term: 1 }, at, &command)
    }

    fn txn(&mut self, txn: Txn) -> TxnResult {
        match self.apply(Command::Txn(txn)).answer {
            Ok(Answer::Txn(result)) => result,
            other => panic!("not a transaction's answer: {other:?}"),
        }
    }
}

#[test]
fn revisions_and_versions() {
    let mut machine = Machine::new();
    // (operation, revision after it, then of key "a": create revision, mod revision, version; none if absent)
    for (op, revision, a) in [
        (put("a", "1"), 2, Some((2, 2, 1))),
        (put("b", "1"), 3, Some((2, 2, 1))),
        (put("a", "2"), 4, Some((2, 4, 2))),
        (Op::Delete { start: bytes("x"), end: None }, 4, Some((2, 4, 2))),
        (Op::Delete { start: bytes("a"), end: None }, 5, None),
        (put("a", "3"), 6, Some((6, 6, 1))),
        (Op::Range { start: bytes("a"), end: None }, 6, Some((6, 6, 1))),
        (Op::Delete { start: bytes("a"), end: Some(bytes("c")) }, 7, None),
    ] {
        let result = machine.txn(Txn { then: vec![op.clone()], ..Txn::default() });
        assert_eq!(result.revision, revision, "after {op:?}");
        let snapshot = machine.state.snapshot();
        let found = snapshot.get(b"a").map(|kv| (kv.create_revision, kv.mod_revision, kv.version));
        assert_eq!(found, a, "after {op:?}");
    }
}

#[test]
fn comparisons() {
    let mut machine = Machine::new();
    machine.apply(then(vec![put("a", "1")]));
    machine.apply(then(vec![put("a", "2")]));
    let (a, none) = (bytes("a"), bytes("none"));
    for (compare, holds) in [
        (Compare::ModRevision { key: a.clone(), equals: 3 }, true),
        (Compare::ModRevision { key: a.clone(), equals: 2 }, false),
        (Compare::ModRevision { key: none.clone(), equals: 0 }, true),
        (Compare::CreateRevision { key: a.clone(), equals: 2 }, true),
        (Compare::CreateRevision { key: none.clone(), equals: 2 }, false),
        (Compare::Version { key: a.clone(), equals: 2 }, true),
        (Compare::Version { key: none.clone(), equals: 0 }, true),
        (Compare::Value { key: a.clone(), equals: bytes("2") }, true),
        (Compare::Value { key: a.clone(), equals: bytes("1") }, false),
        (Compare::Value { key: none.clone(), equals: bytes("") }, false),
    ] {
        let read = |key: &Bytes| vec![Op::Range { start: key.clone(), end: None }];
        let result = machine.txn(Txn { compare: vec![compare.clone()], then: read(&a), otherwise: read(&none) });
        assert_eq!(result.succeeded, holds, "{compare:?}");
        let items = if holds { machine.state.snapshot().get(b"a").cloned().into_iter().collect() } else { vec![] };
        assert_eq!(result.results, [OpResult::Range { items }], "{compare:?}");
    }
}

#[test]
fn general_comparisons() {
    use Operand::{CreateRevision, Lease, ModRevision, Version};
    use Relation::{Equal, Greater, Less, NotEqual};
    let mut machine = Machine::new();
    machine.apply(Command::LeaseGrant { id: Some(LeaseId(7)), ttl: Duration::from_secs(9) });
    machine.apply(then(vec![put("a", "m"), put("b", "m")]));
    machine.apply(then(vec![Op::Put { key: bytes("a"), value: bytes("n"), lease: Some(LeaseId(7)) }]));
    let value = |text| Operand::Value(bytes(text));
    for (start, end, relation, operand, holds) in [
        ("a", None, Equal, ModRevision(3), true),
        ("a", None, NotEqual, ModRevision(3), false),
        ("a", None, Greater, ModRevision(2), true),
        ("a", None, Greater, ModRevision(3), false),
        ("a", None, Less, CreateRevision(3), true),
        ("a", None, Less, CreateRevision(2), false),
        ("a", None, Greater, CreateRevision(-1), true),
        ("a", None, Equal, Version(2), true),
        ("a", None, Equal, Lease(7), true),
        ("b", None, Equal, Lease(0), true),
        ("a", None, Equal, value("n"), true),
        ("a", None, Less, value("na"), true),
        ("a", None, Greater, value("m"), true),
        // Every key of a range counts.
        ("a", Some("c"), Greater, Version(0), true),
        ("a", Some("c"), Greater, Version(1), false),
        ("a", Some(""), NotEqual, value("x"), true),
        ("a", Some(""), Equal, value("m"), false),
        // What is absent is compared with its zeroes, but has no value.
        ("x", None, Equal, Version(0), true),
        ("x", None, NotEqual, Version(0), false),
        ("x", Some("y"), Equal, CreateRevision(0), true),
        ("x", Some("y"), Greater, ModRevision(0), false),
        ("x", None, NotEqual, value("x"), false),
        ("x", Some("y"), NotEqual, value("x"), false),
    ] {
        let compare = Compare::Keys { start: bytes(start), end: end.map(bytes), relation, operand };
        let result = machine.txn(Txn { compare: vec![compare.clone()], ..Txn::default() });
        assert_eq!(result.succeeded, holds, "{compare:?}");
    }
}

#[test]
fn transactions_in_transactions() {
    let mut machine = Machine::new();
    machine.apply(then(vec![put("a", "1")]));
    let is = |key: &str, version| Compare::Version { key: bytes(key), equals: version };
    let read = |key: &str| Op::Range { start: bytes(key), end: None };
    // The inner comparison sees the state before all of it; its reads see what has been written.
    let inner = Txn { compare: vec![is("b", 0)], then: vec![put("c", "1"), read("b")], otherwise: vec![put("d", "1")] };
    let outer = Txn { compare: vec![is("a", 1)], then: vec![put("b", "1"), Op::Txn(inner)], otherwise: vec![] };
    let result = machine.txn(outer);
    assert!(result.succeeded && result.revision == 3, "{result:?}");
    let OpResult::Txn { succeeded: true, results } = &result.results[1] else { panic!("{result:?}") };
    let OpResult::Range { items } = &results[1] else { panic!("{result:?}") };
    assert_eq!((items.len(), items[0].mod_revision), (1, 3));
    let keys: Vec<_> = machine.state.snapshot().map.values().map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, ["a", "b", "c"]);

    let missing = Op::Put { key: bytes("y"), value: bytes("v"), lease: Some(LeaseId(99)) };
    let refused = Txn { then: vec![missing], ..Txn::default() };
    let outer = then(vec![put("x", "1"), Op::Txn(Txn { otherwise: vec![], ..refused })]);
    assert_eq!(machine.apply(outer).answer, Err(Refusal::LeaseNotFound(LeaseId(99))));
    assert_eq!(machine.state.revision(), 3, "nothing is left behind, however deep the refusal");
}

#[test]
fn updates_keep_what_they_do_not_set() {
    let mut machine = Machine::new();
    machine.apply(Command::LeaseGrant { id: Some(LeaseId(7)), ttl: Duration::from_secs(9) });
    let update = |key: &str, value, lease| then(vec![Op::Update { key: bytes(key), value, lease }]);
    assert_eq!(machine.apply(update("a", Set::Keep, Set::Set(None))).answer, Err(Refusal::KeyNotFound));
    machine.apply(then(vec![put("a", "1")]));
    for (value, lease, now) in [
        (Set::Keep, Set::Set(Some(LeaseId(7))), ("1", Some(LeaseId(7)), 2)),
        (Set::Set(bytes("2")), Set::Keep, ("2", Some(LeaseId(7)), 3)),
        (Set::Keep, Set::Set(None), ("2", None, 4)),
        (Set::Keep, Set::Keep, ("2", None, 5)),
    ] {
        machine.apply(update("a", value, lease));
        let snapshot = machine.state.snapshot();
        let kv = snapshot.get(b"a").expect("a key");
        assert_eq!((kv.value.clone(), kv.lease, kv.version), (bytes(now.0), now.1, now.2));
    }
    assert_eq!(machine.state.lease(LeaseId(7), 0).map(|lease| lease.keys), Some(vec![]), "and the lease knows");
}

#[test]
fn leases_of_a_chosen_name() {
    let mut machine = Machine::new();
    let grant = |machine: &mut Machine, at, id: Option<u64>| {
        machine.apply_at(at, Command::LeaseGrant { id: id.map(LeaseId), ttl: Duration::from_secs(9) }).answer
    };
    let granted = |id| Ok(Answer::Lease { id: LeaseId(id), ttl_ms: 9000 });
    assert_eq!(grant(&mut machine, 1000, Some(3)), granted(3));
    assert_eq!(grant(&mut machine, 1000, Some(3)), Err(Refusal::LeaseExists(LeaseId(3))));
    assert_eq!(grant(&mut machine, 1000, Some(5)), granted(5));
    assert_eq!(machine.index, 4);
    assert_eq!(grant(&mut machine, 1000, None), granted(6), "the number of this entry is taken");
    let remaining =
        |machine: &Machine, now| machine.state.lease(LeaseId(3), now).map(|lease| lease.remaining.as_millis());
    assert_eq!(remaining(&machine, 3000), Some(7000));
    machine.apply_at(4000, Command::LeaseKeepAlive { id: LeaseId(3) });
    assert_eq!(remaining(&machine, 5000), Some(8000));
    assert_eq!(remaining(&machine, 50_000), Some(0));
    assert_eq!(machine.state.lease(LeaseId(4), 0), None);
}

#[test]
fn no_key_is_changed_twice() {
    let delete = |start: &str, end: Option<&str>| Op::Delete { start: bytes(start), end: end.map(bytes) };
    let inner = |then, otherwise| Op::Txn(Txn { then, otherwise, ..Txn::default() });
    for (ops, accepted) in [
        (vec![put("a", "1")], true),
        (vec![put("a", "1"), put("b", "1")], true),
        (vec![put("a", "1"), put("a", "1")], false),
        (vec![put("b", "1"), delete("a", None)], true),
        (vec![put("a", "1"), delete("a", None)], false),
        (vec![put("b", "1"), delete("a", Some("c"))], false),
        (vec![put("c", "1"), delete("a", Some("c"))], true),
        (vec![put("c", "1"), delete("a", Some(""))], false),
        (vec![delete("a", None), delete("a", None)], true),
        (vec![inner(vec![put("a", "1")], vec![put("a", "2")])], true),
        (vec![inner(vec![put("a", "1"), put("a", "2")], vec![])], false),
        (vec![inner(vec![put("a", "1")], vec![]), put("a", "2")], false),
        (vec![inner(vec![], vec![put("a", "1")]), inner(vec![put("a", "2")], vec![])], false),
        (vec![inner(vec![delete("a", None)], vec![put("a", "1")])], true),
        (vec![inner(vec![delete("a", None)], vec![]), put("a", "1")], false),
        (vec![inner(vec![put("a", "1")], vec![]), delete("a", None)], false),
        (vec![inner(vec![delete("a", None)], vec![]), inner(vec![put("a", "1")], vec![])], false),
        (vec![inner(vec![inner(vec![put("a", "1")], vec![])], vec![]), put("a", "1")], false),
    ] {
        let txn = Txn { then: ops, ..Txn::default() };
        assert_eq!(check(&txn).is_ok(), accepted, "{txn:?}");
    }
    let deep = (0..500).fold(Txn::default(), |txn, _| Txn { then: vec![Op::Txn(txn)], ..Txn::default() });
    assert!(check(&deep).is_err(), "the depth is bounded");
}

#[test]
fn a_transaction_is_one_revision_and_sees_its_own_writes() {
    let mut machine = Machine::new();
    let Applied { answer, batch } =
        machine.apply(then(vec![put("a", "1"), put("b", "1"), Op::Range { start: bytes("a"), end: Some(bytes("")) }]));
    let Ok(Answer::Txn(result)) = answer else { panic!("refused: {answer:?}") };
    let batch = batch.expect("events");
    assert_eq!((result.revision, batch.revision, batch.events.len()), (2, 2, 2));
    let OpResult::Range { items } = &result.results[2] else { panic!("{result:?}") };
    assert_eq!(items.iter().map(|kv| kv.mod_revision).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_delete_tells_the_last_value_and_its_own_revision() {
    let mut machine = Machine::new();
    machine.apply(then(vec![put("a", "1")]));
    let Applied { batch, .. } = machine.apply(then(vec![Op::Delete { start: bytes("a"), end: None }]));
    let event = &batch.expect("an event").events[0];
    assert_eq!((event.kind, &event.kv.value[..], event.kv.mod_revision), (EventKind::Delete, &b"1"[..], 3));
    assert_eq!(event.previous.as_ref().map(|kv| kv.mod_revision), Some(2));
}

#[test]
fn leases_hold_and_take_their_keys() {
    let mut machine = Machine::new();
    let grant = |machine: &mut Machine| match machine
        .apply(Command::LeaseGrant { id: None, ttl: std::time::Duration::from_secs(9) })
        .answer
    {
        Ok(Answer::Lease { id, ttl_ms: 9000 }) => id,
        other => panic!("{other:?}"),
    };
    let (one, two) = (grant(&mut machine), grant(&mut machine));
    let leased = |key: &str, lease| Op::Put { key: bytes(key), value: bytes("v"), lease: Some(lease) };
    machine.apply(then(vec![leased("a", one), leased("b", one), leased("c", two)]));
    // "b" leaves its lease by being put without it, "c" moves.
    machine.apply(then(vec![put("b", "free"), leased("c", one)]));
    let Applied { answer, batch } = machine.apply(Command::LeaseRevoke { id: one });
    assert_eq!(answer, Ok(Answer::Done));
    let gone: Vec<_> = batch.expect("events").events.iter().map(|event| event.kv.key.clone()).collect();
    assert_eq!(gone, ["a", "c"]);
    assert_eq!(machine.apply(Command::LeaseRevoke { id: one }).answer, Err(Refusal::LeaseNotFound(one)));
    assert_eq!(machine.apply(Command::LeaseKeepAlive { id: one }).answer, Err(Refusal::LeaseNotFound(one)));
    let before = machine.state.revision();
    let refused = machine.apply(then(vec![put("x", "1"), leased("d", one)]));
    assert_eq!(refused, Applied { answer: Err(Refusal::LeaseNotFound(one)), batch: None });
    assert_eq!(machine.state.revision(), before, "a refused transaction leaves nothing behind");
    assert_eq!(machine.state.snapshot().get(b"x"), None);
    assert_eq!(
        machine.apply(Command::LeaseRevoke { id: two }),
        Applied { answer: Ok(Answer::Done), batch: None },
        "no keys, no events"
    );
    assert_eq!(machine.state.revision(), before);
}

#[test]
fn history_is_bounded_by_each_limit() {
    for (what, limits, kept) in [
        ("count", Limits { revisions: 10, ..NO_LIMITS }, 10),
        ("age", Limits { age_ms: 20, ..NO_LIMITS }, 21),
        ("bytes", Limits { bytes: 257 * 8, ..NO_LIMITS }, 7),
        ("nothing", NO_LIMITS, 100),
    ] {
        let mut machine = Machine::new();
        for at in 1..=100 {
            machine.apply_at(at, then(vec![put("a", "1")]));
        }
        assert_eq!(machine.state.over(&limits, 100), kept < 100, "{what}");
        let forgotten = machine.state.trim(&limits, 100);
        assert_eq!(forgotten.len(), 100 - kept, "{what}");
        let oldest = machine.state.oldest();
        assert_eq!(oldest, 101 - kept as u64, "{what}");
        assert!(machine.state.undo_to(oldest).is_ok(), "{what}");
        let refused = machine.state.undo_to(oldest - 1).err();
        let expected = (kept < 100).then_some(Refusal::Compacted { requested: oldest - 1, oldest });
        assert_eq!(refused.filter(|_| kept < 100), expected, "{what}");
    }
}

#[test]
fn compaction() {
    let mut machine = Machine::new();
    for _ in 0..10 {
        machine.apply(then(vec![put("a", "1")]));
    }
    let compact = |machine: &mut Machine, revision| machine.apply(Command::Compact { revision }).answer;
    assert_eq!(compact(&mut machine, 12), Err(Refusal::Future { requested: 12, current: 11 }));
    assert_eq!(compact(&mut machine, 5), Ok(Answer::Done));
    assert_eq!(machine.state.undo_to(4).err(), Some(Refusal::Compacted { requested: 4, oldest: 5 }), "at once");
    assert_eq!(compact(&mut machine, 4), Err(Refusal::Compacted { requested: 4, oldest: 5 }));
    assert_eq!(compact(&mut machine, 5), Err(Refusal::Compacted { requested: 5, oldest: 5 }), "and once");
    assert!(machine.state.over(&NO_LIMITS, 0));
    assert_eq!(machine.state.trim(&NO_LIMITS, 0).len(), 3, "what happened at 5 is still told");
    assert_eq!((machine.state.base().revision, machine.state.oldest_event()), (4, 5));
    assert!(!machine.state.over(&NO_LIMITS, 0));
}

/// What the store must be equal to: every state there ever was, each a plain map.
#[derive(Default)]
struct Model {
    states: BTreeMap<Revision, BTreeMap<Bytes, KeyValue>>,
}

impl Model {
    fn carry_out(&mut self, txn: &Txn) {
        let (&revision, newest) = self.states.last_key_value().expect("a state");
        let mut now = newest.clone();
        let modified = |map: &BTreeMap<Bytes, KeyValue>, key| map.get(key).map_or(0, |kv| kv.mod_revision);
        let succeeded = txn.compare.iter().all(|compare| match compare {
            Compare::ModRevision { key, equals } => modified(&now, key) == *equals,
            other => panic!("not generated: {other:?}"),
        });
        let mut changed = false;
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            match op {
                Op::Put { key, value, lease } => {
                    let old = now.get(key);
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(revision + 1, |old| old.create_revision),
                        mod_revision: revision + 1,
                        version: old.map_or(0, |old| old.version) + 1,
                        lease: *lease,
                    };
                    now.insert(key.clone(), kv);
                    changed = true;
                }
                Op::Delete { start, end } => {
                    let before = now.len();
                    now.retain(|key, _| match end {
                        Some(end) => !in_range(key, start, end),
                        None => key != start,
                    });
                    changed |= now.len() != before;
                }
                Op::Range { .. } => {}
                other => panic!("not generated: {other:?}"),
            }
        }
        if changed {
            self.states.insert(revision + 1, now);
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    "[ab]/[a-d]{1,2}".prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (key(), "[a-z]{0,3}").prop_map(|(key, value)| Op::Put { key, value: value.into(), lease: None }),
        2 => key().prop_map(|start| Op::Delete { start, end: None }),
        1 => (key(), key()).prop_map(|(start, end)| Op::Delete { start, end: Some(end) }),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let compare = (key(), 0u64..6).prop_map(|(key, equals)| Compare::ModRevision { key, equals });
    // One operation a branch keeps to what the store accepts: no key changed twice in one transaction.
    (prop::collection::vec(compare, 0..2), op(), op()).prop_map(|(compare, then, otherwise)| Txn {
        compare,
        then: vec![then],
        otherwise: vec![otherwise],
    })
}

proptest! {
    #[test]
    fn every_revision_equals_the_model(txns in prop::collection::vec(txn(), 1..60), keep in 1usize..40) {
        let mut machine = Machine::new();
        let mut model = Model { states: [(FIRST_REVISION, BTreeMap::new())].into() };
        let limits = Limits { revisions: keep, ..NO_LIMITS };
        let mut log = Vec::new();
        for txn in txns {
            model.carry_out(&txn);
            machine.apply(Command::Txn(txn.clone()));
            log.push((Position { index: machine.index, term: 1 }, Command::Txn(txn)));
            if machine.state.over(&limits, 0) {
                machine.state.trim(&limits, 0);
            }
        }
        let state = &machine.state;
        prop_assert_eq!(state.revision(), *model.states.last_key_value().unwrap().0);
        for (&revision, expected) in model.states.range(state.oldest()..) {
            let image = state.undo_to(revision).map_err(|refusal| TestCaseError::fail(format!("{refusal:?}")))?.undo();
            let found: BTreeMap<Bytes, KeyValue> = image.map.values().map(|kv| (kv.key.clone(), (**kv).clone())).collect();
            prop_assert_eq!(&found, expected, "at revision {}", revision);
        }
        // The events from any revision on are in order, without gaps, and turn that state into the newest.
        for (&from, map) in model.states.range(state.oldest()..) {
            let mut map = map.clone();
            for (at, batch) in state.batches_after(from).enumerate() {
                prop_assert_eq!(batch.revision, from + 1 + at as u64);
                for event in &batch.events {
                    prop_assert_eq!(event.kv.mod_revision, batch.revision);
                    prop_assert_eq!(event.previous.as_deref(), map.get(&event.kv.key));
                    match event.kind {
                        EventKind::Put => map.insert(event.kv.key.clone(), (*event.kv).clone()),
                        EventKind::Delete => map.remove(&event.kv.key),
                    };
                }
            }
            prop_assert_eq!(&map, model.states.last_key_value().unwrap().1);
        }
        // A restart: the base's image, through its bytes, and the log after it.
        let image = image::decode(image::encode(&state.base_image().undo()).into()).unwrap();
        prop_assert_eq!(&image.base, state.base());
        let mut restarted = State::new(image);
        for (position, command) in log.iter().filter(|(position, _)| *position > state.base().position) {
            restarted.apply(*position, 0, command);
        }
        prop_assert_eq!(restarted.image().map, state.image().map);
        prop_assert_eq!(restarted.image().base, state.image().base);
        prop_assert_eq!(restarted.oldest(), state.oldest());
    }
}
