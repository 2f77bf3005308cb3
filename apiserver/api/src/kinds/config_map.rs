//! ConfigMap: configuration that is no secret.

use serde_json::Value;

use super::{BASE, object_meta, print};
use crate::{
    field::{Errors, Path, entries, is_true},
    names,
    registry::{Kind, Part, Strategy},
    status::Cause,
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
    ..BASE
};

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        keys(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        immutable(&mut errors, new, old, &["data", "binaryData"]);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = |key: &str| object.get(key).and_then(Value::as_object).map_or(0, serde_json::Map::len);
        vec![print::name(object), (count("data") + count("binaryData")).into(), print::age(object, now)]
    }
}

/// All values of a config map or a secret together.
pub const SIZE_LIMIT: usize = 1024 * 1024;

fn keys(errors: &mut Errors, object: &Value) {
    let mut size = 0;
    for part in ["data", "binaryData"] {
        let path = Path::root(part);
        for (key, value) in entries(object, part) {
            errors.complaints(&path.key(key), key, names::config_key(key));
            // Base64 takes four bytes for three.
            size += if part == "data" { value.len() } else { value.len() / 4 * 3 };
            if part == "data" && object.get("binaryData").is_some_and(|binary| binary.get(key).is_some()) {
                errors.invalid_str(&path.key(key), key, "is in binaryData too");
            }
        }
    }
    if size > SIZE_LIMIT {
        errors.too_long(&Path::root("data"), SIZE_LIMIT);
    }
}

/// Nothing of an object that says it is immutable changes, and it cannot take that back.
pub fn immutable(errors: &mut Errors, new: &Value, old: &Value, parts: &[&str]) {
    if !is_true(old, "immutable") {
        return;
    }
    let detail = "the object says that it is immutable";
    if !is_true(new, "immutable") {
        errors.forbidden(&Path::root("immutable"), detail);
    }
    for part in parts {
        if new.get(*part) != old.get(*part) {
            errors.forbidden(&Path::root(part), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(causes: Vec<Cause>) -> String {
        causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_are_file_names() {
        let table = [
            (json!({"data": {"a.conf": "x"}, "binaryData": {"b": "aGk="}}), ""),
            (json!({"data": {"a/b": "x"}}), "data[a/b]"),
            (json!({"data": {"a": "x"}, "binaryData": {"a": "aGk="}}), "data[a]"),
            (json!({"data": {"a": "x".repeat(SIZE_LIMIT + 1)}}), "data"),
        ];
        for (mut object, expected) in table {
            object["metadata"] = json!({"name": "a", "namespace": "n"});
            assert_eq!(fields(ConfigMaps.validate(&object)), expected);
        }
    }

    #[test]
    fn immutable_means_it() {
        let old = json!({"metadata": {"name": "a"}, "immutable": true, "data": {"a": "b"}});
        let new = json!({"metadata": {"name": "a"}, "data": {"a": "c"}});
        assert_eq!(fields(ConfigMaps.validate_update(&new, &old, Part::Main)), "immutable data");
        assert_eq!(fields(ConfigMaps.validate_update(&old, &old, Part::Main)), "");
        assert_eq!(fields(ConfigMaps.validate_update(&old, &new, Part::Main)), "");
    }
}
