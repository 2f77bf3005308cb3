//! Interfaces, addresses and a pod's own routes, by netlink.
//!
//! A pod has its address as a /32 and reaches everything through the bridge's address, its neighbours on the node
//! too. So every packet passes the host's rules in both directions: were the pods one subnet, the answer to a
//! connection that a service sent next door would go there directly, from an address the caller never called.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    thread,
};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressScope},
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
        route::RouteScope,
    },
};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    cidr::Cidr,
    error::{Error, Result},
};

pub const BRIDGE: &str = "mk8s0";
pub const VXLAN: &str = "mk8s-vxlan";

/// A link of no known size has Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// A pod's end of its link.
const POD_LINK: &str = "eth0";

/// The loopback interface is the first in every namespace.
const LOOPBACK: u32 = 1;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Links {
    pub(crate) handle: Handle,
    connection: JoinHandle<()>,
}

/// An IPv4 address of an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub ip: Ipv4Addr,
    pub prefix: u8,
}

/// What a pod's link is made from.
#[derive(Clone, Debug)]
pub struct PodLink<'a> {
    pub netns: &'a Path,
    pub name: String,
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
    pub bridge: u32,
}

impl Links {
    /// In the network namespace of the calling thread.
    pub fn open() -> Result<Links> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::system("open", "netlink"))?;
        Ok(Links { handle, connection: tokio::spawn(connection) })
    }

    /// In another network namespace. A thread of its own goes there and ends; the socket stays.
    pub async fn open_in(netns: Arc<File>, subject: String) -> Result<Links> {
        let (send, receive) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let spawned = thread::Builder::new().name("pod-netns".into()).spawn(move || {
            let open = || {
                setns(&*netns, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| Error::system("enter the network namespace", subject)(e.into()))?;
                let _inside = runtime.enter();
                Links::open()
            };
            // Nobody waits any more: the socket closes with this value.
            let _ = send.send(open());
        });
        spawned.map_err(Error::system("start", "a thread"))?;
        receive.await.map_err(|_| Error::Thread { task: "enters a network namespace" })?
    }

    pub async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(e) if is(&e, nix::libc::ENODEV) => Ok(None),
            Err(e) => Err(Error::netlink("find interface", name)(e)),
        }
    }

    pub async fn index(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.find(name).await?.map(|link| link.header.index))
    }

    /// Deletes an interface, if it is there.
    pub async fn delete(&self, name: &str) -> Result<()> {
        match self.index(name).await? {
            Some(index) => self.delete_index(index, name).await,
            None => Ok(()),
        }
    }

    pub async fn delete_index(&self, index: u32, name: &str) -> Result<()> {
        match self.handle.link().del(index).execute().await {
            Err(e) if !is(&e, nix::libc::ENODEV) => Err(Error::netlink("delete interface", name)(e)),
            _ => Ok(()),
        }
    }

    /// Deletes the interfaces that are ports of a bridge.
    pub async fn delete_ports_of(&self, bridge: &str) -> Result<()> {
        let Some(controller) = self.index(bridge).await? else { return Ok(()) };
        let all: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(Error::netlink("list", "interfaces"))?;
        for link in all.iter().filter(|link| link.attributes.contains(&LinkAttribute::Controller(controller))) {
            self.delete_index(link.header.index, bridge).await?;
        }
        Ok(())
    }

    /// All IPv4 addresses of this host.
    pub async fn addresses(&self) -> Result<Vec<Address>> {
        let mut all = self.handle.address().get().execute();
        let mut found = Vec::new();
        while let Some(message) = all.try_next().await.map_err(Error::netlink("list", "addresses"))? {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            if let Some(ip) = local {
                found.push(Address { index: message.header.index, ip, prefix: message.header.prefix_len });
            }
        }
        Ok(found)
    }

    /// The room of a packet on the link that has this address.
    pub async fn mtu_of(&self, ip: Ipv4Addr) -> Result<u32> {
        let Some(address) = self.addresses().await?.into_iter().find(|address| address.ip == ip) else {
            return Ok(DEFAULT_MTU);
        };
        let mut links = self.handle.link().get().match_index(address.index).execute();
        let link = links.try_next().await.map_err(Error::netlink("find interface of", ip.to_string()))?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        let mtu = attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None });
        // The loopback's 64 KiB are no link's.
        Ok(if address.index == LOOPBACK { DEFAULT_MTU } else { mtu.unwrap_or(DEFAULT_MTU) })
    }

    /// The bridge with the first address of the node's pod network; also when a former agent made it, even for
    /// another network.
    pub async fn ensure_bridge(&self, cidr: Cidr, gateway: Ipv4Addr, mtu: u32) -> Result<u32> {
        // A bridge without an address of its own takes that of whichever port comes and goes, and pods would lose it.
        let mac = mac_of(gateway);
        let bridge = LinkBridge::new(BRIDGE).address(mac.to_vec()).mtu(mtu).up().build();
        match self.handle.link().add(bridge).execute().await {
            Err(e) if !is(&e, nix::libc::EEXIST) => return Err(Error::netlink("create bridge", BRIDGE)(e)),
            _ => {}
        }
        let index = self.index(BRIDGE).await?.ok_or(Error::Thread { task: "keeps the bridge" })?;
        let change = LinkMessageBuilder::<LinkUnspec>::new().index(index).address(mac.to_vec()).mtu(mtu).up().build();
        self.handle.link().change(change).execute().await.map_err(Error::netlink("set up bridge", BRIDGE))?;
        for old in self.addresses().await?.into_iter().filter(|a| a.index == index && a.ip != gateway) {
            self.delete_address(&old).await?;
        }
        self.ensure_address(index, gateway, cidr.prefix(), AddressScope::Universe).await?;
        Ok(index)
    }

    /// An address that only this host knows, on the loopback interface.
    pub async fn ensure_host_address(&self, ip: Ipv4Addr) -> Result<()> {
        let lo = LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK).up().build();
        self.handle.link().change(lo).execute().await.map_err(Error::netlink("set up", "lo"))?;
        self.ensure_address(LOOPBACK, ip, 32, AddressScope::Host).await
    }

    pub async fn remove_host_address(&self, ip: Ipv4Addr) -> Result<()> {
        self.delete_address(&Address { index: LOOPBACK, ip, prefix: 32 }).await
    }

    pub(crate) async fn ensure_address(&self, index: u32, ip: Ipv4Addr, prefix: u8, scope: AddressScope) -> Result<()> {
        let mut request = self.handle.address().add(index, ip.into(), prefix).replace();
        request.message_mut().header.scope = scope;
        request.execute().await.map_err(Error::netlink("add address", ip.to_string()))
    }

    async fn delete_address(&self, address: &Address) -> Result<()> {
        let Address { index, ip, prefix } = *address;
        let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(ip, prefix).build();
        match self.handle.address().del(message).execute().await {
            Err(e) if !is(&e, nix::libc::EADDRNOTAVAIL) => Err(Error::netlink("delete address", ip.to_string())(e)),
            _ => Ok(()),
        }
    }

    /// Connects a pod: one message makes the pair, one end in the bridge and the other born inside the pod.
    pub async fn connect_pod(&self, pod: &PodLink<'_>) -> Result<()> {
        let netns = File::open(pod.netns).map_err(Error::file("open", pod.netns))?;
        let netns = Arc::new(netns);
        let inside = Links::open_in(Arc::clone(&netns), pod.netns.display().to_string()).await?;
        let pair = || {
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name(POD_LINK)
                .mtu(pod.mtu)
                .setns_by_fd(netns.as_raw_fd())
                .build();
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
                .name(pod.name.clone())
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .mtu(pod.mtu)
                .controller(pod.bridge)
                .up()
                .build()
        };
        let mut made = self.handle.link().add(pair()).execute().await;
        if made.as_ref().is_err_and(|e| is(e, nix::libc::EEXIST)) {
            // Its own link, and traffic goes on over it; or what an attempt left that did not come to its end, or
            // another namespace's that the pod had before.
            if inside.addresses().await?.iter().any(|address| address.ip == pod.ip) {
                return Ok(());
            }
            self.delete(&pod.name).await?;
            inside.delete(POD_LINK).await?;
            made = self.handle.link().add(pair()).execute().await;
        }
        made.map_err(Error::netlink("create the link of", pod.netns.display().to_string()))?;
        tokio::try_join!(self.allow_hairpin(&pod.name), inside.set_up_inside(pod))?;
        Ok(())
    }

    /// Lets the bridge send a frame out where it came in. Where the kernel shows bridged packets to the IP rules
    /// (net.bridge.bridge-nf-call-iptables, which other software switches on), a pod that reaches itself through a
    /// service is turned round in the bridge already, and not above it.
    async fn allow_hairpin(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let port = LinkBridgePort::new(index).hairpin(true).build();
        self.handle.link().set_port(port).execute().await.map_err(Error::netlink("set up the bridge port", name))
    }

    async fn set_up_inside(&self, pod: &PodLink<'_>) -> Result<()> {
        let subject = || pod.netns.display().to_string();
        let lo = LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK).up().build();
        self.handle.link().change(lo).execute().await.map_err(Error::netlink("set up lo in", subject()))?;
        let Some(index) = self.index(POD_LINK).await? else {
            return Err(Error::netlink("find eth0 in", subject())(rtnetlink::Error::RequestFailed));
        };
        // Not at birth: an end of a pair cannot be up before the other one is there.
        let eth0 = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        self.handle.link().change(eth0).execute().await.map_err(Error::netlink("set up eth0 in", subject()))?;
        self.ensure_address(index, pod.ip, 32, AddressScope::Universe).await?;
        let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(pod.gateway, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(pod.gateway).output_interface(index).build();
        for route in [gateway, default] {
            let added = self.handle.route().add(route).replace().execute().await;
            added.map_err(Error::netlink("add a route in", subject()))?;
        }
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Whether the kernel's answer was this errno.
pub(crate) fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// A locally administered hardware address that everyone derives alike from an IPv4 address.
pub fn mac_of(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x6d, a, b, c, d]
}

/// The host's end of a pod's link: at most 15 characters, and the same in every run.
pub fn pod_link_name(pod_uid: &str) -> String {
    // FNV-1a; 44 of its bits tell the few hundred pods of a node apart.
    let hash = pod_uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{POD_LINK_PREFIX}{:011x}", hash >> 20)
}

/// How the host's ends of pods' links begin.
pub const POD_LINK_PREFIX: &str = "mk8s";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_differ() {
        let a = pod_link_name("0d3c1f3e-6a55-4d6f-a7a1-0f8f0b8f7f01");
        let b = pod_link_name("0d3c1f3e-6a55-4d6f-a7a1-0f8f0b8f7f02");
        assert_eq!(a.len(), 15);
        assert_ne!(a, b);
        assert_eq!(mac_of(Ipv4Addr::new(10, 0, 0, 7)), [2, 0x6d, 10, 0, 0, 7]);
    }
}
