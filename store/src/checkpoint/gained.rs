//! What the base has gained since a checkpoint was written, noted where the history forgets it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{EventKind, KeyValue, mvcc::Change};

/// How much is noted: values that nothing else may hold any more. Under more load than that between two cuts of the log,
/// which takes 32 MB of it and more, a checkpoint would do nothing else than follow.
const KEYS: usize = 16 << 10;
const BYTES: usize = 8 << 20;

/// Each key that has changed, or nothing once that was too much: then the checkpoint can only be written anew.
#[derive(Debug)]
pub struct Gained(Option<Keys>);

#[derive(Debug, Default)]
struct Keys {
    changed: BTreeMap<Bytes, Changed>,
    bytes: usize,
}

/// A key before and after, as far as it was there.
#[derive(Debug)]
pub struct Changed {
    pub before: Option<Arc<KeyValue>>,
    pub now: Option<Arc<KeyValue>>,
}

impl Default for Gained {
    fn default() -> Gained {
        Gained(Some(Keys::default()))
    }
}

impl Gained {
    pub fn note(&mut self, changes: &[Change]) {
        let Some(keys) = &mut self.0 else { return };
        for event in changes.iter().filter_map(|change| change.batch.as_ref()).flat_map(|batch| &batch.events) {
            let now = (event.kind == EventKind::Put).then(|| event.kv.clone());
            keys.bytes += size_of(now.as_ref());
            match keys.changed.get_mut(&event.kv.key) {
                Some(changed) => keys.bytes -= size_of(std::mem::replace(&mut changed.now, now).as_ref()),
                None => {
                    let before = event.previous.clone();
                    keys.bytes += event.kv.key.len() + size_of(before.as_ref());
                    keys.changed.insert(event.kv.key.clone(), Changed { before, now });
                }
            }
        }
        if keys.changed.len() >= KEYS || keys.bytes >= BYTES {
            self.0 = None;
        }
    }

    /// The keys that have changed, in order; nothing where they were too many.
    pub fn into_keys(self) -> Option<BTreeMap<Bytes, Changed>> {
        self.0.map(|keys| keys.changed)
    }
}

fn size_of(kv: Option<&Arc<KeyValue>>) -> usize {
    kv.map_or(0, |kv| kv.value.len())
}
