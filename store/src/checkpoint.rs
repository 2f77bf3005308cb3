//! The checkpoint: the base of the state in sled, so that a start need not replay the whole log.
//!
//! It is a cache. It is written when the log is cut and at a stop, off the commit path, and losing or corrupting it
//! loses nothing: snapshot and log have everything. sled's own promises are not
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

use self::gained::Changed;
pub use self::gained::Gained;
use crate::{
    KeyValue,
    command::{Reader, put_varint},
    image,
    map::Map,
    mvcc::{Base, Image},
};

mod gained;

/// sled keeps this much of its pages in memory; it is only read at a start.
const CACHE_BYTES: u64 = 8 << 20;

/// What sled takes for a key, in microseconds, and how many times as long must have passed since it last took them: two
/// hundredths of a processor's time is what the next start may cost.
const KEY_MICROS: u64 = 10;
const RARE: u64 = 50;

const BASE: &[u8] = b"b";
const KEY: u8 = b'k';

pub struct Checkpoint {
    db: sled::Db,
    path: PathBuf,
    /// Of the keys in the database.
    count: u64,
    sum: u64,
    /// The database is where the base was when it was last told.
    is_whole: bool,
    /// When all of it was written last, by the log's time; or when that was first asked for.
    replaced: Option<u64>,
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
            let kvs = || image.iter().flat_map(|image| image.map.values());
            let checkpoint = Checkpoint {
                db,
                path: path.to_owned(),
                count: kvs().count() as u64,
                sum: kvs().fold(0, |sum, kv| sum.wrapping_add(digest(kv))),
                is_whole: image.is_some(),
                replaced: None,
            };
            Ok((checkpoint, image))
        });
        catch_unwind(attempt).unwrap_or_else(|_| Err("sled panicked".to_owned()))
    }

    /// Brings the database to where the base is, which is `image` and about to be a snapshot, made at `at`; or leaves it with
    /// nothing, where to write all of it would take more of the processor than it may save at a start.
    pub fn follow(&mut self, image: &Image, gained: Gained, at: u64) -> Result<(), sled::Error> {
        if self.is_whole
            && let Some(keys) = gained.into_keys()
        {
            return self.write(keys, &image.base);
        }
        let costs_ms = image.map.len() as u64 * KEY_MICROS / 1000;
        if at < *self.replaced.get_or_insert(at) + costs_ms * RARE {
            return self.forget();
        }
        self.replaced = Some(at);
        self.replace(image)
    }

    /// Leaves the database with nothing, until all of it is written anew.
    pub fn forget(&mut self) -> Result<(), sled::Error> {
        self.is_whole = false;
        self.db.remove(BASE).map(drop)
    }

    /// Brings what can be had cheaply to the disk, for the next start.
    pub fn finish(&mut self, base: &Base, gained: Gained) -> Result<(), String> {
        if self.is_whole
            && let Some(keys) = gained.into_keys()
        {
            self.write(keys, base).map_err(|error| error.to_string())?;
        }
        self.flush()
    }

    /// Brings the database to where the base is. Meanwhile it has no base, so half of it is nothing.
    ///
    /// Key by key and in their order: sled's own batches hold memory until the next ones, however many these are, and what
    /// is out of order has it read and write each page many times.
    fn write(&mut self, keys: BTreeMap<Bytes, Changed>, base: &Base) -> Result<(), sled::Error> {
        self.db.remove(BASE)?;
        for (key, Changed { before, now }) in keys {
            if let Some(before) = before {
                self.count -= 1;
                self.sum = self.sum.wrapping_sub(digest(&before));
            }
            match now {
                Some(kv) => self.add(&kv)?,
                None => drop(self.db.remove(row(&key))?),
            }
        }
        self.db.insert(BASE, self.base_record(base)).map(drop)
    }

    /// Writes a whole image in place of what is there.
    pub fn replace(&mut self, image: &Image) -> Result<(), sled::Error> {
        self.db.clear()?;
        (self.count, self.sum) = (0, 0);
        for kv in image.map.values() {
            self.add(kv)?;
        }
        self.is_whole = true;
        self.db.insert(BASE, self.base_record(&image.base)).map(drop)
    }

    fn add(&mut self, kv: &KeyValue) -> Result<(), sled::Error> {
        self.count += 1;
        self.sum = self.sum.wrapping_add(digest(kv));
        self.db.insert(row(&kv.key), record(kv)).map(drop)
    }

    /// Brings what is written to the disk. sled's flush does not sync the device, hence the second step.
    pub fn flush(&self) -> Result<(), String> {
        self.db.flush().map_err(|error| error.to_string())?;
        let file = fs::File::open(self.path.join("db")).map_err(|error| error.to_string())?;
        file.sync_data().map_err(|error| error.to_string())
    }

    fn base_record(&self, base: &Base) -> Vec<u8> {
        let mut out = Vec::new();
        image::put_base(&mut out, base);
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
    let (mut map, mut found) = (Map::default(), (0u64, 0u64));
    for row in db.scan_prefix([KEY]) {
        let (_, data) = row.map_err(|error| error.to_string())?;
        let mut input = Reader { data: Bytes::copy_from_slice(&data) };
        let kv = image::read_key_value(&mut input).map_err(|error| error.to_string())?;
        found = (found.0 + 1, found.1.wrapping_add(digest(&kv)));
        map.insert(Arc::new(kv));
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
    use crate::{
        Op, Txn,
        command::Command,
        mvcc::{Change, Limits, Position, State},
    };

    /// The next state, and what its history forgets of that.
    fn put(state: &mut State, key: usize) -> Vec<Change> {
        let index = state.position().index + 1;
        let then = vec![Op::Put { key: format!("{key:08}").into(), value: index.to_string().into(), lease: None }];
        let command = Command::Txn(Txn { then, ..Txn::default() });
        state.apply(Position { index, term: 1 }, 0, &command).answer.expect("a put");
        state.trim(&Limits::NONE, 0)
    }

    fn reopened(path: &Path) -> Option<Image> {
        Checkpoint::open(path).expect("it opens").1
    }

    #[test]
    fn what_has_changed_is_written_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).expect("it opens");
        let mut state = State::new(Image::default());
        let mut gained = Gained::default();
        (0..20).for_each(|key| drop(put(&mut state, key)));
        checkpoint.replace(&state.image()).expect("written");
        // A key of before is wrong on purpose: it is not touched again.
        checkpoint.db.remove(row(b"00000019")).expect("removed");
        (0..10).chain(5..25).filter(|&key| key != 19).for_each(|key| gained.note(&put(&mut state, key)));
        checkpoint.follow(&state.image(), gained, 1).expect("written");
        checkpoint
            .db
            .insert(row(b"00000019"), record(state.snapshot().get(b"00000019").expect("there")))
            .expect("back");
        checkpoint.flush().expect("flushed");
        drop(checkpoint);
        let found = reopened(dir.path()).expect("it is whole");
        assert_eq!((found.base, found.map), (state.image().base, state.image().map));
    }

    /// A state from elsewhere: until it is on the disk, nothing may claim it.
    #[test]
    fn a_forgotten_state_is_not_written_at_a_stop() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).expect("it opens");
        let mut state = State::new(Image::default());
        checkpoint.replace(&state.image()).expect("written");
        checkpoint.forget().expect("forgotten");
        let mut gained = Gained::default();
        gained.note(&put(&mut state, 1));
        checkpoint.finish(state.base(), gained).expect("flushed");
        drop(checkpoint);
        assert!(reopened(dir.path()).is_none());
    }

    #[test]
    fn too_much_is_written_anew_where_that_is_rare() {
        const KEYS: usize = 20_000;
        let dir = tempfile::tempdir().expect("a directory");
        let (mut checkpoint, _) = Checkpoint::open(dir.path()).expect("it opens");
        let mut state = State::new(Image::default());
        checkpoint.replace(&state.image()).expect("written");
        let rare = KEYS as u64 * KEY_MICROS / 1000 * RARE;
        for (at, is_written) in [(5, false), (5 + rare - 1, false), (5 + rare, true), (6 + rare, false)] {
            let mut gained = Gained::default();
            (0..KEYS).for_each(|key| gained.note(&put(&mut state, key)));
            checkpoint.follow(&state.image(), gained, at).expect("written");
            checkpoint.flush().expect("flushed");
            let copy = tempfile::tempdir().expect("a directory");
            for file in ["conf", "db"] {
                fs::copy(dir.path().join(file), copy.path().join(file)).expect("copied");
            }
            let found = reopened(copy.path()).map(|image| (image.base, image.map));
            assert_eq!(found, is_written.then(|| (state.image().base, state.image().map)), "{at}");
        }
        // What it has missed it does not make up for with a little.
        let mut gained = Gained::default();
        gained.note(&put(&mut state, 0));
        checkpoint.follow(&state.image(), gained, 7 + rare).expect("left");
        checkpoint.finish(&state.image().base, Gained::default()).expect("flushed");
        drop(checkpoint);
        assert!(reopened(dir.path()).is_none());
    }
}
