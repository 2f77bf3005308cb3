//! `minik8s server`: store, API server, scheduler and controllers in one process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use apiserver::Service;
use client::Client;
use store::{Group, Store};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    flags::{self, EtcdListen, ServerAction},
    join,
    seal::Passphrase,
    snapshot::{self, Schedule},
    stop,
};

pub async fn run(flags: flags::Server) -> Result<()> {
    let mut config = Config {
        data_dir: flags.data.data_dir,
        bind: flags.bind,
        advertise_address: flags.advertise_address,
        join: flags.join,
        token: flags.token,
        etcd: flags.etcd_listen,
        quota_bytes: flags.store_quota,
        tls_sans: flags.tls_san,
        networks: flags.networks,
        encrypt: flags.encrypt.encrypt,
        snapshots: (!flags.snapshot_interval.is_zero()).then_some(Schedule {
            interval: flags.snapshot_interval,
            keep: flags.snapshot_keep as usize,
            passphrase: flags.snapshot_passphrase_file.as_deref().map(Passphrase::read).transpose()?,
        }),
    };
    match flags.action {
        Some(ServerAction::Recover { data, force: true }) => return recover(&data.data_dir),
        Some(ServerAction::Recover { data, force: false }) => return Err(warn_of_recovery(&data.data_dir)),
        None => {}
    }
    // One listener throughout: a signal between two would be lost.
    let mut asked = pin!(stop::asked());
    loop {
        if let Some((join, token)) = join::pending(&config.data_dir)? {
            (config.join, config.token) = (join, Some(token));
        }
        let Some(url) = live(config.clone(), asked.as_mut()).await? else { return Ok(()) };
        tracing::warn!(url, "the cluster has been restored or recovered without this server: it joins anew");
        // Written down first: whatever happens from here on, the next start must not found a cluster of its own.
        join::intend(&config.data_dir, &url)?;
        let aside = store::set_aside(&store_dir(&config.data_dir)).context("set the store aside")?;
        tracing::warn!(path = %aside.display(), "the store of before is kept");
    }
}

/// Runs the server until it is asked to stop, or has to join the cluster at an address anew.
async fn live(config: Config, mut asked: Pin<&mut impl Future<Output = Result<()>>>) -> Result<Option<String>> {
    let data_dir = config.data_dir.clone();
    // A server whose fellows are not there yet may wait for them for long.
    let started = tokio::select! {
        started = ControlPlane::start(config) => started,
        asked = &mut asked => return asked.map(|()| None),
    };
    let mut control_plane = match started {
        Ok(control_plane) => control_plane,
        Err(error) => match error.downcast_ref() {
            Some(apiserver::Error::Superseded { url }) => return Ok(Some(url.clone())),
            _ => return Err(error),
        },
    };
    println!("kubeconfig: {}", control_plane.server.kubeconfig_path().display());
    println!("join with:  {}", control_plane.join_command());
    println!("further servers:  {}", join::command(&control_plane.url(), &data_dir));
    let superseded = control_plane.server.superseded();
    let ended = tokio::select! {
        asked = asked => asked.map(|()| None),
        broken = control_plane.broken() => Err(broken),
        url = superseded => Ok(Some(url)),
    };
    let stopped = control_plane.stop().await;
    ended.and_then(|ended| stopped.map(|()| ended))
}

/// What whoever recovers a server has to know before.
fn warn_of_recovery(data_dir: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "this makes a cluster of one of the store in {}: what the other servers acknowledged without this one is lost. If a \
         majority of them can still be brought back, bring them back instead. To go on all the same, add --force",
        store_dir(data_dir).display()
    )
}

/// Makes a cluster of one of what this server has.
fn recover(data_dir: &Path) -> Result<()> {
    let dir = store_dir(data_dir);
    ensure!(
        store::is_there(&dir),
        "there is no server in {}: name the directory of one by --data-dir",
        data_dir.display()
    );
    let recovered = store::recover(&store::Config::new(dir)).map_err(|error| match error {
        store::Error::InUse { .. } => {
            anyhow::anyhow!("the server in {} runs: stop it, recover it, and start it again", data_dir.display())
        }
        error => anyhow::Error::new(error).context("recover the store"),
    })?;
    println!("recovered {} keys as of revision {}", recovered.keys, recovered.revision);
    if recovered.unconfirmed > 0 {
        println!("{} of the changes were not known to be confirmed; they are kept", recovered.unconfirmed);
    }
    for left in &recovered.lost {
        println!("left behind: {} at {}", left.name, left.peer_urls.join(", "));
    }
    if !recovered.lost.is_empty() {
        println!(
            "what they acknowledged and this server had not been sent is lost; once started, they join this one anew"
        );
    }
    println!("the store as it was: {}", recovered.before.display());
    println!("start it with:  minik8s server --data-dir {}", data_dir.display());
    Ok(())
}

fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// What a control plane needs to know.
#[derive(Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub bind: SocketAddr,
    pub advertise_address: Option<IpAddr>,
    /// The servers of the cluster to become a further server of; with them, `token` is the servers'.
    pub join: Vec<String>,
    pub token: Option<String>,
    /// None serves the etcd API at its usual place on the loopback, unless another etcd is there.
    pub etcd: Option<EtcdListen>,
    /// How many bytes the store may hold.
    pub quota_bytes: usize,
    pub tls_sans: Vec<String>,
    pub networks: flags::Networks,
    /// Resources that are encrypted in the store.
    pub encrypt: Vec<String>,
    /// None takes no snapshots.
    pub snapshots: Option<Schedule>,
}

const ETCD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);

/// A running control plane. The loops end when this is dropped; [`ControlPlane::stop`] also drains and flushes.
pub struct ControlPlane {
    pub server: apiserver::Server,
    pub store: store::Store,
    /// None of them has a way to end; each says who it was.
    loops: JoinSet<&'static str>,
    /// The etcd API, which ends when it is told to.
    etcd: JoinSet<&'static str>,
    stopping: watch::Sender<bool>,
}

impl ControlPlane {
    pub async fn start(config: Config) -> Result<ControlPlane> {
        let networks = config.networks;
        let mut settings = apiserver::Config {
            data_dir: config.data_dir.clone(),
            bind: config.bind,
            advertise_address: config.advertise_address,
            tls_sans: config.tls_sans,
            token: config.token,
            cluster_cidr: networks.cluster_cidr.clone(),
            service_cidr: networks.service_cidr.clone(),
            cluster_dns: networks.cluster_dns,
            encrypt: config.encrypt,
            peers: Arc::default(),
            etcd_urls: Vec::new(),
            join: config.join.clone(),
        };
        let etcd = listen_for_etcd(config.etcd, &mut settings).await?;
        let store_dir = store_dir(&config.data_dir);
        if !config.join.is_empty() {
            let token = settings.token.take().context("--join needs the --token of the cluster's servers")?;
            join::check(&config.join, &token, &config.data_dir)?;
            // Whose directory names a cluster is one of its servers already.
            if !store::is_there(&store_dir) {
                let us = apiserver::Application::of(&settings);
                join::join(&config.join, &token, (&config.data_dir, &store_dir), us).await?;
            }
        }
        join::forget(&config.data_dir)?;
        let keys = config.data_dir.join("tls/ca.key");
        ensure!(
            store::is_there(&store_dir) || !keys.exists(),
            "{} is the key of a cluster, and there is no store in {}: join that cluster's other servers with --join, restore a \
             snapshot, or move both directories aside for a new cluster",
            keys.display(),
            store_dir.display()
        );
        let stored = store::Config { quota_bytes: config.quota_bytes, ..store::Config::new(store_dir) };
        let opened = Store::open_in_group(stored, settings.peers.clone()).await;
        let store = opened.with_context(|| format!("open the store in --data-dir {}", config.data_dir.display()))?;
        let server = tokio::select! {
            server = apiserver::Server::start(settings, store.clone()) => server.context("start the API server"),
            reason = store.ended() => Err(anyhow::Error::new(reason).context("the store ended")),
        };
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                // Whoever starts anew must find the store closed; what else there is to say has been said by the error.
                store.shutdown().await.context("close the store")?;
                return Err(error);
            }
        };
        let mut loops = JoinSet::new();
        let controllers = controllers::Config {
            cluster_cidr: networks.cluster_cidr.parse().map_err(|e: String| anyhow::anyhow!("--cluster-cidr: {e}"))?,
            root_ca_pem: server.ca_pem().to_owned(),
            node_monitor_grace: controllers::NODE_MONITOR_GRACE,
        };
        let service = |user: &str| server.service(apiserver::Identity::master(user));
        let services = (service("system:kube-controller-manager"), service("system:kube-scheduler"));
        loops.spawn(lead(store.group(), services, controllers));
        if let Some(schedule) = config.snapshots {
            let keeping = snapshot::keep(server.snapshots(), config.data_dir, schedule);
            loops.spawn(async move {
                keeping.await;
                "the schedule of snapshots"
            });
        }
        let (mut serving, stopping) = (JoinSet::new(), watch::Sender::new(false));
        if let Some((listener, listen)) = etcd {
            let (served, tls) = ((store.clone(), server.etcd_cluster(), Some(server.wire())), server.etcd_tls());
            let tls = move || matches!(listen, EtcdListen::Tls(_)).then(&tls);
            let mut stopping = stopping.subscribe();
            serving.spawn(async move {
                let asked = async { drop(stopping.wait_for(|stopping| *stopping).await) };
                store::etcd::serve(served, listener, tls, asked).await;
                "the etcd API"
            });
        }
        Ok(ControlPlane { server, store, loops, etcd: serving, stopping })
    }

    /// Waits for an end that nobody asked for: without any one of its parts the cluster would only seem to work.
    pub async fn broken(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            reason = self.store.ended() => return anyhow::Error::new(reason).context("the store ended"),
            Some(ended) = self.loops.join_next() => ended,
            Some(ended) = self.etcd.join_next() => ended,
        };
        match ended {
            Ok(who) => anyhow::anyhow!("{who} ended: start the server again"),
            Err(panic) => anyhow::Error::new(panic).context("a part of the server broke off: start it again"),
        }
    }

    /// What makes another machine a node of this cluster.
    fn join_command(&self) -> String {
        format!("minik8s agent --join {} --token {}", self.url(), self.server.join_token())
    }

    fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.server.advertised_address(), self.server.address().port()))
    }

    /// Lets requests under way finish, then makes the store's files final.
    pub async fn stop(mut self) -> Result<()> {
        self.loops.shutdown().await;
        // While requests under way still have somebody to carry them out.
        self.store.step_down().await;
        self.stopping.send_replace(true);
        // What has come of the etcd API's task does not matter any more.
        tokio::join!(self.server.shutdown(), async { while self.etcd.join_next().await.is_some() {} });
        self.store.shutdown().await.context("close the store")
    }
}

/// Where clients of the etcd API will be let in.
async fn listen_for_etcd(
    wanted: Option<EtcdListen>,
    settings: &mut apiserver::Config,
) -> Result<Option<(TcpListener, EtcdListen)>> {
    let listen = wanted.unwrap_or(EtcdListen::Tls(ETCD));
    let (scheme, address) = match listen {
        EtcdListen::Tls(address) => ("https", address),
        EtcdListen::Plain(address) => ("http", address),
        EtcdListen::Nowhere => return Ok(None),
    };
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let mut address = listener.local_addr()?;
            if address.ip().is_unspecified() {
                address.set_ip(apiserver::advertise_address(settings));
            }
            settings.etcd_urls = vec![format!("{scheme}://{address}")];
            Ok(Some((listener, listen)))
        }
        Err(error) if wanted.is_none() => {
            tracing::warn!(%error, "the etcd API is not served: {address} is taken; choose another with --etcd-listen");
            Ok(None)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot listen on {address}: choose another with --etcd-listen"))
        }
    }
}

/// Runs the scheduler and the controllers while this server leads. None of them has a way to end; answers which did.
async fn lead(
    mut group: watch::Receiver<Group>,
    (controllers, scheduler): (Service, Service),
    settings: controllers::Config,
) -> &'static str {
    loop {
        if group.wait_for(Group::leads).await.is_err() {
            return "the store";
        }
        let mut working = JoinSet::new();
        let manager = Client::in_process(controllers.clone());
        let scheduler = scheduler::run(Client::in_process(scheduler.clone()).sharing_caches_of(&manager));
        working.spawn(async move {
            scheduler.await;
            "the scheduler"
        });
        let settings = settings.clone();
        working.spawn(async move {
            controllers::run(manager, settings).await;
            "the controllers"
        });
        tokio::select! {
            replaced = group.wait_for(|group| !group.leads()) => if replaced.is_err() { return "the store" },
            Some(ended) = working.join_next() => match ended {
                Ok(who) => return who,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
        }
        tracing::info!("another server leads: the scheduler and the controllers rest here");
        working.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    /// What a client of HTTP/2 says first, and an empty frame of settings.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// The type of the next frame; none at the end.
    async fn frame(client: &mut TcpStream) -> Option<u8> {
        let mut head = [0; 9];
        timeout(PATIENCE, client.read_exact(&mut head)).await.expect("a frame in time").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        timeout(PATIENCE, client.read_exact(&mut vec![0; length as usize])).await.expect("all of it").ok()?;
        Some(head[3])
    }

    #[tokio::test]
    async fn a_stop_lets_clients_of_the_etcd_api_know() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a directory");
        let nowhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let config = Config {
            data_dir: dir.path().to_owned(),
            bind: nowhere,
            advertise_address: None,
            join: Vec::new(),
            token: None,
            etcd: Some(EtcdListen::Plain(nowhere)),
            quota_bytes: store::QUOTA_BYTES,
            tls_sans: Vec::new(),
            networks: flags::Networks {
                cluster_cidr: "10.244.0.0/16".to_owned(),
                service_cidr: "10.96.0.0/16".to_owned(),
                cluster_dns: Ipv4Addr::new(10, 96, 0, 10).into(),
            },
            encrypt: Vec::new(),
            snapshots: None,
        };
        let control_plane = ControlPlane::start(config).await.expect("a control plane");
        let members = control_plane.store.snapshot().members();
        let url = &members.values().next().expect("itself").client_urls[0];
        let mut client = TcpStream::connect(url.trim_start_matches("http://")).await.expect("connected");
        client.write_all(HELLO).await.expect("sent");
        assert_eq!(frame(&mut client).await, Some(SETTINGS));
        let stopping = tokio::spawn(control_plane.stop());
        let mut seen = Vec::new();
        while let Some(kind) = frame(&mut client).await {
            seen.push(kind);
        }
        assert!(seen.contains(&GOAWAY), "{seen:?}");
        stopping.await.expect("no panic").expect("stopped");
    }
}
