//! What a client sent as JSON, against the table: wrong types are errors, unknown fields are found and dropped, and
//! what is left is in the form in which the server would write it itself.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Form, Message, Presence, Type};
use crate::quantity;

/// A value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot unmarshal {found} into field {path} of type {expected}")]
pub struct Mismatch {
    /// `spec.containers[0].image`
    pub path: String,
    pub expected: &'static str,
    /// What kind of value stands there, and the value itself where it is short.
    pub found: String,
}

/// Brings a client's object into canonical form: nulls and empty values that the server would not write are dropped,
/// times and quantities are normalized. Fields that the type does not have are dropped too, and their paths returned
/// (`spec.containers[0].imagee`), for the caller to refuse, warn of or ignore.
pub fn decode(message: &Message, value: &mut Value) -> Result<Vec<String>, Mismatch> {
    let mut decoder = Decoder { path: String::new(), unknown: Vec::new() };
    decoder.message(message, value)?;
    Ok(decoder.unknown)
}

/// More than anybody reads, and short of what a hostile body could make of the answer.
const MAX_UNKNOWN: usize = 100;

struct Decoder {
    path: String,
    unknown: Vec<String>,
}

impl Decoder {
    fn message(&mut self, message: &Message, value: &mut Value) -> Result<(), Mismatch> {
        match message.form {
            Form::List => self.value(&message.fields()[0].ty, value),
            Form::Union => match message.fields().iter().find(|f| f.name == "schema") {
                Some(f) if value.is_object() => self.value(&f.ty, value),
                _ => Ok(()),
            },
            Form::Object => {
                let Value::Object(object) = value else { return Err(self.mismatch("object", value)) };
                self.object(message, object)
            }
        }
    }

    fn object(&mut self, message: &Message, object: &mut Map<String, Value>) -> Result<(), Mismatch> {
        let mut drop = Vec::new();
        for (name, value) in object.iter_mut() {
            let Some(field) = message.field(name) else {
                if message.is_kind && (name == "apiVersion" || name == "kind") {
                    continue;
                }
                if self.unknown.len() < MAX_UNKNOWN {
                    self.unknown.push(join(&self.path, name));
                }
                drop.push(name.clone());
                continue;
            };
            if !value.is_null() {
                let length = self.push(name);
                self.value(&field.ty, value)?;
                self.path.truncate(length);
            }
            if value.is_null() || (field.presence == Presence::UnlessEmpty && is_empty(&field.ty, value)) {
                drop.push(name.clone());
            }
        }
        for name in drop {
            object.remove(&name);
        }
        Ok(())
    }

    fn value(&mut self, ty: &Type, value: &mut Value) -> Result<(), Mismatch> {
        match ty {
            Type::Message(message) => self.message(message, value),
            Type::List(inner) => {
                let Value::Array(items) = value else { return Err(self.mismatch("array", value)) };
                for (i, item) in items.iter_mut().enumerate() {
                    let length = self.path.len();
                    self.path.push_str(&format!("[{i}]"));
                    self.element(inner, item)?;
                    self.path.truncate(length);
                }
                Ok(())
            }
            Type::Map(inner) => {
                let Value::Object(entries) = value else { return Err(self.mismatch("map", value)) };
                for (name, item) in entries {
                    let length = self.push(name);
                    self.element(inner, item)?;
                    self.path.truncate(length);
                }
                Ok(())
            }
            _ => self.scalar(ty, value),
        }
    }

    /// A null within a list or map is its type's empty value.
    fn element(&mut self, ty: &Type, value: &mut Value) -> Result<(), Mismatch> {
        if value.is_null() {
            *value = zero(ty);
            return Ok(());
        }
        self.value(ty, value)
    }

    fn scalar(&mut self, ty: &Type, value: &mut Value) -> Result<(), Mismatch> {
        let expected = match (ty, &*value) {
            (Type::String, Value::String(_)) | (Type::Bool, Value::Bool(_)) | (Type::Double, Value::Number(_)) => {
                return Ok(());
            }
            (Type::Raw, _) | (Type::IntOrString, Value::String(_)) => return Ok(()),
            (Type::Duration, Value::String(_)) => return Ok(()),
            (Type::Int64, Value::Number(n)) if n.as_i64().is_some() => return Ok(()),
            (Type::Int32 | Type::IntOrString, Value::Number(n)) if is_i32(n) => return Ok(()),
            (Type::Quantity, Value::Number(_) | Value::String(_)) => match quantity::canonicalize(value) {
                Ok(()) => return Ok(()),
                Err(_) => "quantity",
            },
            (Type::Bytes, Value::String(s)) if BASE64_STANDARD.decode(s).is_ok() => return Ok(()),
            (Type::Time | Type::MicroTime, Value::String(s)) => match s.parse::<Timestamp>() {
                Ok(time) => {
                    *value = Value::String(write_time(ty, time));
                    return Ok(());
                }
                Err(_) => "RFC 3339 time",
            },
            (Type::String, _) => "string",
            (Type::Bool, _) => "bool",
            (Type::Double, _) => "float64",
            (Type::Int64, _) => "int64",
            (Type::Int32, _) => "int32",
            (Type::IntOrString, _) => "int32 or string",
            (Type::Quantity, _) => "quantity",
            (Type::Bytes, _) => "base64 string",
            _ => "string",
        };
        Err(self.mismatch(expected, value))
    }

    /// Goes one name deeper; gives back the length to cut the path to afterwards.
    fn push(&mut self, name: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        length
    }

    fn mismatch(&self, expected: &'static str, value: &Value) -> Mismatch {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(b) => format!("bool {b}"),
            Value::Number(n) => format!("number {n}"),
            Value::String(s) if s.len() <= 64 => format!("string {s:?}"),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let path = if self.path.is_empty() { "(root)".to_owned() } else { self.path.clone() };
        Mismatch { path, expected, found }
    }
}

/// `2024-01-02T03:04:05Z`, or with exactly six digits after the second.
pub(crate) fn write_time(ty: &Type, time: Timestamp) -> String {
    let format = if matches!(ty, Type::MicroTime) { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    time.strftime(format).to_string()
}

/// Empty in the sense of Go's `omitempty`, and with it the two structs that stand for "unset" when they are zero.
pub(crate) fn is_empty(ty: &Type, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if matches!(ty, Type::Raw) => false,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0) || n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An empty struct that somebody wrote down is kept, so that applying the same text twice changes nothing.
        Value::Object(fields) => fields.is_empty() && matches!(ty, Type::Map(_)),
    }
}

pub(crate) fn zero(ty: &Type) -> Value {
    match ty {
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => Value::from(0),
        Type::Bool => Value::Bool(false),
        Type::Quantity => Value::from("0"),
        Type::Duration => Value::from("0s"),
        Type::Time | Type::MicroTime | Type::Raw => Value::Null,
        Type::Message(m) if m.form == Form::Object => Value::Object(Map::new()),
        Type::Message(_) => Value::Array(Vec::new()),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Map(_) => Value::Object(Map::new()),
    }
}

/// How deep a value nests; stops counting a little past `limit`, so that no value is too deep to be measured.
pub(crate) fn depth(value: &Value, limit: usize) -> usize {
    let Some(limit) = limit.checked_sub(1) else { return 1 };
    match value {
        Value::Array(items) => 1 + items.iter().map(|v| depth(v, limit)).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(|v| depth(v, limit)).max().unwrap_or(0),
        _ => 0,
    }
}

fn is_i32(n: &serde_json::Number) -> bool {
    n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    fn pod(mut spec: Value) -> Result<(Value, Vec<String>), Mismatch> {
        let unknown = decode(schema::message("io.k8s.api.core.v1.PodSpec").unwrap(), &mut spec)?;
        Ok((spec, unknown))
    }

    #[test]
    fn canonical_form() {
        let cases = [
            (json!({"nodeName": "", "hostNetwork": false, "hostname": null}), json!({}), &[][..]),
            // A pointer's zero is a value; a required field is written though empty; an empty struct stays.
            (
                json!({"terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "containers": []}),
                json!({"terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "containers": []}),
                &[],
            ),
            (
                json!({"volumes": [{"name": "a", "emptyDir": {}, "x": {"y": 1}}], "nodeSelector": {}}),
                json!({"volumes": [{"name": "a", "emptyDir": {}}]}),
                &["volumes[0].x"],
            ),
            (
                json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": 2, "memory": "0.5Gi"}}, "imagee": "x"}], "zz": 1}),
                json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2", "memory": "512Mi"}}}]}),
                &["containers[0].imagee", "zz"],
            ),
        ];
        for (input, output, unknown) in cases {
            let (value, found) = pod(input.clone()).unwrap();
            assert_eq!((value, found.iter().map(String::as_str).collect()), (output, unknown.to_vec()), "{input}");
        }
        let mut meta = json!({"creationTimestamp": "2024-01-02T04:04:05.9+01:00", "labels": {"a": null}});
        decode(schema::message("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap(), &mut meta).unwrap();
        assert_eq!(meta, json!({"creationTimestamp": "2024-01-02T03:04:05Z", "labels": {"a": ""}}));
    }

    /// What a Go client writes is known to the last field, and already in canonical form.
    #[test]
    fn golden_bodies_are_canonical() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/protobuf");
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let text = |name: &str| golden[name].as_str().unwrap_or_default();
            let message = schema::by_kind(text("apiVersion"), text("kind")).unwrap();
            let mut value = golden.clone();
            assert_eq!(decode(message, &mut value), Ok(Vec::new()), "{}", path.display());
            assert!(value == golden, "{} changed", path.display());
            count += 1;
        }
        assert!(count >= 20, "{count}");
    }

    #[test]
    fn mismatches_name_their_field() {
        let cases = [
            (json!([]), "cannot unmarshal array into field (root) of type object"),
            (json!({"nodeName": 1}), "cannot unmarshal number 1 into field nodeName of type string"),
            (json!({"priority": "high"}), "cannot unmarshal string \"high\" into field priority of type int32"),
            (
                json!({"priority": 3_000_000_000_i64}),
                "cannot unmarshal number 3000000000 into field priority of type int32",
            ),
            (
                json!({"containers": [{"ports": [{"containerPort": 1.5}]}]}),
                "cannot unmarshal number 1.5 into field containers[0].ports[0].containerPort of type int32",
            ),
            (
                json!({"overhead": {"cpu": "much"}}),
                "cannot unmarshal string \"much\" into field overhead.cpu of type quantity",
            ),
            (json!({"containers": {}}), "cannot unmarshal object into field containers of type array"),
            (
                json!({"nodeSelector": {"a": true}}),
                "cannot unmarshal bool true into field nodeSelector.a of type string",
            ),
        ];
        for (input, message) in cases {
            assert_eq!(pod(input).unwrap_err().to_string(), message);
        }
    }
}
