//! Deployment: replica sets that follow each other as the template changes.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use super::{BASE, CATEGORY_ALL, print, replica_set};
use crate::{
    decode,
    registry::{Kind, Strategy},
    table::Column,
};

pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: CATEGORY_ALL,
    has_status: true,
    scale: Some(&replica_set::SCALE),
    schema: "io.k8s.api.apps.v1.Deployment",
    columns: &[
        Column::NAME,
        Column::text("Ready", "Pods that are ready, of those asked for."),
        Column::text("Up-to-date", "Pods of the current template."),
        Column::text("Available", "Pods that have been ready for long enough."),
        Column::AGE,
        Column::text("Containers", "Names of the containers.").wide(),
        Column::text("Images", "Images of the containers.").wide(),
        Column::text("Selector", "The labels of its pods.").wide(),
    ],
    strategy: &Deployments,
    check: decode::check::<Deployment>,
    ..BASE
};

struct Deployments;

impl Strategy for Deployments {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (containers, images) = print::containers_and_images(object);
        let desired = print::number(object, "/spec/replicas");
        let selector = object.pointer("/spec/selector").map_or_else(|| print::NONE.to_owned(), print::selector);
        vec![
            print::name(object),
            format!("{}/{desired}", print::number(object, "/status/readyReplicas")).into(),
            print::number(object, "/status/updatedReplicas").into(),
            print::number(object, "/status/availableReplicas").into(),
            print::age(object, now),
            containers.into(),
            images.into(),
            selector.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_progress() {
        let object = json!({"metadata": {"name": "a"},
            "status": {"replicas": 4, "readyReplicas": 2, "updatedReplicas": 1, "availableReplicas": 2},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [
                {"name": "c", "image": "i"}]}}}});
        assert_eq!(json!(Deployments.row(&object, 0)), json!(["a", "2/3", 1, 2, "<unknown>", "c", "i", "a=b"]));
    }
}
