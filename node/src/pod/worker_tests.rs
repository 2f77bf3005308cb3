//! A worker against a runtime and an API that are values in memory, and that fail when told to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use client::{Client, Transport, transport::Answer};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::{sync::broadcast, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    backend::{ContainerRuntime, Doing, PodNetwork},
    events::Recorder,
    image::{Auth, Image, ImageConfig, ImageError, PullPolicy},
    netfiles::ClusterDns,
    paths::Paths,
    runtime::{
        AttachSpec, ContainerSpec, ContainerState, Error, ExecOutput, ExecSession, ExecSpec, ExitStatus, RuntimeChange,
        RuntimeEvent, Sandbox, SandboxSpec,
    },
};

/// Of the object before the first write of its status.
const REVISION: u32 = 5;
/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Memory {
    sandboxes: BTreeSet<String>,
    containers: BTreeMap<(String, u32), RunState>,
    /// Operations that fail, and how often still.
    faults: HashMap<&'static str, u32>,
    done: Vec<String>,
    /// SIGTERM is ignored.
    stubborn: bool,
}

struct Double {
    memory: Mutex<Memory>,
    events: broadcast::Sender<RuntimeEvent>,
    changed: Notify,
}

impl Double {
    fn step(&self, operation: &'static str, subject: &str) -> Result<std::sync::MutexGuard<'_, Memory>, Error> {
        let mut memory = self.memory.lock().expect("unpoisoned");
        if let Some(left) = memory.faults.get_mut(operation).filter(|left| **left > 0) {
            *left -= 1;
            let (subject, message) = (subject.to_owned(), "told to fail".to_owned());
            return Err(Error::Shim { operation, subject, message });
        }
        memory.done.push(format!("{operation} {subject}"));
        self.changed.notify_waiters();
        Ok(memory)
    }

    fn end(&self, name: &str, code: i32) {
        let mut memory = self.memory.lock().expect("unpoisoned");
        let current = memory.containers.iter_mut().filter(|((n, _), _)| n == name).last();
        let ((_, attempt), state) = current.expect("a container");
        *state = RunState::Exited(crate::runtime::Exit {
            code,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
        });
        let what = RuntimeChange::Exited { name: name.to_owned(), attempt: *attempt };
        let _ = self.events.send(RuntimeEvent { pod_uid: "u".to_owned(), what });
    }

    fn count(&self, wanted: &str) -> usize {
        self.memory.lock().expect("unpoisoned").done.iter().filter(|done| done.as_str() == wanted).count()
    }
}

impl ContainerRuntime for Double {
    fn pull<'a>(&'a self, image: &'a str, _: Option<Auth>, _: PullPolicy) -> Doing<'a, Image, ImageError> {
        Box::pin(async move {
            let failed = |error: Error| ImageError::Pull { image: image.to_owned(), message: error.to_string() };
            drop(self.step("pull", image).map_err(failed)?);
            let (id, digest) = ("sha256:1".to_owned(), "sha256:2".to_owned());
            let (config, layers) = (ImageConfig::default(), Vec::new());
            Ok(Image { id, digest, reference: "docker.io/library/x:1".to_owned(), config, layers, size: 1 })
        })
    }

    fn image(&self, _: &str) -> Option<Image> {
        None
    }

    fn create_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Doing<'a, Sandbox> {
        Box::pin(async move {
            let mut memory = self.step("sandbox", &spec.uid)?;
            assert!(memory.sandboxes.insert(spec.uid.clone()), "a pod has one sandbox");
            let (uid, spec) = (spec.uid.clone(), spec.clone());
            Ok(Sandbox { uid, spec, netns: Some(PathBuf::from("/netns")), state: SandboxState::Ready })
        })
    }

    fn sandboxes(&self) -> Doing<'_, Vec<Sandbox>> {
        Box::pin(async {
            drop(self.step("list", "sandboxes")?);
            Ok(Vec::new())
        })
    }

    fn remove_sandbox<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            {
                let mut memory = self.step("unsandbox", pod_uid)?;
                memory.sandboxes.remove(pod_uid);
                memory.containers.clear();
            }
            // The shim goes while the removal is still under way.
            let what = RuntimeChange::ShimLost;
            let _ = self.events.send(RuntimeEvent { pod_uid: pod_uid.to_owned(), what });
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    fn create_container<'a>(&'a self, spec: &'a ContainerSpec) -> Doing<'a, ContainerId> {
        Box::pin(async move {
            let mut memory = self.step("create", &spec.name)?;
            assert!(memory.sandboxes.contains(&spec.pod_uid), "a container needs a sandbox");
            let fresh = memory.containers.insert((spec.name.clone(), spec.attempt), RunState::Created);
            assert_eq!(fresh, None, "an attempt is created once");
            Ok(ContainerId { pod_uid: spec.pod_uid.clone(), name: spec.name.clone(), attempt: spec.attempt })
        })
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()> {
        Box::pin(async move {
            let mut memory = self.step("start", &id.name)?;
            let state = RunState::Running { started_at: Timestamp::now() };
            memory.containers.insert((id.name.clone(), id.attempt), state);
            Ok(())
        })
    }

    fn signal<'a>(&'a self, id: &'a ContainerId, signal: i32) -> Doing<'a, ()> {
        Box::pin(async move {
            let stubborn = self.step("signal", &format!("{} {signal}", id.name))?.stubborn;
            if signal == 9 || !stubborn {
                self.end(&id.name, 128 + signal);
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> Doing<'a, ()> {
        Box::pin(async move {
            self.step("remove", &id.local())?.containers.remove(&(id.name.clone(), id.attempt));
            Ok(())
        })
    }

    fn status<'a>(&'a self, pod_uid: &'a str) -> Doing<'a, Vec<ContainerState>> {
        Box::pin(async move {
            let memory = self.memory.lock().expect("unpoisoned");
            let show = |((name, attempt), state): (&(String, u32), &RunState)| ContainerState {
                id: ContainerId { pod_uid: pod_uid.to_owned(), name: name.clone(), attempt: *attempt },
                name: name.clone(),
                attempt: *attempt,
                pid: None,
                image: "sha256:1".to_owned(),
                state: state.clone(),
            };
            Ok(memory.containers.iter().map(show).collect())
        })
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    fn exec<'a>(&'a self, id: &'a ContainerId, _: ExecSpec) -> Doing<'a, ExecSession> {
        Box::pin(async move { Err(Error::NoSandbox { uid: id.pod_uid.clone() }) })
    }

    fn exec_sync<'a>(&'a self, id: &'a ContainerId, command: &'a [String], _: Duration) -> Doing<'a, ExecOutput> {
        Box::pin(async move {
            drop(self.step("exec", &format!("{} {}", id.name, command.join(" ")))?);
            Ok(ExecOutput { status: ExitStatus { code: 0 }, stdout: Vec::new(), stderr: Vec::new() })
        })
    }

    fn attach<'a>(&'a self, id: &'a ContainerId, _: AttachSpec) -> Doing<'a, ExecSession> {
        Box::pin(async move { Err(Error::NoSandbox { uid: id.pod_uid.clone() }) })
    }
}

struct Cable;

impl PodNetwork for Cable {
    fn attach(&self, _: PathBuf, _: String) -> Doing<'_, IpAddr, String> {
        Box::pin(async { Ok(IpAddr::from([10, 244, 0, 9])) })
    }

    fn detach(&self, _: String) -> Doing<'_, (), String> {
        Box::pin(async { Ok(()) })
    }
}

/// An API that keeps the last status of the pod, and whether it was deleted.
#[derive(Clone, Default)]
struct Api(Arc<ApiState>);

#[derive(Default)]
struct ApiState {
    status: Mutex<Value>,
    deleted: AtomicBool,
    faults: Mutex<u32>,
    writes: Mutex<u32>,
    changed: Notify,
}

impl Transport for Api {
    fn send(&self, request: Request<Bytes>) -> Answer {
        let api = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().query().is_some_and(|q| q.contains("watch")) {
                return std::future::pending().await;
            }
            let path = request.uri().path().to_owned();
            let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": []}});
            let body = if *request.method() == Method::PATCH && path.ends_with("/status") {
                let mut faults = api.faults.lock().expect("unpoisoned");
                if *faults > 0 {
                    *faults -= 1;
                    return Err("the cable is cut".into());
                }
                let patch: Value = serde_json::from_slice(request.body())?;
                assert_eq!(patch["metadata"]["uid"], "u");
                *api.status.lock().expect("unpoisoned") = patch["status"].clone();
                let mut writes = api.writes.lock().expect("unpoisoned");
                *writes += 1;
                let meta =
                    json!({"name": "p", "namespace": "ns", "resourceVersion": (REVISION * (1 + *writes)).to_string()});
                json!({"metadata": meta, "spec": {"containers": []}, "status": patch["status"]})
            } else if *request.method() == Method::DELETE {
                let options: Value = serde_json::from_slice(request.body())?;
                assert_eq!(
                    (&options["gracePeriodSeconds"], &options["preconditions"]["uid"]),
                    (&json!(0), &json!("u"))
                );
                api.deleted.store(true, Ordering::Release);
                pod
            } else if *request.method() == Method::POST {
                serde_json::from_slice(request.body())?
            } else {
                json!({"metadata": {"resourceVersion": "1"}, "items": []})
            };
            api.changed.notify_waiters();
            let body = Full::new(Bytes::from(body.to_string())).map_err(Into::into).boxed_unsync();
            Ok(Response::new(body))
        })
    }
}

struct Scene {
    runtime: Arc<Double>,
    api: Api,
    handle: Handle,
    task: JoinHandle<()>,
    pod: Pod,
    home: tempfile::TempDir,
}

impl Scene {
    fn new(spec: Value, prepare: impl FnOnce(&mut Memory, &Api)) -> Scene {
        let meta = json!({"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": REVISION.to_string()});
        let pod: Pod = serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("a pod");
        let home = tempfile::tempdir().expect("a directory");
        let runtime =
            Arc::new(Double { memory: Mutex::default(), events: broadcast::Sender::new(64), changed: Notify::new() });
        let api = Api::default();
        prepare(&mut runtime.memory.lock().expect("unpoisoned"), &api);
        let client = Client::new(api.clone());
        let (events, recording) = Recorder::new(client.clone(), "n1".to_owned());
        tokio::spawn(recording);
        let context = Arc::new(Context {
            services: client.cache(),
            client,
            runtime: Arc::clone(&runtime) as Arc<dyn ContainerRuntime>,
            network: Arc::new(Cable),
            events,
            paths: Paths::new(home.path()),
            node: crate::env::NodeView { ips: vec!["192.0.2.1".to_owned()], ..Default::default() },
            node_memory: 1 << 30,
            dns: ClusterDns { server: IpAddr::from([10, 96, 0, 10]), domain: "cluster.local".to_owned() },
            status_writes: Context::status_permits(),
            starts: Context::start_permits(),
        });
        let (wanted, receiver) = watch::channel(Wanted::Object(Arc::new(pod.clone())));
        let signals = Arc::new(Signals::default());
        let origin = Origin { pod: Arc::new(pod.clone()), ran: None, found: Some(Found::default()) };
        let (mut changes, look) = (runtime.events(), Arc::clone(&signals));
        tokio::spawn(async move {
            while let Ok(event) = changes.recv().await {
                look.lost.fetch_or(matches!(event.what, RuntimeChange::ShimLost), Ordering::AcqRel);
                look.look.notify_one();
            }
        });
        let task = tokio::spawn(run(context, origin, receiver, Arc::clone(&signals)));
        Scene { runtime, api, handle: Handle { wanted, signals }, task, pod, home }
    }

    async fn status(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let changed = self.api.0.changed.notified();
                let status = self.api.0.status.lock().expect("unpoisoned").clone();
                if holds(&status) {
                    return status;
                }
                changed.await;
            }
        };
        match timeout(DEADLINE, wait).await {
            Ok(status) => status,
            Err(_) => panic!(
                "{what} is not reached: {:#}\n{:?}",
                self.api.0.status.lock().expect("unpoisoned"),
                self.runtime.memory.lock().expect("unpoisoned").done
            ),
        }
    }

    async fn ready(&self) -> Value {
        self.status("readiness", |status| {
            let all = status["conditions"].as_array().into_iter().flatten();
            all.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .await
    }

    async fn runtime_does(&self, wanted: &str, times: usize) {
        let wait = async {
            loop {
                let changed = self.runtime.changed.notified();
                if self.runtime.count(wanted) >= times {
                    return;
                }
                changed.await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{wanted} was not done {times} times"));
    }

    fn delete(&mut self, grace: i64) {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
        self.pod.metadata.deletion_timestamp = Some(now);
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.handle.wanted.send_replace(Wanted::Object(Arc::new(self.pod.clone())));
    }

    async fn deleted(&self) {
        let wait = async {
            loop {
                let changed = self.api.0.changed.notified();
                if self.api.0.deleted.load(Ordering::Acquire) {
                    return;
                }
                changed.await;
            }
        };
        timeout(DEADLINE, wait).await.expect("the object is deleted");
    }
}

fn plain() -> Value {
    json!({"containers": [{"name": "c", "image": "x:1"}]})
}

#[tokio::test]
async fn from_creation_to_nothing_left() {
    let mut scene = Scene::new(plain(), |_, _| {});
    let status = scene.ready().await;
    assert_eq!((&status["phase"], &status["podIP"]), (&json!("Running"), &json!("10.244.0.9")));
    assert_eq!(status["containerStatuses"][0]["imageID"], "docker.io/library/x@sha256:2");
    assert!(scene.home.path().join("agent/pods/u/pod.json").exists());
    assert!(*scene.api.0.writes.lock().expect("unpoisoned") <= 2, "a quick start costs few writes");
    scene.delete(30);
    scene.deleted().await;
    assert_eq!(scene.runtime.count("signal c 15"), 1);
    let (removed, looked_for) = (scene.runtime.count("unsandbox u"), scene.runtime.count("list sandboxes"));
    assert_eq!((removed, looked_for), (1, 0), "a shim that the worker itself has ended is no loss");
    let last = scene.api.0.status.lock().expect("unpoisoned").clone();
    assert_eq!(
        (&last["phase"], &last["containerStatuses"][0]["state"]["terminated"]["exitCode"]),
        (&json!("Failed"), &json!(143))
    );
    scene.handle.wanted.send_replace(Wanted::Gone(Arc::new(scene.pod.clone())));
    timeout(DEADLINE, &mut scene.task).await.expect("an end").expect("no panic");
    assert!(!scene.home.path().join("agent/pods/u").exists());
    assert!(scene.runtime.memory.lock().expect("unpoisoned").sandboxes.is_empty());
}

#[tokio::test]
async fn a_runtime_that_fails_is_asked_again() {
    let scene = Scene::new(plain(), |memory, _| {
        memory.faults = [("sandbox", 1), ("create", 1)].into();
    });
    let waiting = |s: &Value| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError";
    scene.status("the failure", waiting).await;
    let status = scene.ready().await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test]
async fn a_server_that_is_away_learns_the_truth_later() {
    let scene = Scene::new(plain(), |_, api| *api.0.faults.lock().expect("unpoisoned") = 4);
    scene.ready().await;
    scene.runtime.end("c", 3);
    let status = scene.status("the restart", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    scene.ready().await;
    scene.runtime.end("c", 4);
    let crash = |s: &Value| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    scene.status("the back-off", crash).await;
}

#[tokio::test]
async fn a_pod_that_others_gave_up_is_told_again() {
    let mut scene = Scene::new(plain(), |_, _| {});
    let mut status = scene.ready().await;
    let writes = || *scene.api.0.writes.lock().expect("unpoisoned");
    let before = writes();
    for condition in status["conditions"].as_array_mut().into_iter().flatten().filter(|c| c["type"] == "Ready") {
        condition["status"] = json!("False");
    }
    *scene.api.0.status.lock().expect("unpoisoned") = Value::Null;
    scene.pod.status = serde_json::from_value(status).expect("a status");
    let given_up = REVISION * (1 + before) + 1;
    scene.pod.metadata.resource_version = Some(given_up.to_string());
    scene.handle.wanted.send_replace(Wanted::Object(Arc::new(scene.pod.clone())));
    scene.ready().await;
    assert_eq!(writes(), before + 1, "one answer to one contradiction");
}

#[tokio::test]
async fn an_object_that_is_gone_ends_the_pod() {
    let mut scene = Scene::new(plain(), |memory, _| memory.stubborn = true);
    scene.ready().await;
    scene.pod.metadata.deletion_grace_period_seconds = Some(1);
    scene.handle.wanted.send_replace(Wanted::Gone(Arc::new(scene.pod.clone())));
    timeout(DEADLINE, &mut scene.task).await.expect("an end").expect("no panic");
    assert_eq!(scene.runtime.count("signal c 9"), 1, "what ignores SIGTERM is killed");
    assert!(!scene.api.0.deleted.load(Ordering::Acquire), "there is nothing to delete");
}

#[tokio::test]
async fn a_lost_shim_is_replaced() {
    let scene = Scene::new(plain(), |_, _| {});
    scene.ready().await;
    let lost = RuntimeEvent { pod_uid: "u".to_owned(), what: RuntimeChange::ShimLost };
    scene.runtime.events.send(lost).expect("a listener");
    scene.runtime_does("start c", 2).await;
    scene.status("the restart", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    scene.ready().await;
    assert_eq!(scene.runtime.count("unsandbox u"), 1, "remains are removed first");
}

#[tokio::test]
async fn a_job_ends_and_keeps_its_status() {
    let spec = json!({"containers": [{"name": "c", "image": "x:1"}], "restartPolicy": "Never"});
    let scene = Scene::new(spec, |_, _| {});
    scene.runtime_does("start c", 1).await;
    scene.runtime.end("c", 0);
    let status = scene.status("the end", |s| s["phase"] == "Succeeded").await;
    assert_eq!(status["podIP"], "10.244.0.9");
    scene.runtime_does("unsandbox u", 1).await;
}

#[tokio::test]
async fn a_missing_config_map_is_named() {
    let env = json!([{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]);
    let spec = json!({"containers": [{"name": "c", "image": "x:1", "env": env}]});
    let scene = Scene::new(spec, |_, _| {});
    let waiting = |s: &Value| s["containerStatuses"][0]["state"]["waiting"]["message"].is_string();
    let status = scene.status("the complaint", waiting).await;
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
}
