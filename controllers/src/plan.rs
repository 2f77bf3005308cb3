//! What a controller decides: writes in order, and when to look again. Values only; `runtime` carries them out.

use std::time::Duration;

use client::{DeleteOptions, Object, request::Place};
use k8s_openapi::api::core::v1::ObjectReference;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Everything one look at one key leads to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Carried out in order; a step that fails ends the plan, and the key is planned again after a back-off.
    pub steps: Vec<Step>,
    /// Look again after this time even if nothing changes, because a deadline lies there.
    pub after: Option<Duration>,
}

impl Plan {
    pub fn nothing() -> Plan {
        Plan::default()
    }

    /// Appends a step; one without writes is left out.
    pub fn then(mut self, step: Step) -> Plan {
        if !step.writes.is_empty() {
            self.steps.push(step);
        }
        self
    }

    /// Looks again at the earliest of the times asked for.
    pub fn look_again(mut self, after: Option<Duration>) -> Plan {
        self.after = earliest(self.after, after);
        self
    }

    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.steps.iter().flat_map(|s| &s.writes)
    }
}

pub fn earliest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Writes that do not depend on one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub pace: Pace,
    pub writes: Vec<Write>,
}

impl Step {
    pub fn together(writes: Vec<Write>) -> Step {
        Step { pace: Pace::Together, writes }
    }

    pub fn slow_start(writes: Vec<Write>) -> Step {
        Step { pace: Pace::SlowStart, writes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All at once, up to the runtime's bound.
    Together,
    /// One, then two, then four: when the first is refused (a quota, a bad template) the rest is never sent.
    SlowStart,
}

/// A kind as a URL needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
}

impl Resource {
    pub const fn of<K: Object>() -> Resource {
        Resource {
            group: K::GROUP,
            version: K::VERSION,
            kind: K::KIND,
            plural: K::URL_PATH_SEGMENT,
            namespaced: K::NAMESPACED,
        }
    }

    pub fn row(row: &'static api::registry::Kind) -> Resource {
        Resource {
            group: row.group,
            version: row.version,
            kind: row.kind,
            plural: row.plural,
            namespaced: row.namespaced(),
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// One object, or with an empty name all of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
}

impl Target {
    pub fn of<K: Object>(object: &K) -> Target {
        Target::named(Resource::of::<K>(), client::object::namespace(object), client::object::name(object))
    }

    pub fn named(resource: Resource, namespace: &str, name: &str) -> Target {
        Target { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// `/apis/apps/v1/namespaces/default/deployments/web`
    pub fn path(&self) -> String {
        let Resource { group, version, plural, namespaced, .. } = self.resource;
        let namespace = if namespaced { self.namespace.as_str() } else { "" };
        Place { group, version, namespace, plural, name: &self.name }.to_string()
    }
}

/// Which face of an object a write goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Whole,
    Status,
    Finalize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The namespace stands in the object; the name may be left to `generateName`.
    Create {
        resource: Resource,
        object: Value,
    },
    /// The whole object with the resource version it was read at.
    Replace {
        target: Target,
        face: Face,
        object: Value,
    },
    /// A JSON merge patch (RFC 7396); with a `metadata.resourceVersion` inside it, it is refused after a foreign write.
    Merge {
        target: Target,
        face: Face,
        patch: Value,
    },
    Delete {
        target: Target,
        options: DeleteOptions,
    },
    /// Everything of one kind in one namespace.
    DeleteAll {
        target: Target,
    },
}

/// One write, and what goes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub action: Action,
    /// Carried out only while this object lives: asked of the server itself, not of a cache, right before the write.
    pub guard: Option<Guard>,
    /// Events to leave behind.
    pub told: Option<Told>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    pub target: Target,
    pub uid: String,
}

/// The events of one write: what to say when it is done, and when it is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub about: ObjectReference,
    pub done: Option<Note>,
    pub refused: Option<Note>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub kind: NoteKind,
    pub reason: &'static str,
    /// `{}` stands for the written object's name, or for the refusal's text.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    Normal,
    Warning,
}

impl Note {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Note {
        Note { kind: NoteKind::Normal, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Note {
        Note { kind: NoteKind::Warning, reason, message: message.into() }
    }
}

impl Write {
    fn plain(action: Action) -> Write {
        Write { action, guard: None, told: None }
    }

    pub fn create<K: Object>(object: &K) -> Write {
        Write::plain(Action::Create { resource: Resource::of::<K>(), object: value(object) })
    }

    pub fn replace<K: Object>(object: &K) -> Write {
        Write::plain(Action::Replace { target: Target::of(object), face: Face::Whole, object: value(object) })
    }

    pub fn merge(target: Target, face: Face, patch: Value) -> Write {
        Write::plain(Action::Merge { target, face, patch })
    }

    pub fn delete(target: Target, options: DeleteOptions) -> Write {
        Write::plain(Action::Delete { target, options })
    }

    pub fn delete_all(target: Target) -> Write {
        Write::plain(Action::DeleteAll { target })
    }

    pub fn finalize<K: Object>(object: &K) -> Write {
        Write::plain(Action::Replace { target: Target::of(object), face: Face::Finalize, object: value(object) })
    }

    /// Brings `object`'s status from `old` to `new`, refused when somebody else wrote in between; none when they are equal.
    pub fn status<K: Object, S: Serialize>(object: &K, old: &S, new: &S) -> Option<Write> {
        let mut patch = json!({ "status": difference(&value(old), &value(new))? });
        if let Some(version) = &object.meta().resource_version {
            patch["metadata"] = json!({ "resourceVersion": version });
        }
        Some(Write::merge(Target::of(object), Face::Status, patch))
    }

    pub fn guard(mut self, target: Target, uid: &str) -> Write {
        self.guard = Some(Guard { target, uid: uid.to_owned() });
        self
    }

    pub fn told(mut self, about: ObjectReference, done: Option<Note>, refused: Option<Note>) -> Write {
        self.told = Some(Told { about, done, refused });
        self
    }
}

/// An object as JSON, with the type's name that k8s-openapi's serializers put into it.
pub fn value<T: Serialize>(object: &T) -> Value {
    // Serialization of plain data into a value has no way to fail: no maps with keys that are no strings, no I/O.
    serde_json::to_value(object).unwrap_or(Value::Null)
}

/// The merge patch that leads from one value to another; none when there is nothing to do.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for name in old.keys().filter(|n| !new.contains_key(*n)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, wanted) in new {
        let change = old.get(name).map_or_else(|| Some(wanted.clone()), |had| difference(had, wanted));
        if let Some(change) = change {
            patch.insert(name.clone(), change);
        }
    }
    Some(Value::Object(patch))
}

/// Names an object in an event.
pub fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node};

    use super::*;

    #[test]
    fn differences_are_merge_patches() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2}))),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
            (json!({"a": {"x": 1, "y": 2}}), json!({"a": {"x": 1, "y": 3}}), Some(json!({"a": {"y": 3}}))),
            (json!({"a": [1]}), json!({"a": [1, 2]}), Some(json!({"a": [1, 2]}))),
            (Value::Null, json!({"a": 1}), Some(json!({"a": 1}))),
        ];
        for (old, new, wanted) in cases {
            assert_eq!(difference(&old, &new), wanted, "{old} -> {new}");
        }
    }

    #[test]
    fn paths() {
        let cases = [
            (Target::named(Resource::of::<Deployment>(), "x", "web"), "/apis/apps/v1/namespaces/x/deployments/web"),
            (Target::named(Resource::of::<Deployment>(), "x", ""), "/apis/apps/v1/namespaces/x/deployments"),
            (Target::named(Resource::of::<Node>(), "", "a"), "/api/v1/nodes/a"),
            (Target::named(Resource::of::<Node>(), "", "system:a/b"), "/api/v1/nodes/system%3Aa%2Fb"),
        ];
        for (target, wanted) in cases {
            assert_eq!(target.path(), wanted);
        }
    }
}
