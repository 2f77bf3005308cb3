//! What makes the disk in memory hostile.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use super::{Contents, Inner, MemoryDisk, write};

/// What a real disk writes whole or not at all.
const SECTOR: usize = 512;

impl MemoryDisk {
    /// From now on `operations` more changes succeed, and then every one fails.
    pub fn fail_after(&self, operations: u64) {
        self.lock().fuse = Some(operations);
    }

    /// Whether it has failed, or soon will.
    pub fn is_failing(&self) -> bool {
        self.lock().fuse.is_some()
    }

    /// From now on it says that it has synced, and has not.
    pub fn ignore_syncs(&self) {
        self.lock().deaf = true;
    }

    /// How many changes have been made.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The disk as it may be found after a power cut now. What was not synced is lost, kept or torn, as `seed` says.
    pub fn after_power_cut(&self, seed: u64) -> MemoryDisk {
        let inner = self.lock();
        let mut dice = Dice(seed);
        let names = if dice.roll(2) == 0 { &inner.durable_names } else { &inner.names };
        let contents = inner.contents.iter().map(|(&inode, contents)| (inode, contents.torn(&mut dice))).collect();
        let inner = Inner {
            names: names.clone(),
            durable_names: names.clone(),
            contents,
            next_inode: inner.next_inode,
            fuse: None,
            deaf: false,
            operations: 0,
        };
        MemoryDisk(Arc::new(Mutex::new(inner)))
    }

    /// Changes bytes behind everybody's back.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        if let Some(contents) = inner.names.get(path).copied().and_then(|inode| inner.contents.get_mut(&inode)) {
            change(&mut contents.now);
            contents.durable = contents.now.clone();
        }
    }
}

impl Contents {
    fn torn(&self, dice: &mut Dice) -> Contents {
        let mut left = self.durable.clone();
        for (offset, bytes) in &self.unsynced {
            match dice.roll(3) {
                0 => {}
                1 => write(&mut left, *offset, bytes),
                _ => {
                    // Each sector by itself, in no order.
                    let mut at = 0;
                    while at < bytes.len() {
                        let end = bytes.len().min((offset + at) / SECTOR * SECTOR + SECTOR - offset);
                        if dice.roll(2) == 0 {
                            write(&mut left, offset + at, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        Contents { now: left.clone(), durable: left, unsynced: Vec::new() }
    }
}

/// A small generator of numbers that look random, the same for the same seed.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}
