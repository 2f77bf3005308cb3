//! Those who write and read all the time, and keep a record of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Client;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    dice::Dice,
    history::{Moment, Name, Operation, Outcome, Request, Revision, Value},
    kube::perform,
};

/// Few enough that clients meet at one object.
const NAMES: u64 = 24;
/// Names from here on belong to one prober each.
pub const PROBES: Name = 1_000;
/// Between two requests of one client. With the probes, two processors carry this beside what others do on them.
const PACE: Duration = Duration::from_millis(60);
const PATIENCE: Duration = Duration::from_secs(5);
/// How often of a hundred a client goes to another server without a reason, so that none is left out once it was away.
const MOVES: u64 = 1;

const PROBE_EVERY: Duration = Duration::from_millis(20);
const PROBE_PATIENCE: Duration = Duration::from_millis(300);
/// A prober that had to go to another server looks whether its own is back.
const HOME_AGAIN: Duration = Duration::from_millis(500);

/// What all clients of a run share.
pub struct Shared {
    pub servers: Vec<String>,
    pub seed: u64,
    began: Instant,
    values: AtomicU64,
    /// Lists that watchers have begun with.
    pub watching: AtomicU64,
    pub stop: AtomicBool,
}

impl Shared {
    pub fn new(servers: Vec<String>, seed: u64) -> Arc<Shared> {
        let (began, values) = (Instant::now(), AtomicU64::new(1));
        let (watching, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Shared { servers, seed, began, values, watching, stop })
    }

    pub fn now(&self) -> Moment {
        Moment::try_from(self.began.elapsed().as_micros()).expect("a run shorter than an age")
    }

    /// One that nobody else writes.
    pub fn value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub async fn perform(&self, client: &Client, server: usize, request: Request, patience: Duration) -> Operation {
        let begun = self.now();
        let outcome = perform(client, &self.servers[server], &request, patience).await;
        Operation { begun, ended: self.now(), server, request, outcome }
    }
}

/// Works until it is stopped.
pub async fn work(shared: Arc<Shared>, client: Client, number: usize) -> Vec<Operation> {
    let mut dice = Dice::new(shared.seed, number as u64);
    let mut known: BTreeMap<Name, Revision> = BTreeMap::new();
    let (mut server, mut done) = (number % shared.servers.len(), Vec::new());
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stopped() {
        pace.tick().await;
        let request = choose(&mut dice, &known, &shared);
        let operation = shared.perform(&client, server, request, PATIENCE).await;
        learn(&mut known, &operation);
        if operation.outcome == Outcome::Unknown || dice.percent(MOVES) {
            server = (server + 1) % shared.servers.len();
        }
        done.push(operation);
    }
    done
}

fn choose(dice: &mut Dice, known: &BTreeMap<Name, Revision>, shared: &Shared) -> Request {
    let name = dice.below(NAMES) as Name;
    let at = known.get(&name).copied();
    match dice.below(100) {
        0..20 => Request::Create { name, value: shared.value() },
        20..40 => Request::Update { name, value: shared.value(), at },
        40..50 => Request::Update { name, value: shared.value(), at: None },
        50..60 => Request::Patch { name, value: shared.value() },
        60..68 => Request::Delete { name, at: None },
        68..75 => Request::Delete { name, at },
        75..93 => Request::Get { name },
        93..98 => Request::List,
        _ => Request::Pages,
    }
}

/// The newest revisions this client has heard of; others are quicker now and then.
fn learn(known: &mut BTreeMap<Name, Revision>, operation: &Operation) {
    match (&operation.request, &operation.outcome) {
        (
            Request::Create { name, .. }
            | Request::Update { name, .. }
            | Request::Patch { name, .. }
            | Request::Get { name },
            Outcome::Wrote(item) | Outcome::Got(Some(item)),
        ) => drop(known.insert(*name, item.revision)),
        (_, Outcome::Listed(_, items)) => {
            *known = items.iter().map(|(name, item)| (*name, item.revision)).collect();
        }
        (Request::Update { name, .. } | Request::Delete { name, .. }, _) => drop(known.remove(name)),
        _ => {}
    }
}

/// Writes to an object of its own at short intervals, through its own server as long as that answers quickly.
pub async fn probe(shared: Arc<Shared>, client: Client, home: usize) -> Vec<Operation> {
    let name = PROBES + home as Name;
    let (mut server, mut left, mut there, mut done) = (home, None, false, Vec::new());
    let mut pace = interval(PROBE_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stopped() {
        pace.tick().await;
        if left.is_some_and(|left: Instant| left.elapsed() > HOME_AGAIN) {
            (server, left) = (home, None);
        }
        let value = shared.value();
        let request = match there {
            true => Request::Update { name, value, at: None },
            false => Request::Create { name, value },
        };
        let operation = shared.perform(&client, server, request, PROBE_PATIENCE).await;
        match operation.outcome {
            Outcome::Unknown => {
                server = (server + 1) % shared.servers.len();
                left.get_or_insert_with(Instant::now);
            }
            Outcome::Wrote(_) | Outcome::AlreadyExists => there = true,
            _ => {}
        }
        done.push(operation);
    }
    done
}
