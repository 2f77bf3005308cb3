//! The disk as the log and the snapshots see it: few operations, so that a hostile double can stand in for it.
//!
//! A write is safe once `File::sync` returned; a name (of a new, renamed or removed file) once `Disk::sync_dir` did.

use std::{
    fmt, fs, io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};

pub mod memory;

pub trait Disk: fmt::Debug + Send + Sync {
    /// Once this returns, a crash does not lose the directories made.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files in `dir`, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn File>>;
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

pub trait File: fmt::Debug + Send {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Makes the file `length` bytes long and reserves the room, so that writes within it change no metadata.
    fn allocate(&mut self, length: u64) -> io::Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Existing,
    /// Made empty, whatever was there.
    New,
}

/// The disk of the machine.
#[derive(Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let made: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        // Secrets pass through here: nobody else has any business in it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for parent in made.iter().rev().filter_map(|dir| dir.parent()) {
            self.sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<Box<dyn File>> {
        use std::os::unix::fs::OpenOptionsExt;
        let new = mode == Mode::New;
        let file = fs::OpenOptions::new().read(true).write(true).create(new).truncate(new).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&mut self, length: u64) -> io::Result<()> {
        match nix::fcntl::posix_fallocate(self.0.as_fd(), 0, length as i64) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve; the log works on them too, only a sync costs more.
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => self.0.set_len(length),
            Err(errno) => Err(errno.into()),
        }
    }
}
