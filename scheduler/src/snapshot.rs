//! The nodes, each with what the pods on it occupy. Kept up to date by single changes, never rebuilt.

use std::collections::{BTreeMap, HashMap};

use client::{Key, object};
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::{
    pod::{HostPort, PodInfo},
    resources::{self, Resources},
};

/// What a node offers and demands; two equal values are the same to every decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub pods_allowed: i64,
}

impl NodeFacts {
    pub fn new(node: &Node) -> NodeFacts {
        let spec = node.spec.as_ref();
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let pods = allocatable.and_then(|a| a.get("pods")).map(|q| resources::parse(q).units());
        NodeFacts {
            name: object::name(node).to_owned(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: Resources::parse(allocatable),
            pods_allowed: pods.unwrap_or(0),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInfo {
    /// None while only pods are known of the node, not the node itself: nothing can be placed there.
    pub facts: Option<NodeFacts>,
    pub requested: Resources,
    pub pods: i64,
    pub host_ports: Vec<HostPort>,
    /// How many pods of each owner run here.
    pub owners: HashMap<String, u32>,
}

/// Where a pod is counted, so that it can be taken off again exactly.
#[derive(Debug)]
struct Placed {
    slot: usize,
    pod: PodInfo,
}

/// All nodes. A node keeps its slot for as long as it exists, so that a cycle can go round from where the last one ended.
#[derive(Debug, Default)]
pub struct Snapshot {
    // Invariant: each slot's sums are exactly those of the entries of `placed` that point at it.
    nodes: Vec<NodeInfo>,
    names: HashMap<String, usize>,
    free: Vec<usize>,
    placed: HashMap<Key, Placed>,
}

impl Snapshot {
    pub fn slots(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// Takes over a node's present state, and tells whether that changes any decision.
    pub fn set_node(&mut self, facts: NodeFacts) -> NodeChange {
        let slot = self.slot(&facts.name);
        let info = &mut self.nodes[slot];
        if info.facts.as_ref() == Some(&facts) {
            return NodeChange::None;
        }
        info.facts = Some(facts);
        NodeChange::Relevant
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.names.get(name).copied() else { return };
        self.nodes[slot].facts = None;
        self.release(slot);
    }

    /// Counts a pod on its node, in place of how it was counted before. A pod without a node is counted nowhere.
    pub fn set_pod(&mut self, pod: PodInfo) {
        self.remove_pod(&pod.key);
        let Some(node) = &pod.node else { return };
        let slot = self.slot(node);
        let info = &mut self.nodes[slot];
        info.requested.add(&pod.requests);
        info.pods += 1;
        info.host_ports.extend(pod.host_ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *info.owners.entry(owner.clone()).or_default() += 1;
        }
        self.placed.insert(pod.key.clone(), Placed { slot, pod });
    }

    /// Takes a pod off its node, and tells whether it was on one.
    pub fn remove_pod(&mut self, key: &Key) -> NodeChange {
        let Some(Placed { slot, pod }) = self.placed.remove(key) else { return NodeChange::None };
        let info = &mut self.nodes[slot];
        info.requested.subtract(&pod.requests);
        info.pods -= 1;
        for port in &pod.host_ports {
            if let Some(at) = info.host_ports.iter().position(|p| p == port) {
                info.host_ports.swap_remove(at);
            }
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = info.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                info.owners.remove(owner);
            }
        }
        self.release(slot);
        NodeChange::Relevant
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.names.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(NodeInfo::default());
            self.nodes.len() - 1
        });
        self.names.insert(name.to_owned(), slot);
        slot
    }

    /// Gives a slot back once neither the node nor any pod on it is known.
    fn release(&mut self, slot: usize) {
        let info = &self.nodes[slot];
        if info.facts.is_none() && info.pods == 0 {
            self.nodes[slot] = NodeInfo::default();
            self.names.retain(|_, s| *s != slot);
            self.free.push(slot);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeChange {
    None,
    /// A pod that found no place may find one now.
    Relevant,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, cpu: i64) -> PodInfo {
        PodInfo {
            key: Key::new("d", name),
            requests: Resources { milli_cpu: cpu, ..Resources::default() },
            owner: Some("o".into()),
            host_ports: vec![HostPort { ip: String::new(), protocol: "TCP".into(), port: 80 }],
            node: Some(node.into()),
            ..PodInfo::default()
        }
    }

    #[test]
    fn sums_follow_every_change_and_slots_are_reused() {
        let mut snapshot = Snapshot::default();
        let facts = NodeFacts { name: "a".into(), ..NodeFacts::default() };
        assert_eq!(snapshot.set_node(facts.clone()), NodeChange::Relevant);
        assert_eq!(snapshot.set_node(facts), NodeChange::None);
        snapshot.set_pod(pod("x", "a", 100));
        snapshot.set_pod(pod("x", "a", 150));
        snapshot.set_pod(pod("y", "a", 50));
        let info = &snapshot.slots()[0];
        assert_eq!((info.requested.milli_cpu, info.pods, info.owners["o"], info.host_ports.len()), (200, 2, 2, 2));
        assert_eq!(snapshot.remove_pod(&Key::new("d", "x")), NodeChange::Relevant);
        assert_eq!(snapshot.remove_pod(&Key::new("d", "x")), NodeChange::None);
        snapshot.remove_node("a");
        assert_eq!(snapshot.slots()[0].pods, 1, "the node is gone, its pod is not");
        snapshot.remove_pod(&Key::new("d", "y"));
        assert_eq!(snapshot.slots()[0], NodeInfo::default());
        snapshot.set_node(NodeFacts { name: "b".into(), ..NodeFacts::default() });
        assert_eq!(snapshot.slots().len(), 1);
    }
}
