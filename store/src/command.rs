//! Proposals as bytes: what a log entry holds. Compact, versioned, and decoded without copying keys or values.
//!
//! `[format][time, unix ms][tag][fields]`; numbers are LEB128 varints, byte strings have their length before them.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Change, Compare, LeaseId, Op, Operand, Relation, Revision, Txn};

/// Raised when the layout changes; a log entry of another format is refused, never guessed at. What is new has a tag
/// that was not there before, so that what older versions wrote stays readable.
const FORMAT: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Txn(Txn),
    /// Without an `id` one is derived from the entry's index.
    LeaseGrant {
        id: Option<LeaseId>,
        ttl: Duration,
    },
    LeaseKeepAlive {
        id: LeaseId,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    Compact {
        revision: Revision,
    },
}

/// A command and when its proposer made it, in milliseconds of unix time. The time only bounds the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    pub at: u64,
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("log entry cannot be decoded: {0}")]
pub struct DecodeError(pub(crate) &'static str);

pub fn encode(proposal: &Proposal) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + size_hint(&proposal.command));
    out.put_u8(FORMAT);
    put_varint(&mut out, proposal.at);
    match &proposal.command {
        Command::Txn(txn) => {
            out.put_u8(1);
            put_txn(&mut out, txn);
        }
        Command::LeaseGrant { id: None, ttl } => {
            out.put_u8(2);
            put_varint(&mut out, ttl.as_millis() as u64);
        }
        Command::LeaseGrant { id: Some(id), ttl } => {
            out.put_u8(6);
            put_varint(&mut out, id.0);
            put_varint(&mut out, ttl.as_millis() as u64);
        }
        Command::LeaseKeepAlive { id } => {
            out.put_u8(3);
            put_varint(&mut out, id.0);
        }
        Command::LeaseRevoke { id } => {
            out.put_u8(4);
            put_varint(&mut out, id.0);
        }
        Command::Compact { revision } => {
            out.put_u8(5);
            put_varint(&mut out, *revision);
        }
    }
    out.freeze()
}

pub fn decode(data: Bytes) -> Result<Proposal, DecodeError> {
    let mut input = Reader { data };
    if input.u8()? != FORMAT {
        return Err(DecodeError("unknown format"));
    }
    let at = input.varint()?;
    let command = match input.u8()? {
        1 => Command::Txn(read_txn(&mut input, 0)?),
        2 => Command::LeaseGrant { id: None, ttl: Duration::from_millis(input.varint()?) },
        3 => Command::LeaseKeepAlive { id: LeaseId(input.varint()?) },
        4 => Command::LeaseRevoke { id: LeaseId(input.varint()?) },
        5 => Command::Compact { revision: input.varint()? },
        6 => {
            let id = Some(LeaseId(input.varint()?));
            Command::LeaseGrant { id, ttl: Duration::from_millis(input.varint()?) }
        }
        _ => return Err(DecodeError("unknown command")),
    };
    if input.is_empty() { Ok(Proposal { at, command }) } else { Err(DecodeError("bytes after the command")) }
}

/// About how many bytes the command takes: keys and values, and a little for each part.
pub fn size_hint(command: &Command) -> usize {
    match command {
        Command::Txn(txn) => size_of_txn(txn),
        Command::LeaseGrant { .. }
        | Command::LeaseKeepAlive { .. }
        | Command::LeaseRevoke { .. }
        | Command::Compact { .. } => PART,
    }
}

const PART: usize = 24;

fn size_of_txn(txn: &Txn) -> usize {
    let range = |start: &Bytes, end: &Option<Bytes>| start.len() + end.as_ref().map_or(0, Bytes::len) + PART;
    let op = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len() + PART,
        Op::Delete { start, end } | Op::Range { start, end } => range(start, end),
        Op::Update { key, value: Change::Set(value), .. } => key.len() + value.len() + PART,
        Op::Update { key, value: Change::Keep, .. } => key.len() + PART,
        Op::Txn(txn) => size_of_txn(txn) + PART,
    };
    let compare = |compare: &Compare| match compare {
        Compare::ModRevision { key, .. } | Compare::CreateRevision { key, .. } | Compare::Version { key, .. } => {
            key.len() + PART
        }
        Compare::Value { key, equals } => key.len() + equals.len() + PART,
        Compare::Keys { start, end, operand: Operand::Value(value), .. } => range(start, end) + value.len(),
        Compare::Keys { start, end, .. } => range(start, end),
    };
    txn.compare.iter().map(compare).sum::<usize>()
        + txn.then.iter().map(op).sum::<usize>()
        + txn.otherwise.iter().map(op).sum::<usize>()
}

fn put_txn(out: &mut BytesMut, txn: &Txn) {
    put_varint(out, txn.compare.len() as u64);
    for compare in &txn.compare {
        let (tag, key, number) = match compare {
            Compare::ModRevision { key, equals } => (1, key, *equals),
            Compare::CreateRevision { key, equals } => (2, key, *equals),
            Compare::Version { key, equals } => (3, key, *equals),
            Compare::Value { key, equals } => {
                out.put_u8(4);
                put_bytes(out, key);
                put_bytes(out, equals);
                continue;
            }
            Compare::Keys { start, end, relation, operand } => {
                put_range(out, 5, start, end.as_ref());
                put_relation(out, *relation, operand);
                continue;
            }
        };
        out.put_u8(tag);
        put_bytes(out, key);
        put_varint(out, number);
    }
    put_ops(out, &txn.then);
    put_ops(out, &txn.otherwise);
}

fn put_ops(out: &mut BytesMut, ops: &[Op]) {
    put_varint(out, ops.len() as u64);
    for op in ops {
        match op {
            Op::Put { key, value, lease } => {
                out.put_u8(1);
                put_bytes(out, key);
                put_bytes(out, value);
                // No lease is granted by the entry at index 0, so 0 can mean none.
                put_varint(out, lease.map_or(0, |lease| lease.0));
            }
            Op::Delete { start, end } => put_range(out, 2, start, end.as_ref()),
            Op::Range { start, end } => put_range(out, 4, start, end.as_ref()),
            Op::Update { key, value, lease } => {
                out.put_u8(6);
                put_bytes(out, key);
                let kept = u8::from(*value == Change::Keep) | u8::from(*lease == Change::Keep) << 1;
                out.put_u8(kept);
                if let Change::Set(value) = value {
                    put_bytes(out, value);
                }
                if let Change::Set(lease) = lease {
                    put_varint(out, lease.map_or(0, |lease| lease.0));
                }
            }
            Op::Txn(txn) => {
                out.put_u8(7);
                put_txn(out, txn);
            }
        }
    }
}

fn put_relation(out: &mut BytesMut, relation: Relation, operand: &Operand) {
    out.put_u8(match relation {
        Relation::Equal => 1,
        Relation::NotEqual => 2,
        Relation::Greater => 3,
        Relation::Less => 4,
    });
    let (tag, number) = match operand {
        Operand::ModRevision(number) => (1, number),
        Operand::CreateRevision(number) => (2, number),
        Operand::Version(number) => (3, number),
        Operand::Lease(number) => (4, number),
        Operand::Value(value) => {
            out.put_u8(5);
            put_bytes(out, value);
            return;
        }
    };
    out.put_u8(tag);
    put_varint(out, *number as u64);
}

fn read_relation(input: &mut Reader) -> Result<(Relation, Operand), DecodeError> {
    let relation = match input.u8()? {
        1 => Relation::Equal,
        2 => Relation::NotEqual,
        3 => Relation::Greater,
        4 => Relation::Less,
        _ => return Err(DecodeError("unknown relation")),
    };
    let operand = match input.u8()? {
        1 => Operand::ModRevision(input.varint()? as i64),
        2 => Operand::CreateRevision(input.varint()? as i64),
        3 => Operand::Version(input.varint()? as i64),
        4 => Operand::Lease(input.varint()? as i64),
        5 => Operand::Value(input.bytes()?),
        _ => return Err(DecodeError("unknown operand")),
    };
    Ok((relation, operand))
}

/// A range's tag is raised by one where it has an end.
fn put_range(out: &mut BytesMut, tag: u8, start: &Bytes, end: Option<&Bytes>) {
    out.put_u8(tag + u8::from(end.is_some()));
    put_bytes(out, start);
    if let Some(end) = end {
        put_bytes(out, end);
    }
}

/// Transactions in transactions are decoded by recursion: what would take more of the stack than this is refused. The
/// same bound is kept where transactions are accepted.
pub const MAX_DEPTH: usize = 130;

fn read_txn(input: &mut Reader, depth: usize) -> Result<Txn, DecodeError> {
    if depth > MAX_DEPTH {
        return Err(DecodeError("transactions too deep in each other"));
    }
    let count = input.varint()?;
    let mut compare = Vec::with_capacity(room_for(count));
    for _ in 0..count {
        let tag = input.u8()?;
        let key = input.bytes()?;
        compare.push(match tag {
            1 => Compare::ModRevision { key, equals: input.varint()? },
            2 => Compare::CreateRevision { key, equals: input.varint()? },
            3 => Compare::Version { key, equals: input.varint()? },
            4 => Compare::Value { key, equals: input.bytes()? },
            5 | 6 => {
                let end = if tag == 6 { Some(input.bytes()?) } else { None };
                let (relation, operand) = read_relation(input)?;
                Compare::Keys { start: key, end, relation, operand }
            }
            _ => return Err(DecodeError("unknown comparison")),
        });
    }
    Ok(Txn { compare, then: read_ops(input, depth)?, otherwise: read_ops(input, depth)? })
}

/// What is made room for at once, where so many are said to follow.
fn room_for(count: u64) -> usize {
    count.min(64) as usize
}

fn read_ops(input: &mut Reader, depth: usize) -> Result<Vec<Op>, DecodeError> {
    let count = input.varint()?;
    let mut ops = Vec::with_capacity(room_for(count));
    for _ in 0..count {
        ops.push(match input.u8()? {
            1 => Op::Put { key: input.bytes()?, value: input.bytes()?, lease: read_lease(input)? },
            2 => Op::Delete { start: input.bytes()?, end: None },
            3 => Op::Delete { start: input.bytes()?, end: Some(input.bytes()?) },
            4 => Op::Range { start: input.bytes()?, end: None },
            5 => Op::Range { start: input.bytes()?, end: Some(input.bytes()?) },
            6 => {
                let (key, kept) = (input.bytes()?, input.u8()?);
                let value = if kept & 1 == 0 { Change::Set(input.bytes()?) } else { Change::Keep };
                let lease = if kept & 2 == 0 { Change::Set(read_lease(input)?) } else { Change::Keep };
                Op::Update { key, value, lease }
            }
            7 => Op::Txn(read_txn(input, depth + 1)?),
            _ => return Err(DecodeError("unknown operation")),
        });
    }
    Ok(ops)
}

fn read_lease(input: &mut Reader) -> Result<Option<LeaseId>, DecodeError> {
    Ok(Some(input.varint()?).filter(|&id| id != 0).map(LeaseId))
}

pub(crate) fn put_varint(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Takes the encoding apart from its front; byte strings share the input's memory.
pub(crate) struct Reader {
    pub(crate) data: Bytes,
}

impl Reader {
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.data.first().ok_or(DecodeError("cut short"))?;
        let _ = self.data.split_to(1);
        Ok(byte)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0u64;
        for (at, &byte) in self.data.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                let _ = self.data.split_to(at + 1);
                return Ok(number);
            }
        }
        Err(DecodeError("bad number"))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.varint()?;
        if length > self.data.len() as u64 {
            return Err(DecodeError("cut short"));
        }
        Ok(self.data.split_to(length as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Command> {
        let key = Bytes::from_static(b"/registry/x");
        vec![
            Command::Txn(Txn::default()),
            Command::Txn(Txn {
                compare: vec![
                    Compare::ModRevision { key: key.clone(), equals: 0 },
                    Compare::CreateRevision { key: key.clone(), equals: 300 },
                    Compare::Version { key: key.clone(), equals: u64::MAX },
                    Compare::Value { key: key.clone(), equals: Bytes::from_static(b"v") },
                ],
                then: vec![
                    Op::Put { key: key.clone(), value: Bytes::from(vec![7; 1000]), lease: Some(LeaseId(9)) },
                    Op::Put { key: Bytes::new(), value: Bytes::new(), lease: None },
                    Op::Delete { start: key.clone(), end: None },
                    Op::Delete { start: key.clone(), end: Some(Bytes::new()) },
                ],
                otherwise: vec![
                    Op::Range { start: key.clone(), end: None },
                    Op::Range { start: key.clone(), end: Some(key.clone()) },
                ],
            }),
            Command::Txn(Txn {
                compare: [Relation::Equal, Relation::NotEqual, Relation::Greater, Relation::Less]
                    .into_iter()
                    .zip([
                        Operand::ModRevision(-1),
                        Operand::CreateRevision(i64::MAX),
                        Operand::Value(Bytes::from_static(b"v")),
                        Operand::Lease(7),
                    ])
                    .map(|(relation, operand)| Compare::Keys { start: key.clone(), end: None, relation, operand })
                    .collect(),
                then: vec![
                    Op::Update { key: key.clone(), value: Change::Keep, lease: Change::Set(Some(LeaseId(3))) },
                    Op::Update { key: key.clone(), value: Change::Set(Bytes::new()), lease: Change::Keep },
                    Op::Txn(Txn {
                        compare: vec![Compare::Keys {
                            start: key.clone(),
                            end: Some(Bytes::new()),
                            relation: Relation::Less,
                            operand: Operand::Version(1),
                        }],
                        then: vec![Op::Txn(Txn::default())],
                        otherwise: vec![Op::Delete { start: key.clone(), end: None }],
                    }),
                ],
                otherwise: vec![],
            }),
            Command::LeaseGrant { id: None, ttl: Duration::from_secs(40) },
            Command::LeaseGrant { id: Some(LeaseId(i64::MAX as u64)), ttl: Duration::from_secs(40) },
            Command::LeaseKeepAlive { id: LeaseId(7) },
            Command::LeaseRevoke { id: LeaseId(1 << 40) },
            Command::Compact { revision: 12 },
        ]
    }

    #[test]
    fn every_command_comes_back_as_it_was() {
        for command in samples() {
            let proposal = Proposal { at: 1_700_000_000_123, command };
            assert_eq!(decode(encode(&proposal)), Ok(proposal));
        }
    }

    /// What versions before the general comparisons wrote.
    #[test]
    fn old_entries_stay_readable() {
        let txn = Txn {
            compare: vec![Compare::ModRevision { key: Bytes::from_static(b"k"), equals: 300 }],
            then: vec![Op::Put {
                key: Bytes::from_static(b"k"),
                value: Bytes::from_static(b"v"),
                lease: Some(LeaseId(9)),
            }],
            otherwise: vec![Op::Range { start: Bytes::from_static(b"a"), end: Some(Bytes::new()) }],
        };
        for (bytes, command) in [
            (&b"\x01\x05\x01\x01\x01\x01k\xac\x02\x01\x01\x01k\x01v\x09\x01\x05\x01a\x00"[..], Command::Txn(txn)),
            (b"\x01\x05\x02\x90\x4e", Command::LeaseGrant { id: None, ttl: Duration::from_secs(10) }),
        ] {
            let proposal = Proposal { at: 5, command };
            assert_eq!(decode(Bytes::from_static(bytes)), Ok(proposal.clone()));
            assert_eq!(encode(&proposal), bytes, "and are still what is written");
        }
    }

    #[test]
    fn a_cut_or_lengthened_command_is_refused() {
        for command in samples() {
            let whole = encode(&Proposal { at: 5, command });
            for length in 0..whole.len() {
                assert!(decode(whole.slice(..length)).is_err(), "cut to {length} bytes");
            }
            let longer: Bytes = [&whole[..], b"x"].concat().into();
            assert!(decode(longer).is_err());
        }
    }
}
