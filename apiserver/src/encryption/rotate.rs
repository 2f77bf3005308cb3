//! New keys, and what follows from them: values are written again, and keys that nothing needs any more are removed.
//!
//! How far a rotation is stands in the record and in the values themselves, so every server can go on with it at any time,
//! after a restart too. Whoever leads does; should two believe that they do, one finds it done.

use std::{sync::Arc, time::Duration};

use api::status::{Reason, Status};
use bytes::Bytes;
use futures_util::future::join_all;
use store::{Compare, KeyValue, Op, Revision, Snapshot, Txn};
use tokio::time::sleep;

use super::{
    Keyring, Sealed, Vault, birth,
    envelope::{self, Form},
    record::{MAX_KEYS, Phase},
};
use crate::{entropy, keys, objects::store_failure};

/// Values written at a time: enough for the store to put some into one sync of the disk, few enough not to be in the way.
const REWRITES_AT_ONCE: usize = 16;
/// Attempts against concurrent writers. Whoever wins has mostly written the value as it should be.
const MAX_TRIES: usize = 32;
/// Pause after a step failed. What cannot be decrypted stays so until somebody deletes it.
const RETRY: Duration = Duration::from_secs(60);
/// How long the history may need old keys: a watch or a list in pages that began before the rewriting still reads values
/// of then. The store forgets them by itself after ten minutes, if it is written to meanwhile.
const HISTORY: Duration = Duration::from_secs(15 * 60);

/// What a rotation waits for.
enum Wait {
    /// To be asked for.
    Nothing,
    Retry,
    /// The history up to this revision to be needed no more.
    History(Revision),
}

/// Carries out rotations for as long as the store is open.
pub async fn run(vault: Arc<Vault>) {
    let record = keys::Range::key(Bytes::from_static(keys::ENCRYPTION.as_bytes()));
    let mut group = vault.store.group();
    loop {
        group.mark_unchanged();
        // Watched before the record is read, so that no change falls in between.
        let Ok(mut changes) = vault.store.watch(record.start.clone(), record.end.clone(), 0) else { return };
        let step = vault.step().await;
        vault.note(step.as_ref().err());
        let wait = step.unwrap_or(Wait::Retry);
        let pause = match wait {
            Wait::Nothing => Duration::MAX,
            Wait::Retry => RETRY,
            Wait::History(_) => HISTORY,
        };
        tokio::select! {
            change = changes.next() => if let Err(store::WatchError::Closed) = change { return },
            () = vault.worn.notified() => {}
            changed = group.changed() => if changed.is_err() { return },
            () = sleep(pause) => if let Wait::History(after) = wait {
                // An idle store forgets nothing by itself. Should this fail, it is tried again as long after.
                let _ = vault.store.compact(after).await;
            }
        }
    }
}

impl Vault {
    /// Makes a new key, with which everything is written from now on, and has the rest written again.
    pub async fn rotate(&self) -> Result<(), Status> {
        for _ in 0..MAX_TRIES {
            let snapshot = self.store.snapshot();
            let ring = self.keyring(&snapshot)?;
            let key = entropy::bytes();
            let resources = self.resources.iter().cloned().collect();
            let rotated = ring.record.rotated(self.wrapping()?, &birth(&key, snapshot.revision()), resources);
            let Some(rotated) = rotated else {
                let why = format!(
                    "a rotation is under way, or {MAX_KEYS} keys wait for the history to need them no more: see the status"
                );
                return Err(Status::new(Reason::Conflict, why));
            };
            if self.replace(&ring, &rotated).await? {
                tracing::info!(key = rotated.primary, "a new key encrypts what is written");
                return Ok(());
            }
        }
        Err(Status::too_many_requests("the keys are being changed by others, please try again", 1))
    }

    /// Has the one who rotates look at the record once more, before its time.
    #[cfg(test)]
    pub fn look_again(&self) {
        self.worn.notify_one();
    }

    fn note(&self, trouble: Option<&Status>) {
        if let Some(trouble) = trouble {
            tracing::error!(error = %trouble.message, "a rotation of keys does not go on, trying again in {} s", RETRY.as_secs());
        }
        let mut noted = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *noted = trouble.map(|status| status.message.clone());
    }

    /// Does what the record says is to be done.
    async fn step(&self) -> Result<Wait, Status> {
        self.store.read_barrier().await.map_err(store_failure)?;
        let snapshot = self.store.snapshot();
        let ring = self.keyring(&snapshot)?;
        let leads = self.store.group().borrow().leads();
        match &ring.record.phase {
            // Whoever notices it: it may be the one alone who writes.
            Phase::Settled if ring.is_worn(snapshot.revision()) => {
                self.rotate().await?;
                Ok(Wait::Nothing)
            }
            Phase::Settled => Ok(Wait::Nothing),
            Phase::Rewriting { .. } | Phase::Retiring { .. } if !leads => Ok(Wait::Nothing),
            Phase::Rewriting { resources } => {
                self.rewrite(&ring, resources).await?;
                Ok(Wait::Nothing)
            }
            Phase::Retiring { after } if self.store.status().oldest_revision < *after => Ok(Wait::History(*after)),
            Phase::Retiring { .. } => {
                self.replace(&ring, &ring.record.retired()).await?;
                Ok(Wait::Nothing)
            }
        }
    }

    /// Writes everything again that is not written as it should be.
    async fn rewrite(&self, ring: &Keyring, resources: &[String]) -> Result<(), Status> {
        let wrong: Vec<Bytes> = wrong(&self.store.snapshot(), ring, resources).map(|kv| kv.key.clone()).collect();
        let mut failed = Vec::new();
        for some in wrong.chunks(REWRITES_AT_ONCE) {
            let ended = join_all(some.iter().map(|key| self.rewrite_one(ring, resources, key))).await;
            failed.extend(ended.into_iter().filter_map(Result::err));
        }
        let count = failed.len();
        if let Some(mut first) = failed.into_iter().next() {
            first.message = format!("{count} of {} values could not be written again: {}", wrong.len(), first.message);
            return Err(first);
        }
        let snapshot = self.store.snapshot();
        // From the rotation on nobody could write with an old key: once it is in no value, it is in none for good.
        if registry(&snapshot).any(|kv| is_old(kv, ring)) {
            return Err(Status::internal("values with old keys are left"));
        }
        self.replace(ring, &ring.record.rewritten(snapshot.revision())).await?;
        Ok(())
    }

    async fn rewrite_one(&self, ring: &Keyring, resources: &[String], key: &Bytes) -> Result<(), Status> {
        for _ in 0..MAX_TRIES {
            let view = self.snapshot();
            let Some(sealed) = view.sealed(key) else { return Ok(()) };
            if !is_wrong(sealed, ring, resources) {
                return Ok(());
            }
            let plain = self.plain(sealed)?;
            let Sealed { value, guard } = match wants(key, resources) {
                true => view.encrypt(key, &plain.value)?,
                false => Sealed { value: plain.value.clone(), guard: None },
            };
            let mut txn = Txn::default();
            txn.compare.push(Compare::ModRevision { key: key.clone(), equals: sealed.mod_revision });
            txn.compare.extend(guard);
            txn.then.push(Op::Put { key: key.clone(), value, lease: sealed.lease });
            if self.store.txn(txn).await.map_err(store_failure)?.succeeded {
                return Ok(());
            }
        }
        Err(Status::too_many_requests(format!("{} changes all the time", String::from_utf8_lossy(key)), 1))
    }
}

pub(super) fn registry(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<KeyValue>> {
    let range = keys::Range::prefix(keys::REGISTRY.into());
    snapshot.range(&range.start..&range.end)
}

/// What is not written as it should be.
pub(super) fn wrong<'a>(
    snapshot: &'a Snapshot,
    ring: &'a Keyring,
    resources: &'a [String],
) -> impl Iterator<Item = &'a Arc<KeyValue>> {
    registry(snapshot).filter(|kv| is_wrong(kv, ring, resources))
}

fn wants(key: &[u8], resources: &[String]) -> bool {
    let resource = keys::resource(key);
    resources.iter().any(|wanted| wanted == resource)
}

fn is_wrong(kv: &KeyValue, ring: &Keyring, resources: &[String]) -> bool {
    match envelope::form(&kv.value) {
        Form::Plain => wants(&kv.key, resources),
        Form::Sealed { id, .. } => id != ring.record.primary || !wants(&kv.key, resources),
        Form::Foreign => true,
    }
}

fn is_old(kv: &KeyValue, ring: &Keyring) -> bool {
    match envelope::form(&kv.value) {
        Form::Plain | Form::Foreign => false,
        Form::Sealed { id, .. } => ring.record.is_old(id),
    }
}
