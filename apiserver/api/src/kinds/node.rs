//! Node: a machine that runs pods.

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::{items, text},
    meta,
    registry::{Kind, Scope, Strategy},
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
    check: decode::check::<Node>,
    ..BASE
};

struct Nodes;

impl Strategy for Nodes {
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
