//! What is right and wrong about `metadata`, for every kind.

use serde_json::Value;

use crate::{
    field::{Errors, Path, entries, is_true, items, some_text, text},
    names::{self, Rule},
};

/// How the names of a kind look.
pub struct Naming {
    pub namespaced: bool,
    pub rule: Rule,
}

/// Namespaced, with DNS subdomains for names: what most kinds have.
pub const SUBDOMAIN: Naming = Naming { namespaced: true, rule: names::dns1123_subdomain };
pub const CLUSTER_SUBDOMAIN: Naming = Naming { namespaced: false, rule: names::dns1123_subdomain };

/// Finalizers that stand for a way to delete, not for somebody's work.
const STANDARD_FINALIZERS: &[&str] = &["orphan", "foregroundDeletion", "kubernetes"];

pub fn validate(errors: &mut Errors, object: &Value, naming: &Naming) {
    let path = Path::root("metadata");
    let meta = object.get("metadata").unwrap_or(&Value::Null);
    name(errors, &path, meta, naming);
    labels(errors, &path.child("labels"), meta);
    annotations(errors, &path.child("annotations"), meta);
    finalizers(errors, &path.child("finalizers"), meta);
    owner_references(errors, &path.child("ownerReferences"), meta);
}

fn name(errors: &mut Errors, path: &Path<'_>, meta: &Value, naming: &Naming) {
    if let Some(base) = some_text(meta, "generateName") {
        // The random suffix comes after it, so it may end where a name may not.
        let base_with_suffix = format!("{base}x");
        let generated: String = base_with_suffix.chars().take(names::LABEL_LIMIT).collect();
        errors.complaints(&path.child("generateName"), base, (naming.rule)(&generated));
    }
    match some_text(meta, "name") {
        None => errors.required(&path.child("name"), "name or generateName is required"),
        Some(name) => {
            let complaints = (naming.rule)(name).into_iter().chain(names::path_segment(name));
            errors.complaints(&path.child("name"), name, complaints);
        }
    }
    match some_text(meta, "namespace") {
        None if naming.namespaced => errors.required(&path.child("namespace"), ""),
        Some(_) if !naming.namespaced => {
            errors.forbidden(&path.child("namespace"), "not allowed on this type");
        }
        Some(namespace) => {
            errors.complaints(&path.child("namespace"), namespace, names::dns1123_label(namespace));
        }
        None => {}
    }
}

/// Checks the labels in `labels` of `holder`, at `path`.
pub fn labels(errors: &mut Errors, path: &Path<'_>, holder: &Value) {
    label_map(errors, path, holder, "labels");
}

/// Checks a map of labels in any field.
pub fn label_map(errors: &mut Errors, path: &Path<'_>, holder: &Value, key: &str) {
    for (key, value) in entries(holder, key) {
        errors.complaints(path, key, names::qualified_name(key));
        errors.complaints(path, value, names::label_value(value));
    }
}

pub fn annotations(errors: &mut Errors, path: &Path<'_>, meta: &Value) {
    let mut size = 0;
    for (key, value) in entries(meta, "annotations") {
        errors.complaints(path, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > names::ANNOTATIONS_LIMIT {
        errors.too_long(path, names::ANNOTATIONS_LIMIT);
    }
}

fn finalizers(errors: &mut Errors, path: &Path<'_>, meta: &Value) {
    let all = items(meta, "finalizers");
    for (index, finalizer) in all.iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let at = path.index(index);
        let complaints = names::qualified_name(finalizer);
        if complaints.is_empty() && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            errors.invalid_str(&at, finalizer, "must be a standard finalizer or have a prefix before a '/'");
        }
        errors.complaints(&at, finalizer, complaints);
    }
    let has = |name: &str| all.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        let value = Value::from(all.to_vec());
        errors.invalid(path, &value, "orphan and foregroundDeletion exclude each other");
    }
}

fn owner_references(errors: &mut Errors, path: &Path<'_>, meta: &Value) {
    let mut controllers = 0;
    for (index, owner) in items(meta, "ownerReferences").iter().enumerate() {
        let at = path.index(index);
        for key in ["apiVersion", "kind", "name", "uid"] {
            if some_text(owner, key).is_none() {
                errors.invalid_str(&at.child(key), "", "must not be empty");
            }
        }
        if let Some(version) = some_text(owner, "apiVersion")
            && version.matches('/').count() > 1
        {
            errors.invalid_str(&at.child("apiVersion"), version, "must be a version, or a group and a version");
        }
        if text(owner, "kind") == "Event" && text(owner, "apiVersion") == "v1" {
            errors.invalid(&at, owner, "v1 Event may not own anything");
        }
        controllers += usize::from(is_true(owner, "controller"));
    }
    if controllers > 1 {
        let value = meta["ownerReferences"].clone();
        errors.invalid(path, &value, "an object has at most one controller");
    }
}

/// What an update may not change.
pub fn validate_update(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::root("metadata");
    let (new, old) = (new.get("metadata").unwrap_or(&Value::Null), old.get("metadata").unwrap_or(&Value::Null));
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.immutable(&path.child(key), new.get(key), old.get(key));
    }
    // On its way out an object only loses finalizers: a new one might never be removed.
    if some_text(old, "deletionTimestamp").is_some() {
        let before = items(old, "finalizers");
        let added: Vec<&str> =
            items(new, "finalizers").iter().filter(|each| !before.contains(each)).filter_map(Value::as_str).collect();
        if !added.is_empty() {
            let detail = format!("the object is being deleted, so no finalizer may come: {}", added.join(", "));
            errors.forbidden(&path.child("finalizers"), &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(meta: Value, naming: &Naming) -> Vec<String> {
        let mut errors = Errors::new();
        validate(&mut errors, &json!({"metadata": meta}), naming);
        errors.0.iter().map(|cause| format!("{} {:?}", cause.field, cause.reason)).collect()
    }

    #[test]
    fn metadata_is_checked() {
        let none: &[&str] = &[];
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true});
        let table = [
            (
                json!({"name": "a.b", "namespace": "n", "labels": {"x.io/a": "b"}, "annotations": {"A": "any thing"}}),
                none,
            ),
            (json!({"namespace": "n"}), &["metadata.name FieldValueRequired"]),
            (json!({"name": "A", "namespace": "n"}), &["metadata.name FieldValueInvalid"]),
            (json!({"name": "a"}), &["metadata.namespace FieldValueRequired"]),
            (json!({"name": "a-1", "generateName": "a-", "namespace": "n"}), none),
            (
                json!({"name": "a", "namespace": "n", "labels": {"-": "b", "c": "-"}}),
                &["metadata.labels FieldValueInvalid", "metadata.labels FieldValueInvalid"],
            ),
            (
                json!({"name": "a", "namespace": "n", "annotations": {"a b": "", "c": "x".repeat(300_000)}}),
                &["metadata.annotations FieldValueInvalid", "metadata.annotations FieldValueTooLong"],
            ),
            (json!({"name": "a", "namespace": "n", "finalizers": ["x.io/a", "orphan"]}), none),
            (
                json!({"name": "a", "namespace": "n", "finalizers": ["mine"]}),
                &["metadata.finalizers[0] FieldValueInvalid"],
            ),
            (json!({"name": "a", "namespace": "n", "ownerReferences": [owner]}), none),
            (
                json!({"name": "a", "namespace": "n", "ownerReferences": [owner, owner, {"apiVersion": "v1"}]}),
                &[
                    "metadata.ownerReferences[2].kind FieldValueInvalid",
                    "metadata.ownerReferences[2].name FieldValueInvalid",
                    "metadata.ownerReferences[2].uid FieldValueInvalid",
                    "metadata.ownerReferences FieldValueInvalid",
                ],
            ),
        ];
        for (meta, expected) in table {
            assert_eq!(found(meta.clone(), &SUBDOMAIN), expected, "{meta}");
        }
        assert_eq!(
            found(json!({"name": "a", "namespace": "n"}), &CLUSTER_SUBDOMAIN),
            ["metadata.namespace FieldValueForbidden"]
        );
    }

    #[test]
    fn identity_does_not_change() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "deletionTimestamp": "t", "finalizers": ["x/a"]}});
        let mut new = old.clone();
        new["metadata"]["uid"] = "v".into();
        new["metadata"]["finalizers"] = json!(["x/a", "x/b"]);
        let mut errors = Errors::new();
        validate_update(&mut errors, &new, &old);
        let shown: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "metadata.uid: Invalid value: \"v\": field is immutable",
                "metadata.finalizers: Forbidden: the object is being deleted, so no finalizer may come: x/b",
            ]
        );
    }
}
