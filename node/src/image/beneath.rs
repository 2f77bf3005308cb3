//! Files inside a directory and nowhere else.
//!
//! Every path is resolved by the kernel with the directory as its root (openat2, RESOLVE_IN_ROOT): symbolic
//! links, absolute ones and `..` included, cannot lead out, however the tree changes meanwhile.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// An open directory that is the root of everything done through it.
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        let fd = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Root { fd })
    }

    /// Opens an existing path. `flags` gets O_CLOEXEC.
    pub fn open_at(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(self.fd.as_fd(), path, how)
    }

    /// Opens a directory, making what is missing of it (0755, owned by root).
    pub fn make_dirs(&self, path: &Path) -> nix::Result<OwnedFd> {
        let dir = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open_at(path, dir) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let parent = path.parent().ok_or(Errno::ENOENT)?;
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let parent = self.make_dirs(parent)?;
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            // A dangling symbolic link stands there: it leads nowhere, so nothing can be made behind it.
            Err(Errno::EEXIST) => self.open_at(path, dir),
            Err(e) => Err(e),
            Ok(()) => self.open_at(path, dir),
        }
    }

    /// Reads a regular file of at most `limit` bytes; `None` where there is none.
    pub fn read(&self, path: &str, limit: u64) -> Option<Vec<u8>> {
        // Non-blocking, so that a fifo in its place cannot hold up the reader.
        let fd = self.open_at(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?;
        let file = fs::File::from(fd);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// An archive member's path as (directory, name), relative and without `.`; `None` for the root itself.
/// A `..` or a NUL is an error: no honest archive has one.
pub fn split(path: &Path) -> Result<Option<(std::path::PathBuf, OsString)>, &'static str> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir => return Err("its path contains \"..\""),
            Component::Prefix(_) => return Err("its path has a drive prefix"),
        }
    }
    if parts.iter().any(|p| p.as_encoded_bytes().contains(&0)) {
        return Err("its path contains NUL");
    }
    let Some(name) = parts.pop() else { return Ok(None) };
    Ok(Some((parts.iter().collect(), name.to_owned())))
}
