use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::*;
use crate::disk::memory::{MemoryDisk, faults::Dice};

const DIR: &str = "/log";
const SEGMENT: u64 = 16 << 10;
const FIRST: Start = Start { position: Position { index: 1, term: 1 }, origin: Origin::Founding };

fn entry(index: u64, term: u64, size: usize) -> Entry {
    Entry { index, term, data: vec![index as u8; size].into(), context: vec![1, 2].into(), ..Entry::default() }
}

fn write(entries: Vec<Entry>, commit: u64) -> Write {
    let hard_state = Some(HardState { term: 1, vote: 1, commit, ..HardState::default() });
    Write { reset: None, entries, hard_state }
}

fn open(disk: &MemoryDisk, start: Start) -> Result<(Log, Recovered), Error> {
    Log::open(Place { disk: Arc::new(disk.clone()), dir: DIR.into(), segment_bytes: SEGMENT }, start)
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|entry| entry.index).collect()
}

fn only_file(disk: &MemoryDisk) -> PathBuf {
    let names = disk.list(Path::new(DIR)).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    Path::new(DIR).join(&names[0])
}

#[test]
fn what_was_written_comes_back() {
    let disk = MemoryDisk::default();
    let (mut log, recovered) = open(&disk, FIRST).unwrap();
    assert_eq!(indexes(&recovered), [] as [u64; 0]);
    let first = write(vec![entry(2, 1, 10), entry(3, 1, 0)], 1);
    let second = write(vec![entry(4, 2, 1000)], 3);
    log.append(&first).unwrap();
    log.append(&second).unwrap();
    let (_, recovered) = open(&disk, FIRST).unwrap();
    assert_eq!(recovered.entries, [first.entries, second.entries].concat());
    assert_eq!(Some(recovered.hard_state), second.hard_state);
    assert_eq!(recovered.torn, 0);
}

#[test]
fn a_later_leaders_entries_replace_earlier_ones() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, FIRST).unwrap();
    log.append(&write((2..8).map(|index| entry(index, 1, 9)).collect(), 1)).unwrap();
    log.append(&write(vec![entry(4, 2, 9)], 1)).unwrap();
    let (_, recovered) = open(&disk, FIRST).unwrap();
    let found: Vec<_> = recovered.entries.iter().map(|entry| (entry.index, entry.term)).collect();
    assert_eq!(found, [(2, 1), (3, 1), (4, 2)]);
}

/// Wherever the last batch is cut, the ones before it come back, and the log can be written on.
#[test]
fn a_torn_tail_at_every_byte() {
    let whole = MemoryDisk::default();
    let (mut log, _) = open(&whole, FIRST).unwrap();
    log.append(&write(vec![entry(2, 1, 40)], 1)).unwrap();
    let begins = log.offset as usize;
    log.append(&write(vec![entry(3, 1, 100), entry(4, 1, 3)], 2)).unwrap();
    let ends = log.offset as usize;
    drop(log);
    let path = only_file(&whole);
    let bytes = whole.read(&path).unwrap();
    // The padding after the last record is zeros, which a cut cannot change.
    let last = (begins..ends).rev().find(|&at| bytes[at] != 0).unwrap();
    for cut in begins..=last {
        let disk = whole.after_power_cut(0);
        disk.damage(&path, |bytes| bytes[cut..ends].fill(0));
        let (mut log, recovered) = open(&disk, FIRST).unwrap();
        assert_eq!(indexes(&recovered), [2], "cut at {cut}");
        assert_eq!(recovered.torn > 0, cut > begins, "cut at {cut}");
        log.append(&write(vec![entry(3, 2, 1)], 2)).unwrap();
        let (_, recovered) = open(&disk, FIRST).unwrap();
        assert_eq!(indexes(&recovered), [2, 3], "cut at {cut}, written on");
        assert_eq!(recovered.torn, 0, "cut at {cut}, written on");
    }
}

#[test]
fn damage_before_the_last_batch_is_refused() {
    let whole = MemoryDisk::default();
    let (mut log, _) = open(&whole, FIRST).unwrap();
    let mut ends = vec![log.offset as usize];
    for index in 2..5 {
        log.append(&write(vec![entry(index, 1, 30)], 1)).unwrap();
        ends.push(log.offset as usize);
    }
    let path = only_file(&whole);
    for at in 0..ends[2] {
        let disk = whole.after_power_cut(0);
        disk.damage(&path, |bytes| bytes[at] ^= 0x10);
        let opened = open(&disk, FIRST);
        // Four bytes of the header mean nothing and the checksum covers them all the same.
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "byte {at}: {opened:?}");
    }
}

#[test]
fn segments_are_begun_and_removed() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, FIRST).unwrap();
    let size = SEGMENT as usize / 3;
    for index in 2..12 {
        log.append(&write(vec![entry(index, 1, size)], index - 1)).unwrap();
    }
    // One batch larger than a segment.
    log.append(&write(vec![entry(12, 1, SEGMENT as usize + 5)], 11)).unwrap();
    let before = disk.list(Path::new(DIR)).unwrap().len();
    assert!(before > 4);
    let (_, recovered) = open(&disk, FIRST).unwrap();
    assert_eq!(indexes(&recovered), (2..13).collect::<Vec<_>>());
    // From a later state only what follows is read and returned.
    let later = Start { position: Position { index: 7, term: 1 }, origin: Origin::Checkpoint };
    let (mut log, recovered) = open(&disk, later).unwrap();
    assert_eq!(indexes(&recovered), (8..13).collect::<Vec<_>>());
    let bytes = log.bytes();
    log.purge(7).unwrap();
    assert!(log.bytes() < bytes);
    assert!(disk.list(Path::new(DIR)).unwrap().len() < before);
    drop(log);
    let (_, recovered) = open(&disk, later).unwrap();
    assert_eq!(indexes(&recovered), (8..13).collect::<Vec<_>>());
    assert_eq!(recovered.hard_state.commit, 11);
    let opened = open(&disk, FIRST);
    assert!(matches!(opened, Err(Error::Corrupt { .. })), "what follows an older state is gone: {opened:?}");
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, FIRST).unwrap();
    for index in 2..12 {
        log.append(&write(vec![entry(index, 1, SEGMENT as usize / 3)], 1)).unwrap();
    }
    let middle = log.segments[1].path.clone();
    disk.remove(&middle).unwrap();
    assert!(matches!(open(&disk, FIRST), Err(Error::Corrupt { .. })));
}

#[test]
fn a_state_newer_than_the_log() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, FIRST).unwrap();
    log.append(&write(vec![entry(2, 1, 9), entry(3, 1, 9)], 2)).unwrap();
    drop(log);
    let position = Position { index: 9, term: 4 };
    // The log's own checkpoint cannot know more than the log ...
    let opened = open(&disk, Start { position, origin: Origin::Checkpoint });
    assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");
    // ... but a snapshot received can, and then the log goes on from there, also after a second start.
    let received = Start { position, origin: Origin::Snapshot };
    let (mut log, recovered) = open(&disk, received).unwrap();
    assert_eq!((indexes(&recovered), recovered.hard_state.commit, recovered.hard_state.term), (vec![], 9, 4));
    log.append(&write(vec![entry(10, 4, 1)], 9)).unwrap();
    drop(log);
    let (_, recovered) = open(&disk, received).unwrap();
    assert_eq!(indexes(&recovered), [10]);
}

#[test]
fn a_missing_log_is_refused_unless_it_never_was() {
    for origin in [Origin::Checkpoint, Origin::Snapshot] {
        let opened = open(&MemoryDisk::default(), Start { origin, ..FIRST });
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{opened:?}");
    }
    assert!(open(&MemoryDisk::default(), FIRST).is_ok());
}

/// The power fails at every single operation of a run, and again while recovering: whatever was acknowledged is
/// there, in order, and nothing else is but what was being written.
#[test]
fn power_cuts_at_every_operation() {
    let run = |disk: &MemoryDisk| -> u64 {
        let mut acknowledged = 1;
        let Ok((mut log, recovered)) = open(disk, FIRST) else { return acknowledged };
        acknowledged += recovered.entries.len() as u64;
        for batch in 0..12u64 {
            let sizes = [10, 600, 3000, SEGMENT as usize / 4];
            let entries: Vec<Entry> =
                (1..=batch % 3 + 1).map(|at| entry(acknowledged + at, 1, sizes[(batch % 4) as usize])).collect();
            let count = entries.len() as u64;
            if log.append(&write(entries, acknowledged)).is_err() {
                break;
            }
            acknowledged += count;
        }
        acknowledged
    };
    let quiet = MemoryDisk::default();
    run(&quiet);
    let operations = quiet.operations();
    assert!(operations > 24, "{operations}");
    for fuse in 0..operations {
        for seed in 0..4 {
            let disk = MemoryDisk::default();
            disk.fail_after(fuse);
            let acknowledged = run(&disk);
            let disk = disk.after_power_cut(seed * 1000 + fuse);
            // A second cut, in the middle of the recovery.
            disk.fail_after(Dice(seed + fuse).roll(4));
            let _ = open(&disk, FIRST);
            let disk = disk.after_power_cut(seed);
            let (_, recovered) = open(&disk, FIRST).unwrap_or_else(|error| panic!("fuse {fuse}, seed {seed}: {error}"));
            let found = indexes(&recovered);
            assert_eq!(found, (2..2 + found.len() as u64).collect::<Vec<_>>(), "fuse {fuse}, seed {seed}");
            let last = found.last().copied().unwrap_or(1);
            assert!(
                (acknowledged..=acknowledged + 3).contains(&last),
                "fuse {fuse}, seed {seed}: {last} of {acknowledged}"
            );
            assert!(recovered.entries.iter().all(|entry| entry.data.iter().all(|&byte| byte == entry.index as u8)));
        }
    }
}

/// A crash between a new segment's first frame and the batch it was begun for loses the batch, so the hard state that the
/// first frame repeats must be the one before: else it would say that entries are committed which are not there.
#[test]
fn a_new_segment_repeats_the_hard_state_that_is_on_disk() {
    let disk = MemoryDisk::default();
    let (mut log, _) = open(&disk, FIRST).unwrap();
    log.append(&write(vec![entry(2, 1, 10)], 1)).unwrap();
    let before = disk.list(Path::new(DIR)).unwrap();
    log.append(&write(vec![entry(3, 1, SEGMENT as usize)], 3)).unwrap();
    let names = disk.list(Path::new(DIR)).unwrap();
    let new = names.iter().find(|name| !before.contains(name)).unwrap();
    disk.damage(&Path::new(DIR).join(new), |bytes| {
        let first = frame::find(bytes).unwrap().size;
        bytes[first..].fill(0);
    });
    let (_, recovered) = open(&disk, FIRST).unwrap();
    assert_eq!(indexes(&recovered), [2]);
    assert_eq!(recovered.hard_state.commit, 1);
}
