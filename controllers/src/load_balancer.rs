//! The part of a cloud: a service of type `LoadBalancer` is reached at the nodes' own addresses.

use std::sync::Arc;

use client::object;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, Service};
use serde_json::{Value, json};

use crate::{
    node,
    plan::{Face, Plan, Step, Target, Write, value},
};

const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    // A class names somebody else who does it.
    spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
}

/// The addresses that services get, in a stable order.
pub fn addresses(nodes: &[Arc<Node>]) -> Vec<String> {
    let usable = nodes.iter().filter(|n| node::readiness(n) == "True" && object::label(&***n, EXCLUDED).is_none());
    let listed = usable.flat_map(|n| n.status.iter().flat_map(|s| s.addresses.iter().flatten()));
    let mut addresses: Vec<String> = listed.filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

pub fn plan(service: &Service, addresses: &[String]) -> Plan {
    let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_ref());
    let had = service.status.as_ref().and_then(|s| s.load_balancer.clone()).unwrap_or_default();
    let had_any = had.ingress.as_ref().is_some_and(|i| !i.is_empty());
    let wanted: Option<Vec<LoadBalancerIngress>> = if is_ours(service) && !object::is_deleting(service) {
        let ingress = addresses.iter().map(|ip| LoadBalancerIngress {
            ip: Some(ip.clone()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        });
        Some(ingress.collect())
    } else if class.is_none() && had_any {
        None
    } else {
        return Plan::nothing();
    };
    let wanted = LoadBalancerStatus { ingress: wanted.filter(|i| !i.is_empty()) };
    if wanted.ingress == had.ingress.filter(|i| !i.is_empty()) {
        return Plan::nothing();
    }
    let ingress = wanted.ingress.as_ref().map_or(Value::Null, value);
    let patch = json!({
        "metadata": { "resourceVersion": service.metadata.resource_version },
        "status": { "loadBalancer": { "ingress": ingress } },
    });
    Plan::nothing().then(Step::together(vec![Write::merge(Target::of(service), Face::Status, patch)]))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, NodeStatus, ServiceSpec, ServiceStatus};

    use super::*;
    use crate::{plan::Action, testing::meta};

    fn service(kind: &str, ingress: &[&str]) -> Service {
        let ingress = ingress.iter().map(|ip| LoadBalancerIngress {
            ip: Some((*ip).into()),
            ip_mode: Some("VIP".into()),
            ..LoadBalancerIngress::default()
        });
        Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec { type_: Some(kind.into()), ..ServiceSpec::default() }),
            status: Some(ServiceStatus {
                load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress.collect()) }),
                ..ServiceStatus::default()
            }),
        }
    }

    #[test]
    fn addresses_come_and_go() {
        let nodes = ["10.0.0.2", "10.0.0.1"].map(str::to_owned);
        let cases: [(Service, &[String], Option<Value>); 5] = [
            (service("LoadBalancer", &[]), &nodes[..1], Some(json!([{"ip": "10.0.0.2", "ipMode": "VIP"}]))),
            (service("LoadBalancer", &["10.0.0.2"]), &nodes[..1], None),
            (service("LoadBalancer", &["10.0.0.2"]), &[], Some(Value::Null)),
            (service("ClusterIP", &["10.0.0.2"]), &nodes, Some(Value::Null)),
            (service("ClusterIP", &[]), &nodes, None),
        ];
        for (i, (service, nodes, wanted)) in cases.into_iter().enumerate() {
            let plan = plan(&service, nodes);
            let patched = plan.writes().next().map(|w| match &w.action {
                Action::Merge { patch, .. } => patch["status"]["loadBalancer"]["ingress"].clone(),
                other => panic!("a patch: {other:?}"),
            });
            assert_eq!(patched, wanted, "case {i}");
        }
    }

    #[test]
    fn only_ready_nodes_serve() {
        let node = |name: &str, ip: &str, ready: &str| {
            let ready = NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
            let address = NodeAddress { type_: "InternalIP".into(), address: ip.into() };
            let (conditions, addresses) = (Some(vec![ready]), Some(vec![address]));
            let status = NodeStatus { conditions, addresses, ..NodeStatus::default() };
            Arc::new(Node { metadata: meta(name), spec: None, status: Some(status) })
        };
        let nodes = [node("b", "10.0.0.2", "True"), node("a", "10.0.0.1", "True"), node("c", "10.0.0.3", "Unknown")];
        assert_eq!(addresses(&nodes), ["10.0.0.1", "10.0.0.2"]);
    }
}
