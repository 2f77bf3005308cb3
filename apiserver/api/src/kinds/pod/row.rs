//! What `kubectl get pods` shows: one word of status out of everything that is known about a pod.

use serde_json::Value;

use crate::{
    field::{int, is_true, items, some_text, text},
    kinds::print,
    meta,
    table::Column,
    time,
};

pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "Containers that are ready, of all."),
    Column::text("Status", "What the pod is doing."),
    Column::text("Restarts", "How often containers were restarted, and when last."),
    Column::AGE,
    Column::text("IP", "Its address.").wide(),
    Column::text("Node", "Where it runs.").wide(),
    Column::text("Nominated Node", "Where it will run once others made room.").wide(),
    Column::text("Readiness Gates", "Further conditions that are met, of those asked for.").wide(),
];

pub fn cells(object: &Value, now: i64) -> Vec<Value> {
    let pod = Pod::of(object);
    let summary = pod.summary();
    let ip = items(pod.status, "podIPs").first().map(|ip| text(ip, "ip")).filter(|ip| !ip.is_empty());
    vec![
        print::name(object),
        format!("{}/{}", summary.ready, summary.total).into(),
        pod.reason(&summary).into(),
        summary.restarts.show(now).into(),
        print::age(object, now),
        ip.map_or_else(|| print::text_or_none(pod.status, "podIP"), str::to_owned).into(),
        print::text_or_none(pod.spec, "nodeName").into(),
        print::text_or_none(pod.status, "nominatedNodeName").into(),
        pod.readiness_gates().into(),
    ]
}

struct Pod<'v> {
    object: &'v Value,
    spec: &'v Value,
    status: &'v Value,
}

/// What the containers' states come to.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: Restarts,
}

#[derive(Default)]
struct Restarts {
    count: i64,
    /// Seconds since the epoch.
    last: Option<i64>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "restartCount").unwrap_or_default();
        let finished = status.pointer("/lastState/terminated/finishedAt").and_then(Value::as_str);
        self.last = self.last.max(finished.and_then(time::parse));
    }

    /// `3 (2m ago)`
    fn show(&self, now: i64) -> String {
        match self.last {
            Some(last) if self.count > 0 => format!("{} ({} ago)", self.count, time::human_duration(now - last)),
            _ => self.count.to_string(),
        }
    }
}

/// What the init containers say: the pod is still initializing, or how far the sidecars among them are.
enum Init {
    Running(Summary),
    Done { ready_sidecars: usize, sidecar_restarts: Restarts },
}

impl<'v> Pod<'v> {
    fn of(object: &'v Value) -> Self {
        let part = |key| object.get(key).unwrap_or(&Value::Null);
        Self { object, spec: part("spec"), status: part("status") }
    }

    /// The phase, or why the pod is in it.
    fn phase(&self) -> String {
        some_text(self.status, "reason").unwrap_or_else(|| text(self.status, "phase")).to_owned()
    }

    fn condition(&self, kind: &str) -> Option<&'v Value> {
        items(self.status, "conditions").iter().find(|condition| text(condition, "type") == kind)
    }

    fn is_sidecar(&self, name: &str) -> bool {
        let init = items(self.spec, "initContainers").iter().find(|container| text(container, "name") == name);
        init.is_some_and(|container| text(container, "restartPolicy") == "Always")
    }

    fn summary(&self) -> Summary {
        let sidecars = items(self.spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always");
        let total = items(self.spec, "containers").len() + sidecars.count();
        let gated = self.condition("PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated");
        let reason = if gated { "SchedulingGated".to_owned() } else { self.phase() };
        let (ready_sidecars, restarts) = match self.init(total) {
            Init::Running(summary) => return summary,
            Init::Done { ready_sidecars, sidecar_restarts } => (ready_sidecars, sidecar_restarts),
        };
        self.main_containers(Summary { ready: ready_sidecars, total, reason, restarts })
    }

    fn init(&self, total: usize) -> Init {
        let count = items(self.spec, "initContainers").len();
        let mut restarts = Restarts::default();
        let mut sidecar_restarts = Restarts::default();
        let mut ready_sidecars = 0;
        let initialized = self.condition("Initialized").is_some_and(|c| text(c, "status") == "True");
        for (index, status) in items(self.status, "initContainerStatuses").iter().enumerate() {
            restarts.add(status);
            let sidecar = self.is_sidecar(text(status, "name"));
            if sidecar {
                sidecar_restarts.add(status);
            }
            match init_reason(status, sidecar, index, count) {
                None => {
                    if sidecar && is_true(status, "ready") {
                        ready_sidecars += 1;
                    }
                }
                // Once initialized, init containers no longer say what the pod is doing.
                Some(_) if initialized => {}
                Some(reason) => return Init::Running(Summary { ready: ready_sidecars, total, reason, restarts }),
            }
        }
        Init::Done { ready_sidecars, sidecar_restarts }
    }

    fn main_containers(&self, mut summary: Summary) -> Summary {
        let mut running = false;
        // The first container's trouble is the one to show, so the last one speaks first.
        for status in items(self.status, "containerStatuses").iter().rev() {
            summary.restarts.add(status);
            let state = status.get("state").unwrap_or(&Value::Null);
            let (waiting, terminated) = (&state["waiting"], &state["terminated"]);
            if let Some(reason) = some_text(waiting, "reason") {
                summary.reason = reason.to_owned();
            } else if terminated.is_object() {
                summary.reason = termination(terminated);
            } else if is_true(status, "ready") && state.get("running").is_some() {
                running = true;
                summary.ready += 1;
            }
        }
        if summary.reason == "Completed" && running {
            let ready = self.condition("Ready").is_some_and(|c| text(c, "status") == "True");
            summary.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
        summary
    }

    fn reason(&self, summary: &Summary) -> String {
        if meta::deletion_timestamp(self.object).is_none() {
            return summary.reason.clone();
        }
        if text(self.status, "reason") == "NodeLost" {
            return "Unknown".to_owned();
        }
        match text(self.status, "phase") {
            "Succeeded" | "Failed" => summary.reason.clone(),
            _ => "Terminating".to_owned(),
        }
    }

    fn readiness_gates(&self) -> String {
        let gates = items(self.spec, "readinessGates");
        if gates.is_empty() {
            return print::NONE.to_owned();
        }
        let met = gates.iter().filter(|gate| {
            self.condition(text(gate, "conditionType")).is_some_and(|condition| text(condition, "status") == "True")
        });
        format!("{}/{}", met.count(), gates.len())
    }
}

/// What an init container has to say; nothing when it is done, or a sidecar that has started.
fn init_reason(status: &Value, sidecar: bool, index: usize, count: usize) -> Option<String> {
    let state = status.get("state").unwrap_or(&Value::Null);
    let terminated = &state["terminated"];
    if terminated.is_object() {
        return match int(terminated, "exitCode") {
            None | Some(0) => None,
            Some(_) => Some(format!("Init:{}", termination(terminated))),
        };
    }
    if sidecar && is_true(status, "started") {
        return None;
    }
    match some_text(&state["waiting"], "reason") {
        Some(reason) if reason != "PodInitializing" => Some(format!("Init:{reason}")),
        _ => Some(format!("Init:{index}/{count}")),
    }
}

/// Why a container ended.
fn termination(terminated: &Value) -> String {
    if let Some(reason) = some_text(terminated, "reason") {
        return reason.to_owned();
    }
    match int(terminated, "signal") {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", int(terminated, "exitCode").unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(init: Value, statuses: Value, init_statuses: Value, phase: &str) -> Value {
        let containers: Vec<Value> =
            statuses.as_array().expect("a list").iter().map(|_| json!({"name": "c"})).collect();
        json!({"metadata": {"name": "p"}, "spec": {"containers": containers, "initContainers": init},
            "status": {"phase": phase, "containerStatuses": statuses, "initContainerStatuses": init_statuses}})
    }

    fn shown(object: &Value) -> String {
        let row = cells(object, 1000);
        let text = |index: usize| row[index].as_str().expect("text").to_owned();
        [text(1), text(2), text(3)].join(" ")
    }

    fn running(ready: bool) -> Value {
        json!({"ready": ready, "state": {"running": {}}})
    }

    fn waiting(reason: &str) -> Value {
        json!({"state": {"waiting": {"reason": reason}}})
    }

    fn ended(code: i64, reason: &str) -> Value {
        json!({"state": {"terminated": {"exitCode": code, "reason": reason}}})
    }

    #[test]
    fn status_in_one_word() {
        let none = json!([]);
        let plain = json!([{"name": "i"}, {"name": "j"}]);
        let sidecar = json!([{"name": "s", "restartPolicy": "Always"}]);
        let sidecar_runs = json!([{"name": "s", "started": true, "ready": true, "state": {"running": {}}}]);
        let back_off = json!([{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": time::rfc3339(880)}}}]);
        let table = [
            (pod(none.clone(), json!([]), none.clone(), "Pending"), "0/0 Pending 0"),
            (pod(none.clone(), json!([running(true), running(false)]), none.clone(), "Running"), "1/2 Running 0"),
            (
                pod(none.clone(), json!([waiting("ContainerCreating")]), none.clone(), "Pending"),
                "0/1 ContainerCreating 0",
            ),
            (pod(none.clone(), back_off, none.clone(), "Running"), "0/1 CrashLoopBackOff 3 (2m ago)"),
            (pod(none.clone(), json!([ended(0, "Completed")]), none.clone(), "Succeeded"), "0/1 Completed 0"),
            (pod(none.clone(), json!([ended(2, "")]), none.clone(), "Failed"), "0/1 ExitCode:2 0"),
            (
                pod(none.clone(), json!([ended(0, "Completed"), running(true)]), none.clone(), "Running"),
                "1/2 NotReady 0",
            ),
            (
                pod(plain.clone(), json!([waiting("PodInitializing")]), json!([running(false)]), "Pending"),
                "0/1 Init:0/2 0",
            ),
            (
                pod(
                    plain.clone(),
                    json!([waiting("PodInitializing")]),
                    json!([ended(0, "Completed"), waiting("ErrImagePull")]),
                    "Pending",
                ),
                "0/1 Init:ErrImagePull 0",
            ),
            (
                pod(plain, json!([waiting("PodInitializing")]), json!([ended(1, "Error")]), "Pending"),
                "0/1 Init:Error 0",
            ),
            (pod(sidecar, json!([running(true)]), sidecar_runs, "Running"), "2/2 Running 0"),
        ];
        for (object, expected) in table {
            assert_eq!(shown(&object), expected);
        }
    }

    #[test]
    fn deletion_and_eviction_speak_first() {
        let mut object = pod(json!([]), json!([running(true)]), json!([]), "Running");
        object["metadata"]["deletionTimestamp"] = time::rfc3339(0).into();
        assert_eq!(shown(&object), "1/1 Terminating 0");
        object["status"]["reason"] = "NodeLost".into();
        assert_eq!(shown(&object), "1/1 Unknown 0");
        let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted"}});
        assert_eq!(shown(&evicted), "0/0 Evicted 0");
    }

    #[test]
    fn wide_columns() {
        let object = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n",
                "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "a", "status": "True"}]}});
        assert_eq!(json!(cells(&object, 0)[5..]), json!(["10.0.0.1", "n", "<none>", "1/2"]));
    }
}
