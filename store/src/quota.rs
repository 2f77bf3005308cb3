//! How much may be stored. A store that has more than its quota raises an alarm, and from then on takes no puts: only what
//! makes it smaller. The alarm goes by itself once there is room again, or when somebody takes it back.
//!
//! An alarm is a key, so every member has it, and it outlives restarts.

use bytes::Bytes;

use crate::{Change, Compare, Error, Op, Snapshot, Txn, types::prefix_end};

/// The prefix of the keys that are alarms, each named by the member that raised it.
pub const ALARMS: &[u8] = b"/minik8s/alarms/";
/// What the group itself writes is never refused: it is little, and without it nothing can be mended.
const OWN: &[u8] = b"/minik8s/";

/// What a lease takes without its keys, about; as much as for etcd.
pub const LEASE_BYTES: usize = 64;

/// An alarm goes by itself when less than this many hundredths of the quota are in use.
const ROOM_AGAIN: usize = 90;

/// What a proposal has to do with the quota.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Proceed,
    /// The first to find the quota exceeded: it raises the alarm, and is refused.
    Raise,
    Refuse,
    /// There is room again: the alarm goes, and the proposal comes after it.
    Clear,
}

/// How full the store is.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    pub bytes: usize,
    pub quota: usize,
    pub alarmed: bool,
}

/// Decides about a proposal that adds at most `adds` bytes; 0 for one that adds nothing.
pub fn decide(Fill { bytes, quota, alarmed }: Fill, adds: usize) -> Verdict {
    match (alarmed, adds) {
        (_, 0) => Verdict::Proceed,
        (false, adds) if bytes + adds > quota => Verdict::Raise,
        (false, _) => Verdict::Proceed,
        // In this order: a large value must not clear what it would raise again.
        (true, adds) if bytes + adds <= quota / 100 * ROOM_AGAIN => Verdict::Clear,
        (true, _) => Verdict::Refuse,
    }
}

/// How many bytes a transaction may add. What frees none and adds none is 0.
pub fn adds(txn: &Txn) -> usize {
    let branch = |ops: &[Op]| ops.iter().map(added).sum::<usize>();
    branch(&txn.then).max(branch(&txn.otherwise))
}

fn added(op: &Op) -> usize {
    match op {
        Op::Put { key, .. } | Op::Update { key, .. } if key.starts_with(OWN) => 0,
        Op::Put { key, value, .. } | Op::Update { key, value: Change::Set(value), .. } => key.len() + value.len(),
        Op::Update { value: Change::Keep, .. } | Op::Delete { .. } | Op::Range { .. } => 0,
        Op::Txn(txn) => adds(txn),
    }
}

pub fn alarm_key(member: u64) -> Bytes {
    [ALARMS, format!("{member:016x}").as_bytes()].concat().into()
}

/// Raises the alarm, where it is not raised yet.
pub fn raise(member: u64) -> Txn {
    let key = alarm_key(member);
    Txn {
        compare: vec![Compare::Version { key: key.clone(), equals: 0 }],
        then: vec![Op::Put { key, value: Bytes::from_static(b"NOSPACE"), lease: None }],
        otherwise: Vec::new(),
    }
}

/// Takes back the alarms of all members.
pub fn clear() -> Txn {
    let delete = Op::Delete { start: Bytes::from_static(ALARMS), end: Some(prefix_end(ALARMS)) };
    Txn { then: vec![delete], ..Txn::default() }
}

/// Who has raised an alarm.
pub fn alarms(snapshot: &Snapshot) -> Vec<u64> {
    let range = snapshot.map.range(ALARMS, &prefix_end(ALARMS));
    let member = |key: &[u8]| u64::from_str_radix(std::str::from_utf8(key.strip_prefix(ALARMS)?).ok()?, 16).ok();
    range.filter_map(|kv| member(&kv.key)).collect()
}

pub fn no_space(Fill { bytes, quota, .. }: Fill) -> Error {
    Error::NoSpace { bytes, quota }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        for (bytes, alarmed, adds, verdict) in [
            (500, false, 400, Verdict::Proceed),
            (500, false, 501, Verdict::Raise),
            (2000, false, 0, Verdict::Proceed),
            (2000, true, 0, Verdict::Proceed),
            (950, true, 1, Verdict::Refuse),
            (700, true, 100, Verdict::Clear),
            (700, true, 250, Verdict::Refuse),
        ] {
            assert_eq!(decide(Fill { bytes, quota: 1000, alarmed }, adds), verdict, "{bytes} {alarmed} {adds}");
        }
    }

    #[test]
    fn what_is_added() {
        let put = |key: &'static [u8]| Op::Put {
            key: Bytes::from_static(key),
            value: Bytes::from_static(b"12345"),
            lease: None,
        };
        let delete = Op::Delete { start: Bytes::from_static(b"k"), end: None };
        let txn = |then: Vec<Op>| Txn { then, ..Txn::default() };
        assert_eq!(adds(&txn(vec![put(b"a"), put(b"b")])), 12);
        assert_eq!(adds(&txn(vec![delete.clone()])), 0);
        assert_eq!(adds(&txn(vec![put(b"/minik8s/members/x")])), 0);
        assert_eq!(adds(&txn(vec![Op::Txn(txn(vec![put(b"a"), delete]))])), 6);
        assert_eq!(adds(&raise(7)), 0, "an alarm can always be raised");
    }
}
