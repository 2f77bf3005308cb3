//! ReplicationController: the older form of a replica set.

use k8s_openapi::api::core::v1::ReplicationController;
use serde_json::Value;

use super::{BASE, CATEGORY_ALL, print, replica_set};
use crate::{
    decode,
    registry::{Kind, Strategy},
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
    check: decode::check::<ReplicationController>,
    ..BASE
};

struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        replica_set::cells(object, now, print::labels(spec, "selector"))
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| print::number(object, "/status/replicas").to_string())
    }
}
