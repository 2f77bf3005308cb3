//! Every control loop of the cluster: each brings one thing closer to what is asked for. [`run`] runs them all.
//!
//! A controller is a pure `plan` from what is seen to a [`plan::Plan`], and a few lines in [`loops`] that say whom a
//! change concerns and what one look sees. In reading order:
//!
//! - [`plan`]: writes as values
//! - [`selector`], [`claim`], [`pod`]: what several plans ask
//! - the plans: [`replicaset`] (with [`ranking`]), [`deployment`], [`endpoints`], [`load_balancer`], [`node`],
//!   [`service_account`], [`namespace`], [`garbage`] (over the [`graph`] of owners), [`event_ttl`]
//! - the shell: [`loops`], [`runtime`] with its [`queue`], [`caches`], [`act`], [`events`]
//!
//! Invariant: a plan reads no clock, draws no random number and waits for nothing.
//! Invariant: a key is planned for by one look at a time, and after a write not before the caches show that write: no
//! controller counts what it expects to see.
//! Invariant: nothing polls. A timer runs only where a deadline lies.

pub mod plan;

pub mod claim;
pub mod pod;
pub mod selector;

pub mod deployment;
pub mod endpoints;
pub mod event_ttl;
pub mod garbage;
pub mod graph;
pub mod load_balancer;
pub mod namespace;
pub mod node;
pub mod ranking;
pub mod replicaset;
pub mod service_account;

mod loops;

mod act;
mod caches;
mod events;
mod queue;
mod runtime;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod whole;

use std::time::Duration;

use client::Client;

pub use node::ipam::Cidr;

/// How long a node may be silent before it counts as lost.
pub const NODE_MONITOR_GRACE: Duration = Duration::from_secs(40);

#[derive(Clone, Debug)]
pub struct Config {
    /// Where nodes' pod addresses come from.
    pub cluster_cidr: Cidr,
    /// The certificate that pods verify the API server by, PEM.
    pub root_ca_pem: String,
    /// [`NODE_MONITOR_GRACE`], but for tests.
    pub node_monitor_grace: Duration,
}

/// Runs every controller until dropped; nothing outlives the future. One such run may be under way in a cluster.
pub async fn run(client: Client, config: Config) {
    let mut tasks = loops::start(client, config).await;
    while let Some(end) = tasks.join_next().await {
        if let Err(error) = end {
            // A loop itself has no way to end; a panic in it is a fault of ours that the others should survive.
            tracing::error!(%error, "a control loop broke off");
        }
    }
}
