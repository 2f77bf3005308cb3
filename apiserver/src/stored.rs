//! The form in which objects are stored, and the cheap way back.
//!
//! A stored value is JSON that begins with `{"metadata":{` and has no `resourceVersion`: a revision is the store's to
//! say, so it is spliced into the bytes on their way out. A get or a list parses nothing.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use store::KeyValue;

/// How every stored value begins.
const HEAD: &[u8] = b"{\"metadata\":{";

/// Room that the spliced field takes at most: its name, quotes, a 20-digit number, a comma.
pub const SPLICE: usize = 42;

/// An object's bytes for the store.
///
/// # Panics
/// Never for a JSON value: all of them can be written.
pub fn encode(object: &Value) -> Bytes {
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(HEAD);
    append(&mut out, metadata.iter().filter(|(name, _)| *name != "resourceVersion"), true);
    out.push(b'}');
    append(&mut out, fields.iter().filter(|(name, _)| *name != "metadata"), false);
    out.push(b'}');
    out.into()
}

fn append<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (&'a String, &'a Value)>, mut first: bool) {
    for (name, value) in fields {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, name).expect("a string can be written");
        out.push(b':');
        serde_json::to_writer(&mut *out, value).expect("a JSON value can be written");
    }
}

/// Appends a stored value as clients see it.
pub fn splice(out: &mut Vec<u8>, value: &[u8], revision: u64) {
    use std::io::Write;
    debug_assert!(value.starts_with(HEAD), "a stored object begins with its metadata");
    let rest = &value[HEAD.len().min(value.len())..];
    out.extend_from_slice(HEAD);
    let _ = write!(out, "\"resourceVersion\":\"{revision}\"");
    if rest.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(rest);
}

/// A stored value as an object, with its revision.
pub fn decode(value: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut object: Value = serde_json::from_slice(value)?;
    api::meta::set_resource_version(&mut object, revision);
    Ok(object)
}

#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    labels: Map<String, Value>,
}

/// The labels alone, read from the head of the value without parsing the rest of it.
pub fn labels(value: &[u8]) -> Map<String, Value> {
    // The metadata object starts at the second brace; a deserializer stops where it ends.
    let Some(metadata) = value.get(HEAD.len() - 1..) else { return Map::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(metadata);
    Labelled::deserialize(&mut deserializer).map(|l| l.labels).unwrap_or_default()
}

/// Objects that many watchers look into at about the same time: each is parsed once. Direct-mapped by revision.
pub struct Parsed {
    slots: Vec<Mutex<Option<Entry>>>,
}

struct Entry {
    revision: u64,
    /// Values are never changed in place, so the address and the revision together name one.
    value: Bytes,
    object: Arc<Value>,
}

/// About 2 MiB of parsed pods: more than the events that are on their way to watchers at once.
const PARSED_SLOTS: usize = 256;

impl Default for Parsed {
    fn default() -> Self {
        Self { slots: (0..PARSED_SLOTS).map(|_| Mutex::new(None)).collect() }
    }
}

impl Parsed {
    /// The object of a value at a revision. What is not JSON is null, which matches no selector.
    pub fn get(&self, value: &Bytes, revision: u64) -> Arc<Value> {
        let slot = &self.slots[revision as usize % PARSED_SLOTS];
        if let Ok(guard) = slot.lock()
            && let Some(entry) = guard.as_ref()
            && entry.revision == revision
            && entry.value.as_ptr() == value.as_ptr()
        {
            return entry.object.clone();
        }
        let object = Arc::new(decode(value, revision).unwrap_or_default());
        if let Ok(mut guard) = slot.lock() {
            *guard = Some(Entry { revision, value: value.clone(), object: object.clone() });
        }
        object
    }

    pub fn of(&self, kv: &KeyValue) -> Arc<Value> {
        self.get(&kv.value, kv.mod_revision)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for object in [
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"q": "\u{1}é"}}),
            json!({"metadata": {}}),
            json!({"kind": "K", "metadata": {}}),
        ] {
            let mut sent = object.clone();
            sent["metadata"]["resourceVersion"] = "5".into();
            let bytes = encode(&sent);
            assert!(bytes.starts_with(HEAD));
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), object, "stored without its revision");
            let mut out = Vec::new();
            splice(&mut out, &bytes, 77);
            assert!(out.len() <= bytes.len() + SPLICE);
            let mut want = object;
            want["metadata"]["resourceVersion"] = "77".into();
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), want);
            assert_eq!(decode(&bytes, 77).unwrap(), want);
        }
    }

    #[test]
    fn labels_are_read_from_the_head() {
        let bytes =
            encode(&json!({"metadata": {"annotations": {"a": "}"}, "labels": {"x": "y"}}, "spec": {"labels": 1}}));
        assert_eq!(labels(&bytes)["x"], "y");
        assert!(labels(&encode(&json!({"metadata": {}}))).is_empty());
        assert!(labels(b"{}").is_empty());
    }

    #[test]
    fn a_cache_never_mixes_two_objects_of_one_revision() {
        let parsed = Parsed::default();
        let (a, b) = (encode(&json!({"metadata": {"name": "a"}})), encode(&json!({"metadata": {"name": "b"}})));
        assert_eq!(api::meta::name(&parsed.get(&a, 3)), "a");
        assert_eq!(api::meta::name(&parsed.get(&b, 3)), "b");
        assert_eq!(api::meta::name(&parsed.get(&a, 3)), "a");
    }
}
