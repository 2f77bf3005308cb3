//! The task of one pod: look, plan, act, tell. Level-triggered: whatever wakes it, it plans from all that is known.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    act::{self, Outcome, Remains, Start, Stop, uid, until},
    checkpoint, fetch,
    plan::{Action, Plan, grace, plan},
    recall::{Found, recall},
    spec::stop_signal,
    tell::Tell,
    world::{ContainerNow, Desired, Exit, ImageStep, Member, Role, Step, World, shape, started},
};
use crate::{
    context::Context,
    env::Sources,
    probe::{self, ProbeKind, Report},
    runtime::{ContainerId, RunState, SandboxState},
    volumes::PreparedVolumes,
};

/// Reports of probes on their way; a prober that gets ahead of its worker waits.
const REPORTS: usize = 32;
/// More plans in a row without waiting than any pod needs; past it there is a fault in the plan.
const PLANS_IN_A_ROW: usize = 64;

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub enum Wanted {
    Object(Arc<Pod>),
    /// There is no such object any more; this is how it was last seen, as the grace it had still counts.
    Gone(Arc<Pod>),
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

pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) pod: Arc<Pod>,
    pub(super) gone: bool,
    /// The API server has been told to remove the object, and agreed.
    pub(super) deleted: bool,
    pub(super) world: World,
    pub(super) remains: Remains,
    pub(super) prepared: PreparedVolumes,
    pub(super) tokens: fetch::Tokens,
    pub(super) sources: Arc<Sources>,
    pub(super) refresh_at: Option<Timestamp>,
    pub(super) tasks: JoinSet<Outcome>,
    pub(super) looking: Looking,
    pub(super) probers: HashMap<(String, ProbeKind), (u32, AbortHandle)>,
    pub(super) probing: JoinSet<()>,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) signals: Arc<Signals>,
    pub(super) tell: Tell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Looking {
    No,
    Once,
    /// Something has happened since: look again when this look is over.
    Again,
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
            tell: Tell { current: status, sent, told_at: 0, since: None, writing: None, failures: 0, retry_at: None },
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
            Wanted::Gone(pod) => {
                self.pod = pod;
                self.gone = true;
            }
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
            // A shim that this worker itself has ended is no loss; whether another is one, the runtime says.
            let lost = self.signals.lost.swap(false, Ordering::AcqRel);
            if lost && self.world.sandbox == Step::Done && self.world.teardown == Step::Idle {
                self.tasks.spawn(act::check(Arc::clone(&self.context), Arc::clone(&self.pod)));
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

    pub(super) fn lose_sandbox(&mut self, now: Timestamp) {
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

    pub(super) fn member(&self, name: &str) -> Option<Member<'_>> {
        shape(&self.pod).into_iter().find(|m| m.name() == name)
    }

    pub(super) fn id(&self, name: &str) -> ContainerId {
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

    pub(super) fn look(&mut self) {
        if self.looking != Looking::No {
            self.looking = Looking::Again;
            return;
        }
        self.looking = Looking::Once;
        self.tasks.spawn(act::look(Arc::clone(&self.context), Arc::clone(&self.pod)));
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

    /// Keeps what is needed to go on without the API.
    pub(super) fn save(&self) {
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
        let (Ok(dir), Ok(logs)) = (self.context.paths.pod(uid(&self.pod)), self.context.paths.pod_logs(&self.pod))
        else {
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

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
