//! Carries route plans out by netlink, and finds what a former agent left.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use futures_util::TryStreamExt;
use nix::libc;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        address::AddressScope,
        link::LinkAttribute,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    },
};

use crate::{
    cidr::Cidr,
    error::{Error, Result},
    links::{Links, VXLAN, is, mac_of},
    routes::{Routes, Step, Way},
    sysctl,
};

/// The mark of our routes: by it those of a former agent are known. Below 4 is the kernel's and the administrator's
/// own, and routing daemons have theirs elsewhere (/etc/iproute2/rt_protos).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);

/// All nodes' VXLAN network, and the port that other overlay networks use for it on Linux too.
const VNI: u32 = 1;
const PORT: u16 = 8472;

/// What VXLAN adds to a packet: outer Ethernet, IPv4 and UDP headers and its own.
const OVERHEAD: u32 = 50;

/// The routes of this host that are ours.
#[derive(Debug)]
pub struct Fabric {
    node_ip: Ipv4Addr,
    /// What the kernel has.
    routes: Routes,
    vxlan: Option<u32>,
}

impl Fabric {
    pub fn new(node_ip: Ipv4Addr) -> Fabric {
        Fabric { node_ip, routes: Routes::default(), vxlan: None }
    }

    /// The networks on which this host is itself: those of its addresses, but for our own interfaces and loopback.
    pub async fn local_links(links: &Links) -> Result<Vec<Cidr>> {
        let ours = [links.index(crate::links::BRIDGE).await?, links.index(VXLAN).await?, Some(1)];
        let addresses = links.addresses().await?.into_iter().filter(|a| !ours.contains(&Some(a.index)));
        Ok(addresses.filter_map(|a| Cidr::around(a.ip, a.prefix)).collect())
    }

    /// Brings the kernel from what it has to `wanted`. After an error the next call begins with what is missing.
    pub async fn sync(&mut self, links: &Links, wanted: &Routes, gateway: Ipv4Addr) -> Result<()> {
        if !wanted.tunnels().is_empty() && self.vxlan.is_none() {
            self.vxlan = Some(ensure_vxlan(links, self.node_ip, gateway).await?);
        }
        for step in Routes::diff(&self.routes, wanted) {
            self.carry_out(links, &step, gateway).await?;
        }
        self.routes = wanted.clone();
        Ok(())
    }

    /// Forgets what the kernel has, so that the next `sync` sets everything again; and removes routes and tunnels of ours
    /// that nobody wants.
    pub async fn adopt(&mut self, links: &Links, wanted: &Routes, service_cidr: Cidr) -> Result<()> {
        self.routes = Routes::default();
        for (route, to) in our_routes(links).await? {
            if !wanted.to.contains_key(&to) && to != service_cidr {
                delete_route(links, route, to).await?;
            }
        }
        // What is forgotten here no later difference would take away.
        if let Some(index) = links.index(VXLAN).await? {
            for node in tunnelled(links, index).await? {
                if !wanted.tunnels().contains(&node) {
                    remove_tunnel(links, Some(index), node).await?;
                }
            }
        }
        Ok(())
    }

    async fn carry_out(&self, links: &Links, step: &Step, gateway: Ipv4Addr) -> Result<()> {
        match step {
            Step::AddTunnel(node) => add_tunnel(links, self.vxlan, *node).await,
            Step::AddRoute { pods, node, way } => {
                let route = self.route(*pods, *node, *way).pref_source_if(*way == Way::Vxlan, gateway).build();
                let added = links.handle.route().add(route).replace().execute().await;
                added.map_err(Error::netlink("add the route to", pods.to_string()))
            }
            Step::RemoveRoute { pods, node, way } => {
                delete_route(links, self.route(*pods, *node, *way).build(), *pods).await
            }
            Step::RemoveTunnel(node) => remove_tunnel(links, self.vxlan, *node).await,
        }
    }

    fn route(&self, pods: Cidr, node: Ipv4Addr, way: Way) -> RouteMessageBuilder<Ipv4Addr> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(pods.base(), pods.prefix())
            .gateway(node)
            .protocol(PROTOCOL);
        match (way, self.vxlan) {
            // The node is no neighbour of the vxlan device by its address; its hardware address is known all the same.
            (Way::Vxlan, Some(index)) => route.output_interface(index).onlink(),
            _ => route,
        }
    }
}

trait PreferSource {
    fn pref_source_if(self, condition: bool, ip: Ipv4Addr) -> Self;
}

impl PreferSource for RouteMessageBuilder<Ipv4Addr> {
    fn pref_source_if(self, condition: bool, ip: Ipv4Addr) -> Self {
        if condition { self.pref_source(ip) } else { self }
    }
}

/// The way of this host's own processes to services: the address is rewritten before the packet leaves, so all this
/// route does is let it through, also on a host without a default route, and give it a source that every pod's node
/// knows the way back to.
pub async fn ensure_service_route(links: &Links, services: Cidr, bridge: u32, gateway: Ipv4Addr) -> Result<()> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(services.base(), services.prefix())
        .output_interface(bridge)
        .scope(RouteScope::Link)
        .pref_source(gateway)
        .protocol(PROTOCOL)
        .build();
    let added = links.handle.route().add(route).replace().execute().await;
    added.map_err(Error::netlink("add the route to services", services.to_string()))
}

/// Removes every route that carries our mark.
pub async fn remove_all_routes(links: &Links) -> Result<()> {
    for (route, to) in our_routes(links).await? {
        delete_route(links, route, to).await?;
    }
    Ok(())
}

/// Whether a route carries our mark.
pub fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL
}

async fn our_routes(links: &Links) -> Result<Vec<(RouteMessage, Cidr)>> {
    let any = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut all = links.handle.route().get(any).execute();
    let mut ours = Vec::new();
    while let Some(route) = all.try_next().await.map_err(Error::netlink("list", "routes"))? {
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                Cidr::around(*ip, route.header.destination_prefix_length)
            }
            _ => None,
        });
        if let (true, Some(to)) = (is_ours(&route), to) {
            ours.push((route, to));
        }
    }
    Ok(ours)
}

async fn delete_route(links: &Links, route: RouteMessage, to: Cidr) -> Result<()> {
    match links.handle.route().del(route).execute().await {
        Err(e) if !is(&e, libc::ESRCH) => Err(Error::netlink("delete the route to", to.to_string())(e)),
        _ => Ok(()),
    }
}

/// The device has the address of the bridge too: what this host sends through it, or masquerades there, then has an
/// address to which the other node knows the way.
async fn ensure_vxlan(links: &Links, node_ip: Ipv4Addr, gateway: Ipv4Addr) -> Result<u32> {
    let mac = mac_of(node_ip);
    let mtu = links.mtu_of(node_ip).await?.saturating_sub(OVERHEAD);
    let device = LinkVxlan::new(VXLAN, VNI)
        .local(node_ip)
        .port(PORT)
        .learning(false)
        .address(mac.to_vec())
        .mtu(mtu)
        .up()
        .build();
    let kept = links.find(VXLAN).await?;
    // A former agent's device carries traffic: it is replaced only if it was made for another address of this node,
    // which its hardware address tells.
    if kept.as_ref().is_some_and(|link| !link.attributes.contains(&LinkAttribute::Address(mac.to_vec()))) {
        links.delete(VXLAN).await?;
    }
    match links.handle.link().add(device).execute().await {
        Err(e) if !is(&e, libc::EEXIST) => return Err(Error::netlink("create", VXLAN)(e)),
        _ => {}
    }
    let Some(index) = links.index(VXLAN).await? else {
        return Err(Error::netlink("find", VXLAN)(rtnetlink::Error::RequestFailed));
    };
    links.ensure_address(index, gateway, 32, AddressScope::Universe).await?;
    sysctl::loose(VXLAN)?;
    transmit_checksums_off(VXLAN)?;
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    links.handle.link().change(up).execute().await.map_err(Error::netlink("set up", VXLAN))?;
    Ok(index)
}

async fn add_tunnel(links: &Links, vxlan: Option<u32>, node: Ipv4Addr) -> Result<()> {
    let Some(index) = vxlan else { return Ok(()) };
    let mac = mac_of(node);
    let neighbour = links.handle.neighbours().add(index, IpAddr::V4(node)).link_layer_address(&mac).replace();
    neighbour.execute().await.map_err(Error::netlink("add the neighbour", node.to_string()))?;
    let mut forward = links.handle.neighbours().add_bridge(index, &mac).destination(IpAddr::V4(node)).replace();
    // Of the device's own table, not that of a bridge above it.
    forward.message_mut().header.flags = rtnetlink::packet_route::neighbour::NeighbourFlags::Own;
    forward.execute().await.map_err(Error::netlink("add the tunnel to", node.to_string()))
}

/// The nodes that the device knows a hardware address of: only tunnels put one there.
async fn tunnelled(links: &Links, vxlan: u32) -> Result<Vec<Ipv4Addr>> {
    let mut all = links.handle.neighbours().get().execute();
    let mut nodes = Vec::new();
    while let Some(entry) = all.try_next().await.map_err(Error::netlink("list", "neighbours"))? {
        let node = entry.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
            _ => None,
        });
        let fixed = entry.header.state == NeighbourState::Permanent;
        nodes.extend(node.filter(|_| entry.header.ifindex == vxlan && fixed));
    }
    Ok(nodes)
}

async fn remove_tunnel(links: &Links, vxlan: Option<u32>, node: Ipv4Addr) -> Result<()> {
    let Some(index) = vxlan else { return Ok(()) };
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = rtnetlink::packet_route::AddressFamily::Inet;
    neighbour.header.ifindex = index;
    neighbour.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(node)));
    let mut forward = NeighbourMessage::default();
    forward.header.family = rtnetlink::packet_route::AddressFamily::Bridge;
    forward.header.ifindex = index;
    forward.header.flags = rtnetlink::packet_route::neighbour::NeighbourFlags::Own;
    forward.attributes.push(NeighbourAttribute::LinkLayerAddress(mac_of(node).to_vec()));
    forward.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(node)));
    for message in [neighbour, forward] {
        match links.handle.neighbours().del(message).execute().await {
            Err(e) if !is(&e, libc::ENOENT) => return Err(Error::netlink("delete the tunnel to", node.to_string())(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Some network cards compute the inner checksum of a tunnelled packet wrongly, which loses everything but pings. The
/// kernel's own sums cost little at the sizes of a tunnel.
fn transmit_checksums_off(interface: &'static str) -> Result<()> {
    /// ETHTOOL_STXCSUM and SIOCETHTOOL of linux/ethtool.h and linux/sockios.h.
    const SET_TX_CHECKSUM: u32 = 0x17;
    const ETHTOOL: libc::Ioctl = 0x8946;

    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }

    let failed = || Error::system("turn checksum offload off on", interface)(std::io::Error::last_os_error());
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(Error::system("open", "a socket"))?;
    let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names the interface, ends its name by a zero (names are shorter than the field), and points
    // to an ethtool_value that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(failed()) }
}
