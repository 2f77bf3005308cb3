//! Secret: configuration that is one.

use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::text,
    registry::{Kind, Strategy},
    table::Column,
};

pub static SECRET: Kind = Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    columns: &[
        Column::NAME,
        Column::text("Type", "What reads the secret."),
        Column::integer("Data", "Number of keys."),
        Column::AGE,
    ],
    strategy: &Secrets,
    check: decode::check::<Secret>,
    ..BASE
};

struct Secrets;

impl Strategy for Secrets {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = object.get("data").and_then(Value::as_object).map_or(0, serde_json::Map::len);
        vec![print::name(object), text(object, "type").into(), count.into(), print::age(object, now)]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "type").then(|| text(object, "type").to_owned())
    }
}
