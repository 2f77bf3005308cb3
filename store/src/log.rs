//! The durable log: what Raft must never forget.
//!
//! Segments of preallocated files hold frames. A frame is one batch (hard state and entries together), has one
//! checksum, and is written and synced before the next one is begun; so after a crash at most the last frame is
//! torn, and a bad frame with a good one after it is damage, not a crash. Damage is refused, never repaired.
//!
//! Invariant: frame numbers are consecutive, through all segments.
//! Invariant: after `append` returned, its batch is on the disk; after it failed once, the log is not used again.

mod frame;
mod segment;

use std::{path::PathBuf, sync::Arc};

use raft::eraftpb::{Entry, HardState};

use self::frame::Record;
use crate::{
    Error,
    disk::{Disk, File, Mode},
    mvcc::Position,
};

/// The size of a segment: large enough that making one is rare, small enough that the log is cut in small steps.
pub const SEGMENT_BYTES: u64 = 8 << 20;

/// Where a log lies, and in what steps it grows.
#[derive(Debug, Clone)]
pub struct Place {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    pub segment_bytes: u64,
}

/// One batch.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Write {
    /// All earlier entries are void: a snapshot up to here has taken their place.
    pub reset: Option<Position>,
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

/// What the log still had.
#[derive(Debug, Default, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// Everything after the position asked for, without gaps.
    pub entries: Vec<Entry>,
    /// Bytes of a batch that a crash had torn; nobody had been told that it was written.
    pub torn: u64,
}

#[derive(Debug)]
pub struct Log {
    place: Place,
    /// Oldest first; the last one is written to.
    segments: Vec<segment::Segment>,
    file: Box<dyn File>,
    /// Where the next frame goes, and where the file ends.
    offset: u64,
    capacity: u64,
    next_frame: u64,
    hard_state: HardState,
    last_index: u64,
    buffer: Vec<u8>,
}

impl Log {
    /// Opens the log behind `from`, the position of the state that the entries are to be replayed on. A state `from` a
    /// snapshot may be newer than the whole log; one of a checkpoint may not. Only a founding state begins an empty log.
    pub fn open(place: Place, from: Start) -> Result<(Log, Recovered), Error> {
        let reading = segment::read_all(&place, from.position.index)?;
        let Some(mut reading) = reading else {
            if from.origin != Origin::Founding {
                let reason = "the log is missing".to_owned();
                return Err(Error::Corrupt { path: place.dir, offset: 0, reason });
            }
            return Log::create(place, from.position);
        };
        let recovered = replay(&place.dir, &mut reading, from)?;
        let last = reading.segments.last().expect("a log that was read has a segment");
        let mut file = place.disk.open(&last.path, Mode::Existing).map_err(failed("open", &last.path))?;
        if recovered.torn > 0 {
            // Zeroed rather than left: a shorter frame must not be followed by the remains of this one.
            let zeros = vec![0; recovered.torn as usize];
            file.write_at(reading.end, &zeros).map_err(failed("cut", &last.path))?;
            file.sync().map_err(failed("sync", &last.path))?;
        }
        let mut log = Log {
            place,
            offset: reading.end,
            capacity: last.length,
            next_frame: reading.next_frame,
            hard_state: recovered.hard_state.clone(),
            last_index: from.position.index + recovered.entries.len() as u64,
            segments: reading.segments,
            file,
            buffer: Vec::new(),
        };
        if reading.superseded {
            let hard_state = Some(log.hard_state.clone());
            log.append(&Write { reset: Some(from.position), entries: Vec::new(), hard_state })?;
        }
        Ok((log, recovered))
    }

    fn create(place: Place, from: Position) -> Result<(Log, Recovered), Error> {
        place.disk.create_dir_all(&place.dir).map_err(failed("create", &place.dir))?;
        let hard_state = HardState { term: from.term, commit: from.index, ..HardState::default() };
        let segment = segment::Segment::new(&place.dir, 1, from.index + 1, place.segment_bytes);
        let file = segment.create(&place)?;
        let mut log = Log {
            place,
            capacity: segment.length,
            segments: vec![segment],
            file,
            offset: 0,
            next_frame: 1,
            hard_state: hard_state.clone(),
            last_index: from.index,
            buffer: Vec::new(),
        };
        log.append(&Write { reset: Some(from), entries: Vec::new(), hard_state: Some(hard_state.clone()) })?;
        Ok((log, Recovered { hard_state, entries: Vec::new(), torn: 0 }))
    }

    /// Writes one batch and syncs it. An error is final: what the disk now holds is unknown.
    pub fn append(&mut self, write: &Write) -> Result<(), Error> {
        let mut records = Vec::with_capacity(write.entries.len() + 2);
        records.extend(write.reset.map(Record::Reset));
        records.extend(write.entries.iter().map(Record::Entry));
        records.extend(write.hard_state.as_ref().map(Record::HardState));
        let mut buffer = std::mem::take(&mut self.buffer);
        frame::encode(self.next_frame, &records, &mut buffer);
        if self.offset + buffer.len() as u64 > self.capacity {
            self.rotate(buffer.len() as u64)?;
            // The new segment's first frame took this one's number.
            frame::encode(self.next_frame, &records, &mut buffer);
        }
        self.put(&buffer)?;
        // Only now: a new segment repeats what is on disk, not a commit index whose entries may yet be torn off.
        if let Some(hard_state) = &write.hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(reset) = write.reset {
            self.last_index = reset.index;
        }
        if let Some(last) = write.entries.last() {
            self.last_index = last.index;
        }
        // One large batch must not hold its memory for ever.
        const KEPT: usize = 256 << 10;
        buffer.clear();
        buffer.shrink_to(KEPT);
        self.buffer = buffer;
        Ok(())
    }

    fn put(&mut self, frame: &[u8]) -> Result<(), Error> {
        let path = &self.segments.last().expect("there is a segment").path;
        self.file.write_at(self.offset, frame).map_err(failed("write", path))?;
        self.file.sync().map_err(failed("sync", path))?;
        self.offset += frame.len() as u64;
        self.next_frame += 1;
        Ok(())
    }

    /// Begins a segment with room for `frame` bytes. Its first frame repeats the hard state, so that the earlier
    /// segments can be removed.
    fn rotate(&mut self, frame: u64) -> Result<(), Error> {
        const FIRST_FRAME: u64 = 256;
        let number = self.segments.last().expect("there is a segment").number + 1;
        let length = self.place.segment_bytes.max(frame + FIRST_FRAME);
        let segment = segment::Segment::new(&self.place.dir, number, self.last_index + 1, length);
        self.file = segment.create(&self.place)?;
        self.segments.push(segment);
        self.offset = 0;
        self.capacity = length;
        let mut first = Vec::new();
        frame::encode(self.next_frame, &[Record::HardState(&self.hard_state)], &mut first);
        self.put(&first)
    }

    /// Removes segments that hold nothing after `index`.
    pub fn purge(&mut self, index: u64) -> Result<(), Error> {
        let dispensable = self.segments.windows(2).take_while(|pair| pair[1].first_index <= index + 1).count();
        for segment in self.segments.drain(..dispensable) {
            self.place.disk.remove(&segment.path).map_err(failed("remove", &segment.path))?;
        }
        if dispensable > 0 {
            self.place.disk.sync_dir(&self.place.dir).map_err(failed("sync", &self.place.dir))?;
        }
        Ok(())
    }

    /// How much of the disk is in use.
    pub fn bytes(&self) -> u64 {
        let full = self.segments.iter().rev().skip(1);
        full.map(|segment| segment.length).sum::<u64>() + self.offset
    }
}

/// Where the state comes from that the log is replayed on.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    pub position: Position,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Holds nothing yet but who votes: the log may not be there so far.
    Founding,
    /// Made of this log: the log cannot be shorter.
    Checkpoint,
    /// Perhaps received from another member, and put in place before the log was told.
    Snapshot,
}

/// Goes through the frames, oldest first, and keeps what is valid in the end.
fn replay(dir: &std::path::Path, reading: &mut segment::Reading, from: Start) -> Result<Recovered, Error> {
    let position = from.position;
    let corrupt = |reason: String| Error::Corrupt { path: dir.to_owned(), offset: 0, reason };
    let mut hard_state = HardState::default();
    let mut entries: Vec<Entry> = Vec::new();
    // The entry before the first one in `entries`, where it is known.
    let mut before: Option<Position> = None;
    for record in reading.records.drain(..) {
        match record {
            frame::Owned::HardState(newer) => hard_state = newer,
            frame::Owned::Reset(position) => {
                entries.clear();
                before = Some(position);
            }
            frame::Owned::Entry(entry) => {
                let first = entries.first().map_or(entry.index, |first| first.index);
                let next = first + entries.len() as u64;
                if entry.index > next
                    || before.is_some_and(|before| entry.index > before.index + 1 && entries.is_empty())
                {
                    return Err(corrupt(format!("entry {} follows entry {}", entry.index, next - 1)));
                }
                // A later entry of the same index voids the earlier ones from there on.
                entries.truncate(entry.index.saturating_sub(first) as usize);
                entries.push(entry);
            }
        }
    }
    let last = entries.last().map(|entry| entry.index).or(before.map(|before| before.index)).unwrap_or(0);
    let at_state = entries.iter().find(|entry| entry.index == position.index).map(|entry| entry.term);
    let differs = at_state.is_some_and(|term| term != position.term);
    if last < position.index || differs {
        if from.origin == Origin::Checkpoint {
            return Err(corrupt(format!("the log ends at entry {last}, before the state's {}", position.index)));
        }
        // The snapshot was put in place and the log was not told: now it is.
        entries.clear();
        reading.superseded = true;
    }
    entries.retain(|entry| entry.index > position.index);
    if let Some(first) = entries.first()
        && first.index != position.index + 1
    {
        return Err(corrupt(format!("the log begins at entry {}, after the state's {}", first.index, position.index)));
    }
    // What the state holds was committed, even where the note of it was not written in time.
    hard_state.commit = hard_state.commit.max(position.index);
    hard_state.term = hard_state.term.max(position.term);
    let torn = reading.torn;
    Ok(Recovered { hard_state, entries, torn })
}

/// Names the operation and the file in an error of the disk.
pub(crate) fn failed(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Disk { operation, path, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
