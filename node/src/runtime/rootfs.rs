//! A container's root file system: the image's layers below, a directory of the container's own on top.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

/// Mounts `layers` (lowest first) under a writable directory at `target`; `own` gets `upper` and `work`.
pub fn mount_overlay(layers: &[PathBuf], own: &Path, target: &Path) -> io::Result<()> {
    let (upper, work) = (own.join("upper"), own.join("work"));
    for dir in [&upper, &work, &target.to_path_buf()] {
        fs::create_dir_all(dir)?;
    }
    // A container sees the permissions of its root directory, and an unprivileged user must get through it.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755))?;
    // mount(2) takes one page of options: layers are named through descriptors, 20 bytes each whatever the
    // data directory is called. The kernel resolves them during the call; nothing refers to them afterwards.
    let directory = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let open_layers: Vec<OwnedFd> = layers.iter().map(|l| directory(l)).collect::<nix::Result<_>>()?;
    let own = directory(own)?;
    let through = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower: Vec<String> = open_layers.iter().rev().map(through).collect();
    let mut options = OsString::from(format!("lowerdir={}", lower.join(":")));
    options.push(format!(",upperdir={0}/upper,workdir={0}/work", through(&own)));
    // Container file systems are scratch: no reason to write them out before the machine wants the memory.
    let volatile = {
        let mut o = options.clone();
        o.push(",volatile");
        o
    };
    for options in [&volatile, &options] {
        match mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str())) {
            Err(Errno::EINVAL) if options == &volatile => continue,
            result => return Ok(result?),
        }
    }
    Ok(())
}

/// Unmounts everything at or below `dir`, deepest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect();
    points.reverse();
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => {
                return Err(io::Error::new(io::Error::from(e).kind(), format!("unmount {}: {e}", point.display())));
            }
        }
    }
    Ok(())
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = (byte == b'\\').then(|| tail.get(..3)).flatten();
        let code = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (field, want) in [("/a/b", "/a/b"), ("/a\\040b", "/a b"), ("/a\\134x", "/a\\x"), ("/a\\9", "/a\\9")] {
            assert_eq!(unescape(field.as_bytes()), PathBuf::from(want));
        }
    }
}
