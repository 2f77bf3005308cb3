//! What is wrong with the fields that say where a pod may run.

use serde_json::Value;

use crate::{
    field::{Errors, Path, int, items, some_text, text},
    kinds::object_meta,
    names,
};

pub fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    tolerations(errors, &path.child("tolerations"), spec);
    affinity(errors, &path.child("affinity"), spec.get("affinity").unwrap_or(&Value::Null));
    spreading(errors, &path.child("topologySpreadConstraints"), spec);
    for (key, field) in [("readinessGates", "conditionType"), ("schedulingGates", "name")] {
        let list = path.child(key);
        for (index, gate) in items(spec, key).iter().enumerate() {
            let name = text(gate, field);
            errors.complaints(&list.index(index).child(field), name, names::qualified_name(name));
        }
    }
}

fn tolerations(errors: &mut Errors, list: &Path<'_>, spec: &Value) {
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        let at = list.index(index);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if !key.is_empty() {
            errors.complaints(&at.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let detail = "an empty `key` stands for every taint, so `operator` must be Exists";
            errors.invalid_str(&at.child("operator"), operator, detail);
        }
        let effect = text(toleration, "effect");
        if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.invalid_str(&at.child("effect"), effect, "must be NoExecute when `tolerationSeconds` is set");
        }
        match operator {
            "" | "Equal" => {
                let value = text(toleration, "value");
                errors.complaints(&at.child("value"), value, names::label_value(value));
            }
            "Exists" => {
                if let Some(value) = some_text(toleration, "value") {
                    errors.invalid_str(&at.child("operator"), value, "value must be empty when `operator` is Exists");
                }
            }
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.one_of(&at.child("effect"), some_text(toleration, "effect"), &effects);
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn affinity(errors: &mut Errors, path: &Path<'_>, affinity: &Value) {
    if let Some(node) = affinity.get("nodeAffinity") {
        node_affinity(errors, &path.child("nodeAffinity"), node);
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(key) else { continue };
        let path = path.child(key);
        let list = path.child(REQUIRED);
        for (index, term) in items(pods, REQUIRED).iter().enumerate() {
            pod_term(errors, &list.index(index), term);
        }
        let list = path.child(PREFERRED);
        for (index, weighted) in items(pods, PREFERRED).iter().enumerate() {
            let at = list.index(index);
            weight(errors, &at, weighted);
            pod_term(errors, &at.child("podAffinityTerm"), &weighted["podAffinityTerm"]);
        }
    }
}

fn weight(errors: &mut Errors, at: &Path<'_>, weighted: &Value) {
    let weight = int(weighted, "weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(&at.child("weight"), &weight.into(), "must be from 1 to 100");
    }
}

fn pod_term(errors: &mut Errors, at: &Path<'_>, term: &Value) {
    topology_key(errors, &at.child("topologyKey"), term);
    if let Some(selector) = term.get("labelSelector") {
        label_selector(errors, &at.child("labelSelector"), selector);
    }
}

fn topology_key(errors: &mut Errors, at: &Path<'_>, holder: &Value) {
    match some_text(holder, "topologyKey") {
        None => errors.required(at, "can not be empty"),
        Some(key) => errors.complaints(at, key, names::qualified_name(key)),
    }
}

fn node_affinity(errors: &mut Errors, path: &Path<'_>, affinity: &Value) {
    if let Some(required) = affinity.get(REQUIRED) {
        let path = path.child(REQUIRED);
        let list = path.child("nodeSelectorTerms");
        let terms = items(required, "nodeSelectorTerms");
        if terms.is_empty() {
            errors.required(&list, "no term, no node");
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(errors, &list.index(index), term);
        }
    }
    let list = path.child(PREFERRED);
    for (index, weighted) in items(affinity, PREFERRED).iter().enumerate() {
        let at = list.index(index);
        weight(errors, &at, weighted);
        node_term(errors, &at.child("preference"), &weighted["preference"]);
    }
}

fn node_term(errors: &mut Errors, at: &Path<'_>, term: &Value) {
    let list = at.child("matchExpressions");
    for (index, requirement) in items(term, "matchExpressions").iter().enumerate() {
        let at = list.index(index);
        let key = text(requirement, "key");
        errors.complaints(&at.child("key"), key, names::qualified_name(key));
        let values = items(requirement, "values").len();
        let at_values = at.child("values");
        match text(requirement, "operator") {
            "In" | "NotIn" if values == 0 => {
                errors.required(&at_values, "In and NotIn need values");
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.forbidden(&at_values, "Exists and DoesNotExist take no values");
            }
            "Gt" | "Lt" if values != 1 => {
                errors.required(&at_values, "Gt and Lt need exactly one value");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.not_supported(
                &at.child("operator"),
                other,
                &["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"],
            ),
        }
    }
}

fn spreading(errors: &mut Errors, list: &Path<'_>, spec: &Value) {
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let at = list.index(index);
        let skew = int(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            errors.invalid(&at.child("maxSkew"), &skew.into(), "must be greater than zero");
        }
        topology_key(errors, &at.child("topologyKey"), constraint);
        let action = text(constraint, "whenUnsatisfiable");
        errors.one_of(&at.child("whenUnsatisfiable"), Some(action), &["DoNotSchedule", "ScheduleAnyway"]);
        if let Some(selector) = constraint.get("labelSelector") {
            label_selector(errors, &at.child("labelSelector"), selector);
        }
    }
}

/// Checks a `metav1.LabelSelector`.
pub fn label_selector(errors: &mut Errors, at: &Path<'_>, selector: &Value) {
    object_meta::label_map(errors, &at.child("matchLabels"), selector, "matchLabels");
    let list = at.child("matchExpressions");
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let at = list.index(index);
        let key = text(expression, "key");
        errors.complaints(&at.child("key"), key, names::qualified_name(key));
        let values = items(expression, "values");
        let at_values = at.child("values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at_values, "In and NotIn need values");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(&at_values, "Exists and DoesNotExist take no values");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid_str(&at.child("operator"), other, "not a valid selector operator"),
        }
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            errors.complaints(&at_values.index(index), value, names::label_value(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn placement_is_checked() {
        let term = |operator: &str, values: Value| {
            json!({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}]}}}})
        };
        let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]";
        let table = [
            (term("In", json!(["b"])), String::new()),
            (term("In", json!([])), format!("{path}.matchExpressions[0].values")),
            (term("Near", json!(["b"])), format!("{path}.matchExpressions[0].operator")),
            (
                json!({"affinity": {"podAntiAffinity": {PREFERRED: [{"weight": 101, "podAffinityTerm":
                    {"topologyKey": "zone"}}]}}}),
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight".to_owned(),
            ),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z",
                    "whenUnsatisfiable": "DoNotSchedule"}]}),
                "spec.topologySpreadConstraints[0].maxSkew".to_owned(),
            ),
            (
                json!({"tolerations": [{"key": "a", "tolerationSeconds": 1, "effect": "NoSchedule"}]}),
                "spec.tolerations[0].effect".to_owned(),
            ),
            (json!({"tolerations": [{"operator": "Exists"}]}), String::new()),
            (json!({"tolerations": [{"operator": "Equal"}]}), "spec.tolerations[0].operator".to_owned()),
        ];
        for (spec, field) in table {
            let mut errors = Errors::new();
            validate(&mut errors, &Path::root("spec"), &spec);
            let fields: Vec<String> = errors.0.into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields.join(" "), field, "{spec}");
        }
    }
}
