//! Service: one address for many pods.

use serde_json::Value;

use super::{
    BASE, CATEGORY_ALL,
    object_meta::{self, Naming},
};
use crate::{
    field::{Errors, items, text},
    names,
    registry::{Kind, Part, Strategy},
    status::Cause,
};

mod defaults;
mod row;
mod validate;

pub use validate::NODE_PORTS;

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
    ..BASE
};

const CLUSTER_IP: &str = "ClusterIP";
const NODE_PORT: &str = "NodePort";
const LOAD_BALANCER: &str = "LoadBalancer";
const EXTERNAL_NAME: &str = "ExternalName";
const TYPES: &[&str] = &[CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME];
/// The address of a service whose pods clients find themselves.
const HEADLESS: &str = "None";

/// Its name is a DNS name of its own, so it starts with a letter.
const NAMING: Naming = Naming { namespaced: true, rule: names::dns1035_label };

/// Whether the service has, or waits for, an address inside the cluster.
fn has_cluster_ip(spec: &Value) -> bool {
    text(spec, "type") != EXTERNAL_NAME
}

fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        NODE_PORT | LOAD_BALANCER => true,
        CLUSTER_IP => !items(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        defaults::service(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Main {
            defaults::carry_over(new, old);
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &NAMING);
        validate::service(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        if part == Part::Main {
            validate::update(&mut errors, new, old);
        }
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        row::cells(object, now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        match path {
            "spec.clusterIP" => Some(text(spec, "clusterIP").to_owned()),
            "spec.type" => Some(text(spec, "type").to_owned()),
            _ => None,
        }
    }
}
