//! Which call a path is, and who answers it.

use std::sync::Arc;

use super::{
    Api, cluster,
    grpc::{Call, unary},
    kv, lease, maintenance,
    messages::Empty,
    status::Status,
    txn, watch,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compact,
    Watch,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseLeases,
    MemberList,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    MoveLeader,
    Snapshot,
    Alarm,
    Status,
    Defragment,
    Hash,
    HashKv,
    AuthStatus,
    /// What the service `Auth` does where there is nobody and nothing to do.
    AuthNothing,
    /// What needs something to be so that it is not; etcd's own words for it.
    Precondition(&'static str),
    Health,
    /// etcd has it, this API does not.
    Missing(&'static str),
}

// There are no users and no roles, and there can be none: who may connect is decided by certificates.
const AUTH_NOT_ENABLED: &str = "etcdserver: authentication is not enabled";
const NO_ROOT: &str = "etcdserver: root user does not exist";
const NO_USER: &str = "etcdserver: user name not found";
const NO_ROLE: &str = "etcdserver: role name not found";

const METHODS: &[(&str, Method)] = &[
    ("/etcdserverpb.KV/Put", Method::Put),
    ("/etcdserverpb.KV/Range", Method::Range),
    ("/etcdserverpb.KV/Txn", Method::Txn),
    ("/etcdserverpb.KV/DeleteRange", Method::DeleteRange),
    ("/etcdserverpb.KV/Compact", Method::Compact),
    ("/etcdserverpb.Watch/Watch", Method::Watch),
    ("/etcdserverpb.Lease/LeaseKeepAlive", Method::LeaseKeepAlive),
    ("/etcdserverpb.Lease/LeaseGrant", Method::LeaseGrant),
    ("/etcdserverpb.Lease/LeaseRevoke", Method::LeaseRevoke),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Method::LeaseTimeToLive),
    ("/etcdserverpb.Lease/LeaseLeases", Method::LeaseLeases),
    ("/etcdserverpb.Cluster/MemberList", Method::MemberList),
    ("/etcdserverpb.Cluster/MemberAdd", Method::MemberAdd),
    ("/etcdserverpb.Cluster/MemberRemove", Method::MemberRemove),
    ("/etcdserverpb.Cluster/MemberUpdate", Method::MemberUpdate),
    ("/etcdserverpb.Cluster/MemberPromote", Method::MemberPromote),
    ("/etcdserverpb.Maintenance/Alarm", Method::Alarm),
    ("/etcdserverpb.Maintenance/Status", Method::Status),
    ("/etcdserverpb.Maintenance/Defragment", Method::Defragment),
    ("/etcdserverpb.Maintenance/Hash", Method::Hash),
    ("/etcdserverpb.Maintenance/HashKV", Method::HashKv),
    ("/etcdserverpb.Maintenance/Snapshot", Method::Snapshot),
    ("/etcdserverpb.Maintenance/MoveLeader", Method::MoveLeader),
    ("/etcdserverpb.Maintenance/Downgrade", Method::Missing("there is no older version to go back to")),
    ("/etcdserverpb.Auth/AuthStatus", Method::AuthStatus),
    ("/etcdserverpb.Auth/AuthDisable", Method::AuthNothing),
    ("/etcdserverpb.Auth/UserList", Method::AuthNothing),
    ("/etcdserverpb.Auth/RoleList", Method::AuthNothing),
    ("/etcdserverpb.Auth/AuthEnable", Method::Precondition(NO_ROOT)),
    ("/etcdserverpb.Auth/Authenticate", Method::Precondition(AUTH_NOT_ENABLED)),
    ("/etcdserverpb.Auth/UserAdd", Method::Precondition(AUTH_NOT_ENABLED)),
    ("/etcdserverpb.Auth/UserGet", Method::Precondition(NO_USER)),
    ("/etcdserverpb.Auth/UserDelete", Method::Precondition(NO_USER)),
    ("/etcdserverpb.Auth/UserChangePassword", Method::Precondition(NO_USER)),
    ("/etcdserverpb.Auth/UserGrantRole", Method::Precondition(NO_USER)),
    ("/etcdserverpb.Auth/UserRevokeRole", Method::Precondition(NO_USER)),
    ("/etcdserverpb.Auth/RoleAdd", Method::Precondition(AUTH_NOT_ENABLED)),
    ("/etcdserverpb.Auth/RoleGet", Method::Precondition(NO_ROLE)),
    ("/etcdserverpb.Auth/RoleDelete", Method::Precondition(NO_ROLE)),
    ("/etcdserverpb.Auth/RoleGrantPermission", Method::Precondition(NO_ROLE)),
    ("/etcdserverpb.Auth/RoleRevokePermission", Method::Precondition(NO_ROLE)),
    ("/grpc.health.v1.Health/Check", Method::Health),
];

impl Method {
    pub fn of(path: &str) -> Result<Method, Status> {
        if let Some((_, method)) = METHODS.iter().find(|(known, _)| *known == path) {
            return Ok(*method);
        }
        let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
        let known = |(known, _): &(&str, Method)| known[1..].rsplit_once('/').is_some_and(|(of, _)| of == service);
        if METHODS.iter().any(known) {
            return Err(Status::unimplemented(format!("unknown method {method} for service {service}")));
        }
        Err(Status::unimplemented(format!("unknown service {service}")))
    }

    /// Whether it may take long, or has no end: such a call gets a task of its own.
    pub fn is_long(self) -> bool {
        match self {
            Method::Watch
            | Method::LeaseKeepAlive
            | Method::Hash
            | Method::HashKv
            | Method::Snapshot
            | Method::MemberAdd
            | Method::MemberRemove
            | Method::MemberUpdate
            | Method::MemberPromote
            | Method::MoveLeader => true,
            Method::Range
            | Method::Put
            | Method::DeleteRange
            | Method::Txn
            | Method::Compact
            | Method::LeaseGrant
            | Method::LeaseRevoke
            | Method::LeaseTimeToLive
            | Method::LeaseLeases
            | Method::MemberList
            | Method::Alarm
            | Method::Status
            | Method::Defragment
            | Method::AuthStatus
            | Method::AuthNothing
            | Method::Precondition(_)
            | Method::Health
            | Method::Missing(_) => false,
        }
    }
}

/// Answers a call. What almost all calls are comes first and in place; the state of the others is kept off the stack
/// of those.
pub async fn answer(api: Arc<Api>, method: Method, call: Call) {
    match method {
        Method::Put => unary(call, |request| kv::put(&api, request)).await,
        Method::Range => unary(call, |request| kv::range(&api, request)).await,
        Method::Txn => Box::pin(unary(call, |request| txn::txn(&api, request))).await,
        _ => Box::pin(answer_others(api, method, call)).await,
    }
}

async fn answer_others(api: Arc<Api>, method: Method, call: Call) {
    let api = &*api;
    match method {
        Method::Put | Method::Range | Method::Txn => unreachable!("answered in place"),
        Method::DeleteRange => unary(call, |request| kv::delete_range(api, request)).await,
        Method::Compact => unary(call, |request| kv::compact(api, request)).await,
        Method::Watch => watch::watch(api, call).await,
        Method::LeaseGrant => unary(call, |request| lease::grant(api, request)).await,
        Method::LeaseRevoke => unary(call, |request| lease::revoke(api, request)).await,
        Method::LeaseKeepAlive => lease::keep_alive(api, call).await,
        Method::LeaseTimeToLive => unary(call, |request| lease::time_to_live(api, request)).await,
        Method::LeaseLeases => unary(call, |_: Empty| lease::leases(api)).await,
        Method::MemberList => unary(call, |request| cluster::list(api, request)).await,
        Method::MemberAdd => unary(call, |request| cluster::add(api, request)).await,
        Method::MemberRemove => unary(call, |request| cluster::remove(api, request)).await,
        Method::MemberUpdate => unary(call, |request| cluster::update(api, request)).await,
        Method::MemberPromote => unary(call, |request| cluster::promote(api, request)).await,
        Method::MoveLeader => unary(call, |request| cluster::move_leader(api, request)).await,
        Method::Snapshot => cluster::snapshot(api, call).await,
        Method::Alarm => unary(call, |request| maintenance::alarm(api, request)).await,
        Method::Status => unary(call, |_: Empty| maintenance::status(api)).await,
        Method::Defragment => unary(call, |_: Empty| maintenance::defragment(api)).await,
        Method::Hash => unary(call, |_: Empty| maintenance::hash(api)).await,
        Method::HashKv => unary(call, |request| maintenance::hash_kv(api, request)).await,
        Method::AuthStatus => unary(call, |_: Empty| maintenance::auth_status(api)).await,
        Method::AuthNothing => unary(call, |_: Empty| maintenance::auth_nothing(api)).await,
        Method::Precondition(reason) => call.refuse(&Status::precondition(reason)),
        Method::Health => unary(call, maintenance::health).await,
        Method::Missing(reason) => call.refuse(&Status::unimplemented(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there are clients are under way at any time, and what is larger than a kilobyte costs malloc a search.
    #[test]
    fn a_call_under_way_is_small() {
        fn size_of_future<F: Future>(_: fn(Arc<Api>, Method, Call) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size_of_future(answer) < 900, "{} bytes", size_of_future(answer));
    }

    #[test]
    fn paths() {
        assert_eq!(Method::of("/etcdserverpb.KV/Put"), Ok(Method::Put));
        assert_eq!(Method::of("/etcdserverpb.Auth/UserAdd"), Ok(Method::Precondition(AUTH_NOT_ENABLED)));
        for (path, reason) in [
            ("/etcdserverpb.KV/Get", "unknown method Get for service etcdserverpb.KV"),
            ("/a.B/C", "unknown service a.B"),
            ("/", "unknown service "),
        ] {
            assert_eq!(Method::of(path), Err(Status::unimplemented(reason)), "{path}");
        }
    }
}
