//! The whole server over a real store in a directory of its own, driven through its service and through TLS.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;

mod encryption;
mod members;
mod network;
mod servers;

/// Nothing here takes longer than a moment; what does is broken.
const PATIENCE: Duration = Duration::from_secs(10);

struct Cluster {
    server: Server,
    dir: TempDir,
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    bytes: Bytes,
    body: Value,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(store::Config::new(dir.path().join("store"))).await.unwrap();
        let server = Server::start(config(&dir), store).await.unwrap();
        Self { server, dir }
    }

    async fn send(&self, identity: Identity, request: Request<Body>) -> Response<Body> {
        self.server.service(identity).oneshot(request).await.unwrap()
    }

    async fn call(&self, method: &str, uri: &str, body: Value) -> Answer {
        self.call_as(Identity::master("tester"), method, uri, "application/json", body.to_string()).await
    }

    async fn call_as(
        &self,
        identity: Identity,
        method: &str,
        uri: &str,
        content_type: &str,
        body: impl Into<Body>,
    ) -> Answer {
        let request = Request::builder().method(method).uri(uri).header("content-type", content_type);
        read(self.send(identity, request.body(body.into()).unwrap()).await).await
    }

    async fn get(&self, uri: &str, accept: &str) -> Answer {
        let request = Request::get(uri).header("accept", accept).body(Body::empty()).unwrap();
        read(self.send(Identity::master("tester"), request).await).await
    }

    async fn patch(&self, uri: &str, kind: &str, body: Value) -> Answer {
        let content_type = format!("application/{kind}+json");
        self.call_as(Identity::master("tester"), "PATCH", uri, &content_type, body.to_string()).await
    }

    async fn watch(&self, uri: &str) -> Lines {
        let request = Request::get(uri).body(Body::empty()).unwrap();
        let response = self.send(Identity::master("tester"), request).await;
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        Lines { stream: response.into_body().into_data_stream(), buffer: Vec::new() }
    }
}

fn config(dir: &TempDir) -> Config {
    Config {
        peers: Arc::default(),
        etcd_urls: Vec::new(),
        join: Vec::new(),
        data_dir: dir.path().to_owned(),
        bind: "127.0.0.1:0".parse().unwrap(),
        advertise_address: Some("10.1.2.3".parse().unwrap()),
        tls_sans: vec!["cluster.example".into()],
        token: None,
        cluster_cidr: "10.244.0.0/16".into(),
        service_cidr: "10.96.0.0/16".into(),
        cluster_dns: "10.96.0.10".parse().unwrap(),
        encrypt: vec!["secrets".into()],
    }
}

async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    Answer { code: parts.status.as_u16(), headers: parts.headers, bytes, body }
}

/// The lines of a watch.
struct Lines {
    stream: BodyDataStream,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap());
        }
    }

    /// Type and name of the next event.
    async fn event(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        (event["type"].as_str().unwrap().to_owned(), api::meta::name(&event["object"]).to_owned())
    }
}

fn config_map(name: &str, data: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": data}}, "data": {"x": data}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

#[tokio::test]
async fn a_new_cluster_has_its_bootstrap_objects_and_files() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.get("/readyz", "").await.bytes, "ok");
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = cluster.get(&format!("/api/v1/namespaces/{name}"), "").await;
        assert_eq!(namespace.body["status"]["phase"], "Active", "{name}");
    }
    let service = cluster.get(&format!("{SERVICES}/kubernetes"), "").await.body;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let endpoints = cluster.get("/api/v1/namespaces/default/endpoints/kubernetes", "").await.body;
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.1.2.3");
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    assert_eq!(cluster.get(slice, "").await.body["endpoints"][0]["addresses"], json!(["10.1.2.3"]));
    for file in ["kubeconfig.yaml", "token", "tls/ca.crt"] {
        assert!(cluster.dir.path().join(file).exists(), "{file}");
    }
    let version = cluster.get("/version", "").await.body;
    assert_eq!((version["major"].as_str(), version["minor"].as_str()), (Some("1"), Some("35")));
}

#[tokio::test]
async fn objects_are_created_read_and_listed() {
    let cluster = Cluster::start().await;
    let made = cluster.call("POST", MAPS, config_map("a", "1")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert!(!api::meta::uid(&made.body).is_empty());
    assert_eq!(cluster.get(&format!("{MAPS}/a"), "").await.body, made.body);
    assert_eq!(cluster.call("POST", MAPS, config_map("a", "1")).await.code, 409);
    let missing = cluster.get(&format!("{MAPS}/b"), "").await;
    assert_eq!((missing.code, missing.body["message"].as_str()), (404, Some("configmaps \"b\" not found")));

    let generated = json!({"metadata": {"generateName": "g-"}});
    let (one, two) = (cluster.call("POST", MAPS, generated.clone()).await, cluster.call("POST", MAPS, generated).await);
    assert!(api::meta::name(&one.body).starts_with("g-"));
    assert_ne!(api::meta::name(&one.body), api::meta::name(&two.body));

    let list = cluster.get("/api/v1/configmaps?labelSelector=app%3D1", "").await.body;
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("ConfigMapList"), 1));
    let all = cluster.get(MAPS, "").await.body["items"].as_array().unwrap().len();
    assert_eq!(all, 3);
    let elsewhere = cluster.get("/api/v1/namespaces/kube-system/configmaps", "").await.body;
    assert_eq!(elsewhere["items"], json!([]));
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster.call("POST", MAPS, config_map(name, "1")).await;
    }
    let first = cluster.get(&format!("{MAPS}?limit=2"), "").await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    cluster.call("DELETE", &format!("{MAPS}/c"), json!({})).await;
    cluster.call("POST", MAPS, config_map("cc", "1")).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster.get(&format!("{MAPS}?limit=2&continue={token}"), "").await.body;
    let names = |list: &Value| {
        list["items"].as_array().unwrap().iter().map(|i| api::meta::name(i).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = cluster.get(&format!("{MAPS}?limit=2&continue={token}"), "").await.body;
    assert_eq!((names(&last), last["metadata"].get("continue")), (vec!["e".to_owned()], None));
}

#[tokio::test]
async fn an_expired_token_says_how_to_go_on() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c"] {
        cluster.call("POST", MAPS, config_map(name, "1")).await;
    }
    let first = cluster.get(&format!("{MAPS}?limit=1"), "").await.body;
    cluster.call("POST", MAPS, config_map("d", "1")).await;
    let store = cluster.server.app.store.raw();
    store.compact(store.snapshot().revision()).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let expired = cluster.get(&format!("{MAPS}?limit=5&continue={token}"), "").await;
    assert_eq!((expired.code, expired.body["reason"].as_str()), (410, Some("Expired")));
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = cluster.get(&format!("{MAPS}?limit=5&continue={token}"), "").await.body;
    assert_eq!(rest["items"].as_array().unwrap().len(), 3, "b, c and the later d");
}

#[tokio::test]
async fn updates_need_the_newest_version_when_they_name_one() {
    let cluster = Cluster::start().await;
    let made = cluster.call("POST", MAPS, config_map("a", "1")).await.body;
    let uri = format!("{MAPS}/a");
    let mut changed = made.clone();
    changed["data"]["x"] = "2".into();
    assert_eq!(cluster.call("PUT", &uri, changed.clone()).await.code, 200);
    let stale = cluster.call("PUT", &uri, changed).await;
    assert_eq!((stale.code, stale.body["reason"].as_str()), (409, Some("Conflict")));
    let last = cluster.call("PUT", &uri, config_map("a", "3")).await;
    assert_eq!((last.code, last.body["data"]["x"].as_str()), (200, Some("3")), "without a version the last one wins");
    assert_eq!(api::meta::uid(&last.body), api::meta::uid(&made));
    let same = cluster.call("PUT", &uri, config_map("a", "3")).await;
    assert_eq!(same.body["metadata"]["resourceVersion"], last.body["metadata"]["resourceVersion"], "nothing changed");
    assert_eq!(cluster.call("PUT", &format!("{MAPS}/none"), config_map("none", "")).await.code, 404);
}

#[tokio::test]
async fn patches_of_every_kind() {
    let cluster = Cluster::start().await;
    cluster.call("POST", PODS, pod("p")).await;
    let uri = format!("{PODS}/p");
    let merged = cluster.patch(&uri, "merge-patch", json!({"metadata": {"labels": {"a": "1"}}})).await;
    assert_eq!(merged.body["metadata"]["labels"], json!({"a": "1"}), "{}", merged.body);
    let image = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    let strategic = cluster.patch(&uri, "strategic-merge-patch", image).await;
    assert_eq!(strategic.body["spec"]["containers"][0]["image"], "j");
    let operations = json!([{"op": "test", "path": "/metadata/labels/a", "value": "1"}, {"op": "remove", "path": "/metadata/labels"}]);
    let patched = cluster.patch(&uri, "json-patch", operations.clone()).await;
    assert_eq!(patched.body["metadata"].get("labels"), None);
    assert_eq!(cluster.patch(&uri, "json-patch", operations).await.code, 422);
    assert_eq!(cluster.patch(&uri, "nonsense", json!({})).await.code, 415);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"b": "1"}}});
    assert_eq!(cluster.patch(&uri, "merge-patch", stale).await.code, 409);
    let strict = format!("{uri}?fieldValidation=Strict");
    assert_eq!(cluster.patch(&strict, "merge-patch", json!({"spec": {"nonsense": 1}})).await.code, 400);
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let cluster = Cluster::start().await;
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    let uri = format!("{MAPS}/a");
    let patches = (0..16).map(|i| cluster.patch(&uri, "merge-patch", json!({"data": {format!("k{i}"): "v"}})));
    for answer in futures_util::future::join_all(patches).await {
        assert_eq!(answer.code, 200, "{}", answer.body);
    }
    assert_eq!(cluster.get(&uri, "").await.body["data"].as_object().unwrap().len(), 17);
}

#[tokio::test]
async fn a_watch_shows_every_change_once() {
    let cluster = Cluster::start().await;
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    let list = cluster.get(MAPS, "").await.body;
    let since = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut all = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={since}")).await;
    let mut from_start = cluster.watch(&format!("{MAPS}?watch=true")).await;
    let mut ones = cluster.watch(&format!("{MAPS}?watch=1&labelSelector=app%3D1&resourceVersion={since}")).await;
    cluster.call("POST", MAPS, config_map("b", "1")).await;
    cluster.call("PUT", &format!("{MAPS}/b"), config_map("b", "2")).await;
    cluster.call("DELETE", &format!("{MAPS}/b"), json!({})).await;
    let event = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    assert_eq!(from_start.event().await, event("ADDED", "a"));
    for watch in [&mut all, &mut from_start] {
        for kind in ["ADDED", "MODIFIED", "DELETED"] {
            assert_eq!(watch.event().await, event(kind, "b"));
        }
    }
    assert_eq!(ones.event().await, event("ADDED", "b"));
    assert_eq!(ones.event().await, event("DELETED", "b"), "it left the selector");
}

#[tokio::test]
async fn a_watch_list_ends_its_state_with_a_bookmark() {
    let cluster = Cluster::start().await;
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    let query = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&fieldSelector=metadata.name%3Da&timeoutSeconds=1";
    let mut watch = cluster.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(watch.event().await.0, "ADDED");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(watch.next().await.unwrap()["type"], "BOOKMARK", "one more just before the end");
    assert_eq!(watch.next().await, None, "the time is over");
}

#[tokio::test]
async fn a_watch_from_forgotten_times_is_told_so() {
    let cluster = Cluster::start().await;
    let since = cluster.server.app.store.snapshot().revision();
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    cluster.call("POST", MAPS, config_map("b", "1")).await;
    let store = cluster.server.app.store.raw();
    store.compact(store.snapshot().revision()).await.unwrap();
    let error = cluster.watch(&format!("{MAPS}?watch=true&resourceVersion={since}")).await.next().await.unwrap();
    assert_eq!((error["type"].as_str(), error["object"]["code"].as_i64()), (Some("ERROR"), Some(410)));
}

#[tokio::test]
async fn a_stop_ends_watches() {
    let mut cluster = Cluster::start().await;
    let mut watch = cluster.watch(&format!("{MAPS}?watch=true")).await;
    cluster.server.shutdown().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn tables_and_yaml() {
    let cluster = Cluster::start().await;
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let list = cluster.get(MAPS, table).await.body;
    assert_eq!((list["kind"].as_str(), list["rows"][0]["cells"][0].as_str()), (Some("Table"), Some("a")));
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let yaml = cluster.get(&format!("{MAPS}/a"), "application/yaml").await;
    assert!(std::str::from_utf8(&yaml.bytes).unwrap().contains("kind: ConfigMap"));
    assert_eq!(cluster.get(MAPS, "application/vnd.kubernetes.protobuf").await.code, 406);
    let written = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: written\ndata:\n  on: \"yes\"\n";
    let made = cluster.call_as(Identity::master("t"), "POST", MAPS, "application/yaml", written).await;
    assert_eq!((made.code, made.body["data"]["on"].as_str()), (201, Some("yes")), "{}", made.body);
    let wrong = cluster.call_as(Identity::master("t"), "POST", MAPS, "text/plain", written).await;
    assert_eq!(wrong.code, 415);
    let mut watch_request = Request::get(format!("{MAPS}?watch=true")).body(Body::empty()).unwrap();
    watch_request.headers_mut().insert("accept", table.parse().unwrap());
    let response = cluster.send(Identity::master("t"), watch_request).await;
    let mut lines = Lines { stream: response.into_body().into_data_stream(), buffer: Vec::new() };
    let first = lines.next().await.unwrap();
    assert_eq!(
        (first["object"]["kind"].as_str(), first["object"]["rows"][0]["cells"][0].as_str()),
        (Some("Table"), Some("a"))
    );
    assert!(!first["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    assert_eq!(lines.next().await.unwrap()["object"]["columnDefinitions"], json!([]));
}

#[tokio::test]
async fn field_validation_strict_warn_ignore() {
    let cluster = Cluster::start().await;
    let body = json!({"metadata": {"name": "a"}, "dat": {}});
    let strict = cluster.call("POST", &format!("{MAPS}?fieldValidation=Strict"), body.clone()).await;
    assert_eq!(strict.code, 400);
    assert!(strict.body["message"].as_str().unwrap().contains("unknown field \"dat\""), "{}", strict.body);
    let warned = cluster.call("POST", MAPS, body).await;
    assert_eq!((warned.code, warned.headers.get_all("warning").iter().count()), (201, 1));
    let invalid = cluster.call("POST", MAPS, json!({"metadata": {"name": "Not_A_Name"}})).await;
    assert_eq!((invalid.code, invalid.body["reason"].as_str()), (422, Some("Invalid")), "{}", invalid.body);
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let cluster = Cluster::start().await;
    let before = cluster.server.app.store.snapshot().revision();
    assert_eq!(cluster.call("POST", &format!("{MAPS}?dryRun=All"), config_map("a", "1")).await.code, 201);
    assert_eq!(cluster.get(&format!("{MAPS}/a"), "").await.code, 404);
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(cluster.call("POST", &format!("{SERVICES}?dryRun=All"), service).await.code, 201);
    assert_eq!(cluster.server.app.store.snapshot().revision(), before);
    cluster.call("POST", MAPS, config_map("b", "1")).await;
    let uri = format!("{MAPS}/b?dryRun=All");
    let patch = cluster.patch(&uri, "merge-patch", json!({"data": {"x": "9"}})).await;
    assert_eq!(patch.body["data"]["x"], "9");
    assert_eq!(cluster.call("DELETE", &uri, json!({})).await.code, 200);
    assert_eq!(cluster.get(&format!("{MAPS}/b"), "").await.body["data"]["x"], "1");
}

#[tokio::test]
async fn deletes_respect_who_has_to_finish() {
    let cluster = Cluster::start().await;
    cluster.call("POST", PODS, pod("p")).await;
    let uri = format!("{PODS}/p");
    let bound = cluster.call("POST", &format!("{uri}/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    assert_eq!(cluster.call("POST", &format!("{uri}/binding"), json!({"target": {"name": "m"}})).await.code, 409);
    let marked = cluster.call("DELETE", &uri, json!({})).await;
    assert_eq!(
        (marked.code, marked.body["metadata"]["deletionGracePeriodSeconds"].as_i64()),
        (200, Some(30)),
        "{}",
        marked.body
    );
    assert_eq!(cluster.get(&uri, "").await.code, 200);
    let gone = cluster.call("DELETE", &uri, json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(
        (gone.body["status"].as_str(), gone.body["details"]["uid"].as_str()),
        (Some("Success"), marked.body["metadata"]["uid"].as_str())
    );
    assert_eq!(cluster.get(&uri, "").await.code, 404);

    let mut held = config_map("h", "1");
    held["metadata"]["finalizers"] = json!(["example.com/x"]);
    cluster.call("POST", MAPS, held).await;
    let uri = format!("{MAPS}/h");
    assert!(api::meta::deletion_timestamp(&cluster.call("DELETE", &uri, json!({})).await.body).is_some());
    cluster.patch(&uri, "merge-patch", json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(cluster.get(&uri, "").await.code, 404);

    for name in ["a", "b", "c"] {
        cluster.call("POST", MAPS, config_map(name, if name == "c" { "keep" } else { "go" })).await;
    }
    let deleted = cluster.call("DELETE", &format!("{MAPS}?labelSelector=app%3Dgo"), json!({})).await;
    assert_eq!(deleted.body["items"].as_array().unwrap().len(), 2);
    assert_eq!(cluster.get(MAPS, "").await.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn namespaces_end_in_order() {
    let cluster = Cluster::start().await;
    let lost = cluster.call("POST", "/api/v1/namespaces/none/configmaps", config_map("a", "1")).await;
    assert_eq!((lost.code, lost.body["message"].as_str()), (404, Some("namespaces \"none\" not found")));
    cluster.call("POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(cluster.call("POST", "/api/v1/namespaces/n/configmaps", config_map("a", "1")).await.code, 201);
    let ending = cluster.call("DELETE", "/api/v1/namespaces/n", json!({})).await;
    assert_eq!(ending.body["status"]["phase"], "Terminating");
    let late = cluster.call("POST", "/api/v1/namespaces/n/configmaps", config_map("b", "1")).await;
    assert_eq!((late.code, &late.body["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    cluster.call("DELETE", "/api/v1/namespaces/n/configmaps/a", json!({})).await;
    let mut finalized = cluster.get("/api/v1/namespaces/n", "").await.body;
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(cluster.call("PUT", "/api/v1/namespaces/n/finalize", finalized).await.code, 200);
    assert_eq!(cluster.get("/api/v1/namespaces/n", "").await.code, 404);
    assert_eq!(cluster.call("DELETE", "/api/v1/namespaces/default", json!({})).await.code, 403);
}

#[tokio::test]
async fn a_collection_goes_as_far_as_it_is_selected() {
    let cluster = Cluster::start().await;
    for i in 0..100 {
        let mut map = config_map(&format!("c{i}"), "1");
        map["metadata"]["labels"] = json!({"keep": if i % 10 == 0 { "yes" } else { "no" }});
        assert_eq!(cluster.call("POST", MAPS, map).await.code, 201);
    }
    assert_eq!(cluster.call("DELETE", &format!("{MAPS}?labelSelector=keep%3Dno"), json!({})).await.code, 200);
    let left = cluster.get(MAPS, "").await.body;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(10));
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let cluster = Cluster::start().await;
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let made = cluster
        .call("POST", SERVICES, service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30090}]})))
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let ip = made.body["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let twice = cluster.call("POST", SERVICES, service("b", json!({"clusterIP": ip, "ports": [{"port": 80}]}))).await;
    assert_eq!((twice.code, twice.body["details"]["causes"][0]["field"].as_str()), (422, Some("spec.clusterIPs")));
    let port = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30090}]});
    assert_eq!(cluster.call("POST", SERVICES, service("b", port.clone())).await.code, 422);
    cluster.call("DELETE", &format!("{SERVICES}/a"), json!({})).await;
    let again = cluster.call("POST", SERVICES, service("b", port)).await;
    assert_eq!(again.code, 201, "what was released can be had: {}", again.body);
    let together =
        (0..20).map(|i| cluster.call("POST", SERVICES, service(&format!("s{i}"), json!({"ports": [{"port": 80}]}))));
    let answers = futures_util::future::join_all(together).await;
    let ips: std::collections::BTreeSet<_> = answers.iter().map(|a| a.body["spec"]["clusterIP"].to_string()).collect();
    assert_eq!(ips.len(), 20);
}

#[tokio::test]
async fn status_and_scale_are_views() {
    let cluster = Cluster::start().await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let uri = "/apis/apps/v1/namespaces/default/deployments";
    let made = cluster.call("POST", uri, deployment).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let uri = format!("{uri}/d");
    let scale = cluster.get(&format!("{uri}/scale"), "").await.body;
    assert_eq!(
        (scale["kind"].as_str(), scale["spec"]["replicas"].as_i64(), scale["status"]["selector"].as_str()),
        (Some("Scale"), Some(2), Some("a=b"))
    );
    let scaled = cluster.patch(&format!("{uri}/scale"), "merge-patch", json!({"spec": {"replicas": 5}})).await;
    assert_eq!(scaled.body["spec"]["replicas"], 5, "{}", scaled.body);
    assert_eq!(
        cluster.patch(&format!("{uri}/scale"), "merge-patch", json!({"spec": {"replicas": -1}})).await.code,
        422
    );
    let status = cluster
        .patch(&format!("{uri}/status"), "merge-patch", json!({"spec": {"replicas": 9}, "status": {"replicas": 4}}))
        .await;
    assert_eq!(
        (status.body["spec"]["replicas"].as_i64(), status.body["status"]["replicas"].as_i64()),
        (Some(5), Some(4)),
        "{}",
        status.body
    );
    assert_eq!(api::meta::generation(&status.body), 2, "one change of the spec");
    let plain = cluster.patch(&uri, "merge-patch", json!({"status": {"replicas": 77}})).await;
    assert_eq!(plain.body["status"]["replicas"], 4);
}

#[tokio::test]
async fn tokens_are_of_living_accounts() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.call("POST", accounts, json!({"metadata": {"name": "a"}})).await;
    let answer = cluster.call("POST", &format!("{accounts}/a/token"), json!({"spec": {}})).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    for bad in [json!([]), json!({"spec": "x"}), json!("x")] {
        assert_eq!(cluster.call("POST", &format!("{accounts}/a/token"), bad.clone()).await.code, 400, "{bad}");
    }
    let token = answer.body["status"]["token"].as_str().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    let app = &cluster.server.app;
    let who =
        || authenticate::authenticate(&authenticate::Peer::Tls(None), &headers, &app.pki.service_accounts, &app.store);
    assert_eq!(who().unwrap().user, "system:serviceaccount:default:a");
    cluster.call("DELETE", &format!("{accounts}/a"), json!({})).await;
    assert_eq!(who().unwrap_err().code, 401, "the account is gone");
}

#[tokio::test]
async fn others_may_do_little() {
    let cluster = Cluster::start().await;
    let node =
        || Identity { user: "system:node:n".into(), groups: vec![authenticate::NODES.into()], uid: String::new() };
    cluster.call("POST", PODS, pod("mine")).await;
    cluster.call("POST", PODS, pod("other")).await;
    cluster.call("POST", &format!("{PODS}/mine/binding"), json!({"target": {"name": "n"}})).await;
    let status = json!({"status": {"phase": "Running"}}).to_string();
    let content_type = "application/merge-patch+json";
    for (name, code) in [("mine", 200), ("other", 403), ("gone", 404)] {
        let uri = format!("{PODS}/{name}/status");
        let answer = cluster.call_as(node(), "PATCH", &uri, content_type, status.clone()).await;
        assert_eq!(answer.code, code, "{name}: {}", answer.body);
    }
    let refused = cluster.call_as(node(), "POST", PODS, "application/json", pod("x").to_string()).await;
    assert_eq!((refused.code, refused.body["reason"].as_str()), (403, Some("Forbidden")));
    for (name, code) in [("other", 403), ("n", 201)] {
        let body = json!({"metadata": {"name": name}}).to_string();
        let answer = cluster.call_as(node(), "POST", "/api/v1/nodes", "application/json", body).await;
        assert_eq!(answer.code, code, "{}", answer.body);
    }
    let nobody = cluster.call_as(Identity::anonymous(), "GET", PODS, "", "").await;
    assert_eq!(nobody.code, 401);
}

#[tokio::test]
async fn what_is_too_large_or_no_json_is_refused() {
    let cluster = Cluster::start().await;
    let large = cluster.call("POST", MAPS, config_map("a", &"x".repeat(body::MAX_BODY))).await;
    assert_eq!(large.code, 413);
    for text in ["", "{", "[]", "\"x\"", "{\"kind\": 5}", "{\"metadata\": []}", "{\"metadata\": {\"name\": 5}}"] {
        let answer = cluster.call_as(Identity::master("t"), "POST", MAPS, "application/json", text).await;
        assert!(matches!(answer.code, 400 | 422), "{text}: {} {}", answer.code, answer.body);
        assert_eq!(answer.body["kind"], "Status", "{text}");
    }
}

#[tokio::test]
async fn discovery_and_openapi() {
    let cluster = Cluster::start().await;
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let apis = cluster.get("/apis", v2).await;
    assert_eq!(
        (apis.body["kind"].as_str(), apis.headers["content-type"].to_str().unwrap()),
        (Some("APIGroupDiscoveryList"), v2)
    );
    let request = Request::get("/apis").header("accept", v2).header("if-none-match", apis.headers["etag"].clone());
    let again = cluster.send(Identity::master("t"), request.body(Body::empty()).unwrap()).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(cluster.get("/api", "").await.body["versions"], json!(["v1"]));
    assert_eq!(cluster.get("/apis/apps/v1", "").await.body["groupVersion"], "apps/v1");
    let index = cluster.get("/openapi/v3", "").await.body;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert!(cluster.get(&url, "").await.body["components"]["schemas"].is_object());
    assert_eq!(cluster.get("/apis/nonsense/v1", "").await.code, 404);
}

#[tokio::test]
async fn swagger_has_a_tag() {
    let cluster = Cluster::start().await;
    let json = cluster.get("/openapi/v2", "").await;
    assert_eq!((json.code, &json.body["swagger"]), (200, &json!("2.0")));
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let ask = |tag: Option<&http::HeaderValue>| {
        let request = Request::get("/openapi/v2").header("accept", protobuf);
        let request = tag.into_iter().fold(request, |r, tag| r.header("if-none-match", tag));
        cluster.send(Identity::master("t"), request.body(Body::empty()).unwrap())
    };
    let first = ask(None).await;
    let valid = protobuf.replace('@', ".");
    assert_eq!((first.status(), first.headers()["content-type"].to_str().unwrap()), (StatusCode::OK, &*valid));
    let tag = first.headers()["etag"].clone();
    assert_ne!(tag, json.headers["etag"]);
    // "swagger" is the first field, "2.0" its text.
    assert!(first.into_body().collect().await.unwrap().to_bytes().starts_with(b"\x0a\x032.0"));
    assert_eq!(ask(Some(&tag)).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(cluster.get("/openapi/v2", "text/html").await.code, 406);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let cluster = Cluster::start().await;
    let other = tempfile::tempdir().unwrap();
    let store = Store::open(store::Config::new(other.path().join("store"))).await.unwrap();
    let config = Config { bind: cluster.server.address(), ..config(&other) };
    let error = Server::start(config, store).await.err().unwrap().to_string();
    assert!(error.contains(&cluster.server.address().to_string()) && error.contains("--bind"), "{error}");
}

#[tokio::test]
async fn methods_have_their_places() {
    let cluster = Cluster::start().await;
    let method = |m: Method| m.to_string();
    for (verb, uri, code) in [
        (method(Method::PUT), MAPS, 405),
        (method(Method::POST), "/api/v1/configmaps", 405),
        (method(Method::DELETE), "/api/v1/namespaces", 405),
        (method(Method::GET), "/api/v1/nonsense", 404),
    ] {
        assert_eq!(cluster.call(&verb, uri, json!({})).await.code, code, "{verb} {uri}");
    }
}

#[tokio::test]
async fn bootstrap_objects_come_back() {
    let cluster = Cluster::start().await;
    let since = cluster.server.app.store.snapshot().revision();
    let name = "fieldSelector=metadata.name%3Dkubernetes";
    let mut watch = cluster.watch(&format!("{SERVICES}?watch=true&resourceVersion={since}&{name}")).await;
    assert_eq!(cluster.call("DELETE", &format!("{SERVICES}/kubernetes"), json!({})).await.code, 200);
    assert_eq!(watch.event().await.0, "DELETED");
    let again = watch.next().await.unwrap();
    assert_eq!(
        (again["type"].as_str(), again["object"]["spec"]["clusterIP"].as_str()),
        (Some("ADDED"), Some("10.96.0.1"))
    );
}
