//! What the disk has of secrets, and what clients see of that: nothing.

use std::{net::Ipv4Addr, sync::atomic::AtomicUsize};

use futures_util::future::{join, join_all};
use store::{KeyValue, Op, Txn};

use super::*;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ENCRYPTION: &str = "/minik8s/v1/encryption";

fn secret(name: &str, text: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": text}}, "type": "Opaque", "stringData": {"k": text}})
}

/// Starts a server over a store, with the files of `dir`. Servers over one store all lead: each would write its own port into
/// the endpoints of `kubernetes` over the others', without an end, if it had an address that is worth it.
async fn start(dir: TempDir, store: Store, encrypt: &[&str]) -> Cluster {
    let encrypt = encrypt.iter().map(|name| (*name).to_owned()).collect();
    let advertise_address = Some(Ipv4Addr::LOCALHOST.into());
    let server = Server::start(Config { encrypt, advertise_address, ..config(&dir) }, store).await.unwrap();
    Cluster { server, dir }
}

async fn store() -> Store {
    Store::in_memory(store::Config::new("")).await.unwrap()
}

/// Another server's directory, with what the first one hands over.
fn joined(cluster: &Cluster) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tls")).unwrap();
    for file in ["ca.crt", "ca.key", "service-account.key", "encryption.key"] {
        let file = format!("tls/{file}");
        std::fs::copy(cluster.dir.path().join(&file), dir.path().join(&file)).unwrap();
    }
    dir
}

impl Cluster {
    fn raw(&self) -> &Store {
        self.server.app.store.raw()
    }

    /// What the store has for an object.
    fn stored(&self, resource: &str, name: &str) -> Arc<KeyValue> {
        let key = format!("/registry/{resource}/default/{name}");
        self.raw().snapshot().get(key.as_bytes()).unwrap_or_else(|| panic!("{key}")).clone()
    }

    fn is_encrypted(&self, resource: &str, name: &str) -> bool {
        let kv = self.stored(resource, name);
        assert_eq!(kv.value.starts_with(b"{"), !kv.value.starts_with(b"m8s:aesgcm:1:"));
        !kv.value.starts_with(b"{")
    }

    /// Puts a value under an object's key, past the API.
    async fn overwrite(&self, resource: &str, name: &str, value: Bytes) {
        let key = format!("/registry/{resource}/default/{name}").into();
        let then = vec![Op::Put { key, value, lease: None }];
        self.raw().txn(Txn { then, ..Txn::default() }).await.unwrap();
    }

    async fn encryption(&self) -> Value {
        let answer = self.get(ENCRYPTION, "").await;
        assert_eq!(answer.code, 200, "{}", answer.body);
        answer.body
    }

    async fn rotate(&self) {
        let answer = self.call("POST", &format!("{ENCRYPTION}/rotate"), json!({})).await;
        assert_eq!(answer.code, 200, "{}", answer.body);
    }

    /// Waits until the record of the keys is such that the status holds.
    async fn encryption_is(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let key = Bytes::from_static(keys::ENCRYPTION.as_bytes());
        let range = keys::Range::key(key);
        let until = async {
            loop {
                let mut changes = self.raw().watch(range.start.clone(), range.end.clone(), 0).unwrap();
                let status = self.encryption().await;
                if holds(&status) {
                    return status;
                }
                changes.next().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, until).await {
            Ok(status) => status,
            Err(_) => panic!("it stays {}", self.encryption().await),
        }
    }

    /// Lets a rotation that has rewritten everything end at once: nobody needs the history here.
    async fn retired(&self) -> Value {
        self.encryption_is(|status| status["phase"] == "Retiring").await;
        self.raw().compact(self.raw().snapshot().revision()).await.unwrap();
        self.server.app.store.look_again();
        self.encryption_is(|status| status["phase"] == "Settled").await
    }
}

fn ids(status: &Value) -> Vec<u64> {
    status["keys"].as_array().unwrap().iter().map(|key| key["id"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn secrets_are_encrypted_from_the_first_start_and_nobody_notices() {
    let cluster = Cluster::start().await;
    let since = cluster.raw().snapshot().revision();
    let mut watch = cluster.watch(&format!("{SECRETS}?watch=1&resourceVersion={since}")).await;
    let mut ones = cluster.watch(&format!("{SECRETS}?watch=1&labelSelector=l%3Done&resourceVersion={since}")).await;
    let made = cluster.call("POST", SECRETS, secret("a", "one")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let uri = format!("{SECRETS}/a");
    let secret_is = |object: &Value, text: &str| {
        use base64::{Engine, prelude::BASE64_STANDARD};
        assert_eq!(object["data"]["k"], BASE64_STANDARD.encode(text), "{object}");
    };
    secret_is(&cluster.get(&uri, "").await.body, "one");
    assert!(cluster.is_encrypted("secrets", "a"));
    let bytes = cluster.stored("secrets", "a").value.clone();
    assert!(!bytes.windows(4).any(|w| w == b"b25l") && !bytes.windows(6).any(|w| w == b"labels"));

    // A dry run stores nothing and shows what it would; a create of what is there is refused.
    let dry = cluster.patch(&format!("{uri}?dryRun=All"), "merge-patch", json!({"stringData": {"k": "dry"}})).await;
    secret_is(&dry.body, "dry");
    assert_eq!(cluster.call("POST", SECRETS, secret("a", "x")).await.code, 409);
    let version = &made.body["metadata"]["resourceVersion"];
    let same = cluster.patch(&uri, "merge-patch", json!({"metadata": {"labels": {"l": "one"}}})).await;
    assert_eq!(&same.body["metadata"]["resourceVersion"], version, "what changes nothing writes nothing");
    let two = json!({"metadata": {"labels": {"l": "two"}}, "stringData": {"k": "two"}});
    secret_is(&cluster.patch(&uri, "strategic-merge-patch", two).await.body, "two");
    let mut stale = made.body.clone();
    stale["stringData"] = json!({"k": "stale"});
    assert_eq!(cluster.call("PUT", &uri, stale).await.code, 409);
    assert_eq!(cluster.call("PUT", &uri, secret("a", "three")).await.code, 200);

    let list = cluster.get(&format!("{SECRETS}?labelSelector=l%3Dthree&limit=5"), "").await.body;
    secret_is(&list["items"][0], "three");
    let table = cluster.get(SECRETS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.body;
    assert_eq!(table["rows"][0]["cells"][0], "a");
    let at = format!("{SECRETS}?resourceVersionMatch=Exact&resourceVersion={}", version.as_str().unwrap());
    secret_is(&cluster.get(&at, "").await.body["items"][0], "one");
    assert_eq!(cluster.call("DELETE", &uri, json!({})).await.code, 200);

    for (kind, text) in [("ADDED", "one"), ("MODIFIED", "two"), ("MODIFIED", "three"), ("DELETED", "three")] {
        let event = watch.next().await.unwrap();
        assert_eq!(event["type"], kind);
        secret_is(&event["object"], text);
    }
    for (kind, text) in [("ADDED", "one"), ("DELETED", "one")] {
        let event = ones.next().await.unwrap();
        assert_eq!(event["type"], kind);
        secret_is(&event["object"], text);
    }
    cluster.call("POST", MAPS, config_map("plain", "1")).await;
    assert!(!cluster.is_encrypted("configmaps", "plain"));
}

/// What authentication, namespaces and pods read of the store is no exception.
#[tokio::test]
async fn anything_can_be_encrypted() {
    let all: Vec<String> = api::registry::ALL.iter().map(|kind| kind.resource()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let cluster = start(tempfile::tempdir().unwrap(), store().await, &all).await;
    let registry = keys::Range::prefix(keys::REGISTRY.into());
    let snapshot = cluster.raw().snapshot();
    assert!(snapshot.range(&registry.start..&registry.end).count() > 4);
    assert!(snapshot.range(&registry.start..&registry.end).all(|kv| kv.value.starts_with(b"m8s:")));

    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.call("POST", accounts, json!({"metadata": {"name": "a"}})).await;
    let answer = cluster.call("POST", &format!("{accounts}/a/token"), json!({"spec": {}})).await;
    let token = answer.body["status"]["token"].as_str().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    let app = &cluster.server.app;
    let who =
        authenticate::authenticate(&authenticate::Peer::Tls(None), &headers, &app.pki.service_accounts, &app.store);
    assert_eq!(who.unwrap().user, "system:serviceaccount:default:a");

    cluster.call("POST", PODS, pod("mine")).await;
    cluster.call("POST", &format!("{PODS}/mine/binding"), json!({"target": {"name": "n"}})).await;
    let node = Identity { user: "system:node:n".into(), groups: vec![authenticate::NODES.into()], uid: String::new() };
    let status = json!({"status": {"phase": "Running"}}).to_string();
    let uri = format!("{PODS}/mine/status");
    let answer = cluster.call_as(node, "PATCH", &uri, "application/merge-patch+json", status).await;
    assert_eq!((answer.code, answer.body["status"]["phase"].as_str()), (200, Some("Running")), "{}", answer.body);
    let pods = cluster.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn", "").await.body;
    assert_eq!(api::meta::name(&pods["items"][0]), "mine");
    let event = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "mine", "namespace": "default"}, "reason": "R",
        "action": "A", "type": "Normal", "eventTime": "2030-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i"});
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let answer = cluster.call("POST", events, event).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    assert_eq!(cluster.get(&format!("{events}/e"), "").await.body["regarding"]["name"], "mine");
    assert!(cluster.is_encrypted("events", "e") && cluster.stored("events", "e").lease.is_some());
}

#[tokio::test]
async fn many_watchers_share_what_was_decrypted() {
    let cluster = Cluster::start().await;
    cluster.call("POST", SECRETS, secret("a", "one")).await;
    let (kv, vault) = (cluster.stored("secrets", "a"), &cluster.server.app.store);
    let (first, second) = (vault.shared(&kv).unwrap(), vault.shared(&kv).unwrap());
    assert!(Arc::ptr_eq(&first, &second) && first.value.starts_with(b"{"));
    cluster.call("POST", MAPS, config_map("a", "1")).await;
    let kv = cluster.stored("configmaps", "a");
    assert!(Arc::ptr_eq(&kv, &vault.shared(&kv).unwrap()), "a plain value is no copy");
}

#[tokio::test]
async fn a_rotation_under_way_loses_nothing() {
    let cluster = Cluster::start().await;
    for i in 0..40 {
        assert_eq!(cluster.call("POST", SECRETS, secret(&format!("s{i}"), "old")).await.code, 201);
    }
    let other = start(joined(&cluster), cluster.raw().clone(), &["secrets"]).await;
    assert_eq!(
        cluster.raw().snapshot().count(b"/minik8s/encryption/", b"/minik8s/encryption0"),
        1,
        "it took the first one's keys"
    );
    let rounds = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    // Both servers write all the while, so that each meets keys that the other one made.
    let write = |cluster: &Cluster, server: usize| {
        let client = cluster.server.service(Identity::master("writer"));
        let (rounds, stopped) = (&rounds, &stopped);
        async move {
            let mut round = 0;
            while !stopped.load(Ordering::Acquire) {
                for i in 0..8 {
                    let patch = json!({"stringData": {format!("w{server}"): round.to_string()}}).to_string();
                    let request = Request::patch(format!("{SECRETS}/s{i}"))
                        .header("content-type", "application/merge-patch+json")
                        .body(Body::from(patch))
                        .unwrap();
                    let answer = read(client.clone().oneshot(request).await.unwrap()).await;
                    assert_eq!(answer.code, 200, "{}", answer.body);
                }
                round += 1;
                rounds.fetch_add(1, Ordering::AcqRel);
            }
            round - 1
        }
    };
    let rotate = async {
        for want in [2, 3] {
            [&cluster, &other][want % 2].rotate().await;
            let status = cluster.retired().await;
            assert_eq!((ids(&status), &status["left"]), (vec![want as u64], &json!(0)), "{status}");
        }
        let there = rounds.load(Ordering::Acquire);
        while rounds.load(Ordering::Acquire) < there + 4 {
            tokio::task::yield_now().await;
        }
        stopped.store(true, Ordering::Release);
    };
    let (last, ()) = join(join_all([write(&cluster, 0), write(&other, 1)]), rotate).await;

    let third = start(joined(&cluster), cluster.raw().clone(), &["secrets"]).await;
    for cluster in [&cluster, &other, &third] {
        let list = cluster.get(SECRETS, "").await.body;
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 40);
        for item in items {
            assert_eq!(item["data"]["k"], "b2xk", "{item}");
        }
        for i in 0..8 {
            let item = cluster.get(&format!("{SECRETS}/s{i}"), "").await.body;
            for (server, last) in last.iter().enumerate() {
                use base64::{Engine, prelude::BASE64_STANDARD};
                assert_eq!(item["data"][format!("w{server}")], BASE64_STANDARD.encode(last.to_string()), "{item}");
            }
        }
        let status = cluster.encryption().await;
        assert_eq!((ids(&status), &status["keys"][0]["values"]), (vec![3], &json!(40)), "{status}");
    }
}

/// A write that took its key before a rotation must not come after it.
#[tokio::test]
async fn a_late_write_with_an_old_key_is_tried_again() {
    let cluster = Cluster::start().await;
    cluster.call("POST", SECRETS, secret("a", "one")).await;
    let vault = &cluster.server.app.store;
    let view = vault.snapshot();
    let key = Bytes::from_static(b"/registry/secrets/default/late");
    let sealed = view.seal(&key, &Bytes::from_static(b"{\"metadata\":{}}")).unwrap();
    cluster.rotate().await;
    let txn = Txn {
        compare: sealed.guard.into_iter().collect(),
        then: vec![Op::Put { key, value: sealed.value, lease: None }],
        otherwise: Vec::new(),
    };
    assert_eq!(txn.compare.len(), 1);
    assert!(!vault.txn(txn).await.unwrap().succeeded);
    assert_eq!(ids(&cluster.retired().await), [2]);
    assert!(view.get(b"/registry/secrets/default/a").unwrap().is_some(), "who reads an old state still can");
}

#[tokio::test]
async fn one_rotation_at_a_time_and_old_keys_wait_for_the_history() {
    let cluster = Cluster::start().await;
    cluster.call("POST", SECRETS, secret("a", "one")).await;
    cluster.call("POST", SECRETS, secret("b", "one")).await;
    let page = cluster.get(&format!("{SECRETS}?limit=1"), "").await.body;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let before = cluster.stored("secrets", "a");
    let mut watch = cluster.watch(&format!("{SECRETS}?watch=1&resourceVersion={}", before.mod_revision)).await;
    cluster.rotate().await;
    let status = cluster.encryption_is(|status| status["phase"] == "Retiring").await;
    assert_eq!((ids(&status), status["primary"].as_u64()), (vec![1, 2], Some(2)));
    let rest = cluster.get(&format!("{SECRETS}?limit=1&continue={token}"), "").await.body;
    assert_eq!(rest["items"][0]["data"]["k"], "b25l", "a list that began before goes on");
    assert_eq!(watch.event().await, ("ADDED".into(), "b".into()));
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["data"]["k"]), (&json!("MODIFIED"), &json!("b25l")));
    let version: u64 = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(version > before.mod_revision, "it was written");

    cluster.rotate().await;
    let status = cluster.retired().await;
    assert_eq!(ids(&status), [3]);

    // What cannot be read holds a rotation up until it is gone, and until then there is no other one.
    cluster.overwrite("secrets", "b", cluster.stored("secrets", "a").value.clone()).await;
    cluster.rotate().await;
    let stuck = || async {
        loop {
            let status = cluster.encryption().await;
            if status["trouble"].is_string() {
                break status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(PATIENCE, stuck()).await.unwrap();
    let trouble = status["trouble"].as_str().unwrap();
    assert!(trouble.contains("1 of 2 values") && trouble.contains("secrets \"default/b\""), "{trouble}");
    assert_eq!((&status["phase"], &status["left"]), (&json!("Rewriting"), &json!(1)), "{status}");
    let refused = cluster.call("POST", &format!("{ENCRYPTION}/rotate"), json!({})).await;
    assert_eq!((refused.code, &refused.body["reason"]), (409, &json!("Conflict")), "{}", refused.body);
    assert_eq!(cluster.call("DELETE", &format!("{SECRETS}/b"), json!({})).await.code, 200);
    cluster.server.app.store.look_again();
    let status = cluster.retired().await;
    assert_eq!((ids(&status), &status["trouble"]), (vec![4], &Value::Null), "{status}");
}

#[tokio::test]
async fn what_cannot_be_decrypted_is_named_and_can_be_deleted() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        cluster.call("POST", SECRETS, secret(name, "one")).await;
    }
    let mut watch = cluster.watch(&format!("{SECRETS}?watch=1")).await;
    assert_eq!((watch.event().await.1, watch.event().await.1), ("a".into(), "b".into()));
    // A value in another one's place, one that was changed, one of a key that there is not, one that was cut short.
    let a = cluster.stored("secrets", "a").value.clone();
    let changed = |value: &Bytes, at: usize| {
        let mut value = value.to_vec();
        value[at] ^= 1;
        Bytes::from(value)
    };
    let b = cluster.stored("secrets", "b").value.clone();
    for (value, what) in [
        (a, "another place"),
        (changed(&b, b.len() - 1), "has been changed"),
        (changed(&b, 16), "no key 0"),
        (b.slice(..15), "cut short"),
    ] {
        cluster.overwrite("secrets", "b", value).await;
        for uri in
            [&format!("{SECRETS}/b"), SECRETS, "/api/v1/secrets?labelSelector=l%3Done", "/api/v1/secrets?watch=1"]
        {
            let answer = cluster.get(uri, "").await;
            let message = answer.body["message"].as_str().unwrap_or_default();
            assert_eq!((answer.code, &answer.body["kind"]), (500, &json!("Status")), "{uri}: {}", answer.body);
            assert!(message.contains("secrets \"default/b\"") && message.contains(what), "{uri}: {message}");
        }
        assert_eq!(cluster.call("PUT", &format!("{SECRETS}/b"), secret("b", "x")).await.code, 500);
        assert_eq!(cluster.call("DELETE", SECRETS, json!({})).await.code, 500);
        assert_eq!(cluster.get(&format!("{SECRETS}/a"), "").await.code, 200, "the others are well");
    }
    let ended = watch.next().await.unwrap();
    assert_eq!((&ended["type"], &ended["object"]["code"]), (&json!("ERROR"), &json!(410)), "{ended}");
    assert!(ended["object"]["message"].as_str().unwrap().contains("default/b"), "{ended}");
    assert_eq!(watch.next().await, None);

    let uri = format!("{SECRETS}/b");
    let careful = json!({"preconditions": {"uid": "u"}});
    assert_eq!(cluster.call("DELETE", &uri, careful).await.code, 500, "whether that holds nobody knows");
    assert_eq!(cluster.call("DELETE", &format!("{uri}?dryRun=All"), json!({})).await.code, 200);
    assert_eq!(cluster.get(SECRETS, "").await.code, 500);
    assert_eq!(cluster.call("DELETE", &uri, json!({})).await.code, 200);
    assert_eq!(cluster.get(SECRETS, "").await.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_cluster_of_before_is_read_and_then_encrypted() {
    let cluster = start(tempfile::tempdir().unwrap(), store().await, &[""]).await;
    for name in ["a", "b", "c"] {
        cluster.call("POST", SECRETS, secret(name, "one")).await;
    }
    cluster.call("POST", MAPS, config_map("m", "1")).await;
    assert!(!cluster.is_encrypted("secrets", "a"));
    // As it was when there were no keys.
    let (store, dir) = (cluster.raw().clone(), tempfile::tempdir().unwrap());
    let delete = Op::Delete { start: Bytes::from_static(keys::ENCRYPTION.as_bytes()), end: None };
    drop(cluster);
    store.txn(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();

    let cluster = start(dir, store, &["secrets", "configmaps"]).await;
    let status = cluster.encryption().await;
    assert_eq!((ids(&status), &status["left"], &status["phase"]), (vec![1], &json!(4), &json!("Settled")), "{status}");
    assert_eq!(cluster.get(&format!("{SECRETS}/a"), "").await.body["data"]["k"], "b25l");
    let whole = cluster.get(&format!("{SECRETS}/b"), "").await.body;
    assert_eq!(cluster.call("PUT", &format!("{SECRETS}/b"), whole).await.code, 200);
    assert!(cluster.is_encrypted("secrets", "b"), "`kubectl replace` of what is there encrypts it");
    cluster.rotate().await;
    let status = cluster.encryption_is(|status| status["phase"] == "Retiring").await;
    assert_eq!((&status["left"], &status["keys"][1]["values"]), (&json!(0), &json!(4)), "{status}");
    assert!(["a", "b", "c"].iter().all(|name| cluster.is_encrypted("secrets", name)));
    assert!(cluster.is_encrypted("configmaps", "m"));

    // Taken off the list, they are read as ever, and the next rotation writes them plain.
    let (store, dir) = (cluster.raw().clone(), joined(&cluster));
    drop(cluster);
    let cluster = start(dir, store, &["secrets"]).await;
    assert_eq!(cluster.get(&format!("{MAPS}/m"), "").await.body["data"]["x"], "1");
    assert_eq!(cluster.encryption().await["left"], 1);
    cluster.rotate().await;
    cluster.retired().await;
    assert!(!cluster.is_encrypted("configmaps", "m") && cluster.is_encrypted("secrets", "a"));
    assert_eq!(cluster.get(&format!("{MAPS}/m"), "").await.body["data"]["x"], "1");
}

#[tokio::test]
async fn a_restart_goes_on_with_a_rotation() {
    let mut cluster = Cluster::start().await;
    for i in 0..20 {
        cluster.call("POST", SECRETS, secret(&format!("s{i}"), "one")).await;
    }
    // The key is in force, and the server is gone before it has written anything again.
    cluster.server.tasks.abort_all();
    cluster.rotate().await;
    let status = cluster.encryption().await;
    assert_eq!((&status["phase"], &status["left"]), (&json!("Rewriting"), &json!(20)), "{status}");
    let Cluster { mut server, dir } = cluster;
    let store = server.app.store.raw().clone();
    server.shutdown().await;
    store.shutdown().await.unwrap();

    drop(store);
    let store = Store::open(store::Config::new(dir.path().join("store"))).await.unwrap();
    let cluster = start(dir, store, &["secrets"]).await;
    let status = cluster.retired().await;
    assert_eq!((ids(&status), &status["keys"][0]["values"]), (vec![2], &json!(20)), "{status}");
    assert_eq!(cluster.get(SECRETS, "").await.body["items"].as_array().unwrap().len(), 20);
}

#[tokio::test]
async fn without_its_key_file_a_cluster_does_not_start() {
    let cluster = Cluster::start().await;
    cluster.call("POST", SECRETS, secret("a", "one")).await;
    let (store, dir) = (cluster.raw().clone(), joined(&cluster));
    let file = dir.path().join("tls/encryption.key");
    let good = std::fs::read(&file).unwrap();
    let refused = async |dir: &TempDir| {
        let error = Server::start(config(dir), store.clone()).await.err().expect("it does not start").to_string();
        assert!(error.contains(&*file.to_string_lossy()) && error.contains("snapshot"), "{error}");
        error
    };
    std::fs::remove_file(&file).unwrap();
    assert!(refused(&dir).await.contains("is missing"));
    assert!(!file.exists(), "none was made");
    std::fs::write(&file, "nonsense").unwrap();
    assert!(refused(&dir).await.contains("holds no key"));
    std::fs::write(&file, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
    assert!(refused(&dir).await.contains("is another one"));
    std::fs::write(&file, good).unwrap();
    assert!(Server::start(config(&dir), store.clone()).await.is_ok());

    // Nor does it where the keys are gone that values are encrypted with.
    let delete = Op::Delete { start: Bytes::from_static(keys::ENCRYPTION.as_bytes()), end: None };
    store.txn(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
    let error = Server::start(config(&dir), store.clone()).await.err().expect("it does not start").to_string();
    assert!(error.contains("/registry/secrets/default/a is encrypted"), "{error}");
    let refused = cluster.call("POST", SECRETS, secret("b", "two")).await;
    assert_eq!(refused.code, 500, "nobody could read it after a restart: {}", refused.body);
    assert!(refused.body["message"].as_str().unwrap().contains(keys::ENCRYPTION), "{}", refused.body);
    assert_eq!(cluster.get(&format!("{SECRETS}/a"), "").await.code, 200, "a running server knows its keys");
}

#[tokio::test]
async fn wrong_names_are_refused_by_the_name_of_the_flag() {
    for name in ["secret", "secrets.apps", "nonsense", "deployments"] {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { encrypt: vec!["secrets".into(), name.into()], ..config(&dir) };
        let error = Server::start(config, store().await).await.err().expect("refused").to_string();
        assert!(error.contains("--encrypt") && error.contains(name), "{error}");
    }
}

#[tokio::test]
async fn the_key_file_is_in_snapshots() {
    let cluster = Cluster::start().await;
    let answer = cluster.get("/minik8s/v1/snapshot", "").await;
    let snapshot = Snapshot::read(&answer.bytes).unwrap();
    let (_, key) = snapshot.files.iter().find(|(name, _)| *name == pki::ENCRYPTION_KEY).unwrap();
    let file = cluster.dir.path().join(pki::ENCRYPTION_KEY);
    assert_eq!(*key, std::fs::read(&file).unwrap());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn only_administrators_rotate() {
    let cluster = Cluster::start().await;
    let node =
        || Identity { user: "system:node:n".into(), groups: vec![authenticate::NODES.into()], uid: String::new() };
    for (method, uri) in [("GET", ENCRYPTION.to_owned()), ("POST", format!("{ENCRYPTION}/rotate"))] {
        assert_eq!(cluster.call_as(node(), method, &uri, "", "").await.code, 403);
        assert_eq!(cluster.call_as(Identity::anonymous(), method, &uri, "", "").await.code, 401);
    }
    assert_eq!(ids(&cluster.encryption().await), [1]);
}
