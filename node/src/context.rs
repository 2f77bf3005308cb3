//! What every pod's worker shares: the outside world behind its seams, and what this node is.

use std::sync::Arc;

use client::{Cache, Client};
use k8s_openapi::api::core::v1::Service;
use tokio::sync::Semaphore;

use crate::{
    backend::{ContainerRuntime, PodNetwork},
    env::NodeView,
    events::Recorder,
    netfiles::ClusterDns,
    paths::Paths,
};

/// Status writes under way at once; more would only queue up in the server.
const STATUS_WRITES: usize = 16;
/// Containers created at once. Beyond a few the kernel's own locks are what they wait for, and every pod gets slower.
const STARTS: usize = 8;

pub struct Context {
    pub client: Client,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn PodNetwork>,
    pub events: Recorder,
    pub paths: Paths,
    pub services: Arc<Cache<Service>>,
    pub node: NodeView,
    pub node_memory: i64,
    pub dns: ClusterDns,
    pub status_writes: Semaphore,
    pub starts: Semaphore,
}

impl Context {
    pub fn status_permits() -> Semaphore {
        Semaphore::new(STATUS_WRITES)
    }

    pub fn start_permits() -> Semaphore {
        Semaphore::new(STARTS)
    }
}
