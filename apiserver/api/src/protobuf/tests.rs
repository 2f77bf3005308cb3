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
    let spec = [&[25 << 3 & 0xff | 0x80, 0x01][..], &minus_two, &[4 << 3], &minus_two].concat();
    let value = read("Pod", &field(2, &spec)).unwrap();
    assert_eq!((&value["spec"]["priority"], &value["spec"]["terminationGracePeriodSeconds"]), (&json!(-2), &json!(-2)));
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
        ([body("v1", "Pod", b""), field(3, b"gzip")].concat(), "body is encoded as \"gzip\", which is not supported"),
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
