//! `metadata` of objects that are JSON values.

use serde_json::{Map, Value};

use crate::field::{items, object_mut, text};

/// Random characters that `generateName` adds.
pub const GENERATED_SUFFIX: usize = 5;
/// A generated name is at most a DNS label (63), so its base is cut to leave room for the suffix.
const GENERATED_BASE: usize = 63 - GENERATED_SUFFIX;
/// No vowels and no look-alikes: no words arise by accident.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

fn field<'v>(object: &'v Value, key: &str) -> &'v str {
    object.get("metadata").map(|metadata| text(metadata, key)).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    field(object, "name")
}

pub fn namespace(object: &Value) -> &str {
    field(object, "namespace")
}

pub fn generate_name_base(object: &Value) -> &str {
    field(object, "generateName")
}

pub fn uid(object: &Value) -> &str {
    field(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    field(object, "resourceVersion")
}

pub fn creation_timestamp(object: &Value) -> &str {
    field(object, "creationTimestamp")
}

pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(field(object, "deletionTimestamp")).filter(|time| !time.is_empty())
}

pub fn deletion_grace_period(object: &Value) -> Option<i64> {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64)
}

pub fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default()
}

/// One label's value.
pub fn label<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    labels(object)?.get(key)?.as_str()
}

pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("labels")?.as_object()
}

pub fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    annotations(object)?.get(key)?.as_str()
}

pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.get("annotations")?.as_object()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").iter().filter_map(Value::as_str)
}

pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).any(|each| each == finalizer)
}

pub fn owner_references(object: &Value) -> &[Value] {
    list(object, "ownerReferences")
}

/// The owner that manages this object.
pub fn controller(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|owner| owner["controller"] == true)
}

fn list<'v>(object: &'v Value, key: &str) -> &'v [Value] {
    object.get("metadata").map(|metadata| items(metadata, key)).unwrap_or_default()
}

/// Sets a field of `metadata`.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    object_mut(object, "metadata")[key] = value.into();
}

/// Removes a field of `metadata`.
pub fn unset(object: &mut Value, key: &str) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove(key);
    }
}

pub fn set_name(object: &mut Value, name: &str) {
    set(object, "name", name);
}

pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "namespace", namespace);
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set(object, "uid", uid);
}

pub fn set_resource_version(object: &mut Value, revision: u64) {
    set(object, "resourceVersion", revision.to_string());
}

pub fn set_generation(object: &mut Value, generation: i64) {
    set(object, "generation", generation);
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    object_mut(object_mut(object, "metadata"), "labels")[key] = value.into();
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    object_mut(object_mut(object, "metadata"), "annotations")[key] = value.into();
}

/// Replaces the finalizers; an empty list removes the field.
pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    if finalizers.is_empty() {
        unset(object, "finalizers");
    } else {
        set(object, "finalizers", finalizers);
    }
}

/// What the server decides about a new object.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub uid: &'a str,
    /// Seconds since the epoch.
    pub now: i64,
}

/// Resets what a client may not set on a new object, and gives it its identity. The name is untouched:
/// see [`generate_name`].
pub fn begin(object: &mut Value, identity: Identity<'_>) {
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        unset(object, key);
    }
    set_uid(object, identity.uid);
    set(object, "creationTimestamp", crate::time::rfc3339(identity.now));
}

/// Restores in `new` what no update may change, so that a client may leave it out.
pub fn carry_over(new: &mut Value, old: &Value) {
    object_mut(new, "metadata");
    for key in ["uid", "creationTimestamp", "generation", "generateName", "selfLink"] {
        if new["metadata"].get(key).is_none_or(|value| value == "") {
            crate::field::copy_field(&mut new["metadata"], &old["metadata"], key);
        }
    }
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        crate::field::copy_field(&mut new["metadata"], &old["metadata"], key);
    }
}

/// A name from a base and random bytes (only the first [`GENERATED_SUFFIX`] count).
pub fn generate_name(base: &str, random: &[u8]) -> String {
    let mut end = base.len().min(GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let suffix = random.iter().take(GENERATED_SUFFIX);
    let suffix = suffix.map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()]));
    base[..end].chars().chain(suffix).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generate_name("web-", &[0, 1, 2, 3, 26]), "web-bcdf9");
        let long = generate_name(&"a".repeat(100), &[0; 5]);
        assert_eq!(long.len(), 63);
    }

    #[test]
    fn a_new_object_gets_its_identity() {
        let mut object = json!({"metadata": {"name": "a", "uid": "mine", "resourceVersion": "5", "generation": 4,
            "deletionTimestamp": "2020-01-01T00:00:00Z"}});
        begin(&mut object, Identity { uid: "u", now: 0 });
        assert_eq!(object, json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "1970-01-01T00:00:00Z"}}));
    }

    #[test]
    fn an_update_keeps_what_it_may_not_change() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "generation": 3}});
        let mut new = json!({"metadata": {"name": "a", "creationTimestamp": "x", "deletionTimestamp": "y"}});
        carry_over(&mut new, &old);
        assert_eq!(new, old);
        let mut other = json!({"metadata": {"name": "a", "uid": "other"}});
        carry_over(&mut other, &old);
        assert_eq!(uid(&other), "other", "a wrong uid is reported, not mended");
    }

    #[test]
    fn accessors_see_what_is_there() {
        let object = json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["x"],
            "ownerReferences": [{"name": "o", "controller": true}]}});
        assert_eq!(label(&object, "a"), Some("b"));
        assert!(has_finalizer(&object, "x"));
        assert_eq!(controller(&object).map(|owner| text(owner, "name")), Some("o"));
        assert_eq!(deletion_timestamp(&object), None);
        assert_eq!(name(&Value::Null), "");
    }
}
