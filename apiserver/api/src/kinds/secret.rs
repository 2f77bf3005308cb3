//! Secret: configuration that is one.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{BASE, config_map, object_meta, print};
use crate::{
    field::{Errors, Path, entries, object_mut, set_default_text, text},
    meta, names,
    registry::{Kind, Part, Strategy},
    status::Cause,
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
        Column::text("Data", "Number of keys."),
        Column::AGE,
    ],
    strategy: &Secrets,
    ..BASE
};

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        set_default_text(object, "type", "Opaque");
        fold_string_data(object);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        keys(&mut errors, object);
        contents(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.immutable(&Path::root("type"), new.get("type"), old.get("type"));
        config_map::immutable(&mut errors, new, old, &["data"]);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = object.get("data").and_then(Value::as_object).map_or(0, serde_json::Map::len);
        vec![print::name(object), text(object, "type").into(), count.into(), print::age(object, now)]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "type").then(|| text(object, "type").to_owned())
    }
}

/// `stringData` is only a way to write: it becomes `data`.
fn fold_string_data(object: &mut Value) {
    let Some(Value::Object(plain)) = object.as_object_mut().and_then(|fields| fields.remove("stringData")) else {
        return;
    };
    for (key, value) in plain {
        let encoded = BASE64_STANDARD.encode(value.as_str().unwrap_or_default());
        object_mut(object, "data")[&key] = encoded.into();
    }
}

fn keys(errors: &mut Errors, object: &Value) {
    let path = Path::root("data");
    let mut size = 0;
    for (key, value) in entries(object, "data") {
        errors.complaints(&path.key(key), key, names::config_key(key));
        size += value.len() / 4 * 3;
    }
    if size > config_map::SIZE_LIMIT {
        errors.too_long(&path, config_map::SIZE_LIMIT);
    }
}

/// What the types promise to those who read them.
fn contents(errors: &mut Errors, object: &Value) {
    let path = Path::root("data");
    let has = |key: &str| object.get("data").is_some_and(|data| data.get(key).is_some());
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => &["username", "password"],
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if meta::annotation(object, annotation).is_none_or(str::is_empty) {
                let path = Path::root("metadata");
                errors.required(&path.child("annotations").key(annotation), "");
            }
            &[]
        }
        _ => &[],
    };
    for key in needed.iter().filter(|key| !has(key)) {
        errors.required(&path.key(key), "");
    }
    for key in needed.iter().filter(|key| key.starts_with(".docker") && has(key)) {
        let decoded = BASE64_STANDARD.decode(text(&object["data"], key)).unwrap_or_default();
        if serde_json::from_slice::<Value>(&decoded).is_err() {
            // The value is a secret even when it is broken.
            errors.invalid_str(&path.key(key), "<secret contents redacted>", "must be JSON");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_data_is_folded_in() {
        let mut object = json!({"data": {"a": "eA=="}, "stringData": {"a": "hi", "b": "ho"}});
        Secrets.default(&mut object);
        assert_eq!(object, json!({"type": "Opaque", "data": {"a": "aGk=", "b": "aG8="}}));
    }

    #[test]
    fn types_keep_their_promises() {
        let table = [
            (json!({"type": "Opaque"}), ""),
            (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}), "data[tls.key]"),
            (json!({"type": "kubernetes.io/basic-auth", "data": {"username": ""}}), ""),
            (json!({"type": "kubernetes.io/basic-auth"}), "data[username] data[password]"),
            (
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "aGk="}}),
                "data[.dockerconfigjson]",
            ),
            (json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}), ""),
            (
                json!({"type": "kubernetes.io/service-account-token"}),
                "metadata.annotations[kubernetes.io/service-account.name]",
            ),
        ];
        for (mut object, expected) in table {
            object["metadata"] = json!({"name": "a", "namespace": "n"});
            let fields: Vec<String> = Secrets.validate(&object).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields.join(" "), expected, "{object}");
        }
        let (old, new) = (json!({"type": "Opaque"}), json!({"type": "x"}));
        assert_eq!(Secrets.validate_update(&new, &old, Part::Main)[0].field, "type");
        assert_eq!(Secrets.field(&old, "type").as_deref(), Some("Opaque"));
    }
}
