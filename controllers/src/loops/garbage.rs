//! Everything that goes by metadata alone, over all kinds: garbage, emptied namespaces, events past their time.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::registry::{self, Kind};
use client::{Client, Key, Metadata, Sighting, object};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::{sync::mpsc, task::JoinSet};

use super::Begin;
use crate::{
    caches::Caches,
    event_ttl::Ends,
    garbage::{self, Dependent, Owner},
    graph::{Fate, Graph},
    plan::{Plan, Resource, Target},
    queue::Turn,
    runtime::{self, Ask, Controller, Feeds},
};

/// Sightings of all kinds on their way to the graph.
const SIGHTINGS: usize = 1024;

pub fn start(begin: &mut Begin<'_>, namespaces: mpsc::Sender<Ask>) {
    let (graph, ends) = (Arc::new(Mutex::new(Graph::default())), Arc::new(Mutex::new(Ends::default())));
    let (collector_feeds, expiry_feeds) = (Feeds::new(), Feeds::new());
    let watch = Watch {
        client: begin.actor.client.clone(),
        caches: begin.caches().clone(),
        graph: Arc::clone(&graph),
        ends: Arc::clone(&ends),
        garbage: collector_feeds.sender(),
        expiries: expiry_feeds.sender(),
        namespaces,
    };
    begin.tasks.spawn(watch.run());
    let client = begin.actor.client.clone();
    begin.run(Arc::new(Collector { client, graph }), collector_feeds);
    begin.run(Arc::new(Expiries { ends }), expiry_feeds);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_event(kind: &Kind) -> bool {
    kind.plural == "events"
}

/// The one reader of all kinds' metadata.
struct Watch {
    client: Client,
    caches: Caches,
    graph: Arc<Mutex<Graph>>,
    ends: Arc<Mutex<Ends>>,
    garbage: mpsc::Sender<Ask>,
    expiries: mpsc::Sender<Ask>,
    namespaces: mpsc::Sender<Ask>,
}

impl Watch {
    async fn run(self) {
        let (to, mut from) = mpsc::channel(SIGHTINGS);
        let mut tasks = JoinSet::new();
        // A kind that is only another face of a stored one would show every object twice.
        for kind in registry::ALL.iter().copied().filter(|k| k.alias.is_none() && k.verbs.contains(&"watch")) {
            let (client, to) = (self.client.clone(), to.clone());
            tasks.spawn(async move { client.follow_metadata(kind, to).await });
        }
        drop(to);
        let mut unlisted = tasks.len();
        while let Some((kind, sighting)) = from.recv().await {
            self.namespace(kind, &sighting).await;
            if is_event(kind) {
                self.event(&sighting).await;
            }
            let first = matches!(sighting, Sighting::All(_)) && !lock(&self.graph).is_listed(kind);
            let touched = if is_event(kind) && !first { Vec::new() } else { self.take_in(kind, sighting) };
            unlisted -= usize::from(first);
            // Until every kind has been listed, an owner that was not seen means nothing.
            match (unlisted, first) {
                (0, true) => self.ask(&self.garbage, vec![Ask::Everything]).await,
                (0, false) => {
                    let asks = touched.into_iter().map(|uid| Ask::Key(Key::new("", uid), "ownership changed"));
                    self.ask(&self.garbage, asks.collect()).await;
                }
                _ => {}
            }
        }
    }

    fn take_in(&self, kind: &'static Kind, sighting: Sighting) -> Vec<String> {
        // Nothing is owned by an event, nor any event by something.
        let sighting = if is_event(kind) { Sighting::All(Vec::new()) } else { sighting };
        lock(&self.graph).take_in(kind, sighting)
    }

    async fn ask(&self, whom: &mpsc::Sender<Ask>, asks: Vec<Ask>) {
        for ask in asks {
            // A controller that is gone takes this task with it in a moment.
            let _ = whom.send(ask).await;
        }
    }

    /// A namespace on its way out may have become empty, or gained something.
    async fn namespace(&self, kind: &Kind, sighting: &Sighting) {
        if !kind.namespaced() {
            return;
        }
        let (Sighting::Put(metadata) | Sighting::Gone(metadata)) = sighting else {
            return self.ask(&self.namespaces, vec![Ask::Everything]).await;
        };
        let key = Key::new("", &metadata.namespace);
        if self.caches.namespaces.by_key(&key).is_some_and(|n| object::is_deleting(&*n)) {
            self.ask(&self.namespaces, vec![Ask::Key(key, "its content changed")]).await;
        }
    }

    async fn event(&self, sighting: &Sighting) {
        let key = |m: &Metadata| Key::new(&m.namespace, &m.name);
        let touched = match sighting {
            Sighting::Gone(metadata) => {
                lock(&self.ends).gone(&key(metadata));
                Vec::new()
            }
            Sighting::Put(metadata) => lock(&self.ends).put(key(metadata), runtime::now()),
            Sighting::All(all) => {
                let mut ends = lock(&self.ends);
                ends.retain(&all.iter().map(key).collect::<HashSet<Key>>());
                let born = |m: &Metadata| m.creation_timestamp.as_ref().map_or_else(runtime::now, |t| t.0);
                all.iter().flat_map(|m| ends.put(key(m), born(m))).collect()
            }
        };
        let asks = touched.into_iter().map(|key| Ask::Key(key, "the event changed")).collect();
        self.ask(&self.expiries, asks).await;
    }
}

struct Collector {
    client: Client,
    graph: Arc<Mutex<Graph>>,
}

impl Controller for Collector {
    const NAME: &'static str = "garbage-collector-controller";
    const WORKERS: usize = 16;

    fn keys(&self) -> Vec<Key> {
        lock(&self.graph).suspects().into_iter().map(|uid| Key::new("", uid)).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let uid = &turn.key.name;
        let Some(node) = lock(&self.graph).node(uid).cloned() else { return Ok(Plan::nothing()) };
        let target = Target::named(node.resource, &node.namespace, &node.name);
        // The graph says whom to look at; what happens to it is decided by what the server shows now.
        let Some(metadata) = self.fetch(&target, uid).await? else { return Ok(Plan::nothing()) };
        let mut owners = Vec::with_capacity(metadata.owner_references.len());
        for owner in &metadata.owner_references {
            owners.push(self.owner(owner, &metadata.namespace).await?);
        }
        let fate = Fate::of(&metadata);
        let matter = matches!(fate, Fate::Foreground | Fate::Orphaning) || owners.contains(&Owner::Waiting);
        let dependents = if matter { self.dependents(uid).await? } else { Vec::new() };
        Ok(garbage::plan(&garbage::Input { target, metadata: &metadata, owners: &owners, dependents: &dependents }))
    }
}

impl Collector {
    /// The object, if it is still the same one.
    async fn fetch(&self, target: &Target, uid: &str) -> client::Result<Option<Metadata>> {
        let r = &target.resource;
        let Some(kind) = registry::by_plural(r.group, r.version, r.plural) else { return Ok(None) };
        match self.client.metadata(kind, &target.namespace, &target.name).await {
            Ok(metadata) => Ok(Some(metadata).filter(|m| m.uid == uid)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// That an owner is gone is believed to the server alone; that it lives, to the graph as well: if that is behind,
    /// the owner's end is still to come there, and this object with it.
    async fn owner(&self, reference: &OwnerReference, namespace: &str) -> client::Result<Owner> {
        let waits = |fate: Fate| {
            let blocked = reference.block_owner_deletion == Some(true);
            if fate == Fate::Foreground && blocked { Owner::Waiting } else { Owner::Living }
        };
        {
            let graph = lock(&self.graph);
            if graph.is_present(&reference.uid) {
                return Ok(graph.node(&reference.uid).map_or(Owner::Living, |n| waits(n.fate)));
            }
        }
        // A kind that is not served may come back with its definition: its objects' dependents stay.
        let Some(kind) = registry::by_kind(&reference.api_version, &reference.kind) else { return Ok(Owner::Living) };
        let namespace = if kind.namespaced() { namespace } else { "" };
        let target = Target::named(Resource::row(kind), namespace, &reference.name);
        let found = self.fetch(&target, &reference.uid).await?;
        Ok(found.map_or(Owner::Gone, |m| waits(Fate::of(&m))))
    }

    async fn dependents(&self, uid: &str) -> client::Result<Vec<Dependent>> {
        let known: Vec<(String, Target)> = {
            let graph = lock(&self.graph);
            let nodes = graph.dependents(uid).into_iter().filter_map(|d| Some((graph.node(&d)?.clone(), d)));
            nodes.map(|(n, d)| (d, Target::named(n.resource, &n.namespace, &n.name))).collect()
        };
        let mut dependents = Vec::with_capacity(known.len());
        for (uid, target) in known {
            if let Some(metadata) = self.fetch(&target, &uid).await? {
                dependents.push(Dependent { target, metadata });
            }
        }
        Ok(dependents)
    }
}

struct Expiries {
    ends: Arc<Mutex<Ends>>,
}

impl Controller for Expiries {
    const NAME: &'static str = "event-expiry-controller";
    const WORKERS: usize = 4;

    fn keys(&self) -> Vec<Key> {
        lock(&self.ends).keys()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        Ok(lock(&self.ends).plan(&turn.key, now))
    }
}
