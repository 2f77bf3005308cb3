//! Why the API server cannot start or go on; what a single request is refused for is an
//! [`api::status::Status`].

use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: check that the directory exists, is on a disk with free space, and belongs to this user, or choose another with --data-dir", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },

    #[error("{} is damaged ({what}): restore it from a backup, or remove it to have a new one made", path.display())]
    Damaged { path: PathBuf, what: String },

    #[error("{} {what}: without it nobody can read what is encrypted in this cluster, so put it back, from another server or from a snapshot", path.display())]
    EncryptionKey { path: PathBuf, what: &'static str },

    #[error("cannot read the keys of what is encrypted in the store: {what}")]
    Encryption { what: String },

    #[error("cannot issue a certificate for {subject}")]
    Issue { subject: String, source: rcgen::Error },

    #[error("cannot set up TLS: {what}")]
    Tls { what: String },

    #[error("--token {what}")]
    Token { what: String },

    #[error("--{flag} {value}: {what}")]
    Flag { flag: &'static str, value: String, what: &'static str },

    #[error(
        "cannot listen on {address}: is another server running there? Stop it, or choose another address with --bind"
    )]
    Listen { address: SocketAddr, source: std::io::Error },

    #[error("cannot start the thread of connections to other servers")]
    Thread { source: std::io::Error },

    #[error("cannot create the bootstrap object {object}: {what}")]
    Bootstrap { object: String, what: String },

    #[error("{server} says: {what}")]
    Place { server: String, what: String },

    #[error("the cluster has been restored or recovered without this server: it can join {url} anew")]
    Superseded { url: String },
}
