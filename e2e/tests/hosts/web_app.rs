//! The manifests of the user's documents: pods on two nodes find each other, by address and by name.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use e2e::{Cluster, wait::seconds};
use serde_json::Value;

const WEB_APP: &str = include_str!("../../manifests/web-app.yaml");
const HELLO_WORLD: &str = include_str!("../../manifests/hello-world.yaml");
const REPLICATION_CONTROLLER: &str = include_str!("../../manifests/replication-controller.yaml");

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[test]
fn the_documents_manifests_run() -> Result<()> {
    let cluster = Cluster::start("web", &["a", "b disk=ssd"])?;
    web_app(&cluster)?;
    hello_world(&cluster)?;
    replication_controller(&cluster)
}

/// Two pods on two nodes; each way to reach the other one works, and it sees the caller's own address.
fn web_app(cluster: &Cluster) -> Result<()> {
    cluster.apply(WEB_APP)?;
    let pods = cluster.pods_ready("app=web-app", 2, seconds(60))?;
    let nodes: BTreeSet<&str> = pods.iter().map(|p| text(p, "/spec/nodeName")).collect();
    ensure!(nodes == BTreeSet::from(["a", "b"]), "on {nodes:?}");
    let names: Vec<&str> = pods.iter().map(|p| text(p, "/metadata/name")).collect();
    let addresses: Vec<&str> = pods.iter().map(|p| text(p, "/status/podIP")).collect();
    ensure!(addresses[0] != addresses[1] && addresses.iter().all(|a| a.starts_with("10.244.")), "{addresses:?}");

    let service = cluster.get("service web-app-service")?;
    let cluster_ip = text(&service[0], "/spec/clusterIP").to_owned();
    let curl = |from: &str, url: &str| cluster.kubectl(&["exec", from, "--", "curl", "-sS", "-m", "3", url]);
    let answer = curl(names[0], &format!("http://{}/", addresses[1]))?;
    ensure!(answer == format!("{} saw {}\n", names[1], addresses[0]), "{answer}");
    for url in [format!("http://{cluster_ip}/"), "http://web-app-service.default.svc.cluster.local/".to_owned()] {
        let mut answered = BTreeSet::new();
        cluster.wait(&format!("both pods behind {url}"), seconds(20), || {
            let answer = curl(names[0], &url)?;
            let (who, saw) = answer.trim().split_once(" saw ").unwrap_or_default();
            if who == names[1] {
                ensure!(saw == addresses[0], "the other pod sees {saw}");
            }
            answered.insert(who.to_owned());
            Ok((answered.len() == 2).then_some(()))
        })?;
    }
    Ok(())
}

/// The node port answers on every node, to a host that is no node.
fn hello_world(cluster: &Cluster) -> Result<()> {
    cluster.apply(HELLO_WORLD)?;
    cluster.pods_ready("app=hello-world", 1, seconds(60))?;
    for worker in &cluster.workers {
        let url = format!("http://{}:30090/", worker.host.address);
        let answer = cluster.wait(&format!("answer from {url}"), seconds(20), || cluster.x.curl(&url).map(Some))?;
        ensure!(answer == "hello from the demo\n", "{answer}");
    }
    Ok(())
}

/// Three pods of two containers where the label is, and none once no node has it.
fn replication_controller(cluster: &Cluster) -> Result<()> {
    cluster.apply(REPLICATION_CONTROLLER)?;
    let pods = cluster.pods_ready("app=shop", 3, seconds(60))?;
    for pod in &pods {
        ensure!(text(pod, "/spec/nodeName") == "b", "{pod}");
        ensure!(pod["status"]["containerStatuses"].as_array().is_some_and(|c| c.len() == 2), "{pod}");
    }
    cluster.wait("the sidecar's word", seconds(20), || {
        let log = cluster.kubectl(&["logs", text(&pods[0], "/metadata/name"), "-c", "sidecar"])?;
        Ok(log.contains("ok").then_some(()))
    })?;
    cluster.kubectl(&["label", "node", "b", "disk-"])?;
    cluster.kubectl(&["delete", "pods", "-l", "app=shop"])?;
    cluster.wait("pods that wait", seconds(30), || {
        let pods = cluster.get("pods -l app=shop")?;
        let waiting = pods.iter().all(|p| text(p, "/spec/nodeName").is_empty());
        Ok((pods.len() == 3 && waiting).then_some(()))
    })?;
    cluster.wait("the reason", seconds(20), || {
        let described = cluster.kubectl(&["describe", "pods", "-l", "app=shop"])?;
        Ok(described.contains("didn't match Pod's node affinity/selector").then_some(()))
    })?;
    cluster.kubectl(&["label", "node", "a", "disk=ssd"])?;
    cluster.pods_ready("app=shop", 3, seconds(60)).map(drop)
}
