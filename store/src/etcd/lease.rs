//! The service `Lease`.

use std::time::Duration;

use super::{
    Api,
    grpc::{Call, frame},
    kv::lease_id,
    messages::{
        HeaderOnly,
        lease::{
            LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesResponse,
            LeaseRevokeRequest, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
        },
    },
    status::Status,
};
use crate::{Error, LeaseId};

/// In seconds, as etcd has them: shorter ones are made this long, longer ones are refused.
const MIN_TTL: i64 = 2;
const MAX_TTL: i64 = 9_000_000_000;

pub async fn grant(api: &Api, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
    if request.ttl > MAX_TTL {
        return Err(Status::LEASE_TTL_TOO_LARGE);
    }
    let seconds = request.ttl.max(MIN_TTL);
    let ttl = Duration::from_secs(seconds as u64);
    let LeaseId(id) = match lease_id(request.id) {
        None => api.store.lease_grant(ttl).await?,
        Some(id) => api.store.lease_grant_as(id, ttl).await?,
    };
    Ok(LeaseGrantResponse { header: api.header_now(), id: id as i64, ttl: seconds, error: String::new() })
}

pub async fn revoke(api: &Api, request: LeaseRevokeRequest) -> Result<HeaderOnly, Status> {
    api.store.lease_revoke(LeaseId(request.id as u64)).await?;
    Ok(HeaderOnly { header: api.header_now() })
}

/// Answers each request in turn: by the time to live of the lease, or by 0 where there is no such lease.
pub async fn keep_alive(api: &Api, call: Call) {
    let Some((mut incoming, mut outgoing)) = call.answer() else { return };
    let result = loop {
        let LeaseKeepAliveRequest { id } = match incoming.next().await {
            Ok(Some(request)) => request,
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        };
        // Taken first: a lease that was there at this revision may be gone at a later one.
        let header = api.header_now();
        let ttl = match api.store.lease_keep_alive(LeaseId(id as u64)).await {
            Ok(ttl) => ttl.as_secs() as i64,
            Err(Error::LeaseNotFound { .. }) => 0,
            Err(error) => break Err(error.into()),
        };
        if outgoing.send(frame(&LeaseKeepAliveResponse { header, id, ttl })).await.is_err() {
            return;
        }
    };
    outgoing.end(result);
}

pub async fn time_to_live(api: &Api, request: LeaseTimeToLiveRequest) -> Result<LeaseTimeToLiveResponse, Status> {
    api.store.read_barrier().await?;
    let header = api.header_now();
    let Some(lease) = api.store.lease(LeaseId(request.id as u64)) else {
        return Ok(LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..LeaseTimeToLiveResponse::default() });
    };
    Ok(LeaseTimeToLiveResponse {
        header,
        id: request.id,
        ttl: lease.remaining.as_secs() as i64,
        granted_ttl: lease.ttl.as_secs() as i64,
        keys: if request.keys { lease.keys } else { Vec::new() },
    })
}

pub async fn leases(api: &Api) -> Result<LeaseLeasesResponse, Status> {
    api.store.read_barrier().await?;
    let leases = api.store.leases().into_iter().map(|LeaseId(id)| LeaseStatus { id: id as i64 }).collect();
    Ok(LeaseLeasesResponse { header: api.header_now(), leases })
}
