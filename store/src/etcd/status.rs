//! What etcd says when it does not do what it is asked: gRPC's codes and etcd's own texts, which clients compare.

use std::borrow::Cow;

use crate::Error;

/// gRPC's codes, as far as they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: Code,
    pub message: Cow<'static, str>,
}

const fn says(code: Code, message: &'static str) -> Status {
    Status { code, message: Cow::Borrowed(message) }
}

impl Status {
    pub const EMPTY_KEY: Status = says(Code::InvalidArgument, "etcdserver: key is not provided");
    pub const KEY_NOT_FOUND: Status = says(Code::InvalidArgument, "etcdserver: key not found");
    pub const VALUE_PROVIDED: Status = says(Code::InvalidArgument, "etcdserver: value is provided");
    pub const LEASE_PROVIDED: Status = says(Code::InvalidArgument, "etcdserver: lease is provided");
    pub const TOO_MANY_OPS: Status = says(Code::InvalidArgument, "etcdserver: too many operations in txn request");
    pub const DUPLICATE_KEY: Status = says(Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
    pub const INVALID_SORT: Status = says(Code::InvalidArgument, "etcdserver: invalid sort option");
    pub const TOO_LARGE: Status = says(Code::InvalidArgument, "etcdserver: request is too large");
    pub const NO_SPACE: Status = says(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    pub const OWN_KEYS: Status =
        says(Code::PermissionDenied, "etcdserver: permission denied: what is under /minik8s/ is the group's own");
    pub const COMPACTED: Status = says(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
    pub const FUTURE: Status = says(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    pub const LEASE_NOT_FOUND: Status = says(Code::NotFound, "etcdserver: requested lease not found");
    pub const LEASE_EXISTS: Status = says(Code::FailedPrecondition, "etcdserver: lease already exists");
    pub const LEASE_TTL_TOO_LARGE: Status = says(Code::OutOfRange, "etcdserver: too large lease TTL");
    pub const NO_LEADER: Status = says(Code::Unavailable, "etcdserver: no leader");
    pub const LEADER_CHANGED: Status = says(Code::Unavailable, "etcdserver: leader changed");
    pub const STOPPED: Status = says(Code::Unavailable, "etcdserver: server stopped");
    pub const TIMEOUT: Status = says(Code::Unavailable, "etcdserver: request timed out");
    pub const CUT_SHORT: Status = says(Code::Internal, "the request ended within a message");
    pub const COMPRESSED: Status =
        says(Code::Unimplemented, "grpc: Decompressor is not installed for the request's encoding");

    pub fn precondition(reason: &'static str) -> Status {
        says(Code::FailedPrecondition, reason)
    }

    pub fn unimplemented(reason: impl Into<Cow<'static, str>>) -> Status {
        Status { code: Code::Unimplemented, message: reason.into() }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        match error {
            Error::Compacted { .. } => Status::COMPACTED,
            Error::Future { .. } => Status::FUTURE,
            Error::LeaseNotFound { .. } => Status::LEASE_NOT_FOUND,
            Error::LeaseExists { .. } => Status::LEASE_EXISTS,
            Error::KeyNotFound => Status::KEY_NOT_FOUND,
            Error::InvalidTxn { .. } => Status::DUPLICATE_KEY,
            Error::TooLarge { .. } => Status::TOO_LARGE,
            Error::NoSpace { .. } => Status::NO_SPACE,
            // Either there is none, or it has too much to do already: clients try both again the same way.
            Error::Unavailable => Status::NO_LEADER,
            Error::Timeout { .. } => Status::TIMEOUT,
            Error::LeaderChanged { .. } => Status::LEADER_CHANGED,
            Error::Closed | Error::Fatal { .. } => Status::STOPPED,
            Error::InvalidChange { .. }
            | Error::Disk { .. }
            | Error::Corrupt { .. }
            | Error::Exists { .. }
            | Error::InUse { .. } => Status { code: Code::Unknown, message: error.to_string().into() },
        }
    }
}
