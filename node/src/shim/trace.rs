//! libcontainer says why it failed only in its error-level trace events, some of them from forked children:
//! they go to a file, and the last of them into the error the agent gets.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Of the causes of one failure, so many bytes from the end are told.
const TAIL: u64 = 2048;
/// The file starts anew past this size.
const MAX_FILE: u64 = 256 * 1024;

/// Appends errors to a file that children share by inheritance.
pub struct Errors {
    file: fs::File,
}

impl Errors {
    /// Installs the collector for the whole process, and gives back the other end.
    pub fn install(path: &Path) -> io::Result<Tail> {
        let file = fs::OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let tail = Tail { file: file.try_clone()? };
        tracing::subscriber::set_global_default(Errors { file }).map_err(io::Error::other)?;
        Ok(tail)
    }
}

/// Reads what one operation has left.
pub struct Tail {
    file: fs::File,
}

impl Tail {
    /// Call before an operation; hand the mark to `since` after it.
    pub fn mark(&self) -> u64 {
        let length = self.file.metadata().map_or(0, |m| m.len());
        if length < MAX_FILE {
            return length;
        }
        let _ = self.file.set_len(0);
        0
    }

    pub fn since(&mut self, mark: u64) -> String {
        let length = self.file.metadata().map_or(0, |m| m.len());
        let from = mark.max(length.saturating_sub(TAIL));
        let mut bytes = Vec::new();
        if self.file.seek(SeekFrom::Start(from)).is_ok() {
            let _ = (&mut self.file).take(TAIL).read_to_end(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        text.trim().replace('\n', "; ")
    }
}

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        line.0.push('\n');
        let _ = (&self.file).write_all(line.0.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let separator = if self.0.is_empty() { "" } else { " " };
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name}={value:?}"),
        };
    }
}
