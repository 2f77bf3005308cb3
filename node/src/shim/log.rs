//! Container output into the CRI's log format, with rotation.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; `P` marks a part of a line too long for one.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longer lines are cut into parts, as the kubelet's readers expect.
const MAX_LINE: usize = 16 * 1024;
/// One file's size, and how many there are with the one being written.
const MAX_SIZE: u64 = 10 << 20;
const MAX_FILES: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One stream's unfinished line.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Formats what has been read; keeps what follows the last line's end.
    pub fn push(&mut self, stream: Stream, data: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        let mut rest = data;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.take(stream, &rest[..end], now, out);
            self.entry(stream, 'F', now, out);
            rest = &rest[end + 1..];
        }
        self.take(stream, rest, now, out);
    }

    /// The stream has ended: what is left is a line.
    pub fn finish(&mut self, stream: Stream, now: Timestamp, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.entry(stream, 'F', now, out);
        }
    }

    fn take(&mut self, stream: Stream, mut text: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        while self.partial.len() + text.len() > MAX_LINE {
            let (head, tail) = text.split_at(MAX_LINE - self.partial.len());
            self.partial.extend_from_slice(head);
            self.entry(stream, 'P', now, out);
            text = tail;
        }
        self.partial.extend_from_slice(text);
    }

    fn entry(&mut self, stream: Stream, tag: char, now: Timestamp, out: &mut Vec<u8>) {
        let _ = write!(out, "{now:.9} {} {tag} ", stream.name());
        out.extend_from_slice(&self.partial);
        out.push(b'\n');
        // A quiet container keeps no buffer.
        self.partial = Vec::new();
    }
}

/// The file being written.
pub struct LogFile {
    path: PathBuf,
    file: fs::File,
    size: u64,
}

impl LogFile {
    pub fn open(path: &Path) -> io::Result<LogFile> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, size })
    }

    /// Appends whole lines. A full disk loses them: the container must not stop for its log.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + lines.len() as u64 > MAX_SIZE {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| if n == 0 { self.path.clone() } else { with_number(&self.path, n) };
        for n in (0..MAX_FILES - 1).rev() {
            match fs::rename(numbered(n), numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

/// `0.log` becomes `0.log.1`.
fn with_number(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

fn open(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn lines_are_kept_until_they_end() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.push(Stream::Stdout, b"one\ntw", now(), &mut out);
        lines.push(Stream::Stdout, b"o\n\nlast", now(), &mut out);
        lines.finish(Stream::Stdout, now(), &mut out);
        lines.finish(Stream::Stdout, now(), &mut out);
        let t = "2026-01-01T00:00:00.000000000Z stdout F";
        assert_eq!(String::from_utf8(out).unwrap(), format!("{t} one\n{t} two\n{t} \n{t} last\n"));
    }

    #[test]
    fn a_long_line_is_cut_into_parts() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let mut text = vec![b'x'; 2 * MAX_LINE + 5];
        text.push(b'\n');
        lines.push(Stream::Stderr, &text, now(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let tags: Vec<(&str, usize)> =
            text.lines().map(|l| l.splitn(4, ' ').collect::<Vec<_>>()).map(|f| (f[2], f[3].len())).collect();
        assert_eq!(tags, [("P", MAX_LINE), ("P", MAX_LINE), ("F", 5)]);
    }

    #[test]
    fn files_rotate_and_the_oldest_goes() {
        let dir = std::env::temp_dir().join(format!("minik8s-log-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        let block = vec![b'a'; (MAX_SIZE / 2 + 1) as usize];
        for _ in 0..MAX_FILES + 2 {
            log.write(&block).unwrap();
        }
        let mut names: Vec<String> =
            fs::read_dir(&dir).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4"]);
    }
}
