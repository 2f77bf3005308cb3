//! ServiceAccount: who a pod is.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::items,
    registry::{Kind, Strategy},
    table::Column,
};

pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[Column::NAME, Column::text("Secrets", "Number of secrets listed."), Column::AGE],
    strategy: &ServiceAccounts,
    check: decode::check::<ServiceAccount>,
    ..BASE
};

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![print::name(object), items(object, "secrets").len().into(), print::age(object, now)]
    }
}
