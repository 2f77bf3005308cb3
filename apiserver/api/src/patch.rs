//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and strategic merge patch.

use json_patch::{CopyOperation, MoveOperation, Patch, PatchOperation, jsonptr::resolve::Resolve};
use serde_json::Value;

use crate::schema::depth;

mod strategic;

/// As many operations as one JSON patch may have; the same as the original's.
pub const MAX_OPERATIONS: usize = 10_000;
/// What all the copies and moves of a JSON patch may carry. `copy` can double a document each time: without this,
/// fifty operations would fill the memory. A move costs no memory, but as much time.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// Serde reads no JSON that is deeper than 128, and what a patch made must be readable after it is stored.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is wrong, whatever it is applied to: a bad request.
    #[error("patch is malformed at {path}: {what}")]
    Malformed { path: String, what: String },
    /// The patch does not fit the object: cannot be processed.
    #[error("patch cannot be applied at {path}: {what}")]
    NotApplicable { path: String, what: String },
    /// More than this server works on: too large.
    #[error("patch is too large: {what} exceed the limit of {limit}")]
    TooLarge { what: &'static str, limit: usize },
}

/// The object that the patch makes of `current`. `schema` is the type's name in [`crate::schema`], which strategic
/// patches need; for a type that is not there, such a patch is a plain merge.
pub fn apply(kind: PatchKind, schema: &str, current: &Value, patch: &Value) -> Result<Value, Error> {
    let patched = match kind {
        PatchKind::Json => json(current, patch)?,
        PatchKind::Merge => merge(current, patch)?,
        PatchKind::Strategic => match crate::schema::message(schema) {
            Some(message) => strategic::apply(message, current, patch)?,
            None => merge(current, patch)?,
        },
    };
    if depth(&patched, MAX_DEPTH + 1) > MAX_DEPTH {
        return Err(Error::TooLarge { what: "levels", limit: MAX_DEPTH });
    }
    Ok(patched)
}

fn merge(current: &Value, patch: &Value) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::Malformed { path: "(root)".to_owned(), what: "a merge patch is an object".to_owned() });
    }
    let mut patched = current.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}

fn json(current: &Value, patch: &Value) -> Result<Value, Error> {
    let operations = patch.as_array().ok_or_else(|| Error::Malformed {
        path: "(root)".to_owned(),
        what: "a JSON patch is an array of operations".to_owned(),
    })?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::TooLarge { what: "operations", limit: MAX_OPERATIONS });
    }
    let mut patched = current.clone();
    let mut copied = 0;
    for (i, operation) in operations.iter().enumerate() {
        let operation: PatchOperation = serde_json::from_value(operation.clone())
            .map_err(|e| Error::Malformed { path: format!("[{i}]"), what: e.to_string() })?;
        guard(&patched, &operation, &mut copied)?;
        // The crate would first copy what it might have to undo; here nobody sees a half-patched document.
        let path = operation.path().to_string();
        let operations = Patch(vec![operation]);
        json_patch::patch_unsafe(&mut patched, &operations)
            .map_err(|e| Error::NotApplicable { path: format!("[{i}] {path}"), what: e.kind.to_string() })?;
    }
    Ok(patched)
}

/// Refuses an operation that would make the document too deep or too large, before it does.
fn guard(document: &Value, operation: &PatchOperation, copied: &mut usize) -> Result<(), Error> {
    let value = match operation {
        PatchOperation::Add(op) => Some(&op.value),
        PatchOperation::Replace(op) => Some(&op.value),
        PatchOperation::Move(MoveOperation { from, .. }) | PatchOperation::Copy(CopyOperation { from, .. }) => {
            let value = document.resolve(from).ok();
            *copied += value.map_or(0, size);
            if *copied > MAX_COPIED_BYTES {
                return Err(Error::TooLarge { what: "copied bytes", limit: MAX_COPIED_BYTES });
            }
            value
        }
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    let below = value.map_or(0, |v| depth(v, MAX_DEPTH + 1));
    if operation.path().count() + below > MAX_DEPTH {
        return Err(Error::TooLarge { what: "levels", limit: MAX_DEPTH });
    }
    Ok(())
}

/// About what a value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 3,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(k, v)| k.len() + 4 + size(v)).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";

    /// `testdata/patch/strategic.json` holds, for each patch, what the original makes of it, and the original's error where
    /// it refuses.
    #[test]
    fn strategic_patches_as_the_original_applies_them() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../testdata/patch/strategic.json")).unwrap();
        assert!(cases.len() >= 60, "{}", cases.len());
        for case in cases {
            let package = match case["type"].as_str().unwrap() {
                "Deployment" => "apps",
                "PodDisruptionBudget" => "policy",
                _ => "core",
            };
            let schema = format!("io.k8s.api.{package}.v1.{}", case["type"].as_str().unwrap());
            let result = apply(PatchKind::Strategic, &schema, &case["current"], &case["patch"]);
            match (result, case.get("result")) {
                (Ok(got), Some(want)) => assert_eq!(got, *want, "{}", case["name"]),
                (Err(error), None) => assert!(matches!(error, Error::Malformed { .. }), "{}: {error}", case["name"]),
                (got, want) => panic!("{}: got {got:?}, want {want:?}", case["name"]),
            }
        }
    }

    #[test]
    fn strategic_errors_name_their_path() {
        let pod =
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}});
        let cases = [
            (json!([]), "patch is malformed at (root): a strategic merge patch is an object"),
            (
                json!({"spec": {"containers": [{"name": "a", "env": [{"value": "2"}]}]}}),
                "patch is malformed at spec.containers[name=a].env: element 0 lacks its merge key \"name\"",
            ),
            (json!({"spec": {"$patch": 7}}), "patch is malformed at spec: unknown directive $patch: 7"),
            (
                json!({"spec": {"$setElementOrder/containers": "a"}}),
                "patch is malformed at spec.containers: $setElementOrder is a list",
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": 1}}),
                "patch is malformed at metadata.finalizers: $deleteFromPrimitiveList is a list",
            ),
        ];
        for (patch, message) in cases {
            assert_eq!(apply(PatchKind::Strategic, POD, &pod, &patch).unwrap_err().to_string(), message);
        }
    }

    /// Where the original leaves directives to be dropped later, refuses, or falls over.
    #[test]
    fn strategic_patches_where_ours_is_kinder() {
        let cases = [
            (
                json!({"spec": {}}),
                json!({"spec": {"securityContext": {"$retainKeys": ["runAsUser"], "runAsUser": 1, "runAsGroup": null},
                    "$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a", "image": null}]}}),
                json!({"spec": {"securityContext": {"runAsUser": 1}, "containers": [{"name": "a"}]}}),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v"}]}}),
                json!({"spec": {"$setElementOrder/volumes": [], "volumes": null}}),
                json!({"spec": {}}),
            ),
            (
                json!({"spec": {"foo": {"a": [1]}}}),
                json!({"spec": {"foo": {"b": [2]}}}),
                json!({"spec": {"foo": {"a": [1], "b": [2]}}}),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "a"}]}}),
                json!({"spec": {"$setElementOrder/tolerations": [{"key": "b"}], "tolerations": [{"key": "b"}]}}),
                json!({"spec": {"tolerations": [{"key": "b"}]}}),
            ),
        ];
        for (current, patch, want) in cases {
            assert_eq!(apply(PatchKind::Strategic, POD, &current, &patch), Ok(want), "{patch}");
        }
    }

    #[test]
    fn strategic_without_a_known_type_merges() {
        let patched =
            apply(PatchKind::Strategic, "com.example.v1.Thing", &json!({"a": [1], "b": 2}), &json!({"a": [2]}));
        assert_eq!(patched, Ok(json!({"a": [2], "b": 2})));
    }

    #[test]
    fn explicit_merge_directive_is_the_default() {
        let patch =
            json!({"spec": {"$patch": "merge", "containers": [{"name": "a", "$patch": "merge", "image": "2"}]}});
        let current = json!({"spec": {"containers": [{"name": "a", "tty": true}], "hostname": "h"}});
        let want = json!({"spec": {"containers": [{"name": "a", "tty": true, "image": "2"}], "hostname": "h"}});
        assert_eq!(apply(PatchKind::Strategic, POD, &current, &patch), Ok(want));
    }

    #[test]
    fn merge_patch() {
        let current = json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"});
        let cases = [
            (json!({}), current.clone()),
            (json!({"a": {"b": null, "c": [3]}}), json!({"a": {"c": [3]}, "d": "x"})),
            (json!({"e": {"f": null, "g": 1}}), json!({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": {"g": 1}})),
        ];
        for (patch, want) in cases {
            assert_eq!(apply(PatchKind::Merge, POD, &current, &patch), Ok(want), "{patch}");
        }
        assert!(matches!(apply(PatchKind::Merge, POD, &current, &json!([1])), Err(Error::Malformed { .. })));
    }

    #[test]
    fn json_patch() {
        let current = json!({"a": [1, 2], "m": {"x/y": "1"}});
        let cases = [
            (json!([{"op": "add", "path": "/a/-", "value": 3}]), json!({"a": [1, 2, 3], "m": {"x/y": "1"}})),
            (json!([{"op": "replace", "path": "/m/x~1y", "value": "2"}]), json!({"a": [1, 2], "m": {"x/y": "2"}})),
            (json!([{"op": "test", "path": "/a/0", "value": 1}, {"op": "remove", "path": "/m"}]), json!({"a": [1, 2]})),
            (json!([{"op": "move", "from": "/m", "path": "/n"}]), json!({"a": [1, 2], "n": {"x/y": "1"}})),
            (json!([{"op": "copy", "from": "/a/1", "path": "/a/0"}]), json!({"a": [2, 1, 2], "m": {"x/y": "1"}})),
        ];
        for (patch, want) in cases {
            assert_eq!(apply(PatchKind::Json, POD, &current, &patch), Ok(want), "{patch}");
        }
        let wrong = [
            (json!({}), "patch is malformed at (root): a JSON patch is an array of operations"),
            (
                json!([{"op": "test", "path": "/a/0", "value": 2}]),
                "patch cannot be applied at [0] /a/0: value did not match",
            ),
            (json!([{"op": "remove", "path": "/zz"}]), "patch cannot be applied at [0] /zz: path is invalid"),
            (
                json!([{"op": "replace", "path": "/a/9", "value": 1}]),
                "patch cannot be applied at [0] /a/9: path is invalid",
            ),
        ];
        for (patch, message) in wrong {
            assert_eq!(apply(PatchKind::Json, POD, &current, &patch).unwrap_err().to_string(), message);
        }
        let malformed = apply(PatchKind::Json, POD, &current, &json!([{"op": "explode", "path": "/a"}])).unwrap_err();
        assert!(malformed.to_string().starts_with("patch is malformed at [0]: "), "{malformed}");
    }

    #[test]
    fn patches_cannot_exhaust_the_server() {
        let many = Value::Array(vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1]);
        let limit = Error::TooLarge { what: "operations", limit: MAX_OPERATIONS };
        assert_eq!(apply(PatchKind::Json, POD, &json!({"a": 1}), &many), Err(limit));
        // Each copy doubles the document, in width and then in depth.
        let wide: Vec<Value> = (0..60).flat_map(|_| [json!({"op": "copy", "from": "/a", "path": "/a/-"})]).collect();
        let deep: Vec<Value> =
            (0..60).flat_map(|i| [json!({"op": "copy", "from": "", "path": format!("/k{i}")})]).collect();
        let nested: Vec<Value> = (0..60).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/0"})).collect();
        #[expect(clippy::disallowed_methods, reason = "the test is about time")]
        let started = Instant::now();
        for (patch, what) in [(wide, "levels"), (deep, "copied bytes"), (nested, "levels")] {
            let error =
                apply(PatchKind::Json, POD, &json!({"a": ["x".repeat(1000)]}), &Value::Array(patch)).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{what}: {error}");
        }
        assert!(started.elapsed().as_secs() < 10);
        let mut tree = json!(1);
        for _ in 0..120 {
            tree = json!({ "a": tree });
        }
        for kind in [PatchKind::Merge, PatchKind::Strategic] {
            let limit = Error::TooLarge { what: "levels", limit: MAX_DEPTH };
            assert_eq!(apply(kind, POD, &json!({}), &json!({ "metadata": tree.clone() })), Err(limit));
        }
    }

    #[test]
    fn long_lists_are_merged_in_reasonable_time() {
        let list = |value: &str| -> Vec<Value> {
            (0..50_000).map(|i| json!({"name": i.to_string(), "value": value})).rev().collect()
        };
        let pod = |value: &str| json!({"spec": {"containers": [{"name": "a", "env": list(value)}]}});
        #[expect(clippy::disallowed_methods, reason = "the test is about time")]
        let started = Instant::now();
        assert_eq!(apply(PatchKind::Strategic, POD, &pod("1"), &pod("2")), Ok(pod("2")));
        assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    }
}
