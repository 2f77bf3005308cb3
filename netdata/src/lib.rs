//! The pod network, service routing and cluster DNS of one node.
//!
//! Pure, in reading order: `cidr`; `routes` (nodes -> routes); `frontend`; `compile` (a service and its slices -> what
//! this node does for it); `batch` (what a table holds, and the way from one to another); `ruleset` (all services -> a
//! table, and a change -> a small batch); `json` and `text` (the batch in nft's words); `skeleton` (the rest of the
//! table); `index` and `dns::answer` (a question -> an answer); `ips` (addresses).
//! Shells: `records`, `nft`, `conntrack`, `links`, `fabric`, `sysctl`, `dns`; and the loops `services` and `network`.
//!
//! Invariants:
//! - All rules are in one table, `ip minik8s`; nothing in another table is read or changed. What another table drops
//!   stays dropped: a host firewall whose forward chain drops by default must be told to let the pod network through,
//!   for in nftables an accept of ours cannot overrule it.
//! - A pod sees the address of the pod that calls it, whichever way the call came.
//! - Rules and links outlive the agent; a new agent replaces the table in one transaction, so traffic never stops.
//! - The cost of a change of one service does not depend on how many services there are.
//! - Sockets are opened in the network namespace of the process, except for one per attached pod.

pub mod batch;
pub mod cidr;
pub mod compile;
pub mod conntrack;
pub mod dns;
pub mod error;
pub mod fabric;
pub mod frontend;
pub mod index;
pub mod ips;
pub mod json;
pub mod links;
pub mod network;
pub mod nft;
pub mod records;
pub mod routes;
pub mod ruleset;
pub mod services;
pub mod skeleton;
pub mod sysctl;
pub mod text;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use client::Client;
use tokio::{sync::watch, task::JoinSet, time::timeout};

pub use crate::{
    cidr::Cidr,
    error::{Error, Result},
};
use crate::{
    compile::Local,
    ips::Allocator,
    links::{BRIDGE, Links, PodLink, VXLAN, pod_link_name},
    network::{Network, Nodes},
    records::{Record, Records},
    services::Services,
    skeleton::Skeleton,
};

/// How long a pod waits for the node's network: as long as a new node may wait for its podCIDR.
const NETWORK_TIME: Duration = Duration::from_secs(30);

/// The domain of the cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub cluster_dns: Ipv4Addr,
    /// Holds `network/`, which outlives a reboot.
    pub data_dir: PathBuf,
    /// Holds `network/`, which does not.
    pub run_dir: PathBuf,
}

/// How a pod is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub ip: IpAddr,
}

/// The running network of a node. Dropping it ends its loops and leaves rules and links in place, like `stop`.
pub struct Netdata {
    config: Arc<Config>,
    links: Arc<Links>,
    network: watch::Receiver<Option<Network>>,
    addresses: Arc<Addresses>,
    loops: Mutex<JoinSet<()>>,
    /// Links on their way out. Bounded by the pods of a node.
    leaving: Mutex<JoinSet<()>>,
    dns: Mutex<Option<dns::Server>>,
}

/// Who has which address, and the files that say so.
struct Addresses {
    records: Records,
    /// None until the node has a network.
    allocator: Mutex<Option<Allocator>>,
}

impl Netdata {
    /// Begins to keep this node's network. It waits for no server: what it needs from one comes later by itself.
    pub async fn start(config: Config, client: Client) -> Result<Netdata> {
        for dir in [&config.data_dir, &config.run_dir] {
            let dir = dir.join("network");
            fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        }
        let config = Arc::new(config);
        let links = Arc::new(Links::open()?);
        sysctl::prepare_host(&config.run_dir)?;
        links.ensure_host_address(config.cluster_dns).await?;

        let index = dns::Shared::default();
        let zone = dns::answer::Zone {
            domain: CLUSTER_DOMAIN.to_owned(),
            networks: vec![config.service_cidr, config.cluster_cidr],
        };
        let dns = dns::Server::start(config.cluster_dns, zone, Arc::clone(&index)).await?;

        let remembered = match network::remembered(&config) {
            Some(cidr) => Some(network::set_up(&config, &links, cidr).await?),
            None => None,
        };
        let (network_sender, network) = watch::channel(remembered);
        let local = Local { node_name: config.node_name.clone(), cluster_dns: config.cluster_dns };
        let skeleton = Skeleton {
            cluster_cidr: config.cluster_cidr,
            service_cidr: config.service_cidr,
            cluster_dns: config.cluster_dns,
        };
        let mut loops = JoinSet::new();
        loops.spawn(Services::new(&client, local, skeleton, index).run());
        loops.spawn(Nodes::new(&client, Arc::clone(&config), Arc::clone(&links), network_sender).run());
        Ok(Netdata {
            addresses: Arc::new(Addresses { records: Records::open(&config.run_dir)?, allocator: Mutex::new(None) }),
            config,
            links,
            network,
            loops: Mutex::new(loops),
            leaving: Mutex::default(),
            dns: Mutex::new(Some(dns)),
        })
    }

    /// Connects a pod's network namespace, given by a path that holds it. Asked again for the same pod and
    /// namespace it changes nothing. A node that has no pod network yet is waited for.
    #[tracing::instrument(level = "debug", skip(self, netns))]
    pub async fn attach(&self, netns: &Path, pod_uid: &str) -> Result<Attachment> {
        let network = self.network().await?;
        let ip = self.addresses.take(network.cidr, netns, pod_uid)?;
        let link = PodLink {
            netns,
            name: pod_link_name(pod_uid),
            ip,
            gateway: network.gateway,
            mtu: network.mtu,
            bridge: network.bridge,
        };
        if let Err(error) = self.links.connect_pod(&link).await {
            self.detach(pod_uid).await?;
            return Err(error);
        }
        Ok(Attachment { ip: ip.into() })
    }

    /// Gives a pod's address and link up; nothing when it has none. The link goes in the background, as the kernel
    /// takes its time for that, and only then is the address free.
    #[tracing::instrument(level = "debug", skip(self))]
    pub async fn detach(&self, pod_uid: &str) -> Result<()> {
        // Also before this agent's first attach: the address may be a former agent's.
        if let Some(network) = *self.network.borrow() {
            self.addresses.load(network.cidr)?;
        }
        let name = pod_link_name(pod_uid);
        let index = self.links.index(&name).await?;
        let ip = self.addresses.lock().as_mut().and_then(|allocator| allocator.leave(pod_uid));
        if index.is_none() && ip.is_none() {
            return Ok(());
        }
        let (links, addresses) = (Arc::clone(&self.links), Arc::clone(&self.addresses));
        let mut leaving = lock(&self.leaving);
        while leaving.try_join_next().is_some() {}
        leaving.spawn(async move {
            // By its index: a pod that is connected anew meanwhile has a link of the same name.
            let deleted = match index {
                Some(index) => links.delete_index(index, &name).await,
                None => Ok(()),
            };
            let freed = deleted.and_then(|()| ip.map_or(Ok(()), |ip| addresses.free(ip)));
            if let Err(error) = freed {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "a pod's link or address stays until the agent is started again");
            }
        });
        Ok(())
    }

    /// Ends the loops and DNS. Links, routes and rules stay, and pods' traffic goes on.
    pub async fn stop(&self) {
        let mut loops = std::mem::take(&mut *lock(&self.loops));
        loops.shutdown().await;
        let mut leaving = std::mem::take(&mut *lock(&self.leaving));
        while leaving.join_next().await.is_some() {}
        let dns = lock(&self.dns).take();
        if let Some(dns) = dns {
            dns.stop().await;
        }
    }

    /// Stops, and takes away every interface, address, route, rule, setting and file that is ours. Goes on past what
    /// fails, and tells the first failure.
    pub async fn remove_all(&self) -> Result<()> {
        self.stop().await;
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        note(nft::apply_typed(&json::delete_table()).await);
        note(self.links.delete_ports_of(BRIDGE).await);
        note(fabric::remove_all_routes(&self.links).await);
        for interface in [BRIDGE, VXLAN] {
            note(self.links.delete(interface).await);
        }
        note(self.links.remove_host_address(self.config.cluster_dns).await);
        note(sysctl::restore_host(&self.config.run_dir));
        for dir in [&self.config.run_dir, &self.config.data_dir] {
            let dir = dir.join("network");
            note(match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &dir)(e)),
                _ => Ok(()),
            });
        }
        first
    }

    async fn network(&self) -> Result<Network> {
        let mut network = self.network.clone();
        let known = timeout(NETWORK_TIME, network.wait_for(Option::is_some)).await;
        let known = known.map_err(|_| Error::NoPodCidr { seconds: NETWORK_TIME.as_secs() })?;
        known.map_err(|_| Error::Stopped)?.ok_or(Error::Stopped)
    }
}

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, Option<Allocator>> {
        lock(&self.allocator)
    }

    /// Reads the files, once; and again when the node was given another network.
    fn load(&self, cidr: Cidr) -> Result<()> {
        let mut allocator = self.lock();
        if allocator.as_ref().is_none_or(|allocator| allocator.cidr() != cidr) {
            *allocator = Some(self.records.restore(cidr)?);
        }
        Ok(())
    }

    fn take(&self, cidr: Cidr, netns: &Path, pod_uid: &str) -> Result<Ipv4Addr> {
        self.load(cidr)?;
        let ip = match self.lock().as_mut() {
            Some(allocator) => allocator.allocate(pod_uid)?,
            None => return Err(Error::Stopped),
        };
        let record = Record { pod_uid: pod_uid.to_owned(), netns: netns.to_owned() };
        self.records.put(ip, &record)?;
        Ok(ip)
    }

    fn free(&self, ip: Ipv4Addr) -> Result<()> {
        self.records.remove(ip)?;
        if let Some(allocator) = self.lock().as_mut() {
            allocator.free(ip);
        }
        Ok(())
    }
}

/// A panic elsewhere leaves these values whole: each change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
