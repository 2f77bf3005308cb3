//! Server-side tables: what `kubectl get` prints.

use serde_json::{Value, json};

use crate::registry::Kind;

/// One column of a kind's table. Priority above zero shows only with `-o wide`.
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the name column, otherwise empty.
    pub format: &'static str,
    pub description: &'static str,
    pub priority: i32,
}

impl Column {
    /// The column that holds the object's name.
    pub const NAME: Self = Self {
        name: "Name",
        kind: "string",
        format: "name",
        description: "Name of the object, unique for its kind and namespace.",
        priority: 0,
    };

    /// The column that holds the time since creation.
    pub const AGE: Self = Self::text("Age", "Time since the object was created.");

    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self { name, kind: "string", format: "", description, priority: 0 }
    }

    pub const fn integer(name: &'static str, description: &'static str) -> Self {
        Self { name, kind: "integer", format: "", description, priority: 0 }
    }

    /// The same column, shown only with `-o wide`.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }

    fn to_json(&self) -> Value {
        json!({"name": self.name, "type": self.kind, "format": self.format, "description": self.description,
            "priority": self.priority})
    }
}

/// What a row carries beside its cells (`?includeObject=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The query parameter's value; unset means metadata.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// Whether a table names its columns: a watch does so only in its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Show,
    Omit,
}

/// The `meta.k8s.io/v1` Table of some objects. `list_metadata` is the list's (or the single object's) resource
/// version and continuation; `now` is in seconds since the epoch.
pub fn table<'v>(
    kind: &Kind,
    items: impl IntoIterator<Item = &'v Value>,
    now: i64,
    include: IncludeObject,
    list_metadata: Value,
    header: Header,
) -> Value {
    let columns: Vec<Value> = match header {
        Header::Show => kind.columns.iter().map(Column::to_json).collect(),
        Header::Omit => Vec::new(),
    };
    let rows: Vec<Value> = items.into_iter().map(|item| row(kind, item, now, include)).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": columns,
        "rows": rows})
}

/// One row: the cells, and the object as asked for.
pub fn row(kind: &Kind, object: &Value, now: i64, include: IncludeObject) -> Value {
    let cells = kind.strategy.row(object, now);
    let shown = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_object_metadata(object),
        IncludeObject::Object => object.clone(),
    };
    json!({"cells": cells, "object": shown})
}

/// An object stripped of all but its metadata.
pub fn partial_object_metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{ALL, by_plural};

    #[test]
    fn every_kind_fills_its_columns() {
        for kind in ALL {
            let object = json!({"metadata": {"name": "a", "namespace": "n"}});
            let cells = kind.strategy.row(&object, 0);
            assert_eq!(cells.len(), kind.columns.len(), "{}", kind.kind);
            let names = kind.columns.iter().filter(|c| c.format == "name").count();
            assert_eq!(names, 1, "{}", kind.kind);
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let kind = by_plural("", "v1", "configmaps").expect("config maps are served");
        let object = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}});
        let shown = |include, header| table(kind, [&object], 0, include, json!({"resourceVersion": "7"}), header);
        let full = shown(IncludeObject::Object, Header::Show);
        assert_eq!(full["rows"][0]["object"], object);
        assert_eq!(full["columnDefinitions"][0]["name"], "Name");
        assert_eq!(full["metadata"]["resourceVersion"], "7");
        let partial = shown(IncludeObject::Metadata, Header::Omit);
        assert_eq!(partial["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(partial["rows"][0]["object"].get("data"), None);
        assert_eq!(partial["columnDefinitions"], json!([]));
        assert_eq!(shown(IncludeObject::None, Header::Omit)["rows"][0]["object"], Value::Null);
        assert_eq!(full["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
    }
}
