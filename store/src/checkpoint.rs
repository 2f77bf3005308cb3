//! The checkpoint: the base of the state in sled, so that a start need not replay the whole log.
//!
//! It is a cache. It follows the log at a distance (by the length of the history), is written off the commit
//! path, and losing or corrupting it loses nothing: snapshot and log have everything. sled's own promises are not
//! relied on: each move of the base is one atomic batch, and the base's record counts the keys and sums their
//! checksums, so a state that sled brings back incomplete is noticed and set aside.

use std::{
    collections::HashMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use imbl::OrdMap;

use crate::{
    Event, EventKind, KeyValue,
    command::{Reader, put_varint},
    image,
    mvcc::{Base, Change, Image, advance},
};

/// sled keeps this much of its pages in memory; it is only read at a start.
const CACHE_BYTES: u64 = 8 << 20;

/// Keys written in one sled batch when everything is written anew.
const BATCH: usize = 1024;

/// What the base has gained is kept in memory up to one of these, and then written: a key that changes often, as most
/// that change do, is written once for all that. It holds values that nothing else may hold any more, and a start after
/// a crash replays these changes from the log.
const HELD: Held = Held { changes: 64 << 10, keys: 16 << 10, bytes: 8 << 20 };

struct Held {
    changes: usize,
    keys: usize,
    bytes: usize,
}

const BASE: &[u8] = b"b";
const KEY: u8 = b'k';

pub struct Checkpoint {
    db: sled::Db,
    path: PathBuf,
    base: Base,
    /// Of the keys in the database.
    count: u64,
    sum: u64,
    /// What `base` has and the database has not yet, and of how many changes it is.
    pending: HashMap<Bytes, Pending>,
    pending_bytes: usize,
    pending_changes: usize,
}

/// A key that has changed since the last write.
struct Pending {
    /// The digest of what the database has; none where it has no such key.
    written: Option<u64>,
    now: Option<Arc<KeyValue>>,
}

impl Checkpoint {
    /// Opens the checkpoint at `path` with what it holds, if it holds a state that is whole. One that cannot be
    /// opened or read is renamed, never repaired, and an empty one takes its place.
    pub fn open(path: &Path) -> Result<(Checkpoint, Option<Image>), String> {
        match Self::try_open(path) {
            Ok(opened) => Ok(opened),
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "the checkpoint is set aside and will be rebuilt");
                set_aside(path).map_err(|error| error.to_string())?;
                Self::try_open(path)
            }
        }
    }

    fn try_open(path: &Path) -> Result<(Checkpoint, Option<Image>), String> {
        // sled panics over some damage where it should return an error.
        let attempt = AssertUnwindSafe(|| {
            let db = sled::Config::new()
                .path(path)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::LowSpace)
                .flush_every_ms(None)
                .open()
                .map_err(|error| error.to_string())?;
            let image = read(&db)?;
            let mut checkpoint = Checkpoint {
                db,
                path: path.to_owned(),
                base: Base::default(),
                count: 0,
                sum: 0,
                pending: HashMap::new(),
                pending_bytes: 0,
                pending_changes: 0,
            };
            if let Some(image) = &image {
                checkpoint.base = image.base.clone();
                checkpoint.count = image.map.len() as u64;
                checkpoint.sum = image.map.values().fold(0, |sum, kv| sum.wrapping_add(digest(kv)));
            }
            Ok((checkpoint, image))
        });
        catch_unwind(attempt).unwrap_or_else(|_| Err("sled panicked".to_owned()))
    }

    /// Moves the base forward by `changes`. On disk it follows in steps, each one atomic batch.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), sled::Error> {
        for change in changes {
            for event in change.batch.iter().flat_map(|batch| &batch.events) {
                self.hold(event);
            }
            advance(&mut self.base, change);
        }
        self.pending_changes += changes.len();
        let full =
            self.pending_changes >= HELD.changes || self.pending.len() >= HELD.keys || self.pending_bytes >= HELD.bytes;
        if full { self.write() } else { Ok(()) }
    }

    fn hold(&mut self, event: &Event) {
        let size = |kv: Option<&Arc<KeyValue>>| kv.map_or(0, |kv| kv.value.len());
        let now = (event.kind == EventKind::Put).then(|| event.kv.clone());
        self.pending_bytes += size(now.as_ref());
        match self.pending.get_mut(&event.kv.key) {
            Some(held) => self.pending_bytes -= size(std::mem::replace(&mut held.now, now).as_ref()),
            None => {
                self.pending_bytes += event.kv.key.len();
                let written = event.previous.as_deref().map(digest);
                self.pending.insert(event.kv.key.clone(), Pending { written, now });
            }
        }
    }

    /// Brings the database to where the base is.
    fn write(&mut self) -> Result<(), sled::Error> {
        let mut batch = sled::Batch::default();
        for (key, Pending { written, now }) in self.pending.drain() {
            if let Some(written) = written {
                self.count -= 1;
                self.sum = self.sum.wrapping_sub(written);
            }
            match now {
                Some(kv) => {
                    self.count += 1;
                    self.sum = self.sum.wrapping_add(digest(&kv));
                    batch.insert(row(&key), record(&kv));
                }
                None => batch.remove(row(&key)),
            }
        }
        (self.pending_bytes, self.pending_changes) = (0, 0);
        batch.insert(BASE, self.base_record());
        self.db.apply_batch(batch)
    }

    /// Writes a whole image in place of what is there. Until the last batch there is no base, so half of it is nothing.
    pub fn replace(&mut self, image: &Image) -> Result<(), sled::Error> {
        self.db.clear()?;
        self.base = image.base.clone();
        (self.count, self.sum) = (0, 0);
        self.pending.clear();
        (self.pending_bytes, self.pending_changes) = (0, 0);
        let mut batch = sled::Batch::default();
        for (at, kv) in image.map.values().enumerate() {
            self.count += 1;
            self.sum = self.sum.wrapping_add(digest(kv));
            batch.insert(row(&kv.key), record(kv));
            if at % BATCH == BATCH - 1 {
                self.db.apply_batch(std::mem::take(&mut batch))?;
            }
        }
        batch.insert(BASE, self.base_record());
        self.db.apply_batch(batch)
    }

    /// Brings everything to the disk. sled's flush does not sync the device, hence the second step.
    pub fn flush(&mut self) -> Result<(), String> {
        if self.pending_changes > 0 {
            self.write().map_err(|error| error.to_string())?;
        }
        self.db.flush().map_err(|error| error.to_string())?;
        let file = fs::File::open(self.path.join("db")).map_err(|error| error.to_string())?;
        file.sync_data().map_err(|error| error.to_string())
    }

    fn base_record(&self) -> Vec<u8> {
        let mut out = Vec::new();
        image::put_base(&mut out, &self.base);
        put_varint(&mut out, self.count);
        put_varint(&mut out, self.sum);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }
}

/// Everything in the database, checked against its own count and sum.
fn read(db: &sled::Db) -> Result<Option<Image>, String> {
    let Some(data) = db.get(BASE).map_err(|error| error.to_string())? else { return Ok(None) };
    let split = data.len().checked_sub(4).ok_or("the base's record is cut short")?;
    if crc32fast::hash(&data[..split]).to_le_bytes() != data[split..] {
        return Err("the base's record has a wrong checksum".to_owned());
    }
    let mut input = Reader { data: Bytes::copy_from_slice(&data[..split]) };
    let base = image::read_base(&mut input).map_err(|error| error.to_string())?;
    let expected = (|| Ok((input.varint()?, input.varint()?)))()
        .map_err(|error: crate::command::DecodeError| error.to_string())?;
    let (mut map, mut found) = (OrdMap::new(), (0u64, 0u64));
    for row in db.scan_prefix([KEY]) {
        let (_, data) = row.map_err(|error| error.to_string())?;
        let mut input = Reader { data: Bytes::copy_from_slice(&data) };
        let kv = image::read_key_value(&mut input).map_err(|error| error.to_string())?;
        found = (found.0 + 1, found.1.wrapping_add(digest(&kv)));
        map.insert(kv.key.clone(), Arc::new(kv));
    }
    if found != expected {
        return Err(format!("it has {} keys that do not add up to the {} written", found.0, expected.0));
    }
    Ok(Some(Image { base, map }))
}

/// Renames a checkpoint that cannot be used. The one set aside before it goes: one is enough to look into.
fn set_aside(path: &Path) -> std::io::Result<()> {
    let aside = path.with_extension("damaged");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::rename(path, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn row(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len());
    row.push(KEY);
    row.extend_from_slice(key);
    row
}

fn record(kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(kv.key.len() + kv.value.len() + 40);
    image::put_key_value(&mut out, kv);
    out
}

/// A number that depends on all of a key's record, to be summed over all keys.
fn digest(kv: &KeyValue) -> u64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&kv.key);
    crc.update(&kv.value);
    let lease = kv.lease.map_or(0, |lease| lease.0);
    let mut sum = u64::from(crc.finalize());
    for number in [kv.value.len() as u64, kv.create_revision, kv.mod_revision, kv.version, lease] {
        sum = (sum ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 29;
    }
    sum
}
