//! Which node a pod runs on.
//!
//! - [`resources`]: what pods ask for and nodes offer
//! - [`pod`], [`snapshot`]: the scheduler's view of pods, and of nodes with the pods on them
//! - [`filter`], [`score`]: the rows of two tables: where a pod cannot run, and where it had better
//! - [`cycle`]: the decision for one pod
//! - [`queue`]: which pod is next, and what a pod without a place waits for
//! - [`shell`]: watches, binds, and says why a pod waits
//!
//! Invariant: a decision depends on the snapshot and the pod alone. All but [`shell`] is free of clocks and I/O.
//! Invariant: an unschedulable pod is looked at again when something changed that may help it, never on a timer.

pub mod resources;

pub mod pod;
pub mod snapshot;

pub mod filter;
pub mod score;

pub mod cycle;
pub mod queue;

mod report;
pub mod shell;

pub use shell::run;
