//! Endpoints, endpoint slices and load balancers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use client::{Change, Key, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use super::Begin;
use crate::{
    caches::{Caches, matching, slice_service},
    endpoints::{self, slices, whole},
    load_balancer,
    plan::Plan,
    queue::Turn,
    runtime::{Controller, Feeds},
};

const ZONE: &str = "topology.kubernetes.io/zone";

pub fn start(begin: &mut Begin<'_>) {
    let caches = begin.caches().clone();
    let (for_whole, for_slices) = (caches.clone(), caches.clone());
    let feeds = Feeds::new()
        .on(&caches.services, "the service changed", |change| vec![change.key.clone()])
        .on(&caches.endpoints, "the endpoints changed", |change| vec![change.key.clone()])
        .on(&caches.pods, "a pod changed", move |change| selecting(&for_whole, change));
    begin.run(Arc::new(Whole { caches: caches.clone() }), feeds);
    let feeds = Feeds::new()
        .on(&caches.services, "the service changed", |change| vec![change.key.clone()])
        .on(&caches.slices, "a slice changed", |change| {
            let slices = change.old.iter().chain(&change.new);
            slices.filter_map(|s| slice_service(s)).collect::<BTreeSet<Key>>().into_iter().collect()
        })
        .on(&caches.pods, "a pod changed", move |change| selecting(&for_slices, change));
    begin.run(Arc::new(Slices { caches: caches.clone() }), feeds);
    let for_nodes = caches.clone();
    let feeds = Feeds::new().on(&caches.services, "the service changed", |change| vec![change.key.clone()]).on(
        &caches.nodes,
        "a node changed",
        move |change| balanced(&for_nodes, change),
    );
    begin.run(Arc::new(Balancers { caches }), feeds);
}

/// The services that a pod's change concerns: those that select it, before or after.
fn selecting(caches: &Caches, change: &Change<Pod>) -> Vec<Key> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && !endpoints::differs(old, new)
    {
        return Vec::new();
    }
    let seen = change.old.iter().chain(&change.new);
    let services = seen.flat_map(|pod| caches.services_selecting(pod));
    services.map(|s| Key::of(&*s)).collect::<BTreeSet<Key>>().into_iter().collect()
}

fn pods_of(caches: &Caches, service: Option<&k8s_openapi::api::core::v1::Service>) -> Vec<Arc<Pod>> {
    let Some(service) = service else { return Vec::new() };
    let selector = endpoints::selector(service);
    selector.map(|s| matching(&caches.pods, object::namespace(service), &s)).unwrap_or_default()
}

struct Whole {
    caches: Caches,
}

impl Controller for Whole {
    const NAME: &'static str = "endpoint-controller";
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        let services = self.caches.services.list();
        let endpoints = self.caches.endpoints.list();
        services.iter().map(|s| Key::of(&**s)).chain(endpoints.iter().map(|e| Key::of(&**e))).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let service = self.caches.services.by_key(&turn.key);
        let current = self.caches.endpoints.by_key(&turn.key);
        let pods = pods_of(&self.caches, service.as_deref());
        Ok(whole::plan(&whole::Input { service: service.as_deref(), pods: &pods, current: current.as_deref() }))
    }
}

struct Slices {
    caches: Caches,
}

impl Controller for Slices {
    const NAME: &'static str = "endpoint-slice-controller";
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        let services = self.caches.services.list();
        let slices = self.caches.slices.list();
        services.iter().map(|s| Key::of(&**s)).chain(slices.iter().filter_map(|s| slice_service(s))).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let service = self.caches.services.by_key(&turn.key);
        let slices = self.caches.slices_of(&turn.key);
        let pods = pods_of(&self.caches, service.as_deref());
        let names: BTreeSet<&str> = pods.iter().map(|p| crate::pod::node(p)).filter(|n| !n.is_empty()).collect();
        let zone = |name: &str| Some(object::label(&*self.caches.nodes.get("", name)?, ZONE)?.to_owned());
        let zones: BTreeMap<String, String> =
            names.into_iter().filter_map(|n| Some((n.to_owned(), zone(n)?))).collect();
        Ok(slices::plan(&slices::Input { service: service.as_deref(), pods: &pods, slices: &slices, zones: &zones }))
    }
}

struct Balancers {
    caches: Caches,
}

impl Controller for Balancers {
    const NAME: &'static str = "service-lb-controller";
    const WORKERS: usize = 4;

    fn keys(&self) -> Vec<Key> {
        self.caches.services.list().iter().map(|s| Key::of(&**s)).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let Some(service) = self.caches.services.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        Ok(load_balancer::plan(&service, &load_balancer::addresses(&self.caches.nodes.list())))
    }
}

/// Every balanced service, when the addresses that a node lends to them changed.
fn balanced(caches: &Caches, change: &Change<Node>) -> Vec<Key> {
    let lends = |node: &Option<Arc<Node>>| load_balancer::addresses(node.clone().as_slice());
    if lends(&change.old) == lends(&change.new) {
        return Vec::new();
    }
    let services = caches.services.list();
    services.iter().filter(|s| load_balancer::is_ours(s)).map(|s| Key::of(&**s)).collect()
}
