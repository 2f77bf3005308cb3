use serde_json::{Value, json};

use super::*;
use crate::runtime::ContainerId;

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).expect("a time")
}

fn pod(container: Value, phase: &str) -> Pod {
    let mut status = container;
    status["name"] = json!("c");
    status["image"] = json!("x");
    status["imageID"] = json!("x@1");
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "x"}]},
        "status": {"phase": phase, "podIPs": [{"ip": "10.244.0.2"}], "startTime": "1970-01-01T00:00:01Z", "containerStatuses": [status]},
    }))
    .expect("a pod")
}

fn state(attempt: u32, state: RunState) -> ContainerState {
    let id = ContainerId { pod_uid: "u".into(), name: "c".into(), attempt };
    ContainerState { id, name: "c".into(), attempt, pid: None, image: "sha256:1".into(), state }
}

fn running_status(count: i32) -> Value {
    json!({"ready": true, "started": true, "restartCount": count, "state": {"running": {"startedAt": "1970-01-01T00:00:02Z"}}, "containerID": "minik8s://old"})
}

fn exit(code: i32) -> runtime::Exit {
    runtime::Exit { code, signal: None, oom_killed: code == 137, started_at: None, finished_at: second(9) }
}

#[test]
fn what_runs_is_adopted() {
    let found = Found {
        sandbox: true,
        containers: vec![state(1, RunState::Exited(exit(137))), state(2, RunState::Running { started_at: second(5) })],
    };
    let pod = pod(running_status(2), "Running");
    let world = recall(&pod, Some(&pod), &found, second(10));
    let view = world.view("c");
    assert_eq!((&world.sandbox, world.ips.len(), world.started_at), (&Step::Done, 1, Some(second(1))));
    assert!(view.running() && view.start == Step::Done && view.attempt == 2);
    assert_eq!(view.last.as_ref().map(|e| (e.code, e.reason.as_str())), Some((137, "OOMKilled")));
    assert_eq!((view.probes.readiness, view.image_name.as_deref()), (Some(true), Some("x")));
    let plan = crate::pod::plan::plan(&pod, &world, second(10));
    let actions = plan.actions;
    assert_eq!(actions, [crate::pod::plan::Action::PrepareVolumes], "nothing that runs is touched");
}

#[test]
fn an_end_that_nobody_saw_is_seen() {
    let found = Found { sandbox: true, containers: vec![state(0, RunState::Exited(exit(3)))] };
    let world = recall(&pod(running_status(0), "Running"), None, &found, second(10));
    assert_eq!(world.view("c").exit().map(|e| e.code), Some(3));
}

#[test]
fn after_a_reboot_everything_starts_again_and_counts() {
    let world = recall(&pod(running_status(4), "Running"), None, &Found::default(), second(10));
    let view = world.view("c");
    assert_eq!((&world.sandbox, world.ips.is_empty(), view.attempt), (&Step::Idle, true, 5));
    assert_eq!(view.now, ContainerNow::Absent);
    assert_eq!(view.last.as_ref().map(|e| e.reason.clone()), Some("ContainerStatusUnknown".to_owned()));
}

#[test]
fn a_new_pod_has_no_past() {
    let status = json!({"ready": false, "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}});
    let world = recall(&pod(status, "Pending"), None, &Found::default(), second(10));
    let view = world.view("c");
    assert_eq!((view.attempt, view.last.clone(), view.now.clone()), (0, None, ContainerNow::Absent));
}

#[test]
fn a_pod_that_has_ended_stays_ended() {
    let status =
        json!({"ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let pod = pod(status, "Succeeded");
    let world = recall(&pod, None, &Found::default(), second(10));
    assert_eq!(world.terminal.as_ref().map(|t| t.phase), Some(Phase::Succeeded));
    assert_eq!(world.view("c").exit().map(|e| e.code), Some(0));
    assert!(!crate::pod::plan::plan(&pod, &world, second(10)).actions.iter().any(|a| {
        matches!(a, crate::pod::plan::Action::StartContainer { .. } | crate::pod::plan::Action::CreateSandbox)
    }));
}

#[test]
fn a_sandbox_without_an_address_is_made_anew() {
    let mut half = pod(running_status(0), "Running");
    half.status.as_mut().expect("a status").pod_ips = None;
    let found = Found { sandbox: true, containers: Vec::new() };
    assert_eq!(recall(&half, None, &found, second(10)).sandbox, Step::Idle);
}
