//! What is known about one pod: the input of [`super::plan`] and [`super::status`].
//!
//! A [`World`] is a plain value. The worker folds what it observes into it, asks for a plan, and marks the actions it
//! begins; nothing in here reads a clock or a disk.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::plan::Action;

/// First delay between two starts of a container that exits.
pub const RESTART_DELAY: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay between two starts, or two attempts at anything else.
pub const RESTART_DELAY_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A container that kept running so long starts its back-off afresh.
pub const RESTART_FORGIVEN: SignedDuration = SignedDuration::from_secs(600);
/// First delay before another attempt at a step (volumes, sandbox, creation) that failed; it doubles.
const STEP_DELAY: SignedDuration = SignedDuration::from_millis(500);
/// The same for pulling an image: registries dislike haste.
const PULL_DELAY: SignedDuration = SignedDuration::from_secs(10);

/// One thing that has to be done before containers can start.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Step {
    #[default]
    Idle,
    Doing {
        tries: u32,
    },
    Done,
    Failed(Failure),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// As in a container's waiting state: `CreateContainerConfigError`.
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
    pub tries: u32,
    pub retry_at: Timestamp,
}

impl Failure {
    pub fn new(reason: &str, message: String, tries: u32, now: Timestamp) -> Failure {
        Failure::after(reason, message, tries, now, STEP_DELAY)
    }

    pub fn pull(reason: &str, message: String, tries: u32, now: Timestamp) -> Failure {
        Failure::after(reason, message, tries, now, PULL_DELAY)
    }

    fn after(reason: &str, message: String, tries: u32, now: Timestamp, first: SignedDuration) -> Failure {
        let delay = first.saturating_mul(1 << tries.min(16)).min(RESTART_DELAY_MAX);
        Failure { reason: reason.to_owned(), message, at: now, tries: tries + 1, retry_at: now + delay }
    }
}

impl Step {
    /// Attempts that failed so far.
    pub fn tries(&self) -> u32 {
        match self {
            Step::Idle | Step::Done => 0,
            Step::Doing { tries } => *tries,
            Step::Failed(failure) => failure.tries,
        }
    }

    pub fn due(&self, now: Timestamp) -> bool {
        match self {
            Step::Idle => true,
            Step::Doing { .. } | Step::Done => false,
            Step::Failed(failure) => now >= failure.retry_at,
        }
    }

    pub fn begin(&mut self) {
        *self = Step::Doing { tries: self.tries() };
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ImageStep {
    #[default]
    Unknown,
    Pulling {
        tries: u32,
    },
    Present {
        /// Digest of the image's configuration, what a container is created from.
        id: String,
        /// `name@sha256:...`, what status shows.
        reference: String,
    },
    Failed(Failure),
}

/// A container's process that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    pub id: String,
    pub attempt: u32,
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ContainerNow {
    /// Never created, or lost with its sandbox.
    #[default]
    Absent,
    Running {
        id: String,
        started_at: Timestamp,
    },
    Exited(Exit),
}

/// How far the stopping of a running container has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    pub stage: StopStage,
    /// When SIGKILL is due.
    pub deadline: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopStage {
    PreStop,
    PreStopDone,
    Terminating,
    Killed,
}

/// What the probes of the running attempt say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeView {
    /// None: no result yet.
    pub startup: Option<bool>,
    pub readiness: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    /// Zero: no restart so far.
    pub delay: SignedDuration,
    pub updated: Option<Timestamp>,
    /// An event has told about the present wait.
    pub announced: bool,
}

impl Backoff {
    fn forgiven(&self, finished_at: Timestamp) -> bool {
        self.updated.is_none_or(|updated| finished_at.duration_since(updated) > RESTART_FORGIVEN)
    }

    /// When a container that ended at `finished_at` may start again; None: at once.
    pub fn until(&self, finished_at: Timestamp) -> Option<Timestamp> {
        (!self.delay.is_zero() && !self.forgiven(finished_at)).then(|| finished_at + self.delay)
    }

    /// Counts a restart after an end at `finished_at`.
    pub fn count(&mut self, finished_at: Timestamp, now: Timestamp) {
        self.delay = if self.delay.is_zero() || self.forgiven(finished_at) {
            RESTART_DELAY
        } else {
            self.delay.saturating_mul(2).min(RESTART_DELAY_MAX)
        };
        self.updated = Some(now);
        self.announced = false;
    }
}

/// Why a running container has to go although its pod goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct KillWish {
    pub message: String,
    /// A probe may have a grace period of its own.
    pub grace_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    /// Number of the current attempt, or of the next one while nothing has been created.
    pub attempt: u32,
    pub now: ContainerNow,
    /// How the attempt before the current one ended.
    pub last: Option<Exit>,
    pub image: ImageStep,
    /// `image` of the spec that `image` stands for, and that the current attempt was started from.
    pub image_name: Option<String>,
    /// Creation, start and post-start hook of the current attempt.
    pub start: Step,
    pub backoff: Backoff,
    pub stopping: Option<Stopping>,
    pub probes: ProbeView,
    pub kill: Option<KillWish>,
}

impl ContainerView {
    pub fn running(&self) -> bool {
        matches!(self.now, ContainerNow::Running { .. })
    }

    pub fn exit(&self) -> Option<&Exit> {
        match &self.now {
            ContainerNow::Exited(exit) => Some(exit),
            ContainerNow::Absent | ContainerNow::Running { .. } => None,
        }
    }

    /// Something of it may be alive: a process, or a creation under way.
    pub fn alive(&self) -> bool {
        self.running() || matches!(self.start, Step::Doing { .. })
    }

    /// Forgets the attempt that was lost with its sandbox; the next one counts as a restart if this one ran.
    pub fn lose(&mut self, now: Timestamp) {
        let exit = match std::mem::take(&mut self.now) {
            ContainerNow::Absent => None,
            ContainerNow::Running { id, started_at } => Some(Exit {
                id,
                attempt: self.attempt,
                code: 137,
                signal: None,
                reason: "ContainerStatusUnknown".to_owned(),
                message: Some("The container could not be located when the pod's sandbox was lost".to_owned()),
                started_at: Some(started_at),
                finished_at: now,
            }),
            ContainerNow::Exited(exit) => Some(exit),
        };
        if exit.is_some() {
            self.attempt += 1;
            self.last = exit;
        }
        self.start = Step::Idle;
        self.stopping = None;
        self.kill = None;
        self.probes = ProbeView::default();
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Desired {
    #[default]
    Run,
    /// The object is being deleted, or is gone.
    Stop { since: Timestamp, grace_seconds: i64 },
}

/// Why a pod will never run again.
#[derive(Clone, Debug, PartialEq)]
pub struct Terminal {
    pub phase: Phase,
    pub reason: Option<String>,
    pub message: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub desired: Desired,
    /// `status.startTime`
    pub started_at: Option<Timestamp>,
    pub volumes: Step,
    /// Done: the sandbox is there and its network too.
    pub sandbox: Step,
    pub ips: Vec<IpAddr>,
    pub teardown: Step,
    pub containers: BTreeMap<String, ContainerView>,
    /// Invariant: once set it stays, and nothing is started any more.
    pub terminal: Option<Terminal>,
}

impl World {
    pub fn view(&self, name: &str) -> ContainerView {
        self.containers.get(name).cloned().unwrap_or_default()
    }

    pub fn view_mut(&mut self, name: &str) -> &mut ContainerView {
        self.containers.entry(name.to_owned()).or_default()
    }

    pub fn anything_alive(&self) -> bool {
        self.containers.values().any(ContainerView::alive)
    }

    /// The sandbox died under its containers: everything begins again, init containers included.
    pub fn lose_sandbox(&mut self, now: Timestamp) {
        self.sandbox = Step::Idle;
        self.ips.clear();
        if self.terminal.is_none() {
            self.containers.values_mut().for_each(|view| view.lose(now));
        }
    }

    /// Records that an action has begun, so that the next plan does not ask for it again.
    pub fn mark(&mut self, pod: &Pod, action: &Action, now: Timestamp) {
        match action {
            Action::PrepareVolumes => self.volumes.begin(),
            Action::CreateSandbox => self.sandbox.begin(),
            Action::Teardown => self.teardown.begin(),
            Action::Finish(terminal) => self.terminal = Some(terminal.clone()),
            Action::Record(_) => {}
            Action::AnnounceBackoff { container } => self.view_mut(container).backoff.announced = true,
            Action::PullImage { container } => {
                let name = image_of(pod, container);
                let view = self.view_mut(container);
                let tries = if let ImageStep::Failed(failure) = &view.image { failure.tries } else { 0 };
                view.image = ImageStep::Pulling { tries };
                view.image_name = name;
            }
            Action::StartContainer { container, attempt } => {
                let name = image_of(pod, container);
                let view = self.view_mut(container);
                if let ContainerNow::Exited(exit) = std::mem::take(&mut view.now) {
                    view.backoff.count(exit.finished_at, now);
                    view.last = Some(exit);
                    view.start = Step::Idle;
                }
                view.attempt = *attempt;
                view.image_name = name;
                view.stopping = None;
                view.kill = None;
                view.probes = ProbeView::default();
                view.start.begin();
            }
            Action::PreStop { container, deadline } => {
                self.view_mut(container).stopping = Some(Stopping { stage: StopStage::PreStop, deadline: *deadline });
            }
            Action::Terminate { container, deadline } => {
                let stage = StopStage::Terminating;
                self.view_mut(container).stopping = Some(Stopping { stage, deadline: *deadline });
            }
            Action::Kill { container } => {
                let again = now + super::plan::KILL_AGAIN;
                self.view_mut(container).stopping = Some(Stopping { stage: StopStage::Killed, deadline: again });
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Init,
    /// An init container that stays: `restartPolicy: Always`.
    Sidecar,
    Main,
}

/// A container of the spec with its role.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    pub spec: &'a Container,
    pub role: Role,
}

impl<'a> Member<'a> {
    pub fn name(&self) -> &'a str {
        &self.spec.name
    }
}

fn image_of(pod: &Pod, container: &str) -> Option<String> {
    shape(pod).into_iter().find(|c| c.name() == container).and_then(|c| c.spec.image.clone())
}

/// The pod's containers in starting order.
pub fn shape(pod: &Pod) -> Vec<Member<'_>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|c| Member {
        spec: c,
        role: if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init },
    });
    init.chain(spec.containers.iter().map(|c| Member { spec: c, role: Role::Main })).collect()
}

/// Whether a container that exited with `code` is to be started again.
pub fn restarts(pod: &Pod, member: Member<'_>, code: i32) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    let policy = match member.role {
        Role::Sidecar => return true,
        Role::Init if code == 0 => return false,
        Role::Init => of_pod,
        Role::Main => member.spec.restart_policy.as_deref().unwrap_or(of_pod),
    };
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        // An init container is never repeated after success, whatever the pod's policy says; `Always` is the default.
        _ => true,
    }
}

/// An init container no longer stands in the way of those after it.
pub fn init_done(member: Member<'_>, view: &ContainerView) -> bool {
    match member.role {
        Role::Init => view.exit().is_some_and(|exit| exit.code == 0),
        Role::Sidecar => started(member, view),
        Role::Main => true,
    }
}

/// Running, its post-start hook done, its startup probe passed.
pub fn started(member: Member<'_>, view: &ContainerView) -> bool {
    view.running()
        && matches!(view.start, Step::Done)
        && (member.spec.startup_probe.is_none() || view.probes.startup == Some(true))
}

/// As `containerStatuses[].ready`.
pub fn ready(member: Member<'_>, view: &ContainerView) -> bool {
    match member.role {
        Role::Init => init_done(member, view),
        Role::Sidecar | Role::Main => {
            started(member, view)
                && (member.spec.readiness_probe.is_none() || view.probes.readiness == Some(true))
                && view.kill.is_none()
        }
    }
}
