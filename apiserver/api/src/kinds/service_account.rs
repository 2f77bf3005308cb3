//! ServiceAccount: who a pod is.

use serde_json::Value;

use super::{BASE, object_meta, print};
use crate::{
    field::Errors,
    registry::{Kind, Part, Strategy, Subresource},
    status::Cause,
    table::Column,
};

pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[Column::NAME, Column::AGE],
    strategy: &ServiceAccounts,
    subresources: TOKEN,
    ..BASE
};

const TOKEN: &[Subresource] = &[Subresource {
    name: "token",
    group: "authentication.k8s.io",
    version: "v1",
    kind: "TokenRequest",
    verbs: &["create"],
}];

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![print::name(object), print::age(object, now)]
    }
}
