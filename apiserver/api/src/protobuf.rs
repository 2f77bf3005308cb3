//! Bodies in protobuf, which typed Go clients send for every built-in kind: the magic bytes `k8s\0`, an envelope
//! `runtime.Unknown` that says which kind it is, and in it the object. Only decoding: answers may be JSON.
//!
//! The object becomes the JSON value that the same client would have sent as JSON. In protobuf a Go struct writes its
//! empty fields where they are no pointers, and JSON leaves them out, so [`crate::schema`] says which is which.

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use crate::schema::{self, Field, Form, Message, Presence, Type};

pub(crate) mod put;
pub(crate) mod wire;

use wire::{Reader, Wire};

/// The first bytes of every body in this format.
pub const MAGIC: &[u8] = b"k8s\0";
/// Serde's own limit for JSON is 128, and what is decoded here must be readable there after it is stored.
const MAX_DEPTH: usize = 100;
/// Two bytes on the wire can become an empty value of 32 bytes and more; a real object has some ten bytes a value, so
/// a body of 3 MiB stays below this.
const MAX_VALUES: usize = 400_000;

/// What a body held.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub api_version: String,
    pub kind: String,
    /// With `apiVersion` and `kind` set.
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("body does not begin with the protobuf prefix k8s\\0")]
    NoMagic,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("body is encoded as {0:?}, which is not supported")]
    Encoding(String),
    #[error("malformed protobuf in {at}: {what}")]
    Malformed { at: String, what: &'static str },
    #[error("protobuf in {at} exceeds the limit of {limit} {what}")]
    TooLarge { at: String, limit: usize, what: &'static str },
}

/// True for a body that [`decode`] should be given.
pub fn is_protobuf(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Reads a whole body. The kind is the one that the body says it is.
pub fn decode(body: &[u8]) -> Result<Decoded, Error> {
    Decoder { left: MAX_VALUES }.envelope(body, 0)
}

struct Decoder {
    left: usize,
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    content_encoding: String,
    content_type: String,
}

impl<'a> Unknown<'a> {
    fn read(body: &'a [u8]) -> Result<Self, wire::Error> {
        let mut unknown = Unknown::default();
        let mut reader = Reader::new(body);
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => {
                    let mut reader = Reader::new(wire.bytes()?);
                    while let Some((number, wire)) = reader.next()? {
                        match number {
                            1 => unknown.api_version = wire.text()?.to_owned(),
                            2 => unknown.kind = wire.text()?.to_owned(),
                            _ => {}
                        }
                    }
                }
                2 => unknown.raw = wire.bytes()?,
                3 => unknown.content_encoding = wire.text()?.to_owned(),
                4 => unknown.content_type = wire.text()?.to_owned(),
                _ => {}
            }
        }
        Ok(unknown)
    }
}

impl Decoder {
    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Decoded, Error> {
        let body = body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
        let unknown = Unknown::read(body).map_err(|e| e.at("runtime.Unknown"))?;
        if !unknown.content_encoding.is_empty() {
            return Err(Error::Encoding(unknown.content_encoding));
        }
        if !matches!(&*unknown.content_type, "" | "application/vnd.kubernetes.protobuf") {
            return Err(Error::Encoding(unknown.content_type));
        }
        let Unknown { api_version, kind, raw, .. } = unknown;
        let Some(message) = schema::by_kind(&api_version, &kind) else {
            return Err(Error::UnknownKind { api_version, kind });
        };
        let mut object = Map::new();
        self.fields(message, raw, &mut object, depth)?;
        object.insert("apiVersion".to_owned(), Value::from(&*api_version));
        object.insert("kind".to_owned(), Value::from(&*kind));
        Ok(Decoded { api_version, kind, value: Value::Object(object) })
    }

    /// Adds the fields in `bytes` to `object`. A message may come in several parts, each adding to what is there.
    fn fields(
        &mut self,
        message: &Message,
        bytes: &[u8],
        object: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::TooLarge { at: message.name(), limit: MAX_DEPTH, what: "levels" });
        }
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next().map_err(|e| e.at(message.short_name))? {
            // Fields of a later version than ours are skipped, as JSON's unknown fields are.
            let Some(field) = message.field_numbered(number) else { continue };
            if let (true, Type::Message(inner)) = (field.is_inline(), &field.ty) {
                self.fields(inner, wire.bytes().map_err(|e| e.at(message.short_name))?, object, depth + 1)?;
                continue;
            }
            let old = object.remove(field.name);
            if let Some(value) = self.field(message, field, wire, old, depth)? {
                object.insert(field.name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// One occurrence of a field, on top of what earlier ones left; `None` when JSON would not show it.
    fn field(
        &mut self,
        message: &Message,
        field: &Field,
        wire: Wire<'_>,
        old: Option<Value>,
        depth: usize,
    ) -> Result<Option<Value>, Error> {
        let at = || format!("{}.{}", message.short_name, field.name);
        let value = match (&field.ty, old) {
            (Type::List(ty), old) => {
                let mut items = match old {
                    Some(Value::Array(items)) => items,
                    _ => Vec::new(),
                };
                match (packed(ty), wire) {
                    (Some(read), Wire::Bytes(bytes)) => {
                        let mut reader = Reader::new(bytes);
                        while let Some(wire) = read(&mut reader).map_err(|e| e.at(at()))? {
                            items.push(self.value(ty, wire, None, depth, &at)?);
                        }
                    }
                    (_, wire) => items.push(self.value(ty, wire, None, depth, &at)?),
                }
                Value::Array(items)
            }
            (Type::Map(ty), old) => {
                let mut entries = match old {
                    Some(Value::Object(entries)) => entries,
                    _ => Map::new(),
                };
                let (key, value) = self.entry(ty, wire, depth, &at)?;
                entries.insert(key, value);
                Value::Object(entries)
            }
            (ty, old) => self.value(ty, wire, old, depth, &at)?,
        };
        let empty = value.is_null()
            || (field.presence == Presence::UnlessEmpty
                && (schema::is_empty(&field.ty, &value) || is_empty_struct(&field.ty, &value)));
        Ok((!empty).then_some(value))
    }

    fn entry(
        &mut self,
        ty: &Type,
        wire: Wire<'_>,
        depth: usize,
        at: &dyn Fn() -> String,
    ) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(wire.bytes().map_err(|e| e.at(at()))?);
        while let Some((number, wire)) = reader.next().map_err(|e| e.at(at()))? {
            match number {
                1 => key = wire.text().map_err(|e| e.at(at()))?.to_owned(),
                2 => value = Some(self.value(ty, wire, None, depth, at)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| schema::zero(ty))))
    }

    fn value(
        &mut self,
        ty: &Type,
        wire: Wire<'_>,
        old: Option<Value>,
        depth: usize,
        at: &dyn Fn() -> String,
    ) -> Result<Value, Error> {
        self.left =
            self.left.checked_sub(1).ok_or_else(|| Error::TooLarge { at: at(), limit: MAX_VALUES, what: "values" })?;
        match ty {
            Type::Message(message) => {
                let mut object = match old {
                    Some(Value::Object(object)) => object,
                    _ => Map::new(),
                };
                self.fields(message, wire.bytes().map_err(|e| e.at(at()))?, &mut object, depth + 1)?;
                Ok(shape(message, object))
            }
            Type::Raw => self.raw(wire, depth, at),
            _ => scalar(ty, wire).map_err(|e| e.at(at())),
        }
    }

    /// JSON inside a message with one field of bytes; a client may also have put a whole protobuf body there.
    fn raw(&mut self, wire: Wire<'_>, depth: usize, at: &dyn Fn() -> String) -> Result<Value, Error> {
        let mut raw: &[u8] = &[];
        let mut reader = Reader::new(wire.bytes().map_err(|e| e.at(at()))?);
        while let Some((number, wire)) = reader.next().map_err(|e| e.at(at()))? {
            if number == 1 {
                raw = wire.bytes().map_err(|e| e.at(at()))?;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if is_protobuf(raw) {
            if depth >= MAX_DEPTH {
                return Err(Error::TooLarge { at: at(), limit: MAX_DEPTH, what: "levels" });
            }
            return Ok(self.envelope(raw, depth + 1)?.value);
        }
        let value = serde_json::from_slice(raw).map_err(|_| Error::Malformed { at: at(), what: "not JSON" })?;
        if depth + schema::depth(&value, MAX_DEPTH + 1) > MAX_DEPTH {
            return Err(Error::TooLarge { at: at(), limit: MAX_DEPTH, what: "levels" });
        }
        Ok(value)
    }
}

/// Go writes a struct that is no pointer whether anything is in it or not.
fn is_empty_struct(ty: &Type, value: &Value) -> bool {
    matches!(ty, Type::Message(_)) && value.as_object().is_some_and(Map::is_empty)
}

/// Some messages are no objects in JSON.
fn shape(message: &Message, mut object: Map<String, Value>) -> Value {
    let mut take = |f: &Field| object.remove(f.name);
    match message.form {
        Form::Object => Value::Object(object),
        Form::List => take(&message.fields()[0]).unwrap_or_else(|| Value::Array(Vec::new())),
        Form::Union => {
            let (schema, others): (Vec<_>, Vec<_>) = message.fields().iter().partition(|f| f.name == "schema");
            schema.into_iter().chain(others).find_map(take).unwrap_or(Value::Null)
        }
    }
}

fn scalar(ty: &Type, wire: Wire<'_>) -> Result<Value, wire::Error> {
    Ok(match ty {
        Type::String => Value::from(wire.text()?),
        // A 32-bit number keeps its low bits, as every reader of protobuf does.
        Type::Int32 => Value::from(wire.varint()? as i32),
        Type::Int64 => Value::from(wire.varint()? as i64),
        Type::Bool => Value::from(wire.varint()? != 0),
        Type::Double => {
            Number::from_f64(wire.double()?).map(Value::Number).ok_or(wire::Error("not a finite number"))?
        }
        Type::Bytes => Value::from(BASE64_STANDARD.encode(wire.bytes()?)),
        Type::Time | Type::MicroTime => time(ty, wire.bytes()?)?,
        Type::Duration => duration(wire.bytes()?)?,
        Type::Quantity => {
            let mut text = "0";
            let mut reader = Reader::new(wire.bytes()?);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    text = wire.text()?;
                }
            }
            Value::from(text)
        }
        Type::IntOrString => int_or_string(wire.bytes()?)?,
        Type::Raw | Type::Message(_) | Type::List(_) | Type::Map(_) => return Err(wire::Error("nested list")),
    })
}

/// Zero time is an empty message, and null in JSON.
fn time(ty: &Type, bytes: &[u8]) -> Result<Value, wire::Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.varint()? as i64,
            2 => nanos = wire.varint()? as i32,
            _ => {}
        }
    }
    // Years outside 0 to 9999 have no RFC 3339 form.
    const YEAR_0: i64 = -62_167_219_200;
    const YEAR_10000: i64 = 253_402_300_800;
    let outside = wire::Error("time out of range");
    if !(YEAR_0..YEAR_10000).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(outside);
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| outside)?;
    Ok(Value::from(schema::write_time(ty, time)))
}

/// As Go prints it: `1h2m3.5s`, `1.5ms`.
fn duration(bytes: &[u8]) -> Result<Value, wire::Error> {
    let mut nanos = 0;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            nanos = wire.varint()? as i64;
        }
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = |unit: u64, name: &str| {
        let text = format!("{}.{:0width$}", nanos / unit, nanos % unit, width = unit.ilog10() as usize);
        format!("{sign}{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    Ok(Value::from(match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let text = format!("{}.{rest:09}", seconds % 60);
            let text = text.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{sign}{text}s"),
                (0, _) => format!("{sign}{minutes}m{text}s"),
                _ => format!("{sign}{hours}h{minutes}m{text}s"),
            }
        }
    }))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, wire::Error> {
    let (mut is_text, mut int, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => is_text = wire.varint()? != 0,
            2 => int = wire.varint()? as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text) } else { Value::from(int) })
}

type ReadOne = for<'a> fn(&mut Reader<'a>) -> Result<Option<Wire<'a>>, wire::Error>;

/// How to read the elements of this type where many are packed into one string of bytes.
fn packed(ty: &Type) -> Option<ReadOne> {
    match ty {
        Type::Int32 | Type::Int64 | Type::Bool => Some(|r| r.packed_varint()),
        Type::Double => Some(|r| r.packed_double()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;

    /// `testdata/protobuf/<name>.pb` is what a Go client encoded, `<name>.json` what the same client wrote as JSON, less
    /// nulls and the empty structs that no pointer leads to.
    #[test]
    fn reads_what_go_clients_write() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/protobuf");
        let mut count = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "pb") {
                continue;
            }
            count += 1;
            let decoded = decode(&fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let expected: Value = serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
            assert_eq!(decoded.value["kind"], *decoded.kind);
            assert_eq!(decoded.value["apiVersion"], *decoded.api_version);
            let (got, want) = (pretty(&decoded.value), pretty(&expected));
            let differs = got.lines().zip(want.lines()).enumerate().find(|(_, (a, b))| a != b);
            assert!(got == want, "{}: first difference: {differs:?}", path.display());
        }
        assert!(count >= 20, "only {count} bodies in {}", dir.display());
    }

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).unwrap()
    }

    /// The encoding's own pieces, to build odd bodies from.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = content.len();
        while length > 0x7f {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend(content);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    fn read(kind: &str, raw: &[u8]) -> Result<Value, String> {
        decode(&body("v1", kind, raw)).map(|d| d.value).map_err(|e| e.to_string())
    }

    #[test]
    fn parts_of_a_message_add_up() {
        // metadata twice, its labels twice; the last scalar wins; an unknown field 100 is skipped.
        let label = |k: &[u8], v: &[u8]| field(11, &[field(1, k), field(2, v)].concat());
        let first = field(1, &[field(1, b"old"), label(b"a", b"1")].concat());
        let second = field(1, &[field(1, b"new"), label(b"b", b"2"), vec![0xa0, 0x06, 0x07]].concat());
        let value = read("ConfigMap", &[first, second].concat()).unwrap();
        assert_eq!(value["metadata"], json!({"name": "new", "labels": {"a": "1", "b": "2"}}));
        // A map's entry without a value has the type's empty one.
        assert_eq!(read("ConfigMap", &field(2, &field(1, b"k"))).unwrap()["data"], json!({"k": ""}));
    }

    #[test]
    fn packed_numbers() {
        // PodSecurityContext.supplementalGroups, once packed and once not.
        let groups = [field(4, &[1, 0xac, 0x02]), vec![4 << 3, 7]].concat();
        let pod = field(2, &[field(14, &groups)].concat());
        assert_eq!(read("Pod", &pod).unwrap()["spec"]["securityContext"]["supplementalGroups"], json!([1, 300, 7]));
    }

    #[test]
    fn numbers_that_are_negative_or_too_wide() {
        let minus_two = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let spec = [&[0xc8, 0x01][..], &minus_two, &[4 << 3], &minus_two].concat();
        let value = read("Pod", &field(2, &spec)).unwrap();
        assert_eq!(
            (&value["spec"]["priority"], &value["spec"]["terminationGracePeriodSeconds"]),
            (&json!(-2), &json!(-2))
        );
    }

    #[test]
    fn durations_as_go_prints_them() {
        let cases: [(i64, &str); 9] = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
        ];
        for (nanos, text) in cases {
            let mut bytes = vec![8];
            let mut rest = nanos as u64;
            while rest > 0x7f {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
            assert_eq!(duration(&bytes).unwrap(), text);
        }
    }

    #[test]
    fn malformed_bodies_are_clean_errors() {
        let not_utf8 = field(1, &field(1, &[0xff]));
        let cases = [
            (b"{}".to_vec(), "body does not begin with the protobuf prefix k8s\\0"),
            (b"k8s\0\x0a\x05abc".to_vec(), "malformed protobuf in runtime.Unknown: ends too early"),
            (
                b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
                "malformed protobuf in runtime.Unknown: number is too long",
            ),
            (b"k8s\0\x0b".to_vec(), "malformed protobuf in runtime.Unknown: unsupported wire type"),
            (b"k8s\0\x00\x00".to_vec(), "malformed protobuf in runtime.Unknown: bad field number"),
            (body("v1", "Nope", b""), "no kind \"Nope\" is registered for version \"v1\""),
            (body("v1", "ConfigMap", &not_utf8), "malformed protobuf in ObjectMeta.name: string is not UTF-8"),
            (
                body("v1", "ConfigMap", &[8, 1]),
                "malformed protobuf in ConfigMap.metadata: expected a string, bytes or a message",
            ),
            (
                [body("v1", "Pod", b""), field(3, b"gzip")].concat(),
                "body is encoded as \"gzip\", which is not supported",
            ),
        ];
        for (body, message) in cases {
            assert_eq!(decode(&body).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn hostile_bodies_are_bounded() {
        // Each level of v1.List holds a whole body with the next one.
        let mut nested = body("v1", "Pod", b"");
        for _ in 0..1_000 {
            nested = body("v1", "List", &field(2, &field(1, &nested)));
        }
        let error = decode(&nested).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "levels", .. }), "{error}");
        // Deep JSON inside.
        let deep = format!("{}{}", "[".repeat(110), "]".repeat(110));
        let error = decode(&body("v1", "List", &field(2, &field(1, deep.as_bytes())))).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "levels", .. }), "{error}");
        // A million empty containers in two megabytes.
        let spec = field(2, &[2 << 3 | 2, 0].repeat(1_000_000));
        let error = decode(&body("v1", "Pod", &spec)).unwrap_err();
        assert!(matches!(error, Error::TooLarge { what: "values", .. }), "{error}");
    }

    /// Every prefix of a real body, and every single changed byte, decodes or fails, and does neither forever nor by panic.
    #[test]
    fn damaged_bodies_never_panic() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/protobuf/core.v1.Service.full.pb");
        let good = fs::read(path).unwrap();
        let mut refused = 0;
        for i in 0..good.len() {
            refused += usize::from(decode(&good[..i]).is_err());
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                refused += usize::from(decode(&bad).is_err());
            }
        }
        assert!(refused > good.len(), "{refused}");
    }
}
