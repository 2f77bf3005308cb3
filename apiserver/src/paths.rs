//! Where the server has what is not Kubernetes': once, for those who answer and those who ask.

use crate::query::encode;

pub const JOIN: &str = "/minik8s/v1/join";
pub const SNAPSHOT: &str = "/minik8s/v1/snapshot";
pub const ENCRYPTION: &str = "/minik8s/v1/encryption";
pub const ROTATE: &str = "/minik8s/v1/encryption/rotate";
pub const STATUS: &str = "/minik8s/v1/status";
pub const SERVERS: &str = "/minik8s/v1/servers";
pub const RAFT: &str = "/minik8s/v1/raft";
pub const RAFT_SNAPSHOT: &str = "/minik8s/v1/raft/snapshot";

/// Of one server: by its name, its address or its number.
pub fn server(which: &str) -> String {
    format!("{SERVERS}/{}", encode(which))
}
