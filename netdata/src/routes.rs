//! The ways to the other nodes' pods: directly by the node's address where it is on a link of ours, and by VXLAN
//! where routers lie between. The plan is pure; `fabric` carries it out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::api::core::v1::Node;

use crate::cidr::Cidr;

/// Another node, as far as routing cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub ip: Ipv4Addr,
    pub pods: Cidr,
}

/// How packets get to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Direct,
    Vxlan,
}

/// The route to each other node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    pub to: BTreeMap<Cidr, (Ipv4Addr, Way)>,
}

/// One change of what the kernel has. A tunnel is what tells the vxlan device where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    AddTunnel(Ipv4Addr),
    AddRoute { pods: Cidr, node: Ipv4Addr, way: Way },
    RemoveRoute { pods: Cidr, node: Ipv4Addr, way: Way },
    RemoveTunnel(Ipv4Addr),
}

impl Routes {
    /// The nodes that are reached by VXLAN.
    pub fn tunnels(&self) -> BTreeSet<Ipv4Addr> {
        self.to.values().filter(|(_, way)| *way == Way::Vxlan).map(|(node, _)| *node).collect()
    }

    /// What leads from one to the other. A route that changes is replaced before its old self is removed, which then
    /// finds nothing: it is never away.
    pub fn diff(old: &Routes, new: &Routes) -> Vec<Step> {
        let changed = |a: &Routes, b: &Routes| -> Vec<(Cidr, (Ipv4Addr, Way))> {
            a.to.iter().filter(|(pods, to)| b.to.get(pods) != Some(to)).map(|(pods, to)| (*pods, *to)).collect()
        };
        let (was, is) = (old.tunnels(), new.tunnels());
        let mut steps: Vec<Step> = is.difference(&was).copied().map(Step::AddTunnel).collect();
        steps.extend(changed(new, old).into_iter().map(|(pods, (node, way))| Step::AddRoute { pods, node, way }));
        steps.extend(changed(old, new).into_iter().map(|(pods, (node, way))| Step::RemoveRoute { pods, node, way }));
        steps.extend(was.difference(&is).copied().map(Step::RemoveTunnel));
        steps
    }
}

/// The routes from this node. `links` are the networks that this host is on itself.
pub fn plan(peers: &[Peer], node_ip: Ipv4Addr, links: &[Cidr]) -> Routes {
    let mut routes = Routes::default();
    // What has this node's own address is this node, or what is left of it under a former name.
    for peer in peers.iter().filter(|peer| peer.ip != node_ip) {
        let near = links.iter().any(|link| link.contains(peer.ip));
        routes.to.insert(peer.pods, (peer.ip, if near { Way::Direct } else { Way::Vxlan }));
    }
    routes
}

/// What a Node object says; none while it has no pod network or address yet.
pub fn peer(node: &Node) -> Option<Peer> {
    Some(Peer { ip: internal_ip(node)?, pods: pod_cidr(node)? })
}

pub fn pod_cidr(node: &Node) -> Option<Cidr> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

fn internal_ip(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().filter(|address| address.type_ == "InternalIP").find_map(|address| address.address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn peer_at(ip: [u8; 4], pods: &str) -> Peer {
        Peer { ip: ip.into(), pods: cidr(pods) }
    }

    #[test]
    fn nodes_on_a_link_are_routed_directly_and_others_by_vxlan() {
        let me = Ipv4Addr::new(192, 168, 1, 1);
        let peers = [
            peer_at([192, 168, 1, 1], "10.244.0.0/24"),
            peer_at([192, 168, 1, 2], "10.244.1.0/24"),
            peer_at([192, 168, 2, 3], "10.244.2.0/24"),
        ];
        let routes = plan(&peers, me, &[cidr("192.168.1.0/24")]);
        let expected = [
            (cidr("10.244.1.0/24"), (Ipv4Addr::new(192, 168, 1, 2), Way::Direct)),
            (cidr("10.244.2.0/24"), (Ipv4Addr::new(192, 168, 2, 3), Way::Vxlan)),
        ];
        assert_eq!(routes.to, BTreeMap::from(expected));
        assert_eq!(routes.tunnels(), BTreeSet::from([Ipv4Addr::new(192, 168, 2, 3)]));
        assert_eq!(plan(&peers[..1], me, &[]), Routes::default());
    }

    #[test]
    fn a_change_of_nodes_is_a_change_of_their_routes_only() {
        let me = Ipv4Addr::new(192, 168, 1, 1);
        let links = [cidr("192.168.1.0/24")];
        let old =
            plan(&[peer_at([192, 168, 1, 2], "10.244.1.0/24"), peer_at([10, 9, 9, 9], "10.244.2.0/24")], me, &links);
        let new =
            plan(&[peer_at([192, 168, 1, 3], "10.244.1.0/24"), peer_at([10, 9, 9, 9], "10.244.2.0/24")], me, &links);
        assert_eq!(Routes::diff(&old, &old), []);
        let (pods, way) = (cidr("10.244.1.0/24"), Way::Direct);
        let steps = [
            Step::AddRoute { pods, node: [192, 168, 1, 3].into(), way },
            Step::RemoveRoute { pods, node: [192, 168, 1, 2].into(), way },
        ];
        assert_eq!(Routes::diff(&old, &new), steps);
        let (pods, way, node) = (cidr("10.244.2.0/24"), Way::Vxlan, Ipv4Addr::new(10, 9, 9, 9));
        let only = Routes { to: BTreeMap::from([(cidr("10.244.1.0/24"), old.to[&cidr("10.244.1.0/24")])]) };
        let gone = [Step::RemoveRoute { pods, node, way }, Step::RemoveTunnel(node)];
        assert_eq!(Routes::diff(&old, &only), gone);
        assert_eq!(Routes::diff(&only, &old), [Step::AddTunnel(node), Step::AddRoute { pods, node, way }]);
    }

    #[test]
    fn a_node_without_network_or_address_is_no_peer() {
        let node = |json: serde_json::Value| -> Node { serde_json::from_value(json).unwrap() };
        let spec = serde_json::json!({"podCIDR": "10.244.1.0/24"});
        let status = serde_json::json!({"addresses": [
            {"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.168.1.2"}]});
        let whole = node(serde_json::json!({"spec": spec, "status": status}));
        assert_eq!(peer(&whole), Some(peer_at([192, 168, 1, 2], "10.244.1.0/24")));
        assert_eq!(peer(&node(serde_json::json!({"spec": spec}))), None);
        assert_eq!(peer(&node(serde_json::json!({"spec": {}, "status": status}))), None);
    }
}
