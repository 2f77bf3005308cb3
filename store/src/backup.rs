//! The whole store as one file's bytes, and a new store made of such bytes.

use std::{fs, sync::Arc};

use bytes::Bytes;

use crate::{
    Config, Error, Revision, Store,
    command::DecodeError,
    disk::{Disk, RealDisk},
    image,
    log::{Log, Origin, Place, SEGMENT_BYTES, Start, failed},
    mvcc::{Image, Members},
};

/// Revisions left out by a restore. Whoever had seen revisions after the snapshot must not take other changes for those
/// that it knows; this many are more than a cluster makes between two snapshots.
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
    image.base.members = Members { voters: vec![config.member_id], ..Members::default() };
    image.base.revision += REVISION_GAP;

    let draft = config.dir.with_extension("draft");
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", &draft)(error)),
        _ => {}
    }
    let disk = Arc::new(RealDisk);
    disk.create_dir_all(&draft).map_err(failed("create", &draft))?;
    // Lease ids are log indexes: the log goes on where the snapshot's was, or a new lease could have an old one's id.
    let place = Place { disk: disk.clone(), dir: draft.join("log"), segment_bytes: SEGMENT_BYTES };
    Log::open(place, Start { position: image.base.position, origin: Origin::Founding })?;
    image::save(&*disk, &draft.join("snapshot"), &image)?;
    disk.rename(&draft, &config.dir).map_err(failed("rename", &draft))?;
    let parent = config.dir.parent().unwrap_or(&config.dir);
    disk.sync_dir(parent).map_err(failed("sync", parent))?;
    Ok(contents)
}
