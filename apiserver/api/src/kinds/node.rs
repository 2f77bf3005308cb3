//! Node: a machine that runs pods.

use serde_json::Value;

use super::{BASE, object_meta, print};
use crate::{
    field::{Errors, Path, items, set_default, some_text, text},
    meta, names,
    registry::{Kind, Part, Scope, Strategy},
    status::Cause,
    table::Column,
};

pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    scope: Scope::Cluster,
    has_status: true,
    schema: "io.k8s.api.core.v1.Node",
    columns: &[
        Column::NAME,
        Column::text("Status", "Whether pods can run on it."),
        Column::text("Roles", "What it is used for."),
        Column::AGE,
        Column::text("Version", "Version of the agent."),
        Column::text("Internal-IP", "Its address in the cluster.").wide(),
        Column::text("External-IP", "Its address from outside.").wide(),
        Column::text("OS-Image", "Its operating system.").wide(),
        Column::text("Kernel-Version", "Its kernel.").wide(),
        Column::text("Container-Runtime", "What runs its containers.").wide(),
    ],
    strategy: &Nodes,
    ..BASE
};

struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = object.get_mut("status")
            && let Some(capacity) = status.get("capacity").cloned()
        {
            set_default(status, "allocatable", capacity);
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::CLUSTER_SUBDOMAIN);
        taints(&mut errors, object.get("spec").unwrap_or(&Value::Null));
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        let path = Path::root("spec");
        // Routes and pods' addresses follow from it, so it is given once.
        for key in ["podCIDR", "podCIDRs", "providerID"] {
            let (before, after) = (old.get("spec").and_then(|s| s.get(key)), new.get("spec").and_then(|s| s.get(key)));
            if before.is_some() && before != after {
                errors.forbidden(&path.child(key), "may not change once set");
            }
        }
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let status = object.get("status").unwrap_or(&Value::Null);
        let info = status.get("nodeInfo").unwrap_or(&Value::Null);
        let or_unknown = |key| print::or_text(text(info, key), "<unknown>");
        vec![
            print::name(object),
            conditions(object).into(),
            roles(object).into(),
            print::age(object, now),
            text(info, "kubeletVersion").into(),
            address(status, "InternalIP").into(),
            address(status, "ExternalIP").into(),
            or_unknown("osImage").into(),
            or_unknown("kernelVersion").into(),
            or_unknown("containerRuntimeVersion").into(),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.unschedulable").then(|| unschedulable(object).to_string())
    }
}

fn taints(errors: &mut Errors, spec: &Value) {
    let path = Path::root("spec");
    let list = path.child("taints");
    let mut seen = std::collections::HashSet::new();
    for (index, taint) in items(spec, "taints").iter().enumerate() {
        let at = list.index(index);
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        errors.complaints(&at.child("key"), key, names::qualified_name(key));
        if let Some(value) = some_text(taint, "value") {
            errors.complaints(&at.child("value"), value, names::label_value(value));
        }
        match effect {
            "" => errors.required(&at.child("effect"), ""),
            _ => {
                let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
                errors.one_of(&at.child("effect"), Some(effect), &effects);
            }
        }
        if !seen.insert((key, effect)) {
            errors.duplicate(&at, taint);
        }
    }
}

fn unschedulable(object: &Value) -> bool {
    object.pointer("/spec/unschedulable") == Some(&Value::Bool(true))
}

/// `Ready,SchedulingDisabled`
fn conditions(object: &Value) -> String {
    let status = object.get("status").unwrap_or(&Value::Null);
    let ready = items(status, "conditions").iter().find(|condition| text(condition, "type") == "Ready");
    let mut shown = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if unschedulable(object) {
        shown += ",SchedulingDisabled";
    }
    shown
}

/// Roles are labels whose key ends in the role, or whose value is it.
fn roles(object: &Value) -> String {
    let labels = meta::labels(object).into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    print::or_none(roles.join(","))
}

fn address(status: &Value, kind: &str) -> String {
    let found = items(status, "addresses").iter().find(|address| text(address, "type") == kind);
    print::or_text(found.map(|address| text(address, "address")).unwrap_or_default(), print::NONE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn taints_are_checked_and_addresses_kept() {
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        let table = [
            (json!([taint]), ""),
            (json!([taint, taint]), "spec.taints[1]"),
            (json!([{"key": "a"}]), "spec.taints[0].effect"),
            (json!([{"key": "a b", "effect": "Never"}]), "spec.taints[0].key spec.taints[0].effect"),
        ];
        for (taints, expected) in table {
            let object = json!({"metadata": {"name": "a"}, "spec": {"taints": taints}});
            let fields: Vec<String> = Nodes.validate(&object).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields.join(" "), expected);
        }
        let (old, new) = (json!({"spec": {"podCIDR": "10.0.0.0/24"}}), json!({"spec": {"podCIDR": "10.0.1.0/24"}}));
        assert_eq!(Nodes.validate_update(&new, &old, Part::Main)[0].field, "spec.podCIDR");
        assert_eq!(Nodes.validate_update(&new, &json!({}), Part::Main), []);
    }

    #[test]
    fn rows_show_readiness_and_roles() {
        let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let mut cordoned = ready("True");
        cordoned["spec"] = json!({"unschedulable": true});
        for (object, shown) in [
            (ready("True"), "Ready"),
            (ready("Unknown"), "NotReady"),
            (cordoned, "Ready,SchedulingDisabled"),
            (json!({}), "Unknown"),
        ] {
            assert_eq!(conditions(&object), shown);
        }
        let object = json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "",
            "node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}}});
        assert_eq!(roles(&object), "control-plane,edge,worker");
        assert_eq!(roles(&json!({})), "<none>");
        assert_eq!(Nodes.field(&json!({}), "spec.unschedulable").as_deref(), Some("false"));
    }
}
