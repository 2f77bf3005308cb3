//! ConfigMap: configuration that is no secret.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    registry::{Kind, Strategy},
    table::Column,
};

pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    columns: &[Column::NAME, Column::text("Data", "Number of keys."), Column::AGE],
    strategy: &ConfigMaps,
    check: decode::check::<ConfigMap>,
    ..BASE
};

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = |key: &str| object.get(key).and_then(Value::as_object).map_or(0, serde_json::Map::len);
        vec![print::name(object), (count("data") + count("binaryData")).into(), print::age(object, now)]
    }
}
