//! Pod: containers that live and die together.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{BASE, CATEGORY_ALL};
use crate::{
    decode,
    field::{is_true, text},
    registry::{Kind, Strategy, Subresource},
};

mod row;

pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: CATEGORY_ALL,
    has_status: true,
    subresources: SUBRESOURCES,
    schema: "io.k8s.api.core.v1.Pod",
    columns: row::COLUMNS,
    strategy: &Pods,
    check: decode::check::<Pod>,
    ..BASE
};

const SUBRESOURCES: &[Subresource] = &[
    Subresource { name: "attach", group: "", version: "", kind: "PodAttachOptions", verbs: &["create", "get"] },
    Subresource { name: "binding", group: "", version: "", kind: "Binding", verbs: &["create"] },
    Subresource { name: "eviction", group: "policy", version: "v1", kind: "Eviction", verbs: &["create"] },
    Subresource { name: "exec", group: "", version: "", kind: "PodExecOptions", verbs: &["create", "get"] },
    Subresource { name: "log", group: "", version: "", kind: "Pod", verbs: &["get"] },
];

struct Pods;

impl Strategy for Pods {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row::cells(object, now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let status = object.get("status").unwrap_or(&Value::Null);
        let found = match path {
            "spec.nodeName" => text(spec, "nodeName"),
            "spec.restartPolicy" => text(spec, "restartPolicy"),
            "spec.schedulerName" => text(spec, "schedulerName"),
            "spec.serviceAccountName" => text(spec, "serviceAccountName"),
            "spec.hostNetwork" => return Some(is_true(spec, "hostNetwork").to_string()),
            "status.phase" => text(status, "phase"),
            "status.podIP" => text(status, "podIP"),
            "status.nominatedNodeName" => text(status, "nominatedNodeName"),
            _ => return None,
        };
        Some(found.to_owned())
    }
}
