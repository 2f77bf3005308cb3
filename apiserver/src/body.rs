//! Request bodies: read within bounds, and turned into JSON values whatever they were written in.

use std::{fmt, time::Duration};

use api::{
    decode::{strict_message, strict_warnings},
    registry::Kind,
    status::Status,
};
use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::DuplicateKeyPolicy;
use tokio::time::timeout;

use crate::{negotiate::BodyFormat, options::FieldValidation};

/// What upstream allows: twice the size of the largest object, for patches.
pub const MAX_BODY: usize = 3 << 20;

/// A body of the largest size arrives within this over any link that is of use; whoever takes longer holds a turn that
/// others wait for.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn read(body: Body) -> Result<Bytes, Status> {
    let Ok(read) = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await else {
        return Err(Status::timeout("the request's body did not arrive in time", 1));
    };
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::request_entity_too_large(MAX_BODY))
        }
        Err(error) => Err(Status::bad_request(format!("the request's body broke off: {error}"))),
    }
}

/// A body as a value, with the paths that occurred twice.
pub fn parse(format: BodyFormat, bytes: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let unreadable = |error: &dyn fmt::Display| Status::bad_request(format!("error decoding the body: {error}"));
    match format {
        BodyFormat::Json if validation == FieldValidation::Ignore => {
            Ok((serde_json::from_slice(bytes).map_err(|e| unreadable(&e))?, Vec::new()))
        }
        BodyFormat::Json => parse_json(bytes).map_err(|e| unreadable(&e)),
        BodyFormat::Yaml => {
            let mut options = serde_saphyr::Options::default();
            options.duplicate_keys = match validation {
                FieldValidation::Strict => DuplicateKeyPolicy::Error,
                FieldValidation::Warn | FieldValidation::Ignore => DuplicateKeyPolicy::LastWins,
            };
            let value = serde_saphyr::from_slice_with_options(bytes, options).map_err(|e| unreadable(&e))?;
            Ok((value, Vec::new()))
        }
        BodyFormat::Protobuf => {
            let decoded = api::protobuf::decode(bytes).map_err(|e| unreadable(&e))?;
            Ok((decoded.value, Vec::new()))
        }
    }
}

/// A body as an object of a kind, with what to warn about.
pub fn object(
    kind: &'static Kind,
    format: BodyFormat,
    bytes: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), Status> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Status::bad_request(format!("the body is empty: a {} is needed", kind.kind)));
    }
    let (mut object, duplicates) = parse(format, bytes, validation)?;
    let warnings = check(kind, &mut object, duplicates, validation)?;
    Ok((object, warnings))
}

/// Brings a value into the form of its kind: right `apiVersion` and `kind`, no unknown fields, no aliases.
pub fn check(
    kind: &'static Kind,
    object: &mut Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    if !object.is_object() {
        return Err(Status::bad_request(format!("the body must be a {}, not a bare value", kind.kind)));
    }
    for (field, want) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        match object.get(field).unwrap_or(&Value::Null) {
            Value::Null => object[field] = want.into(),
            Value::String(given) if given.is_empty() => object[field] = want.into(),
            Value::String(given) if *given == want => {}
            given => {
                let what = if field == "kind" { "kind" } else { "API version" };
                let message = format!("the {what} in the data ({given}) does not match the expected {what} ({want})");
                return Err(Status::bad_request(message));
            }
        }
    }
    let unknown = kind.decode(object).map_err(|error| {
        let what = format!("{} in version \"{}\" cannot be handled as a {}", kind.kind, kind.version, kind.kind);
        Status::bad_request(format!("{what}: {error}"))
    })?;
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => strict_warnings(&unknown, &duplicates),
        FieldValidation::Strict => match strict_message(&unknown, &duplicates) {
            None => Vec::new(),
            Some(message) => {
                let subject =
                    format!("{} in version \"{}\" cannot be handled as a {}", kind.kind, kind.version, kind.kind);
                return Err(Status::bad_request(format!("{subject}: {message}")));
            }
        },
    };
    if let Some(alias) = kind.alias {
        (alias.to_stored)(object);
    }
    Ok(warnings)
}

/// Where a parse is, and what it saw twice.
#[derive(Default)]
struct Trace {
    path: String,
    duplicates: Vec<String>,
}

fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut trace = Trace::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Traced(&mut trace).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, trace.duplicates))
}

/// Builds a [`Value`] as `serde_json` does (its recursion limit holds here too), and notes duplicate keys.
struct Traced<'a>(&'a mut Trace);

impl<'de> DeserializeSeed<'de> for Traced<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Traced<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        use fmt::Write;
        let length = self.0.path.len();
        let mut out = Vec::new();
        loop {
            let _ = write!(self.0.path, "[{}]", out.len());
            let item = items.next_element_seed(Traced(&mut *self.0))?;
            self.0.path.truncate(length);
            match item {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let length = self.0.path.len();
        let mut out = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if length > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&name);
            if out.contains_key(&name) {
                self.0.duplicates.push(self.0.path.clone());
            }
            let value = fields.next_value_seed(Traced(&mut *self.0))?;
            self.0.path.truncate(length);
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_named() {
        let text = br#"{"a": 1, "b": [{"c": 1, "c": -2}, null, 1.5, true], "a": "x"}"#;
        let (value, duplicates) = parse_json(text).unwrap();
        assert_eq!(value, json!({"a": "x", "b": [{"c": -2}, null, 1.5, true]}));
        assert_eq!(duplicates, ["b[0].c", "a"]);
        assert!(parse_json(b"{} x").is_err());
        assert!(parse_json("[".repeat(100_000).as_bytes()).is_err(), "depth is bounded");
    }

    #[test]
    fn yaml_reads_as_clients_mean_it() {
        let parse = |text: &str, validation| parse(BodyFormat::Yaml, text.as_bytes(), validation);
        let (value, _) = parse("a: 1\nb: [x, \"1\"]\n", FieldValidation::Warn).unwrap();
        assert_eq!(value, json!({"a": 1, "b": ["x", "1"]}));
        assert!(parse("a: 1\na: 2\n", FieldValidation::Strict).is_err());
        assert_eq!(parse("a: 1\na: 2\n", FieldValidation::Warn).unwrap().0, json!({"a": 2}));
    }

    #[test]
    fn unknown_fields_are_refused_or_reported() {
        let kind = api::registry::by_plural("", "v1", "configmaps").unwrap();
        let text = br#"{"metadata": {"name": "a"}, "dat": {}, "data": {"x": "1"}, "data": {"x": "2"}}"#;
        let read = |validation| object(kind, BodyFormat::Json, text, validation);
        let strict = read(FieldValidation::Strict).unwrap_err();
        assert_eq!(strict.code, 400);
        assert!(
            strict.message.contains("unknown field \"dat\"") && strict.message.contains("duplicate field \"data\""),
            "{strict}"
        );
        let (value, warnings) = read(FieldValidation::Warn).unwrap();
        assert_eq!(warnings.len(), 2);
        assert_eq!((value["kind"].as_str(), value.get("dat")), (Some("ConfigMap"), None));
        assert_eq!(read(FieldValidation::Ignore).unwrap().1, Vec::<String>::new());
        assert_eq!(object(kind, BodyFormat::Json, b" ", FieldValidation::Warn).unwrap_err().code, 400);
        let other = br#"{"kind": "Secret", "apiVersion": "v1"}"#;
        assert_eq!(object(kind, BodyFormat::Json, other, FieldValidation::Warn).unwrap_err().code, 400);
    }
}
