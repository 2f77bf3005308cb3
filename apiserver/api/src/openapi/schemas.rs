//! The `components.schemas` of a document.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{group_version_kind, reference, types};
use crate::{
    registry::Kind,
    schema::{self, Field, ListType, Message},
};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Every type that the kinds refer to, by name.
pub fn of(kinds: &[&Kind]) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|s| s.transforms.clear());
    let mut generator = SchemaGenerator::new(settings);
    types::common(&mut generator);
    for kind in kinds {
        let subresources = kind.subresources.iter().filter_map(|s| subresource_schema(s.group, s.version, s.kind));
        for name in [kind.schema.to_owned()].into_iter().chain(subresources) {
            if let Some(generate) = types::find(&name) {
                generate(&mut generator);
            }
        }
        if kind.scale.is_some() {
            types::find(SCALE).into_iter().for_each(|generate| generate(&mut generator));
        }
    }
    let mut schemas = generator.take_definitions(false);
    for (name, schema) in &mut schemas {
        convert(schema);
        if let (Some(message), Some(schema)) = (schema::message(name), schema.as_object_mut()) {
            annotate(message, schema, kinds);
        }
    }
    for kind in kinds {
        schemas.insert(list_name(kind), list(kind));
    }
    schemas
}

pub const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The type of what a subresource takes, where it takes an object.
pub fn subresource_schema(group: &str, version: &str, kind: &str) -> Option<String> {
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let name = schema::by_kind(&api_version, kind)?.name();
    types::find(&name).map(|_| name)
}

pub fn list_name(kind: &Kind) -> String {
    format!("{}List", kind.schema)
}

fn list(kind: &Kind) -> Value {
    let name = format!("{}List", kind.kind);
    json!({
        "description": format!("{name} is a list of {} objects.", kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "allOf": [{ "$ref": reference(&format!("{META}.ListMeta")) }], "default": {} },
            "items": { "type": "array", "items": { "$ref": reference(kind.schema) } },
        },
        "x-kubernetes-group-version-kind": [group_version_kind(&kind.api_version(), &name)],
    })
}

/// From what schemars makes, JSON Schema, to OpenAPI 3.0.
fn convert(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(convert),
        Value::Object(fields) => {
            fields.values_mut().for_each(convert);
            convert_object(fields);
        }
        _ => {}
    }
}

fn convert_object(fields: &mut Map<String, Value>) {
    // A reference tolerates nothing beside it in OpenAPI 3.0; inside `allOf` it does.
    if fields.get("$ref").is_some_and(Value::is_string)
        && fields.len() > 1
        && let Some(reference) = fields.remove("$ref")
    {
        fields.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
    }
    if fields.remove("x-kubernetes-int-or-string").is_some_and(|v| v == true) {
        fields.insert("format".to_owned(), json!("int-or-string"));
        fields.insert("oneOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
    }
}

/// Adds what the table knows.
fn annotate(message: &Message, schema: &mut Map<String, Value>, kinds: &[&Kind]) {
    if message.is_kind {
        schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds_of(message, kinds));
        // The typed structs insist on metadata; clients may leave it out.
        if let Some(Value::Array(required)) = schema.get_mut("required") {
            required.retain(|r| r != "metadata");
            if required.is_empty() {
                schema.remove("required");
            }
        }
    }
    if message.atomic {
        schema.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for field in message.json_fields() {
        if let Some(Value::Object(property)) = properties.get_mut(field.name) {
            annotate_field(field, property);
        }
    }
}

fn annotate_field(field: &Field, property: &mut Map<String, Value>) {
    let mut add = |name: &str, value: Value| {
        property.insert(format!("x-kubernetes-{name}"), value);
    };
    let s = field.patch_strategies;
    let strategies = [(s.merge, "merge"), (s.replace, "replace"), (s.retain_keys, "retainKeys")];
    let strategies: Vec<&str> = strategies.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    if !strategies.is_empty() {
        add("patch-strategy", json!(strategies.join(",")));
    }
    if let Some(key) = field.patch_merge_key {
        add("patch-merge-key", json!(key));
    }
    match field.list_type {
        Some(ListType::Atomic) => add("list-type", json!("atomic")),
        Some(ListType::Set) => add("list-type", json!("set")),
        Some(ListType::Map) => {
            add("list-type", json!("map"));
            add("list-map-keys", json!(field.list_map_keys));
        }
        None => {}
    }
    if field.atomic {
        add("map-type", json!("atomic"));
    }
}

/// Options and statuses are the same type under every group and version.
fn kinds_of(message: &Message, kinds: &[&Kind]) -> Value {
    if !message.name().starts_with(META) {
        return json!([group_version_kind(message.api_version(), message.short_name)]);
    }
    let mut versions = vec!["v1".to_owned()];
    for version in kinds.iter().map(|k| k.api_version()) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    versions.iter().map(|v| group_version_kind(v, message.short_name)).collect()
}
