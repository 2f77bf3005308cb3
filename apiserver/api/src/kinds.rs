//! One file per kind. To add one: a file here with a `pub static`, and its line in [`ALL`].

mod config_map;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod node;
mod pod;
mod replica_set;
mod replication_controller;
mod secret;
pub mod service;
mod service_account;

mod object_meta;
mod print;
mod workload;

#[cfg(test)]
mod golden;

pub const ALL: &[&Kind] = &[
    &config_map::CONFIG_MAP,
    &endpoints::ENDPOINTS,
    &event::EVENT,
    &namespace::NAMESPACE,
    &node::NODE,
    &pod::POD,
    &replication_controller::REPLICATION_CONTROLLER,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
    &service::SERVICE,
    &deployment::DEPLOYMENT,
    &replica_set::REPLICA_SET,
    &event::EVENT_V1,
    &lease::LEASE,
    &endpoint_slice::ENDPOINT_SLICE,
];

use serde_json::Value;

use crate::registry::{ALL_VERBS, Kind, Scope, Strategy};

/// What most kinds share; a row says only how it differs.
const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    has_status: false,
    scale: None,
    subresources: &[],
    schema: "",
    columns: &[],
    strategy: &Plain,
    verbs: ALL_VERBS,
    alias: None,
};

/// The category of what `kubectl get all` shows.
const CATEGORY_ALL: &[&str] = &["all"];

struct Plain;

impl Strategy for Plain {
    fn row(&self, _object: &Value, _now: i64) -> Vec<Value> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_are_whole_and_unique() {
        let mut seen = HashSet::new();
        for kind in ALL {
            assert!(seen.insert((kind.resource(), kind.version)), "{} twice", kind.resource());
            assert_eq!(kind.singular, kind.kind.to_lowercase());
            assert!(kind.schema.ends_with(&format!(".{}.{}", kind.version, kind.kind)), "{}", kind.schema);
            assert!(crate::schema::message(kind.schema).is_some(), "{}", kind.schema);
            assert!(!kind.columns.is_empty(), "{}", kind.kind);
        }
    }
}
