//! `minik8s agent`: one node.

use std::{path::PathBuf, pin::pin};

use anyhow::{Context, Result, ensure};

use crate::{flags, stop};

pub async fn run(flags: flags::Agent) -> Result<()> {
    ensure!(!flags.join.is_empty(), "no server to join: give --join https://HOST:6443, as the server printed it");
    for server in &flags.join {
        let host = server.strip_prefix("https://").unwrap_or_default();
        ensure!(!host.trim_matches('/').is_empty(), "--join {server:?}: a server is named as https://HOST:6443");
    }
    let config = config(flags.join, flags.token, flags.data.data_dir, flags.node)?;
    // One listener throughout: a signal between two would be lost.
    let mut asked = pin!(stop::asked());
    let agent = tokio::select! {
        agent = node::Agent::start(config) => agent.context("start the agent")?,
        asked = &mut asked => return asked,
    };
    asked.await?;
    agent.stop().await;
    Ok(())
}

/// The node's settings from the flags that `agent` and `dev` share.
pub fn config(join: Vec<String>, token: Option<String>, data_dir: PathBuf, flags: flags::Node) -> Result<node::Config> {
    let node_name = match flags.node_name {
        Some(name) => name,
        None => hostname().context("find the host's name: give --node-name")?,
    };
    Ok(node::Config {
        join,
        token,
        data_dir,
        run_dir: flags.run.run_dir,
        node_name,
        node_ip: flags.node_ip,
        labels: flags.node_label,
        taints: flags.node_taint,
        registries: flags.registries,
    })
}

fn hostname() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(name.trim().to_lowercase())
}
