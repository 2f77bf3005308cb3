//! The log's thread: takes what has gathered, writes it as one batch with one sync, and says so. While it syncs,
//! the driver gathers the next batch.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc, time::Duration};

use raft::eraftpb::Message;

use super::{Input, Queue};
use crate::{
    Error,
    disk::Disk,
    image,
    log::{Log, Write},
    mvcc::Image,
    shared::Shared,
};

/// Readies are put together into one batch until it is this large. How many wait is bounded by what may be
/// uncommitted in raft.
const BATCH_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub enum Job {
    Write {
        number: u64,
        write: Write,
        /// To be sent once this is on disk.
        messages: Vec<Message>,
        /// A snapshot received, to be put in place before the log is reset to it.
        image: Option<Box<Image>>,
    },
    /// A snapshot of this index and size is on disk: nothing up to it is needed any more.
    Purge {
        index: u64,
        snapshot_bytes: u64,
    },
    Stop,
}

pub struct Writer {
    pub log: Log,
    pub disk: Arc<dyn Disk>,
    /// Where snapshots lie.
    pub snapshots: PathBuf,
    pub jobs: Arc<Queue<Job>>,
    pub inbox: Arc<Queue<Input>>,
    pub shared: Arc<Shared>,
}

impl Writer {
    /// Works until it is stopped or the disk fails; `done` is called after each batch.
    pub fn run(mut self, done: impl Fn()) {
        const FOR_EVER: Duration = Duration::from_secs(3600);
        loop {
            let jobs = self.jobs.take(FOR_EVER);
            let turned = self.turn(jobs);
            done();
            if turned.is_break() {
                return;
            }
        }
    }

    /// Puts jobs on the disk; how it went is in the inbox then, for the driver's next turn. A failure ends the store and is never retried, as after a failed sync nobody knows what
    /// the disk has.
    pub fn turn(&mut self, jobs: Vec<Job>) -> ControlFlow<()> {
        self.work(jobs).unwrap_or_else(|error| {
            self.inbox.push_quietly(Input::Failed(error));
            ControlFlow::Break(())
        })
    }

    fn work(&mut self, jobs: Vec<Job>) -> Result<ControlFlow<()>, Error> {
        let mut batch = Batch::default();
        for job in jobs {
            match job {
                Job::Write { number, write, messages, image } => {
                    if let Some(image) = image {
                        self.flush(&mut batch)?;
                        image::save(&*self.disk, &self.snapshots, &image)?;
                    }
                    batch.add(number, write, messages);
                    if batch.bytes >= BATCH_BYTES {
                        self.flush(&mut batch)?;
                    }
                }
                Job::Purge { index, snapshot_bytes } => {
                    self.flush(&mut batch)?;
                    self.log.purge(index)?;
                    self.shared.gauges.log_bytes(self.log.bytes());
                    self.inbox.push_quietly(Input::Purged { index, snapshot_bytes });
                }
                Job::Stop => {
                    self.flush(&mut batch)?;
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.flush(&mut batch)?;
        Ok(ControlFlow::Continue(()))
    }

    fn flush(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let Batch { number, write, messages, .. } = std::mem::take(batch);
        let Some(number) = number else { return Ok(()) };
        if write != Write::default() {
            self.log.append(&write)?;
            self.shared.gauges.log_bytes(self.log.bytes());
        }
        self.inbox.push_quietly(Input::Persisted { number, messages });
        Ok(())
    }
}

#[derive(Default)]
struct Batch {
    number: Option<u64>,
    write: Write,
    messages: Vec<Message>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, number: u64, write: Write, messages: Vec<Message>) {
        self.number = Some(number);
        if let Some(reset) = write.reset {
            // What came before the reset is void.
            self.write.entries.clear();
            self.write.reset = Some(reset);
        }
        self.bytes += write.entries.iter().map(|entry| entry.data.len() + entry.context.len() + 32).sum::<usize>();
        self.write.entries.extend(write.entries);
        self.write.hard_state = write.hard_state.or(self.write.hard_state.take());
        self.messages.extend(messages);
    }
}
