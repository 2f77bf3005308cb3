//! The checkpoint: the base of the state in sled, so that a start need not replay the whole log.
//!
//! It is a cache. It follows the log at a distance (by the length of the history), is written off the commit
//! path, and losing or corrupting it loses nothing: snapshot and log have everything. sled's own promises are not
//! relied on: while the base moves there is none, and the base's record counts the keys and sums their checksums, so a
//! state that sled brings back incomplete is noticed and set aside.

use std::{
    collections::BTreeMap,
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

/// What the base has gained is kept in memory up to one of these: values that nothing else may hold any more. Beyond it the
/// database can only be written anew, all of it, and is so when the log is cut if that is rare enough. Until then a start
/// has the snapshot and the log.
const HELD: Held = Held { changes: 64 << 10, keys: 16 << 10, bytes: 8 << 20 };

struct Held {
    changes: usize,
    keys: usize,
    bytes: usize,
}

/// What sled takes for a key, in microseconds, and how many times as long must have passed since it last took them: two
/// hundredths of a processor's time is what the next start may cost.
const KEY_MICROS: u64 = 10;
const RARE: u64 = 50;

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
    pending: BTreeMap<Bytes, Pending>,
    pending_bytes: usize,
    pending_changes: usize,
    /// The base has gained more than is kept in memory: the database can only be written anew.
    stale: bool,
    /// When the newest change was made, and the newest one when the database was last written; 0 where there was none yet.
    newest: u64,
    written: u64,
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
                pending: BTreeMap::new(),
                pending_bytes: 0,
                pending_changes: 0,
                stale: false,
                newest: 0,
                written: 0,
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

    /// Notes what the base has gained. The database follows when it is [`Checkpoint::catch_up`] with.
    pub fn apply(&mut self, changes: &[Change]) {
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else { return };
        if self.written == 0 {
            self.written = first.at;
        }
        self.newest = last.at;
        if self.stale {
            return;
        }
        for change in changes {
            for event in change.batch.iter().flat_map(|batch| &batch.events) {
                self.hold(event);
            }
            advance(&mut self.base, change);
        }
        self.pending_changes += changes.len();
        let full =
            self.pending_changes >= HELD.changes || self.pending.len() >= HELD.keys || self.pending_bytes >= HELD.bytes;
        if full {
            // Under a load like this the database would do nothing else than follow. It is still what it says it is, though old.
            self.pending.clear();
            (self.pending_bytes, self.pending_changes) = (0, 0);
            self.stale = true;
        }
    }

    /// Brings the database to where the base is, which is `image` and about to be a snapshot; or leaves it with nothing, where
    /// to write all of it would take more of the processor than it may save at a start.
    pub fn catch_up(&mut self, image: &Image) -> Result<(), sled::Error> {
        if !self.stale {
            return self.write();
        }
        let costs_ms = image.map.len() as u64 * KEY_MICROS / 1000;
        if self.newest - self.written < costs_ms * RARE {
            return self.db.remove(BASE).map(drop);
        }
        self.replace(image)
    }

    /// Brings what can be had cheaply to the disk, for the next start.
    pub fn finish(&mut self) -> Result<(), String> {
        if !self.stale {
            self.write().map_err(|error| error.to_string())?;
        }
        self.flush()
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

    /// Brings the database to where the base is. Meanwhile it has no base, so half of it is nothing.
    ///
    /// Key by key and in their order: sled's own batches hold memory until the next ones, however many these are, and what
    /// is out of order has it read and write each page many times.
    fn write(&mut self) -> Result<(), sled::Error> {
        if self.pending_changes == 0 {
            return Ok(());
        }
        self.db.remove(BASE)?;
        for (key, Pending { written, now }) in std::mem::take(&mut self.pending) {
            if let Some(written) = written {
                self.count -= 1;
                self.sum = self.sum.wrapping_sub(written);
            }
            match now {
                Some(kv) => {
                    self.count += 1;
                    self.sum = self.sum.wrapping_add(digest(&kv));
                    self.db.insert(row(&key), record(&kv))?;
                }
                None => drop(self.db.remove(row(&key))?),
            }
        }
        (self.pending_bytes, self.pending_changes) = (0, 0);
        self.written = self.newest;
        self.db.insert(BASE, self.base_record()).map(drop)
    }

    /// Writes a whole image in place of what is there.
    pub fn replace(&mut self, image: &Image) -> Result<(), sled::Error> {
        self.db.clear()?;
        self.base = image.base.clone();
        (self.count, self.sum) = (0, 0);
        self.pending.clear();
        (self.pending_bytes, self.pending_changes, self.stale) = (0, 0, false);
        self.written = self.newest;
        for kv in image.map.values() {
            self.count += 1;
            self.sum = self.sum.wrapping_add(digest(kv));
            self.db.insert(row(&kv.key), record(kv))?;
        }
        self.db.insert(BASE, self.base_record()).map(drop)
    }

    /// Brings what is written to the disk. sled's flush does not sync the device, hence the second step.
    pub fn flush(&self) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, mvcc::Position};

    /// As many puts to as many keys as make a checkpoint stale, the last one at `until`.
    fn puts(until: u64) -> (Vec<Change>, Image) {
        let (mut changes, mut image) = (Vec::new(), Image::default());
        for n in 1..=HELD.keys as u64 {
            let kv = Arc::new(KeyValue {
                key: n.to_be_bytes().to_vec().into(),
                value: Bytes::from_static(b"v"),
                create_revision: n,
                mod_revision: n,
                version: 1,
                lease: None,
            });
            image.map.insert(kv.key.clone(), kv.clone());
            let event = Event { kind: EventKind::Put, kv, previous: None };
            let batch = Some(Arc::new(Batch { revision: n, events: vec![event] }));
            let at = if n == HELD.keys as u64 { until } else { 1 };
            let position = Position { index: n, term: 1 };
            changes.push(Change { position, revision: n, at, batch, lease: None, members: None });
        }
        changes.iter().for_each(|change| advance(&mut image.base, change));
        (changes, image)
    }

    #[test]
    fn a_stale_checkpoint_is_written_anew_where_that_is_rare() {
        let rare = HELD.keys as u64 * KEY_MICROS / 1000 * RARE + 1;
        for (until, there) in [(rare - 1, false), (rare, true)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("checkpoint");
            let (mut checkpoint, _) = Checkpoint::open(&path).unwrap();
            checkpoint.replace(&Image::default()).unwrap();
            let (changes, image) = puts(until);
            checkpoint.apply(&changes);
            assert!(checkpoint.stale);
            checkpoint.catch_up(&image).unwrap();
            assert_eq!(checkpoint.stale, !there);
            checkpoint.finish().unwrap();
            drop(checkpoint);
            let (_, found) = Checkpoint::open(&path).unwrap();
            assert_eq!(
                found.map(|image| (image.base, image.map.len())),
                there.then_some((image.base, HELD.keys)),
                "{until}"
            );
        }
    }
}
