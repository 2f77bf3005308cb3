//! A disk in memory: for a store that need not outlive its process. It knows what has been synced and what has
//! not, so that the crash tests can make it hostile (`faults`): fail at any operation, lose or tear at a power cut.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, File, Mode};

#[cfg(test)]
pub mod faults;

#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<PathBuf, u64>,
    /// The names a power cut leaves.
    durable_names: BTreeMap<PathBuf, u64>,
    contents: BTreeMap<u64, Contents>,
    next_inode: u64,
    /// How many more operations that change something succeed; none is no limit.
    fuse: Option<u64>,
    /// Syncs do nothing.
    deaf: bool,
    /// How many operations changed something so far.
    operations: u64,
}

#[derive(Debug, Clone, Default)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl MemoryDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn spend(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.fuse {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("simulated disk failure"))?;
        }
        self.operations += 1;
        Ok(())
    }

    fn contents(&mut self, inode: u64) -> &mut Contents {
        self.contents.entry(inode).or_default()
    }
}

fn write(contents: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if contents.len() < end {
        contents.resize(end, 0);
    }
    contents[offset..end].copy_from_slice(bytes);
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn File>> {
        let mut inner = self.lock();
        let inode = match (mode, inner.names.get(path).copied()) {
            (Mode::Existing, Some(inode)) => inode,
            (Mode::Existing, None) => return Err(io::ErrorKind::NotFound.into()),
            (Mode::New, _) => {
                inner.spend()?;
                inner.next_inode += 1;
                let inode = inner.next_inode;
                inner.names.insert(path.to_owned(), inode);
                inner.contents.insert(inode, Contents::default());
                inode
            }
        };
        Ok(Box::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        let inode = inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(inner.contents.get(inode).map(|contents| contents.now.clone()).unwrap_or_default())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let inode = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        inner.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let inner = &mut *inner;
        inner.durable_names.retain(|path, _| path.parent() != Some(dir));
        let now = inner.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        inner.durable_names.extend(now.map(|(path, &inode)| (path.clone(), inode)));
        let Inner { names, durable_names, contents, .. } = inner;
        contents.retain(|inode, _| {
            names.values().any(|known| known == inode) || durable_names.values().any(|known| known == inode)
        });
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    inode: u64,
}

impl File for MemoryFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let spent = inner.spend();
        let contents = inner.contents(self.inode);
        // A failing write may still have reached the disk, in part.
        contents.unsynced.push((offset as usize, bytes.to_vec()));
        spent?;
        write(&mut contents.now, offset as usize, bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.spend()?;
        if inner.deaf {
            return Ok(());
        }
        let contents = inner.contents(self.inode);
        let Contents { now, durable, unsynced } = contents;
        // Only what was written is copied: a segment is large and a sync is frequent.
        durable.resize(now.len(), 0);
        for (offset, bytes) in unsynced.drain(..) {
            write(durable, offset, &bytes);
        }
        Ok(())
    }

    fn allocate(&mut self, length: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.spend()?;
        inner.contents(self.inode).now.resize(length as usize, 0);
        Ok(())
    }
}
