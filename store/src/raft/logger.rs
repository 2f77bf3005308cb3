//! raft-rs logs through slog; here it goes where everything else goes.

use slog::{Drain, Level, Logger, OwnedKVList, Record};

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let message = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "store::raft", "{message}"),
            Level::Warning => tracing::warn!(target: "store::raft", "{message}"),
            // What raft-rs finds worth an info is for those who look into raft.
            Level::Info | Level::Debug => tracing::debug!(target: "store::raft", "{message}"),
            Level::Trace => tracing::trace!(target: "store::raft", "{message}"),
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        match level {
            Level::Critical | Level::Error | Level::Warning => true,
            Level::Info | Level::Debug => tracing::enabled!(target: "store::raft", tracing::Level::DEBUG),
            Level::Trace => tracing::enabled!(target: "store::raft", tracing::Level::TRACE),
        }
    }
}

pub fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}
