//! All controllers together against a server in memory: what one writes, the next acts upon.

use std::time::Duration;

use client::{Client, DeleteOptions, Patch, Propagation, Update, object};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, ReplicaSet},
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Namespace, Node, NodeCondition, NodeStatus, Pod, Service, ServicePort, ServiceSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, MicroTime, ObjectMeta},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    Config,
    fake::{Fake, State},
    testing::{at, labels, running, template},
};

/// Short, so that a test need not wait; long enough for a busy machine to renew within.
const GRACE: Duration = Duration::from_millis(1500);

struct World {
    fake: Fake,
    client: Client,
    tasks: JoinSet<()>,
}

/// The controllers, and something that makes every pod ready as soon as it is there.
fn world() -> World {
    let fake = Fake::default();
    let client = fake.client();
    let mut tasks = JoinSet::new();
    let config = Config {
        cluster_cidr: "10.244.0.0/16".parse().expect("a range"),
        root_ca_pem: "PEM".into(),
        node_monitor_grace: GRACE,
    };
    tasks.spawn(crate::run(fake.client(), config));
    tasks.spawn(kubelet(fake.client()));
    World { fake, client, tasks }
}

async fn kubelet(client: Client) {
    let pods = client.cache::<Pod>();
    let mut changes = pods.subscribe();
    while let Some(update) = changes.next().await {
        let Update::Change(change) = update else { continue };
        if let (Some(pod), None) = (&change.new, &change.old) {
            let count = object::name(&**pod).len() * 7 + pods.len();
            let patch = json!({ "status": {
                "phase": "Running", "podIP": format!("10.244.0.{}", count % 250 + 1),
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            }});
            let key = &change.key;
            // A pod that is gone again needs no status.
            let _ = client.patch_status::<Pod>(&key.namespace, &key.name, &Patch::Merge(patch)).await;
        }
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

fn web(replicas: i32) -> Deployment {
    Deployment {
        metadata: named("web"),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), match_expressions: None },
            template: template("web", "v1"),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn images(state: &State) -> Vec<&str> {
    let pods = state.all("pods").into_iter().filter_map(|p| p["spec"]["containers"][0]["image"].as_str());
    let mut images: Vec<&str> = pods.collect();
    images.sort_unstable();
    images
}

fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let all = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|c| c["type"] == kind).unwrap_or(&Value::Null)
}

fn endpoints(state: &State) -> usize {
    state.all("endpointslices").iter().filter_map(|s| s["endpoints"].as_array()).map(Vec::len).sum()
}

#[tokio::test]
async fn a_deployment_rolls_out_scales_and_goes() {
    let World { fake, client, tasks: _tasks } = world();
    let service = Service {
        metadata: named("web"),
        spec: Some(ServiceSpec {
            selector: Some(labels(&[("app", "web")])),
            ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        status: None,
    };
    client.create(&service).await.expect("a service");
    client.create(&web(3)).await.expect("a deployment");
    fake.wait("a complete rollout", |s| {
        images(s) == ["v1"; 3]
            && s.all("deployments")[0]["status"]["availableReplicas"] == 3
            && condition(s.all("deployments")[0], "Progressing")["reason"] == "NewReplicaSetAvailable"
    })
    .await;
    fake.wait("endpoints", |s| {
        endpoints(s) == 3 && s.all("endpoints")[0]["subsets"][0]["addresses"].as_array().is_some_and(|a| a.len() == 3)
    })
    .await;
    fake.state().conflicts = 5;
    let patch = json!({ "spec": { "replicas": 5, "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    client.patch::<Deployment>("default", "web", &Patch::Merge(patch.clone())).await.expect_err("a conflict");
    fake.state().conflicts = 3;
    while client.patch::<Deployment>("default", "web", &Patch::Merge(patch.clone())).await.is_err() {}
    fake.wait("the second rollout", |s| {
        images(s) == ["v2"; 5]
            && s.all("deployments")[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
            && s.all("deployments")[0]["status"]["updatedReplicas"] == 5
            && s.all("deployments")[0]["status"]["replicas"] == 5
    })
    .await;
    client.delete::<Deployment>("default", "web", &DeleteOptions::default()).await.expect("deleted");
    fake.wait("the end of all that was owned", |s| s.all("replicasets").is_empty() && s.all("pods").is_empty()).await;
    fake.wait("no endpoints", |s| endpoints(s) == 0 && s.all("endpointslices").len() == 1).await;
    let told: Vec<String> =
        fake.state().all("events").iter().filter_map(|e| e["reason"].as_str().map(str::to_owned)).collect();
    for reason in ["ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete"] {
        assert!(told.iter().any(|r| r == reason), "{reason} in {told:?}");
    }
}

#[tokio::test]
async fn foreground_goes_bottom_up_and_orphans_stay() {
    let World { fake, client, tasks: _tasks } = world();
    client.create(&web(2)).await.expect("a deployment");
    fake.wait("two pods", |s| images(s).len() == 2).await;
    let with = |policy| DeleteOptions { propagation_policy: Some(policy), ..DeleteOptions::default() };
    let set = fake.state().all("replicasets")[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    client.delete::<Deployment>("default", "web", &with(Propagation::Orphan)).await.expect("deleted");
    fake.wait("an orphaned set", |s| {
        s.all("deployments").is_empty() && s.all("replicasets")[0]["metadata"]["ownerReferences"] == json!([])
    })
    .await;
    assert_eq!(images(&fake.state()).len(), 2);
    client.delete::<ReplicaSet>("default", &set, &with(Propagation::Foreground)).await.expect("deleted");
    fake.wait("the end of the set", |s| s.all("replicasets").is_empty()).await;
    assert!(images(&fake.state()).is_empty(), "the set waits for its pods");
}

#[tokio::test]
async fn a_namespace_is_furnished_and_emptied() {
    let World { fake, client, tasks: _tasks } = world();
    let metadata = ObjectMeta { name: Some("x".into()), ..ObjectMeta::default() };
    client.create(&Namespace { metadata, ..Namespace::default() }).await.expect("a namespace");
    fake.wait("an account and a certificate", |s| {
        s.all("serviceaccounts").len() == 1 && s.all("configmaps").first().is_some_and(|c| c["data"]["ca.crt"] == "PEM")
    })
    .await;
    let mut pod = running("p", "nowhere", None);
    pod.metadata = ObjectMeta { name: Some("p".into()), namespace: Some("x".into()), ..ObjectMeta::default() };
    client.create(&pod).await.expect("a pod");
    client.delete::<Namespace>("", "x", &DeleteOptions::default()).await.expect("deleted");
    fake.wait("the end of the namespace", |s| {
        ["namespaces", "pods", "serviceaccounts", "configmaps"].iter().all(|kind| s.all(kind).is_empty())
    })
    .await;
}

#[tokio::test]
async fn a_silent_node_loses_its_pods_and_is_healed_when_it_speaks() {
    let World { fake, client, mut tasks } = world();
    for name in ["a", "b"] {
        let ready = NodeCondition { type_: "Ready".into(), status: "True".into(), ..NodeCondition::default() };
        let node = Node {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            spec: None,
            status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
        };
        client.create(&node).await.expect("a node");
        let metadata = ObjectMeta { namespace: Some("kube-node-lease".into()), ..named(name) };
        client.create(&Lease { metadata, spec: Some(LeaseSpec::default()) }).await.expect("a lease");
    }
    fake.wait("ranges", |s| {
        let ranges: Vec<&Value> = s.all("nodes").iter().map(|n| &n["spec"]["podCIDR"]).collect();
        ranges.iter().all(|r| r.is_string()) && ranges[0] != ranges[1]
    })
    .await;
    let mut pod = running("doomed", "b", Some(1));
    pod.metadata = named("doomed");
    client.create(&pod).await.expect("a pod");
    let renewing = client.clone();
    tasks.spawn(async move {
        for beat in 0.. {
            let spec = json!({ "spec": { "renewTime": MicroTime(at(beat)) } });
            let _ = renewing.patch::<Lease>("kube-node-lease", "a", &Patch::Merge(spec)).await;
            tokio::time::sleep(GRACE / 10).await;
        }
    });
    fake.wait("b given up, and its pod gone", |s| {
        let b = s.all("nodes")[1];
        let keys: Vec<&Value> = b["spec"]["taints"].as_array().into_iter().flatten().map(|t| &t["effect"]).collect();
        condition(b, "Ready")["status"] == "Unknown" && keys == ["NoSchedule", "NoExecute"] && s.all("pods").is_empty()
    })
    .await;
    assert_eq!(condition(fake.state().all("nodes")[0], "Ready")["status"], "True");
    let speaks = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    client.patch_status::<Node>("", "b", &Patch::Merge(speaks)).await.expect("a status");
    fake.wait("b healed", |s| s.all("nodes")[1]["spec"]["taints"].is_null()).await;
}
