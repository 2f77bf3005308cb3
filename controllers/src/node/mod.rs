//! What the cluster does about its nodes.
//!
//! - [`lifecycle`]: a silent node becomes `Unknown` and tainted, and is healed when it speaks again
//! - [`eviction`]: pods leave a tainted node when their toleration has run out
//! - [`ipam`]: every node gets a range of pod addresses
//! - [`orphans`]: pods whose node is gone are removed

pub mod eviction;
pub mod ipam;
pub mod lifecycle;
pub mod orphans;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The status of the `Ready` condition; `Unknown` where there is none yet.
pub fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| c.status.as_str())
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// The taints that drive pods away.
pub fn expelling(node: &Node) -> Vec<&Taint> {
    taints(node).iter().filter(|t| t.effect == NO_EXECUTE).collect()
}
