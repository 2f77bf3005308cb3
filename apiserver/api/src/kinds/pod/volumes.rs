//! What is wrong with the volumes of a pod.

use std::collections::HashSet;

use serde_json::Value;

use super::containers::{downward_field, downward_resource, relative_path};
use crate::{
    field::{Errors, Path, int, items, some_text, text},
    names,
    quantity::Quantity,
};

const HOST_PATH_TYPES: &[&str] =
    &["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
/// The fields that a file of a downward API volume may show.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

pub fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let list = path.child("volumes");
    let mut seen = HashSet::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let at = list.index(index);
        match some_text(volume, "name") {
            None => errors.required(&at.child("name"), ""),
            Some(name) => {
                errors.complaints(&at.child("name"), name, names::dns1123_label(name));
                if !seen.insert(name) {
                    errors.duplicate(&at.child("name"), &name.into());
                }
            }
        }
        sources(errors, &at, volume);
    }
}

fn sources(errors: &mut Errors, at: &Path<'_>, volume: &Value) {
    let fields = volume.as_object().into_iter().flatten();
    let mut sources = fields.filter(|(key, _)| *key != "name");
    let Some((kind, found)) = sources.next() else { return errors.required(at, "a volume has one type") };
    source(errors, &at.child(kind), kind, found);
    for (extra, _) in sources {
        errors.forbidden(&at.child(extra), "a volume has one type");
    }
}

fn source(errors: &mut Errors, at: &Path<'_>, kind: &str, source: &Value) {
    match kind {
        "emptyDir" => {
            if let Some(limit) = source.get("sizeLimit")
                && Quantity::from_value(limit).is_ok_and(Quantity::is_negative)
            {
                errors.forbidden(&at.child("sizeLimit"), "must not be negative");
            }
        }
        "hostPath" => {
            let path = text(source, "path");
            if path.is_empty() {
                errors.required(&at.child("path"), "");
            }
            if path.split('/').any(|part| part == "..") {
                errors.invalid_str(&at.child("path"), path, "must not contain '..'");
            }
            errors.one_of(&at.child("type"), Some(text(source, "type")), HOST_PATH_TYPES);
        }
        "configMap" => required(errors, at, source, &["name"]),
        "secret" => required(errors, at, source, &["secretName"]),
        "persistentVolumeClaim" => required(errors, at, source, &["claimName"]),
        "nfs" => required(errors, at, source, &["server", "path"]),
        "csi" => required(errors, at, source, &["driver"]),
        "image" => required(errors, at, source, &["reference"]),
        "downwardAPI" => downward_items(errors, &at.child("items"), source),
        "projected" => projected(errors, at, source),
        _ => {}
    }
    mode(errors, &at.child("defaultMode"), int(source, "defaultMode"));
    if matches!(kind, "configMap" | "secret") {
        keys(errors, &at.child("items"), source);
    }
}

fn required(errors: &mut Errors, at: &Path<'_>, source: &Value, fields: &[&str]) {
    for field in fields {
        if text(source, field).is_empty() {
            errors.required(&at.child(field), "");
        }
    }
}

fn mode(errors: &mut Errors, at: &Path<'_>, mode: Option<i64>) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(at, &mode.into(), "must be from 0 to 0777 (octal)");
    }
}

/// Which keys become which files.
fn keys(errors: &mut Errors, list: &Path<'_>, source: &Value) {
    for (index, item) in items(source, "items").iter().enumerate() {
        let at = list.index(index);
        required(errors, &at, item, &["key", "path"]);
        relative_path(errors, &at.child("path"), text(item, "path"));
        mode(errors, &at.child("mode"), int(item, "mode"));
    }
}

fn downward_items(errors: &mut Errors, list: &Path<'_>, source: &Value) {
    for (index, item) in items(source, "items").iter().enumerate() {
        let at = list.index(index);
        required(errors, &at, item, &["path"]);
        relative_path(errors, &at.child("path"), text(item, "path"));
        mode(errors, &at.child("mode"), int(item, "mode"));
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(_), Some(_)) => {
                errors.invalid_str(&at, "", "fieldRef and resourceFieldRef exclude each other");
            }
            (Some(field), None) => downward_field(errors, &at.child("fieldRef"), field, VOLUME_FIELDS),
            (None, Some(resource)) => downward_resource(errors, &at.child("resourceFieldRef"), resource),
            (None, None) => errors.required(&at, "must have fieldRef or resourceFieldRef"),
        }
    }
}

fn projected(errors: &mut Errors, at: &Path<'_>, source: &Value) {
    let list = at.child("sources");
    for (index, each) in items(source, "sources").iter().enumerate() {
        let at = list.index(index);
        for key in ["configMap", "secret"] {
            if let Some(found) = each.get(key) {
                required(errors, &at.child(key), found, &["name"]);
                keys(errors, &at.child(key).child("items"), found);
            }
        }
        if let Some(found) = each.get("downwardAPI") {
            downward_items(errors, &at.child("downwardAPI").child("items"), found);
        }
        if let Some(token) = each.get("serviceAccountToken") {
            let at = at.child("serviceAccountToken");
            required(errors, &at, token, &["path"]);
            relative_path(errors, &at.child("path"), text(token, "path"));
            if int(token, "expirationSeconds").is_some_and(|seconds| seconds < 600) {
                let value = token["expirationSeconds"].clone();
                errors.invalid(&at.child("expirationSeconds"), &value, "must be at least 600");
            }
        }
    }
}
