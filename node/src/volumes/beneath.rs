//! Reaching into a volume whose content somebody else controls, without being led out of it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, mkdirat},
};

/// The most directories that a missing subPath may need: as many as a path can have.
const DEPTH_MAX: usize = 255;

/// Opens `path` below `root`. Links are followed only as long as they stay inside; missing directories are made.
pub fn open_or_create(root: &Path, path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let names: Vec<_> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of the volume")),
        })
        .collect::<Result<_, _>>()?;
    if names.len() > DEPTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too deep"));
    }
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let inside = |path: &Path| {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    if names.is_empty() {
        return Ok(root);
    }
    // Each prefix is opened from the root again, so that a link such as `..data` is judged as a whole.
    let mut reached = std::path::PathBuf::new();
    let mut parent: Option<OwnedFd> = None;
    for name in names {
        reached.push(name);
        parent = Some(match inside(&reached) {
            Ok(fd) => fd,
            Err(nix::errno::Errno::ENOENT) => {
                let at = parent.as_ref().unwrap_or(&root);
                match mkdirat(at, name, Mode::from_bits_truncate(mode)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => inside(&reached)?,
                    Err(error) => return Err(error.into()),
                }
            }
            Err(nix::errno::Errno::EXDEV) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a link leads out of the volume"));
            }
            Err(error) => return Err(error.into()),
        });
    }
    parent.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Shows what `fd` stands for at `target`, which is created as a file or directory to match. What is mounted is the
/// very file that was opened: nobody can exchange it in between.
pub fn bind_fd(fd: &OwnedFd, target: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let directory = std::fs::metadata(&source)?.is_dir();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if directory {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        std::fs::File::create(target)?;
    }
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// Removes every mount below `dir`, the youngest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points: Vec<std::path::PathBuf> =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).filter(|p| p.starts_with(dir)).collect();
    for point in points.into_iter().rev() {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether something is mounted exactly at `point`.
pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|text| unescape(text) == point)
}

/// mountinfo writes blanks and backslashes as `\ooo`.
fn unescape(text: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn read(fd: &OwnedFd) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a file")
    }

    #[test]
    fn links_are_followed_only_inside() {
        let home = tempfile::tempdir().expect("a directory");
        let outside = home.path().join("secret");
        fs::write(&outside, "outside").expect("written");
        let root = home.path().join("volume");
        fs::create_dir_all(root.join("..v0")).expect("made");
        fs::write(root.join("..v0/key"), "inside").expect("written");
        symlink("..v0", root.join("..data")).expect("linked");
        symlink("..data/key", root.join("key")).expect("linked");
        symlink("../secret", root.join("up")).expect("linked");
        symlink(&outside, root.join("absolute")).expect("linked");
        symlink("..", root.join("dir")).expect("linked");

        assert_eq!(read(&open_or_create(&root, Path::new("key"), 0o755).expect("opened")), "inside");
        for bad in ["up", "absolute", "dir/secret", "dir/new", "../secret", "/etc/passwd"] {
            assert!(open_or_create(&root, Path::new(bad), 0o755).is_err(), "{bad}");
        }
        assert!(!home.path().join("new").exists());
        open_or_create(&root, Path::new("made/on/the/way"), 0o755).expect("created");
        assert!(root.join("made/on/the/way").is_dir());
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
    }
}
