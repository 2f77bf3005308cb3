//! Node health, eviction, address ranges, and pods without a node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use client::{Change, Key, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};

use super::Begin;
use crate::{
    Config,
    caches::Caches,
    node::{
        self, eviction,
        ipam::{self, Cidr},
        lifecycle::{self, Disruption},
        orphans,
    },
    plan::Plan,
    queue::Turn,
    runtime::{self, Controller, Feeds},
};

const LEASES: &str = "kube-node-lease";

pub fn start(begin: &mut Begin<'_>, config: &Config) {
    let caches = begin.caches().clone();
    let started = runtime::now();
    let feeds = Feeds::new().on(&caches.nodes, "a node changed", |change| vec![change.key.clone()]).on(
        &caches.leases,
        "a node came to life",
        came_to_life,
    );
    begin.run(Arc::new(Ranges { caches: caches.clone(), cluster: config.cluster_cidr }), feeds);
    let health = Health { caches: caches.clone(), grace: config.node_monitor_grace, started, heard: Mutex::default() };
    let health = Arc::new(health);
    begin.run(Arc::clone(&health), health_feeds(&health));
    let for_nodes = caches.clone();
    let feeds = Feeds::new().on(&caches.pods, "a pod was placed", placed).on(
        &caches.nodes,
        "a node's taints changed",
        move |change| expelled(&for_nodes, change),
    );
    begin.run(Arc::new(Evictions { caches: caches.clone(), started }), feeds);
    let orphans = Arc::new(Orphans { caches: caches.clone(), gone: Mutex::default() });
    let for_nodes = Arc::clone(&orphans);
    let feeds = Feeds::new().on(&caches.pods, "a pod changed", placed).on(
        &caches.nodes,
        "a node came or went",
        move |change| for_nodes.came_or_went(change),
    );
    begin.run(orphans, feeds);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The node of a lease that is new.
fn came_to_life(change: &Change<Lease>) -> Vec<Key> {
    let new = change.key.namespace == LEASES && change.old.is_none();
    if new { vec![Key::new("", &change.key.name)] } else { Vec::new() }
}

/// One worker: two nodes must not be given the same range.
struct Ranges {
    caches: Caches,
    cluster: Cidr,
}

impl Controller for Ranges {
    const NAME: &'static str = "node-ipam-controller";
    const WORKERS: usize = 1;

    fn keys(&self) -> Vec<Key> {
        self.caches.nodes.list().iter().map(|n| Key::of(&**n)).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let Some(node) = self.caches.nodes.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        // Nearly every look ends here: only a node without a range needs to know all the others'.
        if node.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()) {
            return Ok(Plan::nothing());
        }
        // A range is for a node that lives. Whoever makes Node objects by hand is not disturbed between two writes.
        if self.caches.leases.get(LEASES, &turn.key.name).is_none() {
            return Ok(Plan::nothing());
        }
        let nodes = self.caches.nodes.list();
        Ok(ipam::plan(&node, self.cluster, &ipam::taken(nodes.iter().map(|n| &**n))))
    }
}

struct Health {
    caches: Caches,
    grace: Duration,
    started: Timestamp,
    /// When this process last saw each node's lease move, or the node say that it is ready or not.
    heard: Mutex<HashMap<String, Timestamp>>,
}

impl Controller for Health {
    const NAME: &'static str = "node-lifecycle-controller";
    const WORKERS: usize = 4;

    fn keys(&self) -> Vec<Key> {
        self.caches.nodes.list().iter().map(|n| Key::of(&**n)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let Some(node) = self.caches.nodes.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let heard = self.heard(&turn.key.name);
        let silent = crate::pod::remaining(heard, self.grace, now).is_none();
        let pods = if silent { self.caches.pods_on(&turn.key.name) } else { Vec::new() };
        Ok(lifecycle::plan(&lifecycle::Input {
            node: &node,
            heard,
            grace: self.grace,
            disruption: self.disruption(now),
            pods: &pods,
            now,
        }))
    }
}

impl Health {
    fn heard(&self, node: &str) -> Timestamp {
        lock(&self.heard).get(node).copied().unwrap_or(self.started).max(self.started)
    }

    fn disruption(&self, now: Timestamp) -> Disruption {
        let nodes = self.caches.nodes.list();
        let healthy = |n: &&Arc<Node>| {
            let speaks = crate::pod::remaining(self.heard(object::name(&***n)), self.grace, now).is_some();
            speaks && node::readiness(n) == "True"
        };
        let up = nodes.iter().filter(healthy).count();
        Disruption::of(up, nodes.len() - up)
    }

    /// A renewed lease costs a note and nothing else, unless the node was given up.
    fn renewed(&self, change: &Change<Lease>) -> Vec<Key> {
        if change.key.namespace != LEASES || change.new.is_none() {
            return Vec::new();
        }
        let renewal = |l: &Option<Arc<Lease>>| l.as_ref().and_then(|l| l.spec.as_ref()?.renew_time.clone());
        if renewal(&change.old) == renewal(&change.new) {
            return Vec::new();
        }
        lock(&self.heard).insert(change.key.name.clone(), runtime::now());
        let key = Key::new("", &change.key.name);
        let given_up = self.caches.nodes.by_key(&key).is_some_and(|n| node::readiness(&n) == "Unknown");
        if given_up { vec![key] } else { Vec::new() }
    }

    fn changed(&self, change: &Change<Node>) -> Vec<Key> {
        let Some(new) = &change.new else {
            lock(&self.heard).remove(&change.key.name);
            return self.keys();
        };
        let beat = |n: &Node| node::condition(n, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let readiness = change.old.as_ref().map(|n| node::readiness(n).to_owned());
        let turned = readiness.as_deref() != Some(node::readiness(new));
        let spoke = change.old.as_ref().is_none_or(|old| beat(old) != beat(new)) || turned;
        // What this controller wrote about the node is no sign of its life.
        if spoke && node::readiness(new) != "Unknown" {
            lock(&self.heard).insert(change.key.name.clone(), runtime::now());
        } else if change.old.is_none() {
            // A new node has its grace, too.
            lock(&self.heard).entry(change.key.name.clone()).or_insert_with(runtime::now);
        }
        let tainted = change.old.as_ref().is_none_or(|old| node::taints(old) != node::taints(new));
        match (turned, tainted) {
            // How much of the cluster is up decides about every node.
            (true, _) => self.keys(),
            (false, true) => vec![change.key.clone()],
            (false, false) => Vec::new(),
        }
    }

    /// A pod that claims to be ready on a node that has been given up.
    fn pod_changed(&self, change: &Change<Pod>) -> Vec<Key> {
        let Some(pod) = change.new.as_ref().filter(|p| crate::pod::is_ready(p)) else { return Vec::new() };
        let key = Key::new("", crate::pod::node(pod));
        let given_up = self.caches.nodes.by_key(&key).is_some_and(|n| node::readiness(&n) == "Unknown");
        if given_up { vec![key] } else { Vec::new() }
    }
}

fn health_feeds(health: &Arc<Health>) -> Feeds {
    let caches = &health.caches;
    let (for_leases, for_nodes, for_pods) = (Arc::clone(health), Arc::clone(health), Arc::clone(health));
    Feeds::new()
        .on(&caches.leases, "the lease was renewed", move |change| for_leases.renewed(change))
        .on(&caches.nodes, "a node changed", move |change| for_nodes.changed(change))
        .on(&caches.pods, "a pod is ready", move |change| for_pods.pod_changed(change))
}

/// A pod is looked at when it gets its node, when it is new to us, and when it is to go.
fn placed(change: &Change<Pod>) -> Vec<Key> {
    let Some(new) = &change.new else { return Vec::new() };
    let same = change.old.as_ref().is_some_and(|old| {
        crate::pod::node(old) == crate::pod::node(new)
            && object::is_deleting(&**old) == object::is_deleting(&**new)
            && old.spec.as_ref().map(|s| &s.tolerations) == new.spec.as_ref().map(|s| &s.tolerations)
    });
    if same { Vec::new() } else { vec![change.key.clone()] }
}

struct Evictions {
    caches: Caches,
    started: Timestamp,
}

impl Controller for Evictions {
    const NAME: &'static str = "taint-eviction-controller";
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        let nodes = self.caches.nodes.list();
        let expelling = nodes.iter().filter(|n| !node::expelling(n).is_empty());
        let pods = expelling.flat_map(|n| self.caches.pods_on(object::name(&**n)));
        pods.map(|p| Key::of(&*p)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let Some(pod) = self.caches.pods.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let node = self.caches.nodes.get("", crate::pod::node(&pod));
        Ok(eviction::plan(&eviction::Input { pod: &pod, node: node.as_deref(), started: self.started, now }))
    }
}

fn expelled(caches: &Caches, change: &Change<Node>) -> Vec<Key> {
    let taints =
        |n: &Option<Arc<Node>>| n.as_ref().map(|n| node::expelling(n).into_iter().cloned().collect::<Vec<_>>());
    if taints(&change.old).unwrap_or_default() == taints(&change.new).unwrap_or_default() {
        return Vec::new();
    }
    caches.pods_on(&change.key.name).iter().map(|p| Key::of(&**p)).collect()
}

struct Orphans {
    caches: Caches,
    /// Since when nodes that pods are on are not there.
    gone: Mutex<HashMap<String, Timestamp>>,
}

impl Controller for Orphans {
    const NAME: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 4;

    fn keys(&self) -> Vec<Key> {
        self.caches.pods.list().iter().map(|p| Key::of(&**p)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let Some(pod) = self.caches.pods.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let node = crate::pod::node(&pod);
        let there = node.is_empty() || self.caches.nodes.get("", node).is_some();
        let node_gone = (!there).then(|| *lock(&self.gone).entry(node.to_owned()).or_insert(now));
        Ok(orphans::plan(&orphans::Input { pod: &pod, node_gone, now }))
    }
}

impl Orphans {
    fn came_or_went(&self, change: &Change<Node>) -> Vec<Key> {
        match (&change.old, &change.new) {
            (Some(_), Some(_)) => return Vec::new(),
            (_, None) => lock(&self.gone).insert(change.key.name.clone(), runtime::now()),
            (None, _) => lock(&self.gone).remove(&change.key.name),
        };
        self.caches.pods_on(&change.key.name).iter().map(|p| Key::of(&**p)).collect()
    }
}
