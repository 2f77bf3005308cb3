//! From a checked file to a directory under `layers/`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::store::{ImageStore, remove_tree};
use super::{ImageError, unpack};

/// What an image says of one of its layers.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub digest: String,
    /// Compressed bytes.
    pub size: u64,
    /// The digest of the uncompressed archive, from the image's configuration.
    pub diff_id: Option<String>,
}

impl ImageStore {
    /// Unpacks a file whose digest has been checked; a layer that is there already is left as it is.
    pub(super) fn install(&self, image: &str, layer: &Layer, file: &Path) -> Result<(), ImageError> {
        let target = self.layer_dir(&layer.digest);
        if target.exists() {
            return Ok(());
        }
        let tmp = self.tmp_path("layer");
        fs::create_dir(&tmp).map_err(ImageError::io("create directory", &tmp))?;
        let result = self.unpack_and_move(image, layer, file, &tmp, &target);
        if result.is_err() {
            remove_tree(&tmp);
        }
        result
    }

    fn unpack_and_move(
        &self,
        image: &str,
        layer: &Layer,
        file: &Path,
        tmp: &Path,
        target: &Path,
    ) -> Result<(), ImageError> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(tmp, fs::Permissions::from_mode(0o755)).map_err(ImageError::io("protect", tmp))?;
        let source = fs::File::open(file).map_err(ImageError::io("open", file))?;
        let got = unpack::unpack(source, layer.size, tmp).map_err(|message| ImageError::Unpack {
            image: image.to_owned(),
            layer: layer.digest.clone(),
            message,
        })?;
        if let Some(expected) = layer.diff_id.as_ref().filter(|d| **d != got) {
            return Err(corrupt(image, &layer.digest, expected, &got));
        }
        // The directory's name says it is whole, so its content must be on disk before the name is: after a power cut
        // there would otherwise be empty files in it.
        sync_file_system(tmp).map_err(ImageError::io("flush", tmp))?;
        match fs::rename(tmp, target) {
            // Another process was faster; theirs is the same.
            Err(_) if target.exists() => {
                remove_tree(tmp);
                Ok(())
            }
            result => result.map_err(ImageError::io("rename to", target)),
        }
    }

    /// Whoever holds it is the one who fetches this layer.
    pub(super) fn layer_lock(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        forget_idle(&mut locks);
        locks.entry(digest.to_owned()).or_default().clone()
    }
}

fn forget_idle(locks: &mut HashMap<String, Arc<tokio::sync::Mutex<()>>>) {
    locks.retain(|_, lock| Arc::strong_count(lock) > 1);
}

pub(super) fn corrupt(image: &str, blob: &str, expected: &str, got: &str) -> ImageError {
    ImageError::Corrupt {
        image: image.to_owned(),
        blob: blob.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
    }
}

fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(fs::File::open(path)?)?)
}
