//! How a machine becomes a node: it shows the join token and a key, and gets a certificate for its name. A node
//! that has a certificate gets the next one by it, and needs the token no more.

use std::net::IpAddr;

use api::{
    meta, names,
    registry::by_plural,
    status::{Reason, Status},
};
use axum::body::Body;
use http::{Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    App,
    authenticate::{Identity, bearer},
    body, clock,
    negotiate::Form,
    present,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    node_name: String,
    #[serde(rename = "nodeIP")]
    node_ip: IpAddr,
    csr: String,
}

pub async fn join(app: &App, identity: &Identity, request: Request<Body>) -> Result<Response<Body>, Status> {
    let wanted = app.pki.join_token.to_string();
    let has_token = bearer(request.headers()).is_some_and(|given| same_secret(given, &wanted));
    if !has_token && identity.node().is_none() {
        let why = "the join token is wrong: take the one that `minik8s token` prints on the server";
        return Err(Status::new(Reason::Unauthorized, why));
    }
    let bytes = body::read(request.into_body()).await?;
    let application: Application = serde_json::from_slice(&bytes)
        .map_err(|e| Status::bad_request(format!("the request to join cannot be read: {e}")))?;
    let Application { node_name, node_ip, csr } = &application;
    if !has_token && identity.node() != Some(node_name) {
        let why = format!("{:?} may renew its own certificate, but not have one for {node_name:?}", identity.user);
        return Err(Status::new(Reason::Forbidden, why));
    }
    if let Some(complaint) = names::dns1123_subdomain(node_name).into_iter().next() {
        return Err(Status::bad_request(format!(
            "{node_name:?} cannot be a node's name: {complaint}; use --node-name"
        )));
    }
    let nodes = by_plural("", "v1", "nodes").ok_or_else(Status::no_such_resource)?;
    if let Some(other) = app.find(nodes, "", node_name)?.as_ref().and_then(|node| alive_elsewhere(node, *node_ip)) {
        let why = format!("a node of this name is alive at {other}: choose another with --node-name, or stop that one");
        return Err(Status::conflict_because(nodes, node_name, &why));
    }
    let certificate = app
        .pki
        .sign_node(csr, node_name, *node_ip, clock::seconds())
        .map_err(|e| Status::bad_request(format!("the certificate request cannot be signed: {e}")))?;
    tracing::info!(node = node_name, address = %node_ip, "signed a node's certificate");
    let answer = json!({
        "certificate": certificate,
        "ca": app.pki.ca_pem,
        "clusterCIDR": app.network.cluster_cidr.to_string(),
        "serviceCIDR": app.ranges.services.to_string(),
        "clusterDNS": app.ranges.dns.to_string(),
    });
    Ok(present::value(StatusCode::OK, Form::JSON, &answer))
}

/// Compares digests, whose common prefix says nothing about the texts: how long it takes betrays nothing.
pub fn same_secret(given: &str, wanted: &str) -> bool {
    Sha256::digest(given.as_bytes()) == Sha256::digest(wanted.as_bytes())
}

/// Where a node of this name runs that is ready and not the one that asks.
fn alive_elsewhere(node: &Value, ip: IpAddr) -> Option<String> {
    let list = |field: &str| node["status"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = list("conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let address = list("addresses").iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?;
    let leaving = meta::deletion_timestamp(node).is_some();
    (ready && !leaving && address.parse() != Ok(ip)).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_compare() {
        assert!(same_secret("m8s1.a.b", "m8s1.a.b"));
        assert!(!same_secret("m8s1.a.b", "m8s1.a.c"));
        assert!(!same_secret("", "m8s1.a.c"));
    }

    #[test]
    fn a_name_belongs_to_one_living_node() {
        let node = |ready: &str| json!({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}]}});
        assert_eq!(alive_elsewhere(&node("True"), "10.0.0.3".parse().unwrap()).as_deref(), Some("10.0.0.2"));
        assert_eq!(alive_elsewhere(&node("True"), "10.0.0.2".parse().unwrap()), None);
        assert_eq!(alive_elsewhere(&node("Unknown"), "10.0.0.3".parse().unwrap()), None);
    }
}
