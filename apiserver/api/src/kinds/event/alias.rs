//! `events.k8s.io/v1`: the same events under other names for some of their fields.

use serde_json::{Map, Value};

use super::{COLUMNS, EVENT, Events};
use crate::{
    kinds::BASE,
    registry::{Alias, Kind, Strategy},
};

pub static EVENT_V1: Kind = Kind {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.events.v1.Event",
    columns: COLUMNS,
    strategy: &Renamed,
    alias: Some(&Alias { stored: &EVENT, to_stored, from_stored }),
    ..BASE
};

/// What a field is called in `events.k8s.io/v1`, and in the core group.
const NAMES: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Objects of this kind are stored as core events, so all rules but the table's are applied there.
struct Renamed;

impl Strategy for Renamed {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let mut stored = object.clone();
        to_stored(&mut stored);
        Events.row(&stored, now)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        Events.field(object, path)
    }
}

/// The core group's name of a path in either group's terms.
pub fn stored_path(path: &str) -> String {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let first = NAMES.iter().find(|(ours, _)| *ours == first).map_or(first, |(_, stored)| stored);
    rest.map_or_else(|| first.to_owned(), |rest| format!("{first}.{rest}"))
}

fn to_stored(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for (ours, stored) in NAMES {
        rename(fields, ours, stored);
    }
    fields.insert("apiVersion".to_owned(), EVENT.api_version().into());
    // Fields that the core group always shows.
    fields.entry("involvedObject").or_insert_with(|| Value::Object(Map::new()));
}

fn from_stored(object: &mut Value) {
    let Some(fields) = object.as_object_mut() else { return };
    for (ours, stored) in NAMES {
        rename(fields, stored, ours);
    }
    fields.insert("apiVersion".to_owned(), EVENT_V1.api_version().into());
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let ours = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "done", "reportingController": "x.io/c",
            "deprecatedCount": 2, "type": "Normal"});
        let mut object = ours.clone();
        to_stored(&mut object);
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "done", "reportingComponent": "x.io/c",
            "count": 2, "type": "Normal"});
        assert_eq!(object, stored);
        assert_eq!(Renamed.row(&ours, 0), Events.row(&stored, 0));
        assert_eq!(Events.field(&stored, "regarding.name").as_deref(), Some("p"));
        from_stored(&mut object);
        assert_eq!(object, ours);
    }
}
