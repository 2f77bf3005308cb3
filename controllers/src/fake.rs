//! An API server in a few lines, for tests of the shell: objects in memory, lists, watches, and the rules of metadata
//! that controllers rely on. It knows no defaults and no validation.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use api::registry::{self, Kind};
use bytes::Bytes;
use client::Client;
use futures_util::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::testing::merge;

/// A test that has not come to its end by then never will.
const DEADLINE: Duration = Duration::from_secs(20);

const DELETED_AT: &str = "2026-01-01T00:00:00Z";

type Id = (&'static str, String, String);

#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    revision: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
pub struct State {
    revision: u64,
    objects: BTreeMap<Id, Value>,
    log: Vec<(u64, &'static str, &'static str, Value)>,
    /// So many writes are yet to be refused with a conflict.
    pub conflicts: u32,
    named: u32,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Result<Value, (StatusCode, &'static str)>;

impl Fake {
    pub fn client(&self) -> Client {
        let fake = self.clone();
        Client::in_process(tower::service_fn(move |request: Request<Full<Bytes>>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        }))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics in here")
    }

    /// Waits until the state is as wanted.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let mut revision = self.revision.subscribe();
        let reached = async {
            while !wanted(&self.state()) {
                revision.changed().await.expect("the fake lives");
            }
        };
        if tokio::time::timeout(DEADLINE, reached).await.is_err() {
            panic!("{what} did not come about: {:#?}", self.state().objects);
        }
    }

    async fn serve(&self, request: Request<Full<Bytes>>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        let Some(spot) = Spot::parse(parts.uri.path()) else {
            return answer(Err((StatusCode::NOT_FOUND, "NotFound")));
        };
        let query = parts.uri.query().unwrap_or_default();
        let parameter =
            |name: &str| query.split('&').find_map(|p| p.strip_prefix(&format!("{name}=")).map(str::to_owned));
        if parameter("watch").is_some() {
            let from = parameter("resourceVersion").and_then(|r| r.parse().ok()).unwrap_or(0);
            return self.watch(spot, from, only(parameter("fieldSelector")));
        }
        let outcome = {
            let mut state = self.state();
            let outcome = state.serve(&parts.method, &spot, body, only(parameter("fieldSelector")));
            self.revision.send_replace(state.revision);
            outcome
        };
        answer(outcome)
    }

    fn watch(&self, spot: Spot, from: u64, only: Option<String>) -> Response<Body> {
        let (fake, revision) = (self.clone(), self.revision.subscribe());
        let lines = stream::unfold((fake, revision, from), move |(fake, mut revision, mut seen)| {
            let only = only.clone();
            async move {
                loop {
                    let lines: String = {
                        let state = fake.state();
                        let news = state.log.iter().filter(|(r, plural, _, object)| {
                            let name = object["metadata"]["name"].as_str();
                            *r > seen && *plural == spot.kind.plural && only.as_deref().is_none_or(|o| name == Some(o))
                        });
                        let lines = news.map(|(_, _, kind, o)| format!("{}\n", json!({ "type": kind, "object": o })));
                        let lines = lines.collect();
                        seen = state.revision;
                        lines
                    };
                    if !lines.is_empty() {
                        let frame = http_body::Frame::data(Bytes::from(lines));
                        return Some((Ok::<_, Infallible>(frame), (fake, revision, seen)));
                    }
                    revision.changed().await.ok()?;
                }
            }
        });
        Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
    }
}

fn only(selector: Option<String>) -> Option<String> {
    selector?.strip_prefix("metadata.name%3D").map(str::to_owned)
}

fn answer(outcome: Answer) -> Response<Body> {
    let (code, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err((code, reason)) => (
            code,
            json!({ "kind": "Status", "apiVersion": "v1", "reason": reason, "code": code.as_u16(), "metadata": {} }),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response
}

/// What a path names.
struct Spot {
    kind: &'static Kind,
    namespace: String,
    name: String,
    face: String,
}

impl Spot {
    fn parse(path: &str) -> Option<Spot> {
        let mut parts = path.trim_start_matches('/').split('/').peekable();
        let group = match parts.next()? {
            "api" => "",
            _ => parts.next()?,
        };
        let version = parts.next()?;
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", namespace, plural, rest @ ..] if registry::by_plural(group, version, plural).is_some() => {
                (*namespace, [&[*plural], rest].concat())
            }
            other => ("", other.to_vec()),
        };
        let text = |i: usize| rest.get(i).copied().unwrap_or_default().to_owned();
        let kind = registry::by_plural(group, version, rest.first()?)?;
        Some(Spot { kind, namespace: namespace.to_owned(), name: text(1), face: text(2) })
    }

    fn id(&self) -> Id {
        (self.kind.plural, self.namespace.clone(), self.name.clone())
    }
}

const GONE: Answer = Err((StatusCode::NOT_FOUND, "NotFound"));
const CONFLICT: Answer = Err((StatusCode::CONFLICT, "Conflict"));

impl State {
    pub fn all(&self, plural: &str) -> Vec<&Value> {
        self.objects.iter().filter(|(id, _)| id.0 == plural).map(|(_, o)| o).collect()
    }

    fn serve(&mut self, method: &Method, spot: &Spot, body: Value, only: Option<String>) -> Answer {
        match (method.as_str(), spot.name.is_empty()) {
            ("GET", true) => Ok(self.list(spot, only)),
            ("GET", false) => self.objects.get(&spot.id()).cloned().map_or(GONE, Ok),
            ("POST", _) => self.create(spot, body),
            ("PUT", _) | ("PATCH", _) => self.update(spot, body),
            ("DELETE", true) => {
                let ids: Vec<Id> = self.objects.keys().filter(|id| self.within(spot, id)).cloned().collect();
                for id in ids {
                    self.delete(&id, &Value::Null)?;
                }
                Ok(json!({}))
            }
            ("DELETE", false) => self.delete(&spot.id(), &body),
            other => panic!("nobody should send this: {other:?}"),
        }
    }

    fn within(&self, spot: &Spot, id: &Id) -> bool {
        id.0 == spot.kind.plural && (spot.namespace.is_empty() || id.1 == spot.namespace)
    }

    fn list(&self, spot: &Spot, only: Option<String>) -> Value {
        let matching = self.objects.iter().filter(|(id, _)| self.within(spot, id));
        let items: Vec<&Value> =
            matching.filter(|(id, _)| only.as_ref().is_none_or(|o| id.2 == *o)).map(|(_, o)| o).collect();
        json!({ "metadata": { "resourceVersion": self.revision.max(1).to_string() }, "items": items })
    }

    fn create(&mut self, spot: &Spot, mut object: Value) -> Answer {
        self.named += 1;
        let name = match object["metadata"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => format!("{}{}", object["metadata"]["generateName"].as_str().expect("a name"), self.named),
        };
        let id = (spot.kind.plural, spot.namespace.clone(), name.clone());
        if self.objects.contains_key(&id) {
            return Err((StatusCode::CONFLICT, "AlreadyExists"));
        }
        let own = json!({
            "name": name, "uid": format!("uid-{}", self.named), "generation": 1, "creationTimestamp": DELETED_AT
        });
        merge(&mut object["metadata"], &own);
        if spot.kind.plural == "namespaces" {
            object["spec"] = json!({ "finalizers": ["kubernetes"] });
        }
        self.store(id, object, "ADDED")
    }

    fn update(&mut self, spot: &Spot, mut body: Value) -> Answer {
        let Some(old) = self.objects.get(&spot.id()).cloned() else { return GONE };
        let differs = |field: &str| {
            let sent = &body["metadata"][field];
            !sent.is_null() && *sent != old["metadata"][field]
        };
        if self.conflicts > 0 || differs("resourceVersion") || differs("uid") {
            self.conflicts = self.conflicts.saturating_sub(1);
            return CONFLICT;
        }
        let mut new = old.clone();
        match spot.face.as_str() {
            "status" => merge(&mut new, &json!({ "status": body["status"].take() })),
            _ => {
                if let Some(object) = body.as_object_mut() {
                    object.remove("status");
                }
                merge(&mut new, &body);
            }
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        if new == old {
            return Ok(old);
        }
        if new["metadata"]["deletionTimestamp"].is_string() && !held(&new) {
            return self.remove(&spot.id());
        }
        self.store(spot.id(), new, "MODIFIED")
    }

    pub fn delete(&mut self, id: &Id, options: &Value) -> Answer {
        let Some(mut object) = self.objects.get(id).cloned() else { return GONE };
        let differs = |field: &str, own: &str| {
            let sent = &options["preconditions"][field];
            !sent.is_null() && *sent != object["metadata"][own]
        };
        if differs("uid", "uid") || differs("resourceVersion", "resourceVersion") {
            return CONFLICT;
        }
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            object["metadata"]["finalizers"] = json!([finalizer]);
        }
        if !held(&object) {
            return self.remove(id);
        }
        if object["metadata"]["deletionTimestamp"].is_string() {
            return Ok(object);
        }
        object["metadata"]["deletionTimestamp"] = json!(DELETED_AT);
        self.store(id.clone(), object, "MODIFIED")
    }

    fn remove(&mut self, id: &Id) -> Answer {
        let object = self.objects.get(id).cloned().unwrap_or_default();
        let gone = self.store(id.clone(), object, "DELETED");
        self.objects.remove(id);
        gone
    }

    fn store(&mut self, id: Id, mut object: Value, event: &'static str) -> Answer {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.log.push((self.revision, id.0, event, object.clone()));
        self.objects.insert(id, object.clone());
        Ok(object)
    }
}

/// Something is still to be done before the object may go.
fn held(object: &Value) -> bool {
    let any = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).is_some_and(|f| !f.is_empty());
    any("/metadata/finalizers") || any("/spec/finalizers")
}
