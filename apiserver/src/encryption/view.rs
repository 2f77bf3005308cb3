//! The store's state at one revision, in which every value is plain; and plain values on their way into the store.

use std::{borrow::Cow, sync::Arc};

use api::status::Status;
use bytes::Bytes;
use store::{Compare, KeyValue, Revision, Snapshot};

use super::{
    Sealed, Vault,
    envelope::{self, Form},
};
use crate::{entropy, keys};

pub struct View<'a> {
    vault: &'a Vault,
    snapshot: Snapshot,
}

impl<'a> View<'a> {
    pub(super) fn new(vault: &'a Vault, snapshot: Snapshot) -> Self {
        Self { vault, snapshot }
    }

    pub fn revision(&self) -> Revision {
        self.snapshot.revision()
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.snapshot.get(key).is_some()
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, Arc<KeyValue>>>, Status> {
        self.snapshot.get(key).map(|kv| self.vault.plain(kv)).transpose()
    }

    /// What the store has, encrypted or not: for those who want to know that it is there, and not what it is.
    pub fn sealed(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.snapshot.get(key)
    }

    /// The values of `start..end`. One that cannot be read is an error in its place.
    pub fn range(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = Result<Cow<'_, Arc<KeyValue>>, Status>> {
        self.snapshot.range(start..end).map(|kv| self.vault.plain(kv))
    }

    pub fn count(&self, start: &[u8], end: &[u8]) -> usize {
        self.snapshot.count(start, end)
    }

    /// Whether a value would be written again as it is written: encrypted with the key of today, or plain.
    pub fn is_current(&self, key: &[u8]) -> Result<bool, Status> {
        let Some(kv) = self.snapshot.get(key) else { return Ok(true) };
        let encrypts = self.vault.encrypts(keys::resource(key));
        match envelope::form(&kv.value) {
            Form::Plain => Ok(!encrypts),
            Form::Sealed { id, .. } => Ok(encrypts && self.vault.keyring(&self.snapshot)?.record.primary == id),
            Form::Foreign => Ok(false),
        }
    }

    /// A value as the store gets it.
    pub fn seal(&self, key: &Bytes, value: &Bytes) -> Result<Sealed, Status> {
        match self.vault.encrypts(keys::resource(key)) {
            true => self.encrypt(key, value),
            false => Ok(Sealed { value: value.clone(), guard: None }),
        }
    }

    pub(super) fn encrypt(&self, key: &Bytes, value: &Bytes) -> Result<Sealed, Status> {
        let ring = self.vault.keyring(&self.snapshot)?;
        if ring.is_worn(self.revision()) {
            self.vault.worn.notify_one();
        }
        let id = ring.record.primary;
        let Some(primary) = ring.keys.get(&id) else {
            return Err(Status::internal(format!("{} has no key {id}", keys::ENCRYPTION)));
        };
        let value = envelope::seal(id, primary, entropy::bytes(), key, value);
        let record = Bytes::from_static(keys::ENCRYPTION.as_bytes());
        Ok(Sealed { value, guard: Some(Compare::ModRevision { key: record, equals: ring.revision }) })
    }
}
