//! Namespace: a scope for names, and for what is deleted together.

use serde_json::Value;

use super::{
    BASE,
    object_meta::{self, Naming},
    print,
};
use crate::{
    field::{Errors, copy_field, items, object_mut, text},
    meta, names,
    registry::{Kind, Part, Scope, Strategy, Subresource},
    status::Cause,
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
    ..BASE
};

struct Namespaces;

const NAMING: Naming = Naming { namespaced: false, rule: names::dns1123_label };

/// Lets selectors that pick by label name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Holds a namespace until everything in it is gone.
const FINALIZER: &str = "kubernetes";

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            meta::set_label(object, NAME_LABEL, &name);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        // A generated name has come since the defaults.
        self.default(object);
        let spec = object_mut(object, "spec");
        if !items(spec, "finalizers").iter().any(|each| each == FINALIZER) {
            match spec.get_mut("finalizers").and_then(Value::as_array_mut) {
                Some(finalizers) => finalizers.push(FINALIZER.into()),
                None => spec["finalizers"] = vec![FINALIZER].into(),
            }
        }
        object["status"] = serde_json::json!({"phase": "Active"});
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        // Finalizers leave only through the finalize subresource.
        if part == Part::Main {
            copy_field(new, old, "spec");
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &NAMING);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.0
    }

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_starts_active_and_held() {
        let mut object = json!({"metadata": {"name": "a"}});
        Namespaces.default(&mut object);
        Namespaces.prepare_create(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        assert_eq!(Namespaces.validate(&object), []);
        let mut new = object.clone();
        new["spec"] = json!({});
        Namespaces.prepare_update(&mut new, &object, Part::Main);
        assert_eq!(new, object);
        let dotted = json!({"metadata": {"name": "a.b"}});
        assert_eq!(Namespaces.validate(&dotted)[0].field, "metadata.name");
        assert_eq!(json!(Namespaces.row(&object, 0)), json!(["a", "Active", "<unknown>"]));
        assert_eq!(Namespaces.field(&object, "status.phase").as_deref(), Some("Active"));
    }
}
