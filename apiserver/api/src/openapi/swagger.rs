//! OpenAPI v2, also called Swagger: ONE document for all groups. Clients older than 1.27 read nothing newer.
//!
//! It is derived from the parts of the v3 documents, so that both have one source.

use serde_json::{Map, Value, json};

use super::{info, paths, schemas};
use crate::registry;

type Object = Map<String, Value>;

/// What `/openapi/v2` answers. Large: let go of it once it is encoded.
pub fn document() -> Value {
    let mut paths = paths::of(registry::ALL);
    paths.values_mut().filter_map(Value::as_object_mut).for_each(path_item);
    let mut definitions = schemas::of(registry::ALL);
    definitions.values_mut().for_each(schema);
    json!({ "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions })
}

/// A path has operations by method, and `parameters` that all of them share.
fn path_item(item: &mut Object) {
    for (key, value) in item {
        match value {
            Value::Array(shared) if key == "parameters" => shared.iter_mut().for_each(parameter),
            Value::Object(value) => operation(value),
            _ => {}
        }
    }
}

/// Media types stand beside the schemas in v2, and a body is one more parameter.
fn operation(operation: &mut Object) {
    let mut produces = Vec::new();
    let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
    for response in responses.into_iter().flat_map(Object::values_mut).filter_map(Value::as_object_mut) {
        if let Some((media_types, schema)) = response.remove("content").and_then(content) {
            produces = media_types;
            response.insert("schema".to_owned(), schema);
        }
    }
    operation.insert("produces".to_owned(), produces.into());

    let body = operation.remove("requestBody");
    let Some(Value::Array(parameters)) = operation.get_mut("parameters") else { return };
    parameters.iter_mut().for_each(parameter);
    let Some(mut body) = body else { return };
    if let Some((media_types, schema)) = content(body["content"].take()) {
        parameters.push(json!({ "name": "body", "in": "body", "required": body["required"], "schema": schema }));
        operation.insert("consumes".to_owned(), media_types.into());
    }
}

/// The media types of a v3 `content`, and the schema: ours have the same one for each media type.
fn content(content: Value) -> Option<(Vec<Value>, Value)> {
    let Value::Object(mut content) = content else { return None };
    let media_types = content.keys().map(|k| k.as_str().into()).collect();
    let mut found = content.values_mut().next()?["schema"].take();
    schema(&mut found);
    Some((media_types, found))
}

/// The type of a parameter that is not the body stands in the parameter itself.
fn parameter(parameter: &mut Value) {
    let Value::Object(parameter) = parameter else { return };
    if let Some(Value::Object(schema)) = parameter.remove("schema") {
        parameter.extend(schema);
    }
}

fn schema(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(schema),
        Value::Object(fields) => {
            fields.values_mut().for_each(schema);
            schema_object(fields);
        }
        _ => {}
    }
}

fn schema_object(fields: &mut Object) {
    if let Some(Value::String(reference)) = fields.get_mut("$ref")
        && let Some(name) = reference.strip_prefix(&super::reference(""))
    {
        *reference = format!("#/definitions/{name}");
    }
    // The wrapping that v3 needs for a description; clients of v2 look for the reference itself.
    if fields.get("allOf").is_some_and(Value::is_array)
        && let Some(mut all) = fields.remove("allOf")
    {
        fields.insert("$ref".to_owned(), all[0]["$ref"].take());
    }
    // v2 cannot say "a number or a text": clients go by the format.
    if fields.get("format").is_some_and(|f| f == "int-or-string") {
        fields.remove("oneOf");
        fields.insert("type".to_owned(), json!("string"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What v3 has and v2 has not, and references to nowhere.
    fn check(value: &Value, definitions: &Object) -> usize {
        let Value::Object(fields) = value else {
            return value.as_array().into_iter().flatten().map(|item| check(item, definitions)).sum();
        };
        for keyword in ["allOf", "oneOf", "anyOf", "nullable", "content", "requestBody", "components"] {
            // A type may have a field of that name.
            assert!(fields.get(keyword).is_none_or(|v| v.get("type").is_some()), "{keyword}: {fields:?}");
        }
        let mut references = 0;
        if let Some(Value::String(reference)) = fields.get("$ref") {
            let name = reference.strip_prefix("#/definitions/").unwrap();
            assert!(definitions.contains_key(name), "{name} is nowhere");
            references += 1;
        }
        references + fields.values().map(|v| check(v, definitions)).sum::<usize>()
    }

    #[test]
    fn the_document_is_closed_and_plain_swagger() {
        let document = document();
        let definitions = document["definitions"].as_object().unwrap();
        assert!(check(&document, definitions) > 500);
        for kind in registry::ALL {
            let gvk = super::super::group_version_kind(&kind.api_version(), kind.kind);
            assert_eq!(definitions[kind.schema]["x-kubernetes-group-version-kind"], json!([gvk]), "{}", kind.schema);
        }
    }

    #[test]
    fn schemas_say_what_kubectl_merges_by() {
        let document = document();
        let spec = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(spec["containers"]["x-kubernetes-list-type"], "map");
        assert_eq!(spec["containers"]["items"], json!({ "$ref": "#/definitions/io.k8s.api.core.v1.Container" }));
        assert_eq!(spec["affinity"]["$ref"], "#/definitions/io.k8s.api.core.v1.Affinity");
        assert!(spec["affinity"]["description"].is_string());
        let port = &document["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!((&port["type"], &port["format"]), (&json!("string"), &json!("int-or-string")));
    }

    #[test]
    fn operations_take_parameters_and_bodies() {
        let document = document();
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        let names = |p: &Value| -> Vec<String> {
            p.as_array().unwrap().iter().map(|p| format!("{} {}", p["in"], p["name"]).replace('"', "")).collect()
        };
        assert_eq!(names(&path["parameters"]), ["path name", "path namespace"]);
        assert_eq!(path["parameters"][0]["type"], "string");
        let patch = &path["patch"];
        let parameters = names(&patch["parameters"]);
        for wanted in ["query dryRun", "query fieldValidation", "query force", "body body"] {
            assert!(parameters.iter().any(|p| p == wanted), "{wanted}: {parameters:?}");
        }
        assert!(patch["consumes"].as_array().unwrap().contains(&json!("application/strategic-merge-patch+json")));
        assert_eq!(patch["x-kubernetes-action"], "patch");
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({ "group": "apps", "version": "v1", "kind": "Deployment" })
        );
        let answer = &path["get"]["responses"]["200"];
        assert_eq!(answer["schema"]["$ref"], "#/definitions/io.k8s.api.apps.v1.Deployment");
        assert!(path["get"]["produces"].as_array().unwrap().contains(&json!("application/json")));
    }
}
