//! Says what was decided: the pod's condition and an event. Written behind the binding's back, one at a time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use client::{Client, Key, Patch, pod::Pod};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use serde_json::json;
use tokio::sync::Notify;

use crate::{pod::PodInfo, shell::SCHEDULER};

/// Events about bound pods beyond this many unwritten ones are dropped, oldest first: the binding itself is the record.
const BOUND_KEPT: usize = 10_000;

#[derive(Default)]
struct Pending {
    bound: VecDeque<(PodInfo, String)>,
    /// Only the last word on a pod counts, so this is no longer than the list of waiting pods.
    unschedulable: HashMap<Key, (PodInfo, String)>,
}

enum Report {
    Unschedulable(PodInfo, String),
    Bound(PodInfo, String),
}

/// Where the scheduler leaves its reports.
#[derive(Clone, Default)]
pub(crate) struct Reporter {
    pending: Arc<Mutex<Pending>>,
    arrived: Arc<Notify>,
}

impl Reporter {
    pub(crate) fn bound(&self, pod: PodInfo, node: &str) {
        self.with(|pending| {
            // Said now, it would put the condition of a pod that waits on one that runs.
            pending.unschedulable.remove(&pod.key);
            if pending.bound.len() == BOUND_KEPT {
                pending.bound.pop_front();
            }
            pending.bound.push_back((pod, node.to_owned()));
        });
    }

    pub(crate) fn unschedulable(&self, pod: PodInfo, why: String) {
        self.with(|pending| drop(pending.unschedulable.insert(pod.key.clone(), (pod, why))));
    }

    fn with(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.arrived.notify_one();
    }

    /// What is to be said next. One at a time, so that what waits can still be taken back.
    fn next(&self) -> Option<Report> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = pending.unschedulable.keys().next().cloned() {
            let (pod, why) = pending.unschedulable.remove(&key)?;
            return Some(Report::Unschedulable(pod, why));
        }
        pending.bound.pop_front().map(|(pod, node)| Report::Bound(pod, node))
    }

    /// Writes reports for as long as it is polled.
    pub(crate) async fn write(self, client: Client) {
        loop {
            match self.next() {
                Some(Report::Unschedulable(pod, why)) => {
                    condition(&client, &pod, &why).await;
                    event(&client, &pod, "Warning", "FailedScheduling", why).await;
                }
                Some(Report::Bound(pod, node)) => {
                    let text = format!("Successfully assigned {} to {node}", pod.key);
                    event(&client, &pod, "Normal", "Scheduled", text).await;
                }
                None => self.arrived.notified().await,
            }
        }
    }
}

async fn condition(client: &Client, pod: &PodInfo, why: &str) {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
        "lastTransitionTime": Time(now()),
    });
    // The uid makes the patch fail on a namesake that came later.
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}));
    if let Err(error) = client.patch_status::<Pod>(&pod.key.namespace, &pod.key.name, &patch).await {
        tracing::debug!(pod = %pod.key, %error, "the pod's condition was not written");
    }
}

async fn event(client: &Client, pod: &PodInfo, kind: &str, reason: &str, message: String) {
    let at = now();
    let event = Event {
        metadata: ObjectMeta {
            namespace: Some(pod.key.namespace.clone()),
            name: Some(format!("{}.{:x}", pod.key.name, at.as_nanosecond())),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some(kind.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        source: Some(EventSource { component: Some(SCHEDULER.to_owned()), host: None }),
        reporting_component: Some(SCHEDULER.to_owned()),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        ..Event::default()
    };
    if let Err(error) = client.create(&event).await {
        tracing::debug!(pod = %pod.key, %error, "the event was not written");
    }
}

#[expect(clippy::disallowed_methods, reason = "a report carries the time at which it is written")]
fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_pod_is_not_said_to_wait() {
        let reporter = Reporter::default();
        let pod = |name: &str| PodInfo { key: Key::new("d", name), ..PodInfo::default() };
        reporter.unschedulable(pod("a"), "no room".into());
        reporter.unschedulable(pod("b"), "no room".into());
        reporter.bound(pod("a"), "n");
        let said: Vec<String> = std::iter::from_fn(|| reporter.next())
            .map(|report| match report {
                Report::Unschedulable(pod, why) => format!("{}: {why}", pod.key),
                Report::Bound(pod, node) => format!("{} on {node}", pod.key),
            })
            .collect();
        assert_eq!(said, ["d/b: no room", "d/a on n"]);
    }
}
