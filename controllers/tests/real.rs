//! All controllers against the real API server on a store in a directory of its own: what the double in `src/fake.rs`
//! takes for granted is asked of the original here.

use std::time::Duration;

use client::{Client, DeleteOptions, ListParams, Object, Patch, Propagation, Update, object};
use controllers::Config;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// What has not come about by then never will.
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    client: Client,
    _server: apiserver::Server,
    _tasks: JoinSet<()>,
    _dir: TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store::Store::open(store::Config::new(dir.path().join("store"))).await.expect("a store");
    let settings = apiserver::Config {
        peers: std::sync::Arc::default(),
        etcd_urls: Vec::new(),
        join: Vec::new(),
        data_dir: dir.path().to_owned(),
        bind: "127.0.0.1:0".parse().expect("an address"),
        advertise_address: Some("10.1.2.3".parse().expect("an address")),
        tls_sans: Vec::new(),
        token: None,
        cluster_cidr: "10.244.0.0/16".into(),
        service_cidr: "10.96.0.0/16".into(),
        cluster_dns: "10.96.0.10".parse().expect("an address"),
        encrypt: vec!["secrets".into()],
    };
    let server = apiserver::Server::start(settings, store).await.expect("a server");
    let client = || Client::in_process(server.service(apiserver::Identity::master("tester")));
    let config = Config {
        cluster_cidr: "10.244.0.0/16".parse().expect("a range"),
        root_ca_pem: server.ca_pem().to_owned(),
        node_monitor_grace: controllers::NODE_MONITOR_GRACE,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(controllers::run(client(), config));
    tasks.spawn(kubelet(client()));
    World { client: client(), _server: server, _tasks: tasks, _dir: dir }
}

/// Makes every pod ready as soon as it is there.
async fn kubelet(client: Client) {
    let pods = client.cache::<Pod>();
    let mut changes = pods.subscribe();
    let mut addresses = 1..;
    while let Some(update) = changes.next().await {
        let Update::Change(change) = update else { continue };
        if let (Some(_), None) = (&change.new, &change.old) {
            let ip = format!("10.244.0.{}", addresses.next().unwrap_or(1));
            let patch = json!({ "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            }});
            let key = &change.key;
            // A pod that is gone again needs no status.
            let _ = client.patch_status::<Pod>(&key.namespace, &key.name, &Patch::Merge(patch)).await;
        }
    }
}

impl World {
    async fn create<K: Object>(&self, object: Value) -> K {
        let object: K = serde_json::from_value(object).expect("an object");
        self.client.create(&object).await.expect("created")
    }

    /// Waits until all objects of a kind in a namespace are as wanted.
    async fn wait<K: Object>(&self, what: &str, namespace: &str, wanted: impl Fn(&[K]) -> bool) {
        let cache = self.client.cache::<K>();
        let mut changes = cache.subscribe();
        cache.synced().await;
        let of = || -> Vec<K> {
            let all = cache.list().into_iter().filter(|o| namespace.is_empty() || object::namespace(&**o) == namespace);
            all.map(|o| (*o).clone()).collect()
        };
        let reached = async {
            while !wanted(&of()) {
                changes.next().await.expect("the cache lives");
            }
        };
        if tokio::time::timeout(DEADLINE, reached).await.is_err() {
            let now = self.client.list::<K>(namespace, &ListParams::default()).await.expect("a list").items;
            panic!("{what} did not come about: {}", serde_json::to_string_pretty(&now).expect("JSON"));
        }
    }
}

fn images(pods: &[Pod]) -> Vec<String> {
    pods.iter().filter_map(|p| p.spec.as_ref()?.containers[0].image.clone()).collect()
}

fn deployment(replicas: i32, image: &str) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "c", "image": image }] },
            },
        },
    })
}

#[tokio::test]
async fn a_deployment_lives_and_goes() {
    let world = world().await;
    world.wait::<ServiceAccount>("the default account", "default", |all| all.len() == 1).await;
    world
        .create::<Service>(json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
        }))
        .await;
    world.create::<Deployment>(deployment(3, "v1")).await;
    let complete = |replicas: i32, revision: &'static str| {
        move |all: &[Deployment]| {
            let status = all[0].status.clone().unwrap_or_default();
            let progressing = status.conditions.iter().flatten().find(|c| c.type_ == "Progressing");
            let reason = progressing.and_then(|c| c.reason.as_deref());
            status.available_replicas == Some(replicas)
                && status.updated_replicas == Some(replicas)
                && status.replicas == Some(replicas)
                && status.observed_generation == all[0].metadata.generation
                && reason == Some("NewReplicaSetAvailable")
                && object::annotation(&all[0], "deployment.kubernetes.io/revision") == Some(revision)
        }
    };
    world.wait::<Deployment>("the first rollout", "default", complete(3, "1")).await;
    world
        .wait::<EndpointSlice>("three endpoints", "default", |all| {
            all.iter()
                .filter(|s| object::label(*s, "kubernetes.io/service-name") == Some("web"))
                .any(|s| s.endpoints.len() == 3)
        })
        .await;
    let second = json!({ "spec": { "replicas": 5, "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    world.client.patch::<Deployment>("default", "web", &Patch::Strategic(second)).await.expect("patched");
    world.wait::<Deployment>("the second rollout", "default", complete(5, "2")).await;
    world.wait::<Pod>("only new pods", "default", |all| images(all) == ["v2"; 5]).await;
    let sets = world.client.list::<ReplicaSet>("default", &ListParams::default()).await.expect("a list").items;
    assert_eq!(sets.len(), 2, "the old one is kept for a rollback");
    let foreground = DeleteOptions { propagation_policy: Some(Propagation::Foreground), ..DeleteOptions::default() };
    world.client.delete::<Deployment>("default", "web", &foreground).await.expect("deleted");
    world.wait::<Deployment>("the deployment's end", "default", <[Deployment]>::is_empty).await;
    let left = world.client.list::<Pod>("default", &ListParams::default()).await.expect("a list").items;
    assert_eq!(images(&left), Vec::<String>::new(), "it waited for its pods");
}

#[tokio::test]
async fn a_namespace_comes_and_goes() {
    let world = world().await;
    world.create::<Namespace>(json!({ "metadata": { "name": "x" } })).await;
    world.wait::<ConfigMap>("the root certificate", "x", |all| all.len() == 1).await;
    let pod = json!({
        "metadata": { "name": "p", "namespace": "x" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] },
    });
    world.create::<Pod>(pod).await;
    world.client.delete::<Namespace>("", "x", &DeleteOptions::default()).await.expect("deleted");
    world.wait::<Namespace>("the namespace's end", "", |all| all.iter().all(|n| object::name(n) != "x")).await;
    let left = world.client.list::<ConfigMap>("x", &ListParams::default()).await.expect("a list").items;
    assert!(left.is_empty());
}

#[tokio::test]
async fn nodes_get_addresses_and_orphaned_objects_go() {
    let world = world().await;
    for name in ["a", "b"] {
        world.create::<Node>(json!({ "metadata": { "name": name } })).await;
        world
            .create::<Lease>(json!({ "metadata": { "name": name, "namespace": "kube-node-lease" }, "spec": {} }))
            .await;
    }
    world
        .wait::<Node>("two ranges", "", |all| {
            let mut ranges: Vec<_> = all.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
            ranges.sort();
            ranges == ["10.244.0.0/24", "10.244.1.0/24"]
        })
        .await;
    world
        .create::<ConfigMap>(json!({ "metadata": {
            "name": "orphan", "namespace": "default",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "none" }],
        }}))
        .await;
    world.wait::<ConfigMap>("the orphan's end", "default", |all| all.iter().all(|c| object::name(c) != "orphan")).await;
}
