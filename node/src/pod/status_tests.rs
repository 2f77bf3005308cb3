use serde_json::{Value, json};

use super::*;
use crate::pod::world::{Backoff, Failure, Terminal};

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + n).expect("a time")
}

fn pod(spec: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "ns", "uid": "u", "generation": 3});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("a pod")
}

fn world() -> World {
    World {
        started_at: Some(second(0)),
        sandbox: Step::Done,
        ips: vec!["10.244.0.2".parse().expect("ip")],
        ..World::default()
    }
}

fn running() -> ContainerView {
    ContainerView {
        now: ContainerNow::Running { id: "abc".into(), started_at: second(1) },
        start: Step::Done,
        image: ImageStep::Present { id: "sha256:1".into(), reference: "x@sha256:2".into() },
        ..ContainerView::default()
    }
}

fn exited(code: i32) -> ContainerView {
    let exit = Exit {
        id: "abc".into(),
        attempt: 0,
        code,
        signal: None,
        reason: if code == 0 { "Completed".into() } else { "Error".into() },
        message: None,
        started_at: Some(second(1)),
        finished_at: second(5),
    };
    ContainerView { now: ContainerNow::Exited(exit), ..running() }
}

fn told(pod: &Pod, world: &World, now: i64) -> Value {
    let hosts = ["192.0.2.1".to_owned()];
    serde_json::to_value(status(pod, world, &hosts, &PodStatus::default(), second(now))).expect("JSON")
}

/// `Ready=False:ContainersNotReady` and so on.
fn conditions(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let show = |c: &Value| match c.get("reason") {
        Some(reason) => format!("{}={}:{}", text(&c["type"]), text(&c["status"]), text(reason)),
        None => format!("{}={}", text(&c["type"]), text(&c["status"])),
    };
    status["conditions"].as_array().expect("conditions").iter().map(show).collect()
}

#[test]
fn a_running_pod_is_ready() {
    let pod = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    let mut world = world();
    world.containers.insert("c".into(), running());
    let status = told(&pod, &world, 9);
    assert_eq!(status["phase"], "Running");
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.244.0.2"), &json!("192.0.2.1")));
    assert_eq!(status["observedGeneration"], 3);
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True"
        ]
    );
    assert_eq!(
        status["containerStatuses"][0],
        json!({
            "name": "c", "image": "x", "imageID": "x@sha256:2", "containerID": "minik8s://abc", "ready": true,
            "started": true, "restartCount": 0, "lastState": {}, "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
        })
    );
}

#[test]
fn waiting_says_what_for() {
    let failure = |reason: &str| Failure::new(reason, "why".into(), 0, second(0));
    let image = |reason: &str| ContainerView { image: ImageStep::Failed(failure(reason)), ..ContainerView::default() };
    let create =
        ContainerView { start: Step::Failed(failure("CreateContainerConfigError")), ..ContainerView::default() };
    let backoff = ContainerView {
        backoff: Backoff { delay: jiff::SignedDuration::from_secs(80), updated: Some(second(1)), announced: true },
        attempt: 4,
        ..exited(1)
    };
    // (the container, seconds since, reason, message)
    let table = [
        (ContainerView::default(), 1, "ContainerCreating", Value::Null),
        (image("ErrImagePull"), 1, "ErrImagePull", json!("why")),
        (image("ErrImagePull"), 4, "ImagePullBackOff", json!("Back-off pulling image \"x\": ErrImagePull: why")),
        (image("InvalidImageName"), 9, "InvalidImageName", json!("why")),
        (create, 1, "CreateContainerConfigError", json!("why")),
        (backoff, 6, "CrashLoopBackOff", json!("back-off 1m20s restarting failed container=c pod=p_ns(u)")),
    ];
    let pod = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    for (view, now, reason, message) in table {
        let mut world = world();
        world.containers.insert("c".into(), view);
        let status = told(&pod, &world, now);
        let waiting = &status["containerStatuses"][0]["state"]["waiting"];
        assert_eq!((&waiting["reason"], &waiting["message"]), (&json!(reason), &message));
        let phase = if reason == "CrashLoopBackOff" { "Running" } else { "Pending" };
        assert_eq!(status["phase"], phase, "{reason}");
        let ready = conditions(&status)[2].clone();
        assert_eq!(ready, "Ready=False:ContainersNotReady");
    }
}

#[test]
fn a_crash_shows_the_end_before() {
    let pod = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    let mut world = world();
    let mut view = exited(3);
    view.backoff = Backoff { delay: jiff::SignedDuration::from_secs(10), updated: Some(second(1)), announced: true };
    world.containers.insert("c".into(), view);
    let status = told(&pod, &world, 6);
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let pod = pod(json!({
        "initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "c", "image": "x"}],
    }));
    let mut world = world();
    world.containers.insert("i".into(), running());
    let status = told(&pod, &world, 2);
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(conditions(&status)[1], "Initialized=False:ContainersNotInitialized");
    world.containers.insert("i".into(), exited(0));
    world.containers.insert("c".into(), running());
    let status = told(&pod, &world, 2);
    assert_eq!((&status["phase"], conditions(&status)[1].as_str()), (&json!("Running"), "Initialized=True"));
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
}

#[test]
fn probes_and_gates_decide_readiness() {
    let probe = json!({"exec": {"command": ["x"]}});
    let spec = json!({
        "containers": [{"name": "c", "image": "x", "readinessProbe": probe, "startupProbe": probe}],
        "readinessGates": [{"conditionType": "example.org/gate"}],
    });
    let mut pod = pod(spec);
    let mut world = world();
    let mut see = |startup: Option<bool>, readiness: Option<bool>, pod: &Pod| {
        let mut view = running();
        view.probes.startup = startup;
        view.probes.readiness = readiness;
        world.containers.insert("c".into(), view);
        let status = told(pod, &world, 2);
        let container = &status["containerStatuses"][0];
        (container["started"] == true, container["ready"] == true, conditions(&status)[2].clone())
    };
    let unready = || "Ready=False:ContainersNotReady".to_owned();
    assert_eq!(see(None, None, &pod), (false, false, unready()));
    assert_eq!(see(Some(true), None, &pod), (true, false, unready()));
    assert_eq!(see(Some(true), Some(false), &pod), (true, false, unready()));
    assert_eq!(see(Some(true), Some(true), &pod), (true, true, "Ready=False:ReadinessGatesNotReady".to_owned()));
    let gate = json!({"conditions": [{"type": "example.org/gate", "status": "True"}]});
    pod.status = Some(serde_json::from_value(gate).expect("a status"));
    assert_eq!(see(Some(true), Some(true), &pod), (true, true, "Ready=True".to_owned()));
}

#[test]
fn ends_are_phases() {
    let pod = pod(
        json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}], "restartPolicy": "Never"}),
    );
    let terminal = |phase| Some(Terminal { phase, reason: Some("Why".into()), message: None });
    let stop = Desired::Stop { since: second(0), grace_seconds: 30 };
    // (a, b, terminal, desired, phase, reason of Ready)
    let table = [
        (exited(0), running(), None, Desired::Run, "Running", "ContainersNotReady"),
        (exited(0), exited(0), terminal(Phase::Succeeded), Desired::Run, "Succeeded", "PodCompleted"),
        (exited(0), exited(1), terminal(Phase::Failed), Desired::Run, "Failed", "PodFailed"),
        (exited(0), running(), terminal(Phase::Failed), Desired::Run, "Running", "ContainersNotReady"),
        (exited(0), exited(137), None, stop.clone(), "Failed", "PodFailed"),
        (exited(0), exited(0), None, stop, "Succeeded", "PodCompleted"),
    ];
    for (a, b, terminal, desired, phase, reason) in table {
        let mut world = World { terminal, desired, ..world() };
        world.containers.insert("a".into(), a);
        world.containers.insert("b".into(), b);
        let status = told(&pod, &world, 6);
        assert_eq!(status["phase"], phase);
        assert_eq!(conditions(&status)[2], format!("Ready=False:{reason}"));
    }
}

#[test]
fn transitions_keep_their_times() {
    let pod = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    let mut world = world();
    let first = status(&pod, &world, &[], &PodStatus::default(), second(1));
    world.containers.insert("c".into(), running());
    let next = status(&pod, &world, &[], &first, second(2));
    let times = |status: &PodStatus| -> Vec<i64> {
        let second = |c: &PodCondition| c.last_transition_time.as_ref().map_or(0, |t| t.0.as_second() - 1_767_225_600);
        status.conditions.iter().flatten().map(second).collect()
    };
    assert_eq!(times(&first), [1, 1, 1, 1, 1]);
    assert_eq!(times(&next), [1, 1, 2, 2, 1]);
}
