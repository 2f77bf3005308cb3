//! Endpoint slices: at most a hundred endpoints each, and an update touches as few slices as will do, as every node
//! reads every change.

use std::{collections::BTreeMap, sync::Arc};

use client::{DeleteOptions, object, pod::Pod};
use k8s_openapi::{
    api::{
        core::v1::Service,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{Family, address, hostname, labels, publishes_unready, selector, service_ports, target, target_port};
use crate::{
    plan::{Plan, Step, Target, Write},
    pod,
    selector::Labels,
};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";

const MAX_ENDPOINTS: usize = 100;

pub struct Input<'a> {
    /// None when the service is gone.
    pub service: Option<&'a Service>,
    pub pods: &'a [Arc<Pod>],
    /// The slices of this service that bear our mark.
    pub slices: &'a [Arc<EndpointSlice>],
    /// The zone of each node that has one.
    pub zones: &'a BTreeMap<String, String>,
}

pub fn plan(input: &Input<'_>) -> Plan {
    let selected = input.service.filter(|s| !object::is_deleting(*s)).and_then(|s| Some((s, selector(s)?)));
    let Some((service, selector)) = selected else {
        return Plan::nothing().then(Step::together(input.slices.iter().map(|s| delete(s)).collect()));
    };
    let labels = labels(service, &[(SERVICE_NAME, object::name(service)), (MANAGED_BY, MANAGER)]);
    let mut writes = Vec::new();
    let families = Family::all(service);
    for family in &families {
        let matching = input.pods.iter().filter(|p| selector.matches(p.metadata.labels.as_ref()));
        let wanted = wanted(service, *family, matching.map(|p| &**p), input.zones);
        let existing = input.slices.iter().filter(|s| s.address_type == family.name());
        writes.extend(Change { service, family: *family, labels: &labels }.plan(wanted, existing.collect()));
    }
    let other = input.slices.iter().filter(|s| families.iter().all(|f| f.name() != s.address_type));
    writes.extend(other.map(|s| delete(s)));
    Plan::nothing().then(Step::together(writes))
}

fn delete(slice: &EndpointSlice) -> Write {
    Write::delete(Target::of(slice), DeleteOptions::uid(object::uid(slice)))
}

/// Ports as a key: name, number, protocol, application protocol.
type Ports = Vec<(String, Option<i32>, String, Option<String>)>;

/// Endpoints by the pod they stand for, grouped by how they resolve the service's ports.
type Wanted = BTreeMap<Ports, BTreeMap<String, Endpoint>>;

fn wanted<'a>(
    service: &Service,
    family: Family,
    pods: impl Iterator<Item = &'a Pod>,
    zones: &BTreeMap<String, String>,
) -> Wanted {
    let mut wanted = Wanted::new();
    for pod in pods {
        let Some(ip) = address(pod, family).filter(|_| !pod::is_finished(pod)) else { continue };
        let node = pod::node(pod);
        let (serving, terminating) = (pod::is_ready(pod), object::is_deleting(pod));
        let endpoint = Endpoint {
            addresses: vec![ip.to_owned()],
            conditions: Some(EndpointConditions {
                ready: Some(publishes_unready(service) || serving && !terminating),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: hostname(pod, service),
            node_name: Some(node.to_owned()).filter(|n| !n.is_empty()),
            target_ref: Some(target(pod)),
            zone: zones.get(node).cloned(),
            ..Endpoint::default()
        };
        wanted.entry(ports(service, pod)).or_default().insert(object::uid(pod).to_owned(), endpoint);
    }
    wanted
}

fn ports(service: &Service, pod: &Pod) -> Ports {
    let mut ports: Ports = service_ports(service)
        .iter()
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let name = p.name.clone().unwrap_or_default();
            Some((name, Some(target_port(p, pod)?), protocol, p.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    ports
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let ports = slice.ports.iter().flatten().map(|p| {
        let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (p.name.clone().unwrap_or_default(), p.port, protocol, p.app_protocol.clone())
    });
    let mut ports: Ports = ports.collect();
    ports.sort();
    ports
}

/// One service's slices of one address family.
struct Change<'a> {
    service: &'a Service,
    family: Family,
    labels: &'a Labels,
}

/// A slice on its way from what it is to what it shall be.
struct Draft<'a> {
    read: &'a EndpointSlice,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

impl Change<'_> {
    fn plan(&self, mut wanted: Wanted, existing: Vec<&Arc<EndpointSlice>>) -> Vec<Write> {
        let mut by_ports: BTreeMap<Ports, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in existing {
            by_ports.entry(ports_of(slice)).or_default().push(slice);
        }
        // A service without endpoints keeps one empty slice: readers learn that there are none, not that none is known.
        if wanted.is_empty() {
            wanted.insert(Ports::new(), BTreeMap::new());
        }
        let mut writes = Vec::new();
        for (ports, endpoints) in wanted {
            let slices = by_ports.remove(&ports).unwrap_or_default();
            writes.extend(self.one_group(&ports, endpoints, slices));
        }
        writes.extend(by_ports.into_values().flatten().map(delete));
        writes
    }

    fn one_group(
        &self,
        ports: &Ports,
        mut left: BTreeMap<String, Endpoint>,
        slices: Vec<&EndpointSlice>,
    ) -> Vec<Write> {
        let placeholder = left.is_empty();
        let mut drafts: Vec<Draft<'_>> = slices.into_iter().map(|slice| keep(slice, &mut left)).collect();
        self.place(&mut drafts, &mut left);
        // Only one of the slices that have become empty stays, and only where nothing else is left of the service.
        let mut keep_empty = placeholder;
        let mut writes = Vec::new();
        for draft in drafts {
            if draft.endpoints.is_empty() && !std::mem::take(&mut keep_empty) {
                writes.push(delete(draft.read));
                continue;
            }
            if draft.changed || draft.read.metadata.labels.as_ref() != Some(self.labels) {
                let mut slice = draft.read.clone();
                slice.endpoints = draft.endpoints;
                slice.metadata.labels = Some(self.labels.clone());
                writes.push(Write::replace(&slice));
            }
        }
        let mut rest: Vec<Endpoint> = left.into_values().collect();
        while !rest.is_empty() || keep_empty {
            keep_empty = false;
            let more = rest.split_off(rest.len().min(MAX_ENDPOINTS));
            writes.push(Write::create(&self.new_slice(ports, std::mem::replace(&mut rest, more))));
        }
        writes
    }

    /// Finds room for new endpoints: first in slices that change anyway, then, if the rest fits into one, in the fullest
    /// slice that can take it. What is left gets slices of its own.
    fn place(&self, drafts: &mut [Draft<'_>], left: &mut BTreeMap<String, Endpoint>) {
        for draft in drafts.iter_mut().filter(|d| d.changed) {
            fill(draft, left);
        }
        if left.is_empty() || left.len() >= MAX_ENDPOINTS {
            return;
        }
        let need = left.len();
        let fits = drafts.iter_mut().filter(|d| d.endpoints.len() + need <= MAX_ENDPOINTS);
        if let Some(draft) = fits.max_by_key(|d| d.endpoints.len()) {
            fill(draft, left);
        }
    }

    fn new_slice(&self, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let ports = ports.iter().map(|(name, port, protocol, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            port: *port,
            protocol: Some(protocol.clone()),
            app_protocol: app_protocol.clone(),
        });
        EndpointSlice {
            address_type: self.family.name().to_owned(),
            endpoints,
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", object::name(self.service))),
                namespace: self.service.metadata.namespace.clone(),
                labels: Some(self.labels.clone()),
                owner_references: Some(vec![object::controller_reference(self.service)]),
                ..ObjectMeta::default()
            },
            ports: Some(ports.collect()).filter(|p: &Vec<EndpointPort>| !p.is_empty()),
        }
    }
}

/// What of a slice stays: endpoints that are still wanted, each as it is wanted now. Takes them out of `left`.
fn keep<'a>(slice: &'a EndpointSlice, left: &mut BTreeMap<String, Endpoint>) -> Draft<'a> {
    let mut changed = false;
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for had in &slice.endpoints {
        let uid = had.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default();
        match left.remove(uid) {
            Some(wanted) => {
                changed |= wanted != *had;
                endpoints.push(wanted);
            }
            None => changed = true,
        }
    }
    Draft { read: slice, endpoints, changed }
}

fn fill(draft: &mut Draft<'_>, left: &mut BTreeMap<String, Endpoint>) {
    while draft.endpoints.len() < MAX_ENDPOINTS {
        let Some((_, endpoint)) = left.pop_first() else { return };
        draft.endpoints.push(endpoint);
        draft.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

    use super::*;
    use crate::{
        plan::{Action, value},
        testing::{labels as pairs, meta, running, time},
    };

    fn service() -> Service {
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

    fn web(i: usize) -> Arc<Pod> {
        let mut pod = running(&format!("p{i:04}"), "n", Some(1));
        pod.metadata.labels = Some(pairs(&[("app", "web")]));
        pod.status.as_mut().expect("a status").pod_ip = Some(format!("10.1.{}.{}", i / 250, i % 250));
        Arc::new(pod)
    }

    fn edit(pod: &Arc<Pod>, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        change(&mut pod);
        Arc::new(pod)
    }

    fn run(service: Option<&Service>, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Plan {
        let zones = BTreeMap::from([("n".to_owned(), "zone-a".to_owned())]);
        plan(&Input { service, pods, slices, zones: &zones })
    }

    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

    /// Carries a plan out, as the API server would. Counts the writes.
    fn apply(plan: &Plan, slices: &mut Vec<Arc<EndpointSlice>>) -> usize {
        for write in plan.writes() {
            match &write.action {
                Action::Create { object, .. } => {
                    let mut made: EndpointSlice = serde_json::from_value(object.clone()).expect("a slice");
                    let name = format!("web-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                    made.metadata.uid = Some(name.clone());
                    made.metadata.name = Some(name);
                    slices.push(Arc::new(made));
                }
                Action::Replace { target, object, .. } => {
                    let at = slices.iter().position(|s| object::name(&**s) == target.name).expect("a known slice");
                    slices[at] = Arc::new(serde_json::from_value(object.clone()).expect("a slice"));
                }
                Action::Delete { target, .. } => slices.retain(|s| object::name(&**s) != target.name),
                other => panic!("not a write of slices: {other:?}"),
            }
        }
        plan.writes().count()
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        slices.iter().map(|s| s.endpoints.len()).collect()
    }

    #[test]
    fn fills_slices_and_then_rests() {
        let service = service();
        let pods: Vec<_> = (0..250).map(web).collect();
        let mut slices = Vec::new();
        assert_eq!(apply(&run(Some(&service), &pods, &slices), &mut slices), 3);
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(run(Some(&service), &pods, &slices), Plan::nothing());
        let slice = value(&*slices[0]);
        assert_eq!(slice["metadata"]["labels"][SERVICE_NAME], "web");
        assert_eq!(slice["metadata"]["labels"][MANAGED_BY], MANAGER);
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(slice["ports"][0]["port"], 80);
        assert_eq!(slice["endpoints"][0]["zone"], "zone-a");
    }

    #[test]
    fn one_pod_more_or_less_is_one_write() {
        let service = service();
        let mut pods: Vec<_> = (0..150).map(web).collect();
        let mut slices = Vec::new();
        apply(&run(Some(&service), &pods, &slices), &mut slices);
        pods.push(web(150));
        assert_eq!(apply(&run(Some(&service), &pods, &slices), &mut slices), 1);
        assert_eq!(sizes(&slices), [100, 51]);
        pods.remove(3);
        assert_eq!(apply(&run(Some(&service), &pods, &slices), &mut slices), 1);
        assert_eq!(sizes(&slices), [99, 51]);
        // One goes and one comes: the slice that changes anyway takes it.
        pods.remove(3);
        pods.push(web(151));
        assert_eq!(apply(&run(Some(&service), &pods, &slices), &mut slices), 1);
        assert_eq!(sizes(&slices), [99, 51]);
    }

    #[test]
    fn conditions() {
        let mut service = service();
        let ready = web(0);
        let unready = edit(&ready, |p| {
            *p = {
                let mut q = running("p0000", "n", None);
                q.metadata.labels = p.metadata.labels.clone();
                q.status.as_mut().expect("a status").pod_ip = Some("10.1.0.0".into());
                q
            }
        });
        let leaving = edit(&ready, |p| p.metadata.deletion_timestamp = Some(time(5)));
        let mut publish = service.clone();
        publish.spec.as_mut().expect("a spec").publish_not_ready_addresses = Some(true);
        let cases = [
            (&service, &ready, [true, true, false]),
            (&service, &unready, [false, false, false]),
            (&service, &leaving, [false, true, true]),
            (&publish, &unready, [true, false, false]),
            (&publish, &leaving, [true, true, true]),
        ];
        for (i, (service, pod, wanted)) in cases.into_iter().enumerate() {
            let mut slices = Vec::new();
            apply(&run(Some(service), std::slice::from_ref(pod), &[]), &mut slices);
            let c = slices[0].endpoints[0].conditions.clone().expect("conditions");
            assert_eq!([c.ready, c.serving, c.terminating], wanted.map(Some), "case {i}");
        }
        service.spec.as_mut().expect("a spec").cluster_ip = Some("None".into());
        let mut slices = Vec::new();
        apply(&run(Some(&service), &[ready], &[]), &mut slices);
        assert!(object::label(&*slices[0], super::super::HEADLESS).is_some());
    }

    #[test]
    fn an_empty_service_has_one_empty_slice() {
        let service = service();
        let mut slices = Vec::new();
        assert_eq!(apply(&run(Some(&service), &[], &slices), &mut slices), 1);
        assert_eq!(sizes(&slices), [0]);
        assert_eq!(run(Some(&service), &[], &slices), Plan::nothing());
        apply(&run(Some(&service), &[web(1)], &slices), &mut slices);
        assert_eq!(sizes(&slices), [1]);
        apply(&run(Some(&service), &[], &slices), &mut slices);
        assert_eq!(sizes(&slices), [0]);
        assert_eq!(run(Some(&service), &[], &slices), Plan::nothing());
        assert_eq!(apply(&run(None, &[], &slices), &mut slices), 1);
        assert!(slices.is_empty());
    }

    #[test]
    fn endpoints_survive_any_history() {
        // Comings and goings by a fixed, irregular sequence: every pod is in exactly one slice afterwards.
        let service = service();
        let (mut pods, mut slices, mut next, mut seed) = (Vec::new(), Vec::new(), 0, 12345_u32);
        for _ in 0..60 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for _ in 0..(seed >> 8) % 40 {
                pods.push(web(next));
                next += 1;
            }
            let gone = ((seed >> 16) % 35) as usize;
            for _ in 0..gone.min(pods.len()) {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % pods.len();
                pods.remove(at);
            }
            apply(&run(Some(&service), &pods, &slices), &mut slices);
            let mut seen: Vec<String> =
                slices.iter().flat_map(|s| &s.endpoints).map(|e| e.addresses[0].clone()).collect();
            let mut wanted: Vec<String> =
                pods.iter().map(|p| p.status.as_ref().and_then(|s| s.pod_ip.clone()).expect("an ip")).collect();
            seen.sort();
            wanted.sort();
            assert_eq!(seen, wanted);
            assert!(slices.iter().all(|s| s.endpoints.len() <= MAX_ENDPOINTS));
            assert_eq!(run(Some(&service), &pods, &slices), Plan::nothing());
        }
    }
}
