//! Events are news, not a record: an hour after their last change they go, and earlier when there are too many.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use client::{DeleteOptions, Key};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;

use crate::{
    plan::{Plan, Resource, Step, Target, Write},
    pod::remaining,
};

const LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// Some 50 MB of events; a storm that brings more in an hour loses its oldest.
const MOST: usize = 50_000;

/// When each event ends.
/// Invariant: `by_time` holds exactly the pairs of `ends`, turned around.
#[derive(Default)]
pub struct Ends {
    ends: HashMap<Key, Timestamp>,
    by_time: BTreeSet<(Timestamp, Key)>,
}

impl Ends {
    /// An event was written. Tells which keys are to be looked at.
    pub fn put(&mut self, key: Key, at: Timestamp) -> Vec<Key> {
        let end = at.checked_add(LIFETIME).unwrap_or(Timestamp::MAX);
        self.set(key.clone(), end);
        let mut touched = vec![key];
        if self.ends.len() > MOST
            && let Some((_, oldest)) = self.by_time.first().cloned()
        {
            self.set(oldest.clone(), Timestamp::MIN);
            touched.push(oldest);
        }
        touched
    }

    pub fn gone(&mut self, key: &Key) {
        if let Some(end) = self.ends.remove(key) {
            self.by_time.remove(&(end, key.clone()));
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        self.ends.keys().cloned().collect()
    }

    /// Forgets whatever is not among these.
    pub fn retain(&mut self, keys: &std::collections::HashSet<Key>) {
        let lost: Vec<Key> = self.ends.keys().filter(|k| !keys.contains(k)).cloned().collect();
        lost.iter().for_each(|key| self.gone(key));
    }

    fn set(&mut self, key: Key, end: Timestamp) {
        self.gone(&key);
        self.by_time.insert((end, key.clone()));
        self.ends.insert(key, end);
    }

    pub fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(end) = self.ends.get(key) else { return Plan::nothing() };
        let left = Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO);
        if let Some(left) = remaining(now, left, now) {
            return Plan::nothing().look_again(Some(left));
        }
        let target = Target::named(Resource::of::<Event>(), &key.namespace, &key.name);
        Plan::nothing().then(Step::together(vec![Write::delete(target, DeleteOptions::default())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn an_hour_after_the_last_change() {
        let (mut ends, key) = (Ends::default(), Key::new("x", "e"));
        ends.put(key.clone(), at(0));
        assert_eq!(ends.plan(&key, at(600)).after, Some(Duration::from_secs(3000)));
        ends.put(key.clone(), at(1000));
        assert_eq!(ends.plan(&key, at(3600)).after, Some(Duration::from_secs(1000)));
        assert_eq!(ends.plan(&key, at(4600)).steps.len(), 1);
        ends.gone(&key);
        assert_eq!(ends.plan(&key, at(4600)), Plan::nothing());
        assert!(ends.by_time.is_empty());
    }

    #[test]
    fn too_many_lose_their_oldest() {
        let mut ends = Ends::default();
        for i in 0..=MOST {
            let touched = ends.put(Key::new("x", i.to_string()), at(i64::try_from(i).expect("small")));
            assert_eq!(touched.len(), if i == MOST { 2 } else { 1 });
        }
        assert_eq!(ends.plan(&Key::new("x", "0"), at(0)).steps.len(), 1);
        assert!(ends.plan(&Key::new("x", "1"), at(0)).steps.is_empty());
    }
}
