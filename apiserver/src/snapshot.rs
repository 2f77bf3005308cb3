//! A snapshot of the cluster as one tar archive: the store's image, and the keys without which it would be another
//! cluster's. It has every secret in it: only an administrator gets it, and it is written with mode 0600.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use api::status::{Reason, Status};
use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use store::{Revision, Store};

use crate::{
    App,
    pki::{ENCRYPTION_KEY, SERVER_TOKEN, SHARED},
    present,
};

/// Under the data directory, by the names that they have in the archive.
const FILES: [&str; 6] = SHARED;
/// What an archive may lack: in those from before there were several servers, or anything was encrypted, it is not.
const LATER: [&str; 2] = [ENCRYPTION_KEY, SERVER_TOKEN];
/// The image's name in the archive. It is the last one: an archive cut short is one without it.
const IMAGE: &str = "store";
/// Far more than a certificate or key has.
const MAX_FILE: u64 = 1 << 20;

/// What an archive holds.
#[derive(Debug)]
pub struct Snapshot {
    pub image: Bytes,
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Snapshot {
    pub fn read(archive: &[u8]) -> Result<Snapshot, String> {
        let mut files: Vec<(&'static str, Vec<u8>)> = Vec::new();
        let mut image = None;
        let unreadable = |error: io::Error| format!("it is no snapshot, or not the whole of one: {error}");
        for entry in tar::Archive::new(archive).entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let name = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
            let known = FILES.into_iter().find(|file| *file == name);
            if name != IMAGE && (known.is_none() || entry.size() > MAX_FILE) {
                return Err(format!("{name:?} does not belong into a snapshot"));
            }
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(unreadable)?;
            match known {
                Some(file) => files.push((file, content)),
                None => image = Some(Bytes::from(content)),
            }
        }
        let missing = |name: &str| format!("it is no snapshot, or not the whole of one: {name} is missing");
        let lacks = |file: &&str| files.iter().all(|(name, _)| name != file) && !LATER.contains(file);
        if let Some(file) = FILES.into_iter().find(lacks) {
            return Err(missing(file));
        }
        Ok(Snapshot { image: image.ok_or_else(|| missing(IMAGE))?, files })
    }
}

/// What snapshots are taken of.
#[derive(Clone)]
pub struct Snapshots {
    pub(crate) data_dir: PathBuf,
    pub(crate) store: Store,
}

impl Snapshots {
    /// The cluster as it is now.
    pub async fn take(&self) -> Result<Taken, String> {
        self.store.read_barrier().await.map_err(|error| error.to_string())?;
        let Snapshots { data_dir, store } = self.clone();
        let packed = tokio::task::spawn_blocking(move || {
            let (revision, image) = store.export();
            Ok(Taken { revision, archive: pack(&data_dir, &image)? })
        });
        packed.await.map_err(|error| error.to_string())?
    }
}

/// A snapshot just taken.
pub struct Taken {
    /// Goes up from each to the next, whatever the clock does.
    pub revision: Revision,
    /// For [`Snapshot::read`].
    pub archive: Vec<u8>,
}

fn pack(data_dir: &Path, image: &[u8]) -> Result<Vec<u8>, String> {
    pack_files(data_dir, &FILES, image)
}

fn pack_files(data_dir: &Path, files: &[&str], image: &[u8]) -> Result<Vec<u8>, String> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, content).map_err(|error| format!("pack {name}: {error}"))
    };
    for name in files {
        let path = data_dir.join(name);
        add(name, &fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?)?;
    }
    add(IMAGE, image)?;
    archive.into_inner().map_err(|error| format!("pack: {error}"))
}

pub async fn answer(app: &App) -> Result<Response<Body>, Status> {
    let taken = app.snapshots().take().await;
    let taken = taken.map_err(|what| Status::new(Reason::InternalError, format!("take a snapshot: {what}")))?;
    Ok(present::bytes(StatusCode::OK, "application/x-tar", taken.archive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("tls")).expect("made");
        for name in FILES {
            fs::write(dir.path().join(name), name).expect("written");
        }
        let archive = pack(dir.path(), b"image").expect("packed");
        let snapshot = Snapshot::read(&archive).expect("read");
        assert_eq!(&snapshot.image[..], b"image");
        assert_eq!(snapshot.files, FILES.map(|name| (name, name.as_bytes().to_vec())));

        for end in [0, 512, archive.len() / 2, archive.len() - 2048] {
            let error = Snapshot::read(&archive[..end]).expect_err("cut short");
            assert!(error.contains("not the whole of one"), "{end}: {error}");
        }
        let earlier: Vec<&str> = FILES.into_iter().filter(|name| !LATER.contains(name)).collect();
        let archive = pack_files(dir.path(), &earlier, b"image").expect("packed");
        let files = Snapshot::read(&archive).expect("an archive of before is read").files;
        assert_eq!(files.iter().map(|(name, _)| *name).collect::<Vec<_>>(), earlier);

        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, "tls/server.key", &b"x"[..]).expect("packed");
        let foreign = Snapshot::read(&builder.into_inner().expect("packed")).expect_err("a foreign file");
        assert!(foreign.contains("\"tls/server.key\" does not belong"), "{foreign}");
    }
}
