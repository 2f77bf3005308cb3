//! What is on disk: `blobs/sha256/<hex>` (manifests and configurations), `layers/<short digest>/`
//! (unpacked layers), `index.json` (which image has which name) and `tmp/`.
//!
//! The command line and the agent share the directory: every look at the index is taken under
//! a file lock, and every change is a rename.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::pull::{self, Pulls};
use super::{Auth, Collect, Collected, Image, ImageError, PullPolicy, Reference, Registries};

/// Of a digest's 64 digits, those in a layer directory's name: an overlay mount names all its layers in
/// one page, and 112 bits are far more than anyone can make two layers collide in.
const SHORT_DIGEST: usize = 28;

/// Every image of this node. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) registries: Registries,
    pub(super) pulls: Pulls,
    /// One lock per layer being fetched, so that images with a common base fetch it once.
    pub(super) layer_locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    tmp_serial: AtomicU64,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    images: Vec<Image>,
}

impl ImageStore {
    /// Opens `<data-dir>/images`, and clears what an interrupted pull left in `tmp/`.
    pub fn open(data_dir: &Path, registries: Registries) -> Result<ImageStore, ImageError> {
        let root = data_dir.join("images");
        for dir in ["blobs/sha256", "layers", "tmp"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).map_err(ImageError::io("create directory", &dir))?;
        }
        // Layers hold set-uid programs of other people: nobody but root looks inside.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))
            .map_err(ImageError::io("protect directory", &root))?;
        let store = ImageStore {
            inner: Arc::new(Inner {
                root,
                registries,
                pulls: Pulls::default(),
                layer_locks: Mutex::default(),
                tmp_serial: AtomicU64::new(0),
            }),
        };
        store.clear_stale_tmp()?;
        Ok(store)
    }

    /// The image, pulled when the policy asks for it. Concurrent pulls of one name are one pull.
    pub async fn pull(&self, name: &str, auth: Option<Auth>, policy: PullPolicy) -> Result<Image, ImageError> {
        let reference = Reference::parse(name)?;
        if policy != PullPolicy::Always {
            if let Some(image) = self.find(&reference)? {
                return Ok(image);
            }
            if policy == PullPolicy::Never {
                return Err(ImageError::NeverPull(name.to_owned()));
            }
        }
        pull::coalesced(self.clone(), reference, auth).await
    }

    /// By name, by id (`sha256:..`) or by `name@digest`.
    pub fn get(&self, name: &str) -> Option<Image> {
        if super::is_digest(name) {
            return self.list().ok()?.into_iter().find(|i| i.id == name || i.digest == name);
        }
        self.find(&Reference::parse(name).ok()?).ok()?
    }

    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let _lock = self.lock(FlockArg::LockShared)?;
        Ok(self.read_index()?.images)
    }

    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// How long an image's content has been here; nothing where that cannot be told.
    pub fn age(&self, image: &Image, now: SystemTime) -> Duration {
        let blob = image.id.strip_prefix("sha256:").map(|hex| self.inner.root.join("blobs/sha256").join(hex));
        let modified = blob.and_then(|path| fs::metadata(path).ok()?.modified().ok());
        modified.and_then(|at| now.duration_since(at).ok()).unwrap_or_default()
    }

    /// Forgets a name (or, given an id, all its names); `gc` gives the space back. `false`: it was not there.
    pub fn remove(&self, name: &str) -> Result<bool, ImageError> {
        let wanted = if super::is_digest(name) { None } else { Some(Reference::parse(name)?.to_string()) };
        self.change(|index| {
            let before = index.images.len();
            index.images.retain(|i| match &wanted {
                Some(reference) => i.reference != *reference,
                None => i.id != name && i.digest != name,
            });
            before != index.images.len()
        })
    }

    /// Takes the images of a tar file made by `docker save` or in the OCI layout.
    pub async fn import(&self, path: &Path) -> Result<Vec<Image>, ImageError> {
        let (store, path) = (self.clone(), path.to_owned());
        run_blocking(move || super::import::import(&store, &path)).await
    }

    /// Removes what nothing needs. `in_use` names images by id; theirs is never taken.
    pub fn gc(&self, in_use: &BTreeSet<String>, collect: Collect) -> Result<Collected, ImageError> {
        self.gc_unless(|| in_use.clone(), collect)
    }

    /// The same, but what is in use is looked at when nothing new can come into use any more.
    pub(crate) fn gc_unless(
        &self,
        in_use: impl FnOnce() -> BTreeSet<String>,
        collect: Collect,
    ) -> Result<Collected, ImageError> {
        let _alone = self.pulling(FlockArg::LockExclusiveNonblock).map_err(|_| ImageError::Store {
            operation: "collect garbage in",
            path: self.inner.root.display().to_string(),
            message: "an image is being pulled, imported or mounted; try again after that".to_owned(),
        })?;
        let in_use = in_use();
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let mut index = self.read_index()?;
        let mut out = Collected::default();
        let (keep, gone): (Vec<Image>, Vec<Image>) = index
            .images
            .drain(..)
            .partition(|i| in_use.contains(&i.id) || (collect == Collect::Unreferenced && !i.reference.is_empty()));
        out.images = gone.into_iter().map(|i| if i.reference.is_empty() { i.id } else { i.reference }).collect();
        index.images = keep;
        self.write_index(&index)?;
        let layers: BTreeSet<String> =
            index.images.iter().flat_map(|i| &i.layers).map(|d| short_digest(d).to_owned()).collect();
        let blobs: BTreeSet<&str> =
            index.images.iter().flat_map(|i| [&i.id, &i.digest]).filter_map(|d| d.strip_prefix("sha256:")).collect();
        out.bytes += remove_others(&self.inner.root.join("layers"), |name| layers.contains(name))?;
        out.bytes += remove_others(&self.inner.root.join("blobs/sha256"), |name| blobs.contains(name))?;
        Ok(out)
    }

    /// The directories of an image's layers, lowest first.
    pub fn layer_dirs(&self, image: &Image) -> Vec<PathBuf> {
        image.layers.iter().map(|digest| self.layer_dir(digest)).collect()
    }

    pub(super) fn layer_dir(&self, digest: &str) -> PathBuf {
        self.inner.root.join("layers").join(short_digest(digest))
    }

    fn find(&self, wanted: &Reference) -> Result<Option<Image>, ImageError> {
        // One whose layers somebody has removed is as good as absent: it is pulled again.
        let mut images = self.list()?;
        images.retain(|i| self.layer_dirs(i).iter().all(|dir| dir.is_dir()));
        let name = wanted.to_string();
        if let Some(exact) = images.iter().find(|i| i.reference == name) {
            return Ok(Some(exact.clone()));
        }
        let Some(digest) = &wanted.digest else { return Ok(None) };
        let same_repository = |i: &&Image| {
            i.digest == *digest
                && Reference::parse(&i.reference)
                    .is_ok_and(|r| r.registry == wanted.registry && r.repository == wanted.repository)
        };
        Ok(images.iter().find(same_repository).cloned())
    }

    /// Gives `image` its name, and takes the name from whichever image had it.
    pub(super) fn record(&self, image: Image) -> Result<(), ImageError> {
        self.change(|index| {
            for other in index.images.iter_mut().filter(|i| i.reference == image.reference) {
                other.reference.clear();
            }
            let named: BTreeSet<String> = index
                .images
                .iter()
                .filter(|i| !i.reference.is_empty())
                .map(|i| i.id.clone())
                .chain([image.id.clone()])
                .collect();
            let mut nameless = BTreeSet::new();
            index
                .images
                .retain(|i| !i.reference.is_empty() || (!named.contains(&i.id) && nameless.insert(i.id.clone())));
            index.images.push(image);
        })
    }

    /// Puts bytes whose digest the caller has checked among the blobs.
    pub(super) fn write_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let Some(hex) = digest.strip_prefix("sha256:") else { return Ok(()) };
        let path = self.inner.root.join("blobs/sha256").join(hex);
        if !path.exists() {
            self.write_file(&path, bytes)?;
        }
        Ok(())
    }

    /// A path under `tmp/` that nobody else uses; a name holds this process's id so that a later one can tell
    /// what was left behind.
    pub(super) fn tmp_path(&self, what: &str) -> PathBuf {
        let serial = self.inner.tmp_serial.fetch_add(1, Ordering::Relaxed);
        self.inner.root.join("tmp").join(format!("{}-{serial}-{what}", std::process::id()))
    }

    fn clear_stale_tmp(&self) -> Result<(), ImageError> {
        let tmp = self.inner.root.join("tmp");
        let own = std::process::id().to_string();
        for entry in fs::read_dir(&tmp).map_err(ImageError::io("read directory", &tmp))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().unwrap_or_default();
            // Another store of this very process, or a process still at work, keeps what it has.
            if owner != own && !Path::new("/proc").join(owner).exists() {
                remove_tree(&entry.path());
            }
        }
        Ok(())
    }

    fn change<T>(&self, edit: impl FnOnce(&mut Index) -> T) -> Result<T, ImageError> {
        let _lock = self.lock(FlockArg::LockExclusive)?;
        let mut index = self.read_index()?;
        let out = edit(&mut index);
        self.write_index(&index)?;
        Ok(out)
    }

    /// Held while layers are there that no image names yet, or that no container's record names yet.
    pub(crate) fn hold_off_collection(&self) -> Result<Flock<OwnedFd>, ImageError> {
        self.pulling(FlockArg::LockShared)
    }

    fn pulling(&self, how: FlockArg) -> Result<Flock<OwnedFd>, ImageError> {
        self.lock_file("pull.lock", how)
    }

    fn lock(&self, how: FlockArg) -> Result<Flock<OwnedFd>, ImageError> {
        self.lock_file("lock", how)
    }

    fn lock_file(&self, name: &str, how: FlockArg) -> Result<Flock<OwnedFd>, ImageError> {
        let path = self.inner.root.join(name);
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(ImageError::io("open", &path))?;
        Flock::lock(OwnedFd::from(file), how).map_err(|(_, e)| ImageError::io("lock", &path)(e.into()))
    }

    fn read_index(&self) -> Result<Index, ImageError> {
        let path = self.inner.root.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| ImageError::io("parse", &path)(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
            Err(e) => Err(ImageError::io("read", &path)(e)),
        }
    }

    fn write_index(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.inner.root.join("index.json");
        let bytes = serde_json::to_vec(index).map_err(|e| ImageError::io("encode", &path)(e.into()))?;
        self.write_file(&path, &bytes)
    }

    /// Whole or not at all, also when the power goes.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        use std::io::Write;
        let tmp = self.tmp_path("file");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&tmp)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&tmp, path)?;
            fs::File::open(path.parent().unwrap_or(path))?.sync_all()
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&tmp);
            ImageError::io("write", path)(e)
        })
    }
}

/// Unpacking and hashing are long and synchronous: they run beside the async workers.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ImageError::Store { operation: "run", path: "image task".to_owned(), message: e.to_string() }),
    }
}

fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    &hex[..hex.len().min(SHORT_DIGEST)]
}

fn remove_others(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<u64, ImageError> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(ImageError::io("read directory", dir))?.flatten() {
        if !keep(&entry.file_name().to_string_lossy()) {
            bytes += tree_size(&entry.path());
            remove_tree(&entry.path());
        }
    }
    Ok(bytes)
}

fn tree_size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let Ok(entries) = fs::read_dir(path) else { return own };
    own + entries.flatten().map(|e| tree_size(&e.path())).sum::<u64>()
}

/// Removes a file or a whole tree; std's never follows symbolic links on the way down.
pub(super) fn remove_tree(path: &Path) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let result = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "cannot remove; the next garbage collection tries again");
        }
        _ => {}
    }
}
