//! One run: clients at work, one fault after the other, and at the end the question whether it was one cluster all the time.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::wait::{seconds, wait};
use tokio::task::JoinHandle;

use super::{
    check::check,
    clients::{self, PROBES, Shared},
    cut::{self, Cut},
    disk::Failing,
    history::{History, Items, Moment, Name, Operation, Outcome, Request, Revision, Told},
    kube::{self, Protocol},
    report::{Death, Report, acks},
    schedule::{Beside, Fault, Kind, Role, Schedule},
    servers::Servers,
    watchers::{self, Goal, Place, got_to},
};

const WORKERS: usize = 8;
/// Between two faults: long enough to see how it is when nothing is wrong.
const CALM: Duration = Duration::from_secs(1);
/// Between two looks at whether all are there that should be.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a server that cannot write may go on before it ends.
const DYING: Duration = Duration::from_secs(30);
/// A server that met a full disk ends within this time, even if there is room again.
const SECOND_THOUGHTS: Duration = Duration::from_secs(2);
/// How long a write may take to go through once everything is mended, and watchers to catch up.
const MENDED: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(5);
/// Objects that this thread writes itself, one a server.
const MARKERS: Name = PROBES - 100;

pub struct Config {
    pub seed: u64,
    pub lasts: Duration,
    pub servers: usize,
}

struct Run {
    servers: Servers,
    shared: Arc<Shared>,
    schedule: Schedule,
    goal: Arc<Goal>,
    writers: Vec<JoinHandle<Vec<Operation>>>,
    watchers: Vec<JoinHandle<History>>,
    history: History,
    report: Report,
}

/// An error is a run that did not come about; what it found is in the report.
pub fn run(config: &Config) -> Result<Report> {
    let began = Instant::now();
    let mut run = Run::start(config)?;
    let turns = Instant::now();
    let broken = loop {
        if turns.elapsed() >= config.lasts {
            break None;
        }
        if let Err(error) = run.turn() {
            break Some(error);
        }
    };
    if let Some(error) = broken {
        run.violation(format!("{error:#}"));
        run.servers.dump();
    }
    run.finish();
    run.report.took = began.elapsed();
    if !run.report.violations.is_empty() {
        eprintln!("logs and history are kept in {}", run.keep()?.display());
    }
    Ok(run.report)
}

impl Run {
    fn start(config: &Config) -> Result<Run> {
        let servers = Servers::start("faults", config.servers)?;
        let addresses = servers.addresses();
        let (client, first) = (servers.client.clone(), addresses[0].clone());
        servers.inside.run(async move { kube::make_namespace(&client, &first).await })??;
        let mut run = Run {
            shared: Shared::new(addresses, config.seed),
            schedule: Schedule::new(config.seed, config.servers),
            goal: Arc::default(),
            writers: Vec::new(),
            watchers: Vec::new(),
            history: History::default(),
            report: Report { seed: config.seed, ..Report::default() },
            servers,
        };
        // Before anybody writes: the order of changes is what the watchers are told.
        let places = (0..config.servers).map(Place::At).chain([Place::Roams(0)]);
        for place in places {
            let client = run.servers.access.client(Protocol::Http2)?;
            let work = watchers::follow(run.shared.clone(), client, place, run.goal.clone());
            run.watchers.push(run.servers.inside.spawn(work));
        }
        wait("watchers that know where they begin", MENDED, || {
            Ok((run.shared.watching.load(Ordering::Relaxed) >= run.watchers.len() as u64).then_some(()))
        })?;
        for number in 0..WORKERS {
            let client = run.servers.access.client([Protocol::Http1, Protocol::Http2][number % 2])?;
            run.writers.push(run.servers.inside.spawn(clients::work(run.shared.clone(), client, number)));
        }
        for home in 0..config.servers {
            let client = run.servers.access.client(Protocol::Http1)?;
            run.writers.push(run.servers.inside.spawn(clients::probe(run.shared.clone(), client, home)));
        }
        run.settle()?;
        Ok(run)
    }

    fn violation(&mut self, what: String) {
        eprintln!("{:8.3} VIOLATION: {what}", self.shared.now() as f64 / 1e6);
        self.report.violations.push(what);
    }

    fn say(&self, what: &str) {
        eprintln!("{:8.3} {what}", self.shared.now() as f64 / 1e6);
    }

    /// One fault, from its beginning until nothing of it is left.
    fn turn(&mut self) -> Result<()> {
        let fault = self.schedule.next();
        let leader = self.servers.leader()?;
        let followers = self.servers.others(leader);
        let victim = match fault.role {
            Role::Leader => leader,
            Role::Follower => *self.schedule.pick(&followers),
        };
        let others = self.servers.others(victim);
        self.say(&format!("{:?} of {:?} s{victim} for {:?}", fault.kind, fault.role, fault.lasts));
        *self.report.faults.entry((fault.kind, fault.role)).or_default() += 1;
        let bad_link = match fault.beside {
            None => None,
            Some(beside) => {
                let at = *self.schedule.pick(&others);
                self.say(&format!("    beside it, of s{at}: {beside:?}"));
                let addresses = self.addresses(&self.servers.others(at));
                let cut = match beside {
                    Beside::Loss(percent) => Cut::Loss(percent),
                    Beside::Mute => Cut::Mute(addresses),
                    Beside::Deaf => Cut::Deaf(addresses),
                };
                cut.apply(&self.servers.all[at].host)?;
                Some(at)
            }
        };
        let done = self.carry_out(&fault, victim);
        if let Some(at) = bad_link {
            cut::mend(&self.servers.all[at].host)?;
        }
        let what = || format!("{:?} of {:?} s{victim} at {}", fault.kind, fault.role, self.shared.now());
        let what = what();
        done.with_context(|| what.clone())?;
        self.settle().with_context(|| format!("after {what}"))
    }

    /// Lets things be as they are for a while, in which no server may end by itself.
    fn hold(&mut self, lasts: Duration) -> Result<()> {
        let end = Instant::now() + lasts;
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            for server in &mut self.servers.all {
                if let Some(status) = server.ended()? {
                    bail!("{} ended by itself with {status}: {}", server.name, server.last_words());
                }
            }
            thread::park_timeout(rest.min(LOOK_EVERY));
        }
        Ok(())
    }

    fn addresses(&self, of: &[usize]) -> Vec<String> {
        of.iter().map(|at| self.servers.all[*at].host.address.clone()).collect()
    }

    fn carry_out(&mut self, fault: &Fault, victim: usize) -> Result<()> {
        let others = self.servers.others(victim);
        let addresses = self.addresses(&others);
        let at = self.shared.now();
        match fault.kind {
            Kind::Kill => {
                self.servers.all[victim].kill()?;
                self.hold(fault.lasts)?;
                self.back(fault, victim, at)
            }
            Kind::Stop => {
                let asked = Instant::now();
                self.servers.all[victim].ask_to_stop()?;
                self.servers.all[victim].stopped()?;
                self.hold(fault.lasts.saturating_sub(asked.elapsed()))?;
                self.back(fault, victim, at)
            }
            Kind::KillAll => {
                self.servers.all.iter_mut().try_for_each(|server| server.kill())?;
                self.hold(fault.lasts)?;
                (0..self.servers.all.len()).try_for_each(|at| self.servers.spawn(at))
            }
            Kind::Pause => {
                self.servers.all[victim].pause()?;
                let held = self.hold(fault.lasts);
                self.servers.all[victim].resume()?;
                held
            }
            Kind::Unplug => self.cut(fault, victim, &Cut::Unplugged),
            Kind::CutOff => self.cut(fault, victim, &Cut::From(addresses)),
            Kind::CutPair => {
                let other = *self.schedule.pick(&others);
                let address = self.addresses(&[other]);
                self.cut(fault, victim, &Cut::From(address))
            }
            Kind::Mute => self.cut(fault, victim, &Cut::Mute(addresses)),
            Kind::Deaf => self.cut(fault, victim, &Cut::Deaf(addresses)),
            Kind::Loss => self.cut(fault, victim, &Cut::Loss(fault.percent)),
            Kind::DiskFull => self.fill_disk(fault, victim),
            Kind::DiskFails => self.break_disk(victim),
            Kind::Replace => {
                self.servers.all[victim].kill()?;
                self.servers.all[victim].disk.replace()?;
                self.hold(fault.lasts)?;
                self.servers.spawn(victim)
            }
        }
    }

    /// A dead server is started again, and its death counted if it was nothing but that.
    fn back(&mut self, fault: &Fault, victim: usize, at: Moment) -> Result<()> {
        let until = self.shared.now();
        if fault.beside.is_none() && self.servers.all.len() > 1 {
            let Fault { kind, role, .. } = *fault;
            self.report.deaths.push(Death { kind, role, server: victim, at, until });
        }
        self.servers.spawn(victim)
    }

    fn cut(&mut self, fault: &Fault, victim: usize, cut: &Cut) -> Result<()> {
        cut.apply(&self.servers.all[victim].host)?;
        let held = self.hold(fault.lasts);
        cut::mend(&self.servers.all[victim].host)?;
        held
    }

    fn fill_disk(&mut self, fault: &Fault, victim: usize) -> Result<()> {
        self.servers.all[victim].disk.fill()?;
        let full = Instant::now();
        let mut ended = None;
        while ended.is_none() && full.elapsed() < fault.lasts {
            // What is laid out already has room for what the clients write in this time.
            let (client, address) = (self.servers.client.clone(), self.shared.servers[victim].clone());
            let value = self.shared.value();
            let _ = self.servers.inside.run(async move { kube::write_bulk(&client, &address, value).await })?;
            ended = self.servers.all[victim].ended()?;
        }
        let server = &mut self.servers.all[victim];
        server.disk.make_room()?;
        if ended.is_none() {
            // It need not end.
            ended = wait("end after a full disk", SECOND_THOUGHTS, || server.ended()).ok();
        }
        if ended.is_none() && server.stops()? {
            ended = Some(wait("end of a server that has given up its disk", DYING, || server.ended())?);
        }
        let Some(status) = ended else {
            self.say("    it goes on");
            return Ok(());
        };
        server.ended_of_its_disk(status)?;
        let words = format!("    it ended {:.1} s later: {}", full.elapsed().as_secs_f64(), server.last_words());
        self.say(&words);
        self.servers.spawn(victim)
    }

    fn break_disk(&mut self, victim: usize) -> Result<()> {
        let server = &mut self.servers.all[victim];
        let how = *self.schedule.pick(&[Failing::Blocks, Failing::Whole]);
        eprintln!("    {how:?}");
        server.disk.fail(how)?;
        let broke = Instant::now();
        let status = wait("end of a server whose disk fails", DYING, || server.ended())?;
        server.ended_of_its_disk(status)?;
        let words = format!("    it ended {:.1} s later: {}", broke.elapsed().as_secs_f64(), server.last_words());
        server.disk.replace()?;
        self.say(&words);
        self.servers.spawn(victim)
    }

    /// Everything is mended: all servers are members and ready, nobody has panicked, and a write goes through each.
    fn settle(&mut self) -> Result<()> {
        self.servers.wait_members(self.servers.all.len())?;
        self.servers.all.iter_mut().try_for_each(|server| server.check_log())?;
        for server in 0..self.servers.all.len() {
            self.mark(server)?;
        }
        let from = self.shared.now();
        self.hold(CALM)?;
        self.report.calm.push((from, self.shared.now()));
        Ok(())
    }

    fn perform(&mut self, server: usize, request: Request) -> Result<Outcome> {
        let (shared, client) = (self.shared.clone(), self.servers.client.clone());
        let work = async move { shared.perform(&client, server, request, PATIENCE).await };
        let operation = self.servers.inside.run(work)?;
        let outcome = operation.outcome.clone();
        self.history.operations.push(operation);
        Ok(outcome)
    }

    /// Writes through a server, until that is acknowledged.
    fn mark(&mut self, server: usize) -> Result<Revision> {
        let name = MARKERS + server as Name;
        wait(&format!("write through s{server}"), MENDED, || {
            let value = self.shared.value();
            let mut outcome = self.perform(server, Request::Update { name, value, at: None })?;
            if outcome == Outcome::NotFound {
                let value = self.shared.value();
                outcome = self.perform(server, Request::Create { name, value })?;
            }
            match outcome {
                Outcome::Wrote(item) => Ok(Some(item.revision)),
                other => bail!("{other:?}"),
            }
        })
    }

    /// The clients end, the watchers catch up, and the whole is looked at.
    fn finish(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in std::mem::take(&mut self.writers) {
            match self.servers.inside.end(writer) {
                Ok(operations) => self.history.operations.extend(operations),
                Err(error) => self.violation(format!("a client broke off: {error}")),
            }
        }
        if let Err(error) = self.last_look() {
            self.violation(format!("{error:#}"));
        }
        self.goal.give_up.store(true, Ordering::Relaxed);
        for watcher in std::mem::take(&mut self.watchers) {
            match self.servers.inside.end(watcher) {
                Ok(history) => {
                    self.history.operations.extend(history.operations);
                    self.history.watches.extend(history.watches);
                }
                Err(error) => self.violation(format!("a watcher broke off: {error}")),
            }
        }
        for late in self.late_watchers() {
            self.violation(late);
        }
        for found in check(&self.history) {
            self.violation(found);
        }
        let report = &mut self.report;
        for operation in &self.history.operations {
            *report.operations.entry((operation.request.verb(), operation.outcome.name())).or_default() += 1;
        }
        report.acks = acks(&self.history.operations);
        let told = self.history.watches.iter().flat_map(|log| &log.told);
        report.told = told.filter(|(_, told)| matches!(told, Told::Change(_))).count();
    }

    /// The last log of each watcher must have got to the goal; those of before a new beginning need not.
    fn late_watchers(&self) -> Vec<String> {
        let goal = self.goal.revision.load(Ordering::Relaxed);
        let last: BTreeMap<&str, Revision> =
            self.history.watches.iter().map(|log| (log.server.as_str(), got_to(log))).collect();
        let late = last.into_iter().filter(|(_, got_to)| *got_to < goal);
        late.map(|(name, got_to)| format!("watcher {name} got to {got_to} and not to {goal}")).collect()
    }

    /// A last write through each server, which every watcher must see; then each lists the same.
    fn last_look(&mut self) -> Result<()> {
        let mut newest = 0;
        for server in 0..self.servers.all.len() {
            newest = newest.max(self.mark(server)?);
        }
        self.goal.revision.store(newest, Ordering::Relaxed);
        let mut lists: Vec<Items> = Vec::new();
        for server in 0..self.servers.all.len() {
            match self.perform(server, Request::List)? {
                Outcome::Listed(_, items) => lists.push(items),
                other => bail!("the last list by s{server} came to {other:?}"),
            }
        }
        for (server, list) in lists.iter().enumerate() {
            ensure!(*list == lists[0], "s0 ends with {:?} and s{server} with {list:?}", lists[0]);
        }
        wait("watchers that have caught up", MENDED, || {
            Ok(self.watchers.iter().all(JoinHandle::is_finished).then_some(()))
        })
    }

    /// Logs and history, where the next run of this seed finds them overwritten.
    fn keep(&self) -> Result<PathBuf> {
        let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}", self.report.seed));
        self.servers.keep_logs(&place)?;
        let mut text = String::new();
        let mut operations: Vec<&Operation> = self.history.operations.iter().collect();
        operations.sort_by_key(|operation| operation.begun);
        for operation in operations {
            writeln!(text, "{operation:?}")?;
        }
        for log in &self.history.watches {
            writeln!(text, "watcher {} from {}", log.server, log.from)?;
            for told in &log.told {
                writeln!(text, "    {told:?}")?;
            }
        }
        fs::write(place.join("history.txt"), text)?;
        Ok(place)
    }
}

/// A number out of the environment.
pub fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

pub fn config() -> Result<Config> {
    let config = Config {
        seed: number("FAULT_SEED", 1)?,
        lasts: seconds(number("FAULT_SECONDS", 30)?),
        servers: usize::try_from(number("FAULT_SERVERS", 3)?)?,
    };
    ensure!([1, 3, 5].contains(&config.servers), "FAULT_SERVERS={}: 1, 3 or 5", config.servers);
    Ok(config)
}
