//! ReplicaSet: some number of pods from one template.

use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::Value;

use super::{BASE, CATEGORY_ALL, print};
use crate::{
    decode,
    registry::{Kind, Scale, Strategy},
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
    check: decode::check::<ReplicaSet>,
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

struct ReplicaSets;

impl Strategy for ReplicaSets {
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
