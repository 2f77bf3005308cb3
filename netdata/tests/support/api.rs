//! Just enough of an API server for caches: list and watch over a map.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use client::{
    Client, Transport,
    transport::{Answer, BoxError},
};
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Clone, Default)]
pub struct Api {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Value>,
    /// Collection and event line; the revision of each is its place, from one on.
    log: Vec<(String, String)>,
}

impl Api {
    pub fn client(&self) -> Client {
        Client::new(self.clone())
    }

    /// Creates or replaces an object of a collection such as `/api/v1/services`.
    pub fn put(&self, collection: &str, object: Value) {
        self.write(collection, object, "MODIFIED");
    }

    pub fn delete(&self, collection: &str, object: Value) {
        self.write(collection, object, "DELETED");
    }

    fn write(&self, collection: &str, mut object: Value, kind: &str) {
        let revision = {
            let mut state = self.state.lock().unwrap();
            let revision = state.log.len() + 1;
            object["metadata"]["resourceVersion"] = json!(revision.to_string());
            let meta = &object["metadata"];
            let key = (collection.to_owned(), format!("{}/{}", meta["namespace"], meta["name"]));
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            state.log.push((collection.to_owned(), line));
            match kind {
                "DELETED" => state.objects.remove(&key),
                _ => state.objects.insert(key, object),
            };
            revision
        };
        self.revision.send_replace(revision);
    }

    fn list(&self, collection: &str) -> Value {
        let state = self.state.lock().unwrap();
        let items: Vec<&Value> = state.objects.iter().filter(|((c, _), _)| c == collection).map(|(_, o)| o).collect();
        json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": state.log.len().max(1).to_string()}})
    }

    /// The lines of a collection after a revision, and the revision they reach to.
    fn after(&self, collection: &str, revision: usize) -> (String, usize) {
        let state = self.state.lock().unwrap();
        let new = state.log.iter().skip(revision).filter(|(c, _)| c == collection);
        (new.map(|(_, line)| line.as_str()).collect(), state.log.len())
    }
}

impl Transport for Api {
    fn send(&self, request: Request<Bytes>) -> Answer {
        let api = self.clone();
        Box::pin(async move {
            let query = request.uri().query().unwrap_or_default();
            let parameter = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
            let collection = request.uri().path().to_owned();
            let body = if parameter("watch").is_some() {
                let from: usize = parameter("resourceVersion").and_then(|r| r.parse().ok()).unwrap_or(0);
                let lines = stream::unfold((api, from), move |(api, from)| {
                    let collection = collection.clone();
                    async move {
                        let mut revision = api.revision.subscribe();
                        revision.wait_for(|r| *r > from).await.ok()?;
                        let (lines, reached) = api.after(&collection, from);
                        let frame = http_body_frame(lines);
                        Some((Ok::<_, BoxError>(frame), (api, reached)))
                    }
                });
                StreamBody::new(lines).boxed_unsync()
            } else {
                let bytes = api.list(&collection).to_string();
                Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed_unsync()
            };
            Ok(Response::new(body))
        })
    }
}

fn http_body_frame(lines: String) -> http_body::Frame<Bytes> {
    http_body::Frame::data(Bytes::from(lines))
}

pub fn node(name: &str, ip: &str, pods: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podCIDR": pods},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

pub fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A service in `default` with one port, 80 to 8080, in TCP and UDP.
pub fn service(name: &str, spec: Value) -> Value {
    let mut whole = json!({"ports": [
        {"name": "web", "port": 80, "protocol": "TCP"}, {"name": "dgram", "port": 80, "protocol": "UDP"}]});
    for (field, value) in spec.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": whole})
}

/// A service's slice with ready endpoints, each an address and its node.
pub fn slice(service: &str, endpoints: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, node)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    json!({"metadata": {"name": format!("{service}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [
            {"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dgram", "port": 8080, "protocol": "UDP"}]})
}

pub const NODES: &str = "/api/v1/nodes";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
