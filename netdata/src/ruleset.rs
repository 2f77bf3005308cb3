//! What the kernel should do with each service address, as plain values, and the small batch that a change comes to.
//!
//! The shape in the kernel makes one change cost the same however many services there are. A verdict map takes
//! `address . protocol . port` to a chain shared by all services with the same number of endpoints (`vip-of-3`), which
//! draws a number and goes to a chain shared by all (`vip-pick-1`), which reads the endpoint from the map of that index
//! (`vip-1`) by the same key. So a service is elements of maps and nothing else; only session affinity and source
//! ranges, which are rare, get chains of their own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use client::Key;

use crate::{
    batch::{Batch, Items},
    cidr::Cidr,
};

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
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
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

    /// The type of its maps' keys, in nft's words.
    pub fn key_type(self) -> &'static str {
        match self {
            Face::Vip | Face::VipOutside => "ipv4_addr . inet_proto . inet_service",
            Face::Node | Face::NodeOutside => "inet_proto . inet_service",
        }
    }

    /// The expression that reads such a key from a packet.
    pub fn lookup(self) -> &'static str {
        match self {
            Face::Vip | Face::VipOutside => "ip daddr . meta l4proto . th dport",
            Face::Node | Face::NodeOutside => "meta l4proto . th dport",
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
    /// Its key in the maps of its face.
    pub fn key(&self) -> String {
        match self.face {
            Face::Vip | Face::VipOutside => format!("{} . {} . {}", self.ip, self.protocol, self.port),
            Face::Node | Face::NodeOutside => format!("{} . {}", self.protocol, self.port),
        }
    }

    /// A name for what only this frontend has.
    fn own(&self, what: &str) -> String {
        format!("{what}-{}-{}-{}-{}", self.face.name(), self.ip, self.protocol, self.port)
    }
}

/// What becomes of a new connection to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// The caller is told at once that nobody answers.
    Reject,
    /// The caller may try elsewhere: the endpoints are on other nodes, and the policy forbids to go there.
    Drop,
    /// Any endpoint, by chance. Invariant: not empty, no endpoint twice.
    Spread(Vec<SocketAddrV4>),
    Special(Special),
}

/// A frontend that needs a chain of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Invariant: not empty, no endpoint twice.
    pub endpoints: Vec<SocketAddrV4>,
    /// For how many seconds after its last new connection a client comes back to the same endpoint.
    pub affinity_seconds: Option<u32>,
    /// Callers that may pass; none means all.
    pub sources: Vec<Cidr>,
}

impl Load {
    pub fn endpoints(&self) -> &[SocketAddrV4] {
        match self {
            Load::Reject | Load::Drop => &[],
            Load::Spread(endpoints) | Load::Special(Special { endpoints, .. }) => endpoints,
        }
    }
}

/// What one service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub frontends: BTreeMap<Frontend, Load>,
    /// Addresses of its endpoints on this node: one that calls itself through the service must be masqueraded, or it
    /// would answer itself directly.
    pub local: BTreeSet<Ipv4Addr>,
}

/// A UDP endpoint that is gone: connections tracked to it would go on sending there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stale {
    pub frontend: Frontend,
    pub endpoint: SocketAddrV4,
}

/// What a change of the ruleset comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub batch: Batch,
    pub stale: Vec<Stale>,
}

/// The whole desired state.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    services: HashMap<Key, Rules>,
    // Two services may claim one external address and port. The one first in order has it, so that every node and
    // every restart decides alike; the kernel would refuse the second.
    claims: HashMap<Frontend, BTreeMap<Key, Load>>,
    /// How many frontends spread over so many endpoints. Invariant: no count is zero.
    widths: BTreeMap<(Face, usize), usize>,
    /// How many services have an endpoint at this address of this node. Invariant: no count is zero.
    local: BTreeMap<Ipv4Addr, usize>,
}

impl Ruleset {
    /// Whether nothing at all is asked for.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
    }

    /// Takes over what changed services ask for now (none: the service is gone) and says what the kernel needs.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = (Key, Option<Rules>)>) -> Change {
        let shape = self.shape();
        let local_before: BTreeSet<Ipv4Addr> = self.local.keys().copied().collect();
        let mut before: BTreeMap<Frontend, Option<Load>> = BTreeMap::new();
        for (key, rules) in changes {
            self.replace(key, rules, &mut before);
        }

        let (mut old, mut new) = (Items::default(), Items::default());
        let mut stale = Vec::new();
        for (frontend, was) in &before {
            self.settle(frontend, was.as_ref());
            let is = self.load(frontend).cloned();
            if *was == is {
                continue;
            }
            self.count_width(frontend.face, was.as_ref(), is.as_ref());
            was.iter().for_each(|load| expand(frontend, load, &mut old));
            is.iter().for_each(|load| expand(frontend, load, &mut new));
            stale.extend(gone_udp(frontend, was.as_ref(), is.as_ref()));
        }
        expand_local(local_before, &mut old);
        expand_local(self.local.keys().copied(), &mut new);
        if self.shape() != shape {
            expand_shared(&shape, &mut old);
            expand_shared(&self.shape(), &mut new);
        }
        Change { batch: Items::diff(&old, &new), stale }
    }

    /// Everything, for a table that is empty but for its skeleton.
    pub fn full(&self) -> Batch {
        let mut items = Items::default();
        expand_shared(&self.shape(), &mut items);
        expand_local(self.local.keys().copied(), &mut items);
        for frontend in self.claims.keys() {
            self.load(frontend).into_iter().for_each(|load| expand(frontend, load, &mut items));
        }
        Items::diff(&Items::default(), &items)
    }

    /// What a caller of this frontend gets.
    pub fn load(&self, frontend: &Frontend) -> Option<&Load> {
        self.claims.get(frontend)?.values().next()
    }

    fn shape(&self) -> BTreeSet<(Face, usize)> {
        self.widths.keys().copied().collect()
    }

    /// Puts one service's claims in place, and notes what each frontend that it touches had before the first of them.
    fn replace(&mut self, key: Key, rules: Option<Rules>, before: &mut BTreeMap<Frontend, Option<Load>>) {
        let old = match &rules {
            Some(rules) => self.services.insert(key.clone(), rules.clone()),
            None => self.services.remove(&key),
        }
        .unwrap_or_default();
        let new = rules.unwrap_or_default();
        for frontend in old.frontends.keys().chain(new.frontends.keys()) {
            before.entry(*frontend).or_insert_with(|| self.claims.get(frontend)?.values().next().cloned());
        }
        for frontend in old.frontends.keys().filter(|f| !new.frontends.contains_key(f)) {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.remove(&key);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
        for (frontend, load) in new.frontends {
            self.claims.entry(frontend).or_default().insert(key.clone(), load);
        }
        for ip in new.local.iter().filter(|ip| !old.local.contains(ip)) {
            *self.local.entry(*ip).or_default() += 1;
        }
        for ip in old.local.iter().filter(|ip| !new.local.contains(ip)) {
            decrement(&mut self.local, *ip);
        }
    }

    /// Keeps endpoints that stay in their places, so that a change of one endpoint is a change of one element.
    fn settle(&mut self, frontend: &Frontend, was: Option<&Load>) {
        let Some(load) = self.claims.get_mut(frontend).and_then(|c| c.values_mut().next()) else { return };
        if let (Some(Load::Spread(old)), Load::Spread(new)) = (was, load) {
            *new = settled(old, std::mem::take(new));
        }
    }

    fn count_width(&mut self, face: Face, was: Option<&Load>, is: Option<&Load>) {
        if let Some(Load::Spread(endpoints)) = is {
            *self.widths.entry((face, endpoints.len())).or_default() += 1;
        }
        if let Some(Load::Spread(endpoints)) = was {
            decrement(&mut self.widths, (face, endpoints.len()));
        }
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// The endpoints of `new` in an order as near to `old` as can be.
fn settled(old: &[SocketAddrV4], new: Vec<SocketAddrV4>) -> Vec<SocketAddrV4> {
    let wanted: BTreeSet<SocketAddrV4> = new.iter().copied().collect();
    let known: BTreeSet<SocketAddrV4> = old.iter().copied().collect();
    let mut fresh = new.into_iter().filter(|e| !known.contains(e));
    let mut slots: Vec<Option<SocketAddrV4>> =
        old.iter().map(|e| if wanted.contains(e) { Some(*e) } else { fresh.next() }).collect();
    slots.extend(fresh.map(Some));
    // What is empty now is filled from the end, so that the numbers stay without a hole.
    let mut endpoints = Vec::with_capacity(wanted.len());
    let (mut index, mut end) = (0, slots.len());
    while index < end {
        match slots[index] {
            Some(endpoint) => {
                endpoints.push(endpoint);
                index += 1;
            }
            None => {
                end -= 1;
                slots.swap(index, end);
            }
        }
    }
    endpoints
}

fn gone_udp(frontend: &Frontend, was: Option<&Load>, is: Option<&Load>) -> Vec<Stale> {
    if frontend.protocol != Protocol::Udp {
        return Vec::new();
    }
    let now = is.map(Load::endpoints).unwrap_or_default();
    let then = was.map(Load::endpoints).unwrap_or_default();
    let gone = then.iter().filter(|e| !now.contains(e));
    gone.map(|endpoint| Stale { frontend: *frontend, endpoint: *endpoint }).collect()
}

/// The chains and maps that services with so many endpoints share.
fn expand_shared(shape: &BTreeSet<(Face, usize)>, items: &mut Items) {
    for (face, width) in shape {
        for index in 0..*width {
            let (map, chain) = (face.index_map(index), face.pick_chain(index));
            let rule = format!("dnat to {} map @{map}", face.lookup());
            items.maps.insert(map, format!("type {} : ipv4_addr . inet_service", face.key_type()));
            items.chains.insert(chain, vec![rule]);
        }
        if *width > 1 {
            let picks = (0..*width).map(|i| (i, face.pick_chain(i)));
            items.chains.insert(face.spread_chain(*width), vec![draw(picks)]);
        }
    }
}

/// A rule that goes to one of several chains by chance.
fn draw(chains: impl ExactSizeIterator<Item = (usize, String)>) -> String {
    let width = chains.len();
    let arms: Vec<String> = chains.map(|(index, chain)| format!("{index} : goto {chain}")).collect();
    format!("numgen random mod {width} vmap {{ {} }}", arms.join(", "))
}

fn expand_local(ips: impl IntoIterator<Item = Ipv4Addr>, items: &mut Items) {
    for ip in ips {
        items.elements.insert(("hairpin".to_owned(), format!("{ip} . {ip}")), None);
    }
}

/// What one frontend puts into the table.
fn expand(frontend: &Frontend, load: &Load, items: &mut Items) {
    let face = frontend.face;
    let key = frontend.key();
    let verdict = match load {
        Load::Reject => "goto refuse".to_owned(),
        Load::Drop => "drop".to_owned(),
        Load::Spread(endpoints) => {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let value = format!("{} . {}", endpoint.ip(), endpoint.port());
                items.elements.insert((face.index_map(index), key.clone()), Some(value));
            }
            format!("goto {}", face.spread_chain(endpoints.len()))
        }
        Load::Special(special) => format!("goto {}", expand_special(frontend, special, items)),
    };
    items.elements.insert((face.name().to_owned(), key), Some(verdict));
}

/// The chain that this frontend has for itself.
fn expand_special(frontend: &Frontend, special: &Special, items: &mut Items) -> String {
    let protocol = frontend.protocol;
    let chain = frontend.own("own");
    let mut rules = Vec::new();
    if !special.sources.is_empty() {
        let sources: Vec<String> = special.sources.iter().map(Cidr::to_string).collect();
        rules.push(format!("ip saddr != {{ {} }} drop", sources.join(", ")));
    }
    match special.affinity_seconds {
        None => {
            let width = special.endpoints.len();
            let arms: Vec<String> = (special.endpoints.iter().enumerate())
                .map(|(i, e)| format!("{i} : {} . {}", e.ip(), e.port()))
                .collect();
            rules.push(format!(
                "meta l4proto {protocol} dnat to numgen random mod {width} map {{ {} }}",
                arms.join(", ")
            ));
        }
        Some(seconds) => {
            let mut sticky = Vec::new();
            for (index, endpoint) in special.endpoints.iter().enumerate() {
                let place = format!("{}-{}-{}", chain, endpoint.ip(), endpoint.port());
                let set = format!("seen-{seconds}-{place}");
                rules.push(format!("ip saddr @{set} goto {place}"));
                let stick = vec![
                    format!("update @{set} {{ ip saddr timeout {seconds}s }}"),
                    format!("meta l4proto {protocol} dnat to {}:{}", endpoint.ip(), endpoint.port()),
                ];
                items.sets.insert(set, format!("type ipv4_addr; flags dynamic,timeout; timeout {seconds}s"));
                items.chains.insert(place.clone(), stick);
                sticky.push((index, place));
            }
            rules.push(draw(sticky.into_iter()));
        }
    }
    items.chains.insert(chain.clone(), rules);
    chain
}
