//! Cluster DNS, answered on every node from what the node already watches: the names of services, their endpoints and
//! pods, by the Kubernetes DNS specification 1.1.0; every other name is asked of the host's own servers.

pub mod answer;
mod forward;
mod server;

pub use server::{Server, Shared};
