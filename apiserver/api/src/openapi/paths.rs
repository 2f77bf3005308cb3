//! The `paths` of a document: which operations each address has, and what they take and give.

use serde_json::{Map, Value, json};

use super::{
    group_path, group_version_kind, reference,
    schemas::{SCALE, list_name, subresource_schema},
};
use crate::registry::Kind;

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const MEDIA_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

pub fn of(kinds: &[&Kind]) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        add(kind, &mut paths);
    }
    paths
}

/// What an operation is about.
struct Subject<'a> {
    kind: &'a Kind,
    /// Of the object that is read and written.
    schema: &'a str,
    api_version: String,
    name: &'a str,
}

impl Subject<'_> {
    fn main(kind: &Kind) -> Subject<'_> {
        Subject { kind, schema: kind.schema, api_version: kind.api_version(), name: kind.kind }
    }

    /// One operation. `answer` is the type of what comes back, `body` of what is sent.
    fn operation(&self, verb: &str, action: &str, answer: Option<&str>, body: Option<Value>) -> Value {
        let answer = match answer {
            Some(schema) => json!({ "description": "OK", "content": content(&MEDIA_TYPES, schema) }),
            None => json!({ "description": "OK", "content": { "text/plain": { "schema": { "type": "string" } } } }),
        };
        let mut operation = json!({
            "tags": [self.kind.group_tag()],
            "responses": { "200": answer },
            "parameters": parameters(verb),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": group_version_kind(&self.api_version, self.name),
        });
        if let Some(body) = body {
            operation["requestBody"] = json!({ "required": verb != "delete", "content": body });
        }
        operation
    }

    fn read_write(&self) -> Value {
        let schema = Some(self.schema);
        let patch = PATCH_TYPES.iter().map(|t| ((*t).to_owned(), json!({ "schema": { "type": "object" } })));
        json!({
            "get": self.operation("get", "get", schema, None),
            "put": self.operation("put", "put", schema, Some(content(&MEDIA_TYPES, self.schema))),
            "patch": self.operation("patch", "patch", schema, Some(Value::Object(patch.collect()))),
        })
    }
}

impl Kind {
    /// `core_v1`, `apps_v1`
    fn group_tag(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("{group}_{}", self.version).replace('.', "_")
    }
}

fn add(kind: &Kind, paths: &mut Map<String, Value>) {
    let root = format!("/{}", group_path(kind));
    let namespace = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{namespace}/{}", kind.plural);
    let object = format!("{collection}/{{name}}");
    let subject = Subject::main(kind);
    let (list, own) = (list_name(kind), Some(kind.schema));
    let options = || Some(content(&MEDIA_TYPES, DELETE_OPTIONS));

    let list = subject.operation("list", "list", Some(&list), None);
    if kind.namespaced() {
        paths.insert(format!("{root}/{}", kind.plural), with_parameters(json!({ "get": list.clone() }), &[]));
    }
    let create = subject.operation("post", "post", own, Some(content(&MEDIA_TYPES, kind.schema)));
    let delete_all = subject.operation("delete", "deletecollection", Some(STATUS), options());
    let operations = json!({ "get": list, "post": create, "delete": delete_all });
    let in_namespace: &[&str] = if kind.namespaced() { &["namespace"] } else { &[] };
    let of_object: &[&str] = if kind.namespaced() { &["name", "namespace"] } else { &["name"] };
    paths.insert(collection, with_parameters(operations, in_namespace));

    let mut operations = subject.read_write();
    operations["delete"] = subject.operation("delete", "delete", Some(STATUS), options());
    paths.insert(object.clone(), with_parameters(operations, of_object));

    if kind.has_status {
        paths.insert(format!("{object}/status"), with_parameters(subject.read_write(), of_object));
    }
    if kind.scale.is_some() {
        let scale = Subject { kind, schema: SCALE, api_version: "autoscaling/v1".to_owned(), name: "Scale" };
        paths.insert(format!("{object}/scale"), with_parameters(scale.read_write(), of_object));
    }
    for sub in kind.subresources {
        let (operations, path) = (subresource(kind, sub), format!("{object}/{}", sub.name));
        if operations.as_object().is_some_and(|o| !o.is_empty()) {
            paths.entry(path).or_insert_with(|| with_parameters(operations, of_object));
        }
    }
}

/// A subresource with a handler of its own.
fn subresource(kind: &Kind, sub: &crate::registry::Subresource) -> Value {
    let schema = subresource_schema(sub.group, sub.version, sub.kind);
    let version = if sub.version.is_empty() { kind.version } else { sub.version };
    let api_version = match (sub.group, sub.version) {
        ("", "") => kind.api_version(),
        ("", _) => version.to_owned(),
        (group, _) => format!("{group}/{version}"),
    };
    let subject = Subject { kind, schema: schema.as_deref().unwrap_or_default(), api_version, name: sub.kind };
    let mut operations = Map::new();
    for verb in sub.verbs {
        let (method, action, takes_body) = match *verb {
            "get" => ("get", "connect", false),
            "create" if schema.is_some() => ("post", "post", true),
            "create" => ("post", "connect", false),
            "update" if schema.is_some() => ("put", "put", true),
            "delete" => ("delete", "delete", false),
            _ => continue,
        };
        let body = schema.as_deref().filter(|_| takes_body).map(|s| content(&MEDIA_TYPES, s));
        operations.insert(method.to_owned(), subject.operation(method, action, schema.as_deref(), body));
    }
    Value::Object(operations)
}

fn content(media_types: &[&str], schema: &str) -> Value {
    let schema = json!({ "schema": { "$ref": reference(schema) } });
    Value::Object(media_types.iter().map(|t| ((*t).to_owned(), schema.clone())).collect())
}

/// Query parameters of one operation. `fieldValidation` tells kubectl that the server checks fields itself.
fn parameters(verb: &str) -> Value {
    let names: &[(&str, &str)] = match verb {
        "list" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "post" | "put" => &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")],
        "patch" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")]
        }
        "delete" => &[("dryRun", "string"), ("gracePeriodSeconds", "integer"), ("propagationPolicy", "string")],
        _ => &[],
    };
    let parameter = |(name, ty): &(&str, &str)| json!({ "name": name, "in": "query", "schema": { "type": ty } });
    names.iter().map(parameter).collect()
}

/// Parameters that stand in the path belong to all its operations.
fn with_parameters(mut operations: Value, in_path: &[&str]) -> Value {
    let parameter =
        |name: &&str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    operations["parameters"] = in_path.iter().map(parameter).collect();
    operations
}
