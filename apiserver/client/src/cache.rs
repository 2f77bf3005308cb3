//! A kind's objects as a local, always current copy: list once, then watch.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::{
    sync::{broadcast, watch as latest},
    task::JoinHandle,
};

use crate::{
    client::Client,
    error::Result,
    object::{self, Key, Object},
    request::{self, ListParams},
    watch::{self, Event, Pause, Watch},
};

/// A subscriber that falls further behind than this looks at the whole cache again, which is as cheap by then.
const CHANGES_KEPT: usize = 4096;

/// One object that came, changed or went.
#[derive(Debug)]
pub struct Change<K> {
    pub key: Key,
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

/// What a subscriber is told.
#[derive(Debug)]
pub enum Update<K> {
    Change(Arc<Change<K>>),
    /// Changes were missed: look at the whole cache.
    Resync,
}

/// A shared informer. Dropping the last handle ends its watch.
pub struct Cache<K> {
    shared: Arc<Shared<K>>,
    task: JoinHandle<()>,
}

struct Shared<K> {
    // Invariant: `objects` holds exactly the objects that a list at `revision` would give.
    objects: RwLock<Objects<K>>,
    /// Zero until the first list is in.
    revision: latest::Sender<u64>,
    changes: broadcast::Sender<Arc<Change<K>>>,
}

impl<K: Object> Cache<K> {
    pub(crate) fn start(client: Client, params: ListParams) -> Cache<K> {
        let shared = Arc::new(Shared {
            objects: RwLock::new(Objects::new()),
            revision: latest::Sender::new(0),
            changes: broadcast::Sender::new(CHANGES_KEPT),
        });
        let task = tokio::spawn(follow(client, params, Arc::clone(&shared)));
        Cache { shared, task }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.by_key(&Key::new(namespace, name))
    }

    pub fn by_key(&self, key: &Key) -> Option<Arc<K>> {
        self.shared.read().map.get(key).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.read().map.values().cloned().collect()
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.shared.read();
        let from = objects.map.range(Key::new(namespace, "")..);
        from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
    }

    pub fn len(&self) -> usize {
        self.shared.read().map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Files every object, those that are there and those to come, under the terms that `terms` finds in it. An index of
    /// the same name is there already when two callers need it: the first one's stays.
    pub fn add_index(&self, name: &'static str, terms: Terms<K>) {
        self.shared.write().add_index(name, terms);
    }

    /// The objects filed under a term, in no order. None are under an index that was never added.
    pub fn by_index(&self, name: &str, term: &str) -> Vec<Arc<K>> {
        let objects = self.shared.read();
        let index = objects.indexes.iter().find(|i| i.name == name);
        index.and_then(|i| i.postings.get(term)).cloned().unwrap_or_default()
    }

    /// The revision that the cache has reached; zero before the first list.
    pub fn revision(&self) -> u64 {
        *self.shared.revision.borrow()
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        self.wait_for(1).await;
    }

    /// Waits until the cache has seen everything up to `revision`. Right for a revision at which an object of this
    /// kind was written; others become visible only with the next bookmark.
    pub async fn wait_for(&self, revision: u64) {
        let mut reached = self.shared.revision.subscribe();
        // The sender lives in `self`, so the wait can only end by success.
        let _ = reached.wait_for(|r| *r >= revision).await;
    }

    /// Every change from now on. Subscribe first and list after, and nothing is missed.
    pub fn subscribe(&self) -> Subscription<K> {
        Subscription { changes: self.shared.changes.subscribe() }
    }
}

/// Under which terms an index files an object.
pub type Terms<K> = fn(&K) -> Vec<String>;

/// The objects, and the indexes over them.
struct Objects<K> {
    map: BTreeMap<Key, Arc<K>>,
    // Invariant: every index files exactly the objects of `map`, each under the terms that it has now.
    indexes: Vec<Index<K>>,
}

struct Index<K> {
    name: &'static str,
    terms: Terms<K>,
    postings: HashMap<String, Vec<Arc<K>>>,
}

impl<K> Objects<K> {
    fn new() -> Objects<K> {
        Objects { map: BTreeMap::new(), indexes: Vec::new() }
    }

    fn add_index(&mut self, name: &'static str, terms: Terms<K>) {
        if self.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, terms, postings: HashMap::new() };
        self.map.values().for_each(|object| index.file(object));
        self.indexes.push(index);
    }

    fn insert(&mut self, key: Key, new: Arc<K>) -> Option<Arc<K>> {
        let old = self.map.insert(key, Arc::clone(&new));
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.unfile(old);
            }
            index.file(&new);
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.map.remove(key)?;
        self.indexes.iter_mut().for_each(|index| index.unfile(&old));
        Some(old)
    }
}

impl<K> Index<K> {
    fn file(&mut self, object: &Arc<K>) {
        for term in (self.terms)(object) {
            self.postings.entry(term).or_default().push(Arc::clone(object));
        }
    }

    fn unfile(&mut self, object: &Arc<K>) {
        for term in (self.terms)(object) {
            let Some(posting) = self.postings.get_mut(&term) else { continue };
            if let Some(at) = posting.iter().position(|o| Arc::ptr_eq(o, object)) {
                posting.swap_remove(at);
            }
            if posting.is_empty() {
                self.postings.remove(&term);
            }
        }
    }
}

impl<K> Drop for Cache<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A subscriber's place in a cache's changes.
pub struct Subscription<K> {
    changes: broadcast::Receiver<Arc<Change<K>>>,
}

impl<K: Object> Subscription<K> {
    /// The next change, or none when the cache is gone.
    pub async fn next(&mut self) -> Option<Update<K>> {
        match self.changes.recv().await {
            Ok(change) => Some(Update::Change(change)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Update::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl<K> Shared<K> {
    // A panic while the lock is held leaves the map whole: every change is one insert or one remove.
    fn read(&self) -> RwLockReadGuard<'_, Objects<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects<K>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Object> Shared<K> {
    fn put(&self, object: K) {
        let revision = object::revision(&object);
        let key = Key::of(&object);
        let new = Arc::new(object);
        let old = self.write().insert(key.clone(), Arc::clone(&new));
        self.announce(Change { key, old, new: Some(new) });
        self.reach(revision);
    }

    fn remove(&self, object: &K) {
        let key = Key::of(object);
        let old = self.write().remove(&key);
        if old.is_some() {
            self.announce(Change { key, old, new: None });
        }
        self.reach(object::revision(object));
    }

    /// Takes over a whole list, telling only what differs. The list is the newest there is, so one of an earlier revision
    /// says that the store was put back; its revisions then name other versions than those known here.
    fn replace(&self, items: Vec<K>, revision: u64) {
        let put_back = revision < *self.revision.borrow();
        let mut gone: HashMap<Key, Arc<K>> = self.read().map.iter().map(|(k, o)| (k.clone(), Arc::clone(o))).collect();
        for item in items {
            let old = gone.remove(&Key::of(&item));
            if put_back || old.is_none_or(|o| object::revision(&*o) != object::revision(&item)) {
                let key = Key::of(&item);
                let new = Arc::new(item);
                let old = self.write().insert(key.clone(), Arc::clone(&new));
                self.announce(Change { key, old, new: Some(new) });
            }
        }
        for (key, old) in gone {
            self.write().remove(&key);
            self.announce(Change { key, old: Some(old), new: None });
        }
        if put_back {
            self.revision.send_replace(revision);
        }
        self.reach(revision);
    }

    fn announce(&self, change: Change<K>) {
        // No subscriber is no fault.
        let _ = self.changes.send(Arc::new(change));
    }

    /// Readers are told after the change is in place, so a waiter finds what it waited for.
    fn reach(&self, revision: u64) {
        self.revision.send_if_modified(|r| {
            let ahead = revision > *r;
            *r = (*r).max(revision);
            ahead
        });
    }
}

/// Keeps a cache current for as long as it lives.
async fn follow<K: Object>(client: Client, params: ListParams, shared: Arc<Shared<K>>) {
    let mut pause = Pause::new();
    let mut listed = false;
    loop {
        let before = *shared.revision.borrow();
        let attempt = advance(client.clone(), params.clone(), Arc::clone(&shared), listed).await;
        let seen = *shared.revision.borrow();
        if attempt.is_ok() || listed && seen > before {
            pause.reset();
        }
        match attempt {
            Ok(()) => listed = true,
            Err(error) => {
                tracing::debug!(kind = K::KIND, %error, "the watch broke off");
                // A revision that is compacted, or was taken back, cannot be watched from: start over with a list. All
                // else resumes where it stopped.
                listed = seen > 0 && !error.is_expired() && !error.is_ahead();
            }
        }
        tokio::time::sleep(pause.next()).await;
    }
}

/// Lists if that is still to be done, then follows one watch to its orderly end.
async fn advance<K: Object>(client: Client, params: ListParams, shared: Arc<Shared<K>>, listed: bool) -> Result<()> {
    if !listed {
        let answer = client.fetch(request::list_url::<K>(&params)).await?;
        let list = request::decode_list::<K>(&answer)?;
        shared.replace(list.items, list.revision);
    }
    let url = watch::url::<K>(&params, *shared.revision.borrow());
    let mut stream = Watch::open(&client, url).await?;
    while let Some(line) = stream.next().await? {
        match watch::decode::<K>(&line)? {
            Event::Put(object) => shared.put(object),
            Event::Delete(object) => shared.remove(&object),
            Event::Bookmark(revision) => shared.reach(revision),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    #[tokio::test]
    async fn a_store_put_back_is_followed() {
        let shared = Shared::<ConfigMap> {
            objects: RwLock::new(Objects::new()),
            revision: latest::Sender::new(0),
            changes: broadcast::Sender::new(CHANGES_KEPT),
        };
        let map = |name: &str, revision: u64| ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                resource_version: Some(revision.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        shared.replace(vec![map("a", 3), map("b", 9)], 9);
        let mut changes = shared.changes.subscribe();
        shared.replace(vec![map("a", 3), map("b", 9)], 10);
        assert!(changes.try_recv().is_err(), "nothing differs");
        shared.replace(vec![map("a", 3)], 5);
        let told: Vec<String> = std::iter::from_fn(|| changes.try_recv().ok()).map(|c| c.key.name.clone()).collect();
        assert_eq!((told.join(" ").as_str(), *shared.revision.borrow()), ("a b", 5));
    }

    #[test]
    fn indexes_follow_the_objects() {
        let words: Terms<String> = |text| text.split(' ').map(str::to_owned).collect();
        let mut objects = Objects::new();
        let key = |name: &str| Key::new("", name);
        objects.insert(key("a"), Arc::new("red small".to_owned()));
        objects.add_index("words", words);
        objects.insert(key("b"), Arc::new("red large".to_owned()));
        let count = |objects: &Objects<String>, term: &str| objects.indexes[0].postings.get(term).map_or(0, Vec::len);
        assert_eq!((count(&objects, "red"), count(&objects, "small")), (2, 1));
        objects.insert(key("a"), Arc::new("blue small".to_owned()));
        assert_eq!((count(&objects, "red"), count(&objects, "blue")), (1, 1));
        objects.remove(&key("b"));
        assert_eq!((count(&objects, "red"), count(&objects, "large")), (0, 0));
        assert_eq!(objects.indexes[0].postings.len(), 2, "empty postings go");
    }
}
