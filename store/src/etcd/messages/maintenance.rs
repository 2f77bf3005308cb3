//! Messages of the services `Maintenance`, `Auth` and `Health`.

use super::ResponseHeader;

#[derive(Clone, PartialEq, prost::Message)]
pub struct AlarmRequest {
    #[prost(enumeration = "AlarmAction", tag = 1)]
    pub action: i32,
    #[prost(uint64, tag = 2)]
    pub member_id: u64,
    #[prost(enumeration = "AlarmType", tag = 3)]
    pub alarm: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AlarmMember {
    #[prost(uint64, tag = 1)]
    pub member_id: u64,
    #[prost(enumeration = "AlarmType", tag = 2)]
    pub alarm: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AlarmResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = 2)]
    pub alarms: Vec<AlarmMember>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(string, tag = 2)]
    pub version: String,
    #[prost(int64, tag = 3)]
    pub db_size: i64,
    #[prost(uint64, tag = 4)]
    pub leader: u64,
    #[prost(uint64, tag = 5)]
    pub raft_index: u64,
    #[prost(uint64, tag = 6)]
    pub raft_term: u64,
    #[prost(uint64, tag = 7)]
    pub raft_applied_index: u64,
    #[prost(string, repeated, tag = 8)]
    pub errors: Vec<String>,
    #[prost(int64, tag = 9)]
    pub db_size_in_use: i64,
    #[prost(bool, tag = 10)]
    pub is_learner: bool,
    #[prost(string, tag = 11)]
    pub storage_version: String,
    #[prost(int64, tag = 12)]
    pub db_size_quota: i64,
    #[prost(message, optional, tag = 13)]
    pub downgrade_info: Option<DowngradeInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DowngradeInfo {
    #[prost(bool, tag = 1)]
    pub enabled: bool,
    #[prost(string, tag = 2)]
    pub target_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HashResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(uint32, tag = 2)]
    pub hash: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HashKvRequest {
    #[prost(int64, tag = 1)]
    pub revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HashKvResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(uint32, tag = 2)]
    pub hash: u32,
    #[prost(int64, tag = 3)]
    pub compact_revision: i64,
    #[prost(int64, tag = 4)]
    pub hash_revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AuthStatusResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = 2)]
    pub enabled: bool,
    #[prost(uint64, tag = 3)]
    pub auth_revision: u64,
}

/// Of the service `grpc.health.v1.Health`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    #[prost(string, tag = 1)]
    pub service: String,
}

/// 1 says that it serves.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    #[prost(int32, tag = 1)]
    pub status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AlarmAction {
    Get = 0,
    Activate = 1,
    Deactivate = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AlarmType {
    None = 0,
    NoSpace = 1,
    Corrupt = 2,
}
