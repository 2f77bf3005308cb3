//! The keys in their order, each with what is known of it. A clone is a pointer copy.
//!
//! A key's first bytes lie in the tree itself. The rest lies elsewhere, each key's in another place: to look there at every
//! step of a search would cost more than all the rest of it, and where keys differ early only the last step has to.

use std::{
    ops::Bound::{Excluded, Included, Unbounded},
    sync::Arc,
};

use bytes::Bytes;
use equivalent::{Comparable, Equivalent};
use imbl::OrdMap;

use crate::KeyValue;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Map(OrdMap<Key, Arc<KeyValue>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    head: u64,
    bytes: Bytes,
}

/// A key that is looked for.
struct Sought<'a> {
    head: u64,
    bytes: &'a [u8],
}

impl<'a> Sought<'a> {
    fn new(bytes: &'a [u8]) -> Sought<'a> {
        Sought { head: head(bytes), bytes }
    }
}

impl Comparable<Key> for Sought<'_> {
    fn compare(&self, key: &Key) -> std::cmp::Ordering {
        self.head.cmp(&key.head).then_with(|| self.bytes.cmp(&key.bytes))
    }
}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.head == key.head && self.bytes == key.bytes
    }
}

/// The first bytes as a number of the same order; what is missing counts as zeros, so keys of one head may differ yet.
fn head(key: &[u8]) -> u64 {
    match key.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => key.iter().rev().fold(0, |head, &byte| head >> 8 | u64::from(byte) << 56),
    }
}

impl Map {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.0.contains_key(&Sought::new(key))
    }

    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.0.get(&Sought::new(key))
    }

    /// What is put in its place must be of the same key.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut Arc<KeyValue>> {
        self.0.get_mut(&Sought::new(key))
    }

    /// Answers what was there before.
    pub fn insert(&mut self, kv: Arc<KeyValue>) -> Option<Arc<KeyValue>> {
        let key = Key { head: head(&kv.key), bytes: kv.key.clone() };
        self.0.insert(key, kv)
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        self.0.remove(&Sought::new(key))
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.0.values()
    }

    /// What lies in `start..end`, an empty `end` being no bound.
    pub fn range<'a>(&'a self, start: &[u8], end: &[u8]) -> impl Iterator<Item = &'a Arc<KeyValue>> + use<'a> {
        // A backwards range is empty, where the tree itself would panic.
        let backwards = !end.is_empty() && end <= start;
        let (lower, upper) = (Sought::new(start), Sought::new(end));
        let upper = if end.is_empty() { Unbounded } else { Excluded(&upper) };
        let found = (!backwards).then(|| self.0.range::<_, Sought<'_>>((Included(&lower), upper)));
        found.into_iter().flatten().map(|(_, kv)| kv)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Short, with many that begin alike, and with bytes at both ends.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        (any::<bool>(), vec(prop::sample::select(&[0u8, 1, 0x7f, 0xff][..]), 0..11)).prop_map(|(long, tail)| {
            let head = if long { &b"/registry"[..] } else { b"" };
            [head, &tail].concat()
        })
    }

    fn blank() -> KeyValue {
        let (key, value) = (Bytes::new(), Bytes::new());
        KeyValue { key, value, create_revision: 1, mod_revision: 1, version: 1, lease: None }
    }

    proptest! {
        #[test]
        fn keys_are_found_and_in_order(keys in vec((any::<bool>(), key()), 0..60), (start, end) in (key(), key())) {
            let (mut map, mut model) = (Map::default(), BTreeMap::new());
            for (stays, key) in keys {
                let kv = Arc::new(KeyValue { key: key.clone().into(), ..blank() });
                prop_assert_eq!(map.contains(&key), model.contains_key(&key));
                match stays {
                    true => prop_assert_eq!(map.insert(kv.clone()), model.insert(key, kv)),
                    false => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
            }
            prop_assert!(map.values().eq(model.values()));
            let within = model.iter().filter(|(key, _)| **key >= start && (end.is_empty() || **key < end));
            prop_assert!(map.range(&start, &end).eq(within.map(|(_, kv)| kv)));
            prop_assert!(model.iter().all(|(key, kv)| map.get(key) == Some(kv)));
        }
    }
}
