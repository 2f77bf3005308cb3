//! What an agent that has just started knows about a pod: from the pod's last status and from what the runtime still
//! has. Pure. Nothing that runs is touched: its view says it runs.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::{
    status::ID_SCHEME,
    world::{ContainerNow, ContainerView, Exit, ImageStep, Member, Phase, ProbeView, Step, Terminal, World, shape},
};
use crate::runtime::{self, ContainerState, RunState};

/// What the runtime has of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The sandbox is alive.
    pub sandbox: bool,
    pub containers: Vec<ContainerState>,
}

/// The world at the start of a pod's worker. `ran` is the spec that the containers were started from, where it is known.
pub fn recall(pod: &Pod, ran: Option<&Pod>, found: &Found, now: Timestamp) -> World {
    let status = pod.status.clone().unwrap_or_default();
    let mut world = World {
        started_at: status.start_time.as_ref().map(|t| t.0),
        ips: status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
        ..World::default()
    };
    let phase = match status.phase.as_deref() {
        Some("Succeeded") => Some(Phase::Succeeded),
        Some("Failed") => Some(Phase::Failed),
        _ => None,
    };
    world.terminal =
        phase.map(|phase| Terminal { phase, reason: status.reason.clone(), message: status.message.clone() });
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    // A sandbox without an address was left between its creation and its attachment: it is made anew.
    let whole = found.sandbox && (host_network || !world.ips.is_empty());
    if whole {
        world.sandbox = Step::Done;
    } else if world.terminal.is_none() {
        world.ips.clear();
    }
    let statuses: Vec<&ContainerStatus> =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten()).collect();
    for member in shape(pod) {
        let told = statuses.iter().find(|s| s.name == member.name()).copied();
        let mut view = view(member, told, found, now);
        if !whole && world.terminal.is_none() {
            view.lose(now);
        }
        let before = ran.map_or_else(Vec::new, shape).into_iter().find(|m| m.name() == member.name());
        view.image_name = match view.now {
            ContainerNow::Absent => None,
            _ => before.map_or_else(|| member.spec.image.clone(), |m| m.spec.image.clone()),
        };
        world.containers.insert(member.name().to_owned(), view);
    }
    world
}

fn view(member: Member<'_>, told: Option<&ContainerStatus>, found: &Found, now: Timestamp) -> ContainerView {
    let mut states: Vec<&ContainerState> = found.containers.iter().filter(|c| c.name == member.name()).collect();
    states.sort_by_key(|state| std::cmp::Reverse(state.attempt));
    let reference = told.map(|s| s.image_id.clone()).unwrap_or_default();
    let mut view = ContainerView {
        attempt: told.and_then(|s| u32::try_from(s.restart_count).ok()).unwrap_or(0),
        last: told.and_then(|s| s.last_state.as_ref()?.terminated.as_ref()).map(|t| exit_told(t, now)),
        ..ContainerView::default()
    };
    let mut states = states.into_iter();
    let Some(current) = states.next() else {
        view.now = told.map(|s| now_told(s, now)).unwrap_or_default();
        return view;
    };
    if let Some((RunState::Exited(exit), state)) = states.next().map(|s| (&s.state, s)) {
        view.last = Some(exit_seen(state, exit, None));
    }
    view.attempt = current.attempt;
    view.image = ImageStep::Present { id: current.image.clone(), reference };
    match &current.state {
        // It was never started; the worker removes it and starts the same attempt again.
        RunState::Created => {}
        RunState::Running { started_at } => {
            view.now = ContainerNow::Running { id: current.id.hex(), started_at: *started_at };
            view.start = Step::Done;
            // Until the first probe has answered, what was last known holds: a restart of the agent takes no endpoint away.
            let same = told.filter(|s| u32::try_from(s.restart_count).ok() == Some(current.attempt));
            view.probes = ProbeView {
                startup: same.and_then(|s| s.started).filter(|started| *started),
                readiness: same.map(|s| s.ready),
            };
        }
        RunState::Exited(exit) => {
            let message = told.and_then(|s| s.state.as_ref()?.terminated.as_ref()?.message.clone());
            view.now = ContainerNow::Exited(exit_seen(current, exit, message));
            view.start = Step::Done;
        }
    }
    view
}

/// An exit as the runtime tells it.
pub fn exit_seen(state: &ContainerState, exit: &runtime::Exit, message: Option<String>) -> Exit {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Exit {
        id: state.id.hex(),
        attempt: state.attempt,
        code: exit.code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at: exit.started_at,
        finished_at: exit.finished_at,
    }
}

fn now_told(status: &ContainerStatus, now: Timestamp) -> ContainerNow {
    let state = status.state.clone().unwrap_or_default();
    let id = status.container_id.as_deref().unwrap_or_default().trim_start_matches(ID_SCHEME).to_owned();
    match (state.running, state.terminated) {
        (Some(running), _) => ContainerNow::Running { id, started_at: running.started_at.map_or(now, |time| time.0) },
        (None, Some(terminated)) => ContainerNow::Exited(exit_told(&terminated, now)),
        (None, None) => match status.last_state.as_ref().and_then(|s| s.terminated.as_ref()) {
            // It was waiting for its next attempt.
            Some(terminated) => ContainerNow::Exited(exit_told(terminated, now)),
            None => ContainerNow::Absent,
        },
    }
}

fn exit_told(terminated: &ContainerStateTerminated, now: Timestamp) -> Exit {
    Exit {
        id: terminated.container_id.as_deref().unwrap_or_default().trim_start_matches(ID_SCHEME).to_owned(),
        attempt: 0,
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|t| t.0),
        finished_at: terminated.finished_at.as_ref().map_or(now, |t| t.0),
    }
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
