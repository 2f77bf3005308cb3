//! The services `Cluster`, `Maintenance`, `Auth` and `Health`.

use super::{
    Api, VERSION, kv,
    messages::{
        HeaderOnly,
        maintenance::{
            AlarmAction, AlarmRequest, AlarmResponse, AuthStatusResponse, DowngradeInfo, HashKvRequest, HashKvResponse,
            HashResponse, HealthCheckRequest, HealthCheckResponse, Member, MemberListRequest, MemberListResponse,
            StatusResponse,
        },
    },
    status::Status,
};
use crate::{Revision, Snapshot, image};

pub async fn member_list(api: &Api, request: MemberListRequest) -> Result<MemberListResponse, Status> {
    if request.linearizable {
        api.store.read_barrier().await?;
    }
    let member = Member { id: api.store.member_id(), name: "default".to_owned(), ..Member::default() };
    Ok(MemberListResponse { header: api.header_now(), members: vec![member] })
}

/// There is no quota, so nothing raises an alarm: none is listed, and none need be taken back.
pub async fn alarm(api: &Api, request: AlarmRequest) -> Result<AlarmResponse, Status> {
    match request.action() {
        AlarmAction::Get | AlarmAction::Deactivate => {
            Ok(AlarmResponse { header: api.header_now(), alarms: Vec::new() })
        }
        AlarmAction::Activate => Err(Status::unimplemented("alarms cannot be raised by hand")),
    }
}

pub async fn status(api: &Api) -> Result<StatusResponse, Status> {
    let status = api.store.status();
    let errors = if status.leader_id == 0 { vec![Status::NO_LEADER.message.into_owned()] } else { Vec::new() };
    Ok(StatusResponse {
        header: api.header(status.revision),
        version: VERSION.to_owned(),
        db_size: status.log_bytes as i64,
        leader: status.leader_id,
        raft_index: status.applied_index,
        raft_term: status.term,
        raft_applied_index: status.applied_index,
        errors,
        db_size_in_use: status.log_bytes as i64,
        storage_version: format!("{}.0", VERSION.rsplit_once('.').map_or(VERSION, |(minor, _)| minor)),
        downgrade_info: Some(DowngradeInfo::default()),
        ..StatusResponse::default()
    })
}

/// What can be given back to the disk is given back without being asked.
pub async fn defragment(api: &Api) -> Result<HeaderOnly, Status> {
    Ok(HeaderOnly { header: api.header_now() })
}

pub async fn hash(api: &Api) -> Result<HashResponse, Status> {
    let snapshot = api.store.snapshot();
    Ok(HashResponse { header: api.header(snapshot.revision()), hash: hash_of(&snapshot) })
}

pub async fn hash_kv(api: &Api, request: HashKvRequest) -> Result<HashKvResponse, Status> {
    let (now, snapshot) = kv::snapshot(api, request.revision)?;
    Ok(HashKvResponse {
        header: api.header(now),
        hash: hash_of(&snapshot),
        compact_revision: api.store.compact_revision().map_or(-1, |revision| revision as i64),
        hash_revision: snapshot.revision() as i64,
    })
}

/// Two members with the same keys at the same revision have the same, whatever history each of them has kept.
fn hash_of(snapshot: &Snapshot) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut record = Vec::new();
    for kv in snapshot.map.values() {
        record.clear();
        image::put_key_value(&mut record, kv);
        hasher.update(&record);
    }
    hasher.finalize()
}

pub async fn auth_status(api: &Api) -> Result<AuthStatusResponse, Status> {
    const FIRST: Revision = 1;
    Ok(AuthStatusResponse { header: api.header_now(), enabled: false, auth_revision: FIRST })
}

/// Lists that are empty, and what is disabled already.
pub async fn auth_nothing(api: &Api) -> Result<HeaderOnly, Status> {
    Ok(HeaderOnly { header: api.header_now() })
}

pub async fn health(_request: HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    const SERVING: i32 = 1;
    Ok(HealthCheckResponse { status: SERVING })
}
