//! The checkpoint's thread: moves the checkpoint behind the history, writes snapshots, and has the log cut
//! behind them. None of it is on the way of a commit.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc, time::Duration};

use super::{Input, Queue, writer};
use crate::{
    Error,
    checkpoint::{Checkpoint, Gained},
    disk::Disk,
    image,
    mvcc::{Base, Change, Image, Undo},
};

pub enum Job {
    /// The state was not made of the checkpoint.
    Replace(Image),
    /// Write the base as a snapshot and cut the log behind it.
    Snapshot {
        base: Undo,
        /// Since the last job.
        gained: Gained,
        /// When the newest change was made.
        at: u64,
    },
    /// The state has become another one, which a snapshot has or will have.
    Forget,
    /// With what the next start may have of the checkpoint, after an orderly end.
    Stop(Option<(Base, Gained)>),
}

/// The driver's end.
pub struct Handle {
    jobs: Arc<Queue<Job>>,
    gained: Gained,
}

impl Handle {
    /// Notes what the history has forgotten.
    pub fn note(&mut self, forgotten: &[Change]) {
        self.gained.note(forgotten);
    }

    pub fn replace(&self, image: Image) {
        self.jobs.push(Job::Replace(image));
    }

    pub fn forget(&self) {
        self.jobs.push(Job::Forget);
    }

    pub fn snapshot(&mut self, base: Undo, at: u64) {
        let gained = std::mem::take(&mut self.gained);
        self.jobs.push(Job::Snapshot { base, gained, at });
    }

    pub fn stop(&mut self, base: Base) {
        let gained = std::mem::take(&mut self.gained);
        self.jobs.push(Job::Stop(Some((base, gained))));
    }

    /// Where nobody knows how far what was noted goes.
    pub fn abandon(&self) {
        self.jobs.push(Job::Stop(None));
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
        let jobs: Arc<Queue<Job>> = Arc::default();
        let handle = Handle { jobs: jobs.clone(), gained: Gained::default() };
        (Keeper { path, checkpoint, disk, snapshots, jobs, log, inbox }, handle)
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
            let stop = matches!(job, Job::Stop(_));
            if let Err(error) = self.work(job) {
                self.give_up();
                self.inbox.push(Input::Failed(error));
                return ControlFlow::Break(());
            }
            if stop {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn work(&mut self, job: Job) -> Result<(), Error> {
        match job {
            Job::Replace(image) => self.replace(&image),
            Job::Snapshot { base, gained, at } => {
                let image = base.undo();
                if self.checkpoint.is_none() {
                    self.replace(&image);
                } else {
                    self.keep(|checkpoint| checkpoint.follow(&image, gained, at).map_err(|error| error.to_string()));
                }
                // Before the log is cut, so that the checkpoint never lies before the log's beginning for long.
                self.keep(|checkpoint| checkpoint.flush());
                let bytes = image::save(&*self.disk, &self.snapshots, &image)?;
                let index = image.base.position.index;
                self.log.push(writer::Job::Purge { index, snapshot_bytes: bytes });
            }
            Job::Forget => self.keep(|checkpoint| checkpoint.forget().map_err(|error| error.to_string())),
            Job::Stop(Some((base, gained))) => self.keep(|checkpoint| checkpoint.finish(&base, gained)),
            // Whatever has ended the store may be the disk, which sled must not meet once more.
            Job::Stop(None) => self.give_up(),
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
            self.give_up();
        }
    }

    /// Not dropped: sled would flush, which waits for ever after a failed write, and sync, at whose failure it panics.
    fn give_up(&mut self) {
        std::mem::forget(self.checkpoint.take());
    }
}
