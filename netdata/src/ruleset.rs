//! What the kernel should do with each service address, as plain values, and the small batch that a change comes to.
//!
//! The shape in the kernel makes one change cost the same however many services there are. A verdict map takes
//! `address . protocol . port` to a chain shared by all services with the same number of endpoints (`vip-of-3`), which
//! draws a number and goes to a chain shared by all (`vip-pick-1`), which reads the endpoint from the map of that index
//! (`vip-1`) by the same key. So a service is elements of maps and nothing else; only session affinity and source
//! ranges, which are rare, get chains of their own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
};

use client::Key;

use crate::{
    batch::{Batch, HAIRPIN, Items, REFUSE, Rule, SILENT, Slot, Target},
    cidr::Cidr,
    frontend::{Face, Frontend, Protocol},
};

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
            items.chains.insert(chain, vec![Rule::DnatByMap { face: *face, map: map.clone() }]);
            items.maps.insert(map, *face);
        }
        if *width > 1 {
            let picks = (0..*width).map(|index| face.pick_chain(index)).collect();
            items.chains.insert(face.spread_chain(*width), vec![Rule::Draw { chains: picks }]);
        }
    }
}

fn expand_local(ips: impl IntoIterator<Item = Ipv4Addr>, items: &mut Items) {
    for ip in ips {
        items.elements.insert((HAIRPIN.to_owned(), Slot::Itself(ip)), None);
    }
}

/// What one frontend puts into the table.
fn expand(frontend: &Frontend, load: &Load, items: &mut Items) {
    let face = frontend.face;
    let slot = Slot::Frontend(*frontend);
    let chain = match load {
        Load::Reject => REFUSE.to_owned(),
        Load::Drop => SILENT.to_owned(),
        Load::Spread(endpoints) => {
            for (index, endpoint) in endpoints.iter().enumerate() {
                items.elements.insert((face.index_map(index), slot), Some(Target::Endpoint(*endpoint)));
            }
            face.spread_chain(endpoints.len())
        }
        Load::Special(special) => expand_special(frontend, special, items),
    };
    items.elements.insert((face.name().to_owned(), slot), Some(Target::Chain(chain)));
}

/// The chain that this frontend has for itself.
fn expand_special(frontend: &Frontend, special: &Special, items: &mut Items) -> String {
    let protocol = frontend.protocol;
    let chain = frontend.own("own");
    let mut rules = Vec::new();
    if !special.sources.is_empty() {
        rules.push(Rule::DropOthers { sources: special.sources.clone() });
    }
    match special.affinity_seconds {
        None => rules.push(Rule::DnatDraw { protocol, endpoints: special.endpoints.clone() }),
        Some(seconds) => {
            let mut places = Vec::new();
            for endpoint in &special.endpoints {
                let place = format!("{}-{}-{}", chain, endpoint.ip(), endpoint.port());
                let set = format!("seen-{seconds}-{place}");
                rules.push(Rule::GotoIfSeen { set: set.clone(), chain: place.clone() });
                let stick =
                    vec![Rule::Remember { set: set.clone(), seconds }, Rule::Dnat { protocol, endpoint: *endpoint }];
                items.sets.insert(set, seconds);
                items.chains.insert(place.clone(), stick);
                places.push(place);
            }
            rules.push(Rule::Draw { chains: places });
        }
    }
    items.chains.insert(chain.clone(), rules);
    chain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{batch::Command, text};

    fn endpoint(n: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 244, 1, n), 8080)
    }

    fn vip(n: u8) -> Frontend {
        Frontend { face: Face::Vip, ip: Ipv4Addr::new(10, 96, 0, n), protocol: Protocol::Udp, port: 80 }
    }

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    fn spread(endpoints: &[u8]) -> Load {
        Load::Spread(endpoints.iter().map(|n| endpoint(*n)).collect())
    }

    fn one(frontend: Frontend, load: Load) -> Option<Rules> {
        Some(Rules { frontends: BTreeMap::from([(frontend, load)]), local: BTreeSet::new() })
    }

    /// The table as the kernel keeps it, and as strict: it refuses what the kernel refuses.
    #[derive(Debug, Default, PartialEq)]
    struct Kernel {
        items: Items,
    }

    impl Kernel {
        fn new() -> Kernel {
            let mut kernel = Kernel::default();
            for face in Face::ALL {
                kernel.items.maps.insert(face.name().into(), face);
            }
            kernel.items.sets.insert(HAIRPIN.into(), 0);
            kernel.items.chains.insert(REFUSE.into(), Vec::new());
            kernel.items.chains.insert(SILENT.into(), Vec::new());
            kernel
        }

        fn apply(&mut self, batch: &Batch) {
            for command in &batch.commands {
                self.carry_out(command);
            }
        }

        fn carry_out(&mut self, command: &Command) {
            let items = &mut self.items;
            match command.clone() {
                Command::AddSet { name, seconds } => assert_eq!(items.sets.insert(name, seconds), None),
                Command::AddMap { name, face } => assert_eq!(items.maps.insert(name, face), None),
                Command::AddChain { name } => assert_eq!(items.chains.insert(name, Vec::new()), None),
                Command::AddRule { chain, rule } => {
                    for name in Kernel::names(&rule) {
                        assert!(self.has(name), "{rule:?} needs {name}");
                    }
                    self.items.chains.get_mut(&chain).unwrap().push(rule);
                }
                Command::FlushChain { name } => items.chains.get_mut(&name).unwrap().clear(),
                Command::AddElement { of, slot, target } => {
                    if let Some(Target::Chain(name)) = &target {
                        assert!(self.has(name), "{slot:?} needs {name}");
                    }
                    assert!(self.has(&of), "{of} is there");
                    assert_eq!(self.items.elements.insert((of, slot), target), None);
                }
                Command::DeleteElement { of, slot } => assert!(items.elements.remove(&(of, slot)).is_some()),
                Command::DeleteChain { name } => {
                    self.unused(&name);
                    assert_eq!(self.items.chains.remove(&name), Some(Vec::new()));
                }
                Command::DeleteMap { name, face } => {
                    self.unused(&name);
                    assert_eq!(self.items.maps.remove(&name), Some(face));
                }
                Command::DeleteSet { name } => {
                    self.unused(&name);
                    assert!(self.items.sets.remove(&name).is_some());
                }
            }
        }

        fn has(&self, name: &str) -> bool {
            let Items { sets, maps, chains, .. } = &self.items;
            sets.contains_key(name) || maps.contains_key(name) || chains.contains_key(name)
        }

        fn unused(&self, name: &str) {
            let user = self.items.chains.values().flatten().find(|rule| Kernel::names(rule).contains(&name));
            assert_eq!(user, None, "{name} is still used");
            let leads = |target: &Option<Target>| matches!(target, Some(Target::Chain(chain)) if chain == name);
            assert!(!self.items.elements.values().any(leads), "{name} is still led to");
            assert!(!self.items.elements.keys().any(|(of, _)| of == name), "{name} is not empty");
        }

        /// The chains, sets and maps that a rule points at.
        fn names(rule: &Rule) -> Vec<&str> {
            match rule {
                Rule::DnatByMap { map, .. } => vec![map],
                Rule::Draw { chains } => chains.iter().map(String::as_str).collect(),
                Rule::GotoIfSeen { set, chain } => vec![set, chain],
                Rule::Remember { set, .. } => vec![set],
                Rule::DropOthers { .. } | Rule::DnatDraw { .. } | Rule::Dnat { .. } => Vec::new(),
            }
        }
    }

    #[test]
    fn one_endpoint_more_or_less_is_a_handful_of_elements() {
        let mut all = Ruleset::default();
        let many = (0..200).map(|n| (key(&format!("s{n}")), one(vip(n), spread(&[1, 2, 3]))));
        all.apply(many.chain([(key("four"), one(vip(250), spread(&[1, 2, 3, 4])))]));

        let swapped = all.apply([(key("s7"), one(vip(7), spread(&[1, 9, 3])))]);
        let (of, slot, target) = ("vip-1".to_owned(), Slot::Frontend(vip(7)), Some(Target::Endpoint(endpoint(9))));
        let expected = [Command::DeleteElement { of: of.clone(), slot }, Command::AddElement { of, slot, target }];
        assert_eq!(swapped.batch.commands, expected);
        assert_eq!(swapped.stale, [Stale { frontend: vip(7), endpoint: endpoint(2) }]);

        // The first goes: the last takes its place, and nothing else moves.
        let less = all.apply([(key("s7"), one(vip(7), spread(&[9, 3])))]);
        assert_eq!(
            text::encode(&less.batch),
            "add chain ip minik8s vip-of-2\n\
             add rule ip minik8s vip-of-2 numgen random mod 2 vmap { 0 : goto vip-pick-0, 1 : goto vip-pick-1 }\n\
             delete element ip minik8s vip { 10.96.0.7 . udp . 80 }\n\
             delete element ip minik8s vip-0 { 10.96.0.7 . udp . 80 }\n\
             delete element ip minik8s vip-2 { 10.96.0.7 . udp . 80 }\n\
             add element ip minik8s vip { 10.96.0.7 . udp . 80 : goto vip-of-2 }\n\
             add element ip minik8s vip-0 { 10.96.0.7 . udp . 80 : 10.244.1.3 . 8080 }\n"
        );
        assert_eq!(all.apply([(key("s7"), one(vip(7), spread(&[3, 9])))]), Change::default(), "order is no change");
        let more = all.apply([(key("s8"), one(vip(8), spread(&[1, 2, 3, 4])))]);
        assert_eq!(more.batch.commands.len(), 3);
        assert_eq!(more.stale, []);
        let gone = all.apply([(key("four"), None), (key("s8"), None)]);
        assert!(text::encode(&gone.batch).ends_with(
            "flush chain ip minik8s vip-of-4\nflush chain ip minik8s vip-pick-3\n\
             delete chain ip minik8s vip-of-4\ndelete chain ip minik8s vip-pick-3\ndelete map ip minik8s vip-3\n"
        ));
    }

    #[test]
    fn what_two_services_claim_the_first_in_order_has() {
        let mut all = Ruleset::default();
        all.apply([(key("b"), one(vip(1), spread(&[1])))]);
        all.apply([(key("a"), one(vip(1), spread(&[2])))]);
        assert_eq!(all.load(&vip(1)), Some(&spread(&[2])));
        assert_eq!(all.apply([(key("b"), one(vip(1), spread(&[3])))]).batch, Batch::default());
        all.apply([(key("a"), None)]);
        assert_eq!(all.load(&vip(1)), Some(&spread(&[3])));
        all.apply([(key("b"), None)]);
        assert_eq!(all.load(&vip(1)), None);
        assert!(all.is_empty());
    }

    fn any_load() -> impl Strategy<Value = Load> {
        let some = || proptest::collection::btree_set(1..6u8, 1..5);
        let list = |set: BTreeSet<u8>| -> Vec<SocketAddrV4> { set.into_iter().map(endpoint).collect() };
        prop_oneof![
            Just(Load::Reject),
            Just(Load::Drop),
            some().prop_map(move |set| Load::Spread(list(set))),
            (some(), proptest::option::of(10..12u32), proptest::bool::ANY).prop_map(move |(set, seconds, guarded)| {
                let sources = if guarded { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() };
                Load::Special(Special { endpoints: list(set), affinity_seconds: seconds, sources })
            }),
        ]
    }

    fn any_rules() -> impl Strategy<Value = Option<Rules>> {
        let face = proptest::sample::select(Face::ALL.to_vec());
        let frontend = (face, 1..4u8).prop_map(|(face, n)| match face {
            Face::Vip | Face::VipOutside => Frontend { face, ..vip(n) },
            Face::Node | Face::NodeOutside => {
                Frontend { face, ip: Ipv4Addr::UNSPECIFIED, port: u16::from(n), ..vip(n) }
            }
        });
        let frontends = proptest::collection::btree_map(frontend, any_load(), 0..4);
        let local = proptest::collection::btree_set((1..5u8).prop_map(|n| *endpoint(n).ip()), 0..3);
        proptest::option::weighted(0.8, (frontends, local).prop_map(|(frontends, local)| Rules { frontends, local }))
    }

    proptest! {
        /// Batch by batch the kernel comes to what a full replacement would give, and refuses no command on the way.
        #[test]
        fn batches_lead_where_a_full_replacement_leads(
            steps in proptest::collection::vec(proptest::collection::vec((0..4u8, any_rules()), 1..4), 1..12)
        ) {
            let mut ruleset = Ruleset::default();
            let mut kernel = Kernel::new();
            for step in steps {
                let step = step.into_iter().map(|(n, rules)| (key(&n.to_string()), rules));
                kernel.apply(&ruleset.apply(step).batch);
                let mut fresh = Kernel::new();
                fresh.apply(&ruleset.full());
                prop_assert_eq!(&kernel, &fresh);
            }
            let all: Vec<Key> = ruleset.services().cloned().collect();
            kernel.apply(&ruleset.apply(all.into_iter().map(|key| (key, None))).batch);
            prop_assert_eq!(kernel, Kernel::new());
        }
    }
}
