//! A group of members, their disks, their network and their clients in one thread, under a clock that is a number. One
//! seed decides everything that happens, so a run that fails can be run again.
//!
//! `world` lets time pass, `faults` breaks things, `clients` use the store and note what they saw, `check` says what of
//! it cannot be.
//!
//! What runs is the real driver, log and keeper; only threads, clocks, disks and wires are simulated. The checkpoint is
//! not: sled has its own files and threads, and is a cache that may be lost.

mod check;
mod clients;
mod faults;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use self::{
    faults::Sabotage,
    world::{Plan, World},
};

/// Runs one seed; says what was wrong.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<world::Summary, String> {
    let ran = catch_unwind(AssertUnwindSafe(|| World::new(Plan::of(seed, sabotage)).run()));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        Err(format!("panic: {}", text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// As many seeds as fit into `SIM_SECONDS` (10), or `SIM_SEEDS` of them, from `SIM_SEED` on; other ones each time where
/// that is not given. `SIM_SEED=N SIM_SEEDS=1` runs one again.
#[test]
fn seeds_run_clean() {
    #[expect(clippy::disallowed_methods, reason = "where to begin is the one thing that is left to chance")]
    let (begun, now) = (Instant::now(), SystemTime::now());
    let first = number("SIM_SEED").unwrap_or_else(|| {
        now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).wrapping_mul(1_000_003) % 1_000_000_000
    });
    let most = number("SIM_SEEDS").unwrap_or(u64::MAX);
    let longest =
        number("SIM_SEEDS").map_or(Duration::from_secs(number("SIM_SECONDS").unwrap_or(10)), |_| Duration::MAX);
    let workers = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    // Worker by worker every so-manieth seed, so that together they take them in order.
    let work = |worker: u64| {
        let (mut ran, mut total) = (0, world::Summary::default());
        for at in (worker..most).step_by(workers as usize) {
            if begun.elapsed() >= longest {
                break;
            }
            let seed = first + at;
            match run(seed, None) {
                Ok(summary) => total.add(&summary),
                Err(what) => panic!(
                    "seed {seed}: {what}\nto run it again: SIM_SEED={seed} SIM_SEEDS=1 cargo test -p store --lib sim::seeds_run_clean -- --nocapture"
                ),
            }
            ran += 1;
        }
        (ran, total)
    };
    let (mut ran, mut total) = (0, world::Summary::default());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        for thread in threads {
            let (some, summary) = thread.join().expect("the worker says above which seed it was");
            ran += some;
            total.add(&summary);
        }
    });
    println!("{ran} seeds from {first} on, clean: {total:?}");
    assert!(total.acknowledged > 0, "nothing happened");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..4 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

/// Each fault that is planted on purpose is found, by one seed of few.
#[test]
fn planted_faults_are_found() {
    const SEEDS: u64 = 200;
    for sabotage in Sabotage::ALL {
        let found = (1..=SEEDS).find_map(|seed| run(seed, Some(sabotage)).err().map(|what| (seed, what)));
        let (seed, what) = found.unwrap_or_else(|| panic!("{sabotage:?} was not found by {SEEDS} seeds"));
        println!("{sabotage:?}: seed {seed}: {}", what.lines().next().unwrap_or_default());
    }
}
