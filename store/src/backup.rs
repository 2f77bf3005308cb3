//! The whole store as one file's bytes, and a new store made of such bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    ALARMS, Config, Error, KeyValue, MEMBERS, MemberInfo, Revision, Snapshot, Store,
    command::DecodeError,
    disk::{Disk, RealDisk},
    image,
    log::{Log, Origin, Place, SEGMENT_BYTES, Start, failed},
    members::{self, GENERATION},
    mvcc::{Image, Members},
    raft,
    store::unix_millis,
};

/// Revisions left out by a restore or a recovery. Whoever had seen revisions that are lost must not take other changes for
/// those that it knows; this many are more than a cluster makes between two snapshots.
const REVISION_GAP: Revision = 1_000_000_000;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    pub revision: Revision,
    pub keys: usize,
}

impl Contents {
    /// Reads a whole image, whose checksum says that it is what was written.
    pub fn of(data: Bytes) -> Result<Contents, String> {
        let image = image::decode(data).map_err(|error| error.to_string())?;
        Ok(Contents::in_image(&image))
    }

    fn in_image(image: &Image) -> Contents {
        Contents { revision: image.base.revision, keys: image.map.len() }
    }
}

impl Store {
    /// The state as it is now, as bytes for [`restore`], and its revision. It takes time and memory in proportion to the
    /// state.
    pub fn export(&self) -> (Revision, Vec<u8>) {
        let image = self.image();
        (image.base.revision, image::encode(&image))
    }
}

/// Has an image's only member begin a new life of the group, in which nobody takes an earlier member for one of today.
fn begin_anew(image: &mut Image, member_id: u64) {
    let generation = Snapshot { map: image.map.clone(), revision: image.base.revision }.generation();
    // By the clock, as two restores of one snapshot are two lives.
    let generation = unix_millis().max(generation + 1);
    let stale = |key: &[u8]| key.starts_with(MEMBERS) || key.starts_with(ALARMS);
    let keys: Vec<Bytes> = image.map.values().map(|kv| kv.key.clone()).filter(|key| stale(key)).collect();
    keys.iter().for_each(|key| drop(image.map.remove(key)));
    image.base.revision += REVISION_GAP;
    let revision = image.base.revision;
    let before = image.map.get(GENERATION).cloned();
    let kv = KeyValue {
        key: Bytes::from_static(GENERATION),
        value: generation.to_string().into(),
        create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
        mod_revision: revision,
        version: before.map_or(1, |kv| kv.version + 1),
        lease: None,
    };
    image.map.insert(Arc::new(kv));
    image.base.members = Members { voters: vec![member_id], ..Members::default() };
}

/// Makes the store that `config` describes of what [`Store::export`] gave. Its only member is `config`'s; keys, leases and
/// their revisions are the snapshot's, and the next revision is far behind them, so that no watch goes on from before.
///
/// The store must not exist yet. It comes to be as a whole or, after an error or a crash, not at all.
pub fn restore(config: &Config, data: Bytes) -> Result<Contents, Error> {
    if config.dir.exists() {
        return Err(Error::Exists { path: config.dir.clone() });
    }
    let corrupt =
        |DecodeError(reason)| Error::Corrupt { path: config.dir.clone(), offset: 0, reason: reason.to_owned() };
    let mut image = image::decode(data).map_err(corrupt)?;
    let contents = Contents::in_image(&image);
    begin_anew(&mut image, config.member_id);

    let draft = config.dir.with_extension("draft");
    write(&draft, &image)?;
    publish(&draft, &config.dir)?;
    Ok(contents)
}

/// Writes a store's directory, with nothing in it but an image.
fn write(draft: &Path, image: &Image) -> Result<(), Error> {
    match fs::remove_dir_all(draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", draft)(error)),
        _ => {}
    }
    let disk = Arc::new(RealDisk);
    disk.create_dir_all(draft).map_err(failed("create", draft))?;
    // Lease ids are log indexes: the log goes on where the snapshot's was, or a new lease could have an old one's id.
    let place = Place { disk: disk.clone(), dir: draft.join("log"), segment_bytes: SEGMENT_BYTES };
    Log::open(place, Start { position: image.base.position, origin: Origin::Founding })?;
    image::save(&*disk, &draft.join("snapshot"), image).map(drop)
}

fn publish(draft: &Path, dir: &Path) -> Result<(), Error> {
    RealDisk.rename(draft, dir).map_err(failed("rename", draft))?;
    let parent = dir.parent().unwrap_or(dir);
    RealDisk.sync_dir(parent).map_err(failed("sync", parent))
}

/// Renames the directory of a store that is not open, and answers to what.
pub fn set_aside(dir: &Path) -> Result<PathBuf, Error> {
    let aside = dir.with_extension(format!("before-{}", unix_millis()));
    RealDisk.rename(dir, &aside).map_err(failed("rename", dir))?;
    let parent = dir.parent().unwrap_or(dir);
    RealDisk.sync_dir(parent).map_err(failed("sync", parent))?;
    Ok(aside)
}

/// What a recovery found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub revision: Revision,
    pub keys: usize,
    /// Changes in the log of which this member did not know that a majority has them: they are taken for good now.
    pub unconfirmed: u64,
    /// The members that are left behind.
    pub lost: Vec<MemberInfo>,
    /// Where the store is as it was before.
    pub before: PathBuf,
}

/// Makes a group of one of a member whose group has lost its majority. It keeps everything that this member knows of; what
/// the others acknowledged without it is lost. The store must not be open; as it was before it lies beside it.
pub fn recover(config: &Config) -> Result<Recovered, Error> {
    let missing =
        || Error::Disk { operation: "open", path: config.dir.clone(), reason: "there is no store to recover".into() };
    if !config.dir.join("log").exists() {
        return Err(missing());
    }
    let member_id = members::joined_as(&config.dir)?.unwrap_or(config.member_id);
    let survivor = raft::read_all(config, member_id)?;
    let mut image = survivor.image;
    let known = Snapshot { map: image.map.clone(), revision: image.base.revision }.members();
    let lost = known.into_iter().filter(|(id, info)| *id != member_id && !info.removed).map(|(_, info)| info).collect();
    begin_anew(&mut image, member_id);
    let draft = config.dir.with_extension("draft");
    write(&draft, &image)?;
    if member_id != config.member_id {
        members::prepare_join(&draft, member_id)?;
    }
    let before = set_aside(&config.dir)?;
    publish(&draft, &config.dir)?;
    let (revision, keys) = (image.base.revision, image.map.len());
    Ok(Recovered { revision, keys, unconfirmed: survivor.unconfirmed, lost, before })
}
