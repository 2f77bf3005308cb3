//! Where a pod cannot run. To add a rule is one function and one row of [`ALL`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use crate::{
    pod::PodInfo,
    snapshot::{NodeFacts, NodeInfo},
};

/// Why a node will not do, in the words that the pod's condition shows.
pub type Reason = String;

pub struct Filter {
    pub name: &'static str,
    pub check: fn(&PodInfo, &NodeInfo, &NodeFacts) -> Result<(), Reason>,
}

/// In the order in which they are asked; the first refusal is the node's reason, except that [`fits`] names all lacks.
pub const ALL: &[Filter] = &[
    Filter { name: "NodeUnschedulable", check: unschedulable },
    Filter { name: "TaintToleration", check: taints },
    Filter { name: "NodeAffinity", check: affinity },
    Filter { name: "NodePorts", check: ports },
    Filter { name: "NodeResourcesFit", check: fits },
];

fn unschedulable(pod: &PodInfo, _: &NodeInfo, facts: &NodeFacts) -> Result<(), Reason> {
    let cordon = || Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    if facts.unschedulable && !pod.tolerations.iter().any(|t| tolerates(t, &cordon())) {
        return Err("node(s) were unschedulable".to_owned());
    }
    Ok(())
}

fn taints(pod: &PodInfo, _: &NodeInfo, facts: &NodeFacts) -> Result<(), Reason> {
    let hard = facts.taints.iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    for taint in hard {
        if !pod.tolerations.iter().any(|t| tolerates(t, taint)) {
            let value = taint.value.as_deref().unwrap_or_default();
            return Err(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
        }
    }
    Ok(())
}

fn affinity(pod: &PodInfo, _: &NodeInfo, facts: &NodeFacts) -> Result<(), Reason> {
    let selected = pod.node_selector.iter().all(|(key, value)| facts.labels.get(key) == Some(value));
    let required =
        pod.node_affinity.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let affine = required.is_none_or(|r| r.node_selector_terms.iter().any(|term| matches_term(term, facts)));
    if selected && affine { Ok(()) } else { Err("node(s) didn't match Pod's node affinity/selector".to_owned()) }
}

fn ports(pod: &PodInfo, node: &NodeInfo, _: &NodeFacts) -> Result<(), Reason> {
    let taken = pod.host_ports.iter().any(|want| node.host_ports.iter().any(|have| have.conflicts(want)));
    if taken { Err("node(s) didn't have free ports for the requested pod ports".to_owned()) } else { Ok(()) }
}

fn fits(pod: &PodInfo, node: &NodeInfo, facts: &NodeFacts) -> Result<(), Reason> {
    let (want, used, have) = (&pod.requests, &node.requested, &facts.allocatable);
    let mut lacks = Vec::new();
    if node.pods + 1 > facts.pods_allowed {
        lacks.push("Too many pods".to_owned());
    }
    let basic = [
        ("cpu", want.milli_cpu, used.milli_cpu, have.milli_cpu),
        ("memory", want.memory, used.memory, have.memory),
        ("ephemeral-storage", want.ephemeral_storage, used.ephemeral_storage, have.ephemeral_storage),
    ];
    for (name, want, used, have) in basic {
        if want > 0 && want > have.saturating_sub(used) {
            lacks.push(format!("Insufficient {name}"));
        }
    }
    for (name, want) in want.extended.iter().filter(|(_, want)| **want > 0) {
        let of = |r: &BTreeMap<String, i64>| r.get(name).copied().unwrap_or(0);
        if *want > of(&have.extended) - of(&used.extended) {
            lacks.push(format!("Insufficient {name}"));
        }
    }
    if lacks.is_empty() { Ok(()) } else { Err(lacks.join(", ")) }
}

/// Whether a toleration lets a pod bear a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.as_deref().filter(|t| !t.is_empty()).map(str::to_owned);
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    match (given(&toleration.key), toleration.operator.as_deref().unwrap_or("Equal")) {
        (Some(key), _) if key != taint.key => false,
        (_, "Exists") => true,
        (Some(_), "Equal" | "") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        (None, _) | (Some(_), _) => false,
    }
}

/// A term with neither expressions nor fields matches nothing.
pub fn matches_term(term: &NodeSelectorTerm, facts: &NodeFacts) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let named = |key: &str| (key == "metadata.name").then_some(facts.name.as_str());
    expressions.iter().all(|r| meets(r, facts.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| meets(r, named(&r.key)))
}

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|v| number(v));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value.and_then(number).zip(bound).is_some_and(|(v, b)| v > b),
        "Lt" => value.and_then(number).zip(bound).is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn tolerations() {
        let taint = |key: &str, value: &str, effect: &str| Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            ..Taint::default()
        };
        let cases: [(Value, Taint, bool); 8] = [
            (json!({"operator": "Exists"}), taint("a", "b", "NoExecute"), true),
            (json!({"key": "a", "operator": "Exists"}), taint("a", "b", "NoExecute"), true),
            (json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}), taint("a", "b", "NoExecute"), false),
            (json!({"key": "a", "value": "b"}), taint("a", "b", "NoSchedule"), true),
            (json!({"key": "a", "value": "c"}), taint("a", "b", "NoSchedule"), false),
            (json!({"key": "x", "operator": "Exists"}), taint("a", "b", "NoSchedule"), false),
            (json!({"key": "a"}), taint("a", "", "NoSchedule"), true),
            (json!({}), taint("a", "", "NoSchedule"), false),
        ];
        for (toleration, taint, expected) in cases {
            let parsed: Toleration = from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerates(&parsed, &taint), expected, "{toleration} {taint:?}");
        }
    }

    #[test]
    fn node_affinity_operators() {
        let labels = [("zone", "z1"), ("cores", "8")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let facts = NodeFacts { name: "n1".into(), labels, ..NodeFacts::default() };
        let cases = [
            (json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z0", "z1"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["z1"]}]}), false),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["x"]}]}), true),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}), true),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}), false),
            (json!({}), false),
        ];
        for (term, expected) in cases {
            let parsed: NodeSelectorTerm = from_value(term.clone()).expect("a term");
            assert_eq!(matches_term(&parsed, &facts), expected, "{term}");
        }
    }
}
