//! The `Endpoints` object of a service: the older form, one object with all addresses.

use std::{collections::BTreeMap, sync::Arc};

use client::{DeleteOptions, object, pod::Pod};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{Family, address, hostname, labels, publishes_unready, selector, service_ports, target, target_port};
use crate::{
    plan::{Plan, Step, Target, Write},
    pod,
};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Readers of this object take it whole, at every change: beyond this many addresses only slices tell everything.
const MAX_ADDRESSES: usize = 1000;

pub struct Input<'a> {
    /// None when the service is gone.
    pub service: Option<&'a Service>,
    pub pods: &'a [Arc<Pod>],
    pub current: Option<&'a Endpoints>,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let Some(service) = input.service else {
        // What somebody made by hand for a service still to come is theirs.
        let ours = input.current.filter(|e| object::label(*e, MANAGED_BY.0) == Some(MANAGED_BY.1));
        let gone = ours.map(|e| Write::delete(Target::of(e), DeleteOptions::uid(object::uid(e))));
        return Plan::nothing().then(Step::together(gone.into_iter().collect()));
    };
    let Some(selector) = selector(service) else { return Plan::nothing() };
    if object::is_deleting(service) {
        return Plan::nothing();
    }
    let pods = input.pods.iter().filter(|p| selector.matches(p.metadata.labels.as_ref()));
    let (subsets, over) = subsets(service, pods.map(|p| &**p));
    let wanted_labels = labels(service, &[MANAGED_BY]);
    let write = match input.current {
        None => Some(Write::create(&Endpoints {
            metadata: ObjectMeta {
                name: service.metadata.name.clone(),
                namespace: service.metadata.namespace.clone(),
                labels: Some(wanted_labels),
                annotations: over.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
                ..ObjectMeta::default()
            },
            subsets,
        })),
        Some(current) => {
            let mut wanted = current.clone();
            wanted.metadata.labels = Some(wanted_labels);
            wanted.subsets = subsets;
            if over {
                let annotations = wanted.metadata.annotations.get_or_insert_default();
                annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
            } else if let Some(annotations) = &mut wanted.metadata.annotations {
                annotations.remove(OVER_CAPACITY);
            }
            let empty = |e: &Endpoints| e.subsets.as_ref().is_none_or(Vec::is_empty);
            let same = (wanted.subsets == current.subsets || empty(&wanted) && empty(current))
                && wanted.metadata == current.metadata;
            (!same).then(|| Write::replace(&wanted))
        }
    };
    Plan::nothing().then(Step::together(write.into_iter().collect()))
}

type Ports = Vec<(Option<String>, i32, String, Option<String>)>;

/// Pods that resolve the service's ports alike share a subset. Says also whether some had to be left out.
fn subsets<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> (Option<Vec<EndpointSubset>>, bool) {
    let family = Family::all(service).first().copied().unwrap_or(Family::V4);
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods {
        let leaving = object::is_deleting(pod) && !publishes_unready(service);
        let Some(ip) = address(pod, family).filter(|_| !leaving && !pod::is_finished(pod)) else { continue };
        let ports = ports(service, pod);
        // A pod without any of the ports answers for nothing; a service without ports is a list of addresses.
        if ports.is_empty() && !service_ports(service).is_empty() {
            continue;
        }
        let entry = EndpointAddress {
            ip: ip.to_owned(),
            node_name: Some(pod::node(pod).to_owned()).filter(|n| !n.is_empty()),
            hostname: hostname(pod, service),
            target_ref: Some(target(pod)),
        };
        let (ready, unready) = groups.entry(ports).or_default();
        if pod::is_ready(pod) || publishes_unready(service) { ready.push(entry) } else { unready.push(entry) }
    }
    let total: usize = groups.values().map(|(ready, unready)| ready.len() + unready.len()).sum();
    let mut room = MAX_ADDRESSES;
    let mut subsets = Vec::new();
    for (ports, (ready, unready)) in groups {
        let (ready, unready) = (take(ready, &mut room), take(unready, &mut room));
        if ready.is_some() || unready.is_some() {
            subsets.push(EndpointSubset { addresses: ready, not_ready_addresses: unready, ports: wire(ports) });
        }
    }
    ((!subsets.is_empty()).then_some(subsets), total > MAX_ADDRESSES)
}

fn take(mut addresses: Vec<EndpointAddress>, room: &mut usize) -> Option<Vec<EndpointAddress>> {
    addresses.sort_by(|a, b| a.ip.cmp(&b.ip).then_with(|| uid(a).cmp(&uid(b))));
    addresses.truncate(*room);
    *room -= addresses.len();
    (!addresses.is_empty()).then_some(addresses)
}

fn uid(address: &EndpointAddress) -> Option<&str> {
    address.target_ref.as_ref()?.uid.as_deref()
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let mut ports: Ports = service_ports(service)
        .iter()
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((p.name.clone(), target_port(p, pod)?, protocol, p.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

fn wire(ports: Ports) -> Option<Vec<EndpointPort>> {
    let ports = ports.into_iter().map(|(name, port, protocol, app_protocol)| EndpointPort {
        name,
        port,
        protocol: Some(protocol),
        app_protocol,
    });
    Some(ports.collect::<Vec<_>>()).filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
    use serde_json::json;

    use super::*;
    use crate::{
        plan::{Action, value},
        testing::{labels as pairs, meta, running, time},
    };

    pub fn service() -> Service {
        Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec {
                selector: Some(pairs(&[("app", "web")])),
                cluster_ip: Some("10.96.0.7".into()),
                ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    fn web(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
        let mut pod = running(name, "n", ready.then_some(1));
        pod.metadata.labels = Some(pairs(&[("app", "web")]));
        pod.status.as_mut().expect("a status").pod_ip = Some(ip.into());
        Arc::new(pod)
    }

    fn made(plan: &Plan) -> Endpoints {
        let object = match &plan.steps[0].writes[0].action {
            Action::Create { object, .. } | Action::Replace { object, .. } => object.clone(),
            other => panic!("an object: {other:?}"),
        };
        serde_json::from_value(object).expect("endpoints")
    }

    #[test]
    fn ready_and_unready_stand_apart() {
        let mut leaving = (*web("d", "10.0.0.4", true)).clone();
        leaving.metadata.deletion_timestamp = Some(time(1));
        let pods =
            [web("b", "10.0.0.2", true), web("a", "10.0.0.1", true), web("c", "10.0.0.3", false), Arc::new(leaving)];
        let service = service();
        let plan = plan(&Input { service: Some(&service), pods: &pods, current: None });
        let made = made(&plan);
        let subset = value(&made.subsets.as_ref().expect("subsets")[0]);
        let ips = |key: &str| -> Vec<String> {
            subset[key].as_array().expect("a list").iter().map(|a| a["ip"].as_str().expect("an ip").into()).collect()
        };
        assert_eq!(ips("addresses"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips("notReadyAddresses"), ["10.0.0.3"]);
        assert_eq!(subset["ports"], json!([{"port": 80, "protocol": "TCP"}]));
        assert_eq!(made.metadata.labels, Some(pairs(&[MANAGED_BY])));
        let again = super::plan(&Input { service: Some(&service), pods: &pods, current: Some(&made) });
        assert_eq!(again, Plan::nothing());
    }

    #[test]
    fn no_selector_no_business() {
        let mut service = service();
        service.spec.as_mut().expect("a spec").selector = None;
        assert_eq!(plan(&Input { service: Some(&service), pods: &[], current: None }), Plan::nothing());
        let by_hand = Endpoints { metadata: meta("web"), subsets: None };
        assert_eq!(plan(&Input { service: None, pods: &[], current: Some(&by_hand) }), Plan::nothing());
        let mut ours = by_hand;
        ours.metadata.labels = Some(pairs(&[MANAGED_BY]));
        assert_eq!(plan(&Input { service: None, pods: &[], current: Some(&ours) }).steps.len(), 1);
    }

    #[test]
    fn too_many_are_cut_and_said_so() {
        let pods: Vec<Arc<Pod>> =
            (0..1200).map(|i| web(&format!("p{i}"), &format!("10.1.{}.{}", i / 250, i % 250), true)).collect();
        let service = service();
        let made = made(&plan(&Input { service: Some(&service), pods: &pods, current: None }));
        let subsets = made.subsets.expect("subsets");
        assert_eq!(subsets[0].addresses.as_ref().map(Vec::len), Some(MAX_ADDRESSES));
        assert_eq!(made.metadata.annotations, Some(pairs(&[(OVER_CAPACITY, "truncated")])));
    }
}
