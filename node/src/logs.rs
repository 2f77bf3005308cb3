//! Container logs: lines of the form `time stream F|P text`, as the runtime writes them, and what a reader wants of them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, unix::AsyncFd},
};

/// Read at once.
const BLOCK: usize = 64 * 1024;
/// A line longer than this is passed on in pieces; the runtime splits at 16 KiB already.
const LINE_MAX: usize = 256 * 1024;

/// What the reader asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    More,
    /// The limit is reached.
    Full,
}

/// Turns raw lines into what is shown. Pure.
#[derive(Debug)]
pub struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<u64>,
    /// The last piece shown did not end its line.
    open: bool,
}

impl Filter {
    pub fn new(options: &Options) -> Filter {
        Filter { since: options.since, timestamps: options.timestamps, left: options.limit, open: false }
    }

    /// Takes one raw line without its newline.
    pub fn line(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Flow {
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            // Torn by a power cut: nothing of it can be trusted.
            return Flow::More;
        };
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return Flow::More;
            }
        }
        let from = out.len();
        if self.timestamps && !self.open {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.open = tag.starts_with(b"P");
        if !self.open {
            out.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            out.truncate(out.len().min(from.saturating_add(room)));
            *left -= (out.len() - from) as u64;
            if *left == 0 {
                return Flow::Full;
            }
        }
        Flow::More
    }
}

/// A log file being read, from where the reader wants it.
pub struct Reader {
    file: File,
    filter: Filter,
    partial: Vec<u8>,
    done: bool,
}

impl Reader {
    pub async fn open(path: &Path, options: &Options) -> io::Result<Reader> {
        let mut file = tokio::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).await?;
        if let Some(lines) = options.tail {
            let from = tail_offset(&mut file, lines).await?;
            file.seek(io::SeekFrom::Start(from)).await?;
        }
        Ok(Reader { file, filter: Filter::new(options), partial: Vec::new(), done: false })
    }

    /// The next piece; empty when there is nothing more at present.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut block = vec![0u8; BLOCK];
        while out.is_empty() && !self.done {
            let count = self.file.read(&mut block).await?;
            if count == 0 {
                break;
            }
            self.partial.extend_from_slice(&block[..count]);
            let mut start = 0;
            while let Some(length) = self.partial[start..].iter().position(|b| *b == b'\n') {
                if self.filter.line(&self.partial[start..start + length], &mut out) == Flow::Full {
                    self.done = true;
                    break;
                }
                start += length + 1;
            }
            self.partial.drain(..start);
            if self.partial.len() > LINE_MAX {
                self.partial.clear();
            }
        }
        Ok(out)
    }

    /// The limit is reached: nothing will come any more.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// Where the last `lines` whole lines begin.
async fn tail_offset(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    // The newline before the wanted lines is looked for, so one more than there are lines. A partial record counts as
    // its line's beginning, which shows a little more of a very long line, never less.
    let mut seen = 0;
    let mut position = end;
    let mut block = vec![0u8; BLOCK];
    while position > 0 {
        let size = position.min(BLOCK as u64);
        position -= size;
        file.seek(io::SeekFrom::Start(position)).await?;
        let piece = &mut block[..usize::try_from(size).unwrap_or(BLOCK)];
        file.read_exact(piece).await?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            seen += 1;
            if seen > lines {
                return Ok(position + index as u64 + 1);
            }
        }
    }
    Ok(0)
}

/// Wakes when a file grows.
#[derive(Debug)]
pub struct Watcher {
    inotify: AsyncFd<Source>,
}

/// What the reactor watches.
#[derive(Debug)]
struct Source(Inotify);

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watcher {
    pub fn new(path: &Path) -> io::Result<Watcher> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify
            .add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF)?;
        // SAFETY: the source owns its descriptor, and names the same open one for as long as it lives.
        let inotify = unsafe { AsyncFd::register(Source(inotify))? };
        Ok(Watcher { inotify })
    }

    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.get_inner().0.read_events() {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EAGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The log files of a container by attempt, the newest last.
pub fn attempts(dir: &Path) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok();
    let mut out: Vec<_> = entries.map(|e| e.path()).filter_map(|path| Some((number(&path)?, path))).collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.000000001Z stdout F one\n\
                       2026-01-01T00:00:02.000000000Z stderr P two \n\
                       2026-01-01T00:00:02.500000000Z stderr F halves\n\
                       2026-01-01T00:00:03.000000000Z stdout F \n\
                       torn\n\
                       2026-01-01T00:00:04.000000000Z stdout F four\n";

    async fn read(options: Options) -> String {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("0.log");
        std::fs::write(&path, LOG).expect("written");
        let mut reader = Reader::open(&path, &options).await.expect("opened");
        let mut out = Vec::new();
        loop {
            let piece = reader.next().await.expect("read");
            if piece.is_empty() {
                return String::from_utf8(out).expect("text");
            }
            out.extend(piece);
        }
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let since = |text: &str| Some(text.parse().expect("a time"));
        let all = Options::default();
        let table = [
            (all.clone(), "one\ntwo halves\n\nfour\n"),
            (Options { since: since("2026-01-01T00:00:02.9Z"), ..all.clone() }, "\nfour\n"),
            (Options { tail: Some(1), ..all.clone() }, "four\n"),
            (Options { tail: Some(0), ..all.clone() }, ""),
            (Options { tail: Some(100), limit: Some(5), ..all.clone() }, "one\nt"),
            (
                Options { timestamps: true, limit: Some(200), tail: Some(5), ..all },
                "2026-01-01T00:00:02.000000000Z two halves\n2026-01-01T00:00:03.000000000Z \n2026-01-01T00:00:04.000000000Z four\n",
            ),
        ];
        for (options, expected) in table {
            assert_eq!(read(options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn a_growing_file_wakes_its_watcher() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("3.log");
        std::fs::write(&path, "").expect("written");
        let watcher = Watcher::new(&path).expect("watched");
        let mut reader = Reader::open(&path, &Options::default()).await.expect("opened");
        assert!(reader.next().await.expect("read").is_empty());
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F late\n").expect("written");
        tokio::time::timeout(std::time::Duration::from_secs(10), watcher.changed())
            .await
            .expect("woken")
            .expect("read");
        assert_eq!(reader.next().await.expect("read"), b"late\n");
        assert_eq!(attempts(home.path()), [(3, path)]);
    }
}
