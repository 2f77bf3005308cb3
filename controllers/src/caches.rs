//! What controllers see: one shared cache per kind, and the indexes that keep a look at one key short.

use std::{sync::Arc, time::Duration};

use client::{Cache, Client, Key, ListParams, Object, object, pod::Pod};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Endpoints, Namespace, Node, ReplicationController, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};

use crate::{endpoints, plan::Target, selector::Selector, service_account};

const BY_OWNER: &str = "owner";
const BY_LABEL: &str = "label";
const BY_NODE: &str = "node";
const BY_SELECTOR: &str = "selector";
const BY_SERVICE: &str = "service";

/// A cache that has not shown a write by then is cut off from the server: the next look decides on what it shows.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct Caches {
    pub pods: Arc<Cache<Pod>>,
    pub replica_sets: Arc<Cache<ReplicaSet>>,
    pub replication_controllers: Arc<Cache<ReplicationController>>,
    pub deployments: Arc<Cache<Deployment>>,
    pub services: Arc<Cache<Service>>,
    pub endpoints: Arc<Cache<Endpoints>>,
    pub slices: Arc<Cache<EndpointSlice>>,
    pub nodes: Arc<Cache<Node>>,
    pub leases: Arc<Cache<Lease>>,
    pub namespaces: Arc<Cache<Namespace>>,
    /// Only those named [`service_account::ACCOUNT`].
    pub accounts: Arc<Cache<ServiceAccount>>,
    /// Only those named [`service_account::ROOT_CA`].
    pub root_cas: Arc<Cache<ConfigMap>>,
}

impl Caches {
    pub fn new(client: &Client) -> Caches {
        let named = |name: &str| ListParams::fields(format!("metadata.name={name}"));
        let caches = Caches {
            pods: client.cache(),
            replica_sets: client.cache(),
            replication_controllers: client.cache(),
            deployments: client.cache(),
            services: client.cache(),
            endpoints: client.cache(),
            slices: client.cache(),
            nodes: client.cache(),
            leases: client.cache(),
            namespaces: client.cache(),
            accounts: client.cache_where(named(service_account::ACCOUNT)),
            root_cas: client.cache_where(named(service_account::ROOT_CA)),
        };
        caches.pods.add_index(BY_OWNER, owner_term);
        caches.pods.add_index(BY_LABEL, label_terms);
        caches.pods.add_index(BY_NODE, |pod| vec![crate::pod::node(pod).to_owned()]);
        caches.replica_sets.add_index(BY_OWNER, owner_term);
        caches.replica_sets.add_index(BY_LABEL, label_terms);
        caches.services.add_index(BY_SELECTOR, selector_term);
        caches.slices.add_index(BY_SERVICE, |slice| slice_service(slice).map(|k| k.to_string()).into_iter().collect());
        caches
    }

    /// Waits until everything that is there has been seen once.
    pub async fn synced(&self) {
        self.pods.synced().await;
        self.replica_sets.synced().await;
        self.replication_controllers.synced().await;
        self.deployments.synced().await;
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        self.nodes.synced().await;
        self.leases.synced().await;
        self.namespaces.synced().await;
        self.accounts.synced().await;
        self.root_cas.synced().await;
    }

    pub fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        self.pods.by_index(BY_NODE, node)
    }

    /// The slices of a service that bear our mark.
    pub fn slices_of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &service.to_string())
    }

    /// Services whose selector may match these labels.
    pub fn services_selecting(&self, pod: &Pod) -> Vec<Arc<Service>> {
        let mut services: Vec<Arc<Service>> =
            label_terms(pod).iter().flat_map(|term| self.services.by_index(BY_SELECTOR, term)).collect();
        services.retain(|s| endpoints::selector(s).is_some_and(|sel| sel.matches(pod.metadata.labels.as_ref())));
        services
    }

    /// Waits until a write can be seen.
    pub async fn show(&self, written: &Written) {
        let shown = async {
            match written.target.resource.kind {
                "Pod" => show(&self.pods, written).await,
                "ReplicaSet" => show(&self.replica_sets, written).await,
                "ReplicationController" => show(&self.replication_controllers, written).await,
                "Deployment" => show(&self.deployments, written).await,
                "Service" => show(&self.services, written).await,
                "Endpoints" => show(&self.endpoints, written).await,
                "EndpointSlice" => show(&self.slices, written).await,
                "Node" => show(&self.nodes, written).await,
                "Namespace" => show(&self.namespaces, written).await,
                "ServiceAccount" if written.target.name == service_account::ACCOUNT => {
                    show(&self.accounts, written).await
                }
                "ConfigMap" if written.target.name == service_account::ROOT_CA => show(&self.root_cas, written).await,
                // No controller decides by a cache of any other kind.
                _ => {}
            }
        };
        if tokio::time::timeout(PATIENCE, shown).await.is_err() {
            let target = written.target.path();
            tracing::warn!(target, "a write is still not seen: the watch hangs");
        }
    }
}

/// What was written, as its cache will show it.
#[derive(Clone, Debug)]
pub struct Written {
    pub target: Target,
    pub trace: Trace,
}

#[derive(Clone, Debug)]
pub enum Trace {
    /// The object stands at this revision or a later one.
    At(u64),
    /// The object with this uid is gone, or on its way out.
    Leaving(String),
}

async fn show<K: Object>(cache: &Cache<K>, written: &Written) {
    match &written.trace {
        Trace::At(revision) => cache.wait_for(*revision).await,
        Trace::Leaving(uid) => loop {
            let reached = cache.revision();
            let seen = cache.get(&written.target.namespace, &written.target.name);
            if seen.is_none_or(|o| object::uid(&*o) != uid || object::is_deleting(&*o)) {
                return;
            }
            // The end of an object is an event of its kind, so the cache has to move on for it.
            cache.wait_for(reached + 1).await;
        },
    }
}

/// Objects that refer to an owner, and those that its selector matches.
pub fn owned_or_matching<K: Object>(cache: &Cache<K>, namespace: &str, uid: &str, selector: &Selector) -> Vec<Arc<K>> {
    let mut found = cache.by_index(BY_OWNER, uid);
    let candidates = match selector.pivot() {
        Some((key, value)) => cache.by_index(BY_LABEL, &label_term(namespace, key, value)),
        None => cache.list_in(namespace),
    };
    // Managed ones are either in already or somebody else's.
    let free = |o: &Arc<K>| object::controller(&**o).is_none() && selector.matches(o.meta().labels.as_ref());
    found.extend(candidates.into_iter().filter(free));
    found
}

pub fn owned<K: Object>(cache: &Cache<K>, uid: &str) -> Vec<Arc<K>> {
    cache.by_index(BY_OWNER, uid)
}

pub fn matching<K: Object>(cache: &Cache<K>, namespace: &str, selector: &Selector) -> Vec<Arc<K>> {
    let candidates = match selector.pivot() {
        Some((key, value)) => cache.by_index(BY_LABEL, &label_term(namespace, key, value)),
        None => cache.list_in(namespace),
    };
    candidates.into_iter().filter(|o| selector.matches(o.meta().labels.as_ref())).collect()
}

/// The service that a slice belongs to, if the slice bears our mark.
pub fn slice_service(slice: &EndpointSlice) -> Option<Key> {
    let ours = object::label(slice, endpoints::slices::MANAGED_BY) == Some(endpoints::slices::MANAGER);
    let name = object::label(slice, endpoints::slices::SERVICE_NAME).filter(|_| ours)?;
    Some(Key::new(object::namespace(slice), name))
}

fn owner_term<K: Object>(object: &K) -> Vec<String> {
    object::controller(object).map(|o| o.uid.clone()).into_iter().collect()
}

fn label_terms<K: Object>(object: &K) -> Vec<String> {
    let labels = object.meta().labels.iter().flatten();
    labels.map(|(k, v)| label_term(object::namespace(object), k, v)).collect()
}

/// None of the three may hold a slash but the key, and that at most one: the term is unambiguous.
fn label_term(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// A service is filed under one label that each of its pods must have: enough to find it by a pod.
fn selector_term(service: &Service) -> Vec<String> {
    let term = |s: Selector| s.pivot().map(|(k, v)| label_term(object::namespace(service), k, v));
    endpoints::selector(service).and_then(term).into_iter().collect()
}
