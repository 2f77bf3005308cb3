//! etcd's messages, as far as this API has them: the names and the field numbers are those of etcd's `rpc.proto`,
//! `kv.proto` and `auth.proto`.

use bytes::Bytes;

pub mod cluster;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod watch;

/// What every answer begins with.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseHeader {
    #[prost(uint64, tag = 1)]
    pub cluster_id: u64,
    #[prost(uint64, tag = 2)]
    pub member_id: u64,
    #[prost(int64, tag = 3)]
    pub revision: i64,
    #[prost(uint64, tag = 4)]
    pub raft_term: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = 1)]
    pub key: Bytes,
    #[prost(int64, tag = 2)]
    pub create_revision: i64,
    #[prost(int64, tag = 3)]
    pub mod_revision: i64,
    #[prost(int64, tag = 4)]
    pub version: i64,
    #[prost(bytes = "bytes", tag = 5)]
    pub value: Bytes,
    #[prost(int64, tag = 6)]
    pub lease: i64,
}

/// A request with nothing in it that matters here, and an answer of nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// An answer that is nothing but its header.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderOnly {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
}
