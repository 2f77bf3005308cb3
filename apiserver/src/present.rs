//! Answers: objects, lists and errors, in the form that the client accepts.

use std::{convert::Infallible, sync::Arc};

use api::{
    meta,
    registry::Kind,
    status::Status,
    table::{self, Header, IncludeObject},
};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use store::KeyValue;

use crate::{
    clock,
    negotiate::{Form, Format, Indent, Shape},
    stored,
};

/// Pieces in which a long list is encoded and sent: large enough to be cheap, small enough that a thousand lists at
/// once fit in memory.
const LIST_CHUNK: usize = 128 << 10;

/// What `resourceVersion`, `continue` and `remainingItemCount` of a list say.
pub struct ListMeta {
    pub revision: u64,
    pub next: Option<String>,
    pub remaining: Option<usize>,
}

impl ListMeta {
    pub fn to_json(&self) -> Value {
        let mut out = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            out["continue"] = next.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            out["remainingItemCount"] = remaining.into();
        }
        out
    }
}

/// How to show objects of one kind.
#[derive(Clone, Copy)]
pub struct View {
    pub kind: &'static Kind,
    pub form: Form,
    pub include: IncludeObject,
}

impl View {
    /// Whether the stored bytes are already what the client wants.
    pub fn is_plain(&self) -> bool {
        self.form.is_plain() && self.kind.alias.is_none()
    }

    /// A stored object as this kind shows it, whole.
    pub fn object(&self, stored: &Value) -> Value {
        let mut object = stored.clone();
        if let Some(alias) = self.kind.alias {
            (alias.from_stored)(&mut object);
        }
        object
    }

    /// One object in the shape asked for.
    pub fn shape(&self, stored: &Value, header: Header) -> Value {
        let object = self.object(stored);
        match self.form.shape {
            Shape::Object => object,
            Shape::Partial(version) => {
                let mut partial = table::partial_object_metadata(&object);
                partial["apiVersion"] = version.api_version().into();
                partial
            }
            Shape::Table(version) => {
                let list_meta = json!({"resourceVersion": meta::resource_version(&object)});
                let mut table = table::table(self.kind, [&object], clock::seconds(), self.include, list_meta, header);
                table["apiVersion"] = version.api_version().into();
                table
            }
        }
    }
}

pub fn bytes(code: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Answers differ by who asks and change at any time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn text(body: impl Into<Body>) -> Response<Body> {
    bytes(StatusCode::OK, "text/plain; charset=utf-8", body)
}

/// Any value, in the format asked for.
pub fn value(code: StatusCode, form: Form, value: &Value) -> Response<Body> {
    bytes(code, form.content_type(), write(form, value))
}

fn write(form: Form, value: &Value) -> Vec<u8> {
    let written = match (form.format, form.indent) {
        (Format::Json, Indent::Compact) => serde_json::to_vec(value).ok(),
        (Format::Json, Indent::Pretty) => serde_json::to_vec_pretty(value).ok().map(|mut text| {
            text.push(b'\n');
            text
        }),
        (Format::Yaml, _) => serde_saphyr::to_string(value).ok().map(String::into_bytes),
    };
    written.unwrap_or_default()
}

/// A stored object.
pub fn object(code: StatusCode, view: View, value: &Bytes, revision: u64) -> Response<Body> {
    if view.is_plain() {
        let mut out = Vec::with_capacity(value.len() + stored::SPLICE);
        stored::splice(&mut out, value, revision);
        return bytes(code, view.form.content_type(), out);
    }
    let object = stored::decode(value, revision).unwrap_or_default();
    self::value(code, view.form, &view.shape(&object, Header::Show))
}

pub fn list(view: View, items: Vec<Arc<KeyValue>>, list_meta: &ListMeta) -> Response<Body> {
    if view.is_plain() {
        return plain_list(view.kind, items, list_meta);
    }
    let decode = |kv: &Arc<KeyValue>| view.object(&stored::decode(&kv.value, kv.mod_revision).unwrap_or_default());
    let objects: Vec<Value> = items.iter().map(decode).collect();
    let shown = match view.form.shape {
        Shape::Table(version) => {
            let metadata = list_meta.to_json();
            let mut table = table::table(view.kind, &objects, clock::seconds(), view.include, metadata, Header::Show);
            table["apiVersion"] = version.api_version().into();
            table
        }
        Shape::Partial(version) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": list_meta.to_json(),
            "items": objects.iter().map(table::partial_object_metadata).collect::<Vec<_>>(),
        }),
        Shape::Object => json!({
            "kind": format!("{}List", view.kind.kind), "apiVersion": view.kind.api_version(),
            "metadata": list_meta.to_json(), "items": objects,
        }),
    };
    value(StatusCode::OK, view.form, &shown)
}

fn plain_list(kind: &Kind, items: Vec<Arc<KeyValue>>, list_meta: &ListMeta) -> Response<Body> {
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        kind.kind,
        kind.api_version(),
        list_meta.to_json()
    );
    let size: usize = items.iter().map(|kv| kv.value.len() + stored::SPLICE).sum();
    let mut chunks = Chunks { head: Some(head), items: items.into_iter().peekable(), done: false };
    if size <= LIST_CHUNK {
        let whole = chunks.next().unwrap_or_default();
        return bytes(StatusCode::OK, Form::JSON.content_type(), whole);
    }
    let stream = futures_util::stream::iter(chunks.map(Ok::<_, Infallible>));
    bytes(StatusCode::OK, Form::JSON.content_type(), Body::from_stream(stream))
}

/// Encodes a list piece by piece, as the connection takes it.
struct Chunks<I: Iterator> {
    head: Option<String>,
    items: std::iter::Peekable<I>,
    done: bool,
}

impl<I: Iterator<Item = Arc<KeyValue>>> Iterator for Chunks<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(LIST_CHUNK + LIST_CHUNK / 8);
        if let Some(head) = self.head.take() {
            out.extend_from_slice(head.as_bytes());
        }
        while let Some(kv) = self.items.next() {
            stored::splice(&mut out, &kv.value, kv.mod_revision);
            if self.items.peek().is_some() {
                out.push(b',');
            }
            if out.len() >= LIST_CHUNK {
                return Some(out);
            }
        }
        self.done = true;
        out.extend_from_slice(b"]}");
        Some(out)
    }
}

/// A refusal, always as JSON: clients read nothing else here.
pub fn failure(status: &Status) -> Response<Body> {
    failure_json(status, &status.to_json())
}

/// [`failure`] with a changed body.
pub fn failure_json(status: &Status, body: &Value) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, Form::JSON, body);
    if let Some(seconds) = status.details.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// `Status` of something done that has no object to show.
pub fn success(code: StatusCode, form: Form) -> Response<Body> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    value(code, Form { shape: Shape::Object, ..form }, &status)
}

/// Warnings are for people: what is beyond this many bytes in all is left out, as clients bound their headers.
const MAX_WARNINGS: usize = 4 << 10;

/// Adds what `kubectl` prints before its own output.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut room = MAX_WARNINGS;
    for warning in warnings {
        let Some(left) = room.checked_sub(warning.len()) else { continue };
        room = left;
        let quoted: String =
            warning.chars().map(|c| if c == '"' || c == '\\' { format!("\\{c}") } else { c.into() }).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::negotiate;

    fn kv(name: &str, revision: u64, padding: usize) -> Arc<KeyValue> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": "y".repeat(padding)}});
        let value = stored::encode(&object);
        let key = Bytes::copy_from_slice(name.as_bytes());
        Arc::new(KeyValue { key, value, create_revision: 1, mod_revision: revision, version: 1, lease: None })
    }

    fn view(accept: &str) -> View {
        let kind = api::registry::by_plural("", "v1", "configmaps").unwrap();
        View { kind, form: negotiate::response(accept, Indent::Compact).unwrap(), include: IncludeObject::Metadata }
    }

    async fn read(response: Response<Body>) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn lists_of_any_length_are_whole() {
        for count in [0, 1, 2, 500] {
            let items: Vec<_> = (0..count).map(|i| kv(&format!("c{i}"), 10 + i, 1000)).collect();
            let list_meta = ListMeta { revision: 99, next: Some("t".into()), remaining: Some(3) };
            let shown = read(list(view(""), items, &list_meta)).await;
            assert_eq!(shown["kind"], "ConfigMapList");
            assert_eq!(shown["metadata"], json!({"resourceVersion": "99", "continue": "t", "remainingItemCount": 3}));
            let items = shown["items"].as_array().unwrap();
            assert_eq!(items.len() as u64, count);
            for (i, item) in items.iter().enumerate() {
                assert_eq!(meta::name(item), format!("c{i}"));
                assert_eq!(meta::resource_version(item), (10 + i).to_string());
            }
        }
    }

    #[tokio::test]
    async fn shapes() {
        let list_meta = ListMeta { revision: 9, next: None, remaining: None };
        let table =
            read(list(view("application/json;as=Table;g=meta.k8s.io;v=v1"), vec![kv("a", 5, 1)], &list_meta)).await;
        assert_eq!((table["kind"].as_str(), table["rows"][0]["cells"][0].as_str()), (Some("Table"), Some("a")));
        let partial = view("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        let kv = kv("a", 5, 1);
        let shown = read(object(StatusCode::OK, partial, &kv.value, 5)).await;
        assert_eq!((shown["kind"].as_str(), shown.get("data")), (Some("PartialObjectMetadata"), None));
        assert_eq!(meta::resource_version(&shown), "5");
        let yaml = object(StatusCode::OK, view("application/yaml"), &kv.value, 5);
        let text = yaml.into_body().collect().await.unwrap().to_bytes();
        assert!(std::str::from_utf8(&text).unwrap().contains("kind: ConfigMap"), "{text:?}");
    }

    #[test]
    fn warnings_are_quoted() {
        let mut response = text("");
        warn(&mut response, &["unknown field \"a\"".into()]);
        assert_eq!(response.headers()[header::WARNING], "299 - \"unknown field \\\"a\\\"\"");
        let many: Vec<String> = (0..1000).map(|i| format!("unknown field \"{i}\"")).collect();
        let mut response = text("");
        warn(&mut response, &many);
        let size: usize = response.headers().get_all(header::WARNING).iter().map(|v| v.len()).sum();
        assert!((MAX_WARNINGS..2 * MAX_WARNINGS).contains(&size), "{size}");
    }
}
