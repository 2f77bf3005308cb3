//! How validation walks an object and reports: a path kept on the stack, and a list of causes.

use serde_json::Value;

use crate::status::{Cause, CauseReason};

/// Where in an object a rule looks. Paths live on the stack and become text only when something is wrong.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The path of a top-level field; `metadata.labels` is fine too.
    pub const fn root(name: &'a str) -> Self {
        Self { parent: None, step: Step::Field(name) }
    }

    pub fn child(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of a map.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(key) }
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Step::Field(name) => f.write_str(name),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// The causes found so far.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<Cause>);

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    fn add(&mut self, reason: CauseReason, at: &Path<'_>, message: String) {
        self.0.push(Cause { reason, message, field: at.to_string() });
    }

    pub fn required(&mut self, at: &Path<'_>, detail: &str) {
        self.add(CauseReason::FieldValueRequired, at, with_detail("Required value".to_owned(), detail));
    }

    pub fn invalid(&mut self, at: &Path<'_>, value: &Value, detail: &str) {
        let message = with_detail(format!("Invalid value: {value}"), detail);
        self.add(CauseReason::FieldValueInvalid, at, message);
    }

    pub fn invalid_str(&mut self, at: &Path<'_>, value: &str, detail: &str) {
        let message = with_detail(format!("Invalid value: {}", quoted(value)), detail);
        self.add(CauseReason::FieldValueInvalid, at, message);
    }

    pub fn duplicate(&mut self, at: &Path<'_>, value: &Value) {
        self.add(CauseReason::FieldValueDuplicate, at, format!("Duplicate value: {value}"));
    }

    pub fn forbidden(&mut self, at: &Path<'_>, detail: &str) {
        self.add(CauseReason::FieldValueForbidden, at, with_detail("Forbidden".to_owned(), detail));
    }

    pub fn not_supported(&mut self, at: &Path<'_>, value: &str, supported: &[&str]) {
        let mut supported: Vec<String> = supported.iter().map(|s| quoted(s)).collect();
        supported.sort();
        let message = format!("Unsupported value: {}: supported values: {}", quoted(value), supported.join(", "));
        self.add(CauseReason::FieldValueNotSupported, at, message);
    }

    pub fn not_found(&mut self, at: &Path<'_>, value: &str) {
        self.add(CauseReason::FieldValueNotFound, at, format!("Not found: {}", quoted(value)));
    }

    pub fn too_long(&mut self, at: &Path<'_>, limit: usize) {
        let message = format!("Too long: may not be more than {limit} bytes");
        self.add(CauseReason::FieldValueTooLong, at, message);
    }

    pub fn too_many(&mut self, at: &Path<'_>, count: usize, limit: usize) {
        let message = format!("Too many: {count}: must have at most {limit} items");
        self.add(CauseReason::FieldValueTooMany, at, message);
    }

    /// One invalid value, once for each complaint about it.
    pub fn complaints(&mut self, at: &Path<'_>, value: &str, complaints: impl IntoIterator<Item = String>) {
        for complaint in complaints {
            self.invalid_str(at, value, &complaint);
        }
    }

    /// `value`, when set, must be one of `supported`.
    pub fn one_of(&mut self, at: &Path<'_>, value: Option<&str>, supported: &[&str]) {
        if let Some(value) = value
            && !supported.contains(&value)
        {
            self.not_supported(at, value, supported);
        }
    }

    pub fn not_negative(&mut self, at: &Path<'_>, value: Option<i64>) {
        if let Some(value) = value
            && value < 0
        {
            self.invalid(at, &value.into(), "must be greater than or equal to 0");
        }
    }

    /// Says that a field changed which may not.
    pub fn immutable(&mut self, at: &Path<'_>, new: Option<&Value>, old: Option<&Value>) {
        if new.unwrap_or(&Value::Null) != old.unwrap_or(&Value::Null) {
            self.invalid(at, new.unwrap_or(&Value::Null), "field is immutable");
        }
    }
}

fn with_detail(message: String, detail: &str) -> String {
    if detail.is_empty() { message } else { format!("{message}: {detail}") }
}

/// In double quotes, with what would not print escaped.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The text of a field; empty when it is unset or no text.
pub fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The text of a field that is set and not empty.
pub fn some_text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

pub fn int(value: &Value, key: &str) -> Option<i64> {
    value.get(key).and_then(Value::as_i64)
}

/// Whether a boolean field is set to true.
pub fn is_true(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// The items of a list field; none when it is unset.
pub fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The items of a list field, to change.
pub fn items_mut<'v>(value: &'v mut Value, key: &str) -> &'v mut [Value] {
    value.get_mut(key).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
}

/// The entries of a map field whose values are text, in the order of their keys.
pub fn entries<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = (&'v str, &'v str)> {
    let map = value.get(key).and_then(Value::as_object);
    map.into_iter().flatten().map(|(key, text)| (key.as_str(), text.as_str().unwrap_or_default()))
}

/// Sets a field that is unset.
pub fn set_default(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(fields) = value.as_object_mut()
        && !fields.contains_key(key)
    {
        fields.insert(key.to_owned(), default.into());
    }
}

/// Sets a text field that is unset or empty.
pub fn set_default_text(value: &mut Value, key: &str, default: &str) {
    if text(value, key).is_empty()
        && let Some(fields) = value.as_object_mut()
    {
        fields.insert(key.to_owned(), default.into());
    }
}

/// A field that is an object, made when it is unset.
pub fn object_mut<'v>(value: &'v mut Value, key: &str) -> &'v mut Value {
    if !value.is_object() {
        *value = Value::Object(serde_json::Map::new());
    }
    let field = &mut value[key];
    if field.is_null() {
        *field = Value::Object(serde_json::Map::new());
    }
    field
}

/// Copies a field, or its absence.
pub fn copy_field(to: &mut Value, from: &Value, key: &str) {
    match (to.as_object_mut(), from.get(key)) {
        (Some(fields), Some(value)) => {
            fields.insert(key.to_owned(), value.clone());
        }
        (Some(fields), None) => {
            fields.remove(key);
        }
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_messages_read_like_the_original() {
        let spec = Path::root("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        let labels = Path::root("metadata.labels");
        let mut errors = Errors::new();
        errors.required(&first.child("image"), "");
        errors.invalid_str(&labels.key("a b"), "a\"", "bad");
        errors.not_supported(&first.child("p"), "x", &["b", "a"]);
        errors.not_negative(&spec.child("replicas"), Some(-1));
        errors.immutable(&spec.child("selector"), Some(&serde_json::json!({"a": 1})), None);
        let shown: Vec<String> = errors.0.iter().map(Cause::to_string).collect();
        assert_eq!(
            shown,
            [
                "spec.containers[0].image: Required value",
                "metadata.labels[a b]: Invalid value: \"a\\\"\": bad",
                "spec.containers[0].p: Unsupported value: \"x\": supported values: \"a\", \"b\"",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.selector: Invalid value: {\"a\":1}: field is immutable",
            ]
        );
    }
}
