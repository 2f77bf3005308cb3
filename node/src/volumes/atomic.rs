//! A directory of small files that changes as a whole.
//!
//! Files lie in a directory of their own; `..data` points to it, and what the container sees are links through
//! `..data`. A change writes a new directory beside the old one and swaps `..data` by one rename, so a reader sees
//! either all of the old content or all of the new.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

/// The link that is swapped.
const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_next";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    /// Owner, where it is not root.
    pub uid: Option<u32>,
}

/// Relative paths with their content.
pub type Payload = BTreeMap<String, File>;

/// Whether a path of a pod spec stays below the volume's directory and apart from what this module keeps there.
pub fn is_safe(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && !path.starts_with("..")
        && components.all(|c| matches!(c, Component::Normal(_)))
        && !path.contains('\0')
}

/// Makes `dir` show exactly `payload`; `group` owns what is in it. Says whether anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    if let Some(path) = payload.keys().find(|path| !is_safe(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} leads out of the volume")));
    }
    fs::create_dir_all(dir)?;
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), payload)
    {
        return Ok(false);
    }
    let next = (0u32..)
        .map(|n| PathBuf::from(format!("..v{n}")))
        .find(|name| Some(name) != current.as_ref())
        .unwrap_or_else(|| PathBuf::from("..v0"));
    let home = dir.join(&next);
    remove_if_there(&home)?;
    fs::create_dir(&home)?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&home, path, file, group)?;
    }
    // Links go first: through the old `..data` a new one dangles for a moment, which a reader takes for "not there yet".
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    let _ = fs::remove_file(dir.join(DATA_NEXT));
    symlink(&next, dir.join(DATA_NEXT))?;
    fs::rename(dir.join(DATA_NEXT), dir.join(DATA))?;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let stale = if text.starts_with("..v") {
            Path::new(&name) != next
        } else {
            !text.starts_with("..") && !wanted.contains(text.as_ref())
        };
        if stale {
            remove_if_there(&dir.join(&name))?;
        }
    }
    Ok(true)
}

fn write_file(home: &Path, path: &str, file: &File, group: Option<u32>) -> io::Result<()> {
    let target = home.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
    fs::write(&target, &file.content)?;
    if file.uid.is_some() || group.is_some() {
        std::os::unix::fs::chown(&target, file.uid, group)?;
    }
    // A group that owns the volume must be able to read it.
    let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
    fs::set_permissions(&target, fs::Permissions::from_mode(mode & 0o777))
}

/// Whether `home` holds these files and no others.
fn same(home: &Path, payload: &Payload) -> bool {
    let all = payload.iter().all(|(path, file)| fs::read(home.join(path)).is_ok_and(|found| found == file.content));
    all && count(home).is_some_and(|n| n == payload.len())
}

fn count(dir: &Path) -> Option<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        files += if entry.file_type().ok()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Some(files)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| File { content: content.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    fn visible(dir: &Path) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && entry.path().is_file() {
                out.push((name, fs::read_to_string(entry.path()).expect("a file")));
            }
        }
        out.sort();
        out
    }

    #[test]
    fn content_changes_as_a_whole() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().join("volume");
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).expect("written"));
        assert_eq!(visible(&dir), [("a".to_owned(), "1".to_owned())]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).expect("a file"), "2");
        let mode = fs::metadata(dir.join("a")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);

        assert!(!write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).expect("unchanged"));
        let before = fs::read_link(dir.join(DATA)).expect("a link");
        assert!(write(&dir, &payload(&[("a", "3"), ("c", "4")]), None).expect("written"));
        assert_ne!(fs::read_link(dir.join(DATA)).expect("a link"), before);
        assert_eq!(visible(&dir), [("a".to_owned(), "3".to_owned()), ("c".to_owned(), "4".to_owned())]);
        assert!(!dir.join("sub").exists() && !dir.join(before).exists());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let home = tempfile::tempdir().expect("a directory");
        for bad in ["../x", "/etc/passwd", "a/../../b", "..data", "..data/x", "", "./a"] {
            assert!(write(&home.path().join("v"), &payload(&[(bad, "")]), None).is_err(), "{bad}");
        }
        assert!(is_safe("a/b/c") && is_safe(".hidden"));
    }
}
