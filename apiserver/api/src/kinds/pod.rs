//! Pod: containers that live and die together.

use serde_json::Value;

use super::{BASE, CATEGORY_ALL, object_meta};
use crate::{
    field::{Errors, Path, int, is_true, text},
    registry::{Kind, Part, Strategy, Subresource},
    status::Cause,
};

pub(super) mod defaults;
pub(super) mod scheduling;
pub(super) mod validate;

pub(super) use containers::protocol_known;

mod admit;
mod containers;
mod handlers;
mod row;
mod update;
mod volumes;

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
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        admit::new_pod(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Main {
            admit::changed_pod(new, old);
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        validate::spec(&mut errors, &Path::root("spec"), object.get("spec").unwrap_or(&Value::Null));
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        if part == Part::Main {
            update::validate(&mut errors, new, old);
        }
        errors.0
    }

    fn grace_period(&self, object: &Value, requested: Option<i64>) -> i64 {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let phase = object.get("status").map(|status| text(status, "phase")).unwrap_or_default();
        // Nobody has to stop what never ran or has ended.
        if text(spec, "nodeName").is_empty() || matches!(phase, "Succeeded" | "Failed") {
            return 0;
        }
        let seconds = requested.or_else(|| int(spec, "terminationGracePeriodSeconds")).unwrap_or_default();
        // A negative period asks for the shortest there is short of no period at all.
        if seconds < 0 { 1 } else { seconds }
    }

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
