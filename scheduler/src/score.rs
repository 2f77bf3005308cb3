//! Where a pod had better run, among the nodes where it can. To add a preference is one function and one row of [`ALL`].

use crate::{
    filter::{matches_term, tolerates},
    pod::PodInfo,
    snapshot::{NodeFacts, NodeInfo},
};

pub struct Score {
    pub name: &'static str,
    pub weight: i64,
    /// From 0, the worst, to 100.
    pub rate: fn(&PodInfo, &NodeInfo, &NodeFacts) -> i64,
}

/// Spreading outweighs balance: two replicas on one node fail together.
pub const ALL: &[Score] = &[
    Score { name: "Spread", weight: 4, rate: spread },
    Score { name: "TaintToleration", weight: 3, rate: soft_taints },
    Score { name: "NodeAffinity", weight: 2, rate: preferred },
    Score { name: "LeastAllocated", weight: 1, rate: least_allocated },
    Score { name: "FewestPods", weight: 1, rate: fewest_pods },
];

/// The fewer siblings, the better; beyond a few the difference fades.
fn spread(pod: &PodInfo, node: &NodeInfo, _: &NodeFacts) -> i64 {
    let siblings = pod.owner.as_ref().and_then(|o| node.owners.get(o)).copied().unwrap_or(0);
    100 / (1 + i64::from(siblings))
}

fn soft_taints(pod: &PodInfo, _: &NodeInfo, facts: &NodeFacts) -> i64 {
    let soft = facts.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    let borne_badly = soft.filter(|taint| !pod.tolerations.iter().any(|t| tolerates(t, taint))).count();
    100 / (1 + i64::try_from(borne_badly).unwrap_or(i64::MAX - 1))
}

fn preferred(pod: &PodInfo, _: &NodeInfo, facts: &NodeFacts) -> i64 {
    let terms =
        pod.node_affinity.as_ref().and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let terms = terms.unwrap_or_default();
    let total: i64 = terms.iter().map(|t| i64::from(t.weight)).sum();
    if total == 0 {
        return 0;
    }
    let met: i64 = terms.iter().filter(|t| matches_term(&t.preference, facts)).map(|t| i64::from(t.weight)).sum();
    met * 100 / total
}

/// The mean of the shares of CPU and memory that stay free.
fn least_allocated(pod: &PodInfo, node: &NodeInfo, facts: &NodeFacts) -> i64 {
    let free = |want: i64, used: i64, have: i64| {
        if have <= 0 { 0 } else { (have.saturating_sub(used).saturating_sub(want)).max(0).saturating_mul(100) / have }
    };
    let cpu = free(pod.requests.milli_cpu, node.requested.milli_cpu, facts.allocatable.milli_cpu);
    let memory = free(pod.requests.memory, node.requested.memory, facts.allocatable.memory);
    (cpu + memory) / 2
}

/// Pods that ask for nothing are spread too.
fn fewest_pods(_: &PodInfo, node: &NodeInfo, facts: &NodeFacts) -> i64 {
    if facts.pods_allowed <= 0 { 0 } else { (facts.pods_allowed - node.pods).max(0) * 100 / facts.pods_allowed }
}
