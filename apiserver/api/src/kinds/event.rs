//! Event: what happened to an object.

use serde_json::Value;

use super::{BASE, object_meta, print};
use crate::{
    field::{Errors, Path, int, some_text, text},
    meta,
    registry::{Kind, Part, Strategy},
    status::Cause,
    table::Column,
    time,
};

mod alias;

pub use alias::EVENT_V1;

pub static EVENT: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    columns: COLUMNS,
    strategy: &Events,
    ..BASE
};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", "Time since it last happened."),
    Column::text("Type", "Normal or Warning."),
    Column::text("Reason", "Why, in one word."),
    Column::text("Object", "What it happened to."),
    Column::text("Subobject", "The part of the object.").wide(),
    Column::text("Source", "Who says so.").wide(),
    Column::text("Message", "What happened."),
    Column::text("First Seen", "Time since it first happened.").wide(),
    Column::text("Count", "How often it happened.").wide(),
    Column { priority: 1, ..Column::NAME },
];

struct Events;

impl Strategy for Events {
    fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate(&mut errors, object, &object_meta::SUBDOMAIN);
        involved_namespace(&mut errors, object);
        errors.0
    }

    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Cause> {
        let mut errors = Errors::new();
        object_meta::validate_update(&mut errors, new, old);
        errors.0
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let first = some_text(object, "firstTimestamp").unwrap_or_else(|| text(object, "eventTime"));
        let first = time::age(first, now);
        let (last, count) = last_seen(object, &first, now);
        let involved = &object["involvedObject"];
        let target = format!("{}/{}", text(involved, "kind").to_lowercase(), text(involved, "name"));
        vec![
            last.into(),
            text(object, "type").into(),
            text(object, "reason").into(),
            target.into(),
            text(involved, "fieldPath").into(),
            source(object).into(),
            text(object, "message").trim().into(),
            first.into(),
            count.into(),
            print::name(object),
        ]
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let involved = &object["involvedObject"];
        let found = match alias::stored_path(path).as_str() {
            "involvedObject.kind" => text(involved, "kind"),
            "involvedObject.namespace" => text(involved, "namespace"),
            "involvedObject.name" => text(involved, "name"),
            "involvedObject.uid" => text(involved, "uid"),
            "involvedObject.apiVersion" => text(involved, "apiVersion"),
            "involvedObject.resourceVersion" => text(involved, "resourceVersion"),
            "involvedObject.fieldPath" => text(involved, "fieldPath"),
            "reason" => text(object, "reason"),
            "type" => text(object, "type"),
            "reportingComponent" => text(object, "reportingComponent"),
            "source" => some_text(&object["source"], "component").unwrap_or_else(|| text(object, "reportingComponent")),
            _ => return None,
        };
        Some(found.to_owned())
    }
}

/// Events live beside what they are about; those about objects without a namespace in `default` or `kube-system`.
fn involved_namespace(errors: &mut Errors, object: &Value) {
    let path = Path::root("involvedObject");
    let involved = text(&object["involvedObject"], "namespace");
    let own = meta::namespace(object);
    let fine = if involved.is_empty() { matches!(own, "default" | "kube-system" | "") } else { involved == own };
    if !fine {
        errors.invalid_str(&path.child("namespace"), involved, "does not match event.namespace");
    }
}

/// When it was last seen and how often: a series knows best, then the counters of old events.
fn last_seen(object: &Value, first: &str, now: i64) -> (String, i64) {
    if let Some(series) = object.get("series").filter(|series| series.is_object()) {
        return (time::age(text(series, "lastObservedTime"), now), int(series, "count").unwrap_or_default());
    }
    let last = match some_text(object, "lastTimestamp") {
        Some(last) => time::age(last, now),
        None => first.to_owned(),
    };
    // One that was never counted happened once.
    (last, int(object, "count").filter(|count| *count > 0).unwrap_or(1))
}

/// `kubelet, node-1`
fn source(object: &Value) -> String {
    let component = some_text(&object["source"], "component").unwrap_or_else(|| text(object, "reportingComponent"));
    let instance = some_text(&object["source"], "host").unwrap_or_else(|| text(object, "reportingInstance"));
    if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_say_when_what_and_who() {
        let object = json!({"metadata": {"name": "e"}, "type": "Normal", "reason": "Pulled", "message": "done \n",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"}, "count": 3,
            "firstTimestamp": time::rfc3339(0), "lastTimestamp": time::rfc3339(60),
            "source": {"component": "kubelet", "host": "n"}});
        let shown: Vec<String> = Events.row(&object, 90).iter().map(|v| v.to_string().replace('"', "")).collect();
        assert_eq!(
            shown,
            ["30s", "Normal", "Pulled", "pod/p", "spec.containers{c}", "kubelet, n", "done", "90s", "3", "e"]
        );
        assert_eq!(Events.field(&object, "involvedObject.name").as_deref(), Some("p"));
        assert_eq!(Events.field(&object, "source").as_deref(), Some("kubelet"));
        assert_eq!(Events.field(&object, "spec.x"), None);
    }

    #[test]
    fn events_stand_beside_their_object() {
        for (namespace, involved, fields) in [("a", "a", 0), ("default", "", 0), ("a", "b", 1), ("a", "", 1)] {
            let object = json!({"metadata": {"name": "e", "namespace": namespace},
                "involvedObject": {"namespace": involved}});
            assert_eq!(Events.validate(&object).len(), fields, "{namespace} {involved}");
        }
    }

    #[test]
    fn a_series_counts() {
        let object = json!({"eventTime": time::rfc3339_micro(0),
            "series": {"count": 7, "lastObservedTime": time::rfc3339_micro(80_000_000)}});
        let row = Events.row(&object, 90);
        assert_eq!((&row[0], &row[7], &row[8]), (&json!("10s"), &json!("90s"), &json!(7)));
    }
}
