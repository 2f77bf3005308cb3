//! One batch as bytes: `[magic u32][crc u32][length u32][0 u32][number u64][records]`, padded to eight bytes,
//! little-endian. The checksum covers everything after itself.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState};

use crate::{
    command::{DecodeError, Reader, put_bytes, put_varint},
    mvcc::Position,
};

const MAGIC: u32 = u32::from_le_bytes(*b"m8sL");
pub const HEADER: usize = 24;
/// Frames begin at multiples of it.
pub const ALIGN: usize = 8;

/// What a frame holds, as it is written.
#[derive(Debug)]
pub enum Record<'a> {
    HardState(&'a HardState),
    Entry(&'a Entry),
    Reset(Position),
}

/// What a frame holds, as it is read.
#[derive(Debug, PartialEq)]
pub enum Owned {
    HardState(HardState),
    Entry(Entry),
    Reset(Position),
}

pub fn encode(number: u64, records: &[Record<'_>], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.resize(HEADER, 0);
    for record in records {
        put_record(out, record);
    }
    let length = (out.len() - HEADER) as u32;
    out[8..12].copy_from_slice(&length.to_le_bytes());
    out[16..24].copy_from_slice(&number.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    let crc = crc32fast::hash(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn put_record(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::HardState(hard_state) => {
            out.push(1);
            put_varint(out, hard_state.term);
            put_varint(out, hard_state.vote);
            put_varint(out, hard_state.commit);
        }
        Record::Entry(entry) => {
            out.push(2);
            put_varint(out, entry.index);
            put_varint(out, entry.term);
            out.push(entry.entry_type as u8);
            put_bytes(out, &entry.context);
            put_bytes(out, &entry.data);
        }
        Record::Reset(position) => {
            out.push(3);
            put_varint(out, position.index);
            put_varint(out, position.term);
        }
    }
}

/// A frame found whole.
#[derive(Debug)]
pub struct Frame<'a> {
    pub number: u64,
    /// Its size in the file, padding and all.
    pub size: usize,
    payload: &'a [u8],
}

/// The frame at the beginning of `data`, if a whole one is there.
pub fn find(data: &[u8]) -> Option<Frame<'_>> {
    let word = |at: usize| data.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    if word(0)? != MAGIC {
        return None;
    }
    let length = word(8)? as usize;
    let size = HEADER.checked_add(length)?.checked_next_multiple_of(ALIGN)?;
    let whole = data.get(..size)?;
    if crc32fast::hash(&whole[8..]) != word(4)? {
        return None;
    }
    let number = u64::from_le_bytes(whole[16..24].try_into().ok()?);
    Some(Frame { number, size, payload: &whole[HEADER..HEADER + length] })
}

impl Frame<'_> {
    pub fn records(&self) -> Result<Vec<Owned>, DecodeError> {
        // A copy of its own per frame: an entry's value must not keep a whole segment in memory.
        let mut input = Reader { data: Bytes::copy_from_slice(self.payload) };
        let mut records = Vec::new();
        while !input.is_empty() {
            records.push(read_record(&mut input)?);
        }
        Ok(records)
    }
}

fn read_record(input: &mut Reader) -> Result<Owned, DecodeError> {
    match input.u8()? {
        1 => {
            let (term, vote, commit) = (input.varint()?, input.varint()?, input.varint()?);
            Ok(Owned::HardState(HardState { term, vote, commit, ..HardState::default() }))
        }
        2 => {
            let (index, term) = (input.varint()?, input.varint()?);
            let entry_type = match input.u8()? {
                0 => EntryType::EntryNormal,
                1 => EntryType::EntryConfChange,
                2 => EntryType::EntryConfChangeV2,
                _ => return Err(DecodeError("unknown type of entry")),
            };
            let (context, data) = (input.bytes()?, input.bytes()?);
            // Cut loose from the frame, whose other entries may be long gone when this one is still in use.
            let (context, data) = (Bytes::copy_from_slice(&context), Bytes::copy_from_slice(&data));
            Ok(Owned::Entry(Entry { entry_type, term, index, data, context, ..Entry::default() }))
        }
        3 => Ok(Owned::Reset(Position { index: input.varint()?, term: input.varint()? })),
        _ => Err(DecodeError("unknown record")),
    }
}
