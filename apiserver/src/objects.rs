//! Objects in the store: each change is read, decided and committed against what was read, and tried again when
//! somebody else was quicker.

use api::{
    meta,
    registry::{self, Kind},
    status::{Cause, CauseReason, Status},
};
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Compare, LeaseId, Op, Txn};
use tokio::time::{Duration, timeout};

use crate::{
    App, admit,
    admit::{DeleteOptions, Deleted, Updated},
    allocate, clock,
    encryption::{Sealed, View},
    entropy, keys,
    options::{At, DryRun},
    stored,
};

/// Attempts against concurrent writers. Each lost one means that somebody else's write went through.
const MAX_TRIES: usize = 32;
/// How long a read waits for a revision that this server has not seen yet.
const REVISION_WAIT: Duration = Duration::from_secs(3);
/// Events are kept as long as upstream keeps them.
const EVENT_LIFE: Duration = Duration::from_secs(3600);
/// Events share a lease for so long: one lease a minute instead of one an event.
const EVENT_LEASE_SHARE: Duration = Duration::from_secs(60);

/// An object as stored, or as it would have been.
pub struct Stored {
    pub value: Bytes,
    pub revision: u64,
}

/// What a delete left.
pub enum Gone {
    /// The object as it was.
    Removed(Value),
    /// It is still there, marked.
    Waiting(Stored),
}

/// What is committed of an object.
enum Write {
    Put(Sealed, Option<LeaseId>),
    Delete,
}

/// Which object, and whether to mean it.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    /// The kind under which the object is stored.
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub dry_run: DryRun,
}

impl Spot<'_> {
    fn key(&self) -> Bytes {
        keys::object(self.kind, self.namespace, self.name)
    }

    fn not_found(&self) -> Status {
        Status::not_found(self.kind, self.name)
    }
}

pub fn store_failure(error: store::Error) -> Status {
    use store::Error::{Closed, Compacted, Fatal, Future, LeaderChanged, NoSpace, Timeout, TooLarge, Unavailable};
    match error {
        // As the original has it: a 500, which nobody takes for a passing trouble.
        NoSpace { .. } => Status::internal(error),
        Compacted { .. } => Status::expired(format!("the requested revision is too old: {error}")),
        Future { requested, current } => Status::revision_too_large(requested, current, 1),
        TooLarge { limit, .. } => Status::request_entity_too_large(limit),
        Unavailable | Closed | Fatal { .. } => Status::service_unavailable(error.to_string()).retry_after(1),
        Timeout { .. } | LeaderChanged { .. } => Status::timeout(error.to_string(), 1),
        other => Status::internal(other),
    }
}

impl App {
    /// The state that a read asks for.
    pub async fn snapshot(&self, at: At) -> Result<View<'_>, Status> {
        match at {
            At::Any => Ok(self.store.snapshot()),
            At::Latest => {
                self.store.read_barrier().await.map_err(store_failure)?;
                Ok(self.store.snapshot())
            }
            At::NotOlderThan(revision) => self.snapshot_since(revision).await,
            At::Exact(revision) => {
                let newest = self.snapshot_since(revision).await?;
                if newest.revision() == revision {
                    return Ok(newest);
                }
                self.store.snapshot_at(revision).map_err(store_failure)
            }
        }
    }

    async fn snapshot_since(&self, revision: u64) -> Result<View<'_>, Status> {
        let snapshot = self.store.snapshot();
        if snapshot.revision() >= revision {
            return Ok(snapshot);
        }
        let arrives = async {
            let mut watcher = self.store.watch(Bytes::new(), Bytes::new(), revision).map_err(store_failure)?;
            loop {
                let snapshot = self.store.snapshot();
                if snapshot.revision() >= revision {
                    return Ok(snapshot);
                }
                if watcher.next().await.is_err() {
                    return Err(Status::service_unavailable("the server is stopping").retry_after(1));
                }
            }
        };
        match timeout(REVISION_WAIT, arrives).await {
            Ok(arrived) => arrived,
            Err(_) => Err(Status::revision_too_large(revision, self.store.snapshot().revision(), 1)),
        }
    }

    /// The newest version of an object.
    pub fn find(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let snapshot = self.store.snapshot();
        let kv = snapshot.get(&keys::object(kind, namespace, name))?;
        kv.map(|kv| stored::decode(&kv.value, kv.mod_revision)).transpose().map_err(Status::internal)
    }

    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        body: Value,
        dry_run: DryRun,
    ) -> Result<Stored, Status> {
        let mut attempts = Attempts::new(self);
        while attempts.next() {
            let attempt = self.try_create(kind, namespace, (&body, dry_run)).await;
            if let Some(done) = attempts.settle(attempt).await {
                return done;
            }
        }
        Err(too_busy(kind))
    }

    async fn try_create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        (body, dry_run): (&Value, DryRun),
    ) -> Result<Step<Stored>, Refusal> {
        let generated = meta::name(body).is_empty();
        let snapshot = self.store.snapshot();
        let (uid, random) = (entropy::uid(), entropy::bytes::<8>());
        let birth = admit::Birth { uid: &uid, now: clock::seconds(), random: &random };
        let mut object = admit::create(kind, namespace, body.clone(), birth)?;
        let name = meta::name(&object).to_owned();
        let key = keys::object(kind, namespace, &name);
        let exists = snapshot.contains(&key);
        if exists && generated {
            return Ok(Step::Again);
        }
        let home = home(&snapshot, kind, namespace, &name)?;
        if exists {
            return Err(Status::already_exists(kind, &name).into());
        }
        let claims = self.claims(kind, &snapshot, None, Some(&mut object))?;
        let value = stored::encode(&object);
        if dry_run == DryRun::All {
            return Ok(Step::Answered(Stored { value, revision: snapshot.revision() }));
        }
        let mut txn = Txn::default();
        txn.compare.push(Compare::ModRevision { key: key.clone(), equals: 0 });
        txn.compare.extend(home);
        txn.compare.extend(claims.compare);
        let sealed = snapshot.seal(&key, &value)?;
        txn.compare.extend(sealed.guard);
        txn.then.push(Op::Put { key, value: sealed.value, lease: self.lease(kind).await? });
        txn.then.extend(claims.ops);
        let result = self.store.txn(txn).await.map_err(|error| Refusal::Final(store_failure(error)))?;
        Ok(match result.succeeded {
            true => Step::Written(Stored { value, revision: result.revision }),
            false => Step::Again,
        })
    }

    /// Changes an object by `change`, which is asked again when the object changed in between.
    pub async fn update(
        &self,
        spot: Spot<'_>,
        mut change: impl FnMut(&Value) -> Result<Updated, Status>,
    ) -> Result<Stored, Status> {
        let mut attempts = Attempts::new(self);
        while attempts.next() {
            let attempt = self.try_update(spot, &mut change).await;
            if let Some(done) = attempts.settle(attempt).await {
                return done;
            }
        }
        Err(too_busy(spot.kind))
    }

    async fn try_update(
        &self,
        spot: Spot<'_>,
        change: &mut impl FnMut(&Value) -> Result<Updated, Status>,
    ) -> Result<Step<Stored>, Refusal> {
        let key = spot.key();
        let snapshot = self.store.snapshot();
        let kv = snapshot.get(&key)?.ok_or_else(|| spot.not_found())?;
        let old = stored::decode(&kv.value, kv.mod_revision).map_err(Status::internal)?;
        let (mut new, remove) = match change(&old)? {
            Updated::Unchanged if snapshot.is_current(&key)? => {
                return Ok(Step::Answered(Stored { value: kv.value.clone(), revision: kv.mod_revision }));
            }
            // Who writes an object again as it is has it encrypted as it should be now.
            Updated::Unchanged => (old.clone(), false),
            Updated::Put(new) => (new, false),
            Updated::Remove(new) => (new, true),
        };
        let claims = self.claims(spot.kind, &snapshot, Some(&old), (!remove).then_some(&mut new))?;
        let value = stored::encode(&new);
        let same = !remove && value == kv.value && snapshot.is_current(&key)?;
        if same || spot.dry_run == DryRun::All {
            return Ok(Step::Answered(Stored { value, revision: kv.mod_revision }));
        }
        let write = match remove {
            true => Write::Delete,
            false => Write::Put(snapshot.seal(&key, &value)?, self.lease(spot.kind).await?),
        };
        let written = self.commit(&key, kv.mod_revision, write, claims).await?;
        Ok(written.map_or(Step::Again, |revision| Step::Written(Stored { value, revision })))
    }

    pub async fn delete(&self, spot: Spot<'_>, options: &DeleteOptions) -> Result<Gone, Status> {
        refuse_protected(spot.kind, spot.name)?;
        let mut attempts = Attempts::new(self);
        while attempts.next() {
            let attempt = self.try_delete(spot, options).await;
            if let Some(done) = attempts.settle(attempt).await {
                return done;
            }
        }
        Err(too_busy(spot.kind))
    }

    async fn try_delete(&self, spot: Spot<'_>, options: &DeleteOptions) -> Result<Step<Gone>, Refusal> {
        let key = spot.key();
        let snapshot = self.store.snapshot();
        let kv = match snapshot.get(&key) {
            Ok(kv) => kv.ok_or_else(|| spot.not_found())?,
            Err(unreadable) => {
                let given_up = self.give_up(&snapshot, spot, options, unreadable).await?;
                return Ok(given_up.map_or(Step::Again, Step::Written));
            }
        };
        let old = stored::decode(&kv.value, kv.mod_revision).map_err(Status::internal)?;
        let marked = match admit::delete(spot.kind, &old, options, clock::seconds())? {
            Deleted::Already => {
                let waiting = Stored { value: kv.value.clone(), revision: kv.mod_revision };
                return Ok(Step::Answered(Gone::Waiting(waiting)));
            }
            Deleted::Mark(marked) => Some(marked),
            Deleted::Remove => None,
        };
        let value = marked.as_ref().map(stored::encode);
        if spot.dry_run == DryRun::All {
            return Ok(Step::Answered(match value {
                Some(value) => Gone::Waiting(Stored { value, revision: kv.mod_revision }),
                None => Gone::Removed(old),
            }));
        }
        let (write, claims) = match &value {
            Some(value) => (Write::Put(snapshot.seal(&key, value)?, kv.lease), allocate::Claims::default()),
            None => (Write::Delete, self.claims(spot.kind, &snapshot, Some(&old), None)?),
        };
        let written = self.commit(&key, kv.mod_revision, write, claims).await?;
        Ok(written.map_or(Step::Again, |revision| {
            Step::Written(match value {
                Some(value) => Gone::Waiting(Stored { value, revision }),
                None => Gone::Removed(old),
            })
        }))
    }

    /// Removes what nobody can read, for whoever names it and sets no conditions. Addresses that it had as a service stay
    /// taken. None when it has changed meanwhile.
    async fn give_up(
        &self,
        snapshot: &View<'_>,
        spot: Spot<'_>,
        options: &DeleteOptions,
        unreadable: Status,
    ) -> Result<Option<Gone>, Refusal> {
        let key = spot.key();
        let Some(kv) = snapshot.sealed(&key).filter(|_| options.preconditions.is_none()) else {
            return Err(unreadable.into());
        };
        let gone = Gone::Removed(json!({"metadata": {"namespace": spot.namespace, "name": spot.name}}));
        if spot.dry_run == DryRun::All {
            return Ok(Some(gone));
        }
        tracing::warn!(error = %unreadable.message, "deleting it unread");
        let removed = self.commit(&key, kv.mod_revision, Write::Delete, allocate::Claims::default()).await?;
        Ok(removed.map(|_| gone))
    }

    /// Writes if the object is still as it was read, and says at which revision.
    async fn commit(
        &self,
        key: &Bytes,
        read: u64,
        write: Write,
        claims: allocate::Claims,
    ) -> Result<Option<u64>, Refusal> {
        let mut txn = Txn::default();
        txn.compare.push(Compare::ModRevision { key: key.clone(), equals: read });
        txn.compare.extend(claims.compare);
        match write {
            Write::Put(Sealed { value, guard }, lease) => {
                txn.compare.extend(guard);
                txn.then.push(Op::Put { key: key.clone(), value, lease });
            }
            Write::Delete => txn.then.push(Op::Delete { start: key.clone(), end: None }),
        }
        txn.then.extend(claims.ops);
        let result = self.store.txn(txn).await.map_err(|error| Refusal::Final(store_failure(error)))?;
        Ok(result.succeeded.then_some(result.revision))
    }

    fn claims(
        &self,
        kind: &'static Kind,
        snapshot: &View<'_>,
        old: Option<&Value>,
        new: Option<&mut Value>,
    ) -> Result<allocate::Claims, Status> {
        if !allocate::is_service(kind) {
            return Ok(allocate::Claims::default());
        }
        let taken = |key: &[u8]| snapshot.contains(key);
        allocate::settle(kind, &self.ranges, old, new, &taken, entropy::number())
    }

    /// The lease that lets a kind's objects expire, for those that do.
    async fn lease(&self, kind: &'static Kind) -> Result<Option<LeaseId>, Status> {
        if kind.kind != "Event" {
            return Ok(None);
        }
        let mut current = self.event_lease.lock().await;
        if let Some((granted, id)) = *current
            && granted.elapsed() < EVENT_LEASE_SHARE
        {
            return Ok(Some(id));
        }
        let id = self.store.lease_grant(EVENT_LIFE + EVENT_LEASE_SHARE).await.map_err(store_failure)?;
        *current = Some((clock::instant(), id));
        Ok(Some(id))
    }
}

/// What one attempt at a write came to.
enum Step<T> {
    Written(T),
    /// Nothing needs to be written, by the state it was decided on.
    Answered(T),
    /// Somebody else was quicker.
    Again,
}

/// Why nothing was written.
enum Refusal {
    /// The state that it was decided on does not allow it.
    ByState(Status),
    /// Nobody knows whether another attempt would repeat what is done already.
    Final(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        Refusal::ByState(status)
    }
}

/// Attempts at one write, until it is done.
///
/// What is written is right whatever it was decided on, as the commit compares that. What is not written is answered by
/// what this server knows, and it may lag behind: what another one has acknowledged must not be denied. So a refusal
/// counts only on a state that was the newest after the request came.
struct Attempts<'a> {
    app: &'a App,
    knows: Knows,
    left: usize,
}

impl Attempts<'_> {
    fn new(app: &App) -> Attempts<'_> {
        let knows = if app.store.raw().is_alone() { Knows::Newest } else { Knows::Something };
        Attempts { app, knows, left: MAX_TRIES }
    }

    fn next(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// What the request is answered, or none for another attempt.
    async fn settle<T>(&mut self, attempt: Result<Step<T>, Refusal>) -> Option<Result<T, Status>> {
        match (attempt, self.knows) {
            (Ok(Step::Written(done)), _) | (Ok(Step::Answered(done)), Knows::Newest) => Some(Ok(done)),
            (Err(Refusal::Final(status)), _) | (Err(Refusal::ByState(status)), Knows::Newest) => Some(Err(status)),
            (Ok(Step::Again), _) => None,
            (Ok(Step::Answered(_)) | Err(Refusal::ByState(_)), Knows::Something) => {
                self.knows = Knows::Newest;
                self.app.store.read_barrier().await.err().map(|error| Err(store_failure(error)))
            }
        }
    }
}

/// What a server knows of the state that it decides on.
#[derive(Clone, Copy)]
enum Knows {
    Something,
    /// All that was acknowledged, by whichever server, before the request came.
    Newest,
}

fn too_busy(kind: &Kind) -> Status {
    let why = format!("too many writers change these {} at once, please try again", kind.resource());
    Status::too_many_requests(why, 1)
}

/// What a new object's namespace must still be at the commit.
fn home(snapshot: &View<'_>, kind: &'static Kind, namespace: &str, name: &str) -> Result<Option<Compare>, Status> {
    if !kind.namespaced() {
        return Ok(None);
    }
    let Some(namespaces) = registry::by_plural("", "v1", "namespaces") else { return Ok(None) };
    let key = keys::object(namespaces, "", namespace);
    let kv = snapshot.get(&key)?.ok_or_else(|| Status::not_found(namespaces, namespace))?;
    let object: Value = serde_json::from_slice(&kv.value).map_err(Status::internal)?;
    if meta::deletion_timestamp(&object).is_some() {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(kind, name, &why);
        // Controllers know by it that there is no use in trying again.
        status.details.causes.push(Cause {
            reason: CauseReason::NamespaceTerminating,
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        });
        return Err(status);
    }
    Ok(Some(Compare::ModRevision { key, equals: kv.mod_revision }))
}

/// Namespaces that the cluster itself lives in.
fn refuse_protected(kind: &Kind, name: &str) -> Result<(), Status> {
    if kind.group.is_empty() && kind.kind == "Namespace" && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
    }
    Ok(())
}
