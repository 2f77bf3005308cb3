//! The node's lease: the sign of life by which the node controller knows that the node is there.

use std::{sync::Arc, time::Duration};

use client::{Cache, Client, Patch, object};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};

const NAMESPACE: &str = "kube-node-lease";
const DURATION_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// A failed renewal is repeated soon, so that one lost packet does not cost a quarter of the lease.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LAST: Duration = Duration::from_secs(7);

/// Renews until dropped.
pub async fn run(client: Client, node: String, nodes: Arc<Cache<Node>>) {
    let mut exists = false;
    let mut pause = RETRY_FIRST;
    loop {
        match renew(&client, &node, &nodes, exists).await {
            Ok(()) => {
                (exists, pause) = (true, RETRY_FIRST);
                tokio::time::sleep(RENEW).await;
            }
            Err(error) => {
                if error.is_not_found() {
                    exists = false;
                }
                tracing::debug!(%error, "the node's lease could not be renewed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LAST);
            }
        }
    }
}

async fn renew(client: &Client, node: &str, nodes: &Cache<Node>, exists: bool) -> Result<(), client::Error> {
    let now = MicroTime(Timestamp::now());
    if !exists {
        match client.create(&lease(node, nodes, now.clone())).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    let spec = serde_json::json!({
        "holderIdentity": node, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now,
    });
    client.patch::<Lease>(NAMESPACE, node, &Patch::Merge(serde_json::json!({"spec": spec}))).await.map(drop)
}

fn lease(node: &str, nodes: &Cache<Node>, now: MicroTime) -> Lease {
    let owner = nodes.get("", node).map(|found| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: object::uid(&*found).to_owned(),
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}
