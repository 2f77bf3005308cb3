//! The checkpoint's thread: moves the checkpoint behind the history, writes snapshots, and has the log cut
//! behind them. None of it is on the way of a commit.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{Input, Queue, writer};
use crate::{
    Error,
    checkpoint::Checkpoint,
    disk::Disk,
    image,
    mvcc::{Change, Image, Undo},
    store::HISTORY_BYTES,
};

/// Jobs that may wait before the history is no longer trimmed: it grows instead, up to the double of its limits.
const WAITING: usize = 4;
/// What may wait of what the history has forgotten, behind a disk that takes nothing: as much again as the history holds.
/// Beyond it the checkpoint stays where it is until it is written anew.
const WAITING_BYTES: usize = HISTORY_BYTES;

pub enum Job {
    /// The history has forgotten these, which take this much.
    Advance {
        changes: Vec<Change>,
        bytes: usize,
    },
    /// From here on the checkpoint is not told what the history forgets.
    Skip,
    /// The checkpoint has nothing to do with the state any more.
    Replace(Image),
    /// Write the base as a snapshot and cut the log behind it.
    Snapshot(Undo),
    Stop,
}

/// The driver's end.
pub struct Handle {
    jobs: Arc<Queue<Job>>,
    waiting: Arc<Waiting>,
    /// Until a job that has the whole state, there is nothing to tell the checkpoint.
    skips: bool,
}

#[derive(Default)]
struct Waiting {
    jobs: AtomicUsize,
    bytes: AtomicUsize,
}

impl Handle {
    pub fn push(&mut self, job: Job) {
        match &job {
            Job::Advance { .. } if self.skips => return,
            Job::Advance { bytes, .. } => {
                if self.waiting.bytes.load(Ordering::Relaxed) + bytes > WAITING_BYTES {
                    return self.push(Job::Skip);
                }
                self.waiting.bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            Job::Skip => self.skips = true,
            Job::Replace(_) | Job::Snapshot(_) => self.skips = false,
            Job::Stop => {}
        }
        self.waiting.jobs.fetch_add(1, Ordering::Relaxed);
        self.jobs.push(job);
    }

    pub fn has_room(&self) -> bool {
        self.waiting.jobs.load(Ordering::Relaxed) < WAITING
    }
}

pub struct Keeper {
    /// None where there is to be no checkpoint.
    path: Option<PathBuf>,
    /// None until an image is there to fill it.
    checkpoint: Option<Checkpoint>,
    /// The checkpoint has missed something: it is what it says it is, and can only be written anew.
    skipped: bool,
    disk: Arc<dyn Disk>,
    snapshots: PathBuf,
    pub jobs: Arc<Queue<Job>>,
    waiting: Arc<Waiting>,
    log: Arc<Queue<writer::Job>>,
    inbox: Arc<Queue<Input>>,
}

impl Keeper {
    pub fn new(
        path: Option<PathBuf>,
        checkpoint: Option<Checkpoint>,
        disk: Arc<dyn Disk>,
        snapshots: PathBuf,
        (log, inbox): (Arc<Queue<writer::Job>>, Arc<Queue<Input>>),
    ) -> (Keeper, Handle) {
        let (jobs, waiting): (Arc<Queue<Job>>, Arc<Waiting>) = Default::default();
        let handle = Handle { jobs: jobs.clone(), waiting: waiting.clone(), skips: false };
        (Keeper { path, checkpoint, skipped: false, disk, snapshots, jobs, waiting, log, inbox }, handle)
    }

    pub fn run(mut self) {
        const FOR_EVER: Duration = Duration::from_secs(3600);
        loop {
            let jobs = self.jobs.take(FOR_EVER);
            if self.turn(jobs).is_break() {
                return;
            }
        }
    }

    pub fn turn(&mut self, jobs: Vec<Job>) -> ControlFlow<()> {
        for job in jobs {
            let stop = matches!(job, Job::Stop);
            let bytes = if let Job::Advance { bytes, .. } = job { bytes } else { 0 };
            if let Err(error) = self.work(job) {
                self.inbox.push(Input::Failed(error));
                return ControlFlow::Break(());
            }
            self.waiting.jobs.fetch_sub(1, Ordering::Relaxed);
            self.waiting.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if stop {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn work(&mut self, job: Job) -> Result<(), Error> {
        match job {
            Job::Advance { changes, .. } => {
                self.checkpoint.iter_mut().for_each(|checkpoint| checkpoint.apply(&changes));
            }
            Job::Skip => self.skipped = true,
            Job::Replace(image) => self.replace(&image),
            Job::Snapshot(undo) => {
                let image = undo.undo();
                if self.checkpoint.is_none() || self.skipped {
                    self.replace(&image);
                }
                self.keep(|checkpoint| checkpoint.catch_up(&image).map_err(|error| error.to_string()));
                // Before the log is cut, so that the checkpoint never lies before the log's beginning for long.
                self.keep(|checkpoint| checkpoint.flush());
                let bytes = image::save(&*self.disk, &self.snapshots, &image)?;
                let index = image.base.position.index;
                self.log.push(writer::Job::Purge { index, snapshot_bytes: bytes });
            }
            Job::Stop => self.keep(Checkpoint::finish),
        }
        Ok(())
    }

    fn replace(&mut self, image: &Image) {
        self.skipped = false;
        let Some(path) = &self.path else { return };
        if self.checkpoint.is_none() {
            match Checkpoint::open(path) {
                Ok((checkpoint, _)) => self.checkpoint = Some(checkpoint),
                Err(reason) => tracing::warn!(path = %path.display(), %reason, "no checkpoint is kept for now"),
            }
        }
        self.keep(|checkpoint| checkpoint.replace(image).map_err(|error| error.to_string()));
    }

    /// A checkpoint that fails is given up until the next snapshot makes a new one: nothing depends on it.
    fn keep(&mut self, work: impl FnOnce(&mut Checkpoint) -> Result<(), String>) {
        if let Some(checkpoint) = &mut self.checkpoint
            && let Err(reason) = work(checkpoint)
        {
            tracing::warn!(%reason, "the checkpoint failed and is given up");
            // Not dropped: sled would flush, and after a failed write its flush waits for ever.
            std::mem::forget(self.checkpoint.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Op, Txn,
        command::Command,
        disk::memory::MemoryDisk,
        mvcc::{Limits, Position, State},
    };

    /// The next state, and what its history forgets.
    fn put(state: &mut State, value: usize) -> Vec<Change> {
        let index = state.position().index + 1;
        let then = vec![Op::Put { key: "k".into(), value: value.to_string().into(), lease: None }];
        let command = Command::Txn(Txn { then, ..Txn::default() });
        state.apply(Position { index, term: 1 }, 0, &command).answer.expect("a put");
        state.trim(&Limits::NONE, 0)
    }

    #[test]
    fn a_disk_that_takes_nothing_does_not_fill_the_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("checkpoint");
        let queues = (Arc::default(), Arc::default());
        let (mut keeper, mut handle) =
            Keeper::new(Some(path.clone()), None, Arc::new(MemoryDisk::default()), "/snapshot".into(), queues);
        let mut state = State::new(Image::default());
        handle.push(Job::Replace(state.image()));
        assert!(keeper.turn(keeper.jobs.clone().take(Duration::ZERO)).is_continue());

        // A quarter of what may wait, each: the fifth is one too many, and nothing comes behind it.
        for value in 0..10 {
            let changes = put(&mut state, value);
            handle.push(Job::Advance { changes, bytes: WAITING_BYTES / 4 });
        }
        assert!(!handle.has_room());
        let waiting = keeper.jobs.take(Duration::ZERO);
        assert!(matches!(waiting[..], [.., Job::Advance { .. }, Job::Skip]) && waiting.len() == 5, "{}", waiting.len());
        assert!(keeper.turn(waiting).is_continue() && handle.has_room());

        // The next snapshot has it all, and the checkpoint follows again.
        handle.push(Job::Snapshot(state.base_image()));
        let changes = put(&mut state, 10);
        handle.push(Job::Advance { changes, bytes: 1 });
        handle.push(Job::Stop);
        assert!(keeper.turn(keeper.jobs.clone().take(Duration::ZERO)).is_break());
        drop(keeper);
        let (_, kept) = Checkpoint::open(&path).expect("it opens");
        let (kept, image) = (kept.expect("it is whole"), state.image());
        assert_eq!((kept.base, kept.map), (image.base, image.map));
    }
}
