//! Messages of the service `KV`.

use bytes::Bytes;

use super::{KeyValue, ResponseHeader};

#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeRequest {
    #[prost(bytes = "bytes", tag = 1)]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = 2)]
    pub range_end: Bytes,
    #[prost(int64, tag = 3)]
    pub limit: i64,
    #[prost(int64, tag = 4)]
    pub revision: i64,
    #[prost(enumeration = "SortOrder", tag = 5)]
    pub sort_order: i32,
    #[prost(enumeration = "SortTarget", tag = 6)]
    pub sort_target: i32,
    #[prost(bool, tag = 7)]
    pub serializable: bool,
    #[prost(bool, tag = 8)]
    pub keys_only: bool,
    #[prost(bool, tag = 9)]
    pub count_only: bool,
    #[prost(int64, tag = 10)]
    pub min_mod_revision: i64,
    #[prost(int64, tag = 11)]
    pub max_mod_revision: i64,
    #[prost(int64, tag = 12)]
    pub min_create_revision: i64,
    #[prost(int64, tag = 13)]
    pub max_create_revision: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RangeResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = 2)]
    pub kvs: Vec<KeyValue>,
    #[prost(bool, tag = 3)]
    pub more: bool,
    #[prost(int64, tag = 4)]
    pub count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutRequest {
    #[prost(bytes = "bytes", tag = 1)]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = 2)]
    pub value: Bytes,
    #[prost(int64, tag = 3)]
    pub lease: i64,
    #[prost(bool, tag = 4)]
    pub prev_kv: bool,
    #[prost(bool, tag = 5)]
    pub ignore_value: bool,
    #[prost(bool, tag = 6)]
    pub ignore_lease: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PutResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(message, optional, tag = 2)]
    pub prev_kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRangeRequest {
    #[prost(bytes = "bytes", tag = 1)]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = 2)]
    pub range_end: Bytes,
    #[prost(bool, tag = 3)]
    pub prev_kv: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteRangeResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = 2)]
    pub deleted: i64,
    #[prost(message, repeated, tag = 3)]
    pub prev_kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestOp {
    #[prost(oneof = "request_op::Request", tags = "1, 2, 3, 4")]
    pub request: Option<request_op::Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseOp {
    #[prost(oneof = "response_op::Response", tags = "1, 2, 3, 4")]
    pub response: Option<response_op::Response>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Compare {
    #[prost(enumeration = "CompareResult", tag = 1)]
    pub result: i32,
    #[prost(enumeration = "CompareTarget", tag = 2)]
    pub target: i32,
    #[prost(bytes = "bytes", tag = 3)]
    pub key: Bytes,
    #[prost(oneof = "compare::Target", tags = "4, 5, 6, 7, 8")]
    pub target_union: Option<compare::Target>,
    #[prost(bytes = "bytes", tag = 64)]
    pub range_end: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnRequest {
    #[prost(message, repeated, tag = 1)]
    pub compare: Vec<Compare>,
    #[prost(message, repeated, tag = 2)]
    pub success: Vec<RequestOp>,
    #[prost(message, repeated, tag = 3)]
    pub failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct TxnResponse {
    #[prost(message, optional, tag = 1)]
    pub header: Option<ResponseHeader>,
    #[prost(bool, tag = 2)]
    pub succeeded: bool,
    #[prost(message, repeated, tag = 3)]
    pub responses: Vec<ResponseOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CompactionRequest {
    #[prost(int64, tag = 1)]
    pub revision: i64,
    #[prost(bool, tag = 2)]
    pub physical: bool,
}

pub mod request_op {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Request {
        #[prost(message, tag = 1)]
        Range(super::RangeRequest),
        #[prost(message, tag = 2)]
        Put(super::PutRequest),
        #[prost(message, tag = 3)]
        DeleteRange(super::DeleteRangeRequest),
        #[prost(message, tag = 4)]
        Txn(super::TxnRequest),
    }
}

pub mod response_op {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Response {
        #[prost(message, tag = 1)]
        Range(super::RangeResponse),
        #[prost(message, tag = 2)]
        Put(super::PutResponse),
        #[prost(message, tag = 3)]
        DeleteRange(super::DeleteRangeResponse),
        #[prost(message, tag = 4)]
        Txn(super::TxnResponse),
    }
}

pub mod compare {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Target {
        #[prost(int64, tag = 4)]
        Version(i64),
        #[prost(int64, tag = 5)]
        CreateRevision(i64),
        #[prost(int64, tag = 6)]
        ModRevision(i64),
        #[prost(bytes = "bytes", tag = 7)]
        Value(Bytes),
        #[prost(int64, tag = 8)]
        Lease(i64),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SortOrder {
    None = 0,
    Ascend = 1,
    Descend = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum SortTarget {
    Key = 0,
    Version = 1,
    Create = 2,
    Mod = 3,
    Value = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum CompareResult {
    Equal = 0,
    Greater = 1,
    Less = 2,
    NotEqual = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum CompareTarget {
    Version = 0,
    Create = 1,
    Mod = 2,
    Value = 3,
    Lease = 4,
}
