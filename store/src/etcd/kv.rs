//! The service `KV`, but for its transactions.

use std::{cmp::Ordering, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::{
    Api,
    grpc::MAX_REQUEST,
    messages::{
        HeaderOnly, KeyValue,
        kv::{
            CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
            RangeResponse, SortOrder, SortTarget,
        },
    },
    status::Status,
};
use crate::{Change, Error, LeaseId, Op, OpResult, Revision, Snapshot, Txn, TxnResult, prefix_end};

pub async fn put(api: &Api, request: PutRequest) -> Result<PutResponse, Status> {
    check_put(&request)?;
    check_size(&request)?;
    let wants_previous = request.prev_kv;
    let result = change(api, put_op(request)).await?;
    let Some(OpResult::Put { previous, .. }) = result.results.into_iter().next() else {
        unreachable!("a put is answered as a put")
    };
    let prev_kv = previous.filter(|_| wants_previous).map(|kv| key_value(&kv));
    Ok(PutResponse { header: api.header(result.revision), prev_kv })
}

pub async fn delete_range(api: &Api, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
    check_delete(&request)?;
    check_size(&request)?;
    let wants_previous = request.prev_kv;
    let result = change(api, delete_op(request)).await?;
    let Some(OpResult::Delete { deleted }) = result.results.into_iter().next() else {
        unreachable!("a delete is answered as a delete")
    };
    Ok(DeleteRangeResponse { header: api.header(result.revision), ..deleted_keys(&deleted, wants_previous) })
}

pub async fn compact(api: &Api, request: CompactionRequest) -> Result<HeaderOnly, Status> {
    // What is compacted cannot be read from then on, whether it has left the memory yet or not: a physical compaction
    // has nothing more to wait for.
    let revision = Revision::try_from(request.revision).unwrap_or(0);
    api.store.compact(revision).await?;
    Ok(HeaderOnly { header: api.header_now() })
}

/// Reads of one key are carried out in place; others by a task of their own, so that nobody has to wait for them.
pub async fn range(api: &Api, request: RangeRequest) -> Result<RangeResponse, Status> {
    check_range(&request)?;
    if !request.serializable {
        api.store.read_barrier().await?;
    }
    if request.range_end.is_empty() && request.revision <= 0 {
        return read(api, &request);
    }
    let reader = api.clone();
    let read = api.runtime.spawn(async move { read(&reader, &request) }).await;
    read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn read(api: &Api, request: &RangeRequest) -> Result<RangeResponse, Status> {
    let (now, snapshot) = snapshot(api, request.revision)?;
    Ok(RangeResponse { header: api.header(now), ..read_from(&snapshot, request) })
}

/// The newest revision, and the state at the one asked for: the newest too where that is 0.
pub fn snapshot(api: &Api, revision: i64) -> Result<(Revision, Snapshot), Status> {
    let now = api.store.snapshot();
    match Revision::try_from(revision) {
        Ok(revision) if revision > 0 && revision != now.revision() => {
            Ok((now.revision(), api.store.snapshot_at(revision)?))
        }
        _ => Ok((now.revision(), now)),
    }
}

/// All of an answer but its header.
pub fn read_from(snapshot: &Snapshot, request: &RangeRequest) -> RangeResponse {
    match range_end(&request.range_end) {
        None => select(snapshot.get(&request.key).into_iter(), request),
        Some(end) => select(snapshot.range(&request.key..&end), request),
    }
}

/// Of the keys of a range those that the request wants, as it wants them.
pub fn select<'a>(range: impl Iterator<Item = &'a Arc<crate::KeyValue>>, request: &RangeRequest) -> RangeResponse {
    if request.count_only {
        return RangeResponse { count: range.count() as i64, ..RangeResponse::default() };
    }
    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let mut count = 0;
    let mut kvs: Vec<&Arc<crate::KeyValue>> = Vec::new();
    let order = order(request);
    // Where the order is the keys' own, no more than the limit is kept at any time.
    let keep = if order.is_none() { limit.saturating_add(1) } else { usize::MAX };
    for kv in range {
        count += 1;
        if kvs.len() < keep && wanted(kv, request) {
            kvs.push(kv);
        }
    }
    if let Some((target, descend)) = order {
        let compare = |a: &&Arc<crate::KeyValue>, b: &&Arc<crate::KeyValue>| compare(target, a, b);
        kvs.sort_by(|a, b| if descend { compare(b, a) } else { compare(a, b) });
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    let answer = |kv: &&Arc<crate::KeyValue>| match request.keys_only {
        true => KeyValue { value: Bytes::new(), ..key_value(kv) },
        false => key_value(kv),
    };
    RangeResponse { header: None, kvs: kvs.iter().map(answer).collect(), more, count }
}

fn wanted(kv: &crate::KeyValue, request: &RangeRequest) -> bool {
    let (modified, created) = (kv.mod_revision as i64, kv.create_revision as i64);
    modified >= request.min_mod_revision
        && (request.max_mod_revision == 0 || modified <= request.max_mod_revision)
        && created >= request.min_create_revision
        && (request.max_create_revision == 0 || created <= request.max_create_revision)
}

/// By what to sort, and whether from the greatest down; nothing where the keys' own order is right.
fn order(request: &RangeRequest) -> Option<(SortTarget, bool)> {
    match (request.sort_target(), request.sort_order()) {
        (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
        (target, order) => Some((target, order == SortOrder::Descend)),
    }
}

fn compare(target: SortTarget, a: &crate::KeyValue, b: &crate::KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

fn change(api: &Api, op: Op) -> impl Future<Output = Result<TxnResult, Error>> {
    api.store.txn(Txn { then: vec![op], ..Txn::default() })
}

pub fn check_key(key: &Bytes) -> Result<(), Status> {
    if key.is_empty() { Err(Status::EMPTY_KEY) } else { Ok(()) }
}

pub fn check_size(request: &impl Message) -> Result<(), Status> {
    if request.encoded_len() > MAX_REQUEST { Err(Status::TOO_LARGE) } else { Ok(()) }
}

/// Members, alarms and keys of the group itself: who changes them by hand ends it.
const OWN: &[u8] = b"/minik8s/";

pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    let owned = match range_end(&request.range_end) {
        None => request.key.starts_with(OWN),
        // A range that has any of it.
        Some(end) => request.key < prefix_end(OWN) && (end.is_empty() || end[..] > *OWN),
    };
    if owned { Err(Status::OWN_KEYS) } else { Ok(()) }
}

pub fn check_put(request: &PutRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    if request.key.starts_with(OWN) {
        return Err(Status::OWN_KEYS);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Status::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Status::LEASE_PROVIDED);
    }
    Ok(())
}

pub fn check_range(request: &RangeRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Status::INVALID_SORT) }
}

pub fn put_op(request: PutRequest) -> Op {
    let PutRequest { key, value, lease, ignore_value, ignore_lease, .. } = request;
    let lease = lease_id(lease);
    if !ignore_value && !ignore_lease {
        return Op::Put { key, value, lease };
    }
    let value = if ignore_value { Change::Keep } else { Change::Set(value) };
    let lease = if ignore_lease { Change::Keep } else { Change::Set(lease) };
    Op::Update { key, value, lease }
}

pub fn delete_op(request: DeleteRangeRequest) -> Op {
    Op::Delete { end: range_end(&request.range_end), start: request.key }
}

/// All of an answer but its header.
pub fn deleted_keys(deleted: &[Arc<crate::KeyValue>], wants_previous: bool) -> DeleteRangeResponse {
    let prev_kvs = if wants_previous { deleted.iter().map(|kv| key_value(kv)).collect() } else { Vec::new() };
    DeleteRangeResponse { header: None, deleted: deleted.len() as i64, prev_kvs }
}

/// The end of a range as the store has it: none for a single key, empty for no bound, which over the wire is a zero byte.
pub fn range_end(end: &Bytes) -> Option<Bytes> {
    match &end[..] {
        b"" => None,
        b"\0" => Some(Bytes::new()),
        _ => Some(end.clone()),
    }
}

/// Over the wire 0 is no lease.
pub fn lease_id(id: i64) -> Option<LeaseId> {
    (id != 0).then_some(LeaseId(id as u64))
}

pub fn key_value(kv: &crate::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: kv.value.clone(),
        lease: kv.lease.map_or(0, |lease| lease.0 as i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_own_keys_are_left_alone() {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        for (key, owned) in [("/minik8s/members/1", true), ("/minik8s", false), ("/registry/a", false), ("a", false)] {
            let put = PutRequest { key: bytes(key), ..PutRequest::default() };
            assert_eq!(check_put(&put).is_err(), owned, "{key}");
        }
        for (key, end, owned) in [
            ("/minik8s/generation", "", true),
            ("/registry/", "/registry0", false),
            ("\0", "\0", true),
            ("/a", "/z", true),
            ("/a", "/minik8s/", false),
            ("/minik8s0", "\0", false),
            ("0", "\0", false),
        ] {
            let delete = DeleteRangeRequest { key: bytes(key), range_end: bytes(end), ..DeleteRangeRequest::default() };
            assert_eq!(check_delete(&delete).is_err(), owned, "{key:?} to {end:?}");
        }
    }
}
