//! Servers on hosts of their own, with clients at work all the time, while what can break breaks.
//!
//! - [`run`]: one run, from the first server to the verdict
//! - [`members`]: servers come, go and come back, one thing at a time
//! - [`schedule`]: which fault comes next, by a seed
//! - [`servers`]: the processes; [`disk`]: what they write on; [`cut`]: what the network does to them
//! - [`clients`], [`watchers`]: those who write, read and watch, on a host of their own ([`inside`]), by [`kube`]
//! - [`history`]: what they were told; [`check`]: what that must be like
//! - [`report`]: how long nobody could write
//!
//! `FAULT_SECONDS=1800 FAULT_SEED=7 cargo test -p e2e --test faults -- one_cluster_under_faults --nocapture` is a long run.
//! With `FAULT_SERVERS=1` there is one server, and those faults that one comes back from with all that it has.

mod run;

mod members;

mod schedule;

mod cut;
mod disk;
mod servers;

mod clients;
mod dice;
mod inside;
mod kube;
mod watchers;

mod check;
mod history;
mod report;

use anyhow::{Result, ensure};

/// Every acknowledged write is kept, every read is of its time, and every watcher is told everything once.
#[test]
fn one_cluster_under_faults() -> Result<()> {
    let config = run::config()?;
    eprintln!("FAULT_SEED={} FAULT_SECONDS={} FAULT_SERVERS={}", config.seed, config.lasts.as_secs(), config.servers);
    let report = run::run(&config)?;
    eprintln!("{report}");
    ensure!(report.violations.is_empty(), "{} violations", report.violations.len());
    let slow = report.slow();
    ensure!(slow.is_empty(), "{}", slow.join("; "));
    Ok(())
}
