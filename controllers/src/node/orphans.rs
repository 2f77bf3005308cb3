//! Pods that nobody looks after any more: their node is gone, or they never had one and are to go.

use std::time::Duration;

use client::{DeleteOptions, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodCondition, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::json;

use crate::{
    plan::{Face, Plan, Step, Target, Write},
    pod::{self, remaining},
};

/// A node that is only registering anew is back long before.
const QUARANTINE: Duration = Duration::from_secs(40);

pub struct Input<'a> {
    pub pod: &'a Pod,
    /// Since when the pod's node is not there; none while it is.
    pub node_gone: Option<Timestamp>,
    pub now: Timestamp,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let pod = input.pod;
    if pod::node(pod).is_empty() {
        // Nobody will ever report that this pod has stopped, as nobody started it.
        let go = object::is_deleting(pod).then(|| delete(pod));
        return Plan::nothing().then(Step::together(go.into_iter().collect()));
    }
    let Some(gone) = input.node_gone else { return Plan::nothing() };
    if let Some(left) = remaining(gone, QUARANTINE, input.now) {
        return Plan::nothing().look_again(Some(left));
    }
    let failed = (!pod::is_finished(pod)).then(|| failed(pod, input.now));
    Plan::nothing().then(Step::together(failed.into_iter().collect())).then(Step::together(vec![delete(pod)]))
}

fn delete(pod: &Pod) -> Write {
    Write::delete(Target::of(pod), DeleteOptions::uid(object::uid(pod)).grace(0))
}

/// The pod's last word, for whoever counts successes and failures.
fn failed(pod: &Pod, now: Timestamp) -> Write {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("DeletionByPodGC".to_owned()),
        message: Some("PodGC: node no longer exists".to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "phase": "Failed", "conditions": conditions },
    });
    Write::merge(Target::of(pod), Face::Status, patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, pod, running, time};

    #[test]
    fn only_orphans_go() {
        let mut leaving = pod("a");
        leaving.metadata.deletion_timestamp = Some(time(1));
        let mut finished = running("a", "n", None);
        finished.status.as_mut().expect("a status").phase = Some("Succeeded".into());
        let cases = [
            ("waits for a node", pod("a"), None, (0, None)),
            ("to go before it had a node", leaving, None, (1, None)),
            ("on a node", running("a", "n", None), None, (0, None)),
            ("node just gone", running("a", "n", None), Some(990), (0, Some(Duration::from_secs(30)))),
            ("node long gone", running("a", "n", None), Some(900), (2, None)),
            ("finished, node long gone", finished, Some(900), (1, None)),
        ];
        for (what, pod, gone, wanted) in cases {
            let plan = plan(&Input { pod: &pod, node_gone: gone.map(at), now: at(1000) });
            assert_eq!((plan.steps.len(), plan.after), wanted, "{what}");
        }
    }
}
