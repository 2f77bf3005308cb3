//! The shim's program, out of reach of what it starts.
//!
//! A process on its way into a container still runs the shim's program, and the container can open it by
//! `/proc/<pid>/exe` (CVE-2019-5736). So shims are started from a file nobody can open for writing: the same
//! file seen through a read-only overlay mount, which costs no memory as its pages are the file's own; or,
//! where that cannot be had, a sealed copy in memory, shared by all shims of the node.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, openat};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

/// A program to start shims from, by `/proc/self/fd/<n>`.
pub struct Sealed {
    fd: OwnedFd,
}

impl Sealed {
    pub fn of(program: &Path) -> io::Result<Sealed> {
        let fd = overlay(program).or_else(|e| {
            tracing::warn!(error = %e, "no read-only view of the program; shims run from a copy in memory");
            copy(program)
        })?;
        Ok(Sealed { fd })
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;

/// Opens the program through an overlay without an upper directory, mounted nowhere: it goes with its last descriptor.
fn overlay(program: &Path) -> io::Result<OwnedFd> {
    let real = fs::canonicalize(program)?;
    let (Some(dir), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(io::Error::other("the program has no directory"));
    };
    // An overlay without an upper directory wants two lower ones; the second is only there to be the second.
    let lower = dir.as_os_str().as_encoded_bytes();
    if lower.iter().any(|b| matches!(b, b':' | b',' | b'\\')) {
        return Err(io::Error::other("the program's directory has a name overlayfs cannot take"));
    }
    let empty = tempdir()?;
    let options = [lower, b":", empty.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let file = mounted(&options).and_then(|mount| {
        Ok(openat(&mount, name, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?)
    });
    let _ = fs::remove_dir(&empty);
    file
}

fn mounted(lower: &[u8]) -> io::Result<OwnedFd> {
    let context = owned(sys_fsopen(c"overlay"))?;
    let value = CStr::from_bytes_with_nul(lower).map_err(io::Error::other)?;
    sys_fsconfig(context.as_raw_fd(), FSCONFIG_SET_STRING, Some((c"lowerdir", value)))?;
    sys_fsconfig(context.as_raw_fd(), FSCONFIG_CMD_CREATE, None)?;
    // SAFETY: fsmount takes numbers only and returns a new descriptor.
    let mount =
        unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, libc::MOUNT_ATTR_RDONLY) };
    owned(mount)
}

fn sys_fsopen(kind: &CStr) -> libc::c_long {
    // SAFETY: the name is terminated and outlives the call.
    unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }
}

fn sys_fsconfig(fd: RawFd, command: libc::c_uint, pair: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (key, value) = pair.map_or((std::ptr::null(), std::ptr::null()), |(k, v)| (k.as_ptr(), v.as_ptr()));
    // SAFETY: key and value are null, or terminated strings that outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) })?;
    Ok(())
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn tempdir() -> io::Result<PathBuf> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("minik8s-seal-{}-{serial}", std::process::id()));
    match fs::create_dir(&path) {
        // Left by an earlier process of this number; it is only ever an empty directory below others.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(&path)?.is_dir() => Ok(path),
        result => result.map(|()| path),
    }
}

fn copy(program: &Path) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"minik8s-shim", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = fs::File::from(fd);
    io::copy(&mut fs::File::open(program)?, &mut file)?;
    let fd = OwnedFd::from(file);
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(sealed: &Sealed) {
        let output = std::process::Command::new(sealed.path()).arg("sealed").output().unwrap();
        assert_eq!(output.stdout, b"sealed\n");
        // A sealed file can be opened for writing, but not written.
        let written = fs::OpenOptions::new().write(true).open(sealed.path()).and_then(|mut f| f.write_all(b"evil"));
        let error = written.unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::EROFS | libc::EPERM | libc::ETXTBSY | libc::EACCES)),
            "{error}"
        );
    }

    #[test]
    fn a_sealed_program_runs_and_cannot_be_written() {
        let echo = Path::new("/bin/echo");
        check(&Sealed { fd: copy(echo).unwrap() });
        let before = fs::read(echo).unwrap();
        let sealed = Sealed::of(echo).unwrap();
        check(&sealed);
        assert_eq!(fs::read(echo).unwrap(), before);
    }
}
