//! `minik8s server`: store, API server, scheduler and controllers in one process.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};
use client::Client;
use tokio::task::JoinSet;

use crate::{
    flags,
    snapshot::{self, Schedule},
    stop,
};

pub async fn run(flags: flags::Server) -> Result<()> {
    let config = Config {
        data_dir: flags.data.data_dir,
        bind: flags.bind,
        advertise_address: flags.advertise_address,
        token: flags.token,
        tls_sans: flags.tls_san,
        networks: flags.networks,
        snapshots: (!flags.snapshot_interval.is_zero())
            .then_some(Schedule { interval: flags.snapshot_interval, keep: flags.snapshot_keep as usize }),
    };
    let mut control_plane = ControlPlane::start(config).await?;
    println!("kubeconfig: {}", control_plane.server.kubeconfig_path().display());
    println!("join with:  {}", control_plane.join_command());
    let ended = tokio::select! {
        asked = stop::asked() => asked,
        broken = control_plane.broken() => Err(broken),
    };
    let stopped = control_plane.stop().await;
    ended.and(stopped)
}

/// What a control plane needs to know.
pub struct Config {
    pub data_dir: PathBuf,
    pub bind: SocketAddr,
    pub advertise_address: Option<IpAddr>,
    pub token: Option<String>,
    pub tls_sans: Vec<String>,
    pub networks: flags::Networks,
    /// None takes no snapshots.
    pub snapshots: Option<Schedule>,
}

/// A running control plane. The loops end when this is dropped; [`ControlPlane::stop`] also drains and flushes.
pub struct ControlPlane {
    pub server: apiserver::Server,
    pub store: store::Store,
    /// None of them has a way to end; each says who it was.
    loops: JoinSet<&'static str>,
}

impl ControlPlane {
    pub async fn start(config: Config) -> Result<ControlPlane> {
        let opened = store::Store::open(store::Config::new(config.data_dir.join("store"))).await;
        let store = opened.with_context(|| format!("open the store in --data-dir {}", config.data_dir.display()))?;
        let settings = apiserver::Config {
            data_dir: config.data_dir.clone(),
            bind: config.bind,
            advertise_address: config.advertise_address,
            tls_sans: config.tls_sans,
            token: config.token,
            cluster_cidr: config.networks.cluster_cidr.clone(),
            service_cidr: config.networks.service_cidr.clone(),
            cluster_dns: config.networks.cluster_dns,
        };
        let server = apiserver::Server::start(settings, store.clone()).await.context("start the API server")?;
        let mut loops = JoinSet::new();
        let manager = in_process(&server, "system:kube-controller-manager");
        let scheduler = in_process(&server, "system:kube-scheduler").sharing_caches_of(&manager);
        let scheduler = scheduler::run(scheduler);
        loops.spawn(async move {
            scheduler.await;
            "the scheduler"
        });
        let settings = controllers::Config {
            cluster_cidr: config
                .networks
                .cluster_cidr
                .parse()
                .map_err(|e: String| anyhow::anyhow!("--cluster-cidr: {e}"))?,
            root_ca_pem: server.ca_pem().to_owned(),
            node_monitor_grace: controllers::NODE_MONITOR_GRACE,
        };
        loops.spawn(async move {
            controllers::run(manager, settings).await;
            "the controllers"
        });
        if let Some(schedule) = config.snapshots {
            let keeping = snapshot::keep(server.snapshots(), config.data_dir, schedule);
            loops.spawn(async move {
                keeping.await;
                "the schedule of snapshots"
            });
        }
        Ok(ControlPlane { server, store, loops })
    }

    /// Waits for an end that nobody asked for: without any one of its parts the cluster would only seem to work.
    pub async fn broken(&mut self) -> anyhow::Error {
        tokio::select! {
            reason = self.store.ended() => anyhow::Error::new(reason).context("the store ended"),
            Some(ended) = self.loops.join_next() => match ended {
                Ok(who) => anyhow::anyhow!("{who} ended: start the server again"),
                Err(panic) => anyhow::Error::new(panic).context("a part of the server broke off: start it again"),
            },
        }
    }

    /// What makes another machine a node of this cluster.
    fn join_command(&self) -> String {
        let address = SocketAddr::new(self.server.advertised_address(), self.server.address().port());
        format!("minik8s agent --join https://{address} --token {}", self.server.join_token())
    }

    /// Lets requests under way finish, then makes the store's files final.
    pub async fn stop(mut self) -> Result<()> {
        self.loops.shutdown().await;
        self.server.shutdown().await;
        self.store.shutdown().await.context("close the store")
    }
}

fn in_process(server: &apiserver::Server, user: &str) -> Client {
    Client::in_process(server.service(apiserver::Identity::master(user)))
}
