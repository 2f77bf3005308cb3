//! OpenAPI: what `kubectl explain`, `apply` and `create` learn the types from. Version 3 is one document per group and
//! version; version 2 is one for all, in [`swagger`] and [`gnostic`], for clients that know nothing newer.
//!
//! Types and descriptions come from `k8s-openapi`, merge rules from [`crate::schema`], paths from [`crate::registry`].
//! A document is made on request and not kept: clients cache it by the hash in its address.

use serde_json::{Map, Value, json};

use crate::registry::{self, Kind};

mod paths;
mod schemas;
mod types;

pub mod swagger;

pub mod gnostic;

/// What `/openapi/v3` answers. `hash` changes whenever the documents may have; clients cache by it.
pub fn index(hash: &str) -> Value {
    let mut paths = Map::new();
    for kind in registry::ALL {
        let path = group_path(kind);
        let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") });
        paths.entry(path).or_insert(url);
    }
    json!({ "paths": paths })
}

/// What `/openapi/v3/apis/<group>/<version>` answers; `None` when nothing of that group and version is served.
pub fn document(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> =
        registry::ALL.iter().copied().filter(|k| k.group == group && k.version == version).collect();
    if kinds.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths::of(&kinds),
        "components": { "schemas": schemas::of(&kinds) },
    }))
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": concat!("v1.35.0+minik8s.", env!("CARGO_PKG_VERSION")) })
}

/// `api/v1` or `apis/apps/v1`.
fn group_path(kind: &Kind) -> String {
    let root = if kind.group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", kind.api_version())
}

/// The address of a type within a document.
fn reference(name: &str) -> String {
    format!("#/components/schemas/{name}")
}

fn group_version_kind(api_version: &str, kind: &str) -> Value {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    json!({ "group": group, "version": version, "kind": kind })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema;

    fn groups() -> BTreeSet<(&'static str, &'static str)> {
        registry::ALL.iter().map(|k| (k.group, k.version)).collect()
    }

    #[test]
    fn every_served_kind_has_a_type() {
        for kind in registry::ALL {
            let generate = types::find(kind.schema).unwrap_or_else(|| panic!("{} has no row in types.rs", kind.schema));
            let mut generator = schemars::SchemaGenerator::default();
            generate(&mut generator);
            assert!(generator.definitions().contains_key(kind.schema), "the row {} is another type's", kind.schema);
        }
    }

    #[test]
    fn index_lists_every_group_once() {
        let index = index("abc");
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(paths.len(), groups().len());
        assert_eq!(paths["api/v1"], json!({"serverRelativeURL": "/openapi/v3/api/v1?hash=abc"}));
        assert_eq!(paths["apis/apps/v1"], json!({"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=abc"}));
        assert_eq!(document("no.such.group", "v1"), None);
    }

    #[test]
    fn documents_are_closed_and_plain_openapi() {
        for (group, version) in groups() {
            let document = document(group, version).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let mut refs = 0;
            walk(&document, &mut |object| {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    refs += 1;
                    let name = reference.strip_prefix("#/components/schemas/").unwrap();
                    assert!(schemas.contains_key(name), "{group}/{version}: {name} is nowhere");
                    assert_eq!(object.len(), 1, "{reference} has siblings");
                }
                // What JSON Schema has and OpenAPI 3.0 has not.
                for keyword in ["$schema", "$defs", "anyOf", "const", "x-kubernetes-int-or-string"] {
                    assert!(!object.contains_key(keyword) || object[keyword].is_object(), "{keyword}: {object:?}");
                }
                assert!(!object.get("type").is_some_and(Value::is_array), "{object:?}");
            });
            assert!(refs > 50, "{group}/{version}: {refs}");
        }
    }

    fn walk(value: &Value, f: &mut dyn FnMut(&Map<String, Value>)) {
        match value {
            Value::Object(object) => {
                f(object);
                object.values().for_each(|v| walk(v, f));
            }
            Value::Array(items) => items.iter().for_each(|v| walk(v, f)),
            _ => {}
        }
    }

    /// The two sources agree: each type has the same fields in `k8s-openapi` and in our table.
    #[test]
    fn schemas_and_table_have_the_same_fields() {
        let mut compared = 0;
        for (group, version) in groups() {
            let document = document(group, version).unwrap();
            for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
                let Some(message) = schema::message(name) else { continue };
                let Some(properties) = schema["properties"].as_object() else { continue };
                let mut table: BTreeSet<&str> = message.json_fields().iter().map(|f| f.name).collect();
                if message.is_kind {
                    table.extend(["apiVersion", "kind"]);
                }
                assert_eq!(properties.keys().map(String::as_str).collect::<BTreeSet<_>>(), table, "{name}");
                compared += 1;
            }
        }
        assert!(compared > 200, "{compared}");
    }

    #[test]
    fn patch_operations_say_what_kubectl_looks_for() {
        for kind in registry::ALL {
            let document = document(kind.group, kind.version).unwrap();
            let namespace = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
            let path = format!("/{}{namespace}/{}/{{name}}", group_path(kind), kind.plural);
            let patch = &document["paths"][&path]["patch"];
            let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
            assert_eq!(patch["x-kubernetes-group-version-kind"], gvk, "{path}");
            let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str()).collect();
            assert!(names.contains(&Some("fieldValidation")), "{path}: {names:?}");
            let content = patch["requestBody"]["content"].as_object().unwrap();
            assert!(content.contains_key("application/strategic-merge-patch+json"), "{path}");
            assert_eq!(document["components"]["schemas"][kind.schema]["x-kubernetes-group-version-kind"], json!([gvk]));
            assert!(document["components"]["schemas"].get(format!("{}List", kind.schema)).is_some());
        }
    }

    #[test]
    fn facts_and_descriptions_are_in_the_schemas() {
        let document = document("", "v1").unwrap();
        let schemas = &document["components"]["schemas"];
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(volumes["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(volumes["x-kubernetes-list-type"], "map");
        assert_eq!(volumes["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(volumes["items"], json!({"$ref": "#/components/schemas/io.k8s.api.core.v1.Volume"}));
        assert!(volumes["description"].as_str().is_some_and(|d| d.len() > 20));
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["properties"]["spec"]["allOf"],
            json!([{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}])
        );
        assert_eq!(pod.get("required"), None);
        assert_eq!(schemas["io.k8s.api.core.v1.LocalObjectReference"]["x-kubernetes-map-type"], "atomic");
        let int_or_string = &schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(int_or_string["oneOf"], json!([{"type": "integer"}, {"type": "string"}]));
        let eviction = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["post"];
        assert_eq!(
            eviction["x-kubernetes-group-version-kind"],
            json!({"group": "policy", "version": "v1", "kind": "Eviction"})
        );
    }
}
