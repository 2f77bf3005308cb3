//! Transactions: etcd's form to the store's, and the result back.

use super::{
    Api, kv,
    messages::{
        ResponseHeader,
        kv::{
            Compare, CompareResult, CompareTarget, DeleteRangeResponse, PutResponse, RangeRequest, RangeResponse,
            RequestOp, ResponseOp, TxnRequest, TxnResponse, compare::Target, request_op::Request,
            response_op::Response,
        },
    },
    status::Status,
};
use crate::{self as store, Op, OpResult, Operand, Relation, Revision, Snapshot};

/// Operations, or comparisons, in one list. What a transaction has of its own, those inside it may not have again.
const MAX_OPS: usize = 128;

pub async fn txn(api: &Api, request: TxnRequest) -> Result<TxnResponse, Status> {
    check(&request, MAX_OPS)?;
    kv::check_size(&request)?;
    let mut branches = [Vec::new(), Vec::new()];
    for (ops, plans) in [&request.success, &request.failure].into_iter().zip(&mut branches) {
        *plans = ops.iter().map(|op| plan(api, op)).collect::<Result<_, _>>()?;
    }
    let [success, failure] = branches;
    let result = api.store.txn(store_txn(request)).await?;
    let plans = if result.succeeded { success } else { failure };
    let responses = answers(plans, result.results, result.revision);
    Ok(TxnResponse { header: api.header(result.revision), succeeded: result.succeeded, responses })
}

fn check(request: &TxnRequest, limit: usize) -> Result<(), Status> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > limit {
        return Err(Status::TOO_MANY_OPS);
    }
    for compare in &request.compare {
        kv::check_key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::Range(range)) => kv::check_range(range)?,
            Some(Request::Put(put)) => kv::check_put(put)?,
            Some(Request::DeleteRange(delete)) => kv::check_delete(delete)?,
            Some(Request::Txn(txn)) => check(txn, limit - most)?,
            None => return Err(Status::KEY_NOT_FOUND),
        }
    }
    Ok(())
}

/// How the result of an operation is answered.
enum Plan {
    /// The range was asked for as of an older revision: that state, taken before the transaction.
    Older(RangeRequest, Snapshot),
    Range(RangeRequest),
    Put {
        wants_previous: bool,
    },
    Delete {
        wants_previous: bool,
    },
    Txn {
        success: Vec<Plan>,
        failure: Vec<Plan>,
    },
}

fn plan(api: &Api, op: &RequestOp) -> Result<Plan, Status> {
    Ok(match &op.request {
        // Which revisions can be read differs between the members, so it must not decide what a transaction does: it is
        // found out here, and not where the transaction is applied.
        Some(Request::Range(range)) if range.revision > 0 => {
            Plan::Older(range.clone(), kv::snapshot(api, range.revision)?.1)
        }
        Some(Request::Range(range)) => Plan::Range(range.clone()),
        Some(Request::Put(put)) => Plan::Put { wants_previous: put.prev_kv },
        Some(Request::DeleteRange(delete)) => Plan::Delete { wants_previous: delete.prev_kv },
        Some(Request::Txn(txn)) => {
            let plans = |ops: &[RequestOp]| ops.iter().map(|op| plan(api, op)).collect::<Result<_, _>>();
            Plan::Txn { success: plans(&txn.success)?, failure: plans(&txn.failure)? }
        }
        None => return Err(Status::KEY_NOT_FOUND),
    })
}

fn store_txn(request: TxnRequest) -> store::Txn {
    store::Txn {
        compare: request.compare.into_iter().map(store_compare).collect(),
        then: request.success.into_iter().filter_map(store_op).collect(),
        otherwise: request.failure.into_iter().filter_map(store_op).collect(),
    }
}

fn store_op(op: RequestOp) -> Option<Op> {
    Some(match op.request? {
        // Read as of another revision; the place in the order of the results is kept.
        Request::Range(range) if range.revision > 0 => Op::Range { start: range.key, end: None },
        Request::Range(range) => Op::Range { end: kv::range_end(&range.range_end), start: range.key },
        Request::Put(put) => kv::put_op(put),
        Request::DeleteRange(delete) => kv::delete_op(delete),
        Request::Txn(txn) => Op::Txn(store_txn(txn)),
    })
}

/// An operand that is missing, or of another kind than what is compared, is etcd's zero of that kind.
fn store_compare(compare: Compare) -> store::Compare {
    let relation = match compare.result() {
        CompareResult::Equal => Relation::Equal,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
        CompareResult::NotEqual => Relation::NotEqual,
    };
    let operand = match (compare.target(), compare.target_union) {
        (CompareTarget::Version, Some(Target::Version(version))) => Operand::Version(version),
        (CompareTarget::Version, _) => Operand::Version(0),
        (CompareTarget::Create, Some(Target::CreateRevision(revision))) => Operand::CreateRevision(revision),
        (CompareTarget::Create, _) => Operand::CreateRevision(0),
        (CompareTarget::Mod, Some(Target::ModRevision(revision))) => Operand::ModRevision(revision),
        (CompareTarget::Mod, _) => Operand::ModRevision(0),
        (CompareTarget::Value, Some(Target::Value(value))) => Operand::Value(value),
        (CompareTarget::Value, _) => Operand::Value(bytes::Bytes::new()),
        (CompareTarget::Lease, Some(Target::Lease(lease))) => Operand::Lease(lease),
        (CompareTarget::Lease, _) => Operand::Lease(0),
    };
    store::Compare::Keys { start: compare.key, end: kv::range_end(&compare.range_end), relation, operand }
}

fn answers(plans: Vec<Plan>, results: Vec<OpResult>, revision: Revision) -> Vec<ResponseOp> {
    plans.into_iter().zip(results).map(|(plan, result)| answer(plan, result, revision)).collect()
}

/// Inside a transaction a header says nothing but the revision.
fn answer(plan: Plan, result: OpResult, revision: Revision) -> ResponseOp {
    let header = Some(ResponseHeader { revision: revision as i64, ..ResponseHeader::default() });
    let response = match (plan, result) {
        (Plan::Older(range, snapshot), _) => {
            Response::Range(RangeResponse { header, ..kv::read_from(&snapshot, &range) })
        }
        (Plan::Range(range), OpResult::Range { items }) => {
            Response::Range(RangeResponse { header, ..kv::select(items.iter(), &range) })
        }
        (Plan::Put { wants_previous }, OpResult::Put { previous, .. }) => {
            let prev_kv = previous.filter(|_| wants_previous).map(|kv| kv::key_value(&kv));
            Response::Put(PutResponse { header, prev_kv })
        }
        (Plan::Delete { wants_previous }, OpResult::Delete { deleted }) => {
            let deleted = kv::deleted_keys(&deleted, wants_previous);
            Response::DeleteRange(DeleteRangeResponse { header, ..deleted })
        }
        (Plan::Txn { success, failure }, OpResult::Txn { succeeded, results }) => {
            let responses = answers(if succeeded { success } else { failure }, results, revision);
            // etcd leaves this header empty.
            Response::Txn(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
        }
        (
            Plan::Range(_) | Plan::Put { .. } | Plan::Delete { .. } | Plan::Txn { .. },
            OpResult::Range { .. } | OpResult::Put { .. } | OpResult::Delete { .. } | OpResult::Txn { .. },
        ) => unreachable!("results are in the order of the operations"),
    };
    ResponseOp { response: Some(response) }
}
