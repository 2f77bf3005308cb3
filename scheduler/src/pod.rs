//! A pod as the scheduler sees it.

use client::{
    Key, object,
    pod::{Pod, PodSpec},
};
use k8s_openapi::api::core::v1::{NodeAffinity, Toleration};

use crate::resources::Resources;

/// What matters of a pod for placing it, or for placing others beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodInfo {
    pub key: Key,
    pub uid: String,
    pub priority: i32,
    pub requests: Resources,
    pub node_selector: Vec<(String, String)>,
    pub node_affinity: Option<NodeAffinity>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    /// Pods of one owner are spread over the nodes.
    pub owner: Option<String>,
    pub node: Option<String>,
}

/// A port of the node itself that a container takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
        let same_ip = self.ip == other.ip || any(&self.ip) || any(&other.ip);
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

impl PodInfo {
    pub fn new(pod: &Pod) -> PodInfo {
        let spec = pod.spec.as_ref();
        PodInfo {
            key: Key::of(pod),
            uid: object::uid(pod).to_owned(),
            priority: spec.and_then(|s| s.priority).unwrap_or(0),
            requests: spec.map(Resources::of_pod).unwrap_or_default(),
            node_selector: spec.and_then(|s| s.node_selector.clone()).unwrap_or_default().into_iter().collect(),
            node_affinity: spec.and_then(node_affinity),
            tolerations: spec.and_then(|s| s.tolerations.clone()).unwrap_or_default(),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            owner: object::controller(pod).map(|o| o.uid.clone()),
            node: spec.and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
        }
    }
}

/// A pod whose containers have ended for good occupies nothing.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether this scheduler is to find a node for the pod.
pub fn is_waiting(pod: &Pod, scheduler: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let unbound = spec.node_name.as_deref().unwrap_or_default().is_empty();
    let ours = spec.scheduler_name.as_deref().unwrap_or(scheduler) == scheduler;
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    unbound && ours && !gated && !object::is_deleting(pod) && !is_finished(pod)
}

fn node_affinity(spec: &PodSpec) -> Option<NodeAffinity> {
    spec.affinity.as_ref()?.node_affinity.clone()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: p.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}
