//! What can go wrong, each naming the operation and its subject.

use std::{io, net::Ipv4Addr, path::PathBuf, sync::Arc};

use crate::cidr::Cidr;

pub type Result<T> = std::result::Result<T, Error>;

// Cloned into the answer of everyone who waits for the same thing; hence the `Arc`s.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("nft cannot be run (is the package nftables installed?)")]
    NftStart { source: Arc<io::Error> },
    #[error("nft did not end within {seconds} s")]
    NftTimeout { seconds: u64 },
    #[error("write rules as JSON")]
    NftEncode { source: Arc<serde_json::Error> },
    #[error("nft refused the rules: {message}")]
    Nft { message: String },
    #[error("{operation} {subject}")]
    Netlink { operation: &'static str, subject: String, source: Arc<rtnetlink::Error> },
    #[error("{operation} {subject}")]
    System { operation: &'static str, subject: String, source: Arc<io::Error> },
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("no free pod address in {cidr}: {used} are in use")]
    NoAddress { cidr: Cidr, used: usize },
    #[error("the node has no pod network yet: its podCIDR was not assigned within {seconds} s")]
    NoPodCidr { seconds: u64 },
    #[error("cluster DNS cannot listen on {address}:53 ({protocol}): is another name server there?")]
    DnsListen { address: Ipv4Addr, protocol: &'static str, source: Arc<io::Error> },
    #[error("a thread that {task} ended early")]
    Thread { task: &'static str },
    #[error("the pod network has been stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn nft_start(source: io::Error) -> Error {
        Error::NftStart { source: Arc::new(source) }
    }

    pub(crate) fn netlink(
        operation: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(rtnetlink::Error) -> Error {
        let subject = subject.into();
        move |source| Error::Netlink { operation, subject, source: Arc::new(source) }
    }

    pub(crate) fn system(operation: &'static str, subject: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let subject = subject.into();
        move |source| Error::System { operation, subject, source: Arc::new(source) }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { operation, path, source: Arc::new(source) }
    }
}
