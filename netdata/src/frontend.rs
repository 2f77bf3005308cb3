//! Where services are called, and the names that everything in the table has by it.

use std::{fmt, net::Ipv4Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Kubernetes' name for it; an absent one means TCP.
    pub fn parse(name: Option<&str>) -> Option<Protocol> {
        match name {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of the four verdict maps a frontend is in: those of addresses or those of node ports, and of each the one
/// for every caller or the one that is asked first, and only for callers from outside the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Face {
    Vip,
    VipOutside,
    Node,
    NodeOutside,
}

impl Face {
    pub const ALL: [Face; 4] = [Face::Vip, Face::VipOutside, Face::Node, Face::NodeOutside];

    /// The name of its verdict map, and the first part of all its other names.
    pub fn name(self) -> &'static str {
        match self {
            Face::Vip => "vip",
            Face::VipOutside => "vip-outside",
            Face::Node => "node",
            Face::NodeOutside => "node-outside",
        }
    }

    pub fn pick_chain(self, index: usize) -> String {
        format!("{}-pick-{index}", self.name())
    }

    pub fn index_map(self, index: usize) -> String {
        format!("{}-{index}", self.name())
    }

    /// Where a packet goes whose service has so many endpoints.
    pub fn spread_chain(self, width: usize) -> String {
        if width == 1 { self.pick_chain(0) } else { format!("{}-of-{width}", self.name()) }
    }
}

/// Where a service is called: an address and a port, or a port of every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub face: Face,
    /// Unspecified (0.0.0.0) for the faces of node ports.
    pub ip: Ipv4Addr,
    pub protocol: Protocol,
    pub port: u16,
}

impl Frontend {
    /// A name for what only this frontend has.
    pub fn own(&self, what: &str) -> String {
        format!("{what}-{}-{}-{}-{}", self.face.name(), self.ip, self.protocol, self.port)
    }
}
