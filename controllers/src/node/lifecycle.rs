//! A node that no longer renews its lease is `Unknown`, tainted, and its pods are no longer ready; one that speaks again
//! is healed. The node itself says everything else about itself.

use std::{sync::Arc, time::Duration};

use client::{Object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, PodCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::json;

use super::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, condition, readiness, taints};
use crate::{
    plan::{Face, Note, Plan, Step, Target, Write, reference},
    pod::{self, remaining},
};

/// What a silent node can no longer vouch for.
const VOUCHED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// How much of the cluster is down. When much of it is, the fault is more likely here or in the network between, and
/// throwing pods away would make it worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disruption {
    /// Nodes that are down are drained of their pods.
    None,
    /// More than half is down: nothing further is drained.
    Partial,
    /// Everything is down: nothing is drained, and what was marked for it is spared.
    Full,
}

impl Disruption {
    pub fn of(healthy: usize, unhealthy: usize) -> Disruption {
        match (healthy, unhealthy) {
            (_, 0) => Disruption::None,
            (0, _) => Disruption::Full,
            // One or two nodes are no trend.
            (_, down) if down > 2 && down * 100 >= (healthy + down) * 55 => Disruption::Partial,
            _ => Disruption::None,
        }
    }
}

pub struct Input<'a> {
    pub node: &'a Node,
    /// When this process last saw the node renew its lease or change; never a clock of the node's. It is the start of
    /// this process at the earliest, so a control plane that was away blames nobody for it.
    pub heard: Timestamp,
    pub grace: Duration,
    pub disruption: Disruption,
    /// The pods on the node; needed only once the node is silent.
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let node = input.node;
    let left = remaining(input.heard, input.grace, input.now);
    let silent = left.is_none();
    if silent && (readiness(node) != "Unknown" || condition(node, "Ready").is_none()) {
        // Everything else is bound to the version that this write makes, and follows at the next look, which it causes.
        return Plan::nothing().then(Step::together(vec![silence(node, input.now)]));
    }
    let pods = input.pods.iter().filter(|p| silent && pod::is_ready(p));
    let mut writes: Vec<Write> = pods.map(|p| unready(p, input.now)).collect();
    writes.extend(taint(input, readiness(node)));
    Plan::nothing().then(Step::together(writes)).look_again(left)
}

/// The node's conditions as the control plane has to see them from now on.
fn silence(node: &Node, now: Timestamp) -> Write {
    let old = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut conditions = old.clone();
    for kind in VOUCHED {
        let never = !conditions.iter().any(|c| c.type_ == *kind);
        if never {
            conditions.push(NodeCondition { type_: (*kind).to_owned(), ..NodeCondition::default() });
        }
        for c in conditions.iter_mut().filter(|c| c.type_ == *kind && c.status != "Unknown") {
            let (reason, message) = if never {
                ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
            } else {
                ("NodeStatusUnknown", "Kubelet stopped posting node status.")
            };
            c.status = "Unknown".to_owned();
            c.reason = Some(reason.to_owned());
            c.message = Some(message.to_owned());
            c.last_transition_time = Some(Time(now));
        }
    }
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "status": { "conditions": conditions },
    });
    let name = client::object::name(node);
    let said = Note::normal("NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
    Write::merge(Target::of(node), Face::Status, patch).told(reference(node), Some(said), None)
}

/// The node cannot say that its pods have stopped, so services must not be led to them.
fn unready(pod: &Pod, now: Timestamp) -> Write {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for c in conditions.iter_mut().filter(|c: &&mut PodCondition| c.type_ == "Ready") {
        c.status = "False".to_owned();
        c.reason = Some("NodeNotReady".to_owned());
        c.last_transition_time = Some(Time(now));
    }
    let patch = json!({
        "metadata": { "resourceVersion": pod.meta().resource_version },
        "status": { "conditions": conditions },
    });
    let said = Note::warning("NodeNotReady", "Node is not ready");
    Write::merge(Target::of(pod), Face::Status, patch).told(reference(pod), Some(said), None)
}

/// Brings the taints that belong to readiness in line with it, and leaves all others alone.
fn taint(input: &Input<'_>, ready: &str) -> Option<Write> {
    let node = input.node;
    let cause = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let had = taints(node);
    let ours = |t: &Taint| t.key == NOT_READY || t.key == UNREACHABLE;
    let mut wanted: Vec<Taint> = had.iter().filter(|t| !ours(t)).cloned().collect();
    for effect in [NO_SCHEDULE, NO_EXECUTE] {
        let Some(key) = cause else { continue };
        let existing = had.iter().find(|t| t.key == key && t.effect == effect);
        let drives = effect == NO_EXECUTE;
        let held = match input.disruption {
            Disruption::None => false,
            Disruption::Partial => drives && existing.is_none(),
            Disruption::Full => drives,
        };
        if held {
            continue;
        }
        // The time that a taint was put on counts: tolerations run from there.
        wanted.push(existing.cloned().unwrap_or_else(|| Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            time_added: Some(Time(input.now)),
            value: None,
        }));
    }
    let same = had.len() == wanted.len() && had.iter().all(|t| wanted.contains(t));
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": if wanted.is_empty() { serde_json::Value::Null } else { json!(wanted) } },
    });
    (!same).then(|| Write::merge(Target::of(node), Face::Whole, patch))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};
    use serde_json::Value;

    use super::*;
    use crate::{
        plan::Action,
        testing::{at, meta, running, time},
    };

    const GRACE: Duration = Duration::from_secs(40);

    fn node(ready: &str, taints: &[(&str, &str)]) -> Node {
        let taints = taints.iter().map(|(key, effect)| Taint {
            key: (*key).into(),
            effect: (*effect).into(),
            time_added: Some(time(7)),
            value: None,
        });
        let ready = NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
        Node {
            metadata: meta("n"),
            spec: Some(NodeSpec { taints: Some(taints.collect()), ..NodeSpec::default() }),
            status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
        }
    }

    fn run(node: &Node, heard: i64, disruption: Disruption, pods: &[Arc<Pod>]) -> Plan {
        plan(&Input { node, heard: at(heard), grace: GRACE, disruption, pods, now: at(1000) })
    }

    fn patches(plan: &Plan) -> Vec<(Face, String, Value)> {
        let merges = plan.writes().map(|w| match &w.action {
            Action::Merge { target, face, patch } => (*face, target.name.clone(), patch.clone()),
            other => panic!("a patch: {other:?}"),
        });
        merges.collect()
    }

    fn taint_keys(patch: &Value) -> Vec<String> {
        let taints = patch["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints
            .iter()
            .map(|t| format!("{}:{}", t["key"].as_str().expect("a key"), t["effect"].as_str().expect("one")))
            .collect()
    }

    #[test]
    fn a_node_that_speaks_is_looked_at_when_its_grace_ends() {
        let plan = run(&node("True", &[]), 990, Disruption::None, &[]);
        assert_eq!(plan, Plan { steps: vec![], after: Some(Duration::from_secs(30)) });
    }

    #[test]
    fn a_silent_node_is_unknown_and_tainted_and_its_pods_unready() {
        let pods = [Arc::new(running("a", "n", Some(1))), Arc::new(running("b", "n", None))];
        let silent = patches(&run(&node("True", &[]), 960, Disruption::None, &pods));
        assert_eq!(silent.len(), 1, "{silent:?}");
        assert_eq!(silent[0].2["status"]["conditions"][0]["reason"], "NodeStatusUnknown");
        assert_eq!(silent[0].2["status"]["conditions"][1]["reason"], "NodeStatusNeverUpdated");
        let plan = run(&node("Unknown", &[]), 960, Disruption::None, &pods);
        let patches = patches(&plan);
        assert_eq!(patches.len(), 2, "{patches:?}");
        assert_eq!((patches[0].1.as_str(), &patches[0].2["status"]["conditions"][0]["status"]), ("a", &json!("False")));
        assert_eq!(
            taint_keys(&patches[1].2),
            [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")]
        );
        assert_eq!(plan.after, None);
    }

    #[test]
    fn taints_follow_readiness() {
        let both = |key| [(key, "NoSchedule"), (key, "NoExecute")];
        let foreign = ("gpu", "NoSchedule");
        let cases: [(Node, Disruption, Option<Vec<&str>>); 8] = [
            (node("False", &[]), Disruption::None, Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"])),
            (node("True", &both(NOT_READY)), Disruption::None, Some(vec![])),
            (node("True", &[foreign]), Disruption::None, None),
            (node("True", &[foreign, both(UNREACHABLE)[0]]), Disruption::None, Some(vec!["gpu:NoSchedule"])),
            (
                node("False", &both(UNREACHABLE)),
                Disruption::None,
                Some(vec!["not-ready:NoSchedule", "not-ready:NoExecute"]),
            ),
            (node("False", &[]), Disruption::Full, Some(vec!["not-ready:NoSchedule"])),
            (node("False", &both(NOT_READY)), Disruption::Full, Some(vec!["not-ready:NoSchedule"])),
            (node("False", &both(NOT_READY)), Disruption::Partial, None),
        ];
        for (i, (node, disruption, wanted)) in cases.into_iter().enumerate() {
            let patches = patches(&run(&node, 990, disruption, &[]));
            let keys = patches.first().map(|p| taint_keys(&p.2));
            let keys = keys.map(|k| k.iter().map(|t| t.replace("node.kubernetes.io/", "")).collect::<Vec<_>>());
            assert_eq!(keys, wanted.map(|w| w.iter().map(|t| (*t).to_owned()).collect()), "case {i}");
        }
    }

    #[test]
    fn disruption() {
        let cases = [
            (3, 0, Disruption::None),
            (1, 1, Disruption::None),
            (0, 1, Disruption::Full),
            (1, 2, Disruption::None),
            (2, 3, Disruption::Partial),
            (7, 3, Disruption::None),
        ];
        for (up, down, wanted) in cases {
            assert_eq!(Disruption::of(up, down), wanted, "{up} up, {down} down");
        }
    }
}
