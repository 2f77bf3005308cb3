//! Clusters out of network namespaces: the real binary on several hosts, driven by stock clients.
//!
//! - [`host`]: a host is a network namespace, joined to the others by a bridge inside a namespace of its own
//! - [`images`]: a registry, and images made on the spot from Debian packages
//! - [`cluster`]: a server, agents, kubectl, and their end
//! - [`wait`]: the only way to wait: a condition with a deadline
//!
//! Invariant: the machine's root namespace gets no address, link or nft table; everything has the test's own name and
//! directory, and goes when the test ends, however it ends.

pub mod host;
pub mod images;
pub mod wait;

pub mod cluster;

pub use cluster::Cluster;
pub use wait::wait;
