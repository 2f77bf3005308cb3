//! Keeps the pod network in step with the Node objects: the bridge from this node's podCIDR, routes to the others'.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use client::{Cache, Client, Update};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Node;
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, link::LinkAttribute},
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use crate::{
    Config,
    cidr::Cidr,
    error::{Error, Result},
    fabric::{self, Fabric},
    ips::Allocator,
    links::{Links, POD_LINK_PREFIX},
    routes::{self, Peer},
    sysctl,
};

/// After a failure.
const RETRY: Duration = Duration::from_secs(2);

/// What the kernel tells of one event (a link that goes takes its routes with it, one message each) is looked at once.
const SETTLE: Duration = Duration::from_millis(100);

/// The pod network of this node, once there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub cidr: Cidr,
    pub gateway: std::net::Ipv4Addr,
    pub bridge: u32,
    pub mtu: u32,
}

/// The loop that keeps it.
pub struct Nodes {
    config: Arc<Config>,
    links: Arc<Links>,
    nodes: Arc<Cache<Node>>,
    network: watch::Sender<Option<Network>>,
}

impl Nodes {
    pub fn new(
        client: &Client,
        config: Arc<Config>,
        links: Arc<Links>,
        network: watch::Sender<Option<Network>>,
    ) -> Nodes {
        Nodes { config, links, nodes: client.cache(), network }
    }

    /// Runs until dropped.
    pub async fn run(self) {
        let mut changes = self.nodes.subscribe();
        let mut fabric = Fabric::new(self.config.node_ip);
        let mut disturbed = watch_kernel();
        self.nodes.synced().await;
        let mut look = Look::AtTheKernelToo;
        loop {
            let failed = match self.sync(&mut fabric, look).await {
                Ok(()) => false,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "the pod network is not as it should be");
                    true
                }
            };
            look = loop {
                tokio::select! {
                    update = changes.next() => match update {
                        None => return,
                        Some(Update::Resync) => break Look::AtNodes,
                        // Nodes tell of their health all the time; routes follow from two fields of them.
                        Some(Update::Change(change)) => {
                            if change.old.as_deref().and_then(relevant) != change.new.as_deref().and_then(relevant) {
                                break Look::AtNodes;
                            }
                        }
                    },
                    Some(()) = disturbed.recv() => {
                        sleep(SETTLE).await;
                        while disturbed.try_recv().is_ok() {}
                        break Look::AtTheKernelToo;
                    }
                    () = sleep(RETRY), if failed => break Look::AtTheKernelToo,
                }
            };
        }
    }

    async fn sync(&self, fabric: &mut Fabric, look: Look) -> Result<()> {
        let own = self.nodes.get("", &self.config.node_name);
        // Without its node object this node keeps what it has: the object comes back, and pods are running.
        let assigned = own.as_deref().and_then(routes::pod_cidr);
        if let Some(cidr) = assigned {
            self.establish(cidr).await?;
        }
        let Some(network) = *self.network.borrow() else { return Ok(()) };
        let nodes = self.nodes.list();
        let others = nodes.iter().filter(|node| node.metadata.name.as_deref() != Some(&*self.config.node_name));
        let peers: Vec<Peer> = others.filter_map(|node| routes::peer(node)).collect();
        let local = Fabric::local_links(&self.links).await?;
        let wanted = routes::plan(&peers, self.config.node_ip, &local);
        if look == Look::AtTheKernelToo {
            fabric::ensure_service_route(&self.links, self.config.service_cidr, network.bridge, network.gateway)
                .await?;
            fabric.adopt(&self.links, &wanted, self.config.service_cidr).await?;
        }
        fabric.sync(&self.links, &wanted, network.gateway).await
    }

    async fn establish(&self, cidr: Cidr) -> Result<()> {
        if self.network.borrow().is_some_and(|network| network.cidr == cidr) {
            return Ok(());
        }
        let network = set_up(&self.config, &self.links, cidr).await?;
        remember(&self.config, cidr)?;
        self.network.send_replace(Some(network));
        tracing::info!(%cidr, gateway = %network.gateway, "the pod network is up");
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    AtNodes,
    AtTheKernelToo,
}

fn relevant(node: &Node) -> Option<(Option<Cidr>, Option<Peer>)> {
    Some((routes::pod_cidr(node), routes::peer(node)))
}

/// Makes the bridge.
pub async fn set_up(config: &Config, links: &Links, cidr: Cidr) -> Result<Network> {
    let gateway = Allocator::gateway(cidr);
    let mtu = links.mtu_of(config.node_ip).await?;
    let bridge = links.ensure_bridge(cidr, gateway, mtu).await?;
    sysctl::prepare_bridge()?;
    fabric::ensure_service_route(links, config.service_cidr, bridge, gateway).await?;
    Ok(Network { cidr, gateway, bridge, mtu })
}

/// The pod network that this node had last, so that pods start also while no server answers.
pub fn remembered(config: &Config) -> Option<Cidr> {
    fs::read_to_string(memory(config)).ok()?.trim().parse().ok()
}

fn remember(config: &Config, cidr: Cidr) -> Result<()> {
    let path = memory(config);
    if remembered(config) == Some(cidr) {
        return Ok(());
    }
    fs::write(&path, format!("{cidr}\n")).map_err(Error::file("write", &path))
}

fn memory(config: &Config) -> PathBuf {
    config.data_dir.join("network/pod-cidr")
}

/// Tells when the kernel dropped a route of ours, or a link or an address of this host changed. One message is as
/// good as many, hence the room for one.
fn watch_kernel() -> mpsc::Receiver<()> {
    let (send, receive) = mpsc::channel(1);
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr];
    match rtnetlink::new_multicast_connection(&groups) {
        Err(error) => tracing::warn!(%error, "changes of links will not be noticed"),
        Ok((connection, _, mut messages)) => {
            tokio::spawn(async move {
                let drive = tokio::spawn(connection);
                while let Some((message, _)) = messages.next().await {
                    let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
                    if disturbs(&message) && send.try_send(()) == Err(mpsc::error::TrySendError::Closed(())) {
                        break;
                    }
                    if send.is_closed() {
                        break;
                    }
                }
                drive.abort();
            });
        }
    }
    receive
}

/// Whether a change may have cost us a route, or bring a new neighbourhood. Pods' links come and go without that.
fn disturbs(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::DelRoute(route) => fabric::is_ours(route),
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewLink(link) => {
            let name =
                link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(n) = a { Some(n) } else { None });
            !name.is_some_and(|name| name.starts_with(POD_LINK_PREFIX))
        }
        _ => false,
    }
}
