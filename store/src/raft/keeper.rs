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
};

/// Jobs that may wait before the history is no longer trimmed: it grows instead, up to the double of its limits.
const WAITING: usize = 4;

pub enum Job {
    /// The history has forgotten these.
    Advance(Vec<Change>),
    /// The checkpoint has nothing to do with the state any more.
    Replace(Image),
    /// Write the base as a snapshot and cut the log behind it.
    Snapshot(Undo),
    Stop,
}

/// The driver's end.
pub struct Handle {
    jobs: Arc<Queue<Job>>,
    waiting: Arc<AtomicUsize>,
}

impl Handle {
    pub fn push(&self, job: Job) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.jobs.push(job);
    }

    pub fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < WAITING
    }
}

pub struct Keeper {
    /// None where there is to be no checkpoint.
    path: Option<PathBuf>,
    /// None until an image is there to fill it.
    checkpoint: Option<Checkpoint>,
    disk: Arc<dyn Disk>,
    snapshots: PathBuf,
    pub jobs: Arc<Queue<Job>>,
    waiting: Arc<AtomicUsize>,
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
        let (jobs, waiting) = (Arc::new(Queue::default()), Arc::new(AtomicUsize::new(0)));
        let handle = Handle { jobs: jobs.clone(), waiting: waiting.clone() };
        (Keeper { path, checkpoint, disk, snapshots, jobs, waiting, log, inbox }, handle)
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
            if let Err(error) = self.work(job) {
                self.inbox.push(Input::Failed(error));
                return ControlFlow::Break(());
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if stop {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn work(&mut self, job: Job) -> Result<(), Error> {
        match job {
            Job::Advance(changes) => self.checkpoint.iter_mut().for_each(|checkpoint| checkpoint.apply(&changes)),
            Job::Replace(image) => self.replace(&image),
            Job::Snapshot(undo) => {
                let image = undo.undo();
                if self.checkpoint.is_none() {
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
