//! The decision for one pod.

use std::collections::BTreeMap;

use crate::{filter, pod::PodInfo, score, snapshot::Snapshot};

/// Beyond this many nodes that would do, looking for a better one costs more than it gives.
const ENOUGH: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Node(String),
    /// Nothing fits; the text is for the pod's condition and event.
    Unschedulable(String),
}

/// Where one search ended, so that the next goes on from there: load spreads over equal nodes, and no node is always last.
#[derive(Debug, Default)]
pub struct Cursor(usize);

/// Finds the best node for a pod. Equal scores go to the node that the search meets first.
pub fn decide(snapshot: &Snapshot, pod: &PodInfo, cursor: &mut Cursor) -> Decision {
    let slots = snapshot.slots();
    let mut best: Option<(i64, usize)> = None;
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut feasible, mut known) = (0, 0);
    for step in 0..slots.len() {
        let at = (cursor.0 + step) % slots.len();
        let node = &slots[at];
        let Some(facts) = &node.facts else { continue };
        known += 1;
        match filter::ALL.iter().try_for_each(|f| (f.check)(pod, node, facts)) {
            Ok(()) => {
                let total = score::ALL.iter().map(|s| s.weight * (s.rate)(pod, node, facts)).sum();
                if best.is_none_or(|(score, _)| total > score) {
                    best = Some((total, at));
                }
                feasible += 1;
                if feasible == ENOUGH {
                    break;
                }
            }
            Err(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    let chosen = best.and_then(|(_, at)| Some((at, slots[at].facts.as_ref()?)));
    match chosen {
        Some((at, facts)) => {
            cursor.0 = at + 1;
            Decision::Node(facts.name.clone())
        }
        None => Decision::Unschedulable(explain(known, reasons)),
    }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
fn explain(nodes: usize, reasons: BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for (reason, count) in reasons {
        for part in reason.split(", ") {
            *counted.entry(part.to_owned()).or_default() += count;
        }
    }
    let parts: Vec<String> = counted.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use client::Key;
    use serde_json::{Value, json};

    use super::*;
    use crate::snapshot::NodeFacts;

    fn node(name: &str, extra: Value) -> NodeFacts {
        let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
            "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3"}}});
        for (path, value) in extra.as_object().expect("an object of pointers") {
            let (parent, field) = path.rsplit_once('/').expect("a pointer");
            node.pointer_mut(parent).expect("a parent")[field] = value.clone();
        }
        NodeFacts::new(&serde_json::from_value(node).expect("a node"))
    }

    fn pod(name: &str, spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true}]);
        let pod = json!({"metadata": {"name": name, "namespace": "d", "ownerReferences": owner}, "spec": spec});
        PodInfo::new(&serde_json::from_value(pod).expect("a pod"))
    }

    fn cluster(nodes: Vec<NodeFacts>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for facts in nodes {
            snapshot.set_node(facts);
        }
        snapshot
    }

    #[test]
    fn says_why_no_node_will_do() {
        let ask = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "3", "memory": "8Gi"}}}]});
        let cases = [
            (vec![], json!({}), "no nodes available to schedule pods"),
            (
                vec![node("a", json!({})), node("b", json!({"/spec/unschedulable": true}))],
                ask.clone(),
                "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) were unschedulable.",
            ),
            (
                vec![node("a", json!({})), node("b", json!({}))],
                json!({"nodeSelector": {"disk": "ssd"}}),
                "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
            ),
            (
                vec![node("a", json!({"/spec/taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}))],
                json!({"tolerations": [{"key": "k", "value": "other"}]}),
                "0/1 nodes are available: 1 node(s) had untolerated taint {k: v}.",
            ),
        ];
        for (nodes, spec, expected) in cases {
            let decision = decide(&cluster(nodes), &pod("p", spec), &mut Cursor::default());
            assert_eq!(decision, Decision::Unschedulable(expected.to_owned()));
        }
    }

    #[test]
    fn siblings_are_spread_and_full_nodes_are_left_out() {
        let mut snapshot = cluster(vec![node("a", json!({})), node("b", json!({}))]);
        let mut cursor = Cursor::default();
        let mut counts = BTreeMap::new();
        for i in 0..7 {
            let mut info = pod(&format!("p{i}"), json!({}));
            match decide(&snapshot, &info, &mut cursor) {
                Decision::Node(name) => {
                    *counts.entry(name.clone()).or_insert(0) += 1;
                    info.node = Some(name);
                    snapshot.set_pod(info);
                }
                Decision::Unschedulable(why) => {
                    assert_eq!((i, why.as_str()), (6, "0/2 nodes are available: 2 Too many pods."));
                }
            }
        }
        assert_eq!(counts, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 3)]));
        snapshot.remove_pod(&Key::new("d", "p0"));
        assert!(matches!(decide(&snapshot, &pod("q", json!({})), &mut cursor), Decision::Node(_)));
    }

    #[test]
    fn host_ports_conflict_per_address() {
        let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]});
        let mut snapshot = cluster(vec![node("a", json!({}))]);
        let mut first = pod("x", port("10.0.0.1"));
        first.node = Some("a".into());
        snapshot.set_pod(first);
        for (ip, fits) in [("10.0.0.2", true), ("10.0.0.1", false), ("0.0.0.0", false), ("", false)] {
            let decision = decide(&snapshot, &pod("y", port(ip)), &mut Cursor::default());
            assert_eq!(matches!(decision, Decision::Node(_)), fits, "{ip:?}: {decision:?}");
        }
    }
}
