//! ReplicaSet: some number of pods from one template.

use serde_json::Value;

use super::{BASE, CATEGORY_ALL, object_meta, print, workload};
use crate::{
    field::Errors,
    registry::{Kind, Part, Scale, Strategy},
    status::Cause,
    table::Column,
};

pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: CATEGORY_ALL,
    has_status: true,
    scale: Some(&SCALE),
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    columns: COLUMNS,
    strategy: &ReplicaSets,
    ..BASE
};

/// Where replicated kinds keep what `/scale` shows.
pub const SCALE: Scale =
    Scale { replicas: "/spec/replicas", status_replicas: "/status/replicas", selector: "/spec/selector" };

/// The columns of replica sets and of replication controllers.
pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::integer("Desired", "Pods asked for."),
    Column::integer("Current", "Pods that exist."),
    Column::integer("Ready", "Pods that are ready."),
    Column::AGE,
    Column::text("Containers", "Names of the containers.").wide(),
    Column::text("Images", "Images of the containers.").wide(),
    Column::text("Selector", "The labels of its pods.").wide(),
];

/// What a status counts, of its `replicas`.
pub const COUNTS: &[&str] = &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        workload::default(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"replicas": 0});
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        let selector = workload::selector(&mut errors, object);
        workload::validate(&mut errors, object, selector);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        workload::selector_immutable(&mut errors, new, old);
        if part == Part::Status {
            workload::validate_status(&mut errors, new, COUNTS);
        }
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let selector = object.pointer("/spec/selector").map_or_else(|| print::NONE.to_owned(), print::selector);
        cells(object, now, selector)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| print::number(object, "/status/replicas").to_string())
    }
}

/// The cells of [`COLUMNS`].
pub fn cells(object: &Value, now: i64, selector: String) -> Vec<Value> {
    let (containers, images) = print::containers_and_images(object);
    vec![
        print::name(object),
        print::number(object, "/spec/replicas").into(),
        print::number(object, "/status/replicas").into(),
        print::number(object, "/status/readyReplicas").into(),
        print::age(object, now),
        containers.into(),
        images.into(),
        selector.into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn small(selector: Value, labels: Value) -> Value {
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    }

    #[test]
    fn template_and_selector_belong_together() {
        let table = [
            (small(json!({"matchLabels": {"a": "b"}}), json!({"a": "b"})), ""),
            (
                small(json!({"matchLabels": {"a": "b"}}), json!({"a": "c"})),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: the selector does not select them",
            ),
            (small(json!({}), json!({"a": "c"})), "spec.selector: Invalid value: {}: empty selector is invalid"),
            (small(Value::Null, json!({"a": "c"})), "spec.selector: Required value"),
        ];
        for (mut object, expected) in table {
            ReplicaSets.default(&mut object);
            assert_eq!(object["spec"]["replicas"], 1);
            let shown: Vec<String> = ReplicaSets.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(shown.join("; "), expected);
        }
        let old = small(json!({"matchLabels": {"a": "b"}}), json!({}));
        let new = small(json!({"matchLabels": {"a": "c"}}), json!({}));
        let shown = ReplicaSets.validate_update(&new, &old, Part::Main);
        assert_eq!(
            shown[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"
        );
    }

    #[test]
    fn rows_count_pods() {
        let object = json!({"metadata": {"name": "a"}, "status": {"replicas": 2, "readyReplicas": 1},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
                {"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}}});
        let row = ReplicaSets.row(&object, 0);
        assert_eq!(json!(row), json!(["a", 3, 2, 1, "<unknown>", "c,d", "i,j", "a=b"]));
        assert_eq!(ReplicaSets.field(&object, "status.replicas").as_deref(), Some("2"));
    }
}
