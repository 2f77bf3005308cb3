//! Encryption at rest: values of some resources lie in the store encrypted, and nobody but this module sees them so.
//!
//! - [`envelope`]: a value under a key
//! - [`record`]: what the store knows of the keys
//! - [`Vault`], here: the store behind the API; [`view`]: its state, in which every value is plain
//! - [`rotate`]: new keys, and what follows from them
//! - [`admin`]: what `minik8s encryption` asks for
//!
//! Invariant: the record of a revision has every key that a value of that revision is encrypted with. A write of an
//! encrypted value compares the record that it took its key from, so none can come late with a key that is going.
//! Invariant: the key-encryption key never leaves its file and this process's memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use api::{registry, status::Status, time};
use bytes::Bytes;
use store::{Compare, KeyValue, LeaseId, Op, Revision, Snapshot, Store, Txn, TxnResult, Watcher};
use tokio::sync::Notify;

use crate::{Error, clock, entropy, keys, objects::store_failure, pki};

pub mod admin;
mod envelope;
mod record;
pub mod rotate;
mod view;

pub use envelope::KEY_LEN;
pub use view::View;

use envelope::{Form, Key, KeyId};
use record::{Birth, Record};

/// After so many revisions a key is replaced without being asked. It has written no more values than that, but for those
/// that lost to another write. Random nonces of 96 bits are good for 2^32 values of one key: beyond that two may be the same
/// with a chance of more than 2^-32. Half of it leaves as much for what was lost.
const MAX_WRITES: u64 = 1 << 31;

/// The store, by which what must not be read on the disk is encrypted and decrypted.
pub struct Vault {
    store: Store,
    key_file: PathBuf,
    /// What the file holds, once it is there.
    wrapping: OnceLock<Key>,
    /// What is encrypted when it is written, by name: `secrets`, `widgets.example.com`.
    resources: BTreeSet<String>,
    keyring: RwLock<Arc<Keyring>>,
    opened: Opened,
    /// Tells the one who rotates that a key has been used for long enough.
    worn: Notify,
    /// Why the last step of a rotation failed, for people.
    trouble: Mutex<Option<String>>,
}

/// The record of the keys as of a revision, and the keys. The first one has none, of revision 0.
#[derive(Default)]
struct Keyring {
    revision: Revision,
    record: Record,
    /// Also those that the record had before: the history may need them.
    keys: BTreeMap<KeyId, Arc<Key>>,
}

/// A value for the store.
pub struct Sealed {
    pub value: Bytes,
    /// What must hold at the commit.
    pub guard: Option<Compare>,
}

impl Vault {
    /// What is encrypted can be read at once where the key file is there already, and else after [`Vault::begin`].
    pub fn new(store: Store, data_dir: &Path, encrypt: &[String]) -> Result<Self, Error> {
        let wrapping = OnceLock::new();
        if let Some(key) = pki::encryption_key(data_dir)? {
            wrapping.get_or_init(|| Key::new(&key));
        }
        Ok(Self {
            store,
            key_file: data_dir.join(pki::ENCRYPTION_KEY),
            wrapping,
            resources: resources(encrypt)?,
            keyring: RwLock::default(),
            opened: Opened::default(),
            worn: Notify::new(),
            trouble: Mutex::new(None),
        })
    }

    /// Makes the cluster's keys where there are none. To be called when this server has what the others have.
    pub async fn begin(&self, data_dir: &Path) -> Result<(), Error> {
        let record = keys::ENCRYPTION.as_bytes();
        let snapshot = self.store.snapshot();
        let is_there = snapshot.get(record).is_some();
        let wrapping = match self.wrapping.get() {
            Some(wrapping) => wrapping,
            None if is_there => {
                return Err(Error::EncryptionKey { path: self.key_file.clone(), what: "is missing" });
            }
            None => {
                let key = pki::make_encryption_key(data_dir)?;
                self.wrapping.get_or_init(|| Key::new(&key))
            }
        };
        if !is_there {
            found(&self.store, &snapshot, wrapping).await?;
        }
        let snapshot = self.store.snapshot();
        let kv = snapshot.get(record).ok_or_else(|| not_yet("it is written, and not here yet".into()))?;
        let record = read(kv).map_err(|what| Error::Encryption { what })?;
        if record.unwrap(wrapping).is_none() {
            let what = "is another one than the keys in the store were encrypted with";
            return Err(Error::EncryptionKey { path: self.key_file.clone(), what });
        }
        Ok(())
    }

    /// The store as it is: for its members and for backups. Who reads objects of it finds some of them encrypted.
    pub fn raw(&self) -> &Store {
        &self.store
    }

    pub fn snapshot(&self) -> View<'_> {
        View::new(self, self.store.snapshot())
    }

    pub fn snapshot_at(&self, revision: Revision) -> Result<View<'_>, store::Error> {
        Ok(View::new(self, self.store.snapshot_at(revision)?))
    }

    /// The values of its events are for [`Vault::shared`].
    pub fn watch(&self, start: Bytes, end: Bytes, from: Revision) -> Result<Watcher, store::Error> {
        self.store.watch(start, end, from)
    }

    pub async fn read_barrier(&self) -> Result<(), store::Error> {
        self.store.read_barrier().await
    }

    /// Its values are those of [`View::seal`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnResult, store::Error> {
        self.store.txn(txn).await
    }

    pub async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, store::Error> {
        self.store.lease_grant(ttl).await
    }

    /// The plain form of what the store has. A plain value is returned as it is.
    fn plain<'a>(&self, kv: &'a Arc<KeyValue>) -> Result<Cow<'a, Arc<KeyValue>>, Status> {
        let (id, sealed) = match envelope::form(&kv.value) {
            Form::Plain => return Ok(Cow::Borrowed(kv)),
            Form::Sealed { id, sealed } => (id, sealed),
            Form::Foreign => return Err(unreadable(&kv.key, "it is cut short, or written by a later version")),
        };
        let Some(key) = self.key(id)? else {
            return Err(unreadable(&kv.key, &format!("there is no key {id} in this cluster")));
        };
        let Some(plain) = key.decrypt(&kv.key, sealed) else {
            return Err(unreadable(&kv.key, "it has been changed, or was written for another place"));
        };
        Ok(Cow::Owned(Arc::new(KeyValue { value: plain.into(), ..KeyValue::clone(kv) })))
    }

    /// The plain form of a value that many look at at about the same time, as watchers do: it is decrypted once for them.
    pub fn shared<'a>(&self, kv: &'a Arc<KeyValue>) -> Result<Cow<'a, Arc<KeyValue>>, Status> {
        match envelope::form(&kv.value) {
            Form::Plain => Ok(Cow::Borrowed(kv)),
            Form::Sealed { .. } | Form::Foreign => self.opened.get(kv, || Ok(self.plain(kv)?.into_owned())),
        }
    }

    /// A key by its number. One that is not known here has been made by another server: the store has it.
    fn key(&self, id: KeyId) -> Result<Option<Arc<Key>>, Status> {
        if let Some(key) = self.known().keys.get(&id) {
            return Ok(Some(key.clone()));
        }
        Ok(self.keyring(&self.store.snapshot())?.keys.get(&id).cloned())
    }

    fn known(&self) -> Arc<Keyring> {
        self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys as of a snapshot, or of later.
    fn keyring(&self, snapshot: &Snapshot) -> Result<Arc<Keyring>, Status> {
        let known = self.known();
        let gone = || match known.revision {
            0 => starting(),
            _ => Status::internal(format!("the store has lost {}: restore a snapshot", keys::ENCRYPTION)),
        };
        let kv = snapshot.get(keys::ENCRYPTION.as_bytes()).ok_or_else(gone)?;
        if known.revision >= kv.mod_revision {
            return Ok(known);
        }
        let record = read(kv).map_err(Status::internal)?;
        let foreign = || Status::internal(format!("{} does not open {}", self.key_file.display(), keys::ENCRYPTION));
        let unwrapped = record.unwrap(self.wrapping()?).ok_or_else(foreign)?;
        let mut keys = known.keys.clone();
        keys.extend(unwrapped.into_iter().map(|(id, key)| (id, Arc::new(key))));
        let read = Arc::new(Keyring { revision: kv.mod_revision, record, keys });
        let mut current = self.keyring.write().unwrap_or_else(PoisonError::into_inner);
        if current.revision < read.revision {
            *current = read;
        }
        Ok(current.clone())
    }

    fn wrapping(&self) -> Result<&Key, Status> {
        self.wrapping.get().ok_or_else(starting)
    }

    fn encrypts(&self, resource: &str) -> bool {
        self.resources.contains(resource)
    }

    /// Puts a record in the place of the one that `ring` has. False when somebody else has done so.
    async fn replace(&self, ring: &Keyring, record: &Record) -> Result<bool, Status> {
        self.store.txn(put(record, ring.revision)).await.map(|result| result.succeeded).map_err(store_failure)
    }
}

impl Keyring {
    /// Whether the primary key has been used as often as it may be.
    fn is_worn(&self, now: Revision) -> bool {
        self.record.primary().is_some_and(|key| now.saturating_sub(key.since) > MAX_WRITES)
    }
}

fn read(kv: &KeyValue) -> Result<Record, String> {
    serde_json::from_slice(&kv.value).map_err(|error| format!("{}: {error}", keys::ENCRYPTION))
}

/// Writes the record, if the one there is of this revision.
fn put(record: &Record, revision: Revision) -> Txn {
    let key = Bytes::from_static(keys::ENCRYPTION.as_bytes());
    let value = serde_json::to_vec(record).expect("a record is plain data").into();
    Txn {
        compare: vec![Compare::ModRevision { key: key.clone(), equals: revision }],
        then: vec![Op::Put { key, value, lease: None }],
        otherwise: Vec::new(),
    }
}

/// Makes the cluster's first data key. Another server may be quicker, which is all right.
async fn found(store: &Store, snapshot: &Snapshot, wrapping: &Key) -> Result<(), Error> {
    // What is encrypted must not get a first key anew: its own would have the same number.
    let registry = keys::Range::prefix(keys::REGISTRY.into());
    let mut values = snapshot.range(&registry.start..&registry.end);
    if let Some(kv) = values.find(|kv| envelope::form(&kv.value) != Form::Plain) {
        let key = String::from_utf8_lossy(&kv.key);
        let what = format!("{} is gone, and {key} is encrypted; restore a snapshot", keys::ENCRYPTION);
        return Err(Error::Encryption { what });
    }
    let key = entropy::bytes();
    let record = Record::first(wrapping, &birth(&key, snapshot.revision()));
    let written = store.txn(put(&record, 0)).await;
    written.map(drop).map_err(|error| not_yet(error.to_string()))
}

/// What a server of several tries again.
fn not_yet(what: String) -> Error {
    Error::Bootstrap { object: keys::ENCRYPTION.into(), what }
}

fn birth(key: &[u8; KEY_LEN], since: Revision) -> Birth<'_> {
    Birth { key, nonce: entropy::bytes(), created: time::rfc3339(clock::seconds()), since }
}

/// What `--encrypt` names. Nothing is named by an empty word.
fn resources(encrypt: &[String]) -> Result<BTreeSet<String>, Error> {
    let known = |name: &String| {
        let kind = registry::ALL.iter().find(|kind| kind.resource() == *name);
        let what = "there is no such resource: name it as in secrets, configmaps or deployments.apps";
        kind.map(|kind| kind.stored().resource()).ok_or_else(|| Error::Flag {
            flag: "encrypt",
            value: name.clone(),
            what,
        })
    };
    encrypt.iter().filter(|name| !name.is_empty()).map(known).collect()
}

fn starting() -> Status {
    Status::service_unavailable("the server is starting").retry_after(1)
}

fn unreadable(key: &[u8], what: &str) -> Status {
    let shown = String::from_utf8_lossy(key);
    let shown = shown.strip_prefix(keys::REGISTRY).unwrap_or(&shown);
    let (resource, name) = shown.split_once('/').unwrap_or(("object", shown));
    Status::internal(format!(
        "{resource} {name:?} cannot be decrypted: {what}; whoever deletes it by its name gives it up"
    ))
}

/// Values that many look at at about the same time, as those of a change that many watch. Direct-mapped by revision.
struct Opened {
    slots: Vec<Mutex<Option<Pair>>>,
}

struct Pair {
    /// Held, so that its address names it for as long as the other one is here.
    sealed: Arc<KeyValue>,
    plain: Arc<KeyValue>,
}

/// More than the changes of secrets that are on their way to watchers at once.
const OPENED_SLOTS: usize = 64;
/// What is larger is decrypted for each who looks: all slots hold 4 MiB at most.
const OPENED_BYTES: usize = 64 << 10;

impl Default for Opened {
    fn default() -> Self {
        Self { slots: (0..OPENED_SLOTS).map(|_| Mutex::new(None)).collect() }
    }
}

impl Opened {
    fn get<'a>(
        &self,
        kv: &Arc<KeyValue>,
        open: impl FnOnce() -> Result<Arc<KeyValue>, Status>,
    ) -> Result<Cow<'a, Arc<KeyValue>>, Status> {
        let slot = &self.slots[kv.mod_revision as usize % OPENED_SLOTS];
        // Nothing panics while a slot is held, and what is in it is whole either way.
        if let Some(pair) = slot.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && Arc::ptr_eq(&pair.sealed, kv)
        {
            return Ok(Cow::Owned(pair.plain.clone()));
        }
        let plain = open()?;
        if plain.value.len() <= OPENED_BYTES {
            let pair = Pair { sealed: kv.clone(), plain: plain.clone() };
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
        }
        Ok(Cow::Owned(plain))
    }
}
