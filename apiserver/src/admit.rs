//! From what a client sent and what is stored to what will be stored: create, update, delete. Pure.

use api::{
    meta,
    registry::{Kind, Part},
    status::{Cause, CauseReason, Status},
    time,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Keeps a namespace until everything in it is gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What only the server can give to a new object.
#[derive(Clone, Copy)]
pub struct Birth<'a> {
    pub uid: &'a str,
    /// Seconds since the epoch.
    pub now: i64,
    /// For `generateName`.
    pub random: &'a [u8],
}

/// Makes a decoded body a new object: identity, name, defaults, validity.
pub fn create(kind: &Kind, namespace: &str, mut object: Value, birth: Birth<'_>) -> Result<Value, Status> {
    settle_namespace(kind, namespace, &mut object)?;
    if !meta::resource_version(&object).is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    meta::begin(&mut object, meta::Identity { uid: birth.uid, now: birth.now });
    if meta::name(&object).is_empty() && !meta::generate_name_base(&object).is_empty() {
        let name = meta::generate_name(meta::generate_name_base(&object), birth.random);
        meta::set_name(&mut object, &name);
    }
    if let Some(fields) = object.as_object_mut() {
        if kind.has_status {
            fields.remove("status");
        }
        if fields.contains_key("spec") {
            meta::set_generation(&mut object, 1);
        }
    }
    kind.strategy.default(&mut object);
    kind.strategy.prepare_create(&mut object);
    if is_namespace(kind) {
        begin_namespace(&mut object);
    }
    refuse(kind, &object, kind.strategy.validate(&object))?;
    Ok(object)
}

fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Namespace"
}

fn begin_namespace(object: &mut Value) {
    object["spec"] = json!({"finalizers": [NAMESPACE_FINALIZER]});
    object["status"] = json!({"phase": "Active"});
    let name = meta::name(object).to_owned();
    meta::set_label(object, "kubernetes.io/metadata.name", &name);
}

/// The namespace of the URL counts; a body may repeat it, not contradict it.
fn settle_namespace(kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Status> {
    let given = meta::namespace(object);
    if !kind.namespaced() {
        meta::unset(object, "namespace");
        return Ok(());
    }
    if !given.is_empty() && given != namespace {
        let message = format!(
            "the namespace of the provided object does not match the namespace sent on the request: {given:?} is not {namespace:?}"
        );
        return Err(Status::bad_request(message));
    }
    meta::set_namespace(object, namespace);
    Ok(())
}

fn refuse(kind: &Kind, object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(kind, meta::name(object), causes)) }
}

/// What comes of an update.
#[derive(Debug, PartialEq)]
pub enum Updated {
    /// The client changed nothing: nothing is written, no event is sent.
    Unchanged,
    Put(Value),
    /// The last finalizer went: the object, as it is shown for the last time.
    Remove(Value),
}

/// Merges a client's version of an object into the stored one, which carries its `resourceVersion`.
pub fn update(kind: &Kind, new: Value, old: &Value, part: Part) -> Result<Updated, Status> {
    let name = meta::name(old);
    let mut new = new;
    settle_namespace(kind, meta::namespace(old), &mut new)?;
    check_identity(kind, &new, old)?;
    meta::set_name(&mut new, name);
    meta::carry_over(&mut new, old);
    let mut new = match part {
        Part::Main => keep_status(kind, new, old),
        Part::Status => only_status(new, old),
    };
    kind.strategy.default(&mut new);
    kind.strategy.prepare_update(&mut new, old, part);
    let generation = meta::generation(old);
    if generation > 0 && new.get("spec") != old.get("spec") {
        meta::set_generation(&mut new, generation + 1);
    }
    let mut causes = kind.strategy.validate(&new);
    causes.extend(kind.strategy.validate_update(&new, old, part));
    causes.extend(late_finalizers(&new, old));
    refuse(kind, &new, causes)?;

    meta::set(&mut new, "resourceVersion", meta::resource_version(old));
    Ok(settle(kind, new, old))
}

/// Replaces a namespace's `spec.finalizers`: what its `finalize` subresource does.
pub fn finalize(kind: &Kind, new: &Value, old: &Value) -> Result<Updated, Status> {
    check_identity(kind, new, old)?;
    let mut out = old.clone();
    out["spec"]["finalizers"] = new.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    Ok(settle(kind, out, old))
}

fn settle(kind: &Kind, new: Value, old: &Value) -> Updated {
    if is_finished(kind, &new) {
        return Updated::Remove(new);
    }
    if new == *old { Updated::Unchanged } else { Updated::Put(new) }
}

/// Whether nothing holds a deleted object any longer.
fn is_finished(kind: &Kind, object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && meta::deletion_grace_period(object).unwrap_or(0) == 0
        && !is_held(kind, object)
}

fn is_held(kind: &Kind, object: &Value) -> bool {
    let spec = object.pointer("/spec/finalizers").and_then(Value::as_array);
    meta::finalizers(object).next().is_some() || is_namespace(kind) && spec.is_some_and(|list| !list.is_empty())
}

fn check_identity(kind: &Kind, new: &Value, old: &Value) -> Result<(), Status> {
    let (name, given) = (meta::name(old), meta::name(new));
    if !given.is_empty() && given != name {
        let message = format!("the name of the object ({given}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(message));
    }
    let (uid, given) = (meta::uid(old), meta::uid(new));
    if !given.is_empty() && given != uid {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
        return Err(Status::conflict_because(kind, name, &why));
    }
    let given = meta::resource_version(new);
    if !given.is_empty() && given != "0" && given != meta::resource_version(old) {
        return Err(Status::conflict(kind, name));
    }
    Ok(())
}

fn keep_status(kind: &Kind, mut new: Value, old: &Value) -> Value {
    if kind.has_status
        && let Some(fields) = new.as_object_mut()
    {
        match old.get("status") {
            Some(status) => fields.insert("status".into(), status.clone()),
            None => fields.remove("status"),
        };
    }
    new
}

/// A status update carries the status, and of the metadata only what people attach to it.
fn only_status(mut new: Value, old: &Value) -> Value {
    let mut out = old.clone();
    if let (Some(out), Some(new)) = (out.as_object_mut(), new.as_object_mut()) {
        match new.remove("status") {
            Some(status) => out.insert("status".into(), status),
            None => out.remove("status"),
        };
    }
    for key in ["labels", "annotations"] {
        match new["metadata"].get_mut(key).map(Value::take) {
            Some(value) => meta::set(&mut out, key, value),
            None => meta::unset(&mut out, key),
        }
    }
    out
}

/// An object on its way out cannot be held by somebody new.
fn late_finalizers(new: &Value, old: &Value) -> Option<Cause> {
    meta::deletion_timestamp(old)?;
    let added: Vec<&str> = meta::finalizers(new).filter(|f| !meta::has_finalizer(old, f)).collect();
    (!added.is_empty()).then(|| Cause {
        reason: CauseReason::FieldValueForbidden,
        message: format!(
            "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
        ),
        field: "metadata.finalizers".into(),
    })
}

/// How a client wants an object to end.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: Option<Propagation>,
    /// The old spelling of the policy.
    pub orphan_dependents: Option<bool>,
    pub preconditions: Option<Preconditions>,
    pub dry_run: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
pub enum Deleted {
    Remove,
    /// It stays for now, marked: somebody has to finish something first.
    Mark(Value),
    /// It is already marked, and this request changes nothing.
    Already,
}

pub fn delete(kind: &Kind, old: &Value, options: &DeleteOptions, now: i64) -> Result<Deleted, Status> {
    if options.grace_period_seconds.is_some_and(|s| s < 0) {
        // Upstream reads a negative period as the shortest one that still asks.
        return delete(kind, old, &DeleteOptions { grace_period_seconds: Some(1), ..options.clone() }, now);
    }
    check_preconditions(kind, old, options.preconditions.as_ref())?;
    let mut new = old.clone();
    meta::set_finalizers(&mut new, finalizers(old, options));
    let grace = kind.strategy.grace_period(old, options.grace_period_seconds);

    let marked = meta::deletion_timestamp(old).and_then(time::parse);
    let running = meta::deletion_grace_period(old).unwrap_or(0);
    match marked {
        // A later request can only shorten what was granted.
        Some(_) if grace >= running => {}
        before => {
            let end = before.map_or(now + grace, |granted| granted.min(now + grace));
            meta::set(&mut new, "deletionTimestamp", time::rfc3339(end));
            meta::set(&mut new, "deletionGracePeriodSeconds", grace);
            let generation = meta::generation(old);
            if before.is_none() && generation > 0 {
                meta::set_generation(&mut new, generation + 1);
            }
        }
    }
    if is_namespace(kind) {
        new["status"]["phase"] = "Terminating".into();
    }
    if is_finished(kind, &new) {
        return Ok(Deleted::Remove);
    }
    Ok(if new == *old { Deleted::Already } else { Deleted::Mark(new) })
}

fn check_preconditions(kind: &Kind, old: &Value, wanted: Option<&Preconditions>) -> Result<(), Status> {
    let Some(wanted) = wanted else { return Ok(()) };
    let fail = |what: &str, wanted: &str, found: &str| {
        let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Status::conflict_because(kind, meta::name(old), &why)
    };
    match &wanted.uid {
        Some(uid) if uid != meta::uid(old) => return Err(fail("UID", uid, meta::uid(old))),
        _ => {}
    }
    match &wanted.resource_version {
        Some(version) if version != meta::resource_version(old) => {
            Err(fail("ResourceVersion", version, meta::resource_version(old)))
        }
        _ => Ok(()),
    }
}

/// The garbage collector finds its orders among the finalizers.
fn finalizers(old: &Value, options: &DeleteOptions) -> Vec<String> {
    let policy = match (options.propagation_policy, options.orphan_dependents) {
        (Some(policy), _) => Some(policy),
        (None, Some(true)) => Some(Propagation::Orphan),
        (None, Some(false)) => Some(Propagation::Background),
        (None, None) => None,
    };
    let mut list: Vec<String> = meta::finalizers(old).map(str::to_owned).collect();
    let Some(policy) = policy else { return list };
    list.retain(|f| f != ORPHAN && f != FOREGROUND);
    match policy {
        Propagation::Orphan => list.push(ORPHAN.into()),
        Propagation::Foreground => list.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    list
}

#[cfg(test)]
mod tests {
    use api::registry::by_plural;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn kind(plural: &str) -> &'static Kind {
        by_plural("", "v1", plural).unwrap()
    }

    fn new(plural: &str, namespace: &str, object: Value) -> Result<Value, Status> {
        create(kind(plural), namespace, object, Birth { uid: "u", now: NOW, random: &[0; 5] })
    }

    fn stored(mut object: Value) -> Value {
        let metadata = json!({"uid": "u", "resourceVersion": "7", "name": "a"});
        for (key, value) in metadata.as_object().unwrap() {
            object["metadata"].as_object_mut().unwrap().entry(key).or_insert(value.clone());
        }
        object
    }

    #[test]
    fn a_new_object_has_what_the_server_decides() {
        let made =
            new("configmaps", "n", json!({"metadata": {"name": "a", "uid": "mine"}, "data": {"x": "y"}})).unwrap();
        let want = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "2023-11-14T22:13:20Z"}, "data": {"x": "y"}});
        assert_eq!((&made["metadata"], &made["data"]), (&want["metadata"], &want["data"]));
        let namespace = new("namespaces", "", json!({"metadata": {"name": "a"}})).unwrap();
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(namespace["status"]["phase"], "Active");
        assert_eq!(new("configmaps", "n", json!({"metadata": {"name": "a", "namespace": "m"}})).unwrap_err().code, 400);
        assert_eq!(
            new("configmaps", "n", json!({"metadata": {"name": "a", "resourceVersion": "1"}})).unwrap_err().code,
            400
        );
    }

    #[test]
    fn updates_meet_the_stored_object() {
        let old = stored(json!({"metadata": {"namespace": "n"}, "data": {"x": "y"}}));
        let apply = |new: Value| update(kind("configmaps"), new, &old, Part::Main);
        assert_eq!(apply(old.clone()).unwrap(), Updated::Unchanged);
        assert_eq!(apply(json!({"metadata": {}, "data": {"x": "y"}})).unwrap(), Updated::Unchanged);
        let Updated::Put(put) = apply(json!({"metadata": {"resourceVersion": "7"}, "data": {}})).unwrap() else {
            panic!("a change is put")
        };
        assert_eq!((meta::uid(&put), &put["data"]), ("u", &json!({})));
        for (metadata, code) in [
            (json!({"name": "b"}), 400),
            (json!({"namespace": "m"}), 400),
            (json!({"uid": "other"}), 409),
            (json!({"resourceVersion": "6"}), 409),
        ] {
            assert_eq!(apply(json!({"metadata": metadata})).unwrap_err().code, code, "{metadata}");
        }
    }

    #[test]
    fn status_and_spec_do_not_touch_each_other() {
        let old = stored(
            json!({"metadata": {"namespace": "n", "generation": 2}, "spec": {"replicas": 1}, "status": {"replicas": 1}}),
        );
        let only =
            only_status(json!({"metadata": {"labels": {"a": "b"}}, "spec": {}, "status": {"replicas": 5}}), &old);
        assert_eq!((&only["spec"]["replicas"], &only["status"]["replicas"]), (&json!(1), &json!(5)));
        assert_eq!(meta::label(&only, "a"), Some("b"));
        let kept = keep_status(kind("replicationcontrollers"), json!({"spec": {"replicas": 9}}), &old);
        assert_eq!((&kept["spec"]["replicas"], &kept["status"]["replicas"]), (&json!(9), &json!(1)));
    }

    #[test]
    fn the_last_finalizer_lets_an_object_go() {
        let mut old = stored(
            json!({"metadata": {"namespace": "n", "finalizers": ["a.io/x", "a.io/y"], "deletionTimestamp": "2023-01-01T00:00:00Z"}}),
        );
        let apply = |finalizers: Value, old: &Value| {
            update(kind("configmaps"), json!({"metadata": {"finalizers": finalizers}}), old, Part::Main)
        };
        assert!(matches!(apply(json!(["a.io/x"]), &old).unwrap(), Updated::Put(_)));
        assert!(matches!(apply(json!([]), &old).unwrap(), Updated::Remove(_)));
        assert_eq!(apply(json!(["a.io/x", "a.io/z"]), &old).unwrap_err().code, 422);
        meta::set(&mut old, "deletionGracePeriodSeconds", 30);
        assert!(matches!(apply(json!([]), &old).unwrap(), Updated::Put(_)), "its time is not over");
    }

    #[test]
    fn deletes_without_anybody_waiting_remove() {
        let plain = stored(json!({"metadata": {"namespace": "n"}}));
        let held = stored(json!({"metadata": {"namespace": "n", "finalizers": ["x"]}}));
        let run = |object: &Value, options: DeleteOptions| delete(kind("configmaps"), object, &options, NOW).unwrap();
        assert_eq!(run(&plain, DeleteOptions::default()), Deleted::Remove);
        let Deleted::Mark(marked) = run(&held, DeleteOptions::default()) else { panic!("a finalizer holds it") };
        assert_eq!(meta::deletion_timestamp(&marked), Some("2023-11-14T22:13:20Z"));
        assert_eq!(run(&marked, DeleteOptions::default()), Deleted::Already);
        for (policy, want) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)] {
            let options = DeleteOptions { propagation_policy: Some(policy), ..DeleteOptions::default() };
            let Deleted::Mark(marked) = run(&plain, options) else { panic!("the collector has to work first") };
            assert!(meta::has_finalizer(&marked, want));
        }
    }

    #[test]
    fn preconditions_hold() {
        let object = stored(json!({"metadata": {"namespace": "n"}}));
        for (uid, version, ok) in [("u", "7", true), ("v", "7", false), ("u", "8", false)] {
            let preconditions = Preconditions { uid: Some(uid.into()), resource_version: Some(version.into()) };
            let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
            assert_eq!(delete(kind("configmaps"), &object, &options, NOW).is_ok(), ok, "{uid} {version}");
        }
    }

    #[test]
    fn a_namespace_waits_for_its_content() {
        let old =
            stored(json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}));
        let kind = kind("namespaces");
        let Deleted::Mark(marked) = delete(kind, &old, &DeleteOptions::default(), NOW).unwrap() else {
            panic!("it waits")
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        let emptied = finalize(kind, &json!({"metadata": {}, "spec": {}}), &marked).unwrap();
        assert!(matches!(emptied, Updated::Remove(_)));
    }

    #[test]
    fn pods_on_a_node_get_time_to_stop() {
        let pod = |node: &str| {
            stored(
                json!({"metadata": {"namespace": "n", "generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}}),
            )
        };
        let run = |object: &Value, grace: Option<i64>| {
            delete(
                kind("pods"),
                object,
                &DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() },
                NOW,
            )
            .unwrap()
        };
        assert_eq!(run(&pod(""), None), Deleted::Remove);
        assert_eq!(run(&pod("a"), Some(0)), Deleted::Remove);
        let Deleted::Mark(marked) = run(&pod("a"), None) else { panic!("a node has to stop it") };
        assert_eq!(meta::deletion_timestamp(&marked), Some("2023-11-14T22:13:50Z"));
        assert_eq!((meta::deletion_grace_period(&marked), meta::generation(&marked)), (Some(30), 2));
        assert_eq!(run(&marked, None), Deleted::Already);
        assert_eq!(run(&marked, Some(60)), Deleted::Already);
        let Deleted::Mark(shorter) = run(&marked, Some(5)) else { panic!("a shorter period counts") };
        assert_eq!(meta::deletion_grace_period(&shorter), Some(5));
        assert_eq!(run(&marked, Some(0)), Deleted::Remove);
    }
}
