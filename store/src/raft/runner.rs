//! Works the driver: gives it the machine's clock, writes the log where nobody else need, and sees to the end. It has a thread
//! of its own for what is due by the clock; whoever has something for the driver lends it theirs, as to wake another one and
//! to be woken by it takes longer than most turns.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{
    Input, Queue,
    driver::{Driver, Now, Turn},
    recover::{self, Thread},
    writer::{self, Writer},
};
use crate::{Error, store::unix_millis};

/// A disk that is slower than this with a batch is waited for by the runner's own thread only.
const QUICK: Duration = Duration::from_millis(5);
/// How long each of the other threads may take to bring its last work to the disk.
const LAST_WORK: Duration = Duration::from_secs(10);

pub struct Runner {
    inbox: Arc<Queue<Input>>,
    log: Arc<Queue<writer::Job>>,
    /// Held by whoever works; nothing once it has ended.
    work: Mutex<Option<Work>>,
}

pub struct Work {
    pub driver: Driver,
    pub inbox: Arc<Queue<Input>>,
    /// Whose it is.
    pub runner: Weak<Runner>,
    /// Here while this member has no fellows: then nobody waits for a heartbeat while the disk is written, and the work
    /// need not be handed to another thread and back.
    pub writer: Option<Writer>,
    /// Those that the driver hands its work to; they end after it.
    pub threads: Vec<Thread>,
    pub lock: Option<fs::File>,
    pub started: Instant,
    /// How long the last batch took to reach the disk.
    pub last_write: Duration,
    /// When the runner's thread looks at the clock next.
    pub wakes_at: Duration,
    /// What has ended it.
    pub end: Option<Error>,
}

/// What came of a hand that was lent.
#[derive(Default)]
struct Lent {
    again: Option<Duration>,
    /// Whether other members wait for what this one sends.
    leads: bool,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Runner {
    pub fn new(work: Work, log: Arc<Queue<writer::Job>>) -> Runner {
        Runner { inbox: work.inbox.clone(), log, work: Mutex::new(Some(work)) }
    }

    /// Runs until it is stopped or something breaks that must not: then the store ends, with everyone told why.
    pub fn run(&self) {
        let mut next = Some(Duration::ZERO);
        while let Some(wait) = next {
            self.inbox.wait(wait);
            next = self.work().as_mut().and_then(|work| {
                let wait = work.round()?;
                work.wakes_at = work.started.elapsed() + wait;
                Some(wait)
            });
            self.log.wake();
        }
        let work = self.work().take();
        if let Some(work) = work {
            work.finish();
        }
    }

    /// Carries out what is in the inbox on the caller's thread, unless somebody works already or the disk might hold the
    /// caller up. Answers after how long the caller is to do so again, if that is sooner than the runner's thread would.
    pub async fn lend_hand(&self) -> Option<Duration> {
        let Lent { again, leads } = self.lend();
        if leads && !self.log.is_empty() {
            // What is for other members goes first, by other tasks of this thread: the way to their disks is longer. If this
            // ends here, the runner's thread is not long in coming.
            tokio::task::yield_now().await;
        }
        self.log.wake();
        again
    }

    fn lend(&self) -> Lent {
        // Whoever works now looks into the inbox once more before it rests.
        let Ok(mut work) = self.work.try_lock() else { return Lent::default() };
        let again = work.as_mut().filter(|work| work.may_be_lent_to()).and_then(Work::lent_rounds);
        let leads = work.as_ref().is_some_and(|work| work.driver.leads());
        drop(work);
        self.inbox.wake();
        Lent { again, leads }
    }

    /// Lends a hand of a thread that cannot come back by the clock.
    fn lend_hand_once(&self) {
        if self.lend().again.is_some() {
            self.inbox.rouse();
        }
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn may_be_lent_to(&self) -> bool {
        self.end.is_none() && (self.writer.is_none() || self.last_write < QUICK)
    }

    fn lent_rounds(&mut self) -> Option<Duration> {
        let mut wait = self.round()?;
        if wait.is_zero() || !self.inbox.is_empty() {
            // Mostly the answers of what the first round has brought to the disk.
            wait = self.round()?;
        }
        (self.started.elapsed() + wait < self.wakes_at).then_some(wait)
    }

    /// Takes what is in the inbox as far as it comes; answers after how long the next round is due, unless all has ended.
    fn round(&mut self) -> Option<Duration> {
        if self.end.is_some() {
            return None;
        }
        self.end = match catch_unwind(AssertUnwindSafe(|| self.turn())) {
            Ok(Ok(wait)) => return Some(wait),
            Ok(Err(error @ (Error::Closed | Error::Fatal { .. }))) => Some(error),
            Ok(Err(error)) => Some(Error::Fatal { reason: error.to_string() }),
            Err(panic) => Some(Error::Fatal { reason: format!("an invariant broke: {}", message_of(&*panic)) }),
        };
        // For the runner's thread, if this is not it.
        self.inbox.push(Input::Stop(None));
        None
    }

    fn turn(&mut self) -> Result<Duration, Error> {
        let inputs = self.inbox.take(Duration::ZERO);
        let now = Now { since_start: self.started.elapsed(), unix_ms: unix_millis() };
        let wait = match self.driver.turn(now, inputs)? {
            Turn::Wait(longest) => longest,
            Turn::Stopped => return Err(Error::Closed),
        };
        if self.driver.is_single() {
            self.write();
        } else if let Some(writer) = self.writer.take() {
            let runner = self.runner.clone();
            let done = move || runner.upgrade().iter().for_each(|runner| runner.lend_hand_once());
            self.threads.push(recover::spawn("store-log", &self.inbox, move || writer.run(done))?);
        }
        Ok(wait)
    }

    /// Writes what the driver has for the disk, where that is this thread's work. How it went is an input of the next turn.
    fn write(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        let jobs = writer.jobs.take(Duration::ZERO);
        if jobs.is_empty() {
            return;
        }
        let began = self.started.elapsed();
        let done = writer.turn(jobs);
        self.last_write = self.started.elapsed() - began;
        if done.is_break() {
            self.writer = None;
        }
    }

    fn finish(mut self) {
        let error = self.end.take().unwrap_or(Error::Closed);
        if let Error::Fatal { reason } = &error {
            tracing::error!(%reason, "the store stops");
        }
        self.driver.end(&error);
        self.write();
        // After a failure nobody knows how long the others may hang in it, and nothing of theirs is needed any more.
        let mut stopped = Ok(());
        if matches!(error, Error::Closed) {
            // The log's first, which began last: what it has weighs more than a checkpoint.
            let late = self.threads.drain(..).rev().filter(|thread| !thread.ends_within(LAST_WORK)).count();
            if late > 0 {
                let reason = "the disk has not taken its last work in time; everything acknowledged is safe".to_owned();
                tracing::warn!("the store is left: {reason}");
                stopped = Err(Error::Fatal { reason });
                // Nobody else may write there while it may still come: the lock goes with the process.
                std::mem::forget(self.lock.take());
            }
        }
        drop(self.lock.take());
        // Whoever sent something while the doors were closing is told too.
        self.inbox.close().into_iter().for_each(|input| input.refuse(&error));
        if let Some(done) = self.driver.stopper() {
            let _ = done.send(stopped);
        }
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned())
}
