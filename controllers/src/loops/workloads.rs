//! Replication controllers, replica sets and deployments.

use std::{marker::PhantomData, sync::Arc};

use client::{Cache, Change, Key, Object, object, pod::Pod};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::ReplicationController,
};

use super::Begin;
use crate::{
    caches::{Caches, owned, owned_or_matching},
    deployment,
    plan::Plan,
    queue::Turn,
    ranking::{self, Crowding},
    replicaset::{self, Set},
    runtime::{Controller, Feeds},
    selector::Selector,
};

pub fn start(begin: &mut Begin<'_>) {
    let caches = begin.caches().clone();
    let sets = Arc::new(Sets::<ReplicaSet> { caches: caches.clone(), kind: PhantomData });
    begin.run(Arc::clone(&sets), feeds(&sets));
    let controllers = Arc::new(Sets::<ReplicationController> { caches: caches.clone(), kind: PhantomData });
    begin.run(Arc::clone(&controllers), feeds(&controllers));
    let deployments = Arc::new(Deployments { caches });
    begin.run(Arc::clone(&deployments), deployment_feeds(&deployments));
}

/// One loop for each of the two kinds of sets.
struct Sets<S> {
    caches: Caches,
    kind: PhantomData<S>,
}

/// What differs between the two kinds on this side of the plan.
trait Kept: Set {
    const CONTROLLER: &'static str;
    fn cache(caches: &Caches) -> &Arc<Cache<Self>>;
    /// Pods of the sets that share this one's owner.
    fn family(caches: &Caches, set: &Self) -> Vec<Arc<Pod>>;
}

impl Kept for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn cache(caches: &Caches) -> &Arc<Cache<Self>> {
        &caches.replica_sets
    }

    fn family(caches: &Caches, set: &Self) -> Vec<Arc<Pod>> {
        let siblings = object::controller(set).map(|o| owned(&caches.replica_sets, &o.uid)).unwrap_or_default();
        if siblings.is_empty() {
            return owned(&caches.pods, object::uid(set));
        }
        siblings.iter().flat_map(|s| owned(&caches.pods, object::uid(&**s))).collect()
    }
}

impl Kept for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn cache(caches: &Caches) -> &Arc<Cache<Self>> {
        &caches.replication_controllers
    }

    fn family(caches: &Caches, set: &Self) -> Vec<Arc<Pod>> {
        owned(&caches.pods, object::uid(set))
    }
}

impl<S: Kept> Controller for Sets<S> {
    const NAME: &'static str = S::CONTROLLER;
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        S::cache(&self.caches).list().iter().map(|s| Key::of(&**s)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let Some(set) = S::cache(&self.caches).by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let selector = set.selector();
        let pods = owned_or_matching(&self.caches.pods, &turn.key.namespace, object::uid(&*set), &selector);
        let surplus = pods.len() > usize::try_from(set.replicas()).unwrap_or(0);
        let crowding = if surplus { ranking::crowding(&S::family(&self.caches, &set)) } else { Crowding::new() };
        Ok(replicaset::plan(&replicaset::Input {
            set: &*set,
            pods: &pods,
            crowding: &crowding,
            failure: turn.failure.as_deref(),
            now,
        }))
    }
}

fn feeds<S: Kept>(sets: &Arc<Sets<S>>) -> Feeds {
    let (caches, for_pods) = (&sets.caches, Arc::clone(sets));
    Feeds::new().on(S::cache(caches), "the set changed", |change| vec![change.key.clone()]).on(
        &caches.pods,
        "a pod changed",
        move |change| for_pods.concerned(change),
    )
}

impl<S: Kept> Sets<S> {
    /// The owner, before and after; sets that might want an orphan.
    fn concerned(&self, change: &Change<Pod>) -> Vec<Key> {
        let mut keys = owners::<S, _>(change);
        let free = |p: &&Arc<Pod>| object::controller(&***p).is_none() && !object::is_deleting(&***p);
        // Whether somebody wants an orphan is decided by its labels: it is offered anew only when they change.
        let offered = |p: &&Arc<Pod>| {
            let before = change.old.as_ref().filter(free);
            before.is_none_or(|old| old.metadata.labels != p.metadata.labels)
        };
        if let Some(pod) = change.new.as_ref().filter(free).filter(offered) {
            let sets = S::cache(&self.caches).list_in(&change.key.namespace);
            let wanting = sets.iter().filter(|s| {
                let selector = s.selector();
                !selector.is_empty() && selector.matches(pod.metadata.labels.as_ref())
            });
            keys.extend(wanting.map(|s| Key::of(&**s)));
        }
        keys
    }
}

/// The objects of kind `O` that manage, or managed, the one that changed.
fn owners<O: Object, K: Object>(change: &Change<K>) -> Vec<Key> {
    let owner = |o: &Option<Arc<K>>| {
        let owner =
            object::controller(&**o.as_ref()?).filter(|o| o.kind == O::KIND && o.api_version == O::API_VERSION)?;
        Some(Key::new(&change.key.namespace, &owner.name))
    };
    let mut keys: Vec<Key> = [owner(&change.old), owner(&change.new)].into_iter().flatten().collect();
    keys.dedup();
    keys
}

struct Deployments {
    caches: Caches,
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        self.caches.deployments.list().iter().map(|d| Key::of(&**d)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let Some(deployment) = self.caches.deployments.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let namespace = &turn.key.namespace;
        let selector = deployment.spec.as_ref().map(|s| Selector::of(&s.selector)).unwrap_or_default();
        let cache = &self.caches.replica_sets;
        let sets = owned_or_matching(cache, namespace, object::uid(&*deployment), &selector);
        let pods = if deployment::needs_pods(&deployment) {
            sets.iter().flat_map(|s| owned(&self.caches.pods, object::uid(&**s))).collect()
        } else {
            Vec::new()
        };
        let namesake = cache.get(namespace, &deployment::new_name(&deployment));
        Ok(deployment::plan(&deployment::Input {
            deployment: &deployment,
            sets: &sets,
            namesake: namesake.as_deref(),
            pods: &pods,
            failure: turn.failure.as_deref(),
            now,
        }))
    }
}

fn deployment_feeds(deployments: &Arc<Deployments>) -> Feeds {
    let caches = &deployments.caches;
    let (for_sets, for_pods) = (Arc::clone(deployments), Arc::clone(deployments));
    Feeds::new()
        .on(&caches.deployments, "the deployment changed", |change| vec![change.key.clone()])
        .on(&caches.replica_sets, "a replica set changed", move |change| for_sets.concerned(change))
        .on(&caches.pods, "a pod is gone", move |change| for_pods.concerned_by_pod(change))
}

impl Deployments {
    fn concerned(&self, change: &Change<ReplicaSet>) -> Vec<Key> {
        let mut keys = owners::<Deployment, _>(change);
        if let Some(set) = change.new.as_ref().filter(|s| object::controller(&***s).is_none()) {
            let all = self.caches.deployments.list_in(&change.key.namespace);
            let wanting = all.iter().filter(|d| {
                let selector = d.spec.as_ref().map(|s| Selector::of(&s.selector)).unwrap_or_default();
                !selector.is_empty() && selector.matches(set.metadata.labels.as_ref())
            });
            keys.extend(wanting.map(|d| Key::of(&**d)));
        }
        keys
    }

    /// Where old pods must be gone before new ones come, the end of each one counts.
    fn concerned_by_pod(&self, change: &Change<Pod>) -> Vec<Key> {
        let ended = change.new.as_ref().is_none_or(|p| crate::pod::is_finished(p));
        if !ended {
            return Vec::new();
        }
        let sets = owners::<ReplicaSet, _>(change);
        let sets = sets.iter().filter_map(|key| self.caches.replica_sets.by_key(key));
        let owners = sets.filter_map(|s| Some(Key::new(object::namespace(&*s), &object::controller(&*s)?.name)));
        owners.filter(|key| self.caches.deployments.by_key(key).is_some_and(|d| deployment::needs_pods(&d))).collect()
    }
}
