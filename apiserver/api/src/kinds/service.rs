//! Service: one address for many pods.

use k8s_openapi::api::core::v1::Service;
use serde_json::Value;

use super::{BASE, CATEGORY_ALL};
use crate::{
    decode,
    registry::{Kind, Strategy},
};

mod row;

pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: CATEGORY_ALL,
    has_status: true,
    schema: "io.k8s.api.core.v1.Service",
    columns: row::COLUMNS,
    strategy: &Services,
    check: decode::check::<Service>,
    ..BASE
};

struct Services;

impl Strategy for Services {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row::cells(object, now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        match path {
            "spec.clusterIP" => Some(crate::field::text(spec, "clusterIP").to_owned()),
            "spec.type" => Some(crate::field::text(spec, "type").to_owned()),
            _ => None,
        }
    }
}
