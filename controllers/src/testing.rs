//! Objects for tables.

use std::collections::BTreeMap;

use client::{
    Object,
    pod::{Pod, PodSpec, PodStatus},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, PodCondition, PodSpec as WholeSpec, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time within range")
}

pub fn time(seconds: i64) -> Time {
    Time(at(seconds))
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(format!("{name}-uid")),
        resource_version: Some("1".to_owned()),
        generation: Some(1),
        creation_timestamp: Some(time(0)),
        ..ObjectMeta::default()
    }
}

pub fn template(app: &str, image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(&[("app", app)])), ..ObjectMeta::default() }),
        spec: Some(WholeSpec {
            containers: vec![Container { name: "c".into(), image: Some(image.into()), ..Container::default() }],
            ..WholeSpec::default()
        }),
    }
}

pub fn pod(name: &str) -> Pod {
    Pod {
        metadata: meta(name),
        spec: Some(PodSpec::default()),
        status: Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() }),
    }
}

/// A running pod on a node, ready since the given second or not at all.
pub fn running(name: &str, node: &str, ready: Option<i64>) -> Pod {
    let mut pod = pod(name);
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Running".into());
    status.conditions = Some(vec![PodCondition {
        type_: "Ready".into(),
        status: if ready.is_some() { "True" } else { "False" }.into(),
        last_transition_time: ready.map(time),
        ..PodCondition::default()
    }]);
    pod
}

pub fn owned<K: Object>(mut object: K, owner: OwnerReference) -> K {
    object.meta_mut().owner_references = Some(vec![owner]);
    object
}

/// RFC 7396, as the API server applies it.
pub fn merge(object: &mut serde_json::Value, patch: &serde_json::Value) {
    let serde_json::Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = serde_json::json!({});
    }
    for (name, change) in patch {
        if change.is_null() {
            object.as_object_mut().expect("an object").remove(name);
        } else {
            merge(&mut object[name], change);
        }
    }
}
