//! A layer's tar into a directory, ready to be a lower directory of overlayfs.
//!
//! The archive is hostile: every path is resolved beneath the destination by the kernel, sizes and counts are capped, and
//! what a layer may not say (devices named as whiteouts, overlayfs' own attributes) is left out or refused.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::beneath::{Root, split};
use super::hex;

/// Members of one layer; the largest images in use have a quarter of it.
const MAX_ENTRIES: u64 = 1_000_000;
/// A long name, a link target or a set of extended attributes.
const MAX_HEADER: u64 = 1 << 20;
/// What unpacks to more than this many times its size is a bomb, once it is past the floor.
const MAX_RATIO: u64 = 200;
const RATIO_FLOOR: u64 = 1 << 30;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks a layer of `compressed` bytes into the empty directory `dest`, and returns the digest of the
/// uncompressed archive.
pub fn unpack(layer: impl Read, compressed: u64, dest: &Path) -> Result<String, String> {
    let limit = RATIO_FLOOR.max(compressed.saturating_mul(MAX_RATIO));
    let plain = decompressed(layer).map_err(|e| format!("decompress: {e}"))?;
    let mut source = Hashed { inner: plain, hash: Sha256::new(), left: limit };
    let mut unpacker = Unpacker { root: Root::open(dest).map_err(|e| e.to_string())?, dirs: Vec::new(), parent: None };
    {
        let mut archive = tar::Archive::new(&mut source);
        unpacker.all(&mut archive)?;
    }
    unpacker.finish()?;
    // Padding behind the archive's end is part of what the digest covers.
    io::copy(&mut source, &mut io::sink()).map_err(|e| format!("read: {e}"))?;
    Ok(format!("sha256:{}", hex(&source.hash.finalize())))
}

/// gzip, zstd or nothing, by the first bytes.
fn decompressed<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    use std::io::BufRead;
    let mut source = BufReader::with_capacity(128 * 1024, source);
    let head = source.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(Zstd { source, decoder: None }),
        _ => Box::new(source),
    })
}

/// zstd frames one after the other; those to be skipped are skipped.
struct Zstd<R> {
    source: R,
    decoder: Option<ruzstd::decoding::FrameDecoder>,
}

impl<R: io::BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
        loop {
            if let Some(decoder) = &mut self.decoder {
                while decoder.can_collect() < buf.len() && !decoder.is_finished() {
                    decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBytes(buf.len()))
                        .map_err(io::Error::other)?;
                }
                let n = decoder.read(buf)?;
                if n > 0 || buf.is_empty() {
                    return Ok(n);
                }
                self.decoder = None;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            let mut decoder = FrameDecoder::new();
            match decoder.init(&mut self.source) {
                Ok(()) => self.decoder = Some(decoder),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.source).take(u64::from(length)), &mut io::sink())?;
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
    }
}

/// Counts down and hashes what passes.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("it unpacks to far more than its size allows"))?;
        Ok(n)
    }
}

/// What extension headers say about the member behind them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    xattrs: Vec<(CString, Vec<u8>)>,
}

/// A member, its headers and extensions put together.
struct Member {
    path: PathBuf,
    link: Option<PathBuf>,
    kind: EntryType,
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: TimeSpec,
    device: u64,
    xattrs: Vec<(CString, Vec<u8>)>,
}

struct Unpacker {
    root: Root,
    /// Times of directories are set last: making files in them changes them.
    dirs: Vec<(PathBuf, TimeSpec)>,
    /// The directory of the last member, as archives go through trees in order. Forgotten whenever
    /// something that could be on the way to it changes.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker {
    fn all<R: Read>(&mut self, archive: &mut tar::Archive<R>) -> Result<(), String> {
        let mut extensions = Extensions::default();
        // Raw, because otherwise the library takes a long name of any length into memory.
        for (count, entry) in (1u64..).zip(archive.entries().map_err(|e| e.to_string())?.raw(true)) {
            let mut entry = entry.map_err(|e| format!("read: {e}"))?;
            if count > MAX_ENTRIES {
                return Err(format!("it has more than {MAX_ENTRIES} members"));
            }
            match entry.header().entry_type() {
                EntryType::GNULongName => extensions.path = Some(header_text(&mut entry)?),
                EntryType::GNULongLink => extensions.link = Some(header_text(&mut entry)?),
                EntryType::XHeader => pax(&header_bytes(&mut entry)?, &mut extensions)?,
                EntryType::XGlobalHeader => drop(header_bytes(&mut entry)?),
                _ => {
                    let member = member(&entry, std::mem::take(&mut extensions))?;
                    let shown = member.path.display().to_string();
                    self.place(member, &mut entry).map_err(|e| format!("{shown}: {e}"))?;
                }
            }
        }
        Ok(())
    }

    fn place(&mut self, member: Member, data: &mut impl Read) -> Result<(), String> {
        let Some((dir, name)) = split(&member.path)? else {
            return if member.kind.is_dir() {
                self.dress_root(&member)
            } else {
                Err("the root is no directory".to_owned())
            };
        };
        let text = name.to_string_lossy();
        if text == OPAQUE {
            return self.opaque(&dir).map_err(|e| e.to_string());
        }
        if text.starts_with(".wh..wh.") {
            // Another union file system's bookkeeping.
            return Ok(());
        }
        if let Some(hidden) = text.strip_prefix(WHITEOUT) {
            if matches!(hidden, "" | "." | "..") {
                return Err("it is a whiteout of nothing".to_owned());
            }
            return self.whiteout(&dir, OsStr::new(hidden)).map_err(|e| e.to_string());
        }
        self.create(&dir, &name, member, data)
    }

    fn create(&mut self, dir: &Path, name: &OsStr, member: Member, data: &mut impl Read) -> Result<(), String> {
        let refuse = |e: Errno| e.desc().to_owned();
        let path = dir.join(name);
        if member.kind.is_dir() {
            let parent = self.parent(dir).map_err(refuse)?;
            make_dir(parent, name).map_err(refuse)?;
            let fd = openat(parent, name, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(refuse)?;
            dress(&fd, &member)?;
            self.dirs.push((path, member.mtime));
            return Ok(());
        }
        let target = match (&member.link, member.kind) {
            (Some(link), EntryType::Link) => Some(self.link_target(link)?),
            _ => None,
        };
        if !matches!(member.kind, EntryType::Regular | EntryType::Continuous) {
            self.parent = self.parent.take().filter(|(known, _)| !known.starts_with(&path));
        }
        let parent = self.parent(dir).map_err(refuse)?;
        clear(parent, name).map_err(refuse)?;
        match member.kind {
            EntryType::Regular | EntryType::Continuous => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let fd = openat(parent, name, flags, Mode::from_bits_truncate(0o600)).map_err(refuse)?;
                let mut file = fs::File::from(fd);
                io::copy(data, &mut file).map_err(|e| format!("write: {e}"))?;
                let fd = OwnedFd::from(file);
                dress(&fd, &member)?;
                futimens(&fd, &member.mtime, &member.mtime).map_err(refuse)
            }
            EntryType::Link => {
                let (fd, from) = target.ok_or("a hard link to nowhere")?;
                linkat(&fd, from.as_os_str(), parent, name, AtFlags::empty()).map_err(refuse)
            }
            EntryType::Symlink => {
                let to = member.link.as_ref().ok_or("a symbolic link to nowhere")?;
                symlinkat(to, parent, name).map_err(refuse)?;
                own(parent, name, &member).map_err(refuse)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                node(parent, name, &member).map_err(refuse)?;
                own(parent, name, &member).map_err(refuse)
            }
            EntryType::GNUSparse => Err("sparse files are not understood".to_owned()),
            other => Err(format!("members of type {:?} are not understood", other.as_byte() as char)),
        }
    }

    /// A hard link's target: the directory is resolved beneath the root, the name itself is not followed.
    fn link_target(&self, link: &Path) -> Result<(OwnedFd, PathBuf), String> {
        let (dir, name) = split(link)?.ok_or("a hard link to the root")?;
        let fd = self
            .root
            .open_at(&dir, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .map_err(|e| format!("hard link to {}: {}", link.display(), e.desc()))?;
        Ok((fd, PathBuf::from(name)))
    }

    fn parent(&mut self, dir: &Path) -> nix::Result<&OwnedFd> {
        let fd = match self.parent.take() {
            Some((known, fd)) if known == dir => fd,
            _ => self.root.make_dirs(dir)?,
        };
        Ok(&self.parent.insert((dir.to_owned(), fd)).1)
    }

    fn whiteout(&mut self, dir: &Path, hidden: &OsStr) -> nix::Result<()> {
        self.parent = None;
        let parent = self.parent(dir)?;
        clear(parent, hidden)?;
        mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
    }

    fn opaque(&mut self, dir: &Path) -> io::Result<()> {
        self.root.make_dirs(dir)?;
        let fd = self.root.open_at(dir, OFlag::O_DIRECTORY)?;
        set_xattr(&fd, c"trusted.overlay.opaque", b"y")
    }

    fn dress_root(&mut self, member: &Member) -> Result<(), String> {
        let fd = self.root.open_at(Path::new("."), OFlag::O_DIRECTORY).map_err(|e| e.to_string())?;
        dress(&fd, member)
    }

    fn finish(&mut self) -> Result<(), String> {
        for (path, mtime) in self.dirs.drain(..).rev() {
            // A later member may have replaced it; then there is nothing to set.
            if let Ok(fd) = self.root.open_at(&path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) {
                let _ = futimens(&fd, &mtime, &mtime);
            }
        }
        Ok(())
    }
}

fn make_dir(parent: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) => {
            match openat(parent, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
                Ok(_) => Ok(()),
                Err(_) => {
                    clear(parent, name)?;
                    mkdirat(parent, name, Mode::from_bits_truncate(0o755))
                }
            }
        }
        result => result,
    }
}

/// Makes room for a member that comes twice. A directory with something in it is not replaced by a file.
fn clear(parent: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => unlinkat(parent, name, UnlinkatFlags::RemoveDir),
        Err(e) => Err(e),
    }
}

fn node(parent: &OwnedFd, name: &OsStr, member: &Member) -> nix::Result<()> {
    let kind = match member.kind {
        EntryType::Char => SFlag::S_IFCHR,
        EntryType::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    // Device 0/0 is overlayfs' whiteout; an archive says that with a name, not with a device.
    if member.kind != EntryType::Fifo && member.device == makedev(0, 0) {
        return Err(Errno::EINVAL);
    }
    mknodat(parent, name, kind, Mode::empty(), member.device)?;
    fchmodat(parent, name, member.mode, FchmodatFlags::FollowSymlink)
}

/// Owner and time of what cannot be opened.
fn own(parent: &OwnedFd, name: &OsStr, member: &Member) -> nix::Result<()> {
    fchownat(parent, name, Some(member.uid), Some(member.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if member.kind != EntryType::Symlink {
        // Changing the owner clears the set-id bits.
        fchmodat(parent, name, member.mode, FchmodatFlags::FollowSymlink)?;
    }
    utimensat(parent, name, &member.mtime, &member.mtime, UtimensatFlags::NoFollowSymlink)
}

/// Owner, mode and attributes of an open file or directory, in the order in which none undoes another.
fn dress(fd: &OwnedFd, member: &Member) -> Result<(), String> {
    fchown(fd, Some(member.uid), Some(member.gid)).map_err(|e| e.desc().to_owned())?;
    fchmod(fd, member.mode).map_err(|e| e.desc().to_owned())?;
    for (name, value) in &member.xattrs {
        set_xattr(fd, name, value).map_err(|e| format!("attribute {name:?}: {e}"))?;
    }
    Ok(())
}

fn set_xattr(fd: &OwnedFd, name: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is terminated, value and length belong together, and the kernel copies both.
    let result =
        unsafe { nix::libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    match Errno::result(result) {
        // A file system that has no attributes of this kind; containers seldom miss them.
        Ok(_) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn member<R: Read>(entry: &tar::Entry<R>, extensions: Extensions) -> Result<Member, String> {
    let header = entry.header();
    let bytes = |e: io::Error| format!("a header is malformed: {e}");
    let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
    let id = |own: Option<u32>, header: io::Result<u64>| -> Result<u32, String> {
        match own {
            Some(id) => Ok(id),
            None => u32::try_from(header.map_err(bytes)?).map_err(|_| "an owner is no user id".to_owned()),
        }
    };
    let number = |n: io::Result<Option<u32>>| n.ok().flatten().map_or(0, u64::from);
    Ok(Member {
        path: PathBuf::from(OsStr::from_bytes(&path)),
        link: link.map(|l| PathBuf::from(OsStr::from_bytes(&l))),
        kind: header.entry_type(),
        mode: Mode::from_bits_truncate(header.mode().map_err(bytes)? & 0o7777),
        uid: Uid::from_raw(id(extensions.uid, header.uid())?),
        gid: Gid::from_raw(id(extensions.gid, header.gid())?),
        mtime: TimeSpec::new(header.mtime().map_err(bytes)?.try_into().unwrap_or(0), 0),
        device: makedev(number(header.device_major()), number(header.device_minor())),
        xattrs: extensions.xattrs,
    })
}

fn header_bytes<R: Read>(entry: &mut tar::Entry<R>) -> Result<Vec<u8>, String> {
    if entry.size() > MAX_HEADER {
        return Err("an extension header is too long".to_owned());
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|e| format!("read: {e}"))?;
    Ok(bytes)
}

fn header_text<R: Read>(entry: &mut tar::Entry<R>) -> Result<Vec<u8>, String> {
    let mut bytes = header_bytes(entry)?;
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

/// Records of the form `<length> <key>=<value>\n`; a value may hold anything, newlines too.
fn pax(mut bytes: &[u8], out: &mut Extensions) -> Result<(), String> {
    let malformed = || "an extended header is malformed".to_owned();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(malformed)?;
        if length <= space + 1 || length > bytes.len() {
            return Err(malformed());
        }
        let record = bytes[space + 1..length].strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok().and_then(|t| t.parse::<u32>().ok());
        match key {
            b"path" => out.path = Some(value.to_vec()),
            b"linkpath" => out.link = Some(value.to_vec()),
            b"uid" => out.uid = Some(number().ok_or_else(malformed)?),
            b"gid" => out.gid = Some(number().ok_or_else(malformed)?),
            b"size" => return Err("files past 8 GiB are not understood".to_owned()),
            _ if key.starts_with(b"GNU.sparse.") => return Err("sparse files are not understood".to_owned()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|n| keeps_xattr(n)) {
                    out.xattrs.push((CString::new(name).map_err(|_| malformed())?, value.to_vec()));
                }
            }
        }
        bytes = &bytes[length..];
    }
    Ok(())
}

/// overlayfs' own attributes would let a layer reach into others; the rest of `trusted` is the node's business.
fn keeps_xattr(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") || name == b"security.capability"
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
