//! Who answers for a service: from its selector's pods to `Endpoints` and `EndpointSlice`s.
//!
//! - [`whole`]: one `Endpoints` object per service
//! - [`slices`]: endpoint slices, with as few changes as will do
//!
//! Services without a selector, and those that are mere names for something outside, are left to whoever made them.

pub mod slices;
pub mod whole;

use client::{object, pod::Pod};
use k8s_openapi::{
    api::core::v1::{ObjectReference, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::selector::{Labels, Selector};

const HEADLESS: &str = "service.kubernetes.io/headless";

/// What selects a service's pods, if pods answer for it at all.
pub fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Selector::map(selector))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

fn service_ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default()
}

/// The service's labels with those that say what the object is.
fn labels(service: &Service, own: &[(&str, &str)]) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.extend(own.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    labels
}

/// The pod's addresses of one family, as `status` shows them.
fn address(pod: &Pod, family: Family) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed.chain(status.pod_ip.as_deref()).find(|ip| !ip.is_empty() && Family::of(ip) == family)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &str) -> Family {
        if address.contains(':') { Family::V6 } else { Family::V4 }
    }

    fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The families that the service was given; one of its only address where the field is not set.
    fn all(service: &Service) -> Vec<Family> {
        let spec = service.spec.as_ref();
        let named: Vec<Family> = spec
            .and_then(|s| s.ip_families.as_ref())
            .into_iter()
            .flatten()
            .map(|f| if f == "IPv6" { Family::V6 } else { Family::V4 })
            .collect();
        if !named.is_empty() {
            return named;
        }
        let address = spec.and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
        vec![Family::of(address)]
    }
}

/// The number that a service port means on this pod; none where the pod has no port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            // An init container that keeps running beside the others may own the port as well.
            let stays = |c: &&client::pod::Container| c.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(stays);
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let mut named = ports.filter(|p| p.name.as_ref() == Some(name));
            named.find(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol).map(|p| p.container_port)
        }
    }
}

/// The pod's own name in the service's domain, if it asked for one.
fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.as_deref() == Some(object::name(service))
        && object::namespace(pod) == object::namespace(service);
    spec.hostname.clone().filter(|h| same && !h.is_empty())
}

fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Whether a pod's change can matter to a service at all: all else in its status is noise.
pub fn differs(old: &Pod, new: &Pod) -> bool {
    let ips = |p: &Pod| p.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone()));
    let state = |p: &Pod| (crate::pod::is_ready(p), crate::pod::is_finished(p), object::is_deleting(p));
    state(old) != state(new)
        || ips(old) != ips(new)
        || old.metadata.labels != new.metadata.labels
        || crate::pod::node(old) != crate::pod::node(new)
        || old.metadata.uid != new.metadata.uid
}

#[cfg(test)]
mod tests {
    use client::pod::Container;
    use k8s_openapi::api::core::v1::ContainerPort;

    use super::*;
    use crate::testing::running;

    #[test]
    fn target_ports() {
        let mut pod = running("a", "n", None);
        let port = |name: &str, number: i32, protocol: &str| ContainerPort {
            name: Some(name.into()),
            container_port: number,
            protocol: Some(protocol.into()),
            ..ContainerPort::default()
        };
        pod.spec.as_mut().expect("a spec").containers = vec![Container {
            ports: Some(vec![port("dns", 5353, "UDP"), port("dns", 5354, "TCP")]),
            ..Container::default()
        }];
        let cases = [
            (None, "TCP", Some(80)),
            (Some(IntOrString::Int(8080)), "TCP", Some(8080)),
            (Some(IntOrString::String("dns".into())), "UDP", Some(5353)),
            (Some(IntOrString::String("dns".into())), "TCP", Some(5354)),
            (Some(IntOrString::String("none".into())), "TCP", None),
        ];
        for (target, protocol, wanted) in cases {
            let port = ServicePort {
                port: 80,
                protocol: Some(protocol.into()),
                target_port: target.clone(),
                ..ServicePort::default()
            };
            assert_eq!(target_port(&port, &pod), wanted, "{target:?} {protocol}");
        }
    }
}
