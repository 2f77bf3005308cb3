//! What a write answers about a body that does not fit its kind: see [`crate::registry::Kind::decode`].

use crate::schema;

/// A field whose value cannot be read as its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct DecodeError {
    /// `spec.replicas`
    pub path: String,
    /// `expected int32, got string "three"`
    pub message: String,
}

impl From<schema::Mismatch> for DecodeError {
    fn from(mismatch: schema::Mismatch) -> Self {
        let message = format!("expected {}, got {}", mismatch.expected, mismatch.found);
        Self { path: mismatch.path, message }
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_plural;

    #[test]
    fn wrong_types_name_the_field() {
        let table = [
            (json!({"spec": {"replicas": "3"}}), "spec.replicas: expected int32, got string \"3\""),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"name": 1}]}}}}),
                "spec.template.spec.containers[0].name: expected string, got number 1",
            ),
            (json!({"metadata": {"labels": ["a"]}}), "metadata.labels: expected map, got array"),
            (
                json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}}}),
                "spec.template.spec.containers[0].resources.limits.cpu: expected quantity, got string \"lots\"",
            ),
        ];
        let kind = by_plural("apps", "v1", "deployments").expect("deployments are served");
        for (mut object, message) in table {
            let error = kind.decode(&mut object).expect_err("the type is wrong");
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn unknown_fields_are_named_and_removed() {
        let kind = by_plural("", "v1", "pods").expect("pods are served");
        let mut object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"foo": 1, "volumes": null, "containers": [{"name": "c", "imagee": "x",
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        let unknown = kind.decode(&mut object).expect("decodes");
        assert_eq!(unknown, ["spec.containers[0].imagee", "spec.foo"]);
        assert_eq!(
            object,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c",
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}]}})
        );
        assert_eq!(
            strict_message(&unknown, &[]).as_deref(),
            Some("strict decoding error: unknown field \"spec.containers[0].imagee\", unknown field \"spec.foo\"")
        );
        assert_eq!(strict_message(&[], &[]), None);
    }
}
