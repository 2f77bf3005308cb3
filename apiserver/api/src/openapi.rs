//! OpenAPI v3, one document per group and version: what `kubectl explain`, `apply` and `create` learn the types from.
//!
//! Types and descriptions come from `k8s-openapi`, merge rules from [`crate::schema`], paths from [`crate::registry`].
//! A document is made on request and not kept: clients cache it by the hash in its address.

use serde_json::{Map, Value, json};

use crate::registry::{self, Kind};

mod paths;
mod schemas;
mod types;

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
        "info": { "title": "Kubernetes", "version": concat!("v1.35.0+minik8s.", env!("CARGO_PKG_VERSION")) },
        "paths": paths::of(&kinds),
        "components": { "schemas": schemas::of(&kinds) },
    }))
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
mod tests;
