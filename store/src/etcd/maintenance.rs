//! The services `Maintenance`, `Auth` and `Health`.

use super::{
    Api, VERSION, kv,
    messages::{
        HeaderOnly,
        maintenance::{
            AlarmAction, AlarmMember, AlarmRequest, AlarmResponse, AlarmType, AuthStatusResponse, DowngradeInfo,
            HashKvRequest, HashKvResponse, HashResponse, HealthCheckRequest, HealthCheckResponse, StatusResponse,
        },
    },
    status::Status,
};
use crate::{Op, Revision, Snapshot, Txn, image, quota};

pub async fn alarm(api: &Api, request: AlarmRequest) -> Result<AlarmResponse, Status> {
    let raised = |id: &u64| AlarmMember { member_id: *id, alarm: AlarmType::NoSpace.into() };
    let is_meant = |id: &u64| request.member_id == 0 || request.member_id == *id;
    let concerned = matches!(request.alarm(), AlarmType::None | AlarmType::NoSpace);
    let now = api.store.alarms();
    let alarms = match request.action() {
        AlarmAction::Get => now.iter().filter(|_| concerned).map(raised).collect(),
        AlarmAction::Activate if request.alarm() == AlarmType::NoSpace => {
            api.store.txn(quota::raise(request.member_id)).await?;
            vec![raised(&request.member_id)]
        }
        AlarmAction::Activate => return Err(Status::unimplemented("this alarm cannot be raised by hand")),
        AlarmAction::Deactivate => {
            let ended: Vec<u64> = now.into_iter().filter(|id| concerned && is_meant(id)).collect();
            let delete = |id: &u64| Op::Delete { start: quota::alarm_key(*id), end: None };
            if !ended.is_empty() {
                api.store.txn(Txn { then: ended.iter().map(delete).collect(), ..Txn::default() }).await?;
            }
            ended.iter().map(raised).collect()
        }
    };
    Ok(AlarmResponse { header: api.header_now(), alarms })
}

pub async fn status(api: &Api) -> Result<StatusResponse, Status> {
    let status = api.store.status();
    let mut errors = if status.leader_id == 0 { vec![Status::NO_LEADER.message.into_owned()] } else { Vec::new() };
    errors.extend(api.store.alarms().iter().map(|id| format!("memberID:{id} alarm:NOSPACE ")));
    let is_learner = api.store.group().borrow().learners.contains(&status.member_id);
    Ok(StatusResponse {
        header: api.header(status.revision),
        version: VERSION.to_owned(),
        db_size: (status.log_bytes + status.bytes) as i64,
        leader: status.leader_id,
        raft_index: status.applied_index,
        raft_term: status.term,
        raft_applied_index: status.applied_index,
        errors,
        db_size_in_use: status.bytes as i64,
        db_size_quota: status.quota_bytes as i64,
        is_learner,
        storage_version: super::storage_version(),
        downgrade_info: Some(DowngradeInfo::default()),
    })
}

/// What can be given back to the disk is given back without being asked.
pub async fn defragment(api: &Api) -> Result<HeaderOnly, Status> {
    Ok(HeaderOnly { header: api.header_now() })
}

pub async fn hash(api: &Api) -> Result<HashResponse, Status> {
    let snapshot = api.store.snapshot();
    Ok(HashResponse { header: api.header(snapshot.revision()), hash: hash_of(api, &snapshot).await })
}

pub async fn hash_kv(api: &Api, request: HashKvRequest) -> Result<HashKvResponse, Status> {
    let (now, snapshot) = kv::snapshot(api, request.revision)?;
    Ok(HashKvResponse {
        header: api.header(now),
        hash: hash_of(api, &snapshot).await,
        compact_revision: api.store.compact_revision().map_or(-1, |revision| revision as i64),
        hash_revision: snapshot.revision() as i64,
    })
}

/// Two members with the same keys at the same revision have the same, whatever history each of them has kept.
async fn hash_of(api: &Api, snapshot: &Snapshot) -> u32 {
    let snapshot = snapshot.clone();
    let hashed = api.runtime.spawn_blocking(move || digest(&snapshot)).await;
    hashed.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn digest(snapshot: &Snapshot) -> u32 {
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
