//! Messages of the service `Cluster`, and of the calls of `Maintenance` that concern the group.

use bytes::Bytes;

use super::ResponseHeader;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    #[prost(uint64, tag = 1)]
    pub id: u64,
    #[prost(string, tag = 2)]
    pub name: String,
    #[prost(string, repeated, tag = 3)]
    pub peer_urls: Vec<String>,
    #[prost(string, repeated, tag = 4)]
    pub client_urls: Vec<String>,
    #[prost(bool, tag = 5)]
    pub is_learner: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberListRequest {
    #[prost(bool, tag = 1)]
    pub linearizable: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberListResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = 2)]
    pub members: Vec<Member>,
}

/// Whether it is to be a learner is not read: a member is one until it has caught up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberAddRequest {
    #[prost(string, repeated, tag = 1)]
    pub peer_urls: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberAddResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, optional, tag = 2)]
    pub member: Option<Member>,
    #[prost(message, repeated, tag = 3)]
    pub members: Vec<Member>,
}

/// Which member to remove, or to promote.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberRequest {
    #[prost(uint64, tag = 1)]
    pub id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberUpdateRequest {
    #[prost(uint64, tag = 1)]
    pub id: u64,
    #[prost(string, repeated, tag = 2)]
    pub peer_urls: Vec<String>,
}

/// What a removal, an update and a promotion are answered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MembersResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = 2)]
    pub members: Vec<Member>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct MoveLeaderRequest {
    #[prost(uint64, tag = 1)]
    pub target_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(uint64, tag = 2)]
    pub remaining_bytes: u64,
    #[prost(bytes = "bytes", tag = 3)]
    pub blob: Bytes,
    #[prost(string, tag = 4)]
    pub version: String,
}
