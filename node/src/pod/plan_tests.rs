//! Whole plans over the life of pods: a world of values, a clock of values, and a script of what happens.

use serde_json::{Value, json};

use super::*;
use crate::pod::world::{Exit, Failure, KillWish};

struct Life {
    pod: Pod,
    world: World,
    now: Timestamp,
}

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + n).expect("a time")
}

impl Life {
    fn new(spec: Value) -> Life {
        let meta = json!({"name": "p", "namespace": "ns", "uid": "u"});
        let pod = serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("a pod");
        Life { pod, world: World { started_at: Some(second(0)), ..World::default() }, now: second(0) }
    }

    /// Everything that is planned from here until nothing more is, marked as begun.
    fn plan(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        for _ in 0..20 {
            let plan = plan(&self.pod, &self.world, self.now);
            if plan.actions.is_empty() {
                return out;
            }
            for action in plan.actions {
                self.world.mark(&self.pod, &action, self.now);
                out.push(show(&action));
            }
        }
        panic!("no rest: {out:?}");
    }

    fn wake(&self) -> Option<i64> {
        plan(&self.pod, &self.world, self.now).wake.map(|at| at.as_second() - 1_000_000)
    }

    fn at(&mut self, n: i64) -> &mut Life {
        self.now = second(n);
        self
    }

    fn ready(&mut self) -> &mut Life {
        self.world.volumes = Step::Done;
        self.world.sandbox = Step::Done;
        self
    }

    fn image(&mut self, name: &str) -> &mut Life {
        self.world.view_mut(name).image = ImageStep::Present { id: "sha256:1".into(), reference: "r".into() };
        self
    }

    fn runs(&mut self, name: &str) -> &mut Life {
        let now = self.now;
        let view = self.world.view_mut(name);
        view.start = Step::Done;
        view.now = ContainerNow::Running { id: "id".into(), started_at: now };
        self
    }

    fn exits(&mut self, name: &str, code: i32) -> &mut Life {
        let now = self.now;
        let view = self.world.view_mut(name);
        let attempt = view.attempt;
        view.stopping = None;
        view.kill = None;
        view.now = ContainerNow::Exited(Exit {
            id: "id".into(),
            attempt,
            code,
            signal: None,
            reason: "Error".into(),
            message: None,
            started_at: None,
            finished_at: now,
        });
        self
    }

    fn stop(&mut self, grace_seconds: i64) -> &mut Life {
        self.world.desired = Desired::Stop { since: self.now, grace_seconds };
        self
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::PrepareVolumes => "volumes".into(),
        Action::CreateSandbox => "sandbox".into(),
        Action::PullImage { container } => format!("pull {container}"),
        Action::StartContainer { container, attempt } => format!("start {container} {attempt}"),
        Action::PreStop { container, .. } => format!("prestop {container}"),
        Action::Terminate { container, .. } => format!("term {container}"),
        Action::Kill { container } => format!("kill {container}"),
        Action::Finish(terminal) => format!("finish {}", terminal.phase.name()),
        Action::Teardown => "teardown".into(),
        Action::AnnounceBackoff { container } => format!("announce {container}"),
        Action::Record(note) => format!("event {}", note.reason),
    }
}

#[test]
fn a_pod_starts_everything_at_once() {
    let mut life = Life::new(json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}));
    assert_eq!(life.plan(), ["volumes", "sandbox", "pull a", "pull b"]);
    assert_eq!(life.image("a").plan(), Vec::<String>::new());
    assert_eq!(life.ready().plan(), ["start a 0"]);
    assert_eq!(life.image("b").plan(), ["start b 0"]);
    assert_eq!(life.runs("a").runs("b").plan(), Vec::<String>::new());
    assert_eq!(life.wake(), None);
}

#[test]
fn init_containers_go_one_by_one_and_sidecars_stay() {
    let mut life = Life::new(json!({
        "initContainers": [
            {"name": "i1", "image": "x"},
            {"name": "side", "image": "x", "restartPolicy": "Always"},
            {"name": "i2", "image": "x"},
        ],
        "containers": [{"name": "main", "image": "x"}],
        "restartPolicy": "Never",
    }));
    assert_eq!(life.plan(), ["volumes", "sandbox", "pull i1"]);
    assert_eq!(life.ready().image("i1").plan(), ["start i1 0"]);
    assert_eq!(life.runs("i1").plan(), Vec::<String>::new());
    assert_eq!(life.exits("i1", 0).plan(), ["pull side"]);
    assert_eq!(life.image("side").plan(), ["start side 0"]);
    assert_eq!(life.runs("side").plan(), ["pull i2"]);
    life.image("i2").plan();
    assert_eq!(life.runs("i2").exits("i2", 0).plan(), ["pull main"]);
    life.image("main").plan();
    // A sidecar that dies comes back at once, whatever the pod's policy.
    assert_eq!(life.runs("main").exits("side", 1).plan(), ["start side 1"]);
    life.runs("side");
    // When the main container has ended, the pod has: the sidecar is stopped, then all is torn down.
    assert_eq!(life.exits("main", 0).plan(), ["finish Succeeded", "event Killing", "term side"]);
    assert_eq!(life.exits("side", 143).plan(), ["teardown"]);
}

#[test]
fn a_failed_init_container_follows_the_policy() {
    let spec = |policy: &str| json!({"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "c", "image": "x"}], "restartPolicy": policy});
    let mut life = Life::new(spec("Never"));
    life.plan();
    life.ready().image("i").plan();
    assert_eq!(life.runs("i").exits("i", 1).plan(), ["finish Failed", "teardown"]);
    let mut life = Life::new(spec("Always"));
    life.plan();
    life.ready().image("i").plan();
    assert_eq!(life.runs("i").exits("i", 1).plan(), ["start i 1"]);
}

#[test]
fn restarts_back_off_and_are_forgiven() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    assert_eq!(life.ready().image("c").plan(), ["start c 0"]);
    assert_eq!(life.runs("c").at(1).exits("c", 1).plan(), ["start c 1"], "the first restart is at once");
    assert_eq!(life.runs("c").at(2).exits("c", 1).plan(), ["announce c", "event BackOff"]);
    assert_eq!(life.wake(), Some(12));
    assert_eq!(life.at(11).plan(), Vec::<String>::new());
    assert_eq!(life.at(12).plan(), ["start c 2"]);
    life.runs("c").at(13).exits("c", 0).plan();
    assert_eq!(life.wake(), Some(33), "the delay doubles, also after success");
    life.at(33).plan();
    for _ in 0..10 {
        life.runs("c").exits("c", 1).plan();
        let at = life.wake().expect("a wait");
        life.at(at).plan();
    }
    let from = life.now.as_second() - 1_000_000;
    life.runs("c").exits("c", 1).plan();
    assert_eq!(life.wake(), Some(from + 300), "the delay has a limit");
    life.at(from + 300).plan();
    assert_eq!(life.runs("c").at(from + 1000).exits("c", 1).plan().last().map(String::as_str), Some("start c 15"));
}

#[test]
fn policies_decide_what_an_end_means() {
    // (policy, exit code, what is planned)
    let table = [
        ("Always", 0, vec!["start c 1"]),
        ("Always", 1, vec!["start c 1"]),
        ("OnFailure", 0, vec!["finish Succeeded", "teardown"]),
        ("OnFailure", 1, vec!["start c 1"]),
        ("Never", 0, vec!["finish Succeeded", "teardown"]),
        ("Never", 1, vec!["finish Failed", "teardown"]),
    ];
    for (policy, code, expected) in table {
        let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}], "restartPolicy": policy}));
        life.plan();
        life.ready().image("c").plan();
        assert_eq!(life.runs("c").exits("c", code).plan(), expected, "{policy} {code}");
    }
}

#[test]
fn failures_are_retried_when_due() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    life.ready();
    let now = life.now;
    life.world.view_mut("c").image = ImageStep::Failed(Failure::pull("ErrImagePull", "no".into(), 0, now));
    assert_eq!((life.plan(), life.wake()), (Vec::new(), Some(3)), "woken to show the back-off");
    assert_eq!((life.at(3).plan(), life.wake()), (Vec::new(), Some(10)));
    assert_eq!(life.at(10).plan(), ["pull c"]);
    life.image("c").plan();
    let failure = Failure::new("CreateContainerConfigError", "no such map".into(), 5, second(10));
    life.world.view_mut("c").start = Step::Failed(failure);
    assert_eq!((life.plan(), life.wake()), (Vec::new(), Some(26)));
    assert_eq!(life.at(26).plan(), ["start c 0"]);
}

#[test]
fn deletion_is_graceful_and_then_not() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    life.ready().image("c").plan();
    life.runs("c");
    assert_eq!(life.stop(30).plan(), ["event Killing", "term c"]);
    assert_eq!((life.at(29).plan(), life.wake()), (Vec::new(), Some(30)));
    assert_eq!(life.at(30).plan(), ["kill c"]);
    assert_eq!(life.at(35).plan(), ["kill c"], "a signal may have got lost");
    assert_eq!(life.exits("c", 137).plan(), ["teardown"]);
    let done = plan(&life.pod, &life.world, life.now);
    assert!(done.stopped && !done.clean);
    life.world.teardown = Step::Done;
    assert!(plan(&life.pod, &life.world, life.now).clean);

    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    life.ready().image("c").plan();
    assert_eq!(life.runs("c").stop(0).plan(), ["event Killing", "kill c"]);
}

#[test]
fn a_second_delete_shortens_the_grace() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    life.ready().image("c").plan();
    life.runs("c").stop(30).plan();
    life.world.desired = Desired::Stop { since: second(0), grace_seconds: 5 };
    assert_eq!((life.at(4).plan(), life.wake()), (Vec::new(), Some(5)));
    assert_eq!(life.at(5).plan(), ["kill c"]);
}

#[test]
fn pre_stop_comes_before_the_signal() {
    let hook = json!({"preStop": {"exec": {"command": ["x"]}}});
    let spec = json!({"containers": [{"name": "c", "image": "x", "lifecycle": hook}]});
    let start = || {
        let mut life = Life::new(spec.clone());
        life.plan();
        life.ready().image("c").plan();
        life.runs("c").stop(10);
        assert_eq!(life.plan(), ["event Killing", "prestop c"]);
        life
    };
    let mut life = start();
    life.world.view_mut("c").stopping.as_mut().expect("stopping").stage = StopStage::PreStopDone;
    assert_eq!(life.at(1).plan(), ["term c"]);
    assert_eq!(life.at(10).plan(), ["kill c"]);

    let mut life = start();
    assert_eq!(life.at(10).plan(), ["term c"], "a hook that takes too long is not waited for");
    assert_eq!(life.at(11).plan(), Vec::<String>::new());
    assert_eq!(life.at(12).plan(), ["kill c"]);
}

#[test]
fn sidecars_end_after_the_others_and_in_reverse() {
    let mut life = Life::new(json!({
        "initContainers": [
            {"name": "s1", "image": "x", "restartPolicy": "Always"},
            {"name": "s2", "image": "x", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}],
    }));
    life.plan();
    life.ready();
    for name in ["s1", "s2", "a", "b"] {
        life.image(name).plan();
        life.runs(name).plan();
    }
    assert_eq!(life.stop(30).plan(), ["event Killing", "term a", "event Killing", "term b"]);
    assert_eq!(life.exits("a", 0).plan(), Vec::<String>::new());
    assert_eq!(life.exits("b", 0).plan(), ["event Killing", "term s2"]);
    assert_eq!(life.exits("s2", 0).plan(), ["event Killing", "term s1"]);
    assert_eq!(life.exits("s1", 0).plan(), ["teardown"]);
}

#[test]
fn what_is_being_made_is_waited_for() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    assert_eq!(life.stop(30).plan(), Vec::<String>::new(), "sandbox and volumes are under way");
    assert_eq!(life.ready().plan(), ["teardown"]);

    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}]}));
    life.plan();
    assert_eq!(life.ready().image("c").plan(), ["start c 0"]);
    assert_eq!(life.stop(30).plan(), Vec::<String>::new(), "the container is being created");
    assert_eq!(life.runs("c").plan(), ["event Killing", "term c"]);
}

#[test]
fn a_deadline_ends_the_pod() {
    let mut life = Life::new(json!({
        "containers": [{"name": "c", "image": "x"}], "activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 5,
    }));
    life.plan();
    life.ready().image("c").plan();
    assert_eq!((life.runs("c").plan(), life.wake()), (Vec::new(), Some(60)));
    assert_eq!(life.at(60).plan(), ["finish Failed", "event Killing", "term c"]);
    assert_eq!(life.at(65).plan(), ["kill c"]);
    assert_eq!(life.exits("c", 137).plan(), ["teardown"], "nothing restarts after the end");
    assert_eq!(life.world.terminal.as_ref().and_then(|t| t.reason.as_deref()), Some("DeadlineExceeded"));
}

#[test]
fn unhealthy_and_changed_containers_are_replaced() {
    let mut life = Life::new(json!({"containers": [{"name": "c", "image": "x"}], "terminationGracePeriodSeconds": 30}));
    life.plan();
    life.ready().image("c").plan();
    life.runs("c").plan();
    life.world.view_mut("c").kill = Some(KillWish { message: "liveness".into(), grace_seconds: Some(1) });
    assert_eq!(life.plan(), ["event Killing", "term c"]);
    assert_eq!(life.at(1).plan(), ["kill c"]);
    assert_eq!(life.exits("c", 137).plan(), ["start c 1"]);
    life.runs("c").plan();

    life.pod.spec.as_mut().expect("a spec").containers[0].image = Some("y".into());
    assert_eq!(life.plan(), ["event Killing", "term c"]);
    assert_eq!(life.at(900).exits("c", 143).plan(), ["pull c"], "the new image is fetched first");
    assert_eq!(life.image("c").plan(), ["start c 2"]);
    assert_eq!(life.runs("c").plan(), Vec::<String>::new());
}

#[test]
fn a_lost_sandbox_begins_everything_again() {
    let mut life = Life::new(json!({
        "initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "c", "image": "x"}],
    }));
    life.plan();
    life.ready().image("i").plan();
    life.runs("i").exits("i", 0).image("c").plan();
    life.runs("c").plan();
    let now = life.now;
    life.world.lose_sandbox(now);
    assert_eq!(life.plan(), ["sandbox"]);
    assert_eq!(life.ready().plan(), ["start i 1"]);
    life.runs("i");
    assert_eq!(life.exits("i", 0).plan(), ["start c 1"]);
}
