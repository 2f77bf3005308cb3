//! The part of the table that depends on the node alone: base chains, empty maps, and what is masqueraded.
//!
//! It is text, and with it all that the first transaction puts into the table: JSON cannot declare the maps to
//! endpoints (see `json`), and a table must be replaced in one transaction, or traffic would miss it in between.

use std::{fmt::Write, net::Ipv4Addr};

use crate::{
    batch::{HAIRPIN, REFUSE, SILENT, TABLE},
    cidr::Cidr,
    frontend::Face,
    links::{BRIDGE, VXLAN},
    ruleset::Ruleset,
    text::{self, key_type, lookup},
};

/// What the skeleton depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skeleton {
    pub cluster_cidr: Cidr,
    pub service_cidr: Cidr,
    pub cluster_dns: Ipv4Addr,
}

/// One transaction that puts the whole table in place of whatever was there under its name. Deleting what may be
/// absent is an error, hence the first line.
pub fn replace(skeleton: &Skeleton, ruleset: &Ruleset) -> String {
    let (skeleton, rules) = (declare(skeleton), text::encode(&ruleset.full()));
    format!("add table ip {TABLE}\ndelete table ip {TABLE}\n{skeleton}{rules}")
}

fn declare(skeleton: &Skeleton) -> String {
    let Skeleton { cluster_cidr, service_cidr, cluster_dns } = skeleton;
    let mut maps = String::new();
    for face in Face::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(maps, "  map {} {{ type {} : verdict; }}", face.name(), key_type(face));
    }
    let vip = lookup(Face::Vip);
    let node = lookup(Face::Node);
    // `services` is asked in both hooks: what arrives, and what this host itself sends.
    //
    // A caller within the cluster (a pod, or this host) is never asked for its policy towards outsiders.
    //
    // What is called under the service network and has no entry is nobody's: the caller is told so at once. By a map, not
    // by a set: of a table that has just been replaced the maps are empty to a packet still underway in it, and the sets
    // are not. One that has missed its service for that reason must not be refused; it misses this map too, and is dropped.
    //
    // Masqueraded is, in this order: a pod that reached itself through a service, for it would answer itself without
    // our seeing it; a pod that calls out of the cluster; and a caller from outside whom a service sent on to another
    // node, for the answer must come back this way (with ports by chance: two processors that look for a free one at
    // the same time would else find the same). To this node's own pods the caller's address stays as it is.
    //
    // A packet that is underway in the old table at the very moment when a new one takes its place may miss both. It
    // must not get out: the connection would be tracked without a translation, and stay so however often it is tried
    // again. Dropped here it is not tracked, and its repetition finds the new table.
    //
    // The vxlan device has less room than a pod's link: TCP is told at once instead of by an ICMP error.
    format!(
        "table ip {TABLE} {{
{maps}  set {HAIRPIN} {{ type ipv4_addr . ipv4_addr; }}
  chain {REFUSE} {{
    meta l4proto tcp reject with tcp reset
    reject with icmp port-unreachable
  }}
  chain {SILENT} {{
    drop
  }}
  chain outside {{
    {vip} vmap @{vip_outside}
    fib daddr type local {node} vmap @{node_outside}
  }}
  chain services {{
    ip daddr {cluster_dns} return
    ip saddr != {cluster_cidr} fib saddr type != local jump outside
    {vip} vmap @{vip_map}
    ip daddr {service_cidr} meta l4proto vmap {{ tcp : goto {REFUSE}, udp : goto {REFUSE}, sctp : goto {REFUSE} }}
    ip daddr != 127.0.0.0/8 fib daddr type local {node} vmap @{node_map}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"lo\" return
    ct status dnat ip saddr . ip daddr @{HAIRPIN} masquerade
    oifname \"{BRIDGE}\" return
    ip saddr {cluster_cidr} ip daddr != {cluster_cidr} ip daddr != 224.0.0.0/4 masquerade fully-random
    ct status dnat ip saddr != {cluster_cidr} masquerade fully-random
  }}
  chain filter-output {{
    type filter hook output priority filter; policy accept;
    ip daddr != {cluster_dns} ip daddr {service_cidr} drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ip daddr {service_cidr} drop
    oifname \"{VXLAN}\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
    iifname \"{VXLAN}\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
  }}
}}
",
        vip_outside = Face::VipOutside.name(),
        node_outside = Face::NodeOutside.name(),
        vip_map = Face::Vip.name(),
        node_map = Face::Node.name(),
    )
}
