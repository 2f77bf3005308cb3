//! The driver's thread: gives it the machine's clock, writes the log where nobody else need, and sees to the end.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Input, Queue,
    driver::{Driver, Now, Turn},
    recover::{self, Thread},
    writer::Writer,
};
use crate::{Error, store::unix_millis};

/// How long each of the other threads may take to bring its last work to the disk.
const LAST_WORK: Duration = Duration::from_secs(10);

pub struct Runner {
    pub driver: Driver,
    pub inbox: Arc<Queue<Input>>,
    /// Here while this member has no fellows: then nobody waits for a heartbeat while the disk is written, and the work
    /// need not be handed to another thread and back.
    pub writer: Option<Writer>,
    /// Those that the driver hands its work to; they end after it.
    pub threads: Vec<Thread>,
    pub lock: Option<fs::File>,
}

impl Runner {
    /// Runs until it is stopped or something breaks that must not: then the store ends, with everyone told why.
    pub fn run(mut self) {
        let worked = catch_unwind(AssertUnwindSafe(|| self.work()));
        let error = match worked {
            Ok(Ok(())) => Error::Closed,
            Ok(Err(error @ Error::Fatal { .. })) => error,
            Ok(Err(error)) => Error::Fatal { reason: error.to_string() },
            Err(panic) => Error::Fatal { reason: format!("an invariant broke: {}", message_of(&*panic)) },
        };
        if let Error::Fatal { reason } = &error {
            tracing::error!(%reason, "the store stops");
        }
        self.driver.end(&error);
        self.write();
        // After a failure nobody knows how long the others may hang in it, and nothing of theirs is needed any more.
        if matches!(error, Error::Closed) {
            let ended = self.threads.drain(..).all(|thread| thread.ends_within(LAST_WORK));
            if !ended {
                tracing::warn!(
                    "the disk does not take the store's last work: it is left, as everything acknowledged is safe"
                );
                // Nobody else may write there while it may still come: the lock goes with the process.
                std::mem::forget(self.lock.take());
            }
        }
        drop(self.lock.take());
        // Whoever sent something while the doors were closing is told too.
        self.inbox.close().into_iter().for_each(|input| input.refuse(&error));
        if let Some(done) = self.driver.stopper() {
            let _ = done.send(());
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        #[expect(clippy::disallowed_methods, reason = "the runner is the shell")]
        let started = Instant::now();
        self.driver.begin()?;
        let mut wait = Duration::ZERO;
        loop {
            let inputs = self.inbox.take(wait);
            let now = Now { since_start: started.elapsed(), unix_ms: unix_millis() };
            match self.driver.turn(now, inputs)? {
                Turn::Wait(longest) => wait = longest,
                Turn::Stopped => return Ok(()),
            }
            if self.driver.is_single() {
                self.write();
            } else if let Some(writer) = self.writer.take() {
                self.threads.push(recover::spawn("store-log", &self.inbox, move || writer.run())?);
            }
        }
    }

    /// Writes what the driver has for the disk, where that is this thread's work. How it went is an input of the next turn.
    fn write(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let jobs = writer.jobs.take(Duration::ZERO);
        if !jobs.is_empty() && writer.turn(jobs).is_break() {
            self.writer = None;
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
