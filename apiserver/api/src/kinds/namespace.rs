//! Namespace: a scope for names, and for what is deleted together.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::text,
    registry::{Kind, Scope, Strategy, Subresource},
    table::Column,
};

pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    scope: Scope::Cluster,
    has_status: true,
    subresources: &[Subresource { name: "finalize", group: "", version: "", kind: "Namespace", verbs: &["update"] }],
    schema: "io.k8s.api.core.v1.Namespace",
    columns: &[Column::NAME, Column::text("Status", "Active or Terminating."), Column::AGE],
    strategy: &Namespaces,
    // Deleting every namespace at once is no mistake that a client should be able to make.
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    check: decode::check::<Namespace>,
    ..BASE
};

struct Namespaces;

impl Strategy for Namespaces {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        vec![print::name(object), phase(object).into(), print::age(object, now)]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "status.phase").then(|| phase(object).to_owned())
    }
}

fn phase(object: &Value) -> &str {
    object.get("status").map(|status| text(status, "phase")).unwrap_or_default()
}
