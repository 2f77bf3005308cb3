//! Namespaces: what each has from its first moment, and its end.

use std::sync::Arc;

use client::{Client, Key, object};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::Begin;
use crate::{
    Config,
    caches::Caches,
    namespace,
    plan::{Plan, Resource},
    queue::Turn,
    runtime::{Ask, Controller, Feeds},
    service_account,
};

/// The returned channel asks for a look at a namespace that is on its way out.
pub fn start(begin: &mut Begin<'_>, config: &Config) -> mpsc::Sender<Ask> {
    let caches = begin.caches().clone();
    let feeds = Feeds::new()
        .on(&caches.namespaces, "the namespace changed", |change| vec![change.key.clone()])
        .on(&caches.accounts, "the account changed", |change| vec![Key::new("", &change.key.namespace)])
        .on(&caches.root_cas, "the root certificate changed", |change| vec![Key::new("", &change.key.namespace)]);
    let furniture = Furniture { caches: caches.clone(), root_ca_pem: config.root_ca_pem.clone() };
    begin.run(Arc::new(furniture), feeds);
    let feeds = Feeds::new().on(&caches.namespaces, "the namespace changed", |change| match &change.new {
        Some(namespace) if object::is_deleting(&**namespace) => vec![change.key.clone()],
        _ => Vec::new(),
    });
    let asks = feeds.sender();
    begin.run(Arc::new(Ends { client: begin.actor.client.clone(), caches }), feeds);
    asks
}

struct Furniture {
    caches: Caches,
    root_ca_pem: String,
}

impl Controller for Furniture {
    const NAME: &'static str = "serviceaccount-controller";
    const WORKERS: usize = 8;

    fn keys(&self) -> Vec<Key> {
        self.caches.namespaces.list().iter().map(|n| Key::of(&**n)).collect()
    }

    async fn plan(&self, turn: &Turn, _now: Timestamp) -> client::Result<Plan> {
        let Some(namespace) = self.caches.namespaces.by_key(&turn.key) else { return Ok(Plan::nothing()) };
        let account = self.caches.accounts.get(&turn.key.name, service_account::ACCOUNT);
        let root_ca = self.caches.root_cas.get(&turn.key.name, service_account::ROOT_CA);
        Ok(service_account::plan(&service_account::Input {
            namespace: &namespace,
            account: account.as_deref(),
            root_ca: root_ca.as_deref(),
            root_ca_pem: &self.root_ca_pem,
        }))
    }
}

struct Ends {
    client: Client,
    caches: Caches,
}

impl Controller for Ends {
    const NAME: &'static str = "namespace-controller";
    const WORKERS: usize = 4;

    fn keys(&self) -> Vec<Key> {
        let all = self.caches.namespaces.list();
        all.iter().filter(|n| object::is_deleting(&***n)).map(|n| Key::of(&**n)).collect()
    }

    async fn plan(&self, turn: &Turn, now: Timestamp) -> client::Result<Plan> {
        let namespace = self.caches.namespaces.by_key(&turn.key);
        let Some(namespace) = namespace.filter(|n| object::is_deleting(&**n)) else { return Ok(Plan::nothing()) };
        let mut rest = Vec::new();
        for kind in api::registry::ALL.iter().copied().filter(|k| k.namespaced() && k.alias.is_none()) {
            let objects = self.client.list_metadata(kind, &turn.key.name).await?.items;
            if !objects.is_empty() {
                rest.push(namespace::Rest { resource: Resource::row(kind), objects });
            }
        }
        Ok(namespace::plan(&namespace::Input { namespace: &namespace, rest: &rest, now }))
    }
}
