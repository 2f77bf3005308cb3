//! The pure core of a pod: (spec, what is known, now) -> ordered actions.
//!
//! The plan looks only at state, never at the event that woke the worker, and can be computed again at any moment: an
//! action that is under way is visible in the [`World`] and is not asked for twice.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::world::{
    ContainerNow, ContainerView, Desired, ImageStep, Member, Phase, Role, Step, StopStage, Terminal, World, init_done,
    restarts, shape,
};

/// SIGKILL is sent again when the process is still seen after this time; a signal can be lost with a dying shim.
pub const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// What a container gets to react to SIGTERM when its pre-stop hook has used up the grace period.
const AFTER_HOOK: SignedDuration = SignedDuration::from_secs(2);
/// `ErrImagePull` is shown so long before it turns into `ImagePullBackOff`.
pub const SHOW_PULL_ERROR: SignedDuration = SignedDuration::from_secs(3);
/// Grace period where the spec has none.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    PrepareVolumes,
    CreateSandbox,
    PullImage {
        container: String,
    },
    /// Create, start, run the post-start hook.
    StartContainer {
        container: String,
        attempt: u32,
    },
    /// Run the pre-stop hook, for no longer than until the deadline.
    PreStop {
        container: String,
        deadline: Timestamp,
    },
    /// The container's stop signal, SIGTERM unless it says otherwise.
    Terminate {
        container: String,
        deadline: Timestamp,
    },
    Kill {
        container: String,
    },
    /// The pod has come to its end; nothing of it starts again.
    Finish(Terminal),
    /// Remove sandbox, mounts and network.
    Teardown,
    AnnounceBackoff {
        container: String,
    },
    Record(Note),
}

/// An event about the pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub kind: NoteKind,
    pub reason: &'static str,
    pub message: String,
    pub container: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoteKind {
    Normal,
    Warning,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to plan again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// No process of the pod is left and none will start.
    pub stopped: bool,
    /// `stopped`, and sandbox, mounts and network are gone too.
    pub clean: bool,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    fn step(&mut self, step: &Step, now: Timestamp, action: Action) {
        if step.due(now) {
            self.actions.push(action);
        } else if let Step::Failed(failure) = step {
            self.wake_at(failure.retry_at);
        }
    }
}

/// What to do now.
pub fn plan(pod: &Pod, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    match (&world.desired, &world.terminal) {
        (Desired::Stop { since, grace_seconds }, _) => {
            stop_all(pod, world, now, *since + SignedDuration::from_secs((*grace_seconds).max(0)), &mut plan);
        }
        (Desired::Run, Some(_)) => stop_all(pod, world, now, now + grace(pod), &mut plan),
        (Desired::Run, None) => match end(pod, world, now, &mut plan) {
            Some(terminal) => {
                plan.actions.push(Action::Finish(terminal));
                stop_all(pod, world, now, now + grace(pod), &mut plan);
            }
            None => run(pod, world, now, &mut plan),
        },
    }
    plan
}

/// The pod's own grace period.
pub fn grace(pod: &Pod) -> SignedDuration {
    let seconds = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS);
    SignedDuration::from_secs(seconds.max(0))
}

/// Whether the pod has reached its end.
fn end(pod: &Pod, world: &World, now: Timestamp, plan: &mut Plan) -> Option<Terminal> {
    let spec = pod.spec.as_ref()?;
    if let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, world.started_at) {
        let deadline = start + SignedDuration::from_secs(seconds);
        if now >= deadline {
            return Some(Terminal {
                phase: Phase::Failed,
                reason: Some("DeadlineExceeded".to_owned()),
                message: Some("Pod was active on the node longer than the specified deadline".to_owned()),
            });
        }
        plan.wake_at(deadline);
    }
    let members = shape(pod);
    let over = |member: &&Member<'_>| {
        world.view(member.name()).exit().filter(|exit| !restarts(pod, **member, exit.code)).cloned()
    };
    let failed = Terminal { phase: Phase::Failed, reason: None, message: None };
    let init_failed = members.iter().filter(|m| m.role == Role::Init).filter_map(|m| over(&m)).any(|e| e.code != 0);
    if init_failed {
        return Some(failed);
    }
    let mains: Vec<_> = members.iter().filter(|m| m.role == Role::Main).collect();
    let ends: Vec<_> = mains.iter().filter_map(over).collect();
    if mains.is_empty() || ends.len() < mains.len() {
        return None;
    }
    let succeeded = ends.iter().all(|exit| exit.code == 0);
    Some(if succeeded { Terminal { phase: Phase::Succeeded, ..failed } } else { failed })
}

fn run(pod: &Pod, world: &World, now: Timestamp, plan: &mut Plan) {
    plan.step(&world.volumes, now, Action::PrepareVolumes);
    plan.step(&world.sandbox, now, Action::CreateSandbox);
    let mut open = true;
    for member in shape(pod) {
        // Init containers stand one before the other; a sidecar that has died is restarted although later ones wait.
        let view = world.view(member.name());
        let done = init_done(member, &view);
        if open || !matches!(view.now, ContainerNow::Absent) {
            advance(pod, world, member, &view, now, plan);
        }
        open &= done;
    }
}

/// Brings one container closer to running.
fn advance(pod: &Pod, world: &World, member: Member<'_>, view: &ContainerView, now: Timestamp, plan: &mut Plan) {
    match &view.now {
        ContainerNow::Running { .. } => {
            let changed =
                view.image_name.is_some() && view.image_name != member.spec.image && member.role != Role::Init;
            if let Some(wish) = &view.kill {
                let own = wish.grace_seconds.map_or_else(|| grace(pod), SignedDuration::from_secs);
                stop_one(member, view, now, now + own, &wish.message, plan);
            } else if changed {
                let why = format!("Container {} definition changed, will be restarted", member.name());
                stop_one(member, view, now, now + grace(pod), &why, plan);
            }
        }
        ContainerNow::Absent => launch(world, member, view, view.attempt, now, plan),
        ContainerNow::Exited(exit) => {
            if !restarts(pod, member, exit.code) {
                return;
            }
            match view.backoff.until(exit.finished_at).filter(|until| *until > now) {
                Some(until) => {
                    plan.wake_at(until);
                    if !view.backoff.announced {
                        let container = member.name().to_owned();
                        plan.actions.push(Action::AnnounceBackoff { container: container.clone() });
                        plan.actions.push(Action::Record(Note {
                            kind: NoteKind::Warning,
                            reason: "BackOff",
                            message: format!("Back-off restarting failed container {container} in pod {}", title(pod)),
                            container: Some(container),
                        }));
                    }
                }
                None => launch(world, member, view, exit.attempt + 1, now, plan),
            }
        }
    }
}

/// `name_namespace(uid)`, as messages name a pod.
pub fn title(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// Starts a container when its image, the sandbox and the volumes are there; asks for the image meanwhile.
fn launch(world: &World, member: Member<'_>, view: &ContainerView, attempt: u32, now: Timestamp, plan: &mut Plan) {
    let container = member.name().to_owned();
    // An image that a former attempt ran is not pulled again, unless the spec names another one: a container must be
    // able to restart while the registry is out of reach.
    let stale = view.image_name.is_some() && view.image_name != member.spec.image;
    match &view.image {
        ImageStep::Present { .. } if !stale => {}
        ImageStep::Present { .. } | ImageStep::Unknown => return plan.actions.push(Action::PullImage { container }),
        ImageStep::Pulling { .. } => return,
        ImageStep::Failed(failure) if now >= failure.retry_at || stale => {
            return plan.actions.push(Action::PullImage { container });
        }
        ImageStep::Failed(failure) => {
            let shown = failure.at + SHOW_PULL_ERROR;
            return plan.wake_at(if now < shown { shown.min(failure.retry_at) } else { failure.retry_at });
        }
    }
    if world.sandbox == Step::Done && world.volumes == Step::Done {
        let again = matches!(view.now, ContainerNow::Exited(_));
        if again && !matches!(view.start, Step::Failed(_) | Step::Doing { .. }) {
            plan.actions.push(Action::StartContainer { container, attempt });
        } else {
            plan.step(&view.start, now, Action::StartContainer { container, attempt });
        }
    }
}

/// Brings one running container closer to its end.
fn stop_one(member: Member<'_>, view: &ContainerView, now: Timestamp, deadline: Timestamp, why: &str, plan: &mut Plan) {
    let container = member.name().to_owned();
    let hook = member.spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).is_some();
    let Some(stopping) = &view.stopping else {
        plan.actions.push(Action::Record(Note {
            kind: NoteKind::Normal,
            reason: "Killing",
            message: why.to_owned(),
            container: Some(container.clone()),
        }));
        plan.actions.push(if deadline <= now {
            Action::Kill { container }
        } else if hook {
            Action::PreStop { container, deadline }
        } else {
            Action::Terminate { container, deadline }
        });
        return;
    };
    // A second delete may shorten the grace period, never lengthen it; what follows a long hook is granted anyway.
    let extra = if hook { AFTER_HOOK } else { SignedDuration::ZERO };
    let deadline = stopping.deadline.min(deadline + extra);
    match stopping.stage {
        StopStage::PreStop if now < deadline => plan.wake_at(deadline),
        StopStage::PreStop | StopStage::PreStopDone => {
            plan.actions.push(Action::Terminate { container, deadline: deadline.max(now + AFTER_HOOK) });
        }
        StopStage::Terminating if now < deadline => plan.wake_at(deadline),
        StopStage::Terminating => plan.actions.push(Action::Kill { container }),
        StopStage::Killed if now < stopping.deadline => plan.wake_at(stopping.deadline),
        StopStage::Killed => plan.actions.push(Action::Kill { container }),
    }
}

/// Stops every container, main ones first, then sidecars from the last to the first; then tears the sandbox down.
fn stop_all(pod: &Pod, world: &World, now: Timestamp, deadline: Timestamp, plan: &mut Plan) {
    let members = shape(pod);
    let running = |member: &&Member<'_>| world.view(member.name()).running();
    let mut go = |member: &Member<'_>| {
        let why = format!("Stopping container {}", member.name());
        stop_one(*member, &world.view(member.name()), now, deadline, &why, plan);
    };
    let others: Vec<_> = members.iter().filter(|m| m.role != Role::Sidecar).filter(running).collect();
    if others.is_empty() {
        members.iter().rev().filter(|m| m.role == Role::Sidecar).find(running).into_iter().for_each(&mut go);
    } else {
        others.into_iter().for_each(&mut go);
    }
    // What is being created is waited for, so that it can be removed whole: its outcome wakes the worker.
    let busy = |step: &Step| matches!(step, Step::Doing { .. });
    if world.anything_alive() || busy(&world.sandbox) || busy(&world.volumes) {
        return;
    }
    plan.stopped = true;
    plan.clean = world.teardown == Step::Done;
    plan.step(&world.teardown, now, Action::Teardown);
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
