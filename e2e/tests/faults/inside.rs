//! Clients live on a host of their own: their threads enter its network namespace.

use std::{fs::File, future::Future};

use anyhow::{Context, Result};
use e2e::host::Host;
use nix::sched::{CloneFlags, setns};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};

/// The machine's two processors are the servers' too.
const THREADS: usize = 2;

pub struct Inside(Runtime);

impl Inside {
    pub fn new(host: &Host) -> Result<Inside> {
        let path = format!("/var/run/netns/{}", host.netns);
        let netns = File::open(&path).with_context(|| format!("open {path}"))?;
        let enter = move || setns(&netns, CloneFlags::CLONE_NEWNET).expect("enter the clients' network namespace");
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).on_thread_start(enter).enable_all().build()?;
        Ok(Inside(runtime))
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.spawn(work)
    }

    /// Waits for work that is done inside; the calling thread stays where it is.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        self.end(self.spawn(work))
    }

    /// Waits for the end of a task, which must not have panicked.
    pub fn end<T>(&self, task: JoinHandle<T>) -> Result<T> {
        Ok(self.0.block_on(task)?)
    }
}
