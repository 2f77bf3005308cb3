//! `minik8s dev`: a whole cluster in this process, until Ctrl-C.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
};

use anyhow::{Context, Result};

use crate::{
    agent,
    flags::{self, EtcdListen},
    server::{Config, ControlPlane},
    stop,
};

pub async fn run(flags: flags::Dev) -> Result<()> {
    let config = Config {
        data_dir: flags.data.data_dir.clone(),
        bind: flags.bind,
        advertise_address: flags.node.node_ip,
        join: Vec::new(),
        token: None,
        etcd: Some(EtcdListen::Nowhere),
        quota_bytes: store::QUOTA_BYTES,
        tls_sans: Vec::new(),
        networks: flags.networks,
        encrypt: flags.encrypt.encrypt,
        snapshots: None,
    };
    let mut control_plane = ControlPlane::start(config).await?;
    let kubeconfig = control_plane.server.kubeconfig_path();
    let join = format!("https://{}", from_inside(control_plane.server.address()));
    let token = control_plane.server.join_token();
    let node = agent::config(vec![join], Some(token), flags.data.data_dir, flags.node)?;
    let name = node.node_name.clone();
    let mut asked = pin!(stop::asked());
    let agent = tokio::select! {
        agent = node::Agent::start(node) => agent.context("start the node")?,
        asked = &mut asked => return asked.and(control_plane.stop().await),
    };
    println!("kubeconfig: {}", kubeconfig.display());
    println!("node {name} is starting. In another terminal:");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  kubectl get nodes");
    println!("  kubectl create deployment web --image=nginx && kubectl get pods -o wide");
    println!(
        "Ctrl-C ends the cluster{}.",
        if flags.keep { ", but not its pods" } else { " and its pods; its objects stay in the data directory" }
    );
    let ended = tokio::select! {
        asked = asked => asked,
        broken = control_plane.broken() => Err(broken),
    };
    if flags.keep {
        agent.stop().await;
    } else {
        agent.remove_all().await;
    }
    ended.and(control_plane.stop().await)
}

/// Where the agent in this process reaches a server that listens at `address`.
fn from_inside(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}
