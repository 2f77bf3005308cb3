//! The files of the log, and reading them back after a start.

use std::path::{Path, PathBuf};

use super::{
    Place, failed,
    frame::{self, ALIGN, Owned},
};
use crate::{
    Error,
    disk::{File, Mode},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub number: u64,
    /// Every entry in earlier segments that is still valid has a lower index.
    pub first_index: u64,
    pub path: PathBuf,
    pub length: u64,
}

impl Segment {
    pub fn new(dir: &Path, number: u64, first_index: u64, length: u64) -> Segment {
        Segment { number, first_index, path: dir.join(format!("{number:016x}-{first_index:016x}.log")), length }
    }

    fn parse(dir: &Path, name: &str) -> Option<Segment> {
        let (number, first_index) = name.strip_suffix(".log")?.split_once('-')?;
        let (number, first_index) = (u64::from_str_radix(number, 16).ok()?, u64::from_str_radix(first_index, 16).ok()?);
        Some(Segment::new(dir, number, first_index, 0))
    }

    /// Makes the file; once this returns, a crash does not lose it.
    pub fn create(&self, place: &Place) -> Result<Box<dyn File>, Error> {
        let Place { disk, dir, .. } = place;
        let mut file = disk.open(&self.path, Mode::New).map_err(failed("create", &self.path))?;
        file.allocate(self.length).map_err(failed("allocate", &self.path))?;
        file.sync().map_err(failed("sync", &self.path))?;
        disk.sync_dir(dir).map_err(failed("sync", dir))?;
        Ok(file)
    }
}

/// What is in the files.
#[derive(Debug)]
pub struct Reading {
    pub segments: Vec<Segment>,
    pub records: Vec<Owned>,
    pub next_frame: u64,
    /// Where in the last segment the next frame goes.
    pub end: u64,
    /// How many bytes from there on a crash has left behind.
    pub torn: u64,
    /// Whether a snapshot turned out to be newer than everything here.
    pub superseded: bool,
}

/// Reads the segments that can hold entries after `index`; nothing where there is no log yet.
pub fn read_all(place: &Place, index: u64) -> Result<Option<Reading>, Error> {
    let Place { disk, dir, segment_bytes } = place;
    let names = match disk.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("list", dir)(error)),
    };
    let mut segments: Vec<Segment> = names.iter().filter_map(|name| Segment::parse(dir, name)).collect();
    segments.sort_by_key(|segment| segment.number);
    let skipped = segments.windows(2).take_while(|pair| pair[1].first_index <= index + 1).count();
    // Only among those that are needed: removed ones may come back after a power cut, and not all of them.
    if let Some(gap) = segments[skipped..].windows(2).find(|pair| pair[1].number != pair[0].number + 1) {
        let reason = format!("segment {} is missing", gap[0].number + 1);
        return Err(Error::Corrupt { path: dir.clone(), offset: 0, reason });
    }
    let mut reading =
        Reading { segments: Vec::new(), records: Vec::new(), next_frame: 0, end: 0, torn: 0, superseded: false };
    let count = segments.len();
    for (at, mut segment) in segments.into_iter().enumerate() {
        if at < skipped {
            segment.length = *segment_bytes;
            reading.segments.push(segment);
            continue;
        }
        let data = disk.read(&segment.path).map_err(failed("read", &segment.path))?;
        segment.length = data.len() as u64;
        let before = (reading.end, reading.torn, reading.next_frame);
        let frames = read_one(&mut reading, &segment, &data)?;
        let last = at + 1 == count;
        if frames == 0 && last {
            // A crash while it was being made, before anything was promised of it: the one before is the last.
            disk.remove(&segment.path).map_err(failed("remove", &segment.path))?;
            disk.sync_dir(dir).map_err(failed("sync", dir))?;
            (reading.end, reading.torn, reading.next_frame) = before;
            if let Some(previous) = reading.segments.pop_if(|_| at == skipped) {
                let data = disk.read(&previous.path).map_err(failed("read", &previous.path))?;
                read_one(&mut reading, &previous, &data)?;
                reading.segments.push(Segment { length: data.len() as u64, ..previous });
            }
            break;
        }
        if !last && reading.torn > 0 {
            let reason = "a batch in the middle of the log is damaged".to_owned();
            return Err(Error::Corrupt { path: segment.path, offset: reading.end, reason });
        }
        reading.segments.push(segment);
    }
    Ok((!reading.segments.is_empty()).then_some(reading))
}

/// Takes the frames out of one segment; answers how many there were.
fn read_one(reading: &mut Reading, segment: &Segment, data: &[u8]) -> Result<usize, Error> {
    let corrupt =
        |offset: usize, reason: String| Error::Corrupt { path: segment.path.clone(), offset: offset as u64, reason };
    let (mut offset, mut frames) = (0, 0);
    while let Some(frame) = frame::find(&data[offset..]) {
        if reading.next_frame != 0 && frame.number != reading.next_frame {
            let reason = format!("batch {} where {} was expected", frame.number, reading.next_frame);
            return Err(corrupt(offset, reason));
        }
        reading.records.extend(frame.records().map_err(|error| corrupt(offset, error.to_string()))?);
        reading.next_frame = frame.number + 1;
        offset += frame.size;
        frames += 1;
    }
    let rest = &data[offset..];
    let used = used(rest);
    // A whole frame behind a broken one had been begun only after the broken one was synced: that one was damaged later.
    let begins = (ALIGN..used).step_by(ALIGN);
    let behind = |&at: &usize| frame::find(&rest[at..]).is_some_and(|frame| frame.number >= reading.next_frame);
    if let Some(good) = begins.into_iter().find(behind) {
        let reason = format!("a damaged batch, and a whole one after it at byte {}", offset + good);
        return Err(corrupt(offset, reason));
    }
    reading.end = offset as u64;
    reading.torn = used as u64;
    Ok(frames)
}

/// How long `data` is without the zeros at its end. Most of a segment is such zeros: they are compared by the block.
fn used(data: &[u8]) -> usize {
    const BLOCK: usize = 4096;
    let zeros = [0; BLOCK];
    let Some(last) = data.chunks(BLOCK).rposition(|block| *block != zeros[..block.len()]) else { return 0 };
    let block = &data[last * BLOCK..data.len().min((last + 1) * BLOCK)];
    last * BLOCK + block.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1)
}
