//! What may change in a pod once it exists: very little, as it may already run.

use serde_json::Value;

use crate::field::{Errors, Path, copy_field, int, items, items_mut, some_text, text};

pub fn validate(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::root("spec");
    let (new, old) = (new.get("spec").unwrap_or(&Value::Null), old.get("spec").unwrap_or(&Value::Null));
    deadline(errors, &path.child("activeDeadlineSeconds"), new, old);
    tolerations(errors, &path.child("tolerations"), new, old);
    let gates_only_leave = gates(errors, &path.child("schedulingGates"), new, old);
    for key in ["containers", "initContainers"] {
        let (before, after) = (items(old, key).len(), items(new, key).len());
        if before != after {
            return errors.forbidden(&path.child(key), "containers may not be added or removed");
        }
    }
    // What is allowed to differ is made equal; whatever still differs is not allowed.
    let mut masked = new.clone();
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy_field(&mut masked, old, key);
    }
    if gates_only_leave {
        // Nothing has looked at where the pod may run, so it may still be narrowed.
        copy_field(&mut masked, old, "nodeSelector");
        copy_field(&mut masked, old, "affinity");
    }
    if int(old, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0)
        && int(new, "terminationGracePeriodSeconds") == Some(1)
    {
        copy_field(&mut masked, old, "terminationGracePeriodSeconds");
    }
    for key in ["containers", "initContainers"] {
        for (container, before) in items_mut(&mut masked, key).iter_mut().zip(items(old, key)) {
            copy_field(container, before, "image");
        }
    }
    if let Some(field) = first_difference(&masked, old) {
        let detail = format!(
            "only image of containers, activeDeadlineSeconds, tolerations (additions) and terminationGracePeriodSeconds \
             (to 1, if it was negative) may change; {field} differs"
        );
        errors.forbidden(&path, &detail);
    }
}

fn deadline(errors: &mut Errors, at: &Path<'_>, new: &Value, old: &Value) {
    let key = "activeDeadlineSeconds";
    match (int(old, key), int(new, key)) {
        (Some(before), Some(after)) if after > before => {
            errors.invalid(at, &after.into(), "may only shrink");
        }
        (Some(_), None) => errors.invalid(at, &Value::Null, "must not be removed"),
        _ => {}
    }
}

/// Tolerations may be added, and their seconds changed.
fn tolerations(errors: &mut Errors, at: &Path<'_>, new: &Value, old: &Value) {
    let same =
        |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|key| text(a, key) == text(b, key));
    let kept = items(old, "tolerations")
        .iter()
        .all(|before| items(new, "tolerations").iter().any(|after| same(after, before)));
    if !kept {
        errors.forbidden(at, "existing tolerations may not be removed or changed but for tolerationSeconds");
    }
}

/// Gates may only leave. True while there are gates, before and in what they leave.
fn gates(errors: &mut Errors, at: &Path<'_>, new: &Value, old: &Value) -> bool {
    let before = items(old, "schedulingGates");
    let added = items(new, "schedulingGates").iter().filter(|gate| !before.contains(gate));
    for gate in added {
        let detail = format!("gates may only leave, and {} came", text(gate, "name"));
        errors.forbidden(at, &detail);
    }
    !before.is_empty() && some_text(old, "nodeName").is_none()
}

fn first_difference<'v>(new: &'v Value, old: &'v Value) -> Option<&'v str> {
    let fields = |value: &'v Value| value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    fields(new).chain(fields(old)).find(|key| new.get(*key) != old.get(*key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn little_may_change() {
        let toleration = json!({"key": "a", "operator": "Exists"});
        let old = json!({"nodeName": "n", "containers": [{"name": "c", "image": "i"}], "activeDeadlineSeconds": 10,
            "tolerations": [toleration]});
        let change = |edit: &dyn Fn(&mut Value)| {
            let mut spec = old.clone();
            edit(&mut spec);
            spec
        };
        let table = [
            (change(&|_| {}), ""),
            (change(&|s| s["containers"][0]["image"] = "j".into()), ""),
            (change(&|s| s["activeDeadlineSeconds"] = 5.into()), ""),
            (change(&|s| s["activeDeadlineSeconds"] = 15.into()), "spec.activeDeadlineSeconds"),
            (change(&|s| s["tolerations"] = json!([{"key": "b"}, toleration])), ""),
            (change(&|s| s["tolerations"] = json!([{"key": "b"}])), "spec.tolerations"),
            (change(&|s| s["containers"][0]["args"] = json!(["x"])), "spec"),
            (change(&|s| s["nodeName"] = "m".into()), "spec"),
            (change(&|s| s["containers"] = json!([])), "spec.containers"),
            (change(&|s| s["schedulingGates"] = json!([{"name": "g"}])), "spec.schedulingGates"),
        ];
        for (new, field) in table {
            let mut errors = Errors::new();
            validate(&mut errors, &json!({"spec": new}), &json!({"spec": old}));
            let fields: Vec<String> = errors.0.into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields.join(" "), field, "{new}");
        }
    }

    #[test]
    fn a_gated_pod_may_still_be_placed() {
        let old = json!({"spec": {"containers": [], "schedulingGates": [{"name": "g"}]}});
        let new = json!({"spec": {"containers": [], "nodeSelector": {"a": "b"}}});
        let mut errors = Errors::new();
        validate(&mut errors, &new, &old);
        assert!(errors.0.is_empty(), "{:?}", errors.0);
    }
}
