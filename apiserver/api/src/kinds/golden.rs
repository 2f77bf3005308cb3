//! The kinds beside the original: `testdata/` holds what Kubernetes v1.35.4 answered to the same requests, stripped of
//! what differs from run to run (identity, allocated addresses and ports).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    meta::{self, Identity},
    registry::{Kind, by_kind},
    status::Cause,
};

fn read(text: &str) -> Vec<Value> {
    serde_json::from_str(text).expect("test data is JSON")
}

fn kind_of(object: &Value) -> &'static Kind {
    let text = |key: &str| object[key].as_str().expect("a kind");
    by_kind(text("apiVersion"), text("kind")).expect("a kind that is served")
}

/// What a create does to an object, without what only a server can give.
fn create(mut object: Value) -> (Value, Vec<Cause>) {
    let kind = kind_of(&object);
    kind.decode(&mut object).expect("decodes");
    meta::begin(&mut object, Identity { uid: "u", now: 0 });
    if kind.namespaced() {
        meta::set_namespace(&mut object, "default");
    }
    if kind.has_status && kind.kind != "Node" {
        object.as_object_mut().expect("an object").remove("status");
    }
    kind.strategy.default(&mut object);
    kind.strategy.prepare_create(&mut object);
    let causes = kind.strategy.validate(&object);
    for key in ["uid", "creationTimestamp"] {
        meta::unset(&mut object, key);
    }
    (object, causes)
}

/// Drops what is empty and always written there but never here, or the other way round: no client can tell.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        for key in ["endpoints", "ports"] {
            if fields.get(key).is_some_and(|value| value.is_null() || value == &json!([])) {
                fields.remove(key);
            }
        }
        for key in ["status", "strategy", "metadata", "spec"] {
            if fields.get(key).and_then(Value::as_object).is_some_and(Map::is_empty) {
                fields.remove(key);
            }
        }
    }
}

/// The paths at which two values differ, with both values.
fn differences(expected: &Value, made: &Value) -> String {
    let (Value::Object(a), Value::Object(b)) = (expected, made) else {
        if let (Value::Array(a), Value::Array(b)) = (expected, made)
            && a.len() == b.len()
        {
            return a.iter().zip(b).filter(|(a, b)| a != b).map(|(a, b)| differences(a, b)).collect();
        }
        return format!("expected {expected}, made {made}");
    };
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    let null = Value::Null;
    differ
        .map(|key| format!("{key}: [{}] ", differences(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))))
        .collect()
}

#[test]
fn new_objects_are_those_of_the_original() {
    let mut wrong = Vec::new();
    for case in read(include_str!("../../testdata/created.json")) {
        let (mut made, causes) = create(case["given"].clone());
        assert_eq!(causes, [], "{}", case["given"]);
        let mut expected = case["stored"].clone();
        prune(&mut made);
        prune(&mut expected);
        if made != expected {
            wrong.push(format!("{}\n  {}", case["given"], differences(&expected, &made)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `ours`, where a case has it, is where we mean to name the field more precisely than the original, or to say more.
#[test]
fn refusals_name_the_fields_of_the_original() {
    let mut wrong = Vec::new();
    for case in read(include_str!("../../testdata/refused.json")) {
        let (_, causes) = create(case["given"].clone());
        let pair = |field: &Value, reason: &Value| format!("{field} {reason}").replace('"', "");
        let found: BTreeSet<String> = causes.iter().map(|c| pair(&json!(c.field), &json!(c.reason))).collect();
        let expected: BTreeSet<String> = case
            .get("ours")
            .unwrap_or(&case["causes"])
            .as_array()
            .expect("causes")
            .iter()
            .map(|cause| pair(&cause[0], &cause[1]))
            .collect();
        if found != expected {
            let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
            let (missing, extra) = (only(&expected, &found), only(&found, &expected));
            wrong.push(format!("{}\n  missing {missing:?}\n  extra {extra:?}", case["given"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn columns_are_those_of_the_original() {
    let columns: Map<String, Value> = serde_json::from_str(include_str!("../../testdata/columns.json")).expect("JSON");
    for kind in super::ALL.iter().filter(|kind| kind.alias.is_none()) {
        let ours: Vec<Value> = kind.columns.iter().map(|c| json!([c.name, c.kind, c.format, c.priority])).collect();
        assert_eq!(Value::from(ours), columns[kind.kind], "{}", kind.kind);
    }
}
