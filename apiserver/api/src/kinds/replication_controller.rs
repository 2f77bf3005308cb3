//! ReplicationController: the older form of a replica set.

use serde_json::Value;

use super::{BASE, CATEGORY_ALL, object_meta, print, replica_set, workload};
use crate::{
    field::{Errors, Path, entries, object_mut},
    registry::{Kind, Part, Strategy},
    selector::Selector,
    status::Cause,
};

pub static REPLICATION_CONTROLLER: Kind = Kind {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: CATEGORY_ALL,
    has_status: true,
    scale: Some(&replica_set::SCALE),
    schema: "io.k8s.api.core.v1.ReplicationController",
    columns: replica_set::COLUMNS,
    strategy: &ReplicationControllers,
    ..BASE
};

struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Value) {
        workload::default(object);
        let Some(labels) = object.pointer("/spec/template/metadata/labels").cloned() else { return };
        let empty = |value: Option<&Value>| value.and_then(Value::as_object).is_none_or(serde_json::Map::is_empty);
        if empty(object.pointer("/spec/selector")) {
            object["spec"]["selector"] = labels.clone();
        }
        if empty(object.pointer("/metadata/labels")) {
            object_mut(object, "metadata")["labels"] = labels;
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"replicas": 0});
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        let path = Path::root("spec");
        let spec = object.get("spec").unwrap_or(&Value::Null);
        object_meta::label_map(&mut errors, &path.child("selector"), spec, "selector");
        let selector = Selector::from_pairs(entries(spec, "selector"));
        if selector.requirements().is_empty() {
            errors.required(&path.child("selector"), "");
        }
        workload::validate(&mut errors, object, Ok(selector));
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        if part == Part::Status {
            workload::validate_status(&mut errors, new, replica_set::COUNTS);
        }
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        replica_set::cells(object, now, print::labels(spec, "selector"))
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| print::number(object, "/status/replicas").to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let mut object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        ReplicationControllers.default(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(ReplicationControllers.validate(&object), []);
        object["spec"]["selector"] = json!({"a": "c"});
        let fields: Vec<String> = ReplicationControllers.validate(&object).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["spec.template.metadata.labels"]);
        assert_eq!(ReplicationControllers.row(&object, 0)[7], "a=c");
    }
}
