//! What `status` of a pod says: a pure function of the spec, what is known, and the status before.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
        HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    plan::{SHOW_PULL_ERROR, title},
    qos,
    world::{
        ContainerNow, ContainerView, Desired, Exit, ImageStep, Member, Phase, Role, Step, World, init_done, ready,
        restarts, shape, started,
    },
};

/// Prefix of container and image ids in status.
pub const ID_SCHEME: &str = "minik8s://";

/// The whole status that this node stands for. `host_ips` are the node's addresses.
pub fn status(pod: &Pod, world: &World, host_ips: &[String], previous: &PodStatus, now: Timestamp) -> PodStatus {
    let members = shape(pod);
    let phase = phase(world, &members);
    let of_role = |init: bool| -> Vec<ContainerStatus> {
        let chosen = members.iter().filter(|m| (m.role != Role::Main) == init);
        chosen.map(|member| container(pod, world, &members, *member, now)).collect()
    };
    let inits = of_role(true);
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let ips: Vec<String> = if host_network && world.started_at.is_some() {
        host_ips.to_vec()
    } else {
        world.ips.iter().map(ToString::to_string).collect()
    };
    let ips = if ips.is_empty() && !host_network { kept_ips(world, previous) } else { ips };
    let terminal = world.terminal.as_ref().filter(|_| matches!(phase, Phase::Failed | Phase::Succeeded));
    PodStatus {
        phase: Some(phase.name().to_owned()),
        conditions: Some(conditions(pod, world, &members, phase, previous, now)),
        container_statuses: Some(of_role(false)),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        host_ip: host_ips.first().cloned(),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        qos_class: previous.qos_class.clone().or_else(|| Some(qos::class(pod).to_owned())),
        start_time: world.started_at.map(Time),
        reason: terminal.and_then(|t| t.reason.clone()),
        message: terminal.and_then(|t| t.message.clone()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// A pod that has ended keeps showing the address it had.
fn kept_ips(world: &World, previous: &PodStatus) -> Vec<String> {
    if world.terminal.is_none() && world.desired == Desired::Run {
        return Vec::new();
    }
    previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

fn phase(world: &World, members: &[Member<'_>]) -> Phase {
    let exits = || members.iter().filter(|m| m.role == Role::Main).map(|m| world.view(m.name()));
    if !world.anything_alive() {
        if let Some(terminal) = &world.terminal {
            return terminal.phase;
        }
        if world.desired != Desired::Run {
            let good = exits().all(|view| view.exit().is_some_and(|exit| exit.code == 0));
            return if good { Phase::Succeeded } else { Phase::Failed };
        }
    }
    let never_ran =
        |view: &ContainerView| matches!(view.now, ContainerNow::Absent) && view.last.is_none() || starting(view);
    let init_pending = members.iter().filter(|m| m.role != Role::Main).any(|m| {
        !init_done(*m, &world.view(m.name())) && (m.role == Role::Init || world.view(m.name()).last.is_none())
    });
    let mains_ran = exits().any(|view| !never_ran(&view));
    if (init_pending && !mains_ran) || exits().any(|view| never_ran(&view)) {
        return Phase::Pending;
    }
    Phase::Running
}

/// The first attempt runs, but its post-start hook has not ended.
fn starting(view: &ContainerView) -> bool {
    view.running() && view.last.is_none() && matches!(view.start, Step::Doing { .. })
}

fn container(pod: &Pod, world: &World, members: &[Member<'_>], member: Member<'_>, now: Timestamp) -> ContainerStatus {
    let view = world.view(member.name());
    let (image, image_id) = match &view.image {
        ImageStep::Present { reference, .. } => (member.spec.image.clone().unwrap_or_default(), reference.clone()),
        ImageStep::Unknown | ImageStep::Pulling { .. } | ImageStep::Failed(_) => {
            (member.spec.image.clone().unwrap_or_default(), String::new())
        }
    };
    let mut last = view.last.clone();
    let state = match &view.now {
        ContainerNow::Running { .. } if starting(&view) => waiting(world, members, &view),
        ContainerNow::Running { started_at, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..ContainerState::default()
        },
        ContainerNow::Absent => match &view.image {
            ImageStep::Failed(failure) => pull_failure(member, failure, now),
            ImageStep::Unknown | ImageStep::Pulling { .. } | ImageStep::Present { .. } => {
                waiting(world, members, &view)
            }
        },
        ContainerNow::Exited(exit) => {
            let again = restarts(pod, member, exit.code) && world.desired == Desired::Run && world.terminal.is_none();
            match view.backoff.until(exit.finished_at).filter(|until| again && *until > now) {
                Some(_) => {
                    last = Some(exit.clone());
                    let delay = view.backoff.delay.as_secs();
                    let text = if delay < 60 { format!("{delay}s") } else { format!("{}m{}s", delay / 60, delay % 60) };
                    let message =
                        format!("back-off {text} restarting failed container={} pod={}", member.name(), title(pod));
                    wait("CrashLoopBackOff", Some(message))
                }
                None => terminated(exit),
            }
        }
    };
    let id = match &view.now {
        ContainerNow::Running { id, .. } => Some(id),
        ContainerNow::Exited(exit) => Some(&exit.id),
        ContainerNow::Absent => view.last.as_ref().map(|exit| &exit.id),
    };
    ContainerStatus {
        name: member.name().to_owned(),
        state: Some(state),
        last_state: Some(last.as_ref().map(terminated).unwrap_or_default()),
        ready: ready(member, &view) && !starting(&view),
        started: Some(started(member, &view)),
        restart_count: i32::try_from(view.attempt).unwrap_or(i32::MAX),
        image,
        image_id,
        container_id: id.map(|id| format!("{ID_SCHEME}{id}")),
        resources: member.spec.resources.clone(),
        ..ContainerStatus::default()
    }
}

fn wait(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn waiting(world: &World, members: &[Member<'_>], view: &ContainerView) -> ContainerState {
    if let Step::Failed(failure) = &view.start {
        return wait(&failure.reason, Some(failure.message.clone()));
    }
    let initializing = members.iter().any(|m| m.role != Role::Main && !init_done(*m, &world.view(m.name())));
    wait(if initializing { "PodInitializing" } else { "ContainerCreating" }, None)
}

fn pull_failure(member: Member<'_>, failure: &super::world::Failure, now: Timestamp) -> ContainerState {
    let image = member.spec.image.as_deref().unwrap_or_default();
    if failure.reason == "ErrImagePull" && now >= failure.at + SHOW_PULL_ERROR {
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", failure.message);
        return wait("ImagePullBackOff", Some(message));
    }
    wait(&failure.reason, Some(failure.message.clone()))
}

fn terminated(exit: &Exit) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{ID_SCHEME}{}", exit.id)),
            exit_code: exit.code,
            signal: exit.signal,
            reason: Some(exit.reason.clone()),
            message: exit.message.clone(),
            started_at: exit.started_at.map(Time),
            finished_at: Some(Time(exit.finished_at)),
        }),
        ..ContainerState::default()
    }
}

/// A condition before its times are filled in.
struct Draft {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    pod: &Pod,
    world: &World,
    members: &[Member<'_>],
    phase: Phase,
    previous: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let drafts = drafts(pod, world, members, phase);
    let before = previous.conditions.as_deref().unwrap_or_default();
    drafts
        .into_iter()
        .map(|draft| {
            let status = if draft.holds { "True" } else { "False" };
            let old = before.iter().find(|c| c.type_ == draft.kind && c.status == status);
            PodCondition {
                type_: draft.kind.to_owned(),
                status: status.to_owned(),
                reason: draft.reason.map(str::to_owned),
                message: draft.message,
                last_transition_time: old.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
                last_probe_time: None,
                observed_generation: pod.metadata.generation,
            }
        })
        .collect()
}

fn drafts(pod: &Pod, world: &World, members: &[Member<'_>], phase: Phase) -> Vec<Draft> {
    let names = |wanted: &dyn Fn(&Member<'_>) -> bool| -> Vec<&str> {
        members.iter().filter(|m| wanted(m)).map(Member::name).collect()
    };
    let ended = match phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        Phase::Pending | Phase::Running => None,
    };
    let uninitialized =
        names(&|m| m.role != Role::Main && !init_done(*m, &world.view(m.name())) && ended != Some("PodCompleted"));
    // Once main containers run, a sidecar that restarts does not undo the pod's initialization.
    let mains_ran = members
        .iter()
        .filter(|m| m.role == Role::Main)
        .any(|m| !matches!(world.view(m.name()).now, ContainerNow::Absent) || world.view(m.name()).last.is_some());
    let initialized = uninitialized.is_empty() || mains_ran;
    let unready = names(&|m| m.role != Role::Init && !ready(*m, &world.view(m.name())));
    let containers_ready = ended.is_none() && unready.is_empty();
    let (unready_reason, unready_message) = match ended {
        Some(reason) => (Some(reason), None),
        None => (Some("ContainersNotReady"), Some(format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    // Gates are conditions of others: they are read from the object, not from what this node wrote.
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let open = |kind: &str| conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let shut = gates.iter().filter(|gate| !open(&gate.condition_type)).count();
    let ready = match (containers_ready, shut) {
        (true, 0) => Draft { kind: "Ready", holds: true, reason: None, message: None },
        (true, _) => {
            let message = format!("the status of {shut} pod readiness gate(s) is not \"True\"");
            Draft { kind: "Ready", holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(message) }
        }
        (false, _) => Draft { kind: "Ready", holds: false, reason: unready_reason, message: unready_message.clone() },
    };
    let init_message = format!("containers with incomplete status: [{}]", uninitialized.join(" "));
    vec![
        Draft {
            kind: "PodReadyToStartContainers",
            holds: world.sandbox == Step::Done && world.teardown != Step::Done,
            reason: None,
            message: None,
        },
        Draft {
            kind: "Initialized",
            holds: initialized,
            reason: if initialized { ended.filter(|r| *r == "PodCompleted") } else { Some("ContainersNotInitialized") },
            message: (!initialized).then_some(init_message),
        },
        ready,
        Draft {
            kind: "ContainersReady",
            holds: containers_ready,
            reason: if containers_ready { None } else { unready_reason },
            message: if containers_ready { None } else { unready_message },
        },
        Draft { kind: "PodScheduled", holds: true, reason: None, message: None },
    ]
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
