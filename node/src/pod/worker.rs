//! The task of one pod: look, plan, act, tell. Level-triggered: whatever wakes it, it plans from all that is known.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use client::{DeleteOptions, Patch, object};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    act::{self, Outcome, Ready, Remains, Seen, Start, StartFailure, Stop, note, uid, until},
    checkpoint, error_text as chain, fetch,
    plan::{Action, NoteKind, Plan, grace, plan},
    recall::{Found, exit_seen, recall},
    spec::stop_signal,
    status::status,
    world::{
        ContainerNow, Desired, Exit, Failure, ImageStep, KillWish, Member, Phase, Role, Step, StopStage, World, shape,
        started,
    },
};
use crate::{
    context::Context,
    env::Sources,
    image::ImageError,
    probe::{self, ProbeKind, Report, state::Verdict},
    runtime::{ContainerId, RunState, SandboxState},
    volumes::PreparedVolumes,
};

/// Reports of probes on their way; a prober that gets ahead of its worker waits.
const REPORTS: usize = 32;
/// A status that only tells of progress waits so long for a better one, which then goes out in its place: a pod that
/// starts quickly costs one write instead of three.
const STATUS_PATIENCE: SignedDuration = SignedDuration::from_millis(250);
/// After a failed write of status or of the deletion; it doubles.
const WRITE_RETRY: SignedDuration = SignedDuration::from_millis(200);
const WRITE_RETRY_MAX: SignedDuration = SignedDuration::from_secs(10);
/// Config maps, secrets and tokens in volumes are looked at again so often.
const REFRESH: SignedDuration = SignedDuration::from_secs(60);
/// More plans in a row without waiting than any pod needs; past it there is a fault in the plan.
const PLANS_IN_A_ROW: usize = 64;

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub enum Wanted {
    Object(Arc<Pod>),
    /// There is no such object any more.
    Gone,
}

/// The manager's handle on a worker.
pub struct Handle {
    pub wanted: watch::Sender<Wanted>,
    pub signals: Arc<Signals>,
}

/// What the runtime has to say to a worker.
#[derive(Default)]
pub struct Signals {
    pub look: Notify,
    pub lost: AtomicBool,
}

/// What a worker starts from.
pub struct Origin {
    pub pod: Arc<Pod>,
    /// The spec that was last acted upon, and what the runtime has.
    pub ran: Option<Pod>,
    /// None: not known, the worker has to ask.
    pub found: Option<Found>,
}

struct Worker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    gone: bool,
    /// The API server has been told to remove the object, and agreed.
    deleted: bool,
    world: World,
    remains: Remains,
    prepared: PreparedVolumes,
    tokens: fetch::Tokens,
    sources: Arc<Sources>,
    refresh_at: Option<Timestamp>,
    tasks: JoinSet<Outcome>,
    looking: Looking,
    probers: HashMap<(String, ProbeKind), (u32, AbortHandle)>,
    probing: JoinSet<()>,
    reports: mpsc::Sender<Report>,
    signals: Arc<Signals>,
    tell: Tell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Looking {
    No,
    Once,
    /// Something has happened since: look again when this look is over.
    Again,
}

/// What the API has been told, and what it is still to be told.
struct Tell {
    sent: PodStatus,
    current: PodStatus,
    /// When `current` began to differ from `sent`.
    since: Option<Timestamp>,
    writing: Option<Write>,
    failures: u32,
    retry_at: Option<Timestamp>,
}

#[derive(Clone)]
enum Write {
    Status(Box<PodStatus>),
    Delete,
}

/// Runs one pod until it is gone from this node.
pub async fn run(context: Arc<Context>, origin: Origin, mut wanted: watch::Receiver<Wanted>, signals: Arc<Signals>) {
    let (reports, mut inbox) = mpsc::channel(REPORTS);
    let found = match origin.found.clone() {
        Some(found) => found,
        None => find(&context, &origin.pod).await,
    };
    let mut worker = Worker::new(context, origin, &found, signals, reports);
    worker.remove_unstarted().await;
    loop {
        let now = Timestamp::now();
        let latest = wanted.borrow_and_update().clone();
        worker.want(latest, now);
        let plan = worker.settle();
        worker.probe();
        if plan.clean && worker.gone {
            break;
        }
        let wake = worker.tell(&plan, Timestamp::now());
        let wake = [plan.wake, wake, worker.refresh_at].into_iter().flatten().min();
        let signals = Arc::clone(&worker.signals);
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(outcome) = worker.tasks.join_next() => worker.fold(outcome),
            Some(report) = inbox.recv() => worker.heed(report),
            () = signals.look.notified() => worker.look(),
            () = sleep_until(wake) => worker.refresh(),
        }
    }
    worker.forget().await;
}

/// What the runtime has of a pod.
async fn find(context: &Context, pod: &Pod) -> Found {
    let sandboxes = context.runtime.sandboxes().await.unwrap_or_default();
    let sandbox = sandboxes.iter().any(|s| s.uid == uid(pod) && s.state == SandboxState::Ready);
    Found { sandbox, containers: context.runtime.status(uid(pod)).await.unwrap_or_default() }
}

/// Waits for a moment of the wall clock; for ever when there is none.
async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(until(at, Timestamp::now())).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    fn new(
        context: Arc<Context>,
        origin: Origin,
        found: &Found,
        signals: Arc<Signals>,
        reports: mpsc::Sender<Report>,
    ) -> Worker {
        let now = Timestamp::now();
        let mut world = recall(&origin.pod, origin.ran.as_ref(), found, now);
        world.started_at.get_or_insert(now);
        let something = origin.found.is_none() || found.sandbox || !found.containers.is_empty() || origin.ran.is_some();
        let status = origin.pod.status.clone().unwrap_or_default();
        // A checkpoint does not say whether its status has been sent.
        let sent = if origin.ran.is_some() { PodStatus::default() } else { status.clone() };
        Worker {
            context,
            pod: origin.pod,
            gone: false,
            deleted: false,
            world,
            remains: if something { Remains::Perhaps } else { Remains::None },
            prepared: PreparedVolumes::new(),
            tokens: fetch::Tokens::new(),
            sources: Arc::default(),
            refresh_at: None,
            tasks: JoinSet::new(),
            looking: Looking::No,
            probers: HashMap::new(),
            probing: JoinSet::new(),
            reports,
            signals,
            tell: Tell {
                current: status,
                sent,
                since: None,
                writing: None,
                failures: 0,
                retry_at: None,
            },
        }
    }

    /// A container that was created but never started stands in the way of its own attempt.
    async fn remove_unstarted(&mut self) {
        if self.remains == Remains::None {
            return;
        }
        if let Ok(states) = self.context.runtime.status(uid(&self.pod)).await {
            for state in states.into_iter().filter(|s| matches!(s.state, RunState::Created)) {
                if let Err(error) = self.context.runtime.remove(&state.id).await {
                    tracing::debug!(container = %state.id, %error, "an unstarted container stays behind");
                }
            }
        }
    }

    /// Takes in what the API wants.
    fn want(&mut self, wanted: Wanted, now: Timestamp) {
        match wanted {
            Wanted::Object(pod) => {
                let renewed = pod.metadata.labels != self.pod.metadata.labels
                    || pod.metadata.annotations != self.pod.metadata.annotations;
                if renewed && self.refresh_at.is_some() {
                    self.refresh_at = Some(now);
                }
                self.pod = pod;
            }
            Wanted::Gone => self.gone = true,
        }
        if !self.gone && self.pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        let grace_seconds = asked.unwrap_or_else(|| grace(&self.pod).as_secs());
        self.world.desired = match self.world.desired {
            // Later requests shorten the time, counted from the first.
            Desired::Stop { since, grace_seconds: before } => {
                Desired::Stop { since, grace_seconds: before.min(grace_seconds) }
            }
            Desired::Run => Desired::Stop { since: now, grace_seconds },
        };
    }

    /// Plans and begins actions until there is nothing to begin.
    fn settle(&mut self) -> Plan {
        for _ in 0..PLANS_IN_A_ROW {
            let now = Timestamp::now();
            if self.signals.lost.swap(false, Ordering::AcqRel) {
                self.lose_sandbox(now);
            }
            let plan = plan(&self.pod, &self.world, now);
            if plan.actions.is_empty() {
                return plan;
            }
            for action in plan.actions {
                let former = match &action {
                    Action::StartContainer { container, .. } => {
                        self.world.view(container).exit().map(|exit| exit.attempt)
                    }
                    _ => None,
                };
                self.world.mark(&self.pod, &action, now);
                self.begin(action, former, now);
            }
        }
        tracing::error!(pod = uid(&self.pod), "planning does not come to rest");
        Plan { wake: Some(Timestamp::now() + SignedDuration::from_secs(1)), ..Plan::default() }
    }

    fn lose_sandbox(&mut self, now: Timestamp) {
        tracing::warn!(pod = uid(&self.pod), "the pod's sandbox is lost");
        self.remains = Remains::Perhaps;
        let stopping = self.world.desired != Desired::Run || self.world.terminal.is_some();
        for view in self.world.containers.values_mut().filter(|_| stopping) {
            if let ContainerNow::Running { id, started_at } = view.now.clone() {
                view.now = ContainerNow::Exited(Exit {
                    id,
                    attempt: view.attempt,
                    code: 137,
                    signal: Some(9),
                    reason: "Error".to_owned(),
                    message: None,
                    started_at: Some(started_at),
                    finished_at: now,
                });
            }
        }
        self.world.lose_sandbox(now);
    }

    fn member(&self, name: &str) -> Option<Member<'_>> {
        shape(&self.pod).into_iter().find(|m| m.name() == name)
    }

    fn id(&self, name: &str) -> ContainerId {
        let attempt = self.world.view(name).attempt;
        ContainerId { pod_uid: uid(&self.pod).to_owned(), name: name.to_owned(), attempt }
    }

    fn begin(&mut self, action: Action, former: Option<u32>, now: Timestamp) {
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        tracing::debug!(pod = uid(&pod), ?action, "begin");
        match action {
            Action::PrepareVolumes => drop(self.tasks.spawn(act::volumes(context, pod, self.tokens.clone()))),
            Action::CreateSandbox => {
                let remains = std::mem::replace(&mut self.remains, Remains::Perhaps);
                self.tasks.spawn(act::sandbox(context, pod, remains));
            }
            Action::Teardown => drop(self.tasks.spawn(act::teardown(context, pod))),
            Action::PullImage { container } => {
                if let Some(member) = self.member(&container) {
                    let spec = member.spec.clone();
                    self.tasks.spawn(act::pull(context, pod, spec));
                }
            }
            Action::StartContainer { container, attempt } => self.begin_start(&container, attempt, former),
            Action::PreStop { container, deadline } => {
                if let Some(member) = self.member(&container) {
                    let stop = Stop {
                        container: member.spec.clone(),
                        id: self.id(&container),
                        ip: self.world.ips.first().copied(),
                        within: until(deadline, now),
                        pod,
                    };
                    self.tasks.spawn(act::pre_stop(context, stop));
                }
            }
            Action::Terminate { container, .. } => {
                let of_image = match self.world.view(&container).image {
                    ImageStep::Present { id, .. } => context.runtime.image(&id).map(|image| image.config.stop_signal),
                    ImageStep::Unknown | ImageStep::Pulling { .. } | ImageStep::Failed(_) => None,
                };
                let of_image = of_image.as_deref().filter(|s| !s.is_empty());
                let number = self.member(&container).map_or(15, |m| stop_signal(m.spec, of_image));
                self.tasks.spawn(act::signal(context, self.id(&container), number));
            }
            Action::Kill { container } => drop(self.tasks.spawn(act::signal(context, self.id(&container), 9))),
            Action::Record(note) => context.events.pod(&pod, note),
            Action::Finish(_) | Action::AnnounceBackoff { .. } => {}
        }
    }

    fn begin_start(&mut self, container: &str, attempt: u32, former: Option<u32>) {
        let Some(member) = self.member(container) else { return };
        let ImageStep::Present { id, .. } = self.world.view(container).image else { return };
        let start = Start {
            container: member.spec.clone(),
            pod: Arc::clone(&self.pod),
            attempt,
            image: id,
            prepared: self.prepared.clone(),
            known: Arc::clone(&self.sources),
            ips: self.world.ips.clone(),
            former,
        };
        let signals = Arc::clone(&self.signals);
        self.tasks.spawn(act::start(Arc::clone(&self.context), start, move || signals.look.notify_one()));
    }

    fn look(&mut self) {
        if self.looking != Looking::No {
            self.looking = Looking::Again;
            return;
        }
        self.looking = Looking::Once;
        self.tasks.spawn(act::look(Arc::clone(&self.context), Arc::clone(&self.pod)));
    }

    /// Takes in how an action ended.
    fn fold(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        let now = Timestamp::now();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                // Which action it was is not known any more: everything under way is looked at as failed.
                tracing::error!(pod = uid(&self.pod), %error, "an action broke down");
                return self.fail_all(now);
            }
        };
        match outcome {
            Outcome::Volumes(result) => self.fold_volumes(result, now),
            Outcome::Sandbox(Ok(ips)) => {
                self.world.sandbox = Step::Done;
                self.world.ips = ips;
                self.save();
            }
            Outcome::Sandbox(Err(message)) => {
                let tries = self.world.sandbox.tries();
                self.world.sandbox = Step::Failed(Failure::new("FailedCreatePodSandBox", message, tries, now));
            }
            Outcome::Image { container, result } => self.fold_image(&container, result, now),
            Outcome::Started { container, attempt, result } => self.fold_start(&container, attempt, result, now),
            Outcome::PreStopDone { container, attempt } => {
                let view = self.world.view_mut(&container);
                if let Some(stopping) = view.stopping.as_mut().filter(|s| s.stage == StopStage::PreStop)
                    && view.attempt == attempt
                {
                    stopping.stage = StopStage::PreStopDone;
                }
            }
            Outcome::Signalled => {}
            Outcome::TornDown(Ok(())) => self.world.teardown = Step::Done,
            Outcome::TornDown(Err(message)) => {
                tracing::warn!(pod = uid(&self.pod), message, "the pod cannot be removed yet");
                let tries = self.world.teardown.tries();
                self.world.teardown = Step::Failed(Failure::new("FailedKillPod", message, tries, now));
            }
            Outcome::Looked(result) => {
                if std::mem::replace(&mut self.looking, Looking::No) == Looking::Again {
                    self.look();
                }
                match result {
                    Ok(seen) => self.fold_seen(seen),
                    Err(error) => tracing::debug!(pod = uid(&self.pod), %error, "the runtime does not answer"),
                }
            }
            Outcome::Written(result) => self.fold_written(result, now),
        }
    }

    fn fail_all(&mut self, now: Timestamp) {
        let broken = |step: &mut Step| {
            if matches!(step, Step::Doing { .. }) {
                let tries = step.tries();
                *step = Step::Failed(Failure::new("InternalError", "an action broke down".to_owned(), tries, now));
            }
        };
        broken(&mut self.world.volumes);
        broken(&mut self.world.sandbox);
        broken(&mut self.world.teardown);
        self.world.containers.values_mut().for_each(|view| {
            broken(&mut view.start);
            if let ImageStep::Pulling { tries } = view.image {
                let message = "the pull broke down".to_owned();
                view.image = ImageStep::Failed(Failure::pull("ErrImagePull", message, tries, now));
            }
        });
        self.looking = Looking::No;
        self.tell.writing = None;
        self.look();
    }

    fn fold_volumes(&mut self, result: Result<Ready, String>, now: Timestamp) {
        let refreshing = self.world.volumes == Step::Done;
        match result {
            Ok(ready) => {
                self.prepared = ready.prepared;
                self.tokens = ready.tokens;
                self.sources = ready.sources;
                self.world.volumes = Step::Done;
                let volumes = self.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
                let changing = |v: &k8s_openapi::api::core::v1::Volume| {
                    v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
                };
                if volumes.into_iter().any(changing) {
                    self.refresh_at = Some(now + REFRESH);
                }
            }
            // Containers go on with what they have.
            Err(message) if refreshing => {
                tracing::debug!(pod = uid(&self.pod), message, "volumes could not be brought up to date");
                self.refresh_at = Some(now + REFRESH);
            }
            Err(message) => {
                let tries = self.world.volumes.tries();
                self.context.events.pod(&self.pod, note(NoteKind::Warning, "FailedMount", message.clone(), None));
                self.world.volumes = Step::Failed(Failure::new("FailedMount", message, tries, now));
            }
        }
    }

    fn refresh(&mut self) {
        let due = self.refresh_at.is_some_and(|at| at <= Timestamp::now());
        if due && self.world.volumes == Step::Done && self.world.teardown == Step::Idle {
            self.refresh_at = None;
            let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
            self.tasks.spawn(act::volumes(context, pod, self.tokens.clone()));
        } else if due {
            self.refresh_at = None;
        }
    }

    fn fold_image(&mut self, container: &str, result: Result<crate::image::Image, ImageError>, now: Timestamp) {
        let view = self.world.view_mut(container);
        let tries = if let ImageStep::Pulling { tries } = view.image { tries } else { 0 };
        view.image = match result {
            Ok(image) => ImageStep::Present { reference: image.repo_digest(), id: image.id },
            Err(error) => {
                let reason = match &error {
                    ImageError::InvalidName { .. } => "InvalidImageName",
                    ImageError::NeverPull(_) => "ErrImageNeverPull",
                    ImageError::Pull { .. }
                    | ImageError::Corrupt { .. }
                    | ImageError::Unpack { .. }
                    | ImageError::Store { .. } => "ErrImagePull",
                };
                ImageStep::Failed(Failure::pull(reason, chain(&error), tries, now))
            }
        };
    }

    fn fold_start(&mut self, container: &str, attempt: u32, result: Result<(), StartFailure>, now: Timestamp) {
        let id = self.id(container).hex();
        let view = self.world.view_mut(container);
        if view.attempt != attempt {
            return;
        }
        let tries = view.start.tries();
        match result {
            Ok(()) => view.start = Step::Done,
            Err(StartFailure::Retry { reason, message }) => {
                view.start = Step::Failed(Failure::new(reason, message, tries, now));
            }
            Err(StartFailure::Dead(message)) => {
                view.start = Step::Done;
                view.now = ContainerNow::Exited(Exit {
                    id,
                    attempt,
                    code: 128,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: Some(message),
                    started_at: None,
                    finished_at: now,
                });
            }
            Err(StartFailure::Hook(message)) => {
                view.start = Step::Done;
                view.kill = Some(KillWish { message: format!("FailedPostStartHook: {message}"), grace_seconds: None });
            }
            Err(StartFailure::NoSandbox) => {
                view.start = Step::Idle;
                self.signals.lost.store(true, Ordering::Release);
            }
        }
        if matches!(self.world.view(container).now, ContainerNow::Absent) && self.world.view(container).start == Step::Done
        {
            // It runs; the look that follows tells since when, or that it has ended already.
            self.world.view_mut(container).now = ContainerNow::Running { id: self.id(container).hex(), started_at: now };
        }
        self.look();
    }

    fn fold_seen(&mut self, seen: Vec<Seen>) {
        for Seen { state, message } in seen {
            let Some(view) = self.world.containers.get_mut(&state.name) else { continue };
            // An attempt that is over is history; one that has not been begun here is not ours to judge.
            if state.attempt != view.attempt || view.exit().is_some() {
                continue;
            }
            match &state.state {
                RunState::Created => {}
                RunState::Running { started_at } => {
                    view.now = ContainerNow::Running { id: state.id.hex(), started_at: *started_at };
                }
                RunState::Exited(exit) => {
                    view.now = ContainerNow::Exited(exit_seen(&state, exit, message));
                    view.stopping = None;
                    view.kill = None;
                    if view.start != (Step::Doing { tries: view.start.tries() }) {
                        view.start = Step::Done;
                    }
                }
            }
        }
    }

    /// Takes in what a probe found.
    fn heed(&mut self, report: Report) {
        if let Some(message) = report.failure {
            let note = note(NoteKind::Warning, "Unhealthy", message, Some(&report.container));
            self.context.events.pod(&self.pod, note);
        }
        let Some(member) = self.member(&report.container) else { return };
        let own_grace = match report.kind {
            ProbeKind::Startup => member.spec.startup_probe.as_ref(),
            ProbeKind::Liveness => member.spec.liveness_probe.as_ref(),
            ProbeKind::Readiness => None,
        };
        let grace_seconds = own_grace.and_then(|p| p.termination_grace_period_seconds);
        let view = self.world.view_mut(&report.container);
        let Some(verdict) = report.verdict.filter(|_| view.attempt == report.attempt && view.running()) else { return };
        let wish = |what: &str| {
            let message = format!("Container {} failed {what} probe, will be restarted", report.container);
            Some(KillWish { message, grace_seconds })
        };
        match (report.kind, verdict) {
            (ProbeKind::Startup, Verdict::Passing) => view.probes.startup = Some(true),
            (ProbeKind::Startup, Verdict::Failing) => view.kill = wish("startup"),
            (ProbeKind::Readiness, verdict) => view.probes.readiness = Some(verdict == Verdict::Passing),
            (ProbeKind::Liveness, Verdict::Passing) => {}
            (ProbeKind::Liveness, Verdict::Failing) => view.kill = wish("liveness"),
        }
    }

    /// Keeps one prober for each probe that applies now, and ends the others.
    fn probe(&mut self) {
        let stopping = self.world.desired != Desired::Run || self.world.terminal.is_some();
        let mut wanted = HashMap::new();
        for member in shape(&self.pod).iter().filter(|m| m.role != Role::Init) {
            let view = self.world.view(member.name());
            let ContainerNow::Running { started_at, .. } = view.now else { continue };
            if matches!(view.start, Step::Doing { .. }) {
                continue;
            }
            let up = started(*member, &view);
            let probes = [
                (ProbeKind::Startup, &member.spec.startup_probe, !up && !stopping),
                (ProbeKind::Liveness, &member.spec.liveness_probe, up && !stopping && view.kill.is_none()),
                (ProbeKind::Readiness, &member.spec.readiness_probe, up),
            ];
            for (kind, probe, applies) in probes {
                if let Some(probe) = probe.as_ref().filter(|_| applies) {
                    let target = probe::Target {
                        kind,
                        probe: probe.clone(),
                        container: member.spec.clone(),
                        attempt: view.attempt,
                        id: self.id(member.name()),
                        ip: self.world.ips.first().copied(),
                        age: until(Timestamp::now(), started_at),
                    };
                    wanted.insert((member.name().to_owned(), kind), target);
                }
            }
        }
        self.probers.retain(|key, (attempt, task)| {
            let keep = wanted.get(key).is_some_and(|target| target.attempt == *attempt);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, target) in wanted {
            if !self.probers.contains_key(&key) {
                let attempt = target.attempt;
                let runtime = Arc::clone(&self.context.runtime);
                let task = self.probing.spawn(probe::run(target, runtime, self.reports.clone()));
                self.probers.insert(key, (attempt, task));
            }
        }
        while self.probing.try_join_next().is_some() {}
    }

    /// Brings the API up to date, one write at a time; gives the time at which to try again.
    fn tell(&mut self, plan: &Plan, now: Timestamp) -> Option<Timestamp> {
        let current = status(&self.pod, &self.world, &self.context.node.ips, &self.tell.current, now);
        if current != self.tell.current {
            self.tell.current = current;
            self.save();
        }
        if self.tell.writing.is_some() || self.gone {
            return None;
        }
        let differs = self.tell.current != self.tell.sent;
        if let Some(at) = self.tell.retry_at.filter(|at| *at > now) {
            return Some(at);
        }
        let write = if differs {
            let since = *self.tell.since.get_or_insert(now);
            let patient_until = since + STATUS_PATIENCE;
            if self.may_wait() && now < patient_until {
                return Some(patient_until);
            }
            Write::Status(Box::new(self.tell.current.clone()))
        } else if plan.stopped && self.pod.metadata.deletion_timestamp.is_some() && !self.deleted {
            Write::Delete
        } else {
            return None;
        };
        self.tell.writing = Some(write.clone());
        self.tell.since = None;
        self.tasks.spawn(send(Arc::clone(&self.context), Arc::clone(&self.pod), write));
        None
    }

    /// The status only tells that a start is making progress.
    fn may_wait(&self) -> bool {
        let quiet = |status: &PodStatus| status.phase.as_deref().is_none_or(|p| p == Phase::Pending.name());
        let trouble = |status: &PodStatus| {
            let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
            all.filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.message.as_ref()).count()
        };
        quiet(&self.tell.current) && quiet(&self.tell.sent) && trouble(&self.tell.current) == trouble(&self.tell.sent)
            || self.starting_up()
    }

    /// Running already, and about to be ready.
    fn starting_up(&self) -> bool {
        let ready = |status: &PodStatus| {
            status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let young = self.world.containers.values().all(|v| v.attempt == 0 && v.exit().is_none());
        young
            && self.world.desired == Desired::Run
            && self.tell.current.phase.as_deref() == Some(Phase::Running.name())
            && !ready(&self.tell.current)
            && !ready(&self.tell.sent)
    }

    fn fold_written(&mut self, result: Result<(), client::Error>, now: Timestamp) {
        let Some(write) = self.tell.writing.take() else { return };
        match result {
            Ok(()) => {
                match write {
                    Write::Status(status) => self.tell.sent = *status,
                    Write::Delete => self.deleted = true,
                }
                (self.tell.failures, self.tell.retry_at) = (0, None);
            }
            // The object is gone, or is another pod of the same name: the manager will say so.
            Err(error) if error.is_not_found() => {
                if let Write::Status(status) = write {
                    self.tell.sent = *status;
                } else {
                    self.deleted = true;
                }
            }
            Err(error) => {
                let delay = WRITE_RETRY.saturating_mul(1 << self.tell.failures.min(16)).min(WRITE_RETRY_MAX);
                self.tell.failures += 1;
                self.tell.retry_at = Some(now + delay);
                tracing::debug!(pod = uid(&self.pod), %error, "the API server did not take the pod's status");
            }
        }
    }

    /// Keeps what is needed to go on without the API.
    fn save(&self) {
        let Ok(dir) = self.context.paths.pod(uid(&self.pod)) else { return };
        let mut pod = (*self.pod).clone();
        let mut status = self.tell.current.clone();
        if !self.world.ips.is_empty() {
            let ips = self.world.ips.iter().map(|ip| k8s_openapi::api::core::v1::PodIP { ip: ip.to_string() });
            status.pod_ips = Some(ips.collect());
        }
        pod.status = Some(status);
        if let Err(error) = checkpoint::save(&dir, &pod) {
            tracing::warn!(pod = uid(&self.pod), %error, "the pod's checkpoint cannot be written");
        }
    }

    /// Nothing of the pod is left to be known.
    async fn forget(&mut self) {
        self.probing.abort_all();
        let (Ok(dir), Ok(logs)) = (self.context.paths.pod(uid(&self.pod)), self.context.paths.pod_logs(&self.pod)) else {
            return;
        };
        let removed = tokio::task::spawn_blocking(move || {
            crate::volumes::remove(&dir)?;
            match std::fs::remove_dir_all(logs) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(pod = uid(&self.pod), %error, "files of a pod that is gone stay behind");
        }
    }
}

/// One write about the pod. It is addressed to the uid, so that a namesake is never meant.
async fn send(context: Arc<Context>, pod: Arc<Pod>, write: Write) -> Outcome {
    let (namespace, name) = (object::namespace(&*pod), object::name(&*pod));
    let _permit = context.status_writes.acquire().await;
    let result = match write {
        Write::Status(status) => match status_patch(&pod, &status) {
            Ok(patch) => context.client.patch_status::<Pod>(namespace, name, &patch).await.map(drop),
            Err(error) => {
                tracing::error!(pod = uid(&pod), %error, "a status cannot be encoded");
                Ok(())
            }
        },
        Write::Delete => {
            let options = DeleteOptions::uid(uid(&pod)).grace(0);
            match context.client.delete::<Pod>(namespace, name, &options).await {
                // Another object has the name: ours is gone.
                Err(error) if error.is_conflict() => Ok(()),
                other => other,
            }
        }
    };
    Outcome::Written(result)
}

/// Only what this node owns: conditions of others merge by type, and absent fields of ours are cleared.
fn status_patch(pod: &Pod, status: &PodStatus) -> Result<Patch, serde_json::Error> {
    let mut value = serde_json::to_value(status)?;
    if let Some(fields) = value.as_object_mut() {
        for cleared in ["reason", "message", "podIP", "podIPs"] {
            fields.entry(cleared).or_insert(serde_json::Value::Null);
        }
    }
    Ok(Patch::Strategic(serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": value})))
}

/// How long an agent that stops waits for writes that are under way.
pub const LAST_WRITES: Duration = Duration::from_secs(1);
