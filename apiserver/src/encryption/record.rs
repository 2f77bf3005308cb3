//! What the store knows of the keys: which data keys there are, each wrapped by the key-encryption key, which of them
//! writes, and how far a rotation is. One value, so that it changes as a whole. Pure.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use super::envelope::{KEY_LEN, Key, KeyId, NONCE_LEN};

/// Keys that may wait for their end at a time: who rotates again and again gets no more than these into the record.
pub const MAX_KEYS: usize = 16;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The key that values are written with.
    pub primary: KeyId,
    /// The primary and those before it that may still be needed, in the order in which they came.
    pub keys: Vec<DataKey>,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKey {
    pub id: KeyId,
    /// When it was made, for people.
    pub created: String,
    /// A revision before its first use.
    pub since: u64,
    wrapped: String,
}

/// How far a rotation is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    Settled,
    /// Values of `resources` are being written with the primary key, and all others plain.
    Rewriting { resources: Vec<String> },
    /// From revision `after` on no value needs the keys before the primary. The history may.
    Retiring { after: u64 },
}

/// What a new key is made of.
pub struct Birth<'a> {
    pub key: &'a [u8; KEY_LEN],
    pub nonce: [u8; NONCE_LEN],
    pub created: String,
    pub since: u64,
}

impl Record {
    /// A new cluster's.
    pub fn first(wrapping: &Key, birth: &Birth<'_>) -> Self {
        let key = DataKey::wrap(1, wrapping, birth);
        Self { primary: key.id, keys: vec![key], phase: Phase::Settled }
    }

    /// With a new primary key. `None` while the last rotation goes on, or too many keys wait for their end.
    pub fn rotated(&self, wrapping: &Key, birth: &Birth<'_>, resources: Vec<String>) -> Option<Self> {
        match self.phase {
            Phase::Settled | Phase::Retiring { .. } if self.keys.len() < MAX_KEYS => {}
            Phase::Settled | Phase::Retiring { .. } | Phase::Rewriting { .. } => return None,
        }
        // The primary is the newest key there ever was: its number is the highest.
        let key = DataKey::wrap(self.primary.checked_add(1)?, wrapping, birth);
        let mut keys = self.keys.clone();
        keys.push(key);
        Some(Self { primary: self.primary + 1, keys, phase: Phase::Rewriting { resources } })
    }

    /// At `revision` no value needs the old keys.
    pub fn rewritten(&self, revision: u64) -> Self {
        Self { phase: Phase::Retiring { after: revision }, ..self.clone() }
    }

    /// Without the old keys.
    pub fn retired(&self) -> Self {
        let keys = self.keys.iter().filter(|key| key.id == self.primary).cloned().collect();
        Self { primary: self.primary, keys, phase: Phase::Settled }
    }

    /// Whether a key is here that is about to go.
    pub fn is_old(&self, id: KeyId) -> bool {
        id != self.primary && self.keys.iter().any(|key| key.id == id)
    }

    pub fn primary(&self) -> Option<&DataKey> {
        self.keys.iter().find(|key| key.id == self.primary)
    }

    /// All keys as they are used. `None` when `wrapping` is not the key that they were wrapped by.
    pub fn unwrap(&self, wrapping: &Key) -> Option<BTreeMap<KeyId, Key>> {
        self.keys.iter().map(|key| Some((key.id, key.unwrap(wrapping)?))).collect()
    }
}

impl DataKey {
    fn wrap(id: KeyId, wrapping: &Key, birth: &Birth<'_>) -> Self {
        let mut wrapped = Vec::new();
        wrapping.encrypt(&mut wrapped, birth.nonce, &place(id), birth.key);
        let wrapped = BASE64_STANDARD.encode(wrapped);
        Self { id, created: birth.created.clone(), since: birth.since, wrapped }
    }

    fn unwrap(&self, wrapping: &Key) -> Option<Key> {
        let wrapped = BASE64_STANDARD.decode(&self.wrapped).ok()?;
        let key = wrapping.decrypt(&place(self.id), &wrapped)?;
        Some(Key::new(key.as_slice().try_into().ok()?))
    }
}

/// No data key can be passed off as another.
fn place(id: KeyId) -> Vec<u8> {
    format!("minik8s data key {id}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth(key: &[u8; KEY_LEN]) -> Birth<'_> {
        Birth { key, nonce: [key[0]; NONCE_LEN], created: "2030-01-01T00:00:00Z".into(), since: 5 }
    }

    fn ids(record: &Record) -> Vec<KeyId> {
        record.keys.iter().map(|key| key.id).collect()
    }

    #[test]
    fn a_rotation_from_end_to_end() {
        let wrapping = Key::new(&[9; KEY_LEN]);
        let secrets = || vec!["secrets".to_owned()];
        let first = Record::first(&wrapping, &birth(&[1; KEY_LEN]));
        assert_eq!((first.primary, ids(&first), &first.phase), (1, vec![1], &Phase::Settled));

        let second = first.rotated(&wrapping, &birth(&[2; KEY_LEN]), secrets()).unwrap();
        assert_eq!((second.primary, ids(&second)), (2, vec![1, 2]));
        assert_eq!(second.phase, Phase::Rewriting { resources: secrets() });
        assert_eq!([0, 1, 2].map(|id| second.is_old(id)), [false, true, false]);
        assert_eq!(second.rotated(&wrapping, &birth(&[3; KEY_LEN]), secrets()), None, "one at a time");

        let waiting = second.rewritten(77);
        assert_eq!((&waiting.phase, ids(&waiting)), (&Phase::Retiring { after: 77 }, vec![1, 2]));
        let third = waiting.rotated(&wrapping, &birth(&[3; KEY_LEN]), secrets()).unwrap();
        assert_eq!((third.primary, ids(&third)), (3, vec![1, 2, 3]), "the old ones go together");
        let end = third.rewritten(99).retired();
        assert_eq!((end.primary, ids(&end), &end.phase), (3, vec![3], &Phase::Settled));
        let fourth = end.rotated(&wrapping, &birth(&[4; KEY_LEN]), secrets()).unwrap();
        assert_eq!(ids(&fourth), [3, 4], "no number is given twice");
    }

    #[test]
    fn keys_are_bounded() {
        let wrapping = Key::new(&[9; KEY_LEN]);
        let mut record = Record::first(&wrapping, &birth(&[1; KEY_LEN]));
        for _ in 1..MAX_KEYS {
            record = record.rotated(&wrapping, &birth(&[2; KEY_LEN]), Vec::new()).unwrap().rewritten(5);
        }
        assert_eq!(record.rotated(&wrapping, &birth(&[2; KEY_LEN]), Vec::new()), None);
        assert!(record.retired().rotated(&wrapping, &birth(&[2; KEY_LEN]), Vec::new()).is_some());
    }

    #[test]
    fn keys_come_back_with_the_key_that_wrapped_them() {
        let wrapping = Key::new(&[9; KEY_LEN]);
        let record = Record::first(&wrapping, &birth(&[1; KEY_LEN]));
        let record = record.rotated(&wrapping, &birth(&[2; KEY_LEN]), Vec::new()).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        let keys = record.unwrap(&wrapping).unwrap();
        let mut sealed = Vec::new();
        Key::new(&[2; KEY_LEN]).encrypt(&mut sealed, [0; NONCE_LEN], b"p", b"x");
        assert_eq!(keys[&2].decrypt(b"p", &sealed).as_deref(), Some(&b"x"[..]));
        assert!(keys[&1].decrypt(b"p", &sealed).is_none());
        assert!(record.unwrap(&Key::new(&[8; KEY_LEN])).is_none());

        let mut swapped = record.clone();
        swapped.keys[0].wrapped = record.keys[1].wrapped.clone();
        assert!(swapped.unwrap(&wrapping).is_none(), "each has its number");
    }
}
