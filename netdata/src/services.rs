//! Keeps the kernel's rules and the names' index in step with Services, EndpointSlices and Namespaces.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use client::{Cache, Client, Key, Subscription, Update};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    compile::{self, Local},
    conntrack,
    dns::Shared,
    error::Result,
    index::{Exists, Index},
    nft,
    ruleset::Ruleset,
    skeleton::{self, Skeleton},
};

/// Changes that come together are applied together. While nft runs (about 15 ms) more are gathered anyway, so this
/// need only catch what one write of a controller brings: a service and its slices.
const GATHER: Duration = Duration::from_millis(3);

/// After a failure; and each time twice as long, to the limit.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(30);

/// How often the table is looked for. A firewall's restart flushes everything, and says so to nobody.
const LOOK_FOR_TABLE: Duration = Duration::from_secs(30);

/// What the loop works on.
pub struct Services {
    pub local: Local,
    pub skeleton: Skeleton,
    pub index: Shared,
    services: Arc<Cache<Service>>,
    slices: Arc<Cache<EndpointSlice>>,
    namespaces: Arc<Cache<Namespace>>,
}

/// Where the kernel stands.
struct Applied {
    ruleset: Ruleset,
    /// Services that changed since.
    dirty: HashSet<Key>,
    /// Whether the table is known to be what `ruleset` says.
    whole: Trust,
    retry: Duration,
    retry_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Known,
    Unknown,
}

impl Services {
    pub fn new(client: &Client, local: Local, skeleton: Skeleton, index: Shared) -> Services {
        Services {
            local,
            skeleton,
            index,
            services: client.cache(),
            slices: client.cache(),
            namespaces: client.cache(),
        }
    }

    /// Runs until dropped. The rules of a former agent stay until the caches are full, and are then replaced at once.
    pub async fn run(self) {
        let mut services = self.services.subscribe();
        let mut slices = self.slices.subscribe();
        let mut namespaces = self.namespaces.subscribe();
        tokio::join!(self.services.synced(), self.slices.synced(), self.namespaces.synced());
        let mut applied = Applied {
            ruleset: Ruleset::default(),
            dirty: HashSet::new(),
            whole: Trust::Unknown,
            retry: RETRY_FIRST,
            retry_at: None,
        };
        self.relist(&mut applied);
        loop {
            self.sync(&mut applied).await;
            if !self.next(&mut applied, &mut services, &mut slices, &mut namespaces).await {
                return;
            }
            let gathered = sleep(GATHER);
            tokio::pin!(gathered);
            loop {
                tokio::select! {
                    () = &mut gathered => break,
                    more = self.next(&mut applied, &mut services, &mut slices, &mut namespaces) => if !more { return },
                }
            }
        }
    }

    /// Waits for one thing to happen and takes note of it. False when the caches are gone.
    async fn next(
        &self,
        applied: &mut Applied,
        services: &mut Subscription<Service>,
        slices: &mut Subscription<EndpointSlice>,
        namespaces: &mut Subscription<Namespace>,
    ) -> bool {
        let retry_at = applied.retry_at;
        let retry = async {
            match retry_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            update = services.next() => match update {
                None => return false,
                Some(Update::Resync) => self.relist(applied),
                Some(Update::Change(change)) => {
                    self.with_index(|index| index.set_service(&change.key, change.new.clone()));
                    applied.dirty.insert(change.key.clone());
                }
            },
            update = slices.next() => match update {
                None => return false,
                Some(Update::Resync) => self.relist(applied),
                Some(Update::Change(change)) => {
                    let affected = self.with_index(|index| index.set_slice(&change.key, change.new.clone()));
                    applied.dirty.extend(affected);
                }
            },
            update = namespaces.next() => match update {
                None => return false,
                Some(Update::Resync) => self.relist(applied),
                Some(Update::Change(change)) => {
                    let exists = if change.new.is_some() { Exists::Yes } else { Exists::No };
                    self.with_index(|index| index.set_namespace(&change.key.name, exists));
                }
            },
            () = retry => applied.retry_at = None,
            () = sleep(LOOK_FOR_TABLE) => {
                if applied.whole == Trust::Known && nft::has_table().await.is_ok_and(|there| !there) {
                    tracing::warn!("the table of rules was deleted by someone else; putting it back");
                    applied.whole = Trust::Unknown;
                }
            }
        }
        true
    }

    /// Looks at the whole caches; everything that was or is may have changed.
    fn relist(&self, applied: &mut Applied) {
        let mut fresh = Index::default();
        for service in self.services.list() {
            fresh.set_service(&Key::of(&*service), Some(service));
        }
        for slice in self.slices.list() {
            fresh.set_slice(&Key::of(&*slice), Some(slice));
        }
        for namespace in self.namespaces.list() {
            fresh.set_namespace(&Key::of(&*namespace).name, Exists::Yes);
        }
        applied.dirty.extend(fresh.services().cloned());
        applied.dirty.extend(applied.ruleset.services().cloned());
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
    }

    fn with_index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        change(index.get_or_insert_default())
    }

    /// Brings the kernel to where the caches are.
    #[expect(clippy::disallowed_methods, reason = "the shell reads the clock")]
    async fn sync(&self, applied: &mut Applied) {
        if applied.retry_at.is_some() {
            return;
        }
        let trusted = applied.whole;
        let mut result = self.apply(applied).await;
        if let (Err(error), Trust::Known) = (&result, trusted) {
            // Someone else changed the table: all of it is put in its place at once.
            tracing::warn!(%error, "a change of service rules was refused; replacing the whole table");
            applied.whole = Trust::Unknown;
            result = self.apply(applied).await;
        }
        match result {
            Ok(()) => applied.retry = RETRY_FIRST,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, retry = ?applied.retry, "service rules were not applied");
                // What the kernel has now is not known, so the next attempt replaces all of it.
                applied.whole = Trust::Unknown;
                applied.retry_at = Some(Instant::now() + applied.retry);
                applied.retry = (applied.retry * 2).min(RETRY_LAST);
            }
        }
    }

    #[tracing::instrument(name = "sync", level = "debug", skip_all, fields(services = applied.dirty.len()))]
    async fn apply(&self, applied: &mut Applied) -> Result<()> {
        let dirty: BTreeSet<Key> = applied.dirty.drain().collect();
        let change = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let compiled = dirty.into_iter().map(|key| {
                let service = index.as_ref().and_then(|index| Some((index, index.service(&key)?)));
                let rules = service.map(|(index, service)| compile::service(&self.local, service, &index.slices(&key)));
                (key, rules)
            });
            applied.ruleset.apply(compiled)
        };
        match applied.whole {
            Trust::Unknown => nft::apply_text(&skeleton::replace(&self.skeleton, &applied.ruleset)).await?,
            Trust::Known if change.batch.is_empty() => {}
            Trust::Known => nft::apply(&change.batch).await?,
        }
        applied.whole = Trust::Known;
        if !change.stale.is_empty() {
            conntrack::forget_in_background(change.stale).await;
        }
        Ok(())
    }
}
