//! Every control loop of the cluster: each brings one thing that is closer to what is asked for.

#![allow(dead_code)] // until the runtime is in place

mod plan;

mod claim;
mod pod;
mod selector;

mod deployment;
mod endpoints;
mod load_balancer;
mod node;
mod ranking;
mod replicaset;
mod service_account;

#[cfg(test)]
mod testing;
