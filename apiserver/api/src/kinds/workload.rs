//! What deployments, replica sets and replication controllers share: a number of pods from a template.

use serde_json::Value;

use super::pod;
use crate::{
    field::{Errors, Path, int, object_mut, set_default},
    meta,
    selector::Selector,
};

/// Defaults of `spec.replicas` and of the template.
pub fn default(object: &mut Value) {
    let spec = object_mut(object, "spec");
    set_default(spec, "replicas", 1);
    if let Some(pod_spec) = spec.pointer_mut("/template/spec") {
        pod::defaults::template(pod_spec);
    }
}

/// Checks the counts, and that the pods of the template are those that are selected. A controller that made pods
/// which it does not select would make them without end.
pub fn validate(errors: &mut Errors, object: &Value, selector: Result<Selector, crate::selector::Error>) {
    let path = Path::root("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    for key in ["replicas", "minReadySeconds"] {
        errors.not_negative(&path.child(key), int(spec, key));
    }
    let at = path.child("template");
    let Some(template) = spec.get("template") else { return errors.required(&at, "") };
    if let Ok(selector) = selector
        && !selector.requirements().is_empty()
        && !selector.matches_object(template)
    {
        let labels = meta::labels(template).cloned().map_or(Value::Null, Value::Object);
        let at = at.child("metadata");
        errors.invalid(&at.child("labels"), &labels, "the selector does not select them");
    }
    pod::validate::template(errors, &at, template);
}

/// Checks a `metav1.LabelSelector` that must select something in particular.
pub fn selector(errors: &mut Errors, object: &Value) -> Result<Selector, crate::selector::Error> {
    let path = Path::root("spec");
    let at = path.child("selector");
    let selector = object.pointer("/spec/selector").unwrap_or(&Value::Null);
    let parsed = Selector::from_json(selector);
    if selector.is_null() {
        errors.required(&at, "");
    } else {
        pod::scheduling::label_selector(errors, &at, selector);
        if parsed.as_ref().is_ok_and(Selector::is_everything) {
            errors.invalid(&at, selector, "empty selector is invalid");
        }
    }
    parsed
}

/// The selector says which pods belong to the object; a change would orphan some.
pub fn selector_immutable(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::root("spec");
    errors.immutable(&path.child("selector"), new.pointer("/spec/selector"), old.pointer("/spec/selector"));
}

/// Checks the counts of a status: none negative, none above `replicas`.
pub fn validate_status(errors: &mut Errors, object: &Value, counts: &[&str]) {
    let path = Path::root("status");
    let status = object.get("status").unwrap_or(&Value::Null);
    let replicas = int(status, "replicas").unwrap_or_default();
    errors.not_negative(&path.child("replicas"), Some(replicas));
    errors.not_negative(&path.child("observedGeneration"), int(status, "observedGeneration"));
    for key in counts {
        let count = int(status, key).unwrap_or_default();
        errors.not_negative(&path.child(key), Some(count));
        if count > replicas {
            errors.invalid(&path.child(key), &count.into(), "cannot be greater than status.replicas");
        }
    }
}
