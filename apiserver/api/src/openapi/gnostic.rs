//! A Swagger document as the protobuf message `openapi.v2.Document` of gnostic: the only form in which clients older
//! than 1.27 ask for it.
//!
//! The field numbers are those of
//! [OpenAPIv2.proto](https://github.com/google/gnostic-models/blob/main/openapiv2/OpenAPIv2.proto); of its messages
//! only what our own documents use is here.

use serde_json::Value;

use crate::protobuf::put;

/// The bytes of the message. Keys that are in no table are a mistake of ours, and left out.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, &DOCUMENT, document);
    out
}

/// A message: where each key of the JSON goes.
struct Message {
    fields: &'static [(&'static str, u32, Shape)],
    /// Where the keys go that begin with `x-`.
    extensions: u32,
}

/// How a JSON value becomes a field.
enum Shape {
    Text,
    Flag,
    Integer,
    Number,
    /// Any value at all, as YAML.
    Any,
    Message(&'static Message),
    /// A list: one field for each item.
    Each(&'static Shape),
    /// A map: for each entry one message of a name and a value.
    Named(&'static Shape),
    /// A message around the value that has no counterpart in the JSON; the number is the value's within it.
    Inside(u32, &'static Shape),
    /// A parameter: the kind of message depends on where it stands in the request.
    Parameter,
    /// Either a schema for all further properties, or whether there may be some.
    SchemaOrFlag,
}

use Shape::{Any, Each, Flag, Inside, Integer, Named, Number, Parameter, SchemaOrFlag, Text};

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, Shape::Message(&INFO)),
        ("paths", 8, Inside(2, &Named(&Shape::Message(&PATH_ITEM)))),
        ("definitions", 9, Inside(1, &Named(&Shape::Message(&SCHEMA)))),
    ],
    extensions: 16,
};

static INFO: Message =
    Message { fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)], extensions: 7 };

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Shape::Message(&OPERATION)),
        ("put", 3, Shape::Message(&OPERATION)),
        ("post", 4, Shape::Message(&OPERATION)),
        ("delete", 5, Shape::Message(&OPERATION)),
        ("patch", 8, Shape::Message(&OPERATION)),
        ("parameters", 9, Each(&Parameter)),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Each(&Text)),
        ("description", 3, Text),
        ("produces", 6, Each(&Text)),
        ("consumes", 7, Each(&Text)),
        ("parameters", 8, Each(&Parameter)),
        ("responses", 9, Inside(1, &Named(&Inside(1, &Shape::Message(&RESPONSE))))),
    ],
    extensions: 13,
};

static RESPONSE: Message =
    Message { fields: &[("description", 1, Text), ("schema", 2, Inside(1, &Shape::Message(&SCHEMA)))], extensions: 5 };

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, Shape::Message(&SCHEMA)),
    ],
    extensions: 6,
};

static QUERY_PARAMETER: Message = Message {
    fields: &[("required", 1, Flag), ("in", 2, Text), ("description", 3, Text), ("name", 4, Text), ("type", 6, Text)],
    extensions: 23,
};

static PATH_PARAMETER: Message = Message {
    fields: &[("required", 1, Flag), ("in", 2, Text), ("description", 3, Text), ("name", 4, Text), ("type", 5, Text)],
    extensions: 22,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("maximum", 7, Number),
        ("minimum", 9, Number),
        ("maxLength", 11, Integer),
        ("minLength", 12, Integer),
        ("pattern", 13, Text),
        ("maxItems", 14, Integer),
        ("minItems", 15, Integer),
        ("uniqueItems", 16, Flag),
        ("required", 19, Each(&Text)),
        ("enum", 20, Each(&Any)),
        ("additionalProperties", 21, SchemaOrFlag),
        ("type", 22, Inside(1, &Text)),
        ("items", 23, Inside(1, &Shape::Message(&SCHEMA))),
        ("properties", 25, Inside(1, &Named(&Shape::Message(&SCHEMA)))),
    ],
    extensions: 31,
};

fn message(out: &mut Vec<u8>, message: &Message, value: &Value) {
    let Some(object) = value.as_object() else { return };
    for (key, number, shape) in message.fields {
        if let Some(value) = object.get(*key) {
            field(out, *number, shape, value);
        }
    }
    for (key, value) in object.iter().filter(|(key, _)| key.starts_with("x-")) {
        named(out, message.extensions, key, &Any, value);
    }
    let known = |key: &String| key.starts_with("x-") || message.fields.iter().any(|(name, ..)| name == key);
    debug_assert!(object.keys().all(known), "no table has all of {:?}", object.keys());
}

fn field(out: &mut Vec<u8>, number: u32, shape: &Shape, value: &Value) {
    match shape {
        Text => put::bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Flag => put::varint(out, number, value.as_bool().unwrap_or_default().into()),
        // Lengths and counts: never negative.
        Integer => put::varint(out, number, value.as_u64().unwrap_or_default()),
        Number => put::double(out, number, value.as_f64().unwrap_or_default()),
        // JSON is YAML.
        Any => put::nested(out, number, |out| put::bytes(out, 2, value.to_string().as_bytes())),
        Shape::Message(of) => put::nested(out, number, |out| message(out, of, value)),
        Each(shape) => value.as_array().into_iter().flatten().for_each(|item| field(out, number, shape, item)),
        Named(shape) => {
            value.as_object().into_iter().flatten().for_each(|(name, value)| named(out, number, name, shape, value));
        }
        Inside(inner, shape) => put::nested(out, number, |out| field(out, *inner, shape, value)),
        Parameter => put::nested(out, number, |out| parameter(out, value)),
        SchemaOrFlag => {
            let (inner, shape) = if value.is_boolean() { (2, Flag) } else { (1, Shape::Message(&SCHEMA)) };
            put::nested(out, number, |out| field(out, inner, &shape, value));
        }
    }
}

fn named(out: &mut Vec<u8>, number: u32, name: &str, shape: &Shape, value: &Value) {
    put::nested(out, number, |out| {
        put::bytes(out, 1, name.as_bytes());
        field(out, 2, shape, value);
    });
}

/// Around each parameter are two or three messages that only say of which kind it is.
fn parameter(out: &mut Vec<u8>, value: &Value) {
    let (path, of): (&[u32], _) = match value["in"].as_str() {
        Some("body") => (&[1, 1], &BODY_PARAMETER),
        Some("path") => (&[1, 2, 4], &PATH_PARAMETER),
        _ => (&[1, 2, 3], &QUERY_PARAMETER),
    };
    within(out, path, &|out| message(out, of, value));
}

fn within(out: &mut Vec<u8>, path: &[u32], fill: &dyn Fn(&mut Vec<u8>)) {
    match path {
        [] => fill(out),
        [number, rest @ ..] => put::nested(out, *number, |out| within(out, rest, fill)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{openapi::swagger, protobuf::wire::Reader};

    /// The contents of all fields that are reached by these numbers.
    fn at<'a>(bytes: &'a [u8], path: &[u32]) -> Vec<&'a [u8]> {
        let [number, rest @ ..] = path else { return vec![bytes] };
        let (mut reader, mut found) = (Reader::new(bytes), Vec::new());
        while let Some((n, wire)) = reader.next().unwrap() {
            if n == *number {
                found.extend(at(wire.bytes().unwrap(), rest));
            }
        }
        found
    }

    fn texts(bytes: &[u8], path: &[u32]) -> Vec<String> {
        at(bytes, path).into_iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    #[test]
    fn everything_is_in_the_message() {
        let document = swagger::document();
        let bytes = encode(&document);
        assert_eq!(texts(&bytes, &[1]), ["2.0"]);
        assert_eq!(texts(&bytes, &[2, 1]), ["Kubernetes"]);
        let keys = |v: &Value| -> Vec<String> { v.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(texts(&bytes, &[8, 2, 1]), keys(&document["paths"]));
        assert_eq!(texts(&bytes, &[9, 1, 1]), keys(&document["definitions"]));
        // Names of the query parameters of all PATCH operations.
        let names = texts(&bytes, &[8, 2, 2, 8, 8, 1, 2, 3, 4]);
        let patches = document["paths"].as_object().unwrap().values().filter(|p| p.get("patch").is_some()).count();
        assert_eq!(names.iter().filter(|n| *n == "dryRun").count(), patches);
    }

    #[test]
    fn each_form_of_a_field() {
        for (property, want) in [
            (json!({ "$ref": "x" }), b"\x0a\x01x".to_vec()),
            (json!({ "type": "y" }), b"\xb2\x01\x03\x0a\x01y".to_vec()),
            (json!({ "uniqueItems": true }), b"\x80\x01\x01".to_vec()),
            (json!({ "maxItems": 300 }), b"\x70\xac\x02".to_vec()),
            (json!({ "minimum": 1.0 }), b"\x49\0\0\0\0\0\0\xf0\x3f".to_vec()),
            (json!({ "required": ["a", "b"] }), b"\x9a\x01\x01a\x9a\x01\x01b".to_vec()),
            (json!({ "default": {} }), b"\x2a\x04\x12\x02{}".to_vec()),
            (json!({ "additionalProperties": true }), b"\xaa\x01\x02\x10\x01".to_vec()),
            (json!({ "additionalProperties": { "$ref": "x" } }), b"\xaa\x01\x05\x0a\x03\x0a\x01x".to_vec()),
            (json!({ "items": { "$ref": "x" } }), b"\xba\x01\x05\x0a\x03\x0a\x01x".to_vec()),
            (json!({ "x-a": 1 }), b"\xfa\x01\x0a\x0a\x03x-a\x12\x03\x12\x011".to_vec()),
        ] {
            // Document.definitions, Definitions.additional_properties, NamedSchema.value
            let bytes = encode(&json!({ "definitions": { "d": property } }));
            assert_eq!(at(&bytes, &[9, 1, 2]), [&want[..]], "{property}");
        }
    }
}
