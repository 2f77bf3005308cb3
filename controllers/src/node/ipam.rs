//! Every node gets a /24 of the cluster's pod addresses, for as long as the node exists.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, str::FromStr};

use client::object;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::plan::{Face, Note, Plan, Step, Target, Write, reference};

/// A node's share: 254 pods are more than any node runs.
const NODE_PREFIX: u8 = 24;

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| format!("{text:?} is not an address range"))?;
        let address: Ipv4Addr = address.parse().map_err(|e| format!("{text:?}: {e}"))?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(|| format!("{text:?}: a bad prefix"))?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Cidr { base: u32::from(address) & mask, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl Cidr {
    fn end(self) -> u64 {
        u64::from(self.base) + (1_u64 << (32 - self.prefix))
    }

    fn overlaps(self, other: Cidr) -> bool {
        u64::from(self.base) < other.end() && u64::from(other.base) < self.end()
    }
}

/// What the nodes have been given so far.
pub fn taken<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeSet<Cidr> {
    let spec = nodes.into_iter().filter_map(|n| n.spec.as_ref());
    spec.filter_map(|s| s.pod_cidr.as_deref()?.parse().ok()).collect()
}

pub fn plan(node: &Node, cluster: Cidr, taken: &BTreeSet<Cidr>) -> Plan {
    let has = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).is_some_and(|c| !c.is_empty());
    if has || object::is_deleting(node) {
        return Plan::nothing();
    }
    let Some(free) = free(cluster, taken) else {
        let full = Note::warning(
            "CIDRNotAvailable",
            format!("Node {} has no pod addresses: {cluster} is used up", object::name(node)),
        );
        // A write without a change carries the event, and finds out whether the node is still there.
        let tell = Write::merge(Target::of(node), Face::Whole, json!({})).told(reference(node), Some(full), None);
        return Plan::nothing().then(Step::together(vec![tell]));
    };
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "podCIDR": free.to_string(), "podCIDRs": [free.to_string()] },
    });
    Plan::nothing().then(Step::together(vec![Write::merge(Target::of(node), Face::Whole, patch)]))
}

/// The lowest share that overlaps none that is taken; a range smaller than a share is given whole, once.
fn free(cluster: Cidr, taken: &BTreeSet<Cidr>) -> Option<Cidr> {
    let prefix = NODE_PREFIX.max(cluster.prefix);
    let step = 1_u64 << (32 - prefix);
    let mut at = u64::from(cluster.base);
    let foreign: Vec<Cidr> = taken.iter().copied().filter(|c| c.overlaps(cluster)).collect();
    let mut next = foreign.iter().peekable();
    while at < cluster.end() {
        let share = Cidr { base: u32::try_from(at).ok()?, prefix };
        // Both run upwards: whatever ends below the share can never overlap a later one.
        while next.next_if(|c| c.end() <= at).is_some() {}
        match next.peek() {
            Some(c) if c.overlaps(share) => at += step,
            _ => return Some(share),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::*;
    use crate::{plan::Action, testing::meta};

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a range")
    }

    fn node(name: &str, given: Option<&str>) -> Node {
        let spec = NodeSpec { pod_cidr: given.map(Into::into), ..NodeSpec::default() };
        Node { metadata: meta(name), spec: Some(spec), status: None }
    }

    #[test]
    fn shares() {
        let cases: [(&str, &[&str], Option<&str>); 7] = [
            ("10.244.0.0/16", &[], Some("10.244.0.0/24")),
            ("10.244.0.0/16", &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            ("10.244.0.0/16", &["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", &["192.168.0.0/24"], Some("10.244.0.0/24")),
            ("10.244.0.0/23", &["10.244.0.0/24", "10.244.1.0/24"], None),
            ("10.244.0.0/26", &[], Some("10.244.0.0/26")),
            ("10.244.0.0/26", &["10.244.0.0/26"], None),
        ];
        for (cluster, taken, wanted) in cases {
            let taken = taken.iter().map(|t| cidr(t)).collect();
            assert_eq!(free(cidr(cluster), &taken).map(|c| c.to_string()).as_deref(), wanted, "{cluster} {taken:?}");
        }
    }

    #[test]
    fn all_nodes_of_a_cluster_get_different_shares() {
        let mut nodes = Vec::new();
        for i in 0..256 {
            let plan = plan(&node(&format!("n{i}"), None), cidr("10.244.0.0/16"), &taken(&nodes));
            let Action::Merge { patch, .. } = &plan.steps[0].writes[0].action else { panic!("a patch: {plan:?}") };
            nodes.push(node(&format!("n{i}"), patch["spec"]["podCIDR"].as_str()));
        }
        assert_eq!(taken(&nodes).len(), 256);
        let full = plan(&node("late", None), cidr("10.244.0.0/16"), &taken(&nodes));
        assert!(full.steps[0].writes[0].told.is_some());
        assert_eq!(plan(&nodes[0], cidr("10.244.0.0/16"), &taken(&nodes)), Plan::nothing());
    }

    #[test]
    fn bad_ranges() {
        for text in ["10.0.0.0", "10.0.0/8", "10.0.0.0/33", "x/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        assert_eq!(cidr("10.1.2.3/16").to_string(), "10.1.0.0/16");
        assert_eq!(cidr("0.0.0.0/0").end(), 1 << 32);
    }
}
