//! From a client's body to an object of a kind: what does not fit the type, and which fields the type does not have.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Checks an object against a type, removes the fields that the type does not have, and answers their paths.
pub type Check = fn(&mut Value) -> Result<Vec<String>, DecodeError>;

/// A field whose value cannot be read as its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct DecodeError {
    /// `spec.replicas`
    pub path: String,
    /// `expected integer, got string "three"`
    pub message: String,
}

/// [`Check`] for a type of `k8s-openapi`.
pub fn check<K: DeserializeOwned>(object: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut unknown: Vec<Vec<Step>> = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&*object, &mut track);
    let decoded: Result<K, serde_json::Error> =
        serde_ignored::deserialize(deserializer, |path| unknown.push(steps(&path)));
    if let Err(error) = decoded {
        let path = track.path().to_string();
        let path = if path == "." { String::new() } else { path };
        return Err(DecodeError { path, message: plain_message(&error.to_string()) });
    }
    for path in &unknown {
        remove(object, path);
    }
    Ok(unknown.iter().map(|path| render(path)).collect())
}

/// What a write with `fieldValidation=Strict` answers when it found something.
pub fn strict_message(unknown: &[String], duplicate: &[String]) -> Option<String> {
    if unknown.is_empty() && duplicate.is_empty() {
        return None;
    }
    Some(format!("strict decoding error: {}", strict_warnings(unknown, duplicate).join(", ")))
}

/// The same, one by one, for the warnings of `fieldValidation=Warn`.
pub fn strict_warnings(unknown: &[String], duplicate: &[String]) -> Vec<String> {
    let unknown = unknown.iter().map(|path| format!("unknown field \"{path}\""));
    unknown.chain(duplicate.iter().map(|path| format!("duplicate field \"{path}\""))).collect()
}

/// A null stands for a field that is not there.
pub fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

enum Step {
    Key(String),
    Index(usize),
}

fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => {
            let mut steps = steps(parent);
            steps.push(Step::Index(*index));
            steps
        }
        Path::Map { parent, key } => {
            let mut steps = steps(parent);
            steps.push(Step::Key(key.clone()));
            steps
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => steps(parent),
    }
}

fn render(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
    }
    out
}

fn remove(object: &mut Value, path: &[Step]) {
    let Some((Step::Key(last), parents)) = path.split_last() else { return };
    let mut at = object;
    for step in parents {
        let next = match step {
            Step::Key(key) => at.get_mut(key),
            Step::Index(index) => at.get_mut(index),
        };
        let Some(next) = next else { return };
        at = next;
    }
    if let Some(fields) = at.as_object_mut() {
        fields.remove(last);
    }
}

/// `invalid type: string "x", expected i32` in the words of the API.
fn plain_message(message: &str) -> String {
    let Some((got, expected)) = message.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return message.to_owned();
    };
    let expected = match expected {
        "i16" | "i32" | "i64" | "u16" | "u32" | "u64" => "integer",
        "f64" => "number",
        "a boolean" => "boolean",
        "a string" => "string",
        "a sequence" => "array",
        "a map" => "object",
        other => other,
    };
    let got = got.replace("sequence", "array").replace("floating point", "number").replace('`', "");
    let got = if got == "map" { "object".to_owned() } else { got };
    format!("expected {expected}, got {got}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_plural;

    #[test]
    fn wrong_types_name_the_field() {
        let table = [
            (json!({"spec": {"replicas": "3"}}), "spec.replicas: expected integer, got string \"3\""),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": 1}]}}}}),
                "spec.template.spec.containers[0].name: expected string, got integer 1",
            ),
            (json!({"metadata": {"labels": ["a"]}}), "metadata.labels: expected object, got array"),
            (json!({"spec": {"paused": "yes"}}), "spec.paused: expected boolean, got string \"yes\""),
        ];
        let kind = by_plural("apps", "v1", "deployments").expect("deployments are served");
        for (part, message) in table {
            let mut object = part;
            object["kind"] = "Deployment".into();
            object["apiVersion"] = "apps/v1".into();
            let error = kind.decode(&mut object).expect_err("the type is wrong");
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn unknown_fields_are_named_and_removed() {
        let kind = by_plural("", "v1", "pods").expect("pods are served");
        let mut object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"foo": 1, "containers": [{"name": "c", "imagee": "x"}], "volumes": null}});
        let unknown = kind.decode(&mut object).expect("decodes");
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.foo"]);
        assert_eq!(
            object,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}})
        );
        assert_eq!(
            strict_message(&unknown, &[]).as_deref(),
            Some("strict decoding error: unknown field \"spec.containers[0].imagee\", unknown field \"spec.foo\"")
        );
    }
}
