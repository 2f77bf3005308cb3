//! A pod leaves a node that has a `NoExecute` taint: at once, or when its toleration has run out.

use std::time::Duration;

use client::{DeleteOptions, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, PodCondition, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;

use super::expelling;
use crate::{
    plan::{Face, Note, Plan, Step, Target, Write, reference},
    pod::{self, remaining},
};

pub struct Input<'a> {
    pub pod: &'a Pod,
    /// The pod's node, if it is known.
    pub node: Option<&'a Node>,
    /// When this process began: a taint whose time is unknown counts from here.
    pub started: Timestamp,
    pub now: Timestamp,
}

/// How long a pod may stay under a set of taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    Forever,
    /// No taint may outlast this.
    Until(Timestamp),
    /// Some taint is not tolerated at all.
    Not,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let pod = input.pod;
    let Some(node) = input.node else { return Plan::nothing() };
    if object::is_deleting(pod) || pod::is_finished(pod) {
        return Plan::nothing();
    }
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    match stay(&expelling(node), tolerations, input.started) {
        Stay::Forever => Plan::nothing(),
        Stay::Not => evict(input),
        Stay::Until(end) => match remaining(input.now, duration(end, input.now), input.now) {
            Some(left) => Plan::nothing().look_again(Some(left)),
            None => evict(input),
        },
    }
}

fn duration(end: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// The shortest stay that any taint allows.
fn stay(taints: &[&Taint], tolerations: &[Toleration], started: Timestamp) -> Stay {
    let mut end: Option<Timestamp> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Stay::Not;
        }
        let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(started, |t| t.0);
        let until = since.checked_add(jiff::SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
        end = Some(end.map_or(until, |e| e.min(until)));
    }
    end.map_or(Stay::Forever, Stay::Until)
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        Some(_) => false,
    }
}

fn evict(input: &Input<'_>) -> Plan {
    let pod = input.pod;
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some("DeletionByTaintManager".to_owned()),
        message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
        last_transition_time: Some(Time(input.now)),
        ..PodCondition::default()
    });
    let why = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": conditions } });
    let name = format!("{}/{}", object::namespace(pod), object::name(pod));
    let said = Note::normal("TaintManagerEviction", format!("Marking for deletion Pod {name}"));
    let delete =
        Write::delete(Target::of(pod), DeleteOptions::uid(object::uid(pod))).told(reference(pod), Some(said), None);
    Plan::nothing()
        .then(Step::together(vec![Write::merge(Target::of(pod), Face::Status, why)]))
        .then(Step::together(vec![delete]))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::*;
    use crate::{
        node::{NOT_READY, UNREACHABLE},
        testing::{at, meta, running, time},
    };

    fn node(taints: &[(&str, &str, i64)]) -> Node {
        let taints = taints.iter().map(|(key, effect, added)| Taint {
            key: (*key).into(),
            effect: (*effect).into(),
            time_added: Some(time(*added)),
            value: None,
        });
        let spec = NodeSpec { taints: Some(taints.collect()), ..NodeSpec::default() };
        Node { metadata: meta("n"), spec: Some(spec), status: None }
    }

    fn exists(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        }
    }

    #[test]
    fn timing() {
        let usual = [exists(NOT_READY, Some(300)), exists(UNREACHABLE, Some(300))];
        let expel = (UNREACHABLE, "NoExecute", 900);
        let wait = |s| (0, Some(Duration::from_secs(s)));
        let cases = [
            ("no taint", node(&[]), vec![], (0, None)),
            ("only keeps new ones away", node(&[(UNREACHABLE, "NoSchedule", 1)]), vec![], (0, None)),
            ("not tolerated", node(&[expel]), vec![], (2, None)),
            ("tolerated for a while", node(&[expel]), usual.to_vec(), wait(200)),
            ("tolerated long enough", node(&[(UNREACHABLE, "NoExecute", 700)]), usual.to_vec(), (2, None)),
            ("tolerated for ever", node(&[expel]), vec![exists(UNREACHABLE, None)], (0, None)),
            ("another is tolerated", node(&[expel]), vec![exists(NOT_READY, None)], (2, None)),
            ("the shortest counts", node(&[expel, (NOT_READY, "NoExecute", 800)]), usual.to_vec(), wait(100)),
            ("not for a moment", node(&[expel]), vec![exists(UNREACHABLE, Some(-1))], (2, None)),
        ];
        for (what, node, tolerations, wanted) in cases {
            let mut pod = running("a", "n", Some(1));
            pod.spec.as_mut().expect("a spec").tolerations = Some(tolerations);
            let plan = plan(&Input { pod: &pod, node: Some(&node), started: at(0), now: at(1000) });
            assert_eq!((plan.steps.len(), plan.after), wanted, "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_leaving_or_done_is_left_alone() {
        let node = node(&[(UNREACHABLE, "NoExecute", 1)]);
        let mut leaving = running("a", "n", Some(1));
        leaving.metadata.deletion_timestamp = Some(time(1));
        let mut done = running("a", "n", None);
        done.status.as_mut().expect("a status").phase = Some("Succeeded".into());
        for pod in [leaving, done] {
            let plan = plan(&Input { pod: &pod, node: Some(&node), started: at(0), now: at(1000) });
            assert_eq!(plan, Plan::nothing());
        }
    }
}
